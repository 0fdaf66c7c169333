//! Attacks that use changes: of keys, of the cache and of time.

use serde_json::json;
use tower_spiffe::Validator;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{BundlesUnavailable, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::verify::BuildValidatorError;
use tower_spiffe::verify::ValidateReason;

use super::warm_fixture;
use crate::signer::{NOW, Signer, base64, bundle, claims_with, set_of};
use crate::support::{Fixture, es256, keys_of, rs256};

#[test]
fn a17_kid_is_bound_to_its_trust_domain() {
    let (ours, theirs) = (
        es256(),
        Signer::new("p256-b", Algorithm::ES256).with_key_id("p256"),
    );
    let fixture = Fixture::with(
        JwtBundleSet::from_iter([
            bundle("td.test", &[ours.jwk()]),
            bundle("other.test", &[theirs.jwk()]),
        ]),
        |builder| builder,
    );
    let of = |trust_domain: &str| claims_with("sub", json!(format!("spiffe://{trust_domain}/web")));
    let (a, b) = (of("td.test"), of("other.test"));
    fixture.rejects(&ours.sign(&b), ValidateReason::Signature);
    fixture.rejects(&theirs.sign(&a), ValidateReason::Signature);
    fixture.accepts(&ours.sign(&a));
    fixture.accepts(&theirs.sign(&b));
    fixture.rejects(&ours.sign(&b), ValidateReason::Signature);
    fixture.rejects(&theirs.sign(&a), ValidateReason::Signature);
    // Other claims that name a trust domain are ignored.
    let mut issued = b.clone();
    issued["iss"] = json!("spiffe://td.test");
    fixture.rejects(&ours.sign(&issued), ValidateReason::Signature);
    fixture.rejects(
        &ours.sign(&of("third.test")),
        ValidateReason::TrustDomainUnknown,
    );
}

#[test]
fn a22_warm_cache_accepts_no_invalid_token() {
    let signer = es256();
    let other = Signer::new("p256-b", Algorithm::ES256);
    let fixture = warm_fixture(&[&signer]);
    let token = signer.token();
    fixture.accepts(&token);
    let hits = fixture.warm.cache_stats().hits;
    fixture.accepts(&token);
    assert!(
        fixture.warm.cache_stats().hits > hits,
        "the cache is not warm"
    );

    // The same header and payload with another signature, a flipped byte, and a cut signature.
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let evil = base64(other.sign_bytes(signed.as_bytes()));
    fixture.rejects(&format!("{signed}.{evil}"), ValidateReason::Signature);
    let mut flipped = signature.to_owned().into_bytes();
    flipped[10] = if flipped[10] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    fixture.rejects(&format!("{signed}.{flipped}"), ValidateReason::Signature);
    let cut = base64(&signer.sign_bytes(signed.as_bytes())[..60]);
    fixture.rejects(&format!("{signed}.{cut}"), ValidateReason::Signature);

    // Another validator does not use this cache.
    let stranger = Validator::builder(fixture.source.clone())
        .audience("spiffe://td.test/other")
        .clock(fixture.clock.clone())
        .build()
        .unwrap();
    assert_eq!(
        stranger.validate(&token).unwrap_err().reason(),
        ValidateReason::Audience
    );

    // The clock advances, then steps back.
    fixture.clock.set(UnixTime::from_secs(NOW + 310));
    fixture.rejects(&token, ValidateReason::Expired);
    fixture.clock.set(UnixTime::from_secs(NOW));
    fixture.accepts(&token);

    // The key is removed, restored, or replaced by another key with its name; the trust domain is
    // removed; the bundles are unavailable.
    let same_name = other.jwk();
    let mut same_name_other_key = same_name.clone();
    same_name_other_key["kid"] = json!("p256");
    let rsa = rs256().with_key_id("p256");
    for (set, reason) in [
        (Ok(keys_of(&[&other])), ValidateReason::KeyUnknown),
        (
            Ok(set_of("td.test", &[same_name_other_key])),
            ValidateReason::Signature,
        ),
        (Ok(keys_of(&[&rsa])), ValidateReason::KeyUnfit),
        (Ok(set_of("td.test", &[])), ValidateReason::KeyUnknown),
        (
            Ok(JwtBundleSet::default()),
            ValidateReason::TrustDomainUnknown,
        ),
        (
            Err(BundlesUnavailable::Withdrawn),
            ValidateReason::BundlesUnavailable(BundlesUnavailable::Withdrawn),
        ),
        (
            Err(BundlesUnavailable::Closed),
            ValidateReason::BundlesUnavailable(BundlesUnavailable::Closed),
        ),
    ] {
        fixture.source.set(set);
        fixture.rejects(&token, reason);
        fixture.source.set(Ok(keys_of(&[&signer])));
        fixture.accepts(&token);
    }
    // The JWK now forbids an operation that it allowed.
    let mut restricted = signer.jwk();
    restricted["key_ops"] = json!(["sign"]);
    fixture.source.set(Ok(set_of("td.test", &[restricted])));
    fixture.rejects(&token, ValidateReason::KeyUnfit);
}

#[test]
fn a24_time_saturates_and_never_wraps() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let exp = |exp: i64| signer.sign(&claims_with("exp", json!(exp)));
    let nbf = |nbf: i64| signer.sign(&claims_with("nbf", json!(nbf)));
    // 10 s of leeway.
    for (token, expected) in [
        (exp(NOW + 1), None),
        (exp(NOW), None),
        (exp(NOW - 9), None),
        (exp(NOW - 10), Some(ValidateReason::Expired)),
        (exp(i64::MAX), None),
        (exp(i64::MIN), Some(ValidateReason::Expired)),
        (nbf(NOW + 10), None),
        (nbf(NOW + 11), Some(ValidateReason::NotYetValid)),
        (nbf(i64::MIN), None),
        (nbf(i64::MAX), Some(ValidateReason::NotYetValid)),
        (signer.sign(&claims_with("iat", json!(NOW + 9999))), None),
        (signer.sign(&claims_with("iat", json!(i64::MAX))), None),
    ] {
        match expected {
            None => drop(fixture.accepts(&token)),
            Some(reason) => fixture.rejects(&token, reason),
        }
    }
    // Fractions of a second.
    fixture.clock.set(UnixTime::new(NOW + 9, 999_999_999));
    fixture.accepts(&exp(NOW));
    fixture.clock.set(UnixTime::new(NOW + 10, 0));
    fixture.rejects(&exp(NOW), ValidateReason::Expired);
    // A clock before 1970, both extremes, and a step back.
    let far = exp(i64::MAX - 1000);
    for now in [
        UnixTime::MIN,
        UnixTime::from_secs(-1),
        UnixTime::from_secs(0),
    ] {
        fixture.clock.set(now);
        fixture.accepts(&far);
        fixture.accepts(&exp(NOW));
    }
    fixture.clock.set(UnixTime::MAX);
    fixture.rejects(&far, ValidateReason::Expired);
    fixture.clock.set(UnixTime::from_secs(NOW));
    fixture.accepts(&far);
    // The builder rejects an excessive leeway.
    for leeway in [
        std::time::Duration::from_secs(301),
        std::time::Duration::MAX,
    ] {
        let built = Validator::builder(fixture.source.clone())
            .audience("a")
            .leeway(leeway)
            .build();
        assert_eq!(built.unwrap_err(), BuildValidatorError::LeewayTooLong);
    }
}

#[test]
fn a26_no_token_causes_a_server_error() {
    let fixture = warm_fixture(&[&es256()]);
    for case in crate::signer::VECTORS["cases"].as_array().unwrap() {
        if let Some(token) = case["token"].as_str()
            && let Err(reason) = fixture.validate(token)
        {
            assert!(
                !matches!(reason, ValidateReason::BundlesUnavailable(_)),
                "{}",
                case["id"]
            );
        }
    }
    // Only unavailable bundles are a server error, and only for tokens that need them.
    fixture.source.set(Err(BundlesUnavailable::NotReady));
    fixture.rejects(
        &es256().token(),
        ValidateReason::BundlesUnavailable(BundlesUnavailable::NotReady),
    );
    fixture.rejects("not a token", ValidateReason::Malformed);
    let expired = es256().sign(&claims_with("exp", json!(NOW - 99)));
    fixture.rejects(&expired, ValidateReason::Expired);
}
