//! The formats of bundle files, as other tools write them, and other documents.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde_json::{Value, json};
use tower_spiffe::bundle::{BundleAnswer, BundleSource as _};
use tower_spiffe::source::{BundleFormat, FileBundles, FileBundlesErrorReason};
use tower_spiffe::testing::Issuer;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe_test_support::temp::{TempDir, replace};

use crate::h08_bundle_files::{FORMATS, builder, document, set_with, verdict};
use crate::support::{OTHER, TD, eventually, td};

fn set(issuer: &Issuer) -> Value {
    set_with(issuer, "use", Some("jwt-svid"))
}

fn keys(files: &FileBundles, trust_domain: &str) -> Option<usize> {
    match files.bundle(trust_domain) {
        BundleAnswer::Ready(bundle) => Some(bundle.len()),
        _ => None,
    }
}

#[tokio::test]
async fn each_format_is_read_and_followed() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for format in FORMATS {
        let path = dir.join(format);
        // With the byte order mark of some editors.
        replace(
            &path,
            &format!("\u{feff}{}", document(format, &set(&issuer))),
        );
        let files = builder(format, &path).open().unwrap();
        assert_eq!(verdict(&files, &issuer), None, "{format}");
        replace(&path, &document(format, &json!({"keys": []})));
        let revoked = Some(ValidateReason::KeyUnknown);
        eventually("revoked", || verdict(&files, &issuer) == revoked).await;
    }
}

/// A truncated file is an error in each format; the last good bundles are kept.
#[tokio::test]
async fn half_a_file_keeps_the_last_bundles() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for format in FORMATS {
        let path = dir.join(format);
        let whole = document(format, &set(&issuer));
        replace(&path, &whole);
        let files = builder(format, &path).open().unwrap();
        for half in ["", &whole[..whole.len() / 2], &whole[..whole.len() - 1]] {
            replace(&path, half);
            eventually("an error", || !files.is_healthy()).await;
            assert_eq!(verdict(&files, &issuer), None, "{format}");
            replace(&path, &whole);
            eventually("recovery", || files.is_healthy()).await;
        }
    }
}

#[tokio::test]
async fn an_agent_output_shows_no_token() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    let token = issuer.token(crate::support::WEB, "a").sign();
    let output = |bundles: Value| json!([{"svids": [{"svid": token}]}, bundles]).to_string();
    let good = output(json!({"bundles": {TD: STANDARD.encode(issuer.jwks())}}));
    let path = dir.join("agent");
    replace(&path, &good);
    let files = builder("spire_agent", &path).open().unwrap();
    for bad in [
        output(json!({})),
        output(json!({"bundles": token})),
        output(json!({"bundles": {TD: token}})),
        output(json!({"bundles": {&token: "AAAA"}})),
        format!("[{good}, {good}]"),
        json!([{"bundles": {}}, {"bundles": {}}]).to_string(),
        json!({"bundles": {}}).to_string(),
        token.clone(),
    ] {
        replace(&path, &bad);
        eventually("an error", || !files.is_healthy()).await;
        let text = format!("{:?}{files:?}", files.state());
        assert!(!text.contains(&token[..16]), "{text}");
        replace(&path, &good);
        eventually("recovery", || files.is_healthy()).await;
    }
    // Go writes an empty map as null.
    replace(&path, &output(json!({"bundles": null})));
    eventually("no trust domain", || keys(&files, TD).is_none()).await;
    assert!(files.is_healthy());
}

#[tokio::test]
async fn invalid_entry_affects_only_itself() {
    let dir = TempDir::new();
    let (issuer, other) = (Issuer::new(TD).unwrap(), Issuer::new(OTHER).unwrap());
    let jwks = other.jwks();
    for bad in [
        json!(7),
        json!(null),
        json!({}),
        json!("{}"),
        json!("AAA"),
        json!(STANDARD.encode("{}")),
        json!(STANDARD.encode("[]")),
        json!(format!("{}\n", STANDARD.encode(&jwks))),
        json!(STANDARD.encode(b"\xff\xff")),
    ] {
        for format in ["spiffe_helper", "spire_agent"] {
            let path = dir.join(format);
            let map = |of_other: Value| {
                let map = json!({TD: STANDARD.encode(issuer.jwks()), OTHER: of_other});
                match format {
                    "spiffe_helper" => map.to_string(),
                    _ => json!([{"bundles": map}]).to_string(),
                }
            };
            replace(&path, &map(json!(STANDARD.encode(&jwks))));
            let files = builder(format, &path).open().unwrap();
            replace(&path, &map(bad.clone()));
            eventually("an error", || !files.is_healthy()).await;
            // Its last bundle is kept; the other entry is updated.
            assert_eq!(
                (keys(&files, TD), keys(&files, OTHER)),
                (Some(1), Some(1)),
                "{bad}"
            );
            let state = files.state();
            let [own, theirs] = &*state.files[0].trust_domains else {
                panic!("two trust domains");
            };
            assert_eq!((own.last_error.as_ref(), theirs.keys), (None, 1), "{bad}");
            assert!(theirs.last_error.is_some(), "{bad}");
        }
    }
}

/// One valid text per byte string: padding and the standard alphabet, as Go writes it.
#[test]
fn base64_is_read_in_one_spelling() {
    // Its base64 has `+`, `/` and padding.
    let jwks = "{\"keys\":[],\"\u{3e}\u{3f}\u{fb}\u{ff}~~~???>>>\":1}";
    let standard = STANDARD.encode(jwks);
    assert!(
        standard.contains('+') || standard.contains('/'),
        "{standard}"
    );
    let read =
        |text: &str| BundleFormat::SpiffeHelper.read(json!({TD: text}).to_string().as_bytes());
    assert_eq!(read(&standard).unwrap().bundle_set().len(), 1);
    for other in [
        URL_SAFE.encode(jwks),
        STANDARD_NO_PAD.encode(jwks) + "===",
        format!(" {standard}"),
        format!("{standard}===="),
        standard.replacen('e', "\u{e9}", 1),
    ] {
        assert!(read(&other).is_err(), "{other}");
    }
}

/// A JSON object that is not a map of bundles removes no trust domain.
#[tokio::test]
async fn another_document_keeps_the_last_bundles() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for format in FORMATS {
        let path = dir.join(format);
        let good = document(format, &set(&issuer));
        replace(&path, &good);
        let files = builder(format, &path).open().unwrap();
        for other in [
            json!({"code": 14, "message": "unavailable"}),
            json!({"issuer": "https://x", "jwks_uri": "https://x/keys"}),
            json!([]),
            json!("a"),
            json!([{"svids": []}]),
        ] {
            replace(&path, &other.to_string());
            eventually("an error", || !files.is_healthy()).await;
            assert_eq!(verdict(&files, &issuer), None, "{format}: {other}");
            replace(&path, &good);
            eventually("recovery", || files.is_healthy()).await;
        }
    }
}

/// Each format rejects the documents of the others, and names the right method.
#[tokio::test]
async fn the_wrong_format_is_named() {
    let dir = TempDir::new();
    let issuer = Issuer::new(TD).unwrap();
    for (written, read, hint) in [
        ("jwks", "jwks_by_trust_domain", "`jwks`"),
        ("jwks", "spiffe_helper", "`jwks`"),
        ("jwks", "spire_agent", "must be a list"),
        ("jwks", "bundle_map", "`jwks`"),
        ("bundle_map", "jwks", "`bundle_map`"),
        ("bundle_map", "jwks_by_trust_domain", "`bundle_map`"),
        ("bundle_map", "spiffe_helper", "`bundle_map`"),
        ("jwks_by_trust_domain", "jwks_map", "`jwks_by_trust_domain`"),
        ("jwks_by_trust_domain", "spiffe_helper", "base64"),
        ("spiffe_helper", "jwks_map", "`spiffe_helper`"),
        ("spiffe_helper", "jwks_by_trust_domain", "must be an object"),
        ("spire_agent", "jwks", "`spire_agent`"),
        ("spire_agent", "spiffe_helper", "`spire_agent`"),
        ("spire_agent", "jwks_map", "`spire_agent`"),
    ] {
        let path = dir.join("file");
        replace(&path, &document(written, &set(&issuer)));
        let error = builder(read, &path).open().unwrap_err();
        assert_eq!(error.reason(), FileBundlesErrorReason::Malformed);
        let error = format!("{error:#}");
        assert!(error.contains(hint), "{written} as {read}: {error}");
        assert!(!error.contains("eyJ"), "{error}");
    }
}

#[test]
fn a_document_in_memory_is_read_the_same() {
    let issuer = Issuer::new(TD).unwrap();
    let set = set(&issuer);
    for (name, format) in [
        ("jwks", BundleFormat::Jwks(td(TD))),
        ("spiffe_bundle", BundleFormat::SpiffeBundle(td(TD))),
        ("bundle_map", BundleFormat::BundleMap),
        ("jwks_map", BundleFormat::JwksMap),
        ("jwks_by_trust_domain", BundleFormat::JwksByTrustDomain),
        ("spiffe_helper", BundleFormat::SpiffeHelper),
        ("spire_agent", BundleFormat::SpireAgent),
    ] {
        let read = format.read(document(name, &set).as_bytes()).unwrap();
        assert_eq!(read.bundle_set().get(TD).unwrap().len(), 1, "{name}");
        assert_eq!(read.errors().count(), 0, "{name}");
        assert!(format.read(b"{").is_err());
    }
    let map = json!({TD: set, OTHER: 7, "A B": set});
    let read = BundleFormat::JwksByTrustDomain.read(map.to_string().as_bytes());
    let read = read.unwrap();
    assert!(read.bundle_set().get(OTHER).unwrap().is_empty());
    let errors: Vec<_> = read.errors().collect();
    assert!(
        errors[0].contains(OTHER) && errors[1].contains("A B"),
        "{errors:?}"
    );
}
