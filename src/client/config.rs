//! The settings of the layer, the middleware and the interceptor: which token a request gets.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderName};
use http::{Extensions, HeaderMap, HeaderValue};

use super::audience::{Audience, Found};
use super::caller;
use super::options::{OnExisting, Plaintext};
use super::origin::{Destination, Target};
#[cfg(feature = "oauth")]
use crate::token::SubjectToken;
use crate::token::SvidRequest;
use crate::token::{Issue, Issued, PinnedSvid, SvidCache, TokenError, TokenErrorReason};
use crate::verify::VerifiedSvid;

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) cache: SvidCache,
    audience: Audience,
    /// One for each request of the audience, in the same order.
    pins: Arc<[PinnedSvid]>,
    pub(super) header: HeaderName,
    pub(super) on_existing: OnExisting,
    pub(super) strict: bool,
    pub(super) plaintext: Option<Plaintext>,
}

/// What to do with a request.
pub(super) enum Decision {
    /// Send it unchanged.
    Pass,
    /// Send it with this token, or after the wait for it.
    Token(Issue),
    Fail(TokenError),
}

impl Decision {
    fn of(issue: Result<Issue, TokenError>) -> Self {
        issue.map_or_else(Self::Fail, Self::Token)
    }

    /// A request that the settings do not allow. A gRPC peer gets a fixed text, so the details are
    /// logged.
    fn not_allowed(error: TokenError) -> Self {
        tracing::debug!(reason = error.reason().as_str(), %error, "the request was not sent");
        Self::Fail(error)
    }
}

impl Config {
    pub(super) fn new(cache: SvidCache, audience: Audience) -> Self {
        let pins = audience
            .requests()
            .map(|request| cache.pin(request.clone()))
            .collect();
        Self {
            cache,
            audience,
            pins,
            header: AUTHORIZATION,
            on_existing: OnExisting::default(),
            strict: false,
            plaintext: None,
        }
    }

    /// Decides which token a request to `destination` gets.
    pub(super) fn decide(
        &self,
        destination: Destination<'_>,
        headers: &HeaderMap,
        extensions: Option<&Extensions>,
    ) -> Decision {
        let on_existing = match self.on_existing {
            // A gateway must not forward its caller's token.
            OnExisting::Keep if extensions.is_some_and(caller::is_forwarded) => OnExisting::Replace,
            other => other,
        };
        let existing = on_existing != OnExisting::Replace && has(headers, &self.header);
        // It is sent unchanged, so no token of this workload can reach a wrong host.
        let kept = existing && on_existing == OnExisting::Keep && !self.strict;
        let own = extensions.and_then(|extensions| extensions.get::<Audience>());
        // Most requests have the authority in the form of the audience, so comparing text is
        // enough.
        if own.is_none()
            && let Some(authority) = destination.https_authority()
            && !has(headers, &HOST)
            && let Some((at, request)) = self.audience.find_as_written(authority)
        {
            return match (kept, existing) {
                (true, _) => Decision::Pass,
                (false, true) => self.existing(),
                (false, false) => self.issue_rule(at, request, headers, extensions),
            };
        }
        let target = match destination.target() {
            Ok(Some(target)) => target,
            Ok(None) => match own.and_then(Audience::assumed).or(self.audience.assumed()) {
                Some(target) => target,
                None if kept => return Decision::Pass,
                None => return Decision::not_allowed(no_origin()),
            },
            // An ambiguous URI matches no origin.
            Err(_) => return self.unmatched(Unmatched::Ambiguous),
        };
        if let Some(host) = other_host(headers, target) {
            return self.unmatched(Unmatched::Host(target, host));
        }
        // The origin is checked before the header: requests to other origins may have any header.
        let found = match own {
            None => self.audience.find(target),
            Some(own) => own.find(target),
        };
        if let Found::Nothing = found {
            return self.unmatched(Unmatched::Origin(target));
        }
        if kept {
            return Decision::Pass;
        }
        if let Some(error) = self.plaintext_error(target) {
            return Decision::not_allowed(error);
        }
        if existing {
            return self.existing();
        }
        let request = match (own, found) {
            (None, Found::Rule(at, request)) => {
                return self.issue_rule(at, request, headers, extensions);
            }
            (None, Found::Made(request)) => request,
            (Some(_), Found::Rule(_, request)) => self.audience.identify(request.clone()),
            (Some(_), Found::Made(request)) => self.audience.identify(request),
            (_, Found::Invalid(error)) => return Decision::not_allowed(error),
            (_, Found::Nothing) => return self.unmatched(Unmatched::Origin(target)),
        };
        let on_behalf = self.on_behalf_of_caller(&request, headers, extensions);
        on_behalf.unwrap_or_else(|| Decision::of(self.cache.issue(&request)))
    }

    /// Returns a token for the rule at this index of the audience.
    #[inline]
    fn issue_rule(
        &self,
        at: usize,
        request: &SvidRequest,
        headers: &HeaderMap,
        extensions: Option<&Extensions>,
    ) -> Decision {
        if let Some(on_behalf) = self.on_behalf_of_caller(request, headers, extensions) {
            return on_behalf;
        }
        Decision::of(match self.pins.get(at) {
            Some(pin) => pin.issue(),
            None => self.cache.issue(request),
        })
    }

    /// Returns a token for the caller; `None` if the request is on behalf of this workload.
    #[cfg(feature = "oauth")]
    #[inline]
    fn on_behalf_of_caller(
        &self,
        request: &SvidRequest,
        headers: &HeaderMap,
        extensions: Option<&Extensions>,
    ) -> Option<Decision> {
        let subject = extensions.and_then(|extensions| extensions.get::<SubjectToken>());
        let marked = |audience: &Audience| audience.is_on_behalf_of_caller();
        let own = || extensions.and_then(|extensions| extensions.get::<Audience>());
        if subject.is_none() && !marked(&self.audience) && !own().is_some_and(marked) {
            return None;
        }
        let of_caller = || {
            let caller = extensions.and_then(caller::verified)?;
            SubjectToken::of_caller(caller, headers)
        };
        let Some(subject) = subject.cloned().or_else(of_caller) else {
            return Some(Decision::not_allowed(TokenError::new(
                TokenErrorReason::InvalidRequest,
                "the request must be on behalf of its caller, but has no caller's token; put a \
                 `SubjectToken` into its extensions, or forward the caller's request with \
                 `keep_credential`",
            )));
        };
        let request = request.clone().on_behalf_of(subject);
        Some(Decision::of(self.cache.issue(&request)))
    }

    #[cfg(not(feature = "oauth"))]
    #[inline]
    fn on_behalf_of_caller(
        &self,
        _: &SvidRequest,
        _: &HeaderMap,
        _: Option<&Extensions>,
    ) -> Option<Decision> {
        None
    }

    fn existing(&self) -> Decision {
        match self.on_existing {
            OnExisting::Error => Decision::not_allowed(TokenError::new(
                TokenErrorReason::HeaderPresent,
                format!(
                    "the request already has the header `{}`; leave it out, or set `on_existing`",
                    self.header
                ),
            )),
            _ => Decision::Pass,
        }
    }

    fn unmatched(&self, why: Unmatched<'_>) -> Decision {
        self.cache.passed_without_token();
        why.log();
        if self.strict {
            Decision::Fail(why.error())
        } else {
            Decision::Pass
        }
    }

    fn plaintext_error(&self, target: Target<'_>) -> Option<TokenError> {
        (!target.may_get_token(self.plaintext)).then(|| {
            TokenError::new(
                TokenErrorReason::Plaintext,
                format!(
                    "token for {target} would be sent in plaintext; use https, or `allow_plaintext`{}",
                    target.dot_note()
                ),
            )
        })
    }
}

/// Why a request matches no origin that a token may go to.
enum Unmatched<'a> {
    /// Its URI is ambiguous.
    Ambiguous,
    /// No audience is bound to its origin.
    Origin(Target<'a>),
    /// A `Host` header names another host than the URI or the assumed origin.
    Host(Target<'a>, &'a HeaderValue),
}

impl Unmatched<'_> {
    /// Logs the missing token, which can be the result of a mistyped origin. The server only
    /// reports a 401.
    fn log(&self) {
        let (origin, note) = match self {
            Self::Host(origin, host) => {
                tracing::debug!(
                    %origin,
                    host = %shown(host),
                    "no token for this request: its Host header does not match its origin"
                );
                return;
            }
            Self::Origin(origin) => (Some(origin), origin.dot_note()),
            Self::Ambiguous => (None, ""),
        };
        tracing::debug!(
            origin = origin.map(tracing::field::display),
            "no token for this request: no audience covers its origin{note}"
        );
    }

    fn error(&self) -> TokenError {
        let message = match self {
            Self::Ambiguous => {
                "no token may go to this URI: it needs the scheme https or http, a valid host and \
                 port, and no user name; CONNECT requests get no token"
                    .to_owned()
            }
            Self::Origin(origin) => format!(
                "no token may go to {origin}: no audience covers it; add it with `for_origin`{}",
                origin.dot_note()
            ),
            Self::Host(origin, host) => format!(
                "no token may go to {origin}: the request has the Host header \"{}\"; remove the \
                 header, or set it to the host and port of that origin{}",
                shown(host),
                origin.dot_note()
            ),
        };
        TokenError::new(TokenErrorReason::ForeignOrigin, message)
    }
}

/// The value of a `Host` header for a message: escaped, and at most 128 bytes, because callers of a
/// proxy choose it.
fn shown(host: &HeaderValue) -> String {
    let (shown, rest) = host.as_bytes().split_at(host.len().min(128));
    let more = if rest.is_empty() { "" } else { "…" };
    format!("{}{more}", shown.escape_ascii())
}

/// The first `Host` header that names another host or port than `target`.
///
/// Proxies route by it, and clients send an existing one unchanged.
#[inline]
fn other_host<'a>(headers: &'a HeaderMap, target: Target<'_>) -> Option<&'a HeaderValue> {
    if !has(headers, &HOST) {
        return None;
    }
    let mut hosts = headers.get_all(HOST).iter();
    hosts.find(|host| !target.is_host_header(host.as_bytes()))
}

fn no_origin() -> TokenError {
    TokenError::new(
        TokenErrorReason::NoOrigin,
        "the request has neither scheme nor authority, so the destination of its token is unknown; \
         set it with `assume_origin`",
    )
}

/// Whether the request has the header. Most requests have few headers, so a scan is faster than a
/// hash.
#[inline]
fn has(headers: &HeaderMap, name: &HeaderName) -> bool {
    if headers.len() <= 8 {
        headers.keys().any(|key| key == name)
    } else {
        headers.contains_key(name)
    }
}

/// Removes the token of a request's verified caller from all headers.
pub(super) fn withhold(headers: &mut HeaderMap, name: &HeaderName, caller: &VerifiedSvid) {
    let token = caller.token().as_bytes();
    let is_callers = |(at, value): &(&HeaderName, &HeaderValue)| {
        let value = value.as_bytes();
        if token.is_empty() {
            // A caller made by `testing`: any bearer token may be the caller's.
            return *at == name
                && value
                    .get(..7)
                    .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        }
        value.windows(token.len()).any(|part| part == token)
    };
    if headers.iter().any(|header| is_callers(&header)) {
        let others = headers.iter().filter(|header| !is_callers(header));
        let others = others.map(|(name, value)| (name.clone(), value.clone()));
        *headers = others.collect();
    }
}

/// Inserts the token, unless the request has too many headers.
#[inline]
pub(super) fn insert(
    headers: &mut HeaderMap,
    name: &HeaderName,
    issued: &Issued,
) -> Result<(), TokenError> {
    match headers.try_insert(name, issued.header()) {
        Ok(_) => Ok(()),
        Err(_) => Err(TokenError::new(
            TokenErrorReason::Other,
            "the request has too many headers to add a token; remove some",
        )),
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
