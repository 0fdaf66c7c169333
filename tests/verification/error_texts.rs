//! Error texts name the cause. Text from a caller is bounded and escaped.

use std::error::Error as _;
use std::time::Duration;

use serde_json::json;
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::verify::{BuildValidatorError, ValidateError, ValidateReason, ValidatorBuilder};

use crate::signer::claims_with;
use crate::support::{Fixture, es256, keys_of};

fn error(fixture: &Fixture, token: &str) -> ValidateError {
    fixture.cold.validate(token).unwrap_err()
}

#[test]
fn error_names_reason_and_detail_without_the_token() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.sign(&claims_with("aud", json!("other")));
    let error = error(&fixture, &token);
    assert_eq!(
        error.to_string(),
        "audience: `aud` has no audience that this validator accepts"
    );
    let debug = format!("{error:?}");
    assert!(debug.contains("Audience") && debug.contains(error.detail()));
    for part in token.split('.') {
        assert!(!debug.contains(part) && !error.to_string().contains(part));
    }
    assert!(error.source().is_none());
}

#[test]
fn unavailable_bundles_are_the_source_of_the_error() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    fixture.source.set(Err(BundlesUnavailable::Stale));
    let error = error(&fixture, &signer.token());
    let why = BundlesUnavailable::Stale;
    assert_eq!(error.reason(), ValidateReason::BundlesUnavailable(why));
    let source = error.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&why));
}

#[test]
fn first_three_audiences_are_shown() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    for (audiences, shown) in [
        (json!("p"), "p"),
        (json!(["p", "q"]), "p, q"),
        (json!(["p", "q", "r"]), "p, q, r"),
        (json!(["p", "q", "r", "s"]), "p, q, r, …"),
        (json!(["p\n\"", "\u{e9}"]), "p\\n\\\", \\u{e9}"),
    ] {
        let error = error(&fixture, &signer.sign(&claims_with("aud", audiences)));
        assert_eq!(error.audiences(), Some(shown));
    }
}

/// The limit counts escaped text, and an escape is not cut.
#[test]
fn callers_text_is_cut_at_64_bytes() {
    let a = |n: usize| "a".repeat(n);
    for (text, shown) in [
        (a(64), a(64)),
        (a(65), a(64)),
        (format!("{}\n", a(62)), format!("{}\\n", a(62))),
        (format!("{}\n", a(63)), a(63)),
        ("\n".repeat(100), "\\n".repeat(32)),
        ("\"'\\".into(), "\\\"\\'\\\\".into()),
    ] {
        let signer = es256().with_key_id(&text);
        let fixture = Fixture::new(&[&es256()]);
        let unknown = error(&fixture, &signer.token());
        assert_eq!(unknown.key_id(), Some(&*shown), "{text:?}");
        for audiences in [json!([text]), json!(["p", text])] {
            let signer = es256();
            let error = error(&fixture, &signer.sign(&claims_with("aud", audiences)));
            let audiences = error.audiences().unwrap();
            assert_eq!(audiences.strip_prefix("p, ").unwrap_or(audiences), shown);
        }
    }
}

#[test]
fn build_error_says_how_to_fix_it() {
    let signer = es256();
    let error = |change: fn(ValidatorBuilder) -> ValidatorBuilder| {
        let source = tower_spiffe::bundle::FixedBundles::new(keys_of(&[&signer]));
        change(tower_spiffe::Validator::builder(source))
            .build()
            .err()
    };
    type Change = fn(ValidatorBuilder) -> ValidatorBuilder;
    let cases: [(Change, BuildValidatorError, &str); 6] = [
        (|it| it, BuildValidatorError::NoAudience, "`.audience("),
        (
            |it| it.audience(""),
            BuildValidatorError::EmptyAudience,
            "use the name",
        ),
        (
            |it| it.audience("a\n"),
            BuildValidatorError::AudienceWhitespace,
            "trim it",
        ),
        (
            |it| it.audience("a").leeway(Duration::from_millis(300_001)),
            BuildValidatorError::LeewayTooLong,
            "reduce it",
        ),
        (
            |it| it.audience("a").algorithms([]),
            BuildValidatorError::NoAlgorithm,
            "name one",
        ),
        (
            |it| it.audience("a").max_token_len(0),
            BuildValidatorError::MaxTokenLen,
            "remove",
        ),
    ];
    for (change, expected, fix) in cases {
        assert_eq!(error(change), Some(expected));
        assert!(expected.to_string().contains(fix), "{expected}");
    }
    assert_eq!(
        error(|it| it.audience("a").leeway(Duration::from_secs(300))),
        None
    );
}

#[test]
fn header_value_instead_of_a_token_is_reported() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.token();
    for bearer in [
        format!("Bearer {token}"),
        format!(" bearer {token}"),
        "BEARER x".into(),
    ] {
        assert!(
            error(&fixture, &bearer).detail().contains("`Bearer`"),
            "{bearer}"
        );
    }
    for other in [
        format!("Basic {token}"),
        "x y".into(),
        "Bearer".into(),
        format!("Bearer.{token}"),
    ] {
        assert!(
            !error(&fixture, &other).detail().contains("`Bearer`"),
            "{other}"
        );
    }
}

#[test]
fn token_without_kid_or_fitting_key_is_reported() {
    let rs256 = crate::support::rs256();
    let fixture = Fixture::new(&[&rs256]);
    let signer = es256();
    let token = signer.sign_texts(r#"{"alg":"ES256"}"#, &crate::signer::claims().to_string());
    let error = error(&fixture, &token);
    assert_eq!(error.reason(), ValidateReason::KeyUnknown);
    assert!(error.detail().contains("no key that fits"), "{error}");
}

#[test]
fn defaults_are_as_documented() {
    let fixture = Fixture::new(&[&es256()]);
    assert_eq!(fixture.cold.max_token_len(), 8192);
    assert_eq!(fixture.cold.leeway(), Duration::from_secs(10));
}
