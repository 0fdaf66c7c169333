//! Attacks with the form of a token and its contents.

use proptest::prelude::*;
use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::bundle::JwtBundleSet;
use tower_spiffe::verify::BuildValidatorError;
use tower_spiffe::verify::ValidateReason;

use super::warm_fixture;
use crate::signer::{AUDIENCE, NOW, SUBJECT, base64, bundle, claims, claims_with};
use crate::support::{Fixture, es256, keys_of};

#[test]
fn a08_huge_token_is_rejected_before_parsing() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    for huge in [
        ".".repeat(1 << 20),
        "A".repeat(1 << 20),
        "eyJ".repeat(1 << 18),
        "[".repeat(1 << 14),
        "a.b.c".repeat(1 << 18),
    ] {
        fixture.rejects(&huge, ValidateReason::TooLong);
    }
    fixture.rejects(&".".repeat(8192), ValidateReason::Malformed);
    fixture.rejects(&".".repeat(8193), ValidateReason::TooLong);
    let wide = Fixture::with(keys_of(&[&signer]), |b| b.max_token_len(1 << 20));
    wide.rejects(&".".repeat(1 << 20), ValidateReason::Malformed);
}

#[test]
fn a09_deep_json_and_extreme_numbers_are_handled() {
    let signer = es256();
    let wide = Fixture::with(keys_of(&[&signer]), |b| b.max_token_len(1 << 20));
    let payload = |name: &str, value: &str| {
        let claims = claims().to_string();
        format!("{},\"{name}\":{value}}}", claims.strip_suffix('}').unwrap())
    };
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let header = signer.header().to_string();
    wide.accepts(&signer.sign_texts(&header, &payload("x", &deep(10_000))));
    wide.accepts(&signer.sign_texts(&header, &payload("x", &"9".repeat(5000))));
    let unclosed = "[".repeat(10_000);
    wide.rejects(
        &signer.sign_texts(&header, &unclosed),
        ValidateReason::Claims,
    );
    wide.rejects(
        &signer.sign_texts(&header, &payload("x", &unclosed)),
        ValidateReason::Claims,
    );

    let exp = |number: &str| {
        let payload = format!(r#"{{"sub":"{SUBJECT}","aud":"{AUDIENCE}","exp":{number}}}"#);
        signer.sign_texts(&header, &payload)
    };
    for good in [
        "1e19",
        "9223372036854775808",
        "1e300",
        "1790000300.5",
        "17900003e2",
        "17900003E+2",
    ] {
        wide.accepts(&exp(good));
    }
    for past in ["-1", "-1e300", "0", "1e-400", "-0"] {
        wide.rejects(&exp(past), ValidateReason::Expired);
    }
    for none in [
        "1e400",
        "\"1790000300\"",
        "true",
        "null",
        "[1790000300]",
        "{}",
        "1_0",
        "0x1",
        "NaN",
        "01",
        "1.",
        "inf",
    ] {
        wide.rejects(&exp(none), ValidateReason::Claims);
    }
}

#[test]
fn a12_other_base64url_spellings_are_rejected() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    // Texts whose encoding has unused bits.
    let header = signer.header().to_string() + " ";
    let payload = claims().to_string();
    let payload = payload.clone() + &" ".repeat((4 - payload.len() % 3) % 3);
    let (header, payload) = (base64(header), base64(payload));
    fixture.accepts(&signer.sign_parts(&header, &payload));
    for odd in [
        "=", "==", "\n", "\r\n", " ", "\t", "+", "/", "\0", "!", "é", ".",
    ] {
        for (h, p) in [
            (format!("{header}{odd}"), payload.clone()),
            (format!("{odd}{header}"), payload.clone()),
            (header.clone(), format!("{payload}{odd}")),
            (header.clone(), format!("{odd}{payload}")),
        ] {
            // Signed over this text, so that only the encoding is invalid.
            fixture.rejects(&signer.sign_parts(&h, &p), ValidateReason::Malformed);
        }
        let token = signer.sign_parts(&header, &payload);
        fixture.rejects(&format!("{token}{odd}"), ValidateReason::Malformed);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        fixture.rejects(
            &format!("{signed}.{odd}{signature}"),
            ValidateReason::Malformed,
        );
    }
    // Another last letter that decodes to the same bytes.
    let next = |text: &str| {
        let last = text.chars().last().unwrap();
        let other = char::from_u32(last as u32 + 1).unwrap();
        format!("{}{other}", &text[..text.len() - 1])
    };
    let token = signer.token();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    assert_eq!(signature.len() % 4, 2);
    fixture.rejects(
        &format!("{signed}.{}", next(signature)),
        ValidateReason::Malformed,
    );
    for text in [&header, &payload] {
        if text.len() % 4 != 0 {
            let spelt =
                signer
                    .sign_parts(&header, &payload)
                    .replacen(text.as_str(), &next(text), 1);
            fixture.rejects(&spelt, ValidateReason::Malformed);
        }
    }
    // One more letter is not a whole byte.
    let long = format!("{signed}.{signature}AAA");
    fixture.rejects(&long, ValidateReason::Malformed);
}

#[test]
fn a13_other_numbers_of_parts_are_rejected() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let token = signer.token();
    let parts: Vec<&str> = token.split('.').collect();
    let [h, p, s] = parts[..] else { panic!() };
    let general = json!({"payload": p, "signatures": [{"protected": h, "signature": s}]});
    let flattened = json!({"payload": p, "protected": h, "signature": s});
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        h.into(),
        format!("{h}.{p}"),
        format!("{h}.{p}."),
        format!(".{p}.{s}"),
        format!("{h}..{s}"),
        format!("{h}..{p}.{s}"),
        format!(".{token}"),
        format!("{token}."),
        format!("{token}.{s}"),
        format!("{token}.{h}.{p}"),
        format!("{h}.{p}.{s}.{h}.{p}"),
        format!("{token},{token}"),
        format!("\"{token}\""),
        general.to_string(),
        flattened.to_string(),
    ] {
        fixture.rejects(&bad, ValidateReason::Malformed);
    }
}

#[test]
fn a14_duplicate_names_are_rejected() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let lax = Fixture::with(keys_of(&[&signer]), |b| b.allow_unknown_headers(true));
    let twice = |text: &Value, name: &str, value: &Value, first: bool| {
        let text = text.to_string();
        let inner = &text[1..text.len() - 1];
        if first {
            format!("{{{name}:{value},{inner}}}")
        } else {
            format!("{{{inner},{name}:{value}}}")
        }
    };
    let header = signer.header();
    for first in [true, false] {
        for (name, value) in [
            (r#""alg""#, json!("ES256")),
            (r#""alg""#, json!("none")),
            (r#""kid""#, json!("p256")),
            (r#""kid""#, json!("other")),
            (r#""typ""#, json!("JWT")),
            (r#""\u0061lg""#, json!("ES256")),
            (r#""k\u0069d""#, json!("p256")),
        ] {
            let token =
                signer.sign_texts(&twice(&header, name, &value, first), &claims().to_string());
            fixture.rejects(&token, ValidateReason::Header);
            lax.rejects(&token, ValidateReason::Header);
        }
        let with_other = claims_with("other", json!(1));
        for (name, value) in [
            (r#""sub""#, json!(SUBJECT)),
            (r#""sub""#, json!("spiffe://td.test/admin")),
            (r#""aud""#, json!(AUDIENCE)),
            (r#""exp""#, json!(NOW + 9999)),
            (r#""iat""#, json!(NOW)),
            (r#""\u0073ub""#, json!("spiffe://td.test/admin")),
            (r#""\u0065xp""#, json!(NOW + 9999)),
            (r#""other""#, json!(1)),
            (r#""o\u0074her""#, json!(2)),
        ] {
            let payload = twice(&with_other, name, &value, first);
            let token = signer.sign_texts(&header.to_string(), &payload);
            fixture.rejects(&token, ValidateReason::Claims);
        }
    }
    // Many names. The last one repeats the first.
    let mut many = claims();
    for n in 0..200 {
        many[format!("c{n}")] = json!(n);
    }
    let header = header.to_string();
    fixture.accepts(&signer.sign_texts(&header, &many.to_string()));
    for name in ["\"c0\"", "\"c199\"", "\"\\u0063150\""] {
        let payload = twice(&many, name, &json!(0), false);
        fixture.rejects(
            &signer.sign_texts(&header, &payload),
            ValidateReason::Claims,
        );
    }
}

#[test]
fn a15_claims_of_wrong_types_are_rejected() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let values = [
        json!("x"),
        json!("1790000300"),
        json!(true),
        Value::Null,
        json!([]),
        json!({}),
        json!([1]),
        json!({"a": 1}),
        json!(["x", 7]),
        json!([["x"]]),
    ];
    for name in ["exp", "nbf", "iat"] {
        for value in &values {
            let token = signer.sign(&claims_with(name, value.clone()));
            fixture.rejects(&token, ValidateReason::Claims);
        }
    }
    for value in [
        json!(7),
        json!(true),
        Value::Null,
        json!([]),
        json!({}),
        json!([AUDIENCE, 7]),
        json!([AUDIENCE, null]),
        json!([[AUDIENCE]]),
        json!({"0": AUDIENCE}),
    ] {
        fixture.rejects(
            &signer.sign(&claims_with("aud", value)),
            ValidateReason::Claims,
        );
    }
    for value in [
        json!(7),
        json!(false),
        Value::Null,
        json!([SUBJECT]),
        json!({}),
        json!(""),
        json!("web"),
    ] {
        fixture.rejects(
            &signer.sign(&claims_with("sub", value)),
            ValidateReason::Claims,
        );
    }
    for name in ["sub", "aud", "exp"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        fixture.rejects(&signer.sign(&claims), ValidateReason::Claims);
    }
}

#[test]
fn a16_audiences_are_compared_by_bytes() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    for other in [
        json!(""),
        json!("spiffe://td.test/reports/"),
        json!("spiffe://td.test/report"),
        json!("spiffe://td.test/reports2"),
        json!("spiffe://td.test/Reports"),
        json!("SPIFFE://td.test/reports"),
        json!("td.test/reports"),
        json!(" spiffe://td.test/reports"),
        json!("spiffe://td.test/reports\n"),
        json!("[\"spiffe://td.test/reports\"]"),
        json!(["x", "y"]),
        json!([""]),
        json!("*"),
        json!("spiffe://td.test/%72eports"),
    ] {
        fixture.rejects(
            &signer.sign(&claims_with("aud", other)),
            ValidateReason::Audience,
        );
    }
    for ours in [
        json!(AUDIENCE),
        json!([AUDIENCE]),
        json!(["x", AUDIENCE]),
        json!(["", AUDIENCE, "y"]),
    ] {
        fixture.accepts(&signer.sign(&claims_with("aud", ours)));
    }
    let unicode = Fixture::with(keys_of(&[&signer]), |b| b.audience("caf\u{e9}"));
    unicode.accepts(&signer.sign(&claims_with("aud", json!("caf\u{e9}"))));
    unicode.rejects(
        &signer.sign(&claims_with("aud", json!("cafe\u{301}"))),
        ValidateReason::Audience,
    );
    // A validator without an audience would accept every token of the trust domain.
    let source = || crate::support::Swappable::new(JwtBundleSet::default());
    let build = |audiences: &[&str]| {
        Validator::builder(source())
            .audiences(audiences.iter().copied())
            .build()
            .unwrap_err()
    };
    assert_eq!(build(&[]), BuildValidatorError::NoAudience);
    assert_eq!(build(&["a", ""]), BuildValidatorError::EmptyAudience);
    // An audience with a line break, as read from a file, would reject all tokens.
    for audience in ["a\n", " a", "\ta\r\n", " "] {
        let error = build(&["a", audience]);
        assert_eq!(error, BuildValidatorError::AudienceWhitespace);
    }
}

/// The number of cases of each test: 4096, or `PROPTEST_CASES`. For a long run:
/// `PROPTEST_CASES=1000000 cargo test --release --test verification a21`.
fn a21_cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.map_or(4096, |cases| {
        cases.parse().expect("PROPTEST_CASES is a number")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: a21_cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a21_any_text_is_rejected_without_panic(token in any::<String>()) {
        prop_assert!(shared().validate(&token).is_err());
    }

    #[test]
    fn a21_any_three_parts_are_rejected_without_panic(
        header in any::<Vec<u8>>(), payload in any::<Vec<u8>>(), signature in any::<Vec<u8>>(),
    ) {
        let token = format!("{}.{}.{}", base64(header), base64(payload), base64(signature));
        prop_assert!(shared().validate(&token).is_err());
    }

    #[test]
    fn a21_changed_tokens_are_rejected(at in 0_usize..300, change in 1..=u8::MAX) {
        let mut token = token_of_shared().clone().into_bytes();
        let at = at % token.len();
        token[at] ^= change;
        if let Ok(token) = String::from_utf8(token) {
            prop_assert!(shared().validate(&token).is_err());
        }
    }

    #[test]
    fn a21_any_payload_is_rejected_without_panic(text in "[\\[\\]{}\",:0-9eE.+a-z\\\\ u-]{0,60}") {
        let token = es256().sign_texts(&es256().header().to_string(), &text);
        prop_assert!(shared().validate(&token).is_err());
    }

    #[test]
    fn a21_any_document_is_parsed_without_panic(text in any::<Vec<u8>>()) {
        let trust_domain = tower_spiffe::TrustDomain::parse("td.test").unwrap();
        let _ = tower_spiffe::bundle::JwtBundle::from_jwks(trust_domain, &text);
    }

    #[test]
    fn a21_any_jwk_is_parsed_without_panic(
        kty in "EC|RSA|x", crv in "P-256|P-384|P-521", x in "[A-Za-z0-9_-]{0,90}", y in any::<String>(),
        n in "[A-Za-z0-9_-]{0,400}", e in "[A-Za-z0-9_-]{0,9}",
    ) {
        let jwk = json!({"kty": kty, "kid": "k", "crv": crv, "x": x, "y": y, "n": n, "e": e});
        let _ = bundle("td.test", &[jwk]);
    }
}

fn shared() -> &'static Fixture {
    static FIXTURE: std::sync::OnceLock<Fixture> = std::sync::OnceLock::new();
    FIXTURE.get_or_init(|| warm_fixture(&[&es256()]))
}

fn token_of_shared() -> &'static String {
    static TOKEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TOKEN.get_or_init(|| {
        let token = es256().token();
        shared().accepts(&token);
        token
    })
}
