//! E34: tokens without `kid`.

use serde_json::json;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::JwtBundleSet;
use tower_spiffe::verify::ValidateReason;

use crate::signer::{NOW, Signer, bundle, claims, claims_with, set_of};
use crate::support::{Fixture, es256, keys_of, rs256};

fn unnamed(signer: &Signer) -> String {
    unnamed_with(signer, &claims())
}

fn unnamed_with(signer: &Signer, claims: &serde_json::Value) -> String {
    let header = json!({"alg": signer.algorithm.as_str(), "typ": "JWT"});
    signer.sign_texts(&header.to_string(), &claims.to_string())
}

/// Returns a P-256 key by its name in the vectors.
fn p256(name: &str) -> Signer {
    Signer::new(name, Algorithm::ES256)
}

#[test]
fn e34_every_algorithm_works_without_kid() {
    for algorithm in Algorithm::ALL {
        let signer = Signer::for_algorithm(algorithm);
        let fixture = Fixture::new(&[&signer]);
        let svid = fixture.accepts(&unnamed(&signer));
        assert_eq!(svid.key_id(), signer.key_id, "the ID of the verifying key");
    }
}

#[test]
fn e34_only_keys_that_fit_are_counted() {
    let signer = es256();
    let rsa: Vec<_> = (0..20)
        .map(|n| rs256().with_key_id(&format!("rsa-{n:02}")).jwk())
        .collect();
    let mut keys = rsa.clone();
    keys.push(signer.jwk());
    let fixture = Fixture::with(set_of("td.test", &keys), |builder| builder);
    fixture.accepts(&unnamed(&signer));
    // Twenty keys fit RS256.
    fixture.rejects(&unnamed(&rs256()), ValidateReason::KeyUnknown);
    fixture.accepts(&rs256().with_key_id("rsa-07").token());
    // No key fits PS512 if the JWKs allow RS256 only.
    let only: Vec<_> = rsa
        .into_iter()
        .map(|mut jwk| {
            jwk["alg"] = json!("RS256");
            jwk
        })
        .collect();
    fixture.source.set(Ok(set_of("td.test", &only)));
    let ps512 = Signer::for_algorithm(Algorithm::PS512);
    fixture.rejects(&unnamed(&ps512), ValidateReason::KeyUnknown);
}

#[test]
fn e34_keys_of_other_trust_domains_are_not_tried() {
    let signer = es256();
    let set = JwtBundleSet::from_iter([
        bundle("td.test", &[rs256().jwk()]),
        bundle("other.test", &[signer.jwk()]),
    ]);
    let fixture = Fixture::with(set, |builder| builder);
    fixture.rejects(&unnamed(&signer), ValidateReason::KeyUnknown);
    let elsewhere = claims_with("sub", json!("spiffe://unknown.test/web"));
    fixture.rejects(
        &unnamed_with(&signer, &elsewhere),
        ValidateReason::TrustDomainUnknown,
    );
    fixture.source.set(Ok(JwtBundleSet::from_iter([
        bundle("td.test", &[]),
        bundle("other.test", &[signer.jwk()]),
    ])));
    fixture.rejects(&unnamed(&signer), ValidateReason::KeyUnknown);
}

#[test]
fn e34_a_wrong_signature_is_rejected() {
    let fixture = Fixture::new(&[&es256()]);
    fixture.rejects(&unnamed(&p256("evil-p256")), ValidateReason::Signature);
    let error = fixture.cold.validate(&unnamed(&p256("evil-p256")));
    assert_eq!(error.unwrap_err().key_id(), None);
}

#[test]
fn e34_other_checks_come_first() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let cases = [
        (claims_with("exp", json!(NOW - 60)), ValidateReason::Expired),
        (claims_with("aud", json!("other")), ValidateReason::Audience),
        (claims_with("sub", json!("web")), ValidateReason::Claims),
    ];
    for (claims, reason) in cases {
        fixture.rejects(&unnamed_with(&signer, &claims), reason);
    }
    for unfit in [json!(""), json!(null), json!(7), json!(["p256"])] {
        let mut header = signer.header();
        header["kid"] = unfit;
        let token = signer.sign_texts(&header.to_string(), &claims().to_string());
        fixture.rejects(&token, ValidateReason::Header);
    }
}

#[test]
fn e34_cached_token_is_rejected_without_its_key() {
    let (signer, other) = (es256(), p256("evil-p256"));
    let other = other.with_key_id("other");
    let fixture = Fixture::new(&[&signer, &other]);
    let token = unnamed(&signer);
    assert_eq!(fixture.accepts(&token).key_id(), signer.key_id);
    // The key is removed; another key fits.
    fixture.source.set(Ok(keys_of(&[&other])));
    fixture.rejects(&token, ValidateReason::Signature);
    // The name is used again, for another key.
    let reused = p256("evil-p256").with_key_id(&signer.key_id);
    fixture.source.set(Ok(keys_of(&[&reused])));
    fixture.rejects(&token, ValidateReason::Signature);
    // The key is restored, with another name.
    let renamed = es256().with_key_id("renamed");
    fixture.source.set(Ok(keys_of(&[&renamed, &other])));
    assert_eq!(fixture.accepts(&token).key_id(), "renamed");
}

#[test]
fn e34_cached_tokens_survive_new_keys() {
    // A verified token stays valid when a fifth key is added, because its key is still trusted.
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = unnamed(&signer);
    fixture.accepts(&token);
    let more: Vec<_> = (0..5)
        .map(|n| es256().with_key_id(&format!("more-{n}")).jwk())
        .chain([signer.jwk()])
        .collect();
    fixture.source.set(Ok(set_of("td.test", &more)));
    assert!(fixture.warm.validate(&token).is_ok());
    let cold = fixture.cold.validate(&token).unwrap_err();
    assert_eq!(cold.reason(), ValidateReason::KeyUnknown);
}

#[test]
fn e34_kid_can_be_required() {
    let signer = es256();
    // Another validator on this thread has cached the same header.
    Fixture::new(&[&signer]).accepts(&unnamed(&signer));
    let strict = Fixture::with(keys_of(&[&signer]), |builder| builder.require_key_id(true));
    strict.rejects(&unnamed(&signer), ValidateReason::Header);
    strict.accepts(&signer.token());
    let error = strict.cold.validate(&unnamed(&signer)).unwrap_err();
    assert!(error.detail().contains("requires"), "{}", error.detail());
}

/// A token without `kid` causes a bounded number of signature checks: with up to four keys that fit,
/// any of them can verify it. With a fifth key, no key is tried.
#[test]
fn a30_token_without_kid_tries_at_most_four_keys() {
    let signer = es256();
    let token = unnamed(&signer);
    let evil = p256("evil-p256");
    for fitting in 1..=8_usize {
        for place in 0..fitting {
            let keys: Vec<_> = (0..fitting)
                .map(|n| match n == place {
                    true => es256().with_key_id(&format!("k{n}")).jwk(),
                    false => p256("evil-p256").with_key_id(&format!("k{n}")).jwk(),
                })
                .collect();
            let fixture = Fixture::with(set_of("td.test", &keys), |builder| builder);
            if fitting <= 4 {
                let svid = fixture.accepts(&token);
                assert_eq!(svid.key_id(), format!("k{place}"));
            } else {
                fixture.rejects(&token, ValidateReason::KeyUnknown);
                fixture.rejects(&unnamed(&evil), ValidateReason::KeyUnknown);
            }
        }
    }
}
