//! What must hold of every verdict and of every token that is sent.
//!
//! **A key is served** while the source's set has it. What a source answers is looked at before and
//! after each validation; its number of changes, read first and last, tells whether the set can
//! have changed in between: each change is told of after it is made and before the next begins, so
//! where the number is the same, the set was the one before or the one after.
//!
//! - A token whose key is in neither set is refused, by a cache that knows it and without one.
//! - A token whose key is in both, and that is in time, is admitted.
//! - A token that is past its time at both looks is refused, and so is a forged one always.
//! - No token is sent that is past its time.
//!
//! That the sets themselves are right, and soon, is for `driver.rs` to see.

use http::StatusCode;
use tower_spiffe::bundle::{BundlesUnavailable, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::verify::{ValidateError, ValidateReason};
use tower_spiffe::{BundleSource as _, JwtSvid, VerifiedSvid};

use crate::world::{Station, World};

/// A token as somebody presents it.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) text: String,
    pub(crate) trust_domain: String,
    pub(crate) kid: String,
    pub(crate) expires_at: UnixTime,
    pub(crate) forged: bool,
}

impl Presented {
    pub(crate) fn new(text: String, forged: bool) -> Self {
        let svid = JwtSvid::parse_unverified(&text, "").expect("the fixture's tokens are tokens");
        Self {
            trust_domain: svid.spiffe_id().trust_domain_name().to_owned(),
            kid: svid.key_id().unwrap_or_default().to_owned(),
            expires_at: svid.expires_at(),
            text,
            forged,
        }
    }
}

/// What a source answers at one moment.
pub(crate) struct View {
    changes: u64,
    at: UnixTime,
    verdict: Result<(), BundlesUnavailable>,
    set: JwtBundleSet,
}

impl View {
    /// To be taken before a validation: the number first.
    pub(crate) fn before(world: &World, station: &Station) -> Self {
        let changes = station.source.updated().last();
        Self {
            changes,
            ..Self::of(world, station)
        }
    }

    /// To be taken after one: the number last.
    pub(crate) fn after(world: &World, station: &Station) -> Self {
        let view = Self::of(world, station);
        let changes = station.source.updated().last();
        Self { changes, ..view }
    }

    fn of(world: &World, station: &Station) -> Self {
        let verdict = station.source.revision().map(|_| ());
        let set = station.source.bundle_set().unwrap_or_default();
        Self {
            changes: 0,
            at: world.now(),
            verdict,
            set,
        }
    }

    fn serves(&self, token: &Presented) -> bool {
        let bundle = self.set.get(&token.trust_domain);
        self.verdict.is_ok() && bundle.is_some_and(|bundle| bundle.authority(&token.kid).is_some())
    }

    fn has_domain(&self, token: &Presented) -> bool {
        self.verdict.is_ok() && self.set.get(&token.trust_domain).is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Admitted,
    Refused,
    BundlesUnavailable,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::BundlesUnavailable => "cannot-judge",
        }
    }
}

impl From<&Result<VerifiedSvid, ValidateError>> for Verdict {
    fn from(verdict: &Result<VerifiedSvid, ValidateError>) -> Self {
        match verdict {
            Ok(_) => Self::Admitted,
            Err(error) => match error.reason() {
                ValidateReason::BundlesUnavailable(_) => Self::BundlesUnavailable,
                _ => Self::Refused,
            },
        }
    }
}

impl From<StatusCode> for Verdict {
    fn from(status: StatusCode) -> Self {
        match status {
            StatusCode::OK => Self::Admitted,
            StatusCode::UNAUTHORIZED => Self::Refused,
            StatusCode::SERVICE_UNAVAILABLE => Self::BundlesUnavailable,
            other => panic!("no answer of ours: {other}"),
        }
    }
}

/// Holds a verdict against what was served around it.
pub(crate) fn judge(
    world: &World,
    station: &Station,
    how: &str,
    token: &Presented,
    (before, after): (&View, &View),
    verdict: Verdict,
) {
    let tally = &world.tally;
    match verdict {
        Verdict::Admitted => tally.admitted.up(),
        Verdict::Refused => tally.refused.up(),
        Verdict::BundlesUnavailable => tally.could_not_judge.up(),
    }
    let broken = |what: &str| {
        world.log.broken(format_args!(
            "{} ({how}): key {} of {}, exp {}, now {}: {what}",
            station.name,
            world.number_of(&token.kid),
            token.trust_domain,
            token.expires_at.secs(),
            after.at.secs(),
        ));
    };
    if token.forged && verdict == Verdict::Admitted {
        return broken("a forged token was admitted");
    }
    let end = token.expires_at.saturating_add(world.times.leeway);
    if before.at >= end && after.at >= end && verdict == Verdict::Admitted {
        return broken("an expired token was admitted");
    }
    if before.changes != after.changes {
        return tally.unclear.up();
    }
    let (served_before, served_after) = (before.serves(token), after.serves(token));
    if !served_before && !served_after && verdict == Verdict::Admitted {
        return broken("a token was admitted whose key is not served");
    }
    if served_before && served_after && !token.forged && before.at < end && after.at < end {
        match verdict {
            Verdict::Admitted => {}
            Verdict::Refused => broken("a good token was refused while its key is served"),
            Verdict::BundlesUnavailable => {
                broken("a good token was not judged while its key is served")
            }
        }
    } else if before.has_domain(token)
        && after.has_domain(token)
        && verdict == Verdict::BundlesUnavailable
    {
        broken("a bad token was not judged while its trust domain is served");
    }
}

/// A token goes out.
pub(crate) fn sent(world: &World, who: &str, token: &Presented) {
    world.tally.sent.up();
    if token.expires_at <= world.now() {
        world.log.broken(format_args!(
            "{who}: sent a token that expired at {}, and it is {}",
            token.expires_at.secs(),
            world.now().secs()
        ));
    }
}
