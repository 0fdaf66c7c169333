//! E19: an empty list of keys, in each way that issuers write it, revokes every key.

use serde_json::json;
use tower_spiffe::bundle::JwtBundle;
use tower_spiffe::bundle::{BundleAnswer, BundleSource as _};
use tower_spiffe::source::FileBundles;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{TrustDomain, Validator};
use tower_spiffe_test_support::temp::replace;

use crate::signer::{AUDIENCE, NOW};
use crate::support::{HandClock, es256};

const EMPTY: [&str; 5] = [
    r#"{"keys":null}"#,
    "{\n    \"keys\": null\n}\n",
    r#"{"keys":[]}"#,
    r#"{"spiffe_sequence":7,"keys":null,"spiffe_refresh_hint":300}"#,
    r#"{"k\u0065ys":null}"#,
];

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[test]
fn e19_null_keys_are_an_empty_set() {
    for empty in EMPTY {
        for read in [JwtBundle::from_jwks, JwtBundle::from_spiffe_bundle] {
            let bundle = read(td("td.test"), empty.as_bytes()).expect(empty);
            assert!(bundle.is_empty() && bundle.ignored().is_empty(), "{empty}");
        }
    }
}

#[test]
fn e19_an_empty_document_is_unreadable() {
    for none in [
        "",
        " ",
        "\n",
        "null",
        "{}",
        r#"{"keys":""}"#,
        r#"{"keys":false}"#,
    ] {
        for read in [JwtBundle::from_jwks, JwtBundle::from_spiffe_bundle] {
            assert!(read(td("td.test"), none.as_bytes()).is_err(), "{none:?}");
        }
    }
}

struct File(std::path::PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let name = format!("tower-spiffe-e19-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn publish(&self, text: &str) {
        replace(&self.0, text);
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("not within 10 s: {what}");
}

fn keys(files: &FileBundles, trust_domain: &str) -> Option<usize> {
    match files.bundle(trust_domain) {
        BundleAnswer::Ready(bundle) => Some(bundle.len()),
        _ => None,
    }
}

/// A file with one trust domain, a map with two, and the keys of td.test in each.
#[tokio::test]
async fn e19_empty_keys_in_files_revoke() {
    let mut jwk = es256().jwk();
    jwk["use"] = json!("jwt-svid");
    let full = json!({ "keys": [jwk] }).to_string();
    for empty in EMPTY {
        for kind in ["jwks", "bundle", "jwks-map", "bundle-map"] {
            let file = File::new(kind);
            let is_map = kind.ends_with("map");
            let text = |keys: &str| match is_map {
                true => format!(r#"{{"trust_domains":{{"td.test":{keys},"b.test":{full}}}}}"#),
                false => keys.to_owned(),
            };
            file.publish(&text(&full));
            let files = FileBundles::builder().poll_interval(std::time::Duration::from_millis(10));
            let files = match kind {
                "jwks" => files.jwks(td("td.test"), &file.0),
                "bundle" => files.spiffe_bundle(td("td.test"), &file.0),
                "jwks-map" => files.jwks_map(&file.0),
                _ => files.bundle_map(&file.0),
            };
            let files = files.open().unwrap();
            let validator = Validator::builder(files.clone())
                .audience(AUDIENCE)
                .clock(HandClock::at(NOW))
                .build()
                .unwrap();
            assert!(validator.validate(&es256().token()).is_ok());
            file.publish(&text(empty));
            until("no keys", || keys(&files, "td.test") == Some(0)).await;
            let error = validator.validate(&es256().token()).unwrap_err();
            assert_eq!(
                error.reason(),
                ValidateReason::KeyUnknown,
                "{kind}: {empty}"
            );
            assert!(files.state().is_healthy(), "{kind}: {empty}");
            assert_eq!(keys(&files, "b.test"), is_map.then_some(1));
        }
    }
}

#[tokio::test]
async fn e19_a_zero_byte_file_keeps_its_keys() {
    let file = File::new("zero");
    file.publish(&json!({ "keys": [es256().jwk()] }).to_string());
    let files = FileBundles::builder()
        .poll_interval(std::time::Duration::from_millis(10))
        .jwks(td("td.test"), &file.0)
        .open()
        .unwrap();
    file.publish("");
    until("unhealthy", || !files.state().is_healthy()).await;
    assert_eq!(keys(&files, "td.test"), Some(1));
}

/// A nil map in Go is also `null`: no trust domain is left.
#[tokio::test]
async fn e19_null_trust_domains_are_an_empty_map() {
    let file = File::new("null-map");
    let one = json!({ "keys": [es256().jwk()] });
    file.publish(&json!({"trust_domains": {"td.test": one}}).to_string());
    let files = FileBundles::builder()
        .poll_interval(std::time::Duration::from_millis(10))
        .jwks_map(&file.0)
        .open()
        .unwrap();
    assert_eq!(keys(&files, "td.test"), Some(1));
    file.publish(r#"{"trust_domains":null}"#);
    until("unloaded", || keys(&files, "td.test").is_none()).await;
    assert!(files.state().is_healthy());
}
