//! E23 and E29: entries with a bad name, and files of another kind.

use super::tests::{Dir, bundle, jwks, kids, quick, td, until};
use super::*;

fn map(entries: &[(&str, &str)]) -> String {
    let entries = entries.iter();
    let entries: Vec<_> = entries
        .map(|(name, keys)| format!(r#""{name}": {keys}"#))
        .collect();
    format!(r#"{{"trust_domains": {{{}}}}}"#, entries.join(", "))
}

const NO_KEYS: &str = r#"{"keys": []}"#;

#[tokio::test]
async fn e23_invalid_map_name_affects_only_itself() {
    let dir = Dir::new("e23");
    let (a, b) = (bundle(&["a"]), bundle(&["b"]));
    let path = dir.write("map", map(&[("x", &a), ("y", &b), ("z", &a)]));
    let source = quick().bundle_map(&path).open().expect("open");
    // x is revoked, the name of y is mistyped, z stays.
    dir.rename_over("map", map(&[("x", NO_KEYS), ("Y", &b), ("z", &a)]));
    until("x is revoked", || kids(&source, "x").is_empty()).await;
    assert_eq!(kids(&source, "y"), ["UnknownTrustDomain"]);
    assert_eq!(kids(&source, "z"), ["a"]);
    let state = source.state();
    let error = state.files[0].last_error.clone().expect("an error");
    assert!(error.contains("trust domain \"Y\": "), "{error}");
    let domains = state.files[0].trust_domains.iter();
    let domains: Vec<_> = domains
        .map(|it| (it.trust_domain.name(), it.keys))
        .collect();
    assert_eq!(domains, [("x", 0), ("z", 1)]);
    // It stays unhealthy while nothing changes, and recovers with the name.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!source.state().is_healthy());
    dir.rename_over("map", map(&[("x", NO_KEYS), ("y", &b), ("z", &a)]));
    until("y is back", || kids(&source, "y") == ["b"]).await;
    assert!(source.state().is_healthy());
}

#[tokio::test]
async fn e23_no_valid_name_removes_every_trust_domain() {
    let dir = Dir::new("e23-all");
    let a = bundle(&["a"]);
    let path = dir.write("map", map(&[("x", &a)]));
    let source = quick().bundle_map(&path).open().expect("open");
    dir.rename_over("map", map(&[("X", &a)]));
    until("x is removed", || {
        kids(&source, "x") == ["UnknownTrustDomain"]
    })
    .await;
    assert!(!source.state().is_healthy());
    // The same after it is opened again.
    let source = quick().bundle_map(&path).open().expect("open");
    assert!(source.bundle_set().expect("a set").is_empty() && !source.state().is_healthy());
}

#[tokio::test]
async fn e23_tb13_duplicates_reject_the_map() {
    let dir = Dir::new("e23-twice");
    let (a, b) = (bundle(&["a"]), bundle(&["b"]));
    let path = dir.write("map", map(&[("x", &a)]));
    let source = quick().bundle_map(&path).open().expect("open");
    for twice in [
        map(&[("x", &b), ("x", &b)]),
        map(&[("x", &b), ("spiffe://x", &b)]),
        map(&[("x", &b), ("Y", &b), ("Y", &b)]),
        map(&[("x", &b), ("Y", &b), ("\\u0059", &b)]),
    ] {
        dir.rename_over("map", &twice);
        let error_text = || source.state().files[0].last_error.clone();
        until(&twice, || {
            error_text().is_some_and(|it| it.contains("twice"))
        })
        .await;
        assert_eq!(kids(&source, "x"), ["a"], "{twice}");
        dir.rename_over("map", map(&[("x", &a)]));
        until("good", || error_text().is_none()).await;
    }
}

#[tokio::test]
async fn e23_many_invalid_names_have_a_bounded_text() {
    let dir = Dir::new("e23-many");
    let names: Vec<_> = (0..10_000)
        .map(|n| format!("{}{n}", "X".repeat(400)))
        .collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), "7")).collect();
    let path = dir.write("map", map(&[&entries[..], &[("x", "7")]].concat()));
    let source = quick().bundle_map(&path).open().expect("open");
    let state = source.state();
    let error = state.files[0].last_error.clone().expect("an error");
    assert!(error.starts_with("trust domain \"x\": "), "{error}");
    assert!(error.ends_with("; and 9999 more"), "{error}");
    assert!(error.len() < 1024, "{} bytes", error.len());
}

fn error_of(files: FileBundlesBuilder) -> String {
    format!("{:#}", files.open().expect_err("another kind of file"))
}

#[tokio::test]
async fn e29_byte_order_mark_is_skipped() {
    let dir = Dir::new("e29-bom");
    let with_mark = |text: &str| [b"\xef\xbb\xbf", text.as_bytes()].concat();
    let one = dir.write("one", with_mark(&bundle(&["a"])));
    let many = dir.write("many", with_mark(&map(&[("y", &bundle(&["b"]))])));
    let files = quick().spiffe_bundle(td("x"), &one).bundle_map(&many);
    let source = files.open().expect("open");
    assert_eq!(
        (kids(&source, "x"), kids(&source, "y")),
        (vec!["a".into()], vec!["b".into()])
    );
    // Only one mark, and only at the start.
    let twice = with_mark("\u{feff}{\"keys\": []}");
    let text = error_of(quick().jwks(td("x"), dir.write("twice", twice)));
    assert!(text.contains("byte order mark"), "{text}");
}

#[tokio::test]
async fn e29_files_of_other_kinds_are_named() {
    let dir = Dir::new("e29");
    let key = jwks(&["a"]);
    let key = key
        .strip_prefix(r#"{"keys": ["#)
        .and_then(|it| it.strip_suffix("]}"))
        .expect("a key");
    let token = "eyJhbGciOiJFUzI1NiJ9.e30.c2ln";
    let cases = [
        (
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned(),
            "-format spiffe",
        ),
        (
            "subject=O = SPIRE\nissuer=x\n-----BEGIN CERTIFICATE-----\nMIIB\n".to_owned(),
            "it is PEM",
        ),
        (
            "\u{feff}-----BEGIN PUBLIC KEY-----\n".to_owned(),
            "it is PEM",
        ),
        (
            "\n  -----BEGIN CERTIFICATE-----\n  MIIB\n".to_owned(),
            "it is PEM",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\ndata:\n  bundle.crt: |\n    -----BEGIN CERTIFICATE-----\n"
                .to_owned(),
            "Kubernetes manifest",
        ),
        (
            r#"{"issuer": "https://x", "jwks_uri": "https://x/keys"}"#.to_owned(),
            "`jwks_uri`",
        ),
        (key.to_owned(), "a single JWK"),
        (format!("[{key}]"), "a list of JWKs"),
        (
            format!(
                "apiVersion: v1\nkind: ConfigMap\ndata:\n  bundle.spiffe: |\n    {{\"keys\": [{key}]}}\n"
            ),
            "Kubernetes manifest",
        ),
        (
            format!(
                "# a comment\n---\nkind: ConfigMap\napiVersion: v1\ndata: {{\"keys\": [{key}]}}\n"
            ),
            "Kubernetes manifest",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "data": {"bundle": "{}"}}"#.to_owned(),
            "Kubernetes manifest",
        ),
        (
            r#"{"apiVersion": "v1", "items": [], "kind": "List"}"#.to_owned(),
            "Kubernetes manifest",
        ),
        (
            format!(r#"[{{"svids": [{{"svid": "{token}"}}]}}, {{"bundles": {{}}}}]"#),
            "`spire-agent api fetch jwt`",
        ),
        (
            format!(r#"{{"svids": [{{"svid": "{token}"}}, {{"svid": "{token}"}}]}}"#),
            "tokens",
        ),
        (format!(r#"["{token}", "{token}"]"#), "JSON with tokens"),
        (
            format!(r#"{{"access_token": "{token}"}}"#),
            "JSON with tokens",
        ),
        (format!("{token}\n"), "it is a token"),
        (
            r#"{"trust_domain": "x", "x509_authorities": [], "jwt_authorities": []}"#.to_owned(),
            "-format spiffe",
        ),
        ("\u{feff}garbage".to_owned(), "this is not JSON"),
    ];
    for (text, expected) in &cases {
        let path = dir.write("file", text);
        for files in [
            quick().jwks(td("x"), &path),
            quick().spiffe_bundle(td("x"), &path),
            quick().jwks_map(&path),
            quick().bundle_map(&path),
        ] {
            let error = error_of(files);
            assert!(error.contains(expected), "{text}: {error}");
            for secret in ["eyJ", "MIIB", "bVDj"] {
                assert!(!error.contains(secret), "{error}");
            }
        }
    }
    // The other format.
    let many = dir.write("many", map(&[("x", &bundle(&["a"]))]));
    let text = error_of(quick().spiffe_bundle(td("x"), &many));
    assert!(text.contains("`bundle_map`"), "{text}");
    let one = dir.write("one", bundle(&["a"]));
    let text = error_of(quick().bundle_map(&one));
    assert!(text.contains("`spiffe_bundle`"), "{text}");
    let utf_16 = dir.write("utf16", b"\xff\xfe{\0}\0");
    for files in [quick().jwks(td("x"), &utf_16), quick().bundle_map(&utf_16)] {
        let text = error_of(files);
        assert!(text.contains("UTF-16"), "{text}");
    }
}
