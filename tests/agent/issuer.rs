//! `testing::Issuer` and its tokens.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{DecodingKey, Validation};
use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::bundle::{Algorithm, FixedBundles};
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::testing::{Issuer, PausedClock};

const ID: &str = "spiffe://example.org/web";
const AUD: &str = "spiffe://example.org/db";

pub(crate) fn part(token: &str, at: usize) -> Value {
    let bytes = URL_SAFE_NO_PAD
        .decode(token.split('.').nth(at).unwrap())
        .unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn jwk(issuer: &Issuer, kid: &str) -> Option<Jwk> {
    let set: JwkSet = serde_json::from_slice(&issuer.jwks()).unwrap();
    set.find(kid).cloned()
}

fn verifies(issuer: &Issuer, token: &str) -> bool {
    let header = jsonwebtoken::decode_header(token).unwrap();
    let Some(jwk) = jwk(issuer, &header.kid.unwrap()) else {
        return false;
    };
    let mut rules = Validation::new(header.alg);
    rules.set_audience(&[AUD]);
    jsonwebtoken::decode::<Value>(token, &DecodingKey::from_jwk(&jwk).unwrap(), &rules).is_ok()
}

#[tokio::test(start_paused = true)]
async fn token_has_the_format_of_spire() {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let issuer = Issuer::with_clock("example.org", clock.shared()).unwrap();
    let token = issuer.token(ID, AUD).sign();
    assert_eq!(
        part(&token, 0),
        json!({"alg": "ES256", "kid": issuer.signing_key_id(), "typ": "JWT"})
    );
    assert_eq!(
        part(&token, 1),
        json!({"sub": ID, "aud": [AUD], "iat": 1_790_000_000, "exp": 1_790_000_300})
    );
    let kid = issuer.signing_key_id();
    assert_eq!(kid.len(), 32);
    assert!(kid.bytes().all(|b| b.is_ascii_alphanumeric()));
}

#[test]
fn jwks_has_the_format_of_spires_agent() {
    let issuer = Issuer::new("example.org").unwrap();
    issuer.prepare(Algorithm::RS256);
    let text = String::from_utf8(issuer.jwks()).unwrap();
    assert!(
        text.starts_with(
            "{\n    \"keys\": [\n        {\n            \"kty\": \"EC\",\n            \"kid\": \""
        ),
        "{text}"
    );
    let set: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(set.as_object().unwrap().len(), 1);
    for (key, members) in set["keys"].as_array().unwrap().iter().zip([
        &["crv", "kid", "kty", "x", "y"][..],
        &["e", "kid", "kty", "n"][..],
    ]) {
        let mut names: Vec<_> = key.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, members);
    }
    let reversed: Value = serde_json::from_slice(&issuer.jwks_in_another_order()).unwrap();
    assert_ne!(set, reversed);
    assert_eq!(set["keys"][0], reversed["keys"][1]);
}

#[test]
fn spiffe_bundle_sets_the_use_of_keys() {
    let issuer = Issuer::new("example.org").unwrap();
    let bundle =
        |issuer: &Issuer| -> Value { serde_json::from_slice(&issuer.spiffe_bundle()).unwrap() };
    let first = bundle(&issuer);
    assert_eq!(first["keys"][0]["use"], "jwt-svid");
    issuer.rotate_now();
    let second = bundle(&issuer);
    assert!(second["spiffe_sequence"].as_u64() > first["spiffe_sequence"].as_u64());
    assert_eq!(second["keys"].as_array().unwrap().len(), 2);
}

#[test]
fn tokens_of_nine_algorithms_verify_elsewhere() {
    let issuer = Issuer::new("example.org").unwrap();
    for algorithm in Algorithm::ALL {
        let token = issuer.token(ID, AUD).algorithm(algorithm).sign();
        assert_eq!(part(&token, 0)["alg"], algorithm.as_str());
        // The other library has no ES512, so this crate verifies it.
        if algorithm == Algorithm::ES512 {
            let bundles = FixedBundles::new([issuer.bundle()].into_iter().collect());
            let ours = Validator::builder(bundles).audience(AUD).build().unwrap();
            assert!(ours.validate(&token).is_ok());
        } else {
            assert!(verifies(&issuer, &token), "{algorithm}");
        }
    }
    // One key per curve, and one RSA key for its six algorithms.
    assert_eq!(issuer.key_ids().len(), 4);
}

#[test]
fn invalid_tokens_have_exactly_one_fault() {
    let issuer = Issuer::new("example.org").unwrap();
    let stranger = Issuer::new("example.org").unwrap();
    let good = || issuer.token(ID, AUD);
    assert!(verifies(&issuer, &good().sign()));
    assert!(verifies(&issuer, &good().audience("another").sign()));

    let expired = good().expired(Duration::from_secs(90)).sign();
    assert!(!verifies(&issuer, &expired));
    let claims = part(&expired, 1);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        300
    );

    let forged = good().signed_by(&stranger).sign();
    assert_eq!(part(&forged, 0), part(&good().sign(), 0));
    assert!(!verifies(&issuer, &forged));

    assert!(!verifies(&issuer, &issuer.token(ID, "another").sign()));
    let other_header = good().header("crit", ["x"]).without_header("typ").sign();
    assert_eq!(
        part(&other_header, 0),
        json!({"alg": "ES256", "crit": ["x"], "kid": issuer.signing_key_id()})
    );
    let other_claims = good().without_claim("exp").claim("aud", AUD).sign();
    assert_eq!(part(&other_claims, 1)["aud"], AUD);
    assert!(part(&other_claims, 1).get("exp").is_none());
    let raw = good()
        .raw_header("{")
        .raw_payload([0xff])
        .signature([1, 2])
        .sign();
    assert_eq!(raw, "ew._w.AQI");
}

#[test]
fn key_is_prepared_activated_and_revoked() {
    let issuer = Issuer::new("example.org").unwrap();
    let old = issuer.signing_key_id();
    let new = issuer.prepare(Algorithm::ES384);
    assert_eq!(issuer.signing_key_id(), old);
    assert_eq!(issuer.key_ids(), [old.clone(), new.clone()]);
    assert!(issuer.activate(&new));
    assert!(!issuer.activate("unknown"));
    assert_eq!(part(&issuer.token(ID, AUD).sign(), 0)["alg"], "ES384");
    assert!(verifies(&issuer, &issuer.token(ID, AUD).key(&old).sign()));

    assert!(issuer.revoke(&old));
    assert!(!issuer.revoke(&old));
    assert_eq!(issuer.key_ids(), [new]);
    // A stolen key still signs, but its tokens are rejected.
    let stolen = issuer.token(ID, AUD).key(&old).sign();
    assert_eq!(part(&stolen, 0)["kid"], old.as_str());
    assert!(!verifies(&issuer, &stolen));
}

#[test]
#[should_panic(expected = "never had a key")]
fn unknown_key_panics() {
    let _ = Issuer::new("example.org")
        .unwrap()
        .token(ID, AUD)
        .key("x")
        .sign();
}

#[test]
fn debug_output_shows_no_token_or_key() {
    let issuer = Issuer::new("example.org").unwrap();
    let builder = issuer.token(ID, AUD);
    let header = builder.clone().bearer();
    assert!(header.is_sensitive());
    let shown = format!("{builder:?} {issuer:?} {header:?}");
    let token = header.to_str().unwrap().strip_prefix("Bearer ").unwrap();
    assert!(!shown.contains(token));
}

#[test]
fn malformed_trust_domain_is_an_error() {
    assert!(Issuer::new("Example.org").is_err());
    assert!(Issuer::new("").is_err());
}

#[tokio::test(start_paused = true)]
async fn token_uses_the_issuers_clock() {
    let clock = PausedClock::new(UnixTime::from_secs(5_000));
    let issuer = Issuer::with_clock("example.org", clock.shared()).unwrap();
    issuer.set_token_life(Duration::from_secs(60));
    tokio::time::advance(Duration::from_secs(10)).await;
    clock.step_wall(100);
    assert_eq!(clock.now().secs(), 5_110);
    let claims = part(&issuer.token(ID, AUD).sign(), 1);
    assert_eq!(
        (&claims["iat"], &claims["exp"]),
        (&json!(5_110), &json!(5_170))
    );
}
