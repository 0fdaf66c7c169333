//! An accepted token, and its deadlines.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use super::context::Context;
use super::entry::Entry;
use super::moment::{Moment, nanos};
use super::snapshot::TokenState;
use crate::clock::UnixTime;
use crate::token::{FetchSvidError, FetchSvidReason, JwtSvid, Subject, SvidRequest};

/// A token with its deadlines. Immutable; its entry has all mutable state.
pub(crate) struct Token {
    /// `Bearer …`, sensitive. Clones are cheap.
    pub(crate) header: HeaderValue,
    pub(crate) svid: JwtSvid,
    pub(crate) entry: Weak<Entry>,
    /// Counts the tokens of an entry, from 1.
    pub(crate) generation: u64,
    pub(crate) due: Moment,
    expiry: Moment,
    /// The margins before its expiry, in nanoseconds.
    soft: u64,
    hard: u64,
}

impl Token {
    /// Checks the token that the issuer returned for `request`; `had` is the previous one.
    pub(crate) fn accept(
        mut svid: JwtSvid,
        request: &SvidRequest,
        had: Option<&Self>,
        cx: &Context,
    ) -> Result<Self, FetchSvidError> {
        fits(&svid, request)?;
        svid.share(request, |subject| cx.subjects.common(subject));
        let (now, settings) = (cx.moment(), &cx.settings);
        let expires_at = svid.expires_at();
        let ends = now.at_wall(expires_at);
        // From `iat` if it is plausible. It may be in the future if the local clock is slow; that
        // does not make the lifetime longer.
        let life = match issued_at(&svid) {
            Some(iat) => expires_at.saturating_since(iat),
            None => ends.until(now),
        };
        let expiry = ends.no_later_than(now.plus(life).mono());

        let (from, to) = settings.refresh;
        let refresh = (from + (to - from) * fastrand::f64()).clamp(0.0, 1.0);
        let mut due = expiry.minus(life.mul_f64(1.0 - refresh));
        if due.reached(now) {
            due = now.plus(Duration::from_secs(1).max(expiry.until(now) / 10));
        }
        let hard = nanos(settings.hard_margin.of(life));
        if expiry.reached_within(hard, now) {
            return Err(expired(&svid, had, now));
        }
        Ok(Self {
            header: header(&svid)?,
            svid,
            entry: Weak::new(),
            generation: 0,
            due,
            expiry,
            soft: nanos(settings.soft_margin.of(life)),
            hard,
        })
    }

    pub(crate) fn stage(&self, now: Moment) -> TokenState {
        if !self.usable(now) {
            TokenState::Expired
        } else if !self.due.reached(now) {
            TokenState::Fresh
        } else if self.expiry.reached_within(self.soft, now) {
            TokenState::Critical
        } else {
            TokenState::Due
        }
    }

    /// Whether it may still be sent.
    #[inline]
    pub(crate) fn usable(&self, now: Moment) -> bool {
        !self.expiry.reached_within(self.hard, now)
    }

    /// The time until it expires.
    pub(crate) fn expires_in(&self, now: Moment) -> Duration {
        self.expiry.until(now)
    }

    /// Whether `newer` is the same token, or expires earlier.
    pub(crate) fn is_matched_by(&self, newer: &Self) -> bool {
        self.is_same(newer) || newer.svid.expires_at() < self.svid.expires_at()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.header == other.header
    }

    /// A copy with its own reference count, for one thread, so that threads do not contend for a
    /// cache line. Fresh until `due`.
    pub(crate) fn replica(&self, due: Moment) -> Self {
        let header = HeaderValue::from_bytes(self.header.as_bytes());
        Self {
            header: header.map_or_else(|_| self.header.clone(), sensitive),
            svid: self.svid.clone(),
            entry: self.entry.clone(),
            due,
            ..*self
        }
    }

    /// Whether it is fresh.
    #[inline]
    pub(crate) fn is_fresh(&self, now: Moment) -> bool {
        !self.due.reached(now) && self.usable(now)
    }
}

/// The subjects of the tokens of a cache, each stored once: a process has few identities. Without it, an
/// audience in the cache would cost 190 bytes more.
#[derive(Default)]
pub(crate) struct Subjects(Mutex<VecDeque<Arc<Subject>>>);

impl Subjects {
    const MAX: usize = 8;

    /// Returns the stored subject that equals this one.
    fn common(&self, subject: &Arc<Subject>) -> Arc<Subject> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.iter().find(|known| *known == subject) {
            return known.clone();
        }
        // Keys rotate: the oldest subject is removed.
        if known.len() >= Self::MAX {
            known.pop_front();
        }
        known.push_back(subject.clone());
        subject.clone()
    }
}

/// Its `iat`, if it is plausible.
fn issued_at(svid: &JwtSvid) -> Option<UnixTime> {
    svid.issued_at()
        .filter(|iat| iat.secs() > 0 && *iat < svid.expires_at())
}

/// The error for a token that has expired when it arrives. If it is old, the agent has lost its
/// server. If it is new, the clocks differ.
fn expired(svid: &JwtSvid, had: Option<&Token>, now: Moment) -> FetchSvidError {
    const WHAT: &str = "the agent returned an old token";
    const FIX: &str = "its server is probably unreachable; check the agent's log and its \
                       connection to the server";
    if had.is_some_and(|had| had.svid.token() == svid.token()) {
        let text = format!("{WHAT}: the same one as before, which has expired; {FIX}");
        return FetchSvidError::new(FetchSvidReason::Stale, text);
    }
    let lived =
        issued_at(svid).map(|iat| (now.since_wall(iat), svid.expires_at().saturating_since(iat)));
    match lived {
        Some((age, life)) if age >= life => {
            let (age, life) = (age.as_secs(), life.as_secs());
            let text = format!("{WHAT}: it was issued {age} s ago for {life} s; {FIX}");
            FetchSvidError::new(FetchSvidReason::Stale, text)
        }
        _ => FetchSvidError::new(
            FetchSvidReason::Expired,
            "the issuer returned a token that has expired or is about to expire: the clocks differ; \
             compare the clocks of this machine and of the issuer",
        ),
    }
}

fn fits(svid: &JwtSvid, request: &SvidRequest) -> Result<(), FetchSvidError> {
    let unacceptable = |what| Err(FetchSvidError::new(FetchSvidReason::Unacceptable, what));
    if !request.has_audiences_of(svid) {
        return unacceptable("the issuer returned a token for other audiences than requested");
    }
    if request.spiffe_id().is_some_and(|id| id != svid.spiffe_id()) {
        return unacceptable("the issuer returned a token with another SPIFFE ID than requested");
    }
    if request.hint().is_some_and(|hint| hint != svid.hint()) {
        return unacceptable("the issuer returned a token with another hint than requested");
    }
    Ok(())
}

/// The header value over the memory of the token, so that the token is stored once.
fn header(svid: &JwtSvid) -> Result<HeaderValue, FetchSvidError> {
    struct Bearer(JwtSvid);
    impl AsRef<[u8]> for Bearer {
        fn as_ref(&self) -> &[u8] {
            self.0.bearer().as_bytes()
        }
    }
    let bytes = Bytes::from_owner(Bearer(svid.clone()));
    HeaderValue::from_maybe_shared(bytes)
        .map(sensitive)
        .map_err(|_| {
            FetchSvidError::new(
                FetchSvidReason::Unacceptable,
                "the issuer returned a token that cannot be sent in a header",
            )
        })
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
