//! The SPIFFE rules for validators; each test is named after its rule. `rule_table` lists the test
//! of each rule. The ID rules are tested with the parser (`spiffe_id`); `id_rules_apply_to_sub` checks
//! that `sub` uses that parser.

use serde_json::{Value, json};
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{IgnoredReason, JwtBundle, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::verify::BuildValidatorError;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{TrustDomain, Validator};

use crate::signer::{AUDIENCE, NOW, SUBJECT, Signer, base64, bundle, claims, claims_with, set_of};
use crate::support::{Fixture, Swappable, es256, keys_of};

fn read(jwks: &Value) -> JwtBundle {
    let trust_domain = TrustDomain::parse("td.test").unwrap();
    JwtBundle::from_jwks(trust_domain, jwks.to_string().as_bytes()).unwrap()
}

fn read_spiffe(jwks: &Value) -> JwtBundle {
    let trust_domain = TrustDomain::parse("td.test").unwrap();
    JwtBundle::from_spiffe_bundle(trust_domain, jwks.to_string().as_bytes()).unwrap()
}

fn jwk_with(name: &str, value: Value) -> Value {
    let mut jwk = es256().jwk();
    jwk[name] = value;
    jwk
}

fn with_header(signer: &Signer, name: &str, value: Value) -> String {
    let mut header = signer.header();
    header[name] = value;
    signer.sign_texts(&header.to_string(), &claims().to_string())
}

fn without_header(signer: &Signer, name: &str) -> String {
    let mut header = signer.header();
    header.as_object_mut().unwrap().remove(name);
    signer.sign_texts(&header.to_string(), &claims().to_string())
}

#[test]
fn jwt_01_compact_serialisation_only() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let token = signer.token();
    fixture.accepts(&token);
    let parts: Vec<&str> = token.split('.').collect();
    let json = json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]});
    fixture.rejects(&json.to_string(), ValidateReason::Malformed);
    let with_unprotected = json!({"payload": parts[1], "signatures":
        [{"protected": parts[0], "header": {"kid": "p256"}, "signature": parts[2]}]});
    fixture.rejects(&with_unprotected.to_string(), ValidateReason::Malformed);
}

#[test]
fn jwt_02_jwe_is_rejected() {
    let fixture = Fixture::new(&[&es256()]);
    let header = base64(r#"{"alg":"RSA-OAEP","enc":"A256GCM","kid":"p256"}"#);
    let jwe = format!("{header}.AAAA.AAAA.AAAA.AAAA");
    fixture.rejects(&jwe, ValidateReason::Malformed);
    let three = format!("{header}.AAAA.AAAA");
    fixture.rejects(&three, ValidateReason::Algorithm);
}

#[test]
fn jwt_03_only_alg_kid_and_typ_are_allowed() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    for name in ["cty", "zip", "url", "nonce", "iss", "private", "KID", ""] {
        let token = with_header(&signer, name, json!("x"));
        fixture.rejects(&token, ValidateReason::Header);
    }
}

#[test]
fn jwt_04_only_the_nine_algorithms() {
    let signers: Vec<Signer> = Algorithm::ALL
        .into_iter()
        .map(Signer::for_algorithm)
        .collect();
    let fixture = Fixture::new(&[&signers[0], &signers[3], &signers[4], &signers[5]]);
    for signer in &signers {
        fixture.accepts(&signer.token());
    }
    for other in [
        "none",
        "HS256",
        "HS384",
        "HS512",
        "EdDSA",
        "ES256K",
        "RS1",
        "es256",
        "ML-DSA-44",
    ] {
        let token = with_header(&es256(), "alg", json!(other));
        fixture.rejects(&token, ValidateReason::Algorithm);
    }
    // A validator may allow fewer algorithms.
    let fewer = Fixture::with(keys_of(&[&signers[0], &signers[3]]), |builder| {
        builder.algorithms([Algorithm::ES256])
    });
    fewer.accepts(&es256().token());
    fewer.rejects(&signers[0].token(), ValidateReason::Algorithm);
    let none = Validator::builder(Swappable::new(JwtBundleSet::default()))
        .audience("a")
        .algorithms([])
        .build();
    assert_eq!(none.unwrap_err(), BuildValidatorError::NoAlgorithm);
}

#[test]
fn jwt_05_algorithm_is_checked_first() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let mut header = signer.header();
    header["alg"] = json!("none");
    header["crit"] = json!(["x"]);
    header["typ"] = json!("x");
    let token = signer.sign_texts(&header.to_string(), "not JSON");
    fixture.rejects(&token, ValidateReason::Algorithm);
}

#[test]
fn jwt_06_kid_is_optional() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    fixture.accepts(&without_header(&signer, "kid"));
    fixture.rejects(
        &with_header(&signer, "kid", json!("")),
        ValidateReason::Header,
    );
}

#[test]
fn jwt_07_typ_is_missing_or_jwt_or_jose() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    fixture.accepts(&without_header(&signer, "typ"));
    fixture.accepts(&with_header(&signer, "typ", json!("JWT")));
    fixture.accepts(&with_header(&signer, "typ", json!("JOSE")));
    for other in [
        json!("jwt"),
        json!("Jose"),
        json!(""),
        json!("wit+jwt"),
        json!("at+jwt"),
        json!(7),
        Value::Null,
    ] {
        fixture.rejects(&with_header(&signer, "typ", other), ValidateReason::Header);
    }
}

#[test]
fn jwt_08_sub_is_a_spiffe_id() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let svid = fixture.accepts(&signer.token());
    assert_eq!(svid.spiffe_id().as_str(), SUBJECT);
    for other in ["", "web", "https://td.test/web", "spiffe://"] {
        fixture.rejects(
            &signer.sign(&claims_with("sub", json!(other))),
            ValidateReason::Claims,
        );
    }
}

#[test]
fn jwt_09_aud_must_contain_the_audience() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let mut without = claims();
    without.as_object_mut().unwrap().remove("aud");
    fixture.rejects(&signer.sign(&without), ValidateReason::Claims);
    fixture.rejects(
        &signer.sign(&claims_with("aud", json!([]))),
        ValidateReason::Claims,
    );
    fixture.rejects(
        &signer.sign(&claims_with("aud", json!("x"))),
        ValidateReason::Audience,
    );
    let svid = fixture.accepts(&signer.sign(&claims_with("aud", json!(["x", AUDIENCE]))));
    assert!(svid.audiences().eq(["x", AUDIENCE]));
    let svid = fixture.accepts(&signer.sign(&claims_with("aud", json!(AUDIENCE))));
    assert!(svid.audiences().eq([AUDIENCE]));
}

#[test]
fn jwt_12_exp_is_required() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let mut without = claims();
    without.as_object_mut().unwrap().remove("exp");
    fixture.rejects(&signer.sign(&without), ValidateReason::Claims);
    let svid = fixture.accepts(&signer.token());
    assert_eq!(svid.expires_at(), UnixTime::from_secs(NOW + 300));
    // The lifetime is unlimited, unless a limit is set.
    let hour = std::time::Duration::from_secs(3600);
    let limited = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.max_lifetime(Some(hour))
    });
    let life = |iat: Option<i64>, exp: i64| {
        let mut claims = claims_with("exp", json!(exp));
        claims.as_object_mut().unwrap().remove("iat");
        if let Some(iat) = iat {
            claims["iat"] = json!(iat);
        }
        signer.sign(&claims)
    };
    for (iat, exp, fits) in [
        (Some(NOW), NOW + 3600, true),
        (Some(NOW), NOW + 3601, false),
        (Some(NOW - 3000), NOW + 601, false),
        (None, NOW + 3610, true),
        (None, NOW + 3611, false),
        (Some(NOW + 1000), NOW + 3610, true),
        (Some(NOW + 1000), NOW + 3611, false),
    ] {
        if fits {
            limited.accepts(&life(iat, exp));
        } else {
            limited.rejects(&life(iat, exp), ValidateReason::Claims);
        }
        fixture.accepts(&life(iat, exp));
    }
}

#[test]
fn jwt_13_token_expires_at_exp() {
    // RFC 7519 section 4.1.4: "on or after".
    let signer = es256();
    let exact = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.leeway(std::time::Duration::ZERO)
    });
    exact.accepts(&signer.sign(&claims_with("exp", json!(NOW + 1))));
    exact.rejects(
        &signer.sign(&claims_with("exp", json!(NOW))),
        ValidateReason::Expired,
    );
}

#[test]
fn jwt_14_default_leeway_is_ten_seconds() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    assert_eq!(fixture.warm.leeway().as_secs(), 10);
    fixture.accepts(&signer.sign(&claims_with("exp", json!(NOW - 9))));
    fixture.rejects(
        &signer.sign(&claims_with("exp", json!(NOW - 10))),
        ValidateReason::Expired,
    );
}

#[test]
fn jwt_15_validator_needs_an_audience() {
    let builder = || Validator::builder(Swappable::new(JwtBundleSet::default()));
    assert_eq!(
        builder().build().unwrap_err(),
        BuildValidatorError::NoAudience
    );
    let empty = builder().audience("").build();
    assert_eq!(empty.unwrap_err(), BuildValidatorError::EmptyAudience);
    let two = builder().audiences(["a", "b"]).build().unwrap();
    assert!(two.audiences().eq(["a", "b"]));
}

#[test]
fn jwt_16_other_claims_are_kept() {
    #[derive(serde::Deserialize)]
    struct Mine {
        team: String,
        big: u64,
    }
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let mut claims = claims_with("team", json!("payments"));
    claims["big"] = json!(9_007_199_254_740_993_u64);
    let svid = fixture.accepts(&signer.sign(&claims));
    let mine: Mine = svid.claims().unwrap();
    assert_eq!(
        (mine.team.as_str(), mine.big),
        ("payments", 9_007_199_254_740_993)
    );
    let error = svid.claims::<Vec<u8>>().unwrap_err();
    assert!(!error.to_string().contains("payments"));
}

#[test]
fn jwt_17_nbf_is_checked_but_not_iat_iss_jti() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let nbf = |nbf: i64| signer.sign(&claims_with("nbf", json!(nbf)));
    fixture.accepts(&nbf(NOW + 10));
    fixture.rejects(&nbf(NOW + 11), ValidateReason::NotYetValid);
    fixture.accepts(&signer.sign(&claims_with("iat", json!(NOW + 10_000))));
    fixture.accepts(&signer.sign(&claims_with("iss", json!(7))));
    fixture.accepts(&signer.sign(&claims_with("jti", json!([]))));
    // The same token again: `jti` is not tracked.
    let token = signer.sign(&claims_with("jti", json!("once")));
    fixture.accepts(&token);
    fixture.accepts(&token);
}

#[test]
fn jwt_20_spiffe_bundle_marks_jwt_keys() {
    let bundle = read_spiffe(&json!({"keys": [jwk_with("use", json!("jwt-svid"))]}));
    assert_eq!(bundle.len(), 1);
    let mut unnamed = jwk_with("use", json!("jwt-svid"));
    unnamed.as_object_mut().unwrap().remove("kid");
    let bundle = read_spiffe(&json!({"keys": [unnamed]}));
    assert_eq!(bundle.ignored()[0].reason(), IgnoredReason::KeyId);
}

#[test]
fn tb_08_ignored_keys_are_reported_within_limits() {
    let invalid = vec![json!(1); 100_000];
    let mut keys = vec![es256().jwk()];
    keys.extend(invalid);
    let bundle = read(&json!({"keys": keys}));
    assert_eq!((bundle.len(), bundle.ignored().len()), (1, 256));
}

#[test]
fn jwt_21_only_jwt_entries_are_used() {
    for other in [
        json!("x509-svid"),
        json!("wit-svid"),
        json!("sig"),
        json!("JWT-SVID"),
        json!(""),
        Value::Null,
    ] {
        let bundle = read_spiffe(&json!({"keys": [jwk_with("use", other)]}));
        assert_eq!(bundle.ignored()[0].reason(), IgnoredReason::Use);
        let fixture = Fixture::with(JwtBundleSet::from_iter([bundle]), |b| b);
        fixture.rejects(&es256().token(), ValidateReason::KeyUnknown);
    }
}

#[test]
fn tb_01_bundle_is_selected_by_trust_domain_of_sub() {
    let signer = es256();
    let fixture = Fixture::with(set_of("other.test", &[signer.jwk()]), |b| b);
    fixture.rejects(&signer.token(), ValidateReason::TrustDomainUnknown);
    fixture.accepts(&signer.sign(&claims_with("sub", json!("spiffe://other.test/web"))));
}

#[test]
fn tb_03_a_bundle_is_a_jwk_set() {
    let td = || TrustDomain::parse("td.test").unwrap();
    for none in [
        "",
        " ",
        "[]",
        "null",
        "{}",
        "7",
        "{\"keys\":[]",
        "\u{feff}{\"keys\":[]}",
        "{\"keys\":[]}x",
    ] {
        let error = JwtBundle::from_jwks(td(), none.as_bytes()).unwrap_err();
        assert!(
            error.to_string().starts_with("not a JWK Set"),
            "{none}: {error}"
        );
    }
    assert!(JwtBundle::from_jwks(td(), b"{\"keys\":[\"\xff\"]}").is_err());
    assert!(
        JwtBundle::from_jwks(td(), b" {\"keys\" : [ ] } ")
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a28_errors_do_not_quote_unreadable_sets() {
    let td = || TrustDomain::parse("td.test").unwrap();
    let long = "x".repeat(1 << 20);
    for document in [
        format!("\"eyJhbGciOiJFUzI1NiJ9.{long}\""),
        format!("{{\"keys\":\"eyJhbGciOiJFUzI1NiJ9.{long}\"}}"),
        format!("{{\"keys\":[],\"eyJ{long}"),
    ] {
        let error = JwtBundle::from_jwks(td(), document.as_bytes()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("eyJ") && text.len() < 500, "{text}");
        assert!(text.contains("line 1"), "{text}");
    }
}

#[test]
fn tb_04_other_members_are_ignored() {
    let set = json!({"x": {"keys": 7}, "Keys": [], "keys": [es256().jwk()], "y": null});
    assert_eq!(read(&set).len(), 1);
}

#[test]
fn tb_05_any_sequence_number_is_accepted() {
    for number in [json!(0), json!(u64::MAX), json!("x"), json!(-1)] {
        assert_eq!(
            read(&json!({"spiffe_sequence": number, "keys": [es256().jwk()]})).len(),
            1
        );
    }
}

#[test]
fn tb_06_any_refresh_hint_is_accepted() {
    for hint in [json!(0), json!(300), json!("x")] {
        assert_eq!(
            read(&json!({"spiffe_refresh_hint": hint, "keys": [es256().jwk()]})).len(),
            1
        );
    }
}

#[test]
fn tb_07_keys_is_one_list() {
    let td = || TrustDomain::parse("td.test").unwrap();
    for none in [
        r#"{"keys":null,"keys":[]}"#,
        r#"{"keys":null,"keys":null}"#,
        r#"{"keys":{}}"#,
        r#"{"keys":"x"}"#,
        r#"{"keys":[],"keys":[]}"#,
        r#"{"Keys":[]}"#,
    ] {
        assert!(
            JwtBundle::from_jwks(td(), none.as_bytes()).is_err(),
            "{none}"
        );
    }
}

#[test]
fn tb_08_only_unknown_elements_are_ignored() {
    let unknown = [
        jwk_with("kty", json!("AKP")),
        jwk_with("use", json!("unknown")),
        json!(7),
    ];
    for element in unknown {
        let bundle = read(&json!({"keys": [element, es256().jwk()]}));
        assert_eq!((bundle.len(), bundle.ignored().len()), (1, 1));
    }
}

#[test]
fn tb_09_without_usable_keys_every_token_is_rejected() {
    let signer = es256();
    for keys in [vec![], vec![jwk_with("use", json!("x509-svid"))]] {
        let fixture = Fixture::with(set_of("td.test", &keys), |b| b);
        fixture.rejects(&signer.token(), ValidateReason::KeyUnknown);
        // This is not an error, and ends when a key is usable.
        fixture.source.set(Ok(keys_of(&[&signer])));
        fixture.accepts(&signer.token());
        fixture.source.set(Ok(set_of("td.test", &keys)));
        fixture.rejects(&signer.token(), ValidateReason::KeyUnknown);
    }
}

#[test]
fn tb_11_kty_is_required() {
    let mut without = es256().jwk();
    without.as_object_mut().unwrap().remove("kty");
    for element in [
        without,
        jwk_with("kty", json!("ec")),
        jwk_with("kty", json!(7)),
    ] {
        let bundle = read(&json!({"keys": [element]}));
        assert_eq!(bundle.ignored()[0].reason(), IgnoredReason::KeyType);
    }
}

#[test]
fn tb_12_use_is_required_in_a_spiffe_bundle() {
    let bundle = read_spiffe(&json!({"keys": [es256().jwk()]}));
    assert_eq!(bundle.ignored()[0].reason(), IgnoredReason::Use);
    // It may be missing in JWK Sets of the Workload API: SPIRE does not set it.
    assert_eq!(read(&json!({"keys": [es256().jwk()]})).len(), 1);
}

#[test]
fn tb_17_shared_key_works_for_both_domains() {
    let signer = es256();
    let fixture = Fixture::with(
        JwtBundleSet::from_iter([
            bundle("td.test", &[signer.jwk()]),
            bundle("other.test", &[signer.jwk()]),
        ]),
        |b| b,
    );
    let a = fixture.accepts(&signer.token());
    let b = fixture.accepts(&signer.sign(&claims_with("sub", json!("spiffe://other.test/web"))));
    assert_ne!(a.spiffe_id(), b.spiffe_id());
    assert_ne!(a.spiffe_id().trust_domain(), b.spiffe_id().trust_domain());
}

#[test]
fn wa_10_wa_32_unknown_trust_domain_is_rejected() {
    let signer = es256();
    let fixture = Fixture::with(JwtBundleSet::default(), |b| b);
    fixture.rejects(&signer.token(), ValidateReason::TrustDomainUnknown);
    fixture.source.set(Ok(keys_of(&[&signer])));
    fixture.accepts(&signer.token());
    fixture.source.set(Ok(JwtBundleSet::default()));
    fixture.rejects(&signer.token(), ValidateReason::TrustDomainUnknown);
}

#[test]
fn wa_26_trust_domain_is_an_id_or_a_name() {
    let id = TrustDomain::parse("spiffe://td.test").unwrap();
    let jwks = json!({"keys": [es256().jwk()]}).to_string();
    let bundle = JwtBundle::from_jwks(id, jwks.as_bytes()).unwrap();
    let fixture = Fixture::with(JwtBundleSet::from_iter([bundle]), |b| b);
    fixture.accepts(&es256().token());
}

#[test]
fn wa_27_keys_for_other_uses_are_ignored() {
    for other in ["x509-svid", "wit-svid", "sig", "enc", ""] {
        let bundle = read(&json!({"keys": [jwk_with("use", json!(other))]}));
        assert_eq!(bundle.ignored()[0].reason(), IgnoredReason::Use, "{other}");
    }
    assert_eq!(
        read(&json!({"keys": [jwk_with("use", json!("jwt-svid"))]})).len(),
        1
    );
}

#[test]
fn id_rules_apply_to_sub() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let at_most = format!("{SUBJECT}/{}", "x".repeat(2048 - SUBJECT.len() - 1));
    for legal in ["spiffe://td.test", "spiffe://td.test/A.b-c_1/...", &at_most] {
        fixture.accepts(&signer.sign(&claims_with("sub", json!(legal))));
    }
    for illegal in [
        "SPIFFE://td.test/web",
        "spiffe://TD.test/web",
        "spiffe://td.test/",
        "spiffe://td.test//web",
        "spiffe://td.test/../web",
        "spiffe://td.test/we%62",
        "spiffe://td.test/web?x",
        "spiffe://td.test/web#x",
        "spiffe://td.test:8443/web",
        "spiffe://me@td.test/web",
        "spiffe://td.test/web\n",
        "spiffe://\u{212a}.test/web",
        &format!("{at_most}x"),
        &format!("spiffe://{}/web", "a".repeat(256)),
    ] {
        let token = signer.sign(&claims_with("sub", json!(illegal)));
        fixture.rejects(&token, ValidateReason::Claims);
    }
}
