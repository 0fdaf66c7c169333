//! JV: validation of a JWT-SVID.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe_test_support::signer::{NOW, Signer, base64};

use crate::support::*;

#[test]
fn jv_01_valid_token_is_accepted() {
    let suite = Suite::new();
    suite.accepts(&suite.signer.sign(&claims(WORKLOAD)), WORKLOAD);
}

#[test]
fn jv_02_every_algorithm_is_accepted() {
    let suite = Suite::new();
    assert_eq!(Algorithm::ALL.len(), 9);
    for algorithm in Algorithm::ALL {
        let signer = Signer::for_algorithm(algorithm);
        suite.serve(&[(TD, &[suite.signer.jwk(), signer.jwk()])]);
        suite.accepts(&signer.sign(&claims(WORKLOAD)), WORKLOAD);
    }
}

#[test]
fn jv_03_alg_none_is_rejected() {
    let suite = Suite::new();
    let header = json!({"alg": "none", "kid": "key-1", "typ": "JWT"});
    let signed = unsigned(&header);
    suite.rejects(&format!("{signed}."), ValidateReason::Malformed);
    let signature = base64(suite.signer.sign_bytes(signed.as_bytes()));
    let token = format!("{signed}.{signature}");
    suite.rejects(&token, ValidateReason::Algorithm);
}

/// Header and claims of a token, without a signature.
fn unsigned(header: &Value) -> String {
    let claims = claims(WORKLOAD).to_string();
    format!("{}.{}", base64(header.to_string()), base64(claims))
}

#[test]
fn jv_04_hmac_is_rejected() {
    let suite = Suite::new();
    let der = suite.signer.spki();
    let body = STANDARD.encode(&der);
    let lines: Vec<_> = body.as_bytes().chunks(64).collect();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        String::from_utf8(lines.join(&b'\n')).unwrap()
    );
    for (alg, hash) in [
        ("HS256", hmac::HMAC_SHA256),
        ("HS384", hmac::HMAC_SHA384),
        ("HS512", hmac::HMAC_SHA512),
    ] {
        for secret in [&[7; 32][..], pem.as_bytes(), &der] {
            let signed = unsigned(&json!({"alg": alg, "kid": "key-1", "typ": "JWT"}));
            let tag = hmac::sign(&hmac::Key::new(hash, secret), signed.as_bytes());
            let token = format!("{signed}.{}", base64(tag));
            suite.rejects(&token, ValidateReason::Algorithm);
        }
    }
}

#[test]
fn jv_05_eddsa_key_in_bundle_is_rejected() {
    let suite = Suite::new();
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "use": "jwt-svid",
                     "x": base64(key.public_key())});
    // The other keys of the bundle still work.
    let last = crate::support::key("key-2");
    suite.serve(&[(TD, &[suite.signer.jwk(), jwk, last.jwk()])]);
    suite.accepts(&last.sign(&claims(WORKLOAD)), WORKLOAD);
    let signed = unsigned(&json!({"alg": "EdDSA", "kid": "ed", "typ": "JWT"}));
    let token = format!("{signed}.{}", base64(key.sign(signed.as_bytes())));
    suite.rejects(&token, ValidateReason::Algorithm);
}

#[test]
fn jv_06_algorithm_of_another_key_type_is_rejected() {
    let suite = Suite::new();
    for alg in ["RS256", "PS256", "ES384", "ES512"] {
        let token = header_with(&suite.signer, "alg", json!(alg));
        suite.rejects(&token, ValidateReason::KeyUnfit);
    }
}

#[test]
fn jv_07_missing_aud_is_rejected() {
    rejects_claim("aud", Value::Null, ValidateReason::Claims);
}

#[test]
fn jv_08_another_audience_is_rejected() {
    rejects_claim("aud", json!(["other"]), ValidateReason::Audience);
}

#[test]
fn jv_09_audience_among_others_is_accepted() {
    accepts_claim("aud", json!(["other", AUDIENCE]));
}

#[test]
fn jv_10_audience_as_string_is_accepted() {
    accepts_claim("aud", json!(AUDIENCE));
}

#[test]
fn jv_11_missing_exp_is_rejected() {
    rejects_claim("exp", Value::Null, ValidateReason::Claims);
}

#[test]
fn jv_12_expired_token_is_rejected() {
    rejects_claim("exp", json!(NOW - 300), ValidateReason::Expired);
}

#[test]
fn jv_13_future_nbf_is_rejected() {
    rejects_claim("nbf", json!(NOW + 300), ValidateReason::NotYetValid);
}

#[track_caller]
fn rejects_claim(name: &str, value: Value, reason: ValidateReason) {
    let suite = Suite::new();
    suite.rejects(&suite.signer.sign(&claims_with(name, value)), reason);
}

#[track_caller]
fn accepts_claim(name: &str, value: Value) {
    let suite = Suite::new();
    suite.accepts(&suite.signer.sign(&claims_with(name, value)), WORKLOAD);
}

#[test]
fn jv_14_tampered_signature_is_rejected() {
    let suite = Suite::new();
    let signed = unsigned(&suite.signer.header());
    let signature = suite.signer.sign_bytes(signed.as_bytes());
    for bit in 0..signature.len() * 8 {
        let mut tampered = signature.clone();
        tampered[bit / 8] ^= 1 << (bit % 8);
        let token = format!("{signed}.{}", base64(tampered));
        suite.rejects(&token, ValidateReason::Signature);
    }
}

#[test]
fn jv_15_tampered_payload_is_rejected() {
    let suite = Suite::new();
    let token = suite.signer.sign(&claims(WORKLOAD));
    let parts: Vec<_> = token.split('.').collect();
    let admin = claims("spiffe://test.example.org/admin").to_string();
    let token = format!("{}.{}.{}", parts[0], base64(admin), parts[2]);
    suite.rejects(&token, ValidateReason::Signature);
}

#[test]
fn jv_16_unknown_key_is_rejected() {
    let suite = Suite::new();
    let stranger = key("key-2");
    let token = stranger.sign(&claims(WORKLOAD));
    suite.rejects(&token, ValidateReason::KeyUnknown);
    // With the name of a key that is in the bundle.
    let token = stranger.with_key_id("key-1").sign(&claims(WORKLOAD));
    suite.rejects(&token, ValidateReason::Signature);
}

#[test]
fn jv_17_key_of_another_domain_is_rejected() {
    let suite = Suite::new();
    let theirs = key("other-1");
    suite.serve(&[(TD, &[suite.signer.jwk()]), (OTHER, &[theirs.jwk()])]);
    let id = "spiffe://other.example.org/jv-17";
    suite.accepts(&theirs.sign(&claims(id)), id);
    let token = suite.signer.sign(&claims(id));
    suite.rejects(&token, ValidateReason::KeyUnknown);
}

#[test]
fn jv_18_trust_domain_without_bundle_is_rejected() {
    let suite = Suite::new();
    let unknown = claims("spiffe://unknown.example.org/jv-18");
    let token = suite.signer.sign(&unknown);
    suite.rejects(&token, ValidateReason::TrustDomainUnknown);
}

#[test]
fn jv_19_sub_without_spiffe_id_is_rejected() {
    for sub in [json!("https://test.example.org/jv-19"), Value::Null] {
        rejects_claim("sub", sub, ValidateReason::Claims);
    }
}

#[test]
fn jv_20_typ_jwt_jose_or_none_is_accepted() {
    let suite = Suite::new();
    for typ in [json!("JWT"), json!("JOSE"), Value::Null] {
        suite.accepts(&header_with(&suite.signer, "typ", typ), WORKLOAD);
    }
}

#[test]
fn jv_21_another_typ_is_rejected() {
    let suite = Suite::new();
    for typ in ["at+jwt", "", "JWS"] {
        let token = header_with(&suite.signer, "typ", json!(typ));
        suite.rejects(&token, ValidateReason::Header);
    }
}

#[test]
fn jv_22_token_without_kid_is_accepted() {
    let suite = Suite::new();
    let token = header_with(&suite.signer, "kid", Value::Null);
    suite.accepts(&token, WORKLOAD);
}

#[test]
fn jv_23_unknown_crit_is_rejected() {
    let suite = Suite::new();
    let mut header = suite.signer.header();
    header["crit"] = json!(["urn:example:unknown"]);
    header["urn:example:unknown"] = json!(true);
    let claims = claims(WORKLOAD).to_string();
    let token = suite.signer.sign_texts(&header.to_string(), &claims);
    suite.rejects(&token, ValidateReason::Header);
}

#[test]
fn jv_24_json_serialization_is_rejected() {
    let suite = Suite::new();
    let token = suite.signer.sign(&claims(WORKLOAD));
    let parts: Vec<_> = token.split('.').collect();
    let (protected, payload, signature) = (parts[0], parts[1], parts[2]);
    let flattened = json!({"protected": protected, "payload": payload, "signature": signature});
    let general = json!({"payload": payload,
                         "signatures": [{"protected": protected, "signature": signature}]});
    for json in [flattened, general] {
        suite.rejects(&json.to_string(), ValidateReason::Malformed);
    }
}

#[test]
fn jv_25_malformed_token_is_rejected() {
    let suite = Suite::new();
    let token = suite.signer.sign(&claims(WORKLOAD));
    let parts: Vec<_> = token.split('.').collect();
    let two = format!("{}.{}", parts[0], parts[1]);
    suite.rejects(&two, ValidateReason::Malformed);
    suite.rejects(&format!("{token}.{}", parts[2]), ValidateReason::Malformed);
    suite.rejects("", ValidateReason::Malformed);
    // The signature is over this text, so that only the encoding is invalid.
    let payload = format!("{}!{}", &parts[1][..8], &parts[1][8..]);
    let bad = suite.signer.sign_parts(parts[0], &payload);
    suite.rejects(&bad, ValidateReason::Malformed);
    let header = suite.signer.header().to_string();
    let bad = suite.signer.sign_texts(&header, "{\"sub\":");
    suite.rejects(&bad, ValidateReason::Claims);
}
