//! The order of checks: the cheap ones first, the signature last, and the first failure decides.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::builder::Settings;
use super::cache::{Time, VerifiedCache};
use super::known_header::KnownHeader;
use super::validator::Sight;
use super::verified::{Signer, Verified};
use super::{ValidateError, ValidateReason, VerifiedSvid};
use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtAuthority, JwtBundle};
use crate::identity::SpiffeId;
use crate::jwt::{Algorithm, Claims, Header, HeaderFault, Life, PAYLOAD, Room, Split};

type Failure = (ValidateReason, &'static str);

/// Room for a usual header, usual claims and a signature of up to 4096 bits without an allocation: a
/// rejected token is not kept.
const HEADER_ROOM: usize = 192;
const PAYLOAD_ROOM: usize = 1024;
const SIGNATURE_ROOM: usize = 512;

/// The source, settings and cache that tokens are checked with.
pub(super) struct Checks {
    pub(super) source: Arc<dyn BundleSource>,
    pub(super) settings: Settings,
    pub(super) cache: Option<VerifiedCache>,
}

impl Checks {
    /// Checks one token. Also returns whether the cache had it.
    pub(super) fn check(
        &self,
        token: &str,
        sight: Sight,
    ) -> (Result<VerifiedSvid, ValidateError>, bool) {
        if token.len() > self.settings.max_token_len {
            let detail = "the token is longer than allowed; it was not read";
            return (
                Err(ValidateError::new(ValidateReason::TooLong, detail)),
                false,
            );
        }
        // Before any bundle: see the contract of `BundleSource`.
        let revision = self.source.revision();
        let Some(cache) = &self.cache else {
            return (self.check_uncached(token, 0, revision), false);
        };
        let hash = cache.hash(token);
        if let Ok(revision) = revision {
            let time = |verified: &Verified| match self.time_failure(verified.life) {
                None => Time::Valid,
                Some((ValidateReason::Expired, _)) => Time::Past,
                Some(_) => Time::NotNow,
            };
            let found = cache.get(hash, token, revision, &*self.source, time);
            if sight == Sight::First {
                cache.count(found.is_some());
            }
            if let Some(svid) = found {
                return (Ok(svid), true);
            }
        }
        // A hit that is no longer valid is checked like a new token, so that the cache changes neither a
        // result nor an error text.
        let result = self.check_uncached(token, hash, revision);
        if let Ok(svid) = &result {
            cache.insert(svid);
        }
        (result, false)
    }

    fn check_uncached(
        &self,
        token: &str,
        hash: u64,
        revision: Result<u64, BundlesUnavailable>,
    ) -> Result<VerifiedSvid, ValidateError> {
        let fail = |(reason, detail): Failure| ValidateError::new(reason, detail);

        let split = Split::new(token).ok_or_else(|| fail(unless_bearer(token, PARTS)))?;
        let known = KnownHeader::find(split.header, self.settings.allow_unknown_headers);
        let mut header = Room::<HEADER_ROOM>::new();
        let mut payload = Room::<PAYLOAD_ROOM>::new();
        let mut signature = Room::<SIGNATURE_ROOM>::new();
        let header = match &known {
            Some(_) => &[],
            None => header
                .decode(split.header)
                .ok_or_else(|| fail(unless_bearer(token, ENCODING)))?,
        };
        let payload = payload
            .decode(split.payload)
            .ok_or_else(|| fail(ENCODING))?;
        let signature = signature
            .decode(split.signature)
            .ok_or_else(|| fail(ENCODING))?;
        let header = match &known {
            Some(known) => known.header(),
            None => Header::parse(header, self.settings.allow_unknown_headers)
                .map_err(|fault| fail(header_failure(fault)))?,
        };
        if !self.settings.algorithms.contains(header.algorithm) {
            return Err(fail(ALGORITHM).with_key_id(header.key_id.as_deref()));
        }
        if header.key_id.is_none() && self.settings.require_key_id {
            return Err(fail(NO_KEY_ID));
        }

        let fail = |failure| fail(failure).with_key_id(header.key_id.as_deref());
        let invalid = |fault| fail((ValidateReason::Claims, fault));
        let payload = std::str::from_utf8(payload).map_err(|_| invalid(PAYLOAD))?;
        let claims = Claims::parse(payload).map_err(invalid)?;
        let spiffe_id = SpiffeId::parse(&claims.subject).map_err(|_| fail(SUBJECT))?;

        let trust_domain = spiffe_id.trust_domain_name();
        let fail = |failure| fail(failure).with_trust_domain(trust_domain);
        let life = claims.life;
        if let Some(failure) = self.time_failure(life) {
            return Err(fail(failure));
        }
        if !has_audience(claims.audiences.as_slice(), &self.settings.audiences) {
            return Err(fail(AUDIENCE).with_audiences(claims.audiences.as_slice()));
        }
        if self.settings.sole_audience && claims.audiences.as_slice().len() != 1 {
            return Err(fail(SOLE_AUDIENCE).with_audiences(claims.audiences.as_slice()));
        }
        let (bundle, revision) = self.bundle(trust_domain, revision).map_err(fail)?;
        let verifies = |authority: &Arc<JwtAuthority>| {
            authority.verify(header.algorithm, split.signed.as_bytes(), signature)
        };
        let signer = match header.key_id.as_deref() {
            Some(key_id) => self
                .by_key_id(&bundle, key_id, header.algorithm)
                .and_then(|named| verifies(named).then_some(named).ok_or(SIGNATURE)),
            None => by_trial(&bundle, header.algorithm, verifies),
        };
        let authority = Arc::clone(signer.map_err(fail)?);
        if known.is_none() {
            KnownHeader::keep(split.header, self.settings.allow_unknown_headers, &header);
        }

        let audiences = claims.audiences.as_slice().iter();
        let audiences = audiences.map(|audience| audience.as_ref().into()).collect();
        Ok(VerifiedSvid::new(Arc::new(Verified {
            token: token.into(),
            hash,
            revision: AtomicU64::new(revision),
            audiences,
            life,
            signer: Signer::Authority(authority),
            spiffe_id,
            payload: payload.into(),
            #[cfg(feature = "server")]
            claims: Default::default(),
        })))
    }

    /// The bundle of the *subject's* trust domain: the token does not select the keys
    /// (SPIFFE Workload API section 6.3).
    fn bundle(
        &self,
        trust_domain: &str,
        revision: Result<u64, BundlesUnavailable>,
    ) -> Result<(Arc<JwtBundle>, u64), Failure> {
        let revision = revision.map_err(bundles_unavailable)?;
        match self.source.bundle(trust_domain) {
            BundleAnswer::Ready(bundle) => Ok((bundle, revision)),
            BundleAnswer::UnknownTrustDomain => Err(TRUST_DOMAIN),
            BundleAnswer::Unavailable(why) => Err(bundles_unavailable(why)),
        }
    }

    /// The key that the token names.
    fn by_key_id<'b>(
        &self,
        bundle: &'b JwtBundle,
        key_id: &str,
        algorithm: Algorithm,
    ) -> Result<&'b Arc<JwtAuthority>, Failure> {
        match bundle.authority(key_id) {
            Some(named) if named.supports(algorithm) => Ok(named),
            Some(_) => Err(KEY_UNFIT),
            None => {
                let trust_domain = bundle.trust_domain().name();
                self.source.unknown_key(trust_domain, key_id);
                Err(KEY_UNKNOWN)
            }
        }
    }

    /// Reads the clock as late as possible: malformed tokens do not need it.
    fn time_failure(&self, life: Life) -> Option<Failure> {
        let (now, leeway) = (self.settings.clock.now(), self.settings.leeway);
        // RFC 7519 section 4.1.4: a token has expired "on or after" `exp`.
        if now >= life.expires_at.saturating_add(leeway) {
            return Some(EXPIRED);
        }
        if let Some(not_before) = life.not_before
            && now.saturating_add(leeway) < not_before
        {
            return Some(NOT_YET_VALID);
        }
        let longest = self.settings.max_lifetime?;
        let latest = match life.issued_at {
            // An `iat` in the future must not extend the limit.
            Some(issued_at) if issued_at <= now => issued_at.saturating_add(longest),
            _ => now.saturating_add(longest).saturating_add(leeway),
        };
        (life.expires_at > latest).then_some(LIFETIME)
    }
}

/// The most keys that are tried on a token without `kid`. Anyone can send one, and it costs a
/// signature check per key.
const MOST_TRIED: usize = 4;

/// The key that verifies a token without `kid`, of those that fit its algorithm. The result does
/// not depend on the order: if there are too many, none is tried.
#[cold]
#[inline(never)]
fn by_trial(
    bundle: &JwtBundle,
    algorithm: Algorithm,
    verifies: impl Fn(&Arc<JwtAuthority>) -> bool,
) -> Result<&Arc<JwtAuthority>, Failure> {
    let fitting = || bundle.authorities().filter(|key| key.supports(algorithm));
    match fitting().take(MOST_TRIED + 1).count() {
        0 => Err(NO_KEY_FITS),
        1..=MOST_TRIED => fitting().find(|key| verifies(key)).ok_or(NO_KEY_VERIFIES),
        _ => Err(TOO_MANY_KEYS),
    }
}

/// Whether one of the token's audiences is one of these, byte for byte (JWT-SVID section 3.2).
fn has_audience(audiences: &[Cow<'_, str>], accepted: &[Box<str>]) -> bool {
    audiences
        .iter()
        .any(|audience| accepted.iter().any(|one| **one == **audience))
}

const PARTS: Failure = (
    ValidateReason::Malformed,
    "not exactly three non-empty parts with dots between them",
);
const ENCODING: Failure = (
    ValidateReason::Malformed,
    "a part is not base64url without padding",
);
const BEARER: Failure = (
    ValidateReason::Malformed,
    "the text begins with `Bearer`; pass the token without it",
);
const ALGORITHM: Failure = (ValidateReason::Algorithm, "`alg` is missing or not allowed");
const SUBJECT: Failure = (ValidateReason::Claims, "`sub` is not a SPIFFE ID");
const EXPIRED: Failure = (ValidateReason::Expired, "`exp` has passed");
const NOT_YET_VALID: Failure = (ValidateReason::NotYetValid, "`nbf` is in the future");
const LIFETIME: Failure = (
    ValidateReason::Claims,
    "the token is valid for longer than allowed",
);
const AUDIENCE: Failure = (
    ValidateReason::Audience,
    "`aud` has no audience that this validator accepts",
);
const SOLE_AUDIENCE: Failure = (
    ValidateReason::Audience,
    "`aud` has more than one value, and this validator requires exactly one",
);
const TRUST_DOMAIN: Failure = (
    ValidateReason::TrustDomainUnknown,
    "there is no bundle for the trust domain of `sub`",
);
const KEY_UNKNOWN: Failure = (
    ValidateReason::KeyUnknown,
    "the bundle of the trust domain has no key with this `kid`",
);
const NO_KEY_ID: Failure = (
    ValidateReason::Header,
    "`kid` is missing, and this validator requires it",
);
const NO_KEY_FITS: Failure = (
    ValidateReason::KeyUnknown,
    "the token has no `kid`, and the bundle of the trust domain has no key that fits its `alg`",
);
const TOO_MANY_KEYS: Failure = (
    ValidateReason::KeyUnknown,
    "the token has no `kid`, and more than four keys of the trust domain fit its `alg`; none was \
     tried",
);
const KEY_UNFIT: Failure = (
    ValidateReason::KeyUnfit,
    "the key's type, curve, `alg` or `key_ops` does not fit the token's `alg`",
);
const SIGNATURE: Failure = (
    ValidateReason::Signature,
    "the signature does not verify with this key",
);
const NO_KEY_VERIFIES: Failure = (
    ValidateReason::Signature,
    "the token has no `kid`, and no key of the trust domain that fits its `alg` verifies the \
     signature",
);

/// Users often pass a whole header value instead of a token; that has its own error text.
fn unless_bearer(token: &str, failure: Failure) -> Failure {
    match token.trim_start().split_once(' ') {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("bearer") => BEARER,
        _ => failure,
    }
}

fn bundles_unavailable(why: BundlesUnavailable) -> Failure {
    (ValidateReason::BundlesUnavailable(why), why.text())
}

fn header_failure(fault: HeaderFault) -> Failure {
    match fault {
        HeaderFault::Json => (
            ValidateReason::Malformed,
            "the header is not a JSON object in UTF-8",
        ),
        HeaderFault::Algorithm => ALGORITHM,
        HeaderFault::Field(detail) => (ValidateReason::Header, detail),
    }
}
