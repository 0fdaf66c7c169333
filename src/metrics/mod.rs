//! Metrics and log events.
//!
//! A [`MetricsRecorder`] receives the counts. Every method has an empty default, so a recorder
//! implements only the methods that it needs. Label values are trust domains of the bundle set, fixed
//! words of this crate, and the names given to [`FacadeRecorder::for_source`]. They are never values
//! of a token.
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use tower_spiffe::metrics::{MetricsRecorder, Verification};
//!
//! #[derive(Default)]
//! struct Rejections(AtomicU64);
//!
//! impl MetricsRecorder for Rejections {
//!     fn record_verification(&self, verification: &Verification<'_>) {
//!         if verification.outcome != "ok" {
//!             self.0.fetch_add(1, Ordering::Relaxed);
//!         }
//!     }
//! }
//!
//! let rejections = Rejections::default();
//! rejections.record_verification(&Verification::new("expired", false, "unknown"));
//! assert_eq!(rejections.0.load(Ordering::Relaxed), 1);
//! ```
//!
//! # Sources
//!
//! Metrics of the sources of bundles:
//!
//! | source | updates, readiness | errors | contact, age | reconnects, withdrawal |
//! | --- | --- | --- | --- | --- |
//! | JwtSource | yes | of the stream, `bundle-…` | messages and pings | yes |
//! | HttpsBundles | yes | `bundle-fetch`, `bundle-too-large`, `bundle-unreadable`, `bundle-unusable`, `bundle-rollback` | successful polls | no |
//! | FileBundles | yes | `bundle-file` | no: a readable file may be old | no |
//! | MergedBundles | recorded by its members, each with its own recorder | | | |
//! | MemoryBundles, FixedBundles | no | no | no | no |
//!
//! # Spans and events
//!
//! All spans and events of this crate. Their `tracing` targets begin with `tower_spiffe::` and the
//! module. They never contain tokens. Values from unknown callers are in debug lines only, bounded
//! and escaped. A failure is logged as a warning once; its repetitions are debug lines until it
//! recovers.
//!
//! | module | level | message | fields | meaning |
//! | --- | --- | --- | --- | --- |
//! | `source` | info | span `spiffe.jwt_source` | `endpoint` | around the background work of a source |
//! | `source` | info | first bundles | `revision`, `trust_domains`, `keys` | tokens can be verified from now on |
//! | `source` | info | bundles changed | `revision`, `trust_domains`, `keys` | keys were added or removed |
//! | `source` | warn | error of the bundle stream | `kind`, `error` | [`SOURCE_ERROR_KINDS`] lists the causes |
//! | `source` | debug | error of the bundle stream, again | `kind`, `error` | the same kind once more |
//! | `source` | debug | the agent ended the bundle stream | | without an error |
//! | `source` | debug | reconnecting | `delay_ms` | the stream is opened again after this delay |
//! | `source` | debug | retrying the first connection | `delay_ms` | the stream was never open; it is opened after this delay |
//! | `source` | debug | the wall clock jumped; opening the bundle stream again | | after a suspend or a step of the clock |
//! | `source` | warn | the issuer withdrew the bundles | `delay_ms` | it takes effect after this delay |
//! | `source` | warn | the withdrawal of the bundles takes effect | | from now on tokens cannot be verified |
//! | `source` | info | the issuer restored the bundles | | the withdrawal is over |
//! | `source` | info | its bundle is readable again, or removed | `trust_domain` | this trust domain has recovered |
//! | `source` | debug | closed | | the source was shut down |
//! | `source` | info | the source is closed: the runtime that it was built on has ended | | before the source was shut down |
//! | `source` | error | the task of this source panicked; the source is closed | | a bug of this crate |
//! | `source` | info | bundle files changed | `revision` | keys were added or removed |
//! | `source` | warn | a bundle file cannot be read; its last good bundles stay | `path`, `error` | another error than before |
//! | `source` | warn | no key in a bundle file is usable; all tokens of its trust domain are rejected | `path`, `trust_domain`, `ignored`, `why` | the number of ignored keys, and the reason of one; check the format of the file |
//! | `source` | error | reading the bundle files panicked; their last good bundles stay | | a bug of this crate |
//! | `source` | info | a polled bundle changed | `trust_domain`, `revision`, `keys` | keys were added or removed |
//! | `source` | warn | polling a bundle failed | `trust_domain`, `kind`, `error` | another error than before; the last good bundle stays |
//! | `source` | debug | polling a bundle failed again | `trust_domain`, `kind`, `error` | the same error once more |
//! | `source` | warn | a polled bundle has new content under the same spiffe_sequence; it is accepted | `trust_domain`, `sequence` | the issuer must raise the sequence with each change |
//! | `source` | warn | a polled bundle is stale: tokens cannot be verified | `trust_domain` | no poll succeeded for `max_staleness` |
//! | `source` | warn | the saved bundle cannot be read | `trust_domain`, `error` | the bootstrap bundle is used |
//! | `source` | warn | a polled bundle could not be saved | `trust_domain`, `error` | a restart may be locked out |
//! | `token` | warn | fetching a JWT-SVID failed | `request`, `error`, `usable` | also for access tokens; `usable`: an older token can still be sent |
//! | `token` | debug | fetching a JWT-SVID failed again | `request`, `error`, `usable` | the same class of error again, or any error for the access token of a caller |
//! | `token` | warn | refreshes of JWT-SVIDs have stalled; check that the agent is running and reaches its server | `request`, `why` | one line until they recover: a refresh returned no newer token, or takes longer than 5 s |
//! | `token` | info | refreshes of JWT-SVIDs return newer tokens again | `request` | they recovered |
//! | `token` | info | the issuer of JWT-SVIDs responds again | | the breaker closed |
//! | `token_file` | info | token file written | `path` | for the first time, or again after a failure |
//! | `token_file` | debug | token file written | `path` | with a newer token |
//! | `token_file` | warn | token file cannot be written; its old content stays | `path`, `error` | another error than before; the write is retried |
//! | `token_file` | debug | token file cannot be written; its old content stays | `path`, `error` | the same error once more |
//! | `token_file` | warn | the action after the write of a token file failed | `path`, `error` | another error than before; the action is retried |
//! | `token_file` | debug | the action after the write of a token file failed | `path`, `error` | the same error once more |
//! | `token_file` | info | token file is no longer refreshed | `path` | it was shut down or dropped, or its cache was closed |
//! | `token_file` | warn | token file cannot be removed | `path`, `error` | it stays until its token expires, or longer |
//! | `token_file` | warn | token file is unreadable or invalid; its last good token is kept until it expires | `path`, `error` | a file of a `FileTokens` has another error than before |
//! | `client` | debug | no token for this request: no audience covers its origin… | `origin` | the request is sent without a token; with [`strict`](crate::AddJwtSvidLayer::strict) it fails |
//! | `client` | debug | no token for this request: its Host header does not match its origin | `origin`, `host` | the request is sent without a token, because a forwarded `Host` header would route it to another virtual host; with `strict` it fails |
//! | `client` | debug | the request was not sent | `reason`, `error` | the layer's settings do not allow it; a gRPC peer gets a fixed text without these details |
//! | `server` | info | span `jwt_svid` | `peer.spiffe_id` | around the handling of a verified caller's request; if the outer span has the field, it is set there too |
//! | `server` | info | requests are not allowed: … | `reason`, `enforced`, `suppressed`, `detail`, `peer.spiffe_id`, `policy_reason`, `key_id`, `trust_domain`, `audiences`, `accepted_audiences` | at most one line per interval for each class and caller; `suppressed` is the number of lines suppressed since the last one; `detail` is the exact reason within the class; `policy_reason` is the reason that the policy gave; `peer.spiffe_id` is in the span instead if the span has that field; `key_id`, `trust_domain` and `audiences` are what the token claims, logged only if debug lines are enabled; `accepted_audiences` are those of the validator |
//! | `server` | info | responses ended early: … | `reason`, `suppressed`, `peer.spiffe_id` | an `EndAtExpiryLayer` ended them when the caller's token expired; at most one line per interval for all callers |
//! | `server` | warn | callers cannot be authenticated | `reason`, `enforced`, `suppressed`, `why` | this service cannot verify tokens now |
//! | `server` | warn | callers cannot be authorized | `reason`, `enforced`, `suppressed`, `why`, `policy_reason`, `peer.spiffe_id` | the policy could not decide; `why` says what failed, `policy_reason` is the error that the policy gave |
//! | `server` | info | policy file changed | `path`, `revision`, `rules` | the policy was replaced; `rules` is their number |
//! | `server` | warn | policy file is unreadable or invalid; its last good policy stays in use | `path`, `error`, `line`, `column` | another error than before |
//! | `server` | info | the policy file can be read again | `path` | it recovered |
//! | `server` | error | reading the policy file panicked; its last good policy stays in use | | a bug of this crate |
//! | `server` | warn | a policy file is in a dry run: it denies no request | `path` | the file was opened |
//! | `server` | info | dry run: requests would be rejected: … | `reason`, `suppressed`, `peer.spiffe_id`, `policy_reason`, `request` | at most one line every ten seconds for each reason and caller; `request` is the method and the path, for anonymous callers only if debug lines are enabled; `peer.spiffe_id` is in the span instead if the span has that field |
//! | `server` | error | ValidateJwtSvidLayer is missing from the stack | `reason`, `suppressed` | an `AllowCallersLayer`, an extractor or a rejection by your own code is not inside a `ValidateJwtSvidLayer`; one line per interval |
//! | `server` | error | responses do not end when the caller's token expires: … | `reason` | an `EndAtExpiryLayer` is not inside a `ValidateJwtSvidLayer`; one line |
//! | `metrics` | debug | the metrics recorder panicked | | a count is lost |

mod count;
#[cfg(feature = "metrics")]
mod facade;
#[cfg(feature = "metrics")]
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use count::{Count, StripedCount};
#[cfg(feature = "metrics")]
pub use facade::FacadeRecorder;
#[cfg(feature = "metrics")]
pub use table::{METRICS, MetricInfo};

use crate::clock::UnixTime;

/// The kinds of [`MetricsRecorder::record_error`].
///
/// | kind | usual cause |
/// | --- | --- |
/// | `connect` | no connection to the agent: it is down, or its socket is not mounted here |
/// | `not-grpc` | the endpoint does not serve the Workload API |
/// | `disconnected` | the connection was lost: the agent stopped |
/// | `timeout` | the agent did not respond in time |
/// | `unavailable` | the agent reports that it cannot serve now |
/// | `permission-denied` | this workload has no registration entry, or no longer has one |
/// | `invalid-argument` | the agent reports that the request is invalid |
/// | `unimplemented` | the agent has no JWT profile |
/// | `status` | another gRPC status of the agent |
/// | `invalid-answer` | the agent's response violates the Workload API |
/// | `doubtful-connection` | a call got no response, so the connection was closed |
/// | `message-too-large` | a message is larger than allowed and was not read |
/// | `empty-message` | the agent sent a message without bundles; it is discarded |
/// | `too-many-bundles` | a message has more trust domains than allowed; it is discarded |
/// | `bundle-too-large` | a trust domain's JWK Set is larger than allowed; the last one stays in use |
/// | `bundle-unreadable` | a trust domain's JWK Set cannot be read; the last one stays in use |
/// | `bundle-unnamed` | an entry of a message has an invalid name; if no name in it is valid, the message is discarded |
/// | `bundle-file` | a bundle file cannot be read or is invalid; its last bundles stay in use |
/// | `bundle-fetch` | a bundle cannot be fetched over https: DNS, connection, TLS, HTTP status; the last one stays in use |
/// | `bundle-unusable` | a JWK Set over https has keys, but no usable one; it takes effect |
/// | `bundle-rollback` | a bundle over https has a lower `spiffe_sequence` than the last one, which stays in use |
/// | `policy-file` | a policy file cannot be read or is invalid; its last good policy stays in use |
/// | `internal` | a bug of this crate |
pub const SOURCE_ERROR_KINDS: &[&str] = &[
    "connect",
    "not-grpc",
    "disconnected",
    "timeout",
    "unavailable",
    "permission-denied",
    "invalid-argument",
    "unimplemented",
    "status",
    "invalid-answer",
    "doubtful-connection",
    "message-too-large",
    "empty-message",
    "too-many-bundles",
    "bundle-too-large",
    "bundle-unreadable",
    "bundle-unnamed",
    "bundle-file",
    "bundle-fetch",
    "bundle-unusable",
    "bundle-rollback",
    "policy-file",
    "internal",
];

/// The outcomes of [`MetricsRecorder::record_key_wait`].
///
/// | outcome | the request |
/// | --- | --- |
/// | `judged` | got another verdict, because the bundles changed while it waited |
/// | `in-vain` | waited until its limit, and the key did not arrive |
/// | `turned-away` | did not wait: too many requests were waiting, or a wait had just failed |
pub const KEY_WAIT_OUTCOMES: &[&str] = &["judged", "in-vain", "turned-away"];

/// The outcomes of [`MetricsRecorder::record_dry_run_denial`]: the rejection that the request would
/// get.
///
/// | outcome | the request |
/// | --- | --- |
/// | `missing` | has no token |
/// | `not-allowed` | is from a caller that is not allowed |
pub const DRY_RUN_OUTCOMES: &[&str] = &["missing", "not-allowed"];

/// The outcomes of [`MetricsRecorder::record_token_exchange`].
///
/// | outcome | usual cause |
/// | --- | --- |
/// | `ok` | an access token was issued |
/// | `no-svid` | there is no token of this workload to authenticate with; check the agent |
/// | `expired-subject` | the caller's token has expired; the server was not called |
/// | `unreachable` | no response from the token endpoint: DNS, connection, TLS |
/// | `abandoned` | no response within the time limit of the cache, or the cache was closed |
/// | `invalid-client` | the server does not accept this workload: the client is not registered, or `issuer` is wrong |
/// | `invalid-grant` | the server does not accept the subject token |
/// | `denied` | the server does not issue this access token to this client |
/// | `invalid-request` | the server does not accept the parameters of the request |
/// | `invalid-scope` | the server does not know or allow the scope |
/// | `invalid-target` | the server does not know or allow the audience or resource |
/// | `unavailable` | the server is unavailable: a 5xx status or 429 |
/// | `redirect` | the token endpoint redirects; nothing was sent there |
/// | `unacceptable` | the response has no access token that can be sent |
/// | `other` | any other response |
pub const EXCHANGE_OUTCOMES: &[&str] = &[
    "ok",
    "no-svid",
    "expired-subject",
    "unreachable",
    "abandoned",
    "invalid-client",
    "invalid-grant",
    "denied",
    "invalid-request",
    "invalid-scope",
    "invalid-target",
    "unavailable",
    "redirect",
    "unacceptable",
    "other",
];

/// Receives the counts. It is called on hot paths, so it must be fast and must not block. A panic
/// in it is caught if it could end a background task.
#[allow(unused_variables, reason = "the defaults do nothing")]
pub trait MetricsRecorder: Send + Sync + 'static {
    /// The source has a new bundle set that differs from the one before.
    fn record_update(&self) {}

    /// The source lost the bundle stream, and received bundles over a new one.
    fn record_reconnect(&self) {}

    /// The source tries to open the bundle stream again after it ended or failed to open.
    fn record_reconnect_attempt(&self) {}

    /// A source or a policy file had an error. `kind` is one of [`SOURCE_ERROR_KINDS`].
    fn record_error(&self, kind: &'static str) {}

    /// Tokens can be verified (`true`) or not (`false`: no bundles yet, withdrawn, stale, closed).
    /// Recorded when the source starts, and when this changes or is checked.
    fn record_ready(&self, ready: bool) {}

    /// The issuer withdrew the bundles (`true`), or restored them (`false`).
    fn record_withdrawal(&self, withdrawn: bool) {}

    /// The time since the source's last contact with the issuer. Recorded when it changes, once a
    /// minute without messages, at every attempt to reconnect, and after every poll.
    fn record_bundle_age(&self, age: Duration) {}

    /// The wall time of a contact with the issuer. It is a timestamp and not an age, so an alert on
    /// it also fires if the process hangs.
    fn record_contact(&self, at: UnixTime) {}

    /// One call for a token of this workload ended; `outcome` is `ok` or a class of error.
    fn record_svid_fetch(&self, outcome: &'static str, latency: Duration) {}

    /// The token cache had this event.
    fn record_svid_cache(&self, event: SvidCacheEvent) {}

    /// A write of a token file succeeded (`ok`) or failed (`error`).
    fn record_token_file(&self, outcome: &'static str) {}

    /// One request for an access token of an OAuth authorization server ended; `outcome` is one of
    /// [`EXCHANGE_OUTCOMES`].
    fn record_token_exchange(&self, outcome: &'static str, latency: Duration) {}

    /// A server layer decided on a request.
    fn record_admission(&self, admission: &Admission<'_>) {}

    /// A request waited, or would have waited, for a key of its token that is not in the bundle;
    /// `outcome` is one of [`KEY_WAIT_OUTCOMES`].
    fn record_key_wait(&self, outcome: &'static str) {}

    /// A policy file in a dry run allowed a request that it would deny; `outcome` is one of
    /// [`DRY_RUN_OUTCOMES`].
    fn record_dry_run_denial(&self, outcome: &'static str) {}

    /// A response ended early because the caller's token expired.
    fn record_ended_answer(&self) {}

    /// A caller's token was verified, or its verification failed.
    fn record_verification(&self, verification: &Verification<'_>) {}
}

/// The recorder that ignores everything.
impl MetricsRecorder for () {}

/// An event of the cache of this workload's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SvidCacheEvent {
    /// A token was in the cache.
    Hit,
    /// No token was in the cache: the request waits or fails.
    Miss,
    /// A background refresh began.
    Refresh,
    /// A token was sent although its refresh is overdue.
    Late,
    /// A request got no token.
    Error,
    /// A service rejected a token; it is refreshed early.
    Refused,
    /// The breaker opened, because the issuer did not respond.
    BreakerOpened,
    /// A request went to an origin without an audience.
    Unmatched,
}

impl SvidCacheEvent {
    /// Every event.
    pub const ALL: &[Self] = &[
        Self::Hit,
        Self::Miss,
        Self::Refresh,
        Self::Late,
        Self::Error,
        Self::Refused,
        Self::BreakerOpened,
        Self::Unmatched,
    ];

    /// Returns the event as a fixed, short word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Refresh => "refresh",
            Self::Late => "late",
            Self::Error => "error",
            Self::Refused => "refused",
            Self::BreakerOpened => "breaker-opened",
            Self::Unmatched => "unmatched",
        }
    }
}

/// The verdict on a caller's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification<'a> {
    /// `ok`, or the class of the rejection.
    pub outcome: &'static str,
    /// Whether the token was in the verified cache.
    pub cached: bool,
    /// The trust domain if it is in the bundle set, otherwise `unknown`.
    pub trust_domain: &'a str,
    /// [The reason](crate::bundle::BundlesUnavailable::as_str) if the outcome is `cannot-judge`,
    /// otherwise empty.
    pub why: &'static str,
}

impl<'a> Verification<'a> {
    /// Creates a verdict.
    pub fn new(outcome: &'static str, cached: bool, trust_domain: &'a str) -> Self {
        Self {
            outcome,
            cached,
            trust_domain,
            why: "",
        }
    }

    /// Sets `why`.
    #[must_use]
    pub fn because(self, why: &'static str) -> Self {
        Self { why, ..self }
    }
}

/// The verdict on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admission<'a> {
    /// `verified`, `anonymous`, or the class of the rejection.
    pub outcome: &'static str,
    /// Whether the outcome was enforced: `false` if audit mode allowed a request that it would
    /// reject.
    pub enforced: bool,
    /// The caller's trust domain if it is in the bundle set, otherwise `unknown`.
    pub trust_domain: &'a str,
    /// The reason of two outcomes. `cannot-judge`: [why there are no usable
    /// bundles](crate::bundle::BundlesUnavailable::as_str). `policy-unavailable`: `failed`,
    /// `timed-out` or `too-many-in-flight`. Otherwise empty.
    pub why: &'static str,
}

impl<'a> Admission<'a> {
    /// Creates a verdict.
    pub fn new(outcome: &'static str, enforced: bool, trust_domain: &'a str) -> Self {
        Self {
            outcome,
            enforced,
            trust_domain,
            why: "",
        }
    }

    /// Sets `why`.
    #[must_use]
    pub fn because(self, why: &'static str) -> Self {
        Self { why, ..self }
    }
}

/// Catches the panics of a recorder: a lost count must not end a background task or a request.
pub(crate) struct Shielded(Arc<dyn MetricsRecorder>);

impl Shielded {
    pub(crate) fn new(inner: Arc<dyn MetricsRecorder>) -> Self {
        Self(inner)
    }

    fn run(&self, record: impl FnOnce(&dyn MetricsRecorder)) {
        // The recorder is responsible for its own state after a panic.
        let outcome = catch_unwind(AssertUnwindSafe(|| record(&*self.0)));
        if outcome.is_err() {
            tracing::debug!("the metrics recorder panicked");
        }
    }
}

macro_rules! shielded {
    ($($method:ident($($name:ident: $type:ty),*);)*) => {
        impl MetricsRecorder for Shielded {
            $(fn $method(&self $(, $name: $type)*) {
                self.run(|inner| inner.$method($($name),*));
            })*
        }
    };
}

shielded! {
    record_update();
    record_reconnect();
    record_reconnect_attempt();
    record_error(kind: &'static str);
    record_ready(ready: bool);
    record_withdrawal(withdrawn: bool);
    record_bundle_age(age: Duration);
    record_contact(at: UnixTime);
    record_svid_fetch(outcome: &'static str, latency: Duration);
    record_svid_cache(event: SvidCacheEvent);
    record_token_file(outcome: &'static str);
    record_token_exchange(outcome: &'static str, latency: Duration);
    record_admission(admission: &Admission<'_>);
    record_key_wait(outcome: &'static str);
    record_dry_run_denial(outcome: &'static str);
    record_ended_answer();
    record_verification(verification: &Verification<'_>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_kinds_and_outcomes_match_the_lists() {
        let documented: Vec<&str> = include_str!("mod.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("/// | `")?.split('`').next())
            .collect();
        let listed = [
            SOURCE_ERROR_KINDS,
            KEY_WAIT_OUTCOMES,
            DRY_RUN_OUTCOMES,
            EXCHANGE_OUTCOMES,
        ];
        assert_eq!(documented, listed.concat());
    }
}
