//! The agent's own cache of tokens, as SPIRE's agent keeps one.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::UnixTime;
use crate::identity::SpiffeId;

/// The size of the cache of SPIRE's agent, in tokens.
const MOST: usize = 1000;

/// The identity and the audiences of a token. The order of audiences does not matter.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    id: SpiffeId,
    audiences: Vec<String>,
}

#[derive(Clone)]
pub(super) struct CachedToken {
    pub(super) token: String,
    pub(super) kid: String,
    pub(super) issued_at: UnixTime,
    pub(super) expires_at: UnixTime,
}

/// Tokens by identity and audiences.
pub(super) struct TokenCache {
    tokens: HashMap<TokenKey, CachedToken>,
    kept: bool,
    random: fastrand::Rng,
}

impl TokenKey {
    pub(super) fn new(id: SpiffeId, audiences: &[String]) -> Self {
        let mut audiences = audiences.to_vec();
        audiences.sort_unstable();
        Self { id, audiences }
    }
}

impl TokenCache {
    pub(super) fn new(kept: bool, seed: u64) -> Self {
        Self {
            tokens: HashMap::new(),
            kept,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The token, while more than about half of its lifetime is left: a share between 45 % and 55 %,
    /// random for each call.
    pub(super) fn fresh(&mut self, key: &TokenKey, now: UnixTime) -> Option<String> {
        let share = 0.45 + 0.1 * self.random.f64();
        let cached = self.tokens.get(key)?;
        let life = cached.expires_at.saturating_since(cached.issued_at);
        let left = cached.expires_at.saturating_since(now);
        (left > life.mul_f64(share)).then(|| cached.token.clone())
    }

    /// The token until it expires, for the time when the server is unreachable.
    pub(super) fn alive(&self, key: &TokenKey, now: UnixTime) -> Option<String> {
        let cached = self.tokens.get(key)?;
        (cached.expires_at.saturating_since(now) > Duration::ZERO).then(|| cached.token.clone())
    }

    pub(super) fn keep(&mut self, key: TokenKey, token: CachedToken) {
        if !self.kept {
            return;
        }
        if self.tokens.len() >= MOST && !self.tokens.contains_key(&key) {
            let first_to_go = self
                .tokens
                .iter()
                .min_by_key(|(_, cached)| cached.expires_at)
                .map(|(key, _)| key.clone());
            if let Some(key) = first_to_go {
                self.tokens.remove(&key);
            }
        }
        self.tokens.insert(key, token);
    }

    /// Drops the tokens that this key signed.
    pub(super) fn forget_signed_by(&mut self, kid: &str) {
        self.tokens.retain(|_, cached| cached.kid != kid);
    }

    pub(super) fn clear(&mut self) {
        self.tokens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    fn token(expires_at: i64) -> CachedToken {
        CachedToken {
            token: format!("t{expires_at}"),
            kid: "k".to_owned(),
            issued_at: at(0),
            expires_at: at(expires_at),
        }
    }

    fn key(audience: &str) -> TokenKey {
        TokenKey::new(
            SpiffeId::parse("spiffe://x/a").unwrap(),
            &[audience.to_owned()],
        )
    }

    #[test]
    fn token_is_fresh_for_half_of_its_life() {
        let mut cache = TokenCache::new(true, 1);
        cache.keep(key("a"), token(1_000));
        let share = |cache: &mut TokenCache, now| {
            (0..1_000)
                .filter(|_| cache.fresh(&key("a"), at(now)).is_some())
                .count()
        };
        assert_eq!(share(&mut cache, 449), 1_000);
        assert!((300..700).contains(&share(&mut cache, 500)));
        assert_eq!(share(&mut cache, 551), 0);
        assert!(cache.alive(&key("a"), at(999)).is_some());
        assert!(cache.alive(&key("a"), at(1_000)).is_none());
    }

    #[test]
    fn order_of_audiences_does_not_matter() {
        let id = SpiffeId::parse("spiffe://x/a").unwrap();
        let of = |audiences: [&str; 2]| TokenKey::new(id.clone(), &audiences.map(str::to_owned));
        assert!(of(["a", "b"]) == of(["b", "a"]));
        assert!(of(["a", "b"]) != of(["a", "c"]));
    }

    #[test]
    fn full_cache_drops_the_earliest_expiry() {
        let mut cache = TokenCache::new(true, 1);
        for n in 0..=1_000 {
            cache.keep(key(&format!("{n}")), token(10_000 + n));
        }
        assert_eq!(cache.tokens.len(), MOST);
        assert!(cache.alive(&key("0"), at(1)).is_none());
        assert!(cache.alive(&key("1000"), at(1)).is_some());
    }
}
