//! Bundles in memory.

use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::bundle::{
    BundleAnswer, BundleSource as _, BundlesUnavailable, JwtBundle, JwtBundleSet,
};
use tower_spiffe::source::MemoryBundles;
use tower_spiffe::testing::Issuer;
use tower_spiffe::verify::ValidateReason;

use crate::support::{AUD, OTHER, TD, WEB, soon, td};

fn set(issuers: &[&Issuer]) -> JwtBundleSet {
    issuers.iter().map(|issuer| issuer.bundle()).collect()
}

#[test]
fn before_the_first_set_nothing_validates() {
    let source = MemoryBundles::default();
    assert_eq!(source.revision(), Err(BundlesUnavailable::NotReady));
    assert!(matches!(source.bundle(TD), BundleAnswer::Unavailable(_)));
    assert!(source.bundle_set().is_err() && !source.is_healthy());
    // An empty set counts as a set.
    assert!(source.replace(JwtBundleSet::default()));
    assert_eq!(source.revision(), Ok(1));
    assert!(matches!(
        source.bundle(TD),
        BundleAnswer::UnknownTrustDomain
    ));
    assert!(source.is_healthy());
}

#[test]
fn replaced_key_is_rejected_with_a_warm_cache() {
    let (own, next) = (Issuer::new(TD).unwrap(), Issuer::new(TD).unwrap());
    let source = MemoryBundles::new(set(&[&own]));
    let validator = Validator::builder(source.clone()).audience(AUD);
    let validator = validator.build().unwrap();
    let token = own.token(WEB, AUD).sign();
    for _ in 0..3 {
        assert!(validator.validate(&token).is_ok());
    }
    assert!(source.replace(set(&[&next])));
    let error = validator.validate(&token).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::KeyUnknown);
    assert!(source.replace(JwtBundleSet::default()));
    let error = validator.validate(&token).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::TrustDomainUnknown);
}

#[test]
fn the_revision_rises_only_with_a_change() {
    let (own, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
    let source = MemoryBundles::new(set(&[&own, &other]));
    assert!(!source.replace(set(&[&other, &own])));
    // An ignored change affects no result.
    let mut jwks: Value = serde_json::from_slice(&own.jwks()).unwrap();
    jwks["keys"]
        .as_array_mut()
        .unwrap()
        .push(json!({"kid": "x"}));
    let noted = JwtBundle::from_jwks(td(TD), jwks.to_string().as_bytes()).unwrap();
    assert!(!source.replace(JwtBundleSet::from_iter([noted, other.bundle()])));
    assert_eq!(source.revision(), Ok(1));
    let set = source.bundle_set().unwrap();
    assert_eq!(set.get(TD).unwrap().ignored().len(), 1);
    own.rotate_now();
    assert!(source.replace(self::set(&[&own, &other])));
    assert_eq!(source.revision(), Ok(2));
}

#[test]
fn keys_that_stay_are_shared() {
    let own = Issuer::new(TD).unwrap();
    let key = own.signing_key_id();
    let source = MemoryBundles::new(set(&[&own]));
    let authority = || {
        let set = source.bundle_set().unwrap();
        set.get(TD).unwrap().authority(&key).unwrap().clone()
    };
    let before = authority();
    own.rotate_now();
    assert!(source.replace(set(&[&own])));
    assert!(std::sync::Arc::ptr_eq(&before, &authority()));
}

#[tokio::test]
async fn a_change_wakes_all_waits() {
    let source = MemoryBundles::default();
    let first = source.changed_since(0).unwrap();
    source.replace(JwtBundleSet::default());
    soon("the first set", first).await;
    let own = Issuer::new(TD).unwrap();
    let (changed, waiting) = (source.changed_since(1).unwrap(), source.changed_since(1));
    source.replace(set(&[&own]));
    soon("a change", changed).await;
    soon("a change", waiting.unwrap()).await;
    soon("a change before", source.changed_since(1).unwrap()).await;
}
