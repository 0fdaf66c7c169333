//! The cache of our own tokens: one for each audience, fresh before it must be.
//!
//! A [`SvidCache`] over any [`FetchSvid`] asks the issuer once for everyone who waits, refreshes a
//! token while the old one still serves, and keeps sending a token that is valid while the issuer
//! is away. `JwtSource` has one inside; a fetcher of your own gets the same by a cache of its own.
//!
//! ```
//! use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
//! use tower_spiffe::svid::{FetchSvid, FetchSvidFuture, JwtSvid, SvidRequest};
//! use tower_spiffe::svid_cache::SvidCache;
//! use tower_spiffe::{Clock, SystemClock};
//!
//! /// An issuer that lives in the same process, and signs badly.
//! struct Desk;
//!
//! impl FetchSvid for Desk {
//!     fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
//!         let now = SystemClock::shared().now().secs();
//!         let claims = format!(
//!             r#"{{"sub":"spiffe://x/web","aud":["{}"],"iat":{now},"exp":{}}}"#,
//!             request.audiences()[0],
//!             now + 300,
//!         );
//!         let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"1"}"#);
//!         let token = format!("{header}.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
//!         Box::pin(async move { Ok(JwtSvid::parse_unverified(&token, "").unwrap()) })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = SvidCache::new(Desk);
//! let reports = SvidRequest::new(["spiffe://x/reports"])?;
//!
//! assert!(cache.try_header(&reports).is_none()); // nothing there yet; a fetch begins
//! let header = cache.header(&reports).await?; // waits for that same fetch
//! assert!(header.to_str()?.starts_with("Bearer ") && header.is_sensitive());
//! assert_eq!(cache.try_header(&reports), Some(header));
//! assert_eq!(cache.stats().fetches, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # How a token lives
//!
//! With L the token's life (`exp` − `iat`):
//!
//! | from | the token is | a request |
//! | --- | --- | --- |
//! | its arrival | fresh | sends it |
//! | 55 to 65 % of L | due | sends it, and has the next one fetched in the background |
//! | the last 10 % of L, 30 s at most | critical | waits 250 ms at most for the next one, then sends it |
//! | the last 2 % of L, 2 s at most | expired | waits up to 5 s for the next one; 250 ms at most if the issuer has not answered for [`slow_after`](SvidCacheBuilder::slow_after); or fails at once while the issuer is known to fail |
//!
//! If a service rejects a token, or the key that signed it is removed from the bundle, the token is
//! critical from then on.
//!
//! An error never replaces a token, and no token is sent past its end, by the wall's clock or by
//! the monotonic one. Nothing is refreshed that nobody asks for, but for what
//! [`keep_warm`](SvidCache::keep_warm) names.
//!
//! # While the issuer is away
//!
//! A token that is due when the issuer goes has at least 35 % of its life left, less the hard
//! margin: with tokens of 300 s no request fails for 103 s. This holds for audiences that were
//! fetched while it was there, with tokens of their full life when they came.
//!
//! How soon requests go out again once it is back depends on how it was away:
//!
//! - It refused calls, or could not be reached: within 6 s. The breaker asks every 5 s at the
//!   latest, with the call of one audience for all.
//! - It took calls and never answered them: within 42 s. The call that is to find out may have just
//!   begun, and has up to 35 s for an answer, since an agent that is merely slow needs up to 30 s.
//! - Each of very many audiences lacks its token: the first ones so, and the last one later by one
//!   second for each 200 audiences ([`rate`](SvidCacheBuilder::rate)).
//!
//! Measured, one request per second and audience, an agent that is away until every token has
//! expired and for 120 to 240 s more, the worst of all runs (20 with 30 audiences, one with
//! 10,000):
//!
//! | the agent | audiences | first failure after | calls at once, all expired | last failure, the agent back |
//! | --- | --- | --- | --- | --- |
//! | refuses | 30 | 108.2 s | 1 | 4.9 s |
//! | hangs | 30 | 108.2 s | 1 | 38.7 s |
//! | refuses | 10,000 | 104.1 s | 1 | 61.5 s |
//! | hangs | 10,000 | 104.1 s | 1 | 85.7 s |
//!
//! # What it keeps
//!
//! For each audience its token, and about 560 bytes beside it (`cargo test --test allocations`
//! holds it to 600); 1024 audiences by default. Each thread keeps copies of up to 8 of the tokens
//! that it sends most, so that threads do not wait for one another. A token that is there costs no
//! allocation.
//!
//! # How many calls the issuer gets
//!
//! A process makes 1 / 0.6 ≈ 1.67 calls per token life and audience that it uses steadily; many
//! processes on one SPIRE agent make up to 1 / 0.55 ≈ 1.82 each, since the first of them to ask
//! after half of the life renews the token for all. The agent signs anew once per 0.55 lives.
//!
//! `tower-spiffe agent-load` (crate `tower-spiffe-cli`) measures it with this cache, on a clock that
//! jumps, against the agent's rule (it hands out its own copy until 45 to 55 % of the life are left). Tokens of
//! 300 s where nothing else is said; no call brought a token that was there already:
//!
//! | processes | audiences | they begin | calls per life and audience | busiest second, against the mean |
//! | --- | --- | --- | --- | --- |
//! | 1 | 200 | apart | 1.665 | |
//! | 1 | 200, tokens of 3,600 s | apart | 1.661 | |
//! | 1 | 10,000, of 1,000 runs | apart | 1.662 (5 %: 1.67, half: 1.67, 95 %: 1.67, most: 2.00) | 1.21 times |
//! | 100 | 200 | together, one audience after the other | 1.821 | 1.57 times |
//! | 10 | 200 | apart | 1.827 | 3.64 times |
//! | 100 | 10 | apart | 1.830 | 5.79 times |
//!
//! The last two rows follow from the two promises above, no useless call and 103 s without an
//! agent: they leave the tenth of a token's life between 55 and 65 % to ask in, and however apart
//! processes began, those that share an agent soon hold the same token of each audience, so the
//! same tenth. With many audiences these tenths lie side by side; with
//! few, leave the agent room for six times the mean. This prints both tables again, in about ten
//! minutes; `--help` lists the options for your own numbers:
//!
//! ```text
//! tower-spiffe agent-load --seeds 1000
//! ```

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;

use crate::clock::Clock;
use crate::metrics::MetricsRecorder;
use crate::svid::{FetchSvid, JwtSvid, SvidRequest};

mod breaker;
mod builder;
pub(crate) mod caller;
mod context;
mod counts;
mod entry;
mod error;
mod flight;
mod gate;
mod hot;
mod landing;
mod limits;
mod moment;
#[cfg(any(feature = "workload-api", feature = "tonic"))]
mod peer;
mod pin;
mod settings;
mod single_use;
mod snapshot;
mod successors;
mod table;
mod token;
mod updates;
mod wait;
mod warm;

use context::Context;
use entry::Entry;
use settings::Settings;
use table::Table;
use token::Token;

pub use builder::SvidCacheBuilder;
pub use counts::SvidCacheStats;
pub use error::{TokenError, TokenErrorReason};
pub use pin::PinnedSvid;
pub(crate) use pin::{Issue, Issued};
pub use snapshot::{AudienceSnapshot, TokenState};
pub(crate) use successors::Successors;
pub use updates::SvidUpdates;
pub(crate) use wait::Waiter;
pub use warm::KeepWarm;

/// A cache of our own tokens, one for each [`SvidRequest`]. Clones are the same cache.
#[derive(Clone)]
pub struct SvidCache {
    core: Arc<Core>,
    // What must live as long as somebody can ask.
    alive: Option<Arc<dyn Any + Send + Sync>>,
}

struct Core {
    cx: Arc<Context>,
    table: Table,
}

impl SvidCache {
    /// A cache over `fetcher`, with the defaults.
    pub fn new(fetcher: impl FetchSvid) -> Self {
        Self::builder(fetcher).build()
    }

    /// A cache over `fetcher`, with options.
    pub fn builder(fetcher: impl FetchSvid) -> SvidCacheBuilder {
        SvidCacheBuilder::new(fetcher)
    }

    fn of(
        fetcher: Arc<dyn FetchSvid>,
        clock: Arc<dyn Clock>,
        metrics: Option<Arc<dyn MetricsRecorder>>,
        settings: Settings,
    ) -> Self {
        let table = Table::new(settings.max_entries);
        let cx = Arc::new(Context::new(fetcher, clock, metrics, settings));
        Self {
            core: Arc::new(Core { cx, table }),
            alive: None,
        }
    }

    /// The same cache, with something that lives as long as this clone, its clones and whatever
    /// they pin.
    #[must_use]
    pub fn keeping_alive(self, alive: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            alive: Some(alive),
            ..self
        }
    }

    /// The token for `request`: the cached one, or the one that a fetch brings.
    ///
    /// # Errors
    /// A [`TokenError`] where there is nothing to send, and none came in time.
    pub async fn get(&self, request: &SvidRequest) -> Result<JwtSvid, TokenError> {
        Ok(self.issue(request)?.settle().await?.svid())
    }

    /// The token for `request` as the value of an `authorization` header: `Bearer …`, marked
    /// sensitive.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn header(&self, request: &SvidRequest) -> Result<HeaderValue, TokenError> {
        if let Some(header) = self.hit(request) {
            return Ok(header);
        }
        Ok(self.issue(request)?.settle().await?.header())
    }

    /// The header that can be sent at once; `None` where there is none, and then a fetch begins.
    /// Never waits. Always `None` for a [`single_use`](SvidRequest::single_use) request, without a
    /// fetch.
    pub fn try_header(&self, request: &SvidRequest) -> Option<HeaderValue> {
        if request.is_single_use() {
            return None;
        }
        if let Some(header) = self.hit(request) {
            return Some(header);
        }
        self.issue(request)
            .ok()?
            .at_once()
            .map(|issued| issued.header())
    }

    /// A handle on the token for `request` that needs no look-up, and whose audience never gives
    /// way to another.
    pub fn pin(&self, request: SvidRequest) -> PinnedSvid {
        let make = || self.core.entry(&request);
        // A pin is never refused for want of room.
        let entry = self.core.table.get_or_insert(&request, true, make);
        let entry = entry.unwrap_or_else(|| self.core.entry(&request));
        PinnedSvid::new(entry, Arc::downgrade(&self.core), self.alive.clone())
    }

    /// Keeps the tokens for these requests fresh whether anyone asks for them or not, with one
    /// task for all of them, until what is returned is dropped.
    ///
    /// It does not keep a source open: when that is shut down, the task ends. Requests for
    /// [`single_use`](SvidRequest::single_use) tokens are ignored.
    ///
    /// # Errors
    /// There is no tokio runtime with timers here, and there was none where the cache was built.
    pub fn keep_warm(
        &self,
        requests: impl IntoIterator<Item = SvidRequest>,
    ) -> Result<KeepWarm, TokenError> {
        let mut here = self.clone();
        here.alive = None;
        warm::keep(
            &self.core.cx,
            requests
                .into_iter()
                .map(|request| here.pin(request))
                .collect(),
        )
    }

    /// Reports that signing keys were removed: `gone` is asked with the name of a trust domain and a
    /// key ID. The next request for a token that such a key signed waits for another one, up to
    /// [`soft_wait`](SvidCacheBuilder::soft_wait) (250 ms) and once per removal, then sends what
    /// there is. Tokens that are only kept warm are refreshed within 5 s.
    pub fn authorities_gone(&self, gone: &dyn Fn(&str, &str) -> bool) {
        let now = self.core.cx.moment();
        let signed_by_gone = |token: &Token| {
            let trust_domain = token.svid.spiffe_id().trust_domain_name();
            let key_id = token.svid.key_id();
            key_id.is_some_and(|key_id| gone(trust_domain, key_id))
        };
        // In the order of their making: each draws a moment of its own, and a test that seeds the
        // draw must be able to repeat it.
        let mut entries = self.core.table.all();
        entries.sort_unstable_by_key(|entry| entry.id);
        for entry in entries {
            entry.keys_gone(signed_by_gone, now);
        }
        self.core.cx.nudge.notify_waiters();
    }

    /// Tells that a service refused the token in `header`: the next request has it refreshed,
    /// where it is still the current one, and not more than once per 10 s. Whether it will be.
    pub fn report_refused(&self, request: &SvidRequest, header: &HeaderValue) -> bool {
        let Some(entry) = self.core.table.get(request) else {
            return false;
        };
        let sent = entry
            .token
            .load_full()
            .filter(|token| token.header == *header);
        sent.is_some_and(|token| pin::refused(&entry, token.generation))
    }

    /// Ends all fetches; from now on every request fails with [`TokenErrorReason::Closed`].
    pub fn close(&self) {
        self.core.cx.close();
        for entry in self.core.table.all() {
            entry.ground();
        }
    }

    /// What the cache did since it was made.
    pub fn stats(&self) -> SvidCacheStats {
        let cx = &self.core.cx;
        let table = &self.core.table;
        cx.counts
            .stats(table.len(), table.evicted(), cx.breaker.is_open())
    }

    /// Every audience in the cache, as it is now, in no order.
    pub fn snapshot(&self) -> Vec<AudienceSnapshot> {
        let now = self.core.cx.moment();
        self.core
            .table
            .all()
            .iter()
            .map(|entry| AudienceSnapshot::of(entry, now))
            .collect()
    }

    /// One audience as it is now; `None` where it is not in the cache.
    pub fn snapshot_of(&self, request: &SvidRequest) -> Option<AudienceSnapshot> {
        let now = self.core.cx.moment();
        self.core
            .table
            .get(request)
            .map(|entry| AudienceSnapshot::of(&entry, now))
    }

    /// The time by the cache's clock, which only grows.
    pub(crate) fn monotonic(&self) -> Duration {
        self.core.cx.clock.monotonic()
    }

    /// A request went to an origin that no token may go to.
    pub(crate) fn passed_without_token(&self) {
        self.core.cx.unmatched();
    }

    /// A fresh token, without taking hold of anything.
    #[inline]
    fn hit(&self, request: &SvidRequest) -> Option<HeaderValue> {
        let cx = &self.core.cx;
        if cx.is_closed() {
            return None;
        }
        let now = cx.moment();
        let header = self.core.table.with(request, |entry| {
            entry.touch(now);
            hot::fresh(entry, now, |token| token.header.clone())
        });
        let header = header.flatten()?;
        cx.hit();
        Some(header)
    }

    /// A token, or the wait for one.
    pub(crate) fn issue(&self, request: &SvidRequest) -> Result<Issue, TokenError> {
        loop {
            let make = || self.core.entry(request);
            let entry = self
                .core
                .table
                .get_or_insert(request, false, make)
                .ok_or_else(|| {
                    self.core.cx.missed();
                    self.core.cx.no_token();
                    TokenError::full(request)
                })?;
            // An entry that was evicted after it was found is looked up anew.
            if let Some(issue) = pin::issue(&entry) {
                return issue;
            }
        }
    }
}

impl Core {
    fn entry(&self, request: &SvidRequest) -> Arc<Entry> {
        // From 1: 0 is nobody's.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Entry::new(
            id,
            request.clone(),
            self.cx.clone(),
            self.cx.moment(),
        ))
    }
}

impl fmt::Debug for SvidCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidCache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
