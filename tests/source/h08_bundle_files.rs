//! H08: which keys of a bundle file are used, and the error if no key is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::{FileBundles, FileBundlesBuilder};
use tower_spiffe::testing::Issuer;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe_test_support::temp::{TempDir, replace};

use crate::support::{AUD, TD, WEB, eventually, millis, td};

pub(crate) const FORMATS: [&str; 7] = [
    "jwks",
    "spiffe_bundle",
    "bundle_map",
    "jwks_map",
    "jwks_by_trust_domain",
    "spiffe_helper",
    "spire_agent",
];

/// Returns the document in this format that contains this JWK Set for `example.org`.
pub(crate) fn document(format: &str, set: &Value) -> String {
    let base64 = STANDARD.encode(set.to_string());
    match format {
        "jwks" | "spiffe_bundle" => set.clone(),
        "bundle_map" | "jwks_map" => json!({"trust_domains": {TD: set}}),
        "jwks_by_trust_domain" => json!({TD: set}),
        "spiffe_helper" => json!({TD: base64}),
        _ => json!([
            {"svids": [{"spiffe_id": WEB, "svid": "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "hint": ""}]},
            {"bundles": {format!("spiffe://{TD}"): base64}},
        ]),
    }
    .to_string()
}

pub(crate) fn builder(format: &str, path: &std::path::Path) -> FileBundlesBuilder {
    let files = FileBundles::builder().poll_interval(millis(10));
    match format {
        "jwks" => files.jwks(td(TD), path),
        "spiffe_bundle" => files.spiffe_bundle(td(TD), path),
        "bundle_map" => files.bundle_map(path),
        "jwks_map" => files.jwks_map(path),
        "jwks_by_trust_domain" => files.jwks_by_trust_domain(path),
        "spiffe_helper" => files.spiffe_helper(path),
        _ => files.spire_agent(path),
    }
}

/// Returns the issuer's set with this member on each key; `None` removes the member.
pub(crate) fn set_with(issuer: &Issuer, member: &str, value: Option<&str>) -> Value {
    let mut set: Value = serde_json::from_slice(&issuer.jwks()).unwrap();
    for key in set["keys"].as_array_mut().unwrap() {
        let key = key.as_object_mut().unwrap();
        key.remove(member);
        if let Some(value) = value {
            key.insert(member.to_owned(), json!(value));
        }
    }
    set
}

pub(crate) fn verdict(files: &FileBundles, issuer: &Issuer) -> Option<ValidateReason> {
    let validator = Validator::builder(files.clone()).audience(AUD).build();
    let token = issuer.token(WEB, AUD).sign();
    let verdict = validator.unwrap().validate(&token);
    verdict.err().map(|error| error.reason())
}

fn open(format: &str, dir: &TempDir, set: &Value) -> FileBundles {
    let path = dir.join(format);
    replace(&path, &document(format, set));
    builder(format, &path).open().unwrap()
}

#[tokio::test]
async fn h08_each_format_has_its_use_rule() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for format in FORMATS {
        let is_spiffe = matches!(format, "spiffe_bundle" | "bundle_map");
        for (usage, counts) in [
            (None, !is_spiffe),
            (Some("jwt-svid"), true),
            (Some("sig"), format == "jwks"),
            (Some("enc"), false),
            (Some("x509-svid"), false),
            (Some("wit-svid"), false),
        ] {
            let files = open(format, &dir, &set_with(&issuer, "use", usage));
            let expected = (!counts).then_some(ValidateReason::KeyUnknown);
            assert_eq!(verdict(&files, &issuer), expected, "{format}: {usage:?}");
            // A file with keys for other SVIDs only is not an error.
            let other_svid = matches!(usage, Some("x509-svid" | "wit-svid"));
            let state = files.state();
            assert_eq!(
                files.is_healthy(),
                counts || other_svid,
                "{format}: {usage:?}"
            );
            let [domain] = &*state.files[0].trust_domains else {
                panic!("{format}: one trust domain");
            };
            assert_eq!(domain.trust_domain, td(TD));
            assert_eq!(
                (domain.keys > 0, domain.ignored_keys > 0),
                (counts, !counts)
            );
            assert_eq!(domain.last_error.is_none(), counts || other_svid);
        }
    }
}

#[derive(Default)]
struct Errors(AtomicUsize);

impl MetricsRecorder for Errors {
    fn record_error(&self, kind: &'static str) {
        assert_eq!(kind, "bundle-file");
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Earlier keys are revoked: the set is applied, and is reported as an error.
#[tokio::test]
async fn h08_no_usable_key_is_an_error() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for format in FORMATS {
        let good = document(format, &set_with(&issuer, "use", Some("jwt-svid")));
        let path = dir.join(format);
        replace(&path, &good);
        let errors = Arc::new(Errors::default());
        let files = builder(format, &path).metrics(errors.clone());
        let files = files.open().unwrap();
        assert!(files.is_healthy() && verdict(&files, &issuer).is_none());

        replace(
            &path,
            &document(format, &set_with(&issuer, "use", Some("enc"))),
        );
        eventually("an error", || !files.is_healthy()).await;
        assert_eq!(verdict(&files, &issuer), Some(ValidateReason::KeyUnknown));
        let state = files.state();
        let file = &state.files[0];
        let error = file.last_error.as_ref().unwrap();
        for part in [TD, "no key is usable", "`use`", &issuer.signing_key_id()] {
            assert!(error.contains(part), "{format}: {error}");
        }
        assert!(file.trust_domains[0].last_error.is_some());
        // Reported at each poll, until it is fixed.
        let counted = errors.0.load(Ordering::SeqCst);
        eventually("more", || errors.0.load(Ordering::SeqCst) > counted + 2).await;

        replace(&path, &good);
        eventually("recovery", || files.is_healthy()).await;
        assert_eq!(verdict(&files, &issuer), None);
    }
}

#[tokio::test]
async fn h08_an_empty_set_applies_as_empty() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for format in FORMATS {
        let files = open(format, &dir, &set_with(&issuer, "use", Some("jwt-svid")));
        replace(dir.join(format), &document(format, &json!({"keys": null})));
        eventually("no keys", || verdict(&files, &issuer).is_some()).await;
        assert_eq!(verdict(&files, &issuer), Some(ValidateReason::KeyUnknown));
        assert!(files.is_healthy(), "{format}");
    }
}

#[tokio::test]
async fn h08_one_usable_key_is_enough() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    let mut set = set_with(&issuer, "use", Some("sig"));
    let keys = set["keys"].as_array_mut().unwrap();
    keys.push(json!({"kty": "EC", "use": "enc", "kid": "e"}));
    keys.push(json!({"kty": "OKP", "use": "sig", "kid": "o"}));
    let files = open("jwks", &dir, &set);
    assert!(files.is_healthy() && verdict(&files, &issuer).is_none());
    assert_eq!(files.state().files[0].trust_domains[0].ignored_keys, 2);
}

/// Keys that are unusable for other reasons, next to keys for other SVIDs.
#[tokio::test]
async fn h08_other_faults_are_errors_too() {
    let dir = TempDir::new();
    let other = json!({"kty": "EC", "use": "x509-svid", "x5c": ["AA"]});
    for fault in [
        json!({"kty": "OKP", "kid": "a"}),
        json!({"kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"}),
        json!({"kty": "EC"}),
        json!(7),
    ] {
        let files = open("jwks", &dir, &json!({"keys": [other, fault]}));
        assert!(!files.is_healthy(), "{fault}");
    }
    let files = open("jwks", &dir, &json!({"keys": [other]}));
    assert!(files.is_healthy());
}

#[tokio::test]
async fn h08_alg_restricts_the_key() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for (alg, rejected) in [
        (Some("ES256"), false),
        (None, false),
        (Some("ES384"), true),
        (Some("RS256"), true),
        (Some("HS256"), true),
        (Some("none"), true),
        (Some(""), true),
    ] {
        let files = open("jwks", &dir, &set_with(&issuer, "alg", alg));
        assert_eq!(verdict(&files, &issuer).is_some(), rejected, "{alg:?}");
    }
}

#[tokio::test]
async fn h08_a_file_affects_its_domain_only() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    let path = dir.join("jwks");
    replace(
        &path,
        &document("jwks", &set_with(&issuer, "use", Some("sig"))),
    );
    let files = FileBundles::builder().jwks(td("other.test"), &path);
    let files = files.open().unwrap();
    assert_eq!(
        verdict(&files, &issuer),
        Some(ValidateReason::TrustDomainUnknown)
    );
}
