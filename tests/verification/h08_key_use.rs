//! H08: the accepted values of `use`, by document type.

use serde_json::{Value, json};
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::IgnoredReason;
use tower_spiffe::bundle::JwtBundle;
use tower_spiffe::testing::Issuer;

/// A set with one valid key that has this `use`.
fn set(usage: Option<Value>) -> Vec<u8> {
    let issuer = Issuer::new("td.test").unwrap();
    let mut set: Value = serde_json::from_slice(&issuer.jwks()).unwrap();
    let key = set["keys"][0].as_object_mut().unwrap();
    key.remove("use");
    if let Some(usage) = usage {
        key.insert("use".to_owned(), usage);
    }
    set.to_string().into_bytes()
}

fn td() -> TrustDomain {
    TrustDomain::parse("td.test").unwrap()
}

#[test]
fn h08_sig_counts_for_oidc_sets_only() {
    for (usage, jwks, spiffe, oidc) in [
        (None, 1, 0, 1),
        (Some(json!("jwt-svid")), 1, 1, 1),
        (Some(json!("sig")), 0, 0, 1),
        (Some(json!("enc")), 0, 0, 0),
        (Some(json!("x509-svid")), 0, 0, 0),
        (Some(json!("wit-svid")), 0, 0, 0),
        (Some(json!("SIG")), 0, 0, 0),
        (Some(json!(" sig")), 0, 0, 0),
        (Some(json!("")), 0, 0, 0),
        (Some(json!(null)), 0, 0, 0),
        (Some(json!(["sig"])), 0, 0, 0),
    ] {
        let set = set(usage.clone());
        let keys =
            |read: fn(TrustDomain, &[u8]) -> Result<JwtBundle, _>| read(td(), &set).unwrap().len();
        let found = [
            keys(JwtBundle::from_jwks),
            keys(JwtBundle::from_spiffe_bundle),
            keys(JwtBundle::from_oidc_jwks),
        ];
        assert_eq!(found, [jwks, spiffe, oidc], "{usage:?}");
    }
}

#[test]
fn h08_keys_for_other_svids_are_named() {
    for (usage, x509, wit) in [("x509-svid", true, false), ("wit-svid", false, true)] {
        let set = json!({"keys": [{"kty": "EC", "use": usage}]}).to_string();
        let bundle = JwtBundle::from_oidc_jwks(td(), set.as_bytes()).unwrap();
        let ignored = &bundle.ignored()[0];
        assert_eq!(ignored.reason(), IgnoredReason::Use);
        assert_eq!((ignored.is_x509_svid(), ignored.is_wit_svid()), (x509, wit));
    }
}

#[test]
fn h08_alg_restricts_an_oidc_key() {
    let mut set: Value = serde_json::from_slice(&set(Some(json!("sig")))).unwrap();
    set["keys"][0]["alg"] = json!("RS256");
    let bundle = JwtBundle::from_oidc_jwks(td(), set.to_string().as_bytes()).unwrap();
    let key = bundle.authorities().next().unwrap();
    assert!(!key.supports(tower_spiffe::bundle::Algorithm::ES256));
}

/// An invalid key after many keys of another kind is still reported.
#[test]
fn h08_other_keys_do_not_hide_an_invalid_key() {
    let mut keys = vec![json!({"kty": "EC", "use": "x509-svid"}); 300];
    keys.push(json!({"kty": "EC", "use": "enc", "kid": "bad"}));
    let set = json!({ "keys": keys }).to_string();
    let bundle = JwtBundle::from_oidc_jwks(td(), set.as_bytes()).unwrap();
    assert_eq!(bundle.ignored().len(), 256);
    let ids: Vec<_> = bundle
        .ignored()
        .iter()
        .filter_map(|key| key.key_id())
        .collect();
    assert_eq!(ids, ["bad"]);
}
