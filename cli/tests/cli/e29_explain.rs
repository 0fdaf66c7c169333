//! E29, E23, E19 and E34 in `explain`.

use serde_json::json;

use crate::explain::{claims, es256, explain_file};

fn explain(name: &str, document: &[u8], more: &[&str], input: &str) -> (i32, String) {
    explain_file(&format!("e29-{name}"), document, more, input.as_bytes())
}

const TD: [&str; 2] = ["--trust-domain", "td.test"];

#[test]
fn e29_explain_identifies_other_file_kinds() {
    let jwk = es256().jwk().to_string();
    let cases = [
        (
            "-----BEGIN CERTIFICATE-----\nMIIB\n".to_owned(),
            "-format spiffe",
        ),
        (
            r#"{"issuer": "https://x", "jwks_uri": "https://x/k"}"#.to_owned(),
            "discovery",
        ),
        (jwk, "a single JWK"),
        (
            "apiVersion: v1\nkind: ConfigMap\ndata: {}\n".to_owned(),
            "Kubernetes manifest",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "data": {}}"#.to_owned(),
            "Kubernetes manifest",
        ),
        (
            format!(r#"[{{"svids": [{{"svid": "{}"}}]}}]"#, es256().token()),
            "tokens",
        ),
    ];
    for (n, (document, why)) in cases.iter().enumerate() {
        for more in [&TD[..], &[]] {
            let name = format!("kind-{n}");
            let (code, output) = explain(&name, document.as_bytes(), more, &es256().token());
            assert!(code == 2 && output.contains(why), "{document}: {output}");
            assert!(
                !output.contains("eyJ") && !output.contains("MIIB"),
                "{output}"
            );
        }
    }
}

#[test]
fn e29_explain_skips_a_byte_order_mark() {
    let document = format!("\u{feff}{}", json!({"keys": [es256().jwk()]}));
    let (code, output) = explain("bom", document.as_bytes(), &TD, &es256().token());
    assert_eq!(code, 0, "{output}");
}

#[test]
fn e29_explain_names_x509_keys() {
    let mut x509 = es256().jwk();
    x509["use"] = json!("x509-svid");
    x509.as_object_mut().unwrap().remove("kid");
    let document = json!({"keys": [x509, es256().jwk()]}).to_string();
    let (code, output) = explain("x509", document.as_bytes(), &TD, &es256().token());
    assert_eq!(code, 0, "{output}");
    assert!(
        output.contains("element 0 (no kid) is ignored: an X.509-SVID key"),
        "{output}"
    );
    assert!(!output.contains("`kid` is missing"), "{output}");
}

#[test]
fn e29_explain_requires_one_token() {
    let document = json!({"td.test": {"keys": [es256().jwk()]}}).to_string();
    let explain = |input: &str| explain("tokens", document.as_bytes(), &[], input);
    let token = es256().token();
    let printed = |svids: &[&str]| {
        let svids: Vec<_> = svids.iter().map(|svid| json!({"svid": svid})).collect();
        json!([{"svids": svids}, {"bundles": {"spiffe://td.test": "eyJrZXlzIjpbXX0="}}]).to_string()
    };
    let (code, output) = explain(&printed(&[&token]));
    assert!(
        code == 0 && output.contains("JSON with one token"),
        "{output}"
    );
    let (code, output) = explain(&printed(&[&token, &token]));
    assert!(
        code == 2 && output.contains("JSON with 2 tokens"),
        "{output}"
    );
    assert!(!output.contains("eyJ"), "{output}");
}

#[test]
fn e23_explain_skips_bad_entries_of_a_map() {
    let keys = json!({"keys": [es256().jwk()]});
    let document = json!({"td.test": keys, "Other.Test": keys, "broken.test": {}}).to_string();
    let (code, output) = explain("names", document.as_bytes(), &[], &es256().token());
    assert_eq!(code, 0, "{output}");
    assert!(
        output.contains("skipped: trust domain \"Other.Test\": "),
        "{output}"
    );
    assert!(
        output.contains("skipped: trust domain \"broken.test\": "),
        "{output}"
    );
}

#[test]
fn e19_explain_reads_null_as_no_keys() {
    for (document, more) in [
        (r#"{"keys": null}"#, &TD[..]),
        (r#"{"td.test": {"keys": null}}"#, &[]),
        (r#"{"trust_domains": {"td.test": {"keys": null}}}"#, &[]),
    ] {
        let (code, output) = explain("null", document.as_bytes(), more, &es256().token());
        assert!(
            code == 1 && output.ends_with("rejected: key-unknown\n"),
            "{output}"
        );
    }
    let (code, output) = explain("empty", b"", &TD, &es256().token());
    assert_eq!(code, 2, "{output}");
}

#[test]
fn e34_explain_checks_tokens_without_kid() {
    let unnamed = es256().sign_texts(r#"{"alg":"ES256","typ":"JWT"}"#, &claims().to_string());
    let keys = |count: usize| {
        let keys: Vec<_> = (0..count)
            .map(|n| es256().with_key_id(&format!("k{n}")).jwk())
            .collect();
        json!({ "keys": keys }).to_string()
    };
    let (code, output) = explain("four", keys(4).as_bytes(), &TD, &unnamed);
    assert_eq!(code, 0, "{output}");
    let (code, output) = explain("five", keys(5).as_bytes(), &TD, &unnamed);
    assert!(
        code == 1 && output.ends_with("rejected: key-unknown\n"),
        "{output}"
    );
    assert!(
        output.contains("without a kid, one to four of them must fit alg"),
        "{output}"
    );
}

/// The formats of other tools, detected and by option.
#[test]
fn h08_explain_reads_the_formats_of_files() {
    use base64::Engine as _;

    let mut jwk = es256().jwk();
    let set = json!({"keys": [jwk]});
    let base64 = base64::engine::general_purpose::STANDARD.encode(set.to_string());
    let token = es256().token();
    let agent = json!([{"svids": [{"svid": token}]}, {"bundles": {"spiffe://td.test": base64}}]);
    for (format, document) in [
        ("map", json!({"td.test": set})),
        ("spiffe-helper", json!({"td.test": base64})),
        ("spire-agent", agent),
    ] {
        for more in [&[][..], &["--format", format]] {
            let document = document.to_string();
            let (code, output) = explain(format, document.as_bytes(), more, &token);
            assert_eq!(code, 0, "{format}: {output}");
            assert!(!output.contains("eyJ"), "{output}");
        }
    }
    let wrapped = json!({"trust_domains": {"td.test": set}}).to_string();
    let by_option = ["--format", "jwks-map"];
    let (code, output) = explain("wrapped", wrapped.as_bytes(), &by_option, &token);
    assert_eq!(code, 0, "{output}");
    jwk["use"] = json!("sig");
    let of_issuer = json!({"keys": [jwk]}).to_string();
    let (code, output) = explain("sig", of_issuer.as_bytes(), &TD, &token);
    assert_eq!(code, 0, "{output}");
    jwk["use"] = json!("enc");
    let unusable = json!({"keys": [jwk]}).to_string();
    let (code, output) = explain("enc", unusable.as_bytes(), &TD, &token);
    assert!(
        code == 1 && output.contains("none of its keys is usable"),
        "{output}"
    );
}
