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

/// The names under which the vectors have their P-256 keys that td.test may use.
fn p256(name: &str) -> Signer {
    Signer::new(name, Algorithm::ES256)
}

#[test]
fn e34_every_algorithm_works_without_kid() {
    for algorithm in Algorithm::ALL {
        let signer = Signer::for_algorithm(algorithm);
        let fixture = Fixture::new(&[&signer]);
        let svid = fixture.accepts(&unnamed(&signer));
        assert_eq!(svid.key_id(), signer.key_id, "the key that verified");
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
    fixture.refuses(&unnamed(&rs256()), ValidateReason::KeyUnknown);
    fixture.accepts(&rs256().with_key_id("rsa-07").token());
    // None fits PS512 once the JWKs allow RS256 only.
    let only: Vec<_> = rsa
        .into_iter()
        .map(|mut jwk| {
            jwk["alg"] = json!("RS256");
            jwk
        })
        .collect();
    fixture.source.set(Ok(set_of("td.test", &only)));
    let ps512 = Signer::for_algorithm(Algorithm::PS512);
    fixture.refuses(&unnamed(&ps512), ValidateReason::KeyUnknown);
}

#[test]
fn e34_keys_of_other_trust_domains_are_not_tried() {
    let signer = es256();
    let set = JwtBundleSet::from_iter([
        bundle("td.test", &[rs256().jwk()]),
        bundle("other.test", &[signer.jwk()]),
    ]);
    let fixture = Fixture::with(set, |builder| builder);
    fixture.refuses(&unnamed(&signer), ValidateReason::KeyUnknown);
    let elsewhere = claims_with("sub", json!("spiffe://unknown.test/web"));
    fixture.refuses(
        &unnamed_with(&signer, &elsewhere),
        ValidateReason::TrustDomainUnknown,
    );
    fixture.source.set(Ok(JwtBundleSet::from_iter([
        bundle("td.test", &[]),
        bundle("other.test", &[signer.jwk()]),
    ])));
    fixture.refuses(&unnamed(&signer), ValidateReason::KeyUnknown);
}

#[test]
fn e34_a_wrong_signature_is_rejected() {
    let fixture = Fixture::new(&[&es256()]);
    fixture.refuses(&unnamed(&p256("evil-p256")), ValidateReason::Signature);
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
        fixture.refuses(&unnamed_with(&signer, &claims), reason);
    }
    for unfit in [json!(""), json!(null), json!(7), json!(["p256"])] {
        let mut header = signer.header();
        header["kid"] = unfit;
        let token = signer.sign_texts(&header.to_string(), &claims().to_string());
        fixture.refuses(&token, ValidateReason::Header);
    }
}

#[test]
fn e34_a_cached_token_falls_with_its_key() {
    let (signer, other) = (es256(), p256("evil-p256"));
    let other = other.with_key_id("other");
    let fixture = Fixture::new(&[&signer, &other]);
    let token = unnamed(&signer);
    assert_eq!(fixture.accepts(&token).key_id(), signer.key_id);
    // The key is gone; one that fits is left.
    fixture.source.set(Ok(keys_of(&[&other])));
    fixture.refuses(&token, ValidateReason::Signature);
    // The name is there again, over another key.
    let reused = p256("evil-p256").with_key_id(&signer.key_id);
    fixture.source.set(Ok(keys_of(&[&reused])));
    fixture.refuses(&token, ValidateReason::Signature);
    // The key is there again, under another name.
    let renamed = es256().with_key_id("renamed");
    fixture.source.set(Ok(keys_of(&[&renamed, &other])));
    assert_eq!(fixture.accepts(&token).key_id(), "renamed");
}

#[test]
fn e34_cached_tokens_survive_new_keys() {
    // A token that was verified stays verified when a fifth key arrives: its key is still trusted.
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
    // Another validator of this thread has read the same header before.
    Fixture::new(&[&signer]).accepts(&unnamed(&signer));
    let strict = Fixture::with(keys_of(&[&signer]), |builder| builder.require_key_id(true));
    strict.refuses(&unnamed(&signer), ValidateReason::Header);
    strict.accepts(&signer.token());
    let error = strict.cold.validate(&unnamed(&signer)).unwrap_err();
    assert!(error.detail().contains("requires"), "{}", error.detail());
}

/// The work that one token without `kid` causes, seen from which bundles it can be verified with:
/// four keys may hold its key in any place; with a fifth none is tried, not even the right one.
#[test]
fn a30_a_token_without_kid_tries_four_keys_at_most() {
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
                fixture.refuses(&token, ValidateReason::KeyUnknown);
                fixture.refuses(&unnamed(&evil), ValidateReason::KeyUnknown);
            }
        }
    }
}
