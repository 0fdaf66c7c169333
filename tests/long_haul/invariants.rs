//! Invariants of every validation and of every token that is sent.
//!
//! **A key is published** while the source's set has it. The set is read before and after each
//! validation, together with its number of changes (read first before, and last after). The number
//! is incremented after each change and before the next. If it is equal, the set during the
//! validation was one of the two.
//!
//! - A token whose key is in neither set is rejected, with a cache that has it and without a cache.
//! - A token whose key is in both sets, and that has not expired, is accepted.
//! - A token that has expired at both reads is rejected. A forged token is always rejected.
//! - No expired token is sent.
//!
//! `driver.rs` checks that the sets themselves are correct and up to date.

use http::StatusCode;
use tower_spiffe::bundle::{BundlesUnavailable, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::verify::{ValidateError, ValidateReason};
use tower_spiffe::{BundleSource as _, JwtSvid, VerifiedSvid};

use crate::world::{Station, World};

/// A token that a caller sends.
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
        let svid = JwtSvid::parse_unverified(&text, "").expect("a valid token");
        Self {
            trust_domain: svid.spiffe_id().trust_domain_name().to_owned(),
            kid: svid.key_id().unwrap_or_default().to_owned(),
            expires_at: svid.expires_at(),
            text,
            forged,
        }
    }
}

/// What a source has at one moment.
pub(crate) struct View {
    changes: u64,
    at: UnixTime,
    verdict: Result<(), BundlesUnavailable>,
    set: JwtBundleSet,
}

impl View {
    /// Reads before a validation: the number of changes first.
    pub(crate) fn before(world: &World, station: &Station) -> Self {
        let changes = station.source.updated().last();
        Self {
            changes,
            ..Self::of(world, station)
        }
    }

    /// Reads after a validation: the number of changes last.
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
    Accepted,
    Rejected,
    BundlesUnavailable,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::BundlesUnavailable => "cannot-judge",
        }
    }
}

impl From<&Result<VerifiedSvid, ValidateError>> for Verdict {
    fn from(verdict: &Result<VerifiedSvid, ValidateError>) -> Self {
        match verdict {
            Ok(_) => Self::Accepted,
            Err(error) => match error.reason() {
                ValidateReason::BundlesUnavailable(_) => Self::BundlesUnavailable,
                _ => Self::Rejected,
            },
        }
    }
}

impl From<StatusCode> for Verdict {
    fn from(status: StatusCode) -> Self {
        match status {
            StatusCode::OK => Self::Accepted,
            StatusCode::UNAUTHORIZED => Self::Rejected,
            StatusCode::SERVICE_UNAVAILABLE => Self::BundlesUnavailable,
            other => panic!("unexpected status: {other}"),
        }
    }
}

/// Checks a result against the sets before and after it.
pub(crate) fn check_verdict(
    world: &World,
    station: &Station,
    how: &str,
    token: &Presented,
    (before, after): (&View, &View),
    verdict: Verdict,
) {
    let tally = &world.tally;
    match verdict {
        Verdict::Accepted => tally.accepted.up(),
        Verdict::Rejected => tally.rejected.up(),
        Verdict::BundlesUnavailable => tally.unavailable.up(),
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
    if token.forged && verdict == Verdict::Accepted {
        return broken("a forged token was accepted");
    }
    let end = token.expires_at.saturating_add(world.times.leeway);
    if before.at >= end && after.at >= end && verdict == Verdict::Accepted {
        return broken("an expired token was accepted");
    }
    if before.changes != after.changes {
        return tally.unclear.up();
    }
    let (served_before, served_after) = (before.serves(token), after.serves(token));
    if !served_before && !served_after && verdict == Verdict::Accepted {
        return broken("a token was accepted whose key is not published");
    }
    if served_before && served_after && !token.forged && before.at < end && after.at < end {
        match verdict {
            Verdict::Accepted => {}
            Verdict::Rejected => broken("a valid token was rejected while its key is published"),
            Verdict::BundlesUnavailable => {
                broken("a valid token was not validated while its key is published")
            }
        }
    } else if before.has_domain(token)
        && after.has_domain(token)
        && verdict == Verdict::BundlesUnavailable
    {
        broken("an invalid token was not validated while its trust domain is published");
    }
}

/// Checks a token that is sent.
pub(crate) fn sent(world: &World, who: &str, token: &Presented) {
    world.tally.sent.up();
    if token.expires_at <= world.now() {
        world.log.broken(format_args!(
            "{who}: sent a token that expired at {}; now {}",
            token.expires_at.secs(),
            world.now().secs()
        ));
    }
}
