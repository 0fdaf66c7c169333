//! Tokens of the embedded issuers, and the validator's result on any token.

use std::time::Duration;

use serde_json::{Value, json};
use tower_spiffe::bundle::{FixedBundles, JwtBundle, JwtBundleSet};
use tower_spiffe::clock::{Clock as _, SystemClock};
use tower_spiffe::testing::{Issuer, TokenBuilder};
use tower_spiffe::verify::ValidateError;
use tower_spiffe::{TrustDomain, Validator, VerifiedSvid};

use crate::{Error, Made, text, text_or_none};

/// Creates an issuer without an agent.
pub(crate) fn issuer(made: &mut Made, command: &Value) -> Result<Value, Error> {
    let issuer = Issuer::new(text(command, "trust_domain")?)?;
    made.issuers
        .insert(text(command, "issuer")?.to_owned(), issuer);
    Ok(json!({}))
}

fn issuer_of<'a>(made: &'a Made, command: &Value) -> Result<&'a Issuer, Error> {
    let name = text(command, "issuer")?;
    made.issuers
        .get(name)
        .ok_or_else(|| format!("unknown issuer {name:?}").into())
}

/// Returns the issuer's keys as a JWK Set and as a SPIFFE bundle.
pub(crate) fn keys(made: &Made, command: &Value) -> Result<Value, Error> {
    let issuer = issuer_of(made, command)?;
    Ok(json!({
        "jwks": String::from_utf8(issuer.jwks())?,
        "spiffe_bundle": String::from_utf8(issuer.spiffe_bundle())?,
        "kids": issuer.key_ids(),
    }))
}

/// Signs a token. `spec` changes it; without changes it is valid. Times are seconds from now.
pub(crate) fn sign(made: &Made, command: &Value) -> Result<Value, Error> {
    let issuer = issuer_of(made, command)?;
    let spec = command.get("spec").unwrap_or(&Value::Null);
    if let Some(literal) = text_or_none(spec, "literal") {
        return Ok(json!({ "token": literal }));
    }
    let mut token = issuer.token(text(command, "id")?, text(command, "audience")?);
    let now = SystemClock::shared().now().secs();
    for (name, claim) in [("exp_in", "exp"), ("nbf_in", "nbf"), ("iat_in", "iat")] {
        if let Some(seconds) = spec.get(name).and_then(Value::as_i64) {
            token = token.claim(claim, now + seconds);
        }
    }
    for (name, value) in members(spec, "claims") {
        token = match value {
            Value::Null => token.without_claim(name),
            value => token.claim(name, value),
        };
    }
    for (name, value) in members(spec, "header") {
        token = match value {
            Value::Null => token.without_header(name),
            value => token.header(name, value),
        };
    }
    if let Some(algorithm) = text_or_none(spec, "algorithm") {
        token = token.algorithm(algorithm.parse()?);
    }
    if spec.get("forged") == Some(&Value::Bool(true)) {
        token = token.signed_by(&Issuer::new(issuer.trust_domain().name())?);
    }
    if let Some(raw) = text_or_none(spec, "raw_payload") {
        token = token.raw_payload(raw);
    }
    if let Some(raw) = text_or_none(spec, "raw_header") {
        token = token.raw_header(raw);
    }
    if let Some(signature) = text_or_none(spec, "signature") {
        token = token.signature(signature);
    }
    Ok(json!({ "token": damaged(token, spec) }))
}

fn damaged(token: TokenBuilder, spec: &Value) -> String {
    let token = token.sign();
    let suffix = text_or_none(spec, "suffix").unwrap_or_default();
    let prefix = text_or_none(spec, "prefix").unwrap_or_default();
    format!("{prefix}{token}{suffix}")
}

fn members<'a>(spec: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    spec.get(name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// Validates a token with a JWKS or a SPIFFE bundle of one trust domain.
pub(crate) fn validate(command: &Value) -> Result<Value, Error> {
    let trust_domain = TrustDomain::parse(text(command, "trust_domain")?)?;
    let bundle = match text_or_none(command, "spiffe_bundle") {
        Some(bundle) => JwtBundle::from_spiffe_bundle(trust_domain, bundle.as_bytes())?,
        None => JwtBundle::from_jwks(trust_domain, text(command, "jwks")?.as_bytes())?,
    };
    let keys = bundle.len();
    let bundles: JwtBundleSet = [bundle].into_iter().collect();
    let mut validator = Validator::builder(FixedBundles::new(bundles));
    validator = validator.audience(text(command, "audience")?);
    if let Some(seconds) = command.get("leeway").and_then(Value::as_u64) {
        validator = validator.leeway(Duration::from_secs(seconds));
    }
    let svid = validator.build()?.validate(text(command, "token")?);
    let mut answer = verdict(svid)?;
    if let Some(members) = answer.as_object_mut() {
        members.insert("keys".to_owned(), keys.into());
    }
    Ok(answer)
}

pub(crate) fn verdict(svid: Result<VerifiedSvid, ValidateError>) -> Result<Value, Error> {
    Ok(match svid {
        Ok(svid) => json!({
            "id": svid.spiffe_id().to_string(),
            "audiences": svid.audiences().map(ToString::to_string).collect::<Vec<_>>(),
            "exp": svid.expires_at().secs(),
            "claims": svid.claims::<Value>()?,
        }),
        Err(error) => json!({ "rejected": error.reason().as_str() }),
    })
}
