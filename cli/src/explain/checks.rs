//! Prints the checks in their order.
//!
//! The validator decides. This module also parses the token leniently, so that it can print parts of
//! a rejected token.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;
use serde_json::value::RawValue;
use tower_spiffe::bundle::JwtBundleSet;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::verify::{ValidateError, ValidateReason};
use tower_spiffe::{Validator, VerifiedSvid};

use crate::BoxError;

/// Returns the token in the input, and a note if something around it was removed.
///
/// # Errors
/// The input is JSON with several tokens, as `spire-agent api fetch jwt -output json` prints it.
pub(crate) fn unwrap(input: &[u8]) -> Result<(Cow<'_, [u8]>, Option<&'static str>), BoxError> {
    let trimmed = input.trim_ascii();
    if let Some((scheme, token)) = trimmed.split_first_chunk::<7>()
        && scheme.eq_ignore_ascii_case(b"bearer ")
    {
        let note = "`Bearer` before the token is skipped";
        return Ok((token.trim_ascii().into(), Some(note)));
    }
    let mut tokens = Vec::new();
    if let Some(b'{' | b'[') = trimmed.first()
        && let Ok(json) = serde_json::from_slice(trimmed)
    {
        collect_tokens(json, &mut tokens);
    }
    match tokens.len() {
        0 => Ok((trimmed.into(), None)),
        1 => {
            let note = "the input is JSON with one token, which is used";
            let token = tokens.pop().unwrap_or_default();
            Ok((token.into_bytes().into(), Some(note)))
        }
        several => Err(format!(
            "standard input is JSON with {several} tokens; give one of them, for example with \
             `jq -r '.[0].svids[0].svid'`"
        )
        .into()),
    }
}

/// Collects all strings in a JSON value that look like a token.
fn collect_tokens(json: Value, tokens: &mut Vec<String>) {
    match json {
        Value::String(text) if text.starts_with("eyJ") && text.matches('.').count() == 2 => {
            tokens.push(text);
        }
        Value::Array(values) => values
            .into_iter()
            .for_each(|value| collect_tokens(value, tokens)),
        Value::Object(members) => members
            .into_iter()
            .for_each(|(_, value)| collect_tokens(value, tokens)),
        _ => {}
    }
}

/// Quotes text from a token, escaped and limited in length.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 120;
    let more = if text.chars().nth(MOST).is_some() {
        "…"
    } else {
        ""
    };
    let text: String = text.chars().take(MOST).collect();
    format!("\"{}{more}\"", text.escape_debug())
}

/// The members of a JSON object, with raw values, so that a value that cannot be parsed (too deep,
/// out of range) does not affect the others.
struct Part(Option<BTreeMap<String, Box<RawValue>>>);

impl Part {
    /// Reads the object in a part of a token. Accepts base64 that is not canonical.
    fn read(part: Option<&[u8]>) -> Self {
        let config = GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let engine = GeneralPurpose::new(&base64::alphabet::URL_SAFE, config);
        let json = part.and_then(|part| engine.decode(part).ok());
        Self(json.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    fn get(&self, name: &str) -> Option<Value> {
        let raw = self.0.as_ref()?.get(name)?;
        serde_json::from_str(raw.get()).ok()
    }

    fn text(&self, name: &str) -> Option<String> {
        let raw = self.0.as_ref()?.get(name)?;
        serde_json::from_str(raw.get()).ok()
    }

    fn shown(&self, name: &str) -> String {
        let raw = self.0.as_ref().and_then(|members| members.get(name));
        raw.map_or_else(|| "absent".to_owned(), |raw| shown_raw(raw))
    }

    fn is_object(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the text of all members.
    fn all(&self) -> Option<String> {
        let members = self.0.as_ref()?.iter();
        let shown: Vec<String> = members
            .map(|(name, raw)| format!("{} {}", shown(name).trim_matches('"'), shown_raw(raw)))
            .collect();
        Some(shown.join(", "))
    }
}

fn shown_raw(raw: &RawValue) -> String {
    let unquoted = |text: &str| shown(text).trim_matches('"').replace("\\\"", "\"");
    match serde_json::from_str(raw.get()) {
        Ok(Value::String(text)) => shown(&text),
        Ok(other) => unquoted(&other.to_string()),
        Err(_) => unquoted(raw.get()),
    }
}

/// Lists the first 20 names: a bundle may have hundreds.
fn one_of(names: &[String]) -> String {
    const MOST: usize = 20;
    let more = match names.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named: Vec<&str> = names.iter().take(MOST).map(String::as_str).collect();
    format!("one of {}{more}", named.join(", "))
}

/// One check: the name, whether it fails, the actual and the expected value, and how to fix it.
struct Check {
    name: &'static str,
    ends_here: bool,
    found: String,
    expected: String,
    fix: &'static str,
}

pub(crate) struct Report<'a> {
    token: &'a [u8],
    header: Part,
    claims: Part,
    verdict: Result<VerifiedSvid, ValidateError>,
    validator: &'a Validator,
    set: &'a JwtBundleSet,
    now: UnixTime,
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        token: &'a [u8],
        validator: &'a Validator,
        set: &'a JwtBundleSet,
        now: UnixTime,
    ) -> Self {
        // The validator takes text. Bytes that are not UTF-8 become a malformed token of that length.
        let text = match std::str::from_utf8(token) {
            Ok(text) => text.to_owned(),
            Err(_) => "?".repeat(token.len()),
        };
        let mut parts = token.split(|byte| *byte == b'.');
        Self {
            header: Part::read(parts.next()),
            claims: Part::read(parts.next()),
            verdict: validator.validate(&text),
            token,
            validator,
            set,
            now,
        }
    }

    /// Prints all checks. Returns whether the token is accepted.
    pub(crate) fn print(&self) -> bool {
        let mut failed = false;
        for check in self.checks() {
            if failed {
                say!("  --     {:<13} not reached", check.name);
                continue;
            }
            failed = check.ends_here;
            let outcome = if failed { "FAILED" } else { "ok" };
            say!("  {outcome:<6} {:<13} found: {}", check.name, check.found);
            if failed {
                say!("         {:<13} expected: {}", "", check.expected);
                if let Err(error) = &self.verdict {
                    say!("         {:<13} reason: {}", "", error.detail());
                }
                say!("         {:<13} to fix: {}", "", check.fix);
            }
        }
        match &self.verdict {
            Ok(svid) => say!("accepted: {}", svid.spiffe_id()),
            Err(error) => say!("rejected: {}", error.reason()),
        }
        self.verdict.is_ok()
    }

    fn checks(&self) -> Vec<Check> {
        let reason = self.verdict.as_ref().err().map(ValidateError::reason);
        let ends = |at: &[ValidateReason]| reason.is_some_and(|reason| at.contains(&reason));
        let check = |name, at: &[ValidateReason], found, expected, fix| Check {
            name,
            ends_here: ends(at),
            found,
            expected,
            fix,
        };
        let leeway = self.validator.leeway().as_secs();
        use ValidateReason as R;
        vec![
            check(
                "length",
                &[R::TooLong],
                format!("{} bytes", self.token.len()),
                format!("at most {}", self.validator.max_token_len()),
                "configure the issuer to issue tokens with fewer or shorter claims",
            ),
            check(
                "form",
                &[R::Malformed],
                self.form(),
                "three parts of base64url without padding, a JSON object in the first".to_owned(),
                "send the whole token as the issuer returned it, without quotes",
            ),
            check(
                "algorithm",
                &[R::Algorithm],
                self.header.shown("alg"),
                "one of RS256 RS384 RS512 ES256 ES384 ES512 PS256 PS384 PS512".to_owned(),
                "get the token from the Workload API; JWT-SVIDs use no other algorithms",
            ),
            check(
                "header",
                &[R::Header],
                self.header_found(),
                "alg; kid of 1 to 1024 bytes or absent; typ JWT, JOSE or absent; no other member"
                    .to_owned(),
                "get a JWT-SVID from the Workload API; other JWTs have other headers",
            ),
            check(
                "claims",
                &[R::Claims],
                self.claims_found(),
                "sub a SPIFFE ID; aud one or more strings; exp a number; nbf and iat numbers or \
                 absent; no duplicate names"
                    .to_owned(),
                "fix the claims that the issuer writes; SPIRE writes them correctly by default",
            ),
            check(
                "exp",
                &[R::Expired],
                self.moment("exp"),
                format!("later than now, with {leeway} s of leeway"),
                "fetch a new token before this one expires; if the token is new, compare the clocks",
            ),
            check(
                "nbf",
                &[R::NotYetValid],
                self.moment("nbf"),
                format!("absent, or not later than now, with {leeway} s of leeway"),
                "compare the clocks of the issuer and of this machine",
            ),
            check(
                "audience",
                &[R::Audience],
                self.claims.shown("aud"),
                self.audiences(),
                "the caller must request a token for exactly one of these names, byte for byte",
            ),
            check(
                "trust domain",
                &[R::TrustDomainUnknown],
                self.trust_domain()
                    .map_or("none".into(), |name| shown(&name)),
                self.known_trust_domains(),
                "federate with that trust domain, or add its bundle to the file",
            ),
            check(
                "key",
                &[R::KeyUnknown],
                self.header.shown("kid"),
                self.known_keys(),
                "the bundle is older than the key, or the key was revoked: fetch the bundle again; \
                 ignored keys are listed above",
            ),
            check(
                "key fits",
                &[R::KeyUnfit],
                format!("alg {}", self.header.shown("alg")),
                self.fitting_algorithms(),
                "the token is signed with another key than the one in kid, or the JWK does not allow alg",
            ),
            check(
                "signature",
                &[R::Signature],
                if self.verdict.is_ok() {
                    "valid"
                } else {
                    "invalid"
                }
                .to_owned(),
                "a signature of this header and these claims by the key named by kid".to_owned(),
                "send the token unchanged; check whether another issuer uses the same kid",
            ),
        ]
    }

    fn form(&self) -> String {
        let parts: Vec<&[u8]> = self.token.split(|byte| *byte == b'.').collect();
        let invalid = |part: &&[u8]| {
            let letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            part.is_empty() || !part.iter().all(letter)
        };
        match parts.iter().position(invalid) {
            Some(at) if parts.len() == 3 => format!(
                "3 parts; part {} is empty or has a character that is not base64url",
                at + 1
            ),
            _ => format!("{} parts", parts.len()),
        }
    }

    fn header_found(&self) -> String {
        self.header
            .all()
            .unwrap_or_else(|| "not a JSON object".to_owned())
    }

    fn claims_found(&self) -> String {
        if !self.claims.is_object() {
            return "not a JSON object".to_owned();
        }
        let claim = |name| format!("{name} {}", self.claims.shown(name));
        ["sub", "aud", "exp", "nbf", "iat"].map(claim).join(", ")
    }

    fn moment(&self, name: &str) -> String {
        let value = self.claims.shown(name);
        let number = self.claims.get(name).and_then(|value| value.as_f64());
        let Some(at) = number.and_then(UnixTime::from_secs_f64) else {
            return value;
        };
        let (ahead, past) = (at.saturating_since(self.now), self.now.saturating_since(at));
        if at > self.now {
            format!(
                "{value}, {} s from now (now is {})",
                ahead.as_secs(),
                self.now
            )
        } else {
            format!("{value}, {} s ago (now is {})", past.as_secs(), self.now)
        }
    }

    fn audiences(&self) -> String {
        let accepted = self.validator.audiences().map(shown).collect::<Vec<_>>();
        format!("one of {}", accepted.join(", "))
    }

    fn trust_domain(&self) -> Option<String> {
        let subject = self.claims.text("sub")?;
        let rest = subject.strip_prefix("spiffe://")?;
        rest.split('/').next().map(str::to_owned)
    }

    fn known_trust_domains(&self) -> String {
        let mut names: Vec<String> = self
            .set
            .iter()
            .map(|bundle| bundle.trust_domain().to_string())
            .collect();
        names.sort();
        match names.is_empty() {
            true => "a trust domain with a bundle; there are no bundles".to_owned(),
            false => one_of(&names),
        }
    }

    fn known_keys(&self) -> String {
        let bundle = self.trust_domain().and_then(|name| self.set.get(&name));
        let keys = bundle.into_iter().flat_map(|bundle| bundle.authorities());
        let keys: Vec<String> = keys.map(|key| shown(key.key_id())).collect();
        match keys.is_empty() {
            true => "a key of the trust domain; none of its keys is usable".to_owned(),
            false if self.header.text("kid").is_none() => format!(
                "{}; without a kid, one to four of them must fit alg",
                one_of(&keys)
            ),
            false => one_of(&keys),
        }
    }

    fn fitting_algorithms(&self) -> String {
        let bundle = self.trust_domain().and_then(|name| self.set.get(&name));
        let key_id = self.header.text("kid");
        let key = bundle
            .zip(key_id)
            .and_then(|(bundle, id)| bundle.authority(&id));
        let fits = tower_spiffe::bundle::Algorithm::ALL
            .into_iter()
            .filter(|algorithm| key.is_some_and(|key| key.supports(*algorithm)))
            .map(|algorithm| algorithm.as_str())
            .collect::<Vec<_>>();
        match fits.is_empty() {
            true => "none: the `alg` or `key_ops` of the JWK allows no algorithm".to_owned(),
            false => format!("one of {}", fits.join(" ")),
        }
    }
}
