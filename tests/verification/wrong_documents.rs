//! Documents of another kind: the error names the kind, and does not guess.

use tower_spiffe::bundle::{IgnoredReason, JwtBundle, JwtBundleSet};
use tower_spiffe::testing::internals;

use crate::signer::set_of;
use crate::support::{es256, rs256};

/// What the error says that this document is.
fn kind(document: &str) -> Option<&'static str> {
    let read = JwtBundle::from_spiffe_bundle("td.test".parse().unwrap(), document.as_bytes());
    read.unwrap_err().kind_found()
}

#[test]
fn kind_of_a_wrong_document_is_named() {
    for (document, expected) in [
        ("apiVersion: v1\nkind: ConfigMap\n", "Kubernetes manifest"),
        (
            r#"{"apiVersion": "v1", "kind": "List"}"#,
            "Kubernetes manifest",
        ),
        ("eyJh.eyJz.c2ln", "it is a token"),
        ("-----BEGIN CERTIFICATE-----\n", "PEM"),
        (r#"{"x509_authorities": []}"#, "SPIRE's own JSON"),
        (r#"{"jwt_authorities": []}"#, "SPIRE's own JSON"),
        (r#"{"jwks_uri": "a"}"#, "discovery document"),
        (r#"{"kty": "EC"}"#, "a single JWK"),
        (r#"[{"kty": "EC"}]"#, "a list of JWKs"),
        (r#"{"trust_domains": {}}"#, "a map of several trust domains"),
    ] {
        let kind = kind(document).unwrap_or_default();
        assert!(kind.contains(expected), "{document}: {kind}");
    }
}

#[test]
fn kind_of_an_unknown_document_is_not_guessed() {
    for document in [
        "apiVersion: v1\n",
        "kind: ConfigMap\n",
        r#"{"apiVersion": "v1"}"#,
        r#"{"kind": "List"}"#,
        "eyJh.eyJz",
        "abc.def.ghi",
        "eyJh.eyJz.c2ln.more",
        "eyJh.eyJz.c2 ln",
        "{}",
    ] {
        assert_eq!(kind(document), None, "{document}");
    }
}

#[test]
fn one_bundle_instead_of_a_map_is_named() {
    let known = JwtBundleSet::default();
    let error = |document: &str, spiffe_bundles| {
        let read = internals::read_bundle_map(document.as_bytes(), spiffe_bundles, &known);
        read.err().unwrap_or_default()
    };
    for spiffe_bundles in [false, true] {
        let keys = error(r#"{"keys": []}"#, spiffe_bundles);
        assert!(keys.contains("keys of one trust domain"), "{keys}");
        let other = error("[]", spiffe_bundles);
        assert!(
            !other.is_empty() && !other.contains("keys of one trust domain"),
            "{other}"
        );
        assert!(!other.contains("it is a map with"), "{other}");
    }
}

#[test]
fn keys_given_one_by_one_are_read() {
    let (first, second) = (es256().jwk().to_string(), rs256().jwk().to_string());
    let keys: [&[u8]; 3] = [first.as_bytes(), b"\xff", second.as_bytes()];
    let bundle = JwtBundle::from_keys("td.test".parse().unwrap(), keys);
    assert_eq!(bundle.len(), 2);
    let ignored: Vec<_> = bundle.ignored().iter().collect();
    assert_eq!(ignored.len(), 1);
    assert_eq!(ignored[0].position(), 1);
    assert_eq!(ignored[0].reason(), IgnoredReason::Malformed);
}

#[test]
fn set_has_as_many_bundles_as_trust_domains() {
    let keys = [es256().jwk()];
    let sets = ["a.test", "b.test"].map(|name| set_of(name, &keys));
    let both: JwtBundleSet = sets.iter().flat_map(|set| set.iter().cloned()).collect();
    assert_eq!((both.len(), both.is_empty()), (2, false));
    let none = JwtBundleSet::default();
    assert_eq!((none.len(), none.is_empty()), (0, true));
}
