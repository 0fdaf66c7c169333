//! The attacks on validators of bearer tokens, each with the cases that are known of it, without a
//! cache and with a warm one.
//!
//! Those of transport (A18 to A20, A27), of logs (A28) and of the wait for keys (A23) have their
//! tests where those things stand, in the server's tests.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};

use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;
use aws_lc_rs::hmac;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower_spiffe::bundle::{CannotJudge, IgnoredReason, JwtBundleSet};
use tower_spiffe::svid::BuildValidatorError;
use tower_spiffe::{Algorithm, UnixTime, ValidateReason, Validator};

use crate::signer::{AUDIENCE, NOW, SUBJECT, Signer, base64, bundle, claims, claims_with, set_of};
use crate::support::{Fixture, es256, keys_of, rs256};

fn warm_fixture(signers: &[&Signer]) -> Fixture {
    let fixture = Fixture::new(signers);
    for signer in signers {
        fixture.accepts(&signer.token());
    }
    fixture
}

/// A good token of this signer, its header another.
fn with_header(signer: &Signer, header: &Value) -> String {
    signer.sign_texts(&header.to_string(), &claims().to_string())
}

fn header_with(signer: &Signer, name: &str, value: Value) -> Value {
    let mut header = signer.header();
    header[name] = value;
    header
}

/// As `openssl` writes it.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der).into_bytes();
    let lines = text
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap());
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

#[test]
fn a01_a_public_key_is_no_hmac_secret() {
    let (ec, rsa) = (es256(), rs256());
    let fixture = warm_fixture(&[&ec, &rsa]);
    for signer in [&ec, &rsa] {
        let of_its_type = if signer.algorithm == Algorithm::RS256 {
            "RSA PUBLIC KEY"
        } else {
            "EC PUBLIC KEY"
        };
        let secrets = [
            signer.public(),
            signer.public()[1..33].to_vec(),
            signer.spki(),
            pem("PUBLIC KEY", &signer.spki()).into_bytes(),
            pem("PUBLIC KEY", &signer.spki()).trim_end().into(),
            pem(of_its_type, &signer.public()).into_bytes(),
            signer.jwk().to_string().into_bytes(),
            base64(signer.public()).into_bytes(),
            base64(signer.spki()).into_bytes(),
            Vec::new(),
        ];
        for secret in secrets {
            for (name, algorithm) in [
                ("HS256", hmac::HMAC_SHA256),
                ("HS384", hmac::HMAC_SHA384),
                ("HS512", hmac::HMAC_SHA512),
            ] {
                let header = header_with(signer, "alg", json!(name)).to_string();
                let signed = format!("{}.{}", base64(header), base64(claims().to_string()));
                let tag = hmac::sign(&hmac::Key::new(algorithm, &secret), signed.as_bytes());
                let token = format!("{signed}.{}", base64(tag));
                fixture.refuses(&token, ValidateReason::Algorithm);
            }
        }
    }
    // The type has no place for them.
    assert!("HS256".parse::<Algorithm>().is_err());
    assert_eq!(Algorithm::ALL.len(), 9);
}

#[test]
fn a02_no_algorithm_is_none() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let names = [
        json!("none"),
        json!("None"),
        json!("nOnE"),
        json!("NONE"),
        json!(""),
        Value::Null,
        json!([]),
    ];
    for name in names {
        let header = header_with(&signer, "alg", name);
        let token = with_header(&signer, &header);
        fixture.refuses(&token, ValidateReason::Algorithm);
        let (signed, _) = token.rsplit_once('.').unwrap();
        fixture.refuses(&format!("{signed}."), ValidateReason::Malformed);
        let good = signer.token();
        let (_, signature) = good.rsplit_once('.').unwrap();
        fixture.refuses(&format!("{signed}.{signature}"), ValidateReason::Algorithm);
    }
    let mut header = signer.header();
    header.as_object_mut().unwrap().remove("alg");
    fixture.refuses(&with_header(&signer, &header), ValidateReason::Algorithm);
}

#[test]
fn a03_only_the_algorithm_of_the_key_passes() {
    let all: Vec<Signer> = Algorithm::ALL
        .into_iter()
        .map(Signer::for_algorithm)
        .collect();
    let fixture = Fixture::new(&[&all[0], &all[3], &all[4], &all[5]]);
    for signer in &all {
        fixture.accepts(&signer.token());
        for other in Algorithm::ALL {
            let fits = |a: Algorithm| {
                if a.as_str().starts_with("ES") {
                    a.as_str()
                } else {
                    "RSA"
                }
            };
            let header = header_with(signer, "alg", json!(other.as_str()));
            let token = with_header(signer, &header);
            if other == signer.algorithm {
                fixture.accepts(&token);
            } else if fits(other) == fits(signer.algorithm) {
                fixture.refuses(&token, ValidateReason::Signature);
            } else {
                fixture.refuses(&token, ValidateReason::KeyUnfit);
            }
        }
    }
    let ps256 = Signer::for_algorithm(Algorithm::PS256);
    let mut jwk = ps256.jwk();
    jwk["alg"] = json!("RS256");
    fixture.source.set(Ok(set_of("td.test", &[jwk])));
    fixture.refuses(&ps256.token(), ValidateReason::KeyUnfit);
    fixture.accepts(&rs256().token());
}

#[test]
fn a04_a_kid_is_an_opaque_name_within_one_trust_domain() {
    let signer = es256();
    let elsewhere = es256().with_key_id("elsewhere");
    let fixture = Fixture::with(
        JwtBundleSet::from_iter([
            bundle("td.test", &[signer.jwk()]),
            bundle("other.test", &[elsewhere.jwk()]),
        ]),
        |builder| builder,
    );
    fixture.accepts(&signer.token());
    for unknown in [
        "../../x",
        "' or 1=1",
        "P256",
        "p256 ",
        "p25",
        "*",
        "a\r\nb",
        "p256\0",
        "elsewhere",
    ] {
        let token = es256().with_key_id(unknown).token();
        fixture.refuses(&token, ValidateReason::KeyUnknown);
        let error = fixture.cold.validate(&token).unwrap_err();
        let shown = error.key_id().unwrap();
        assert!(shown.bytes().all(|b| (b' '..=b'~').contains(&b)), "{shown}");
    }
    for unfit in [
        json!(""),
        json!(7),
        Value::Null,
        json!(["p256"]),
        json!("k".repeat(1025)),
    ] {
        let header = header_with(&signer, "kid", unfit);
        fixture.refuses(&with_header(&signer, &header), ValidateReason::Header);
    }
    let long = es256().with_key_id(&"k".repeat(5000)).token();
    fixture.refuses(&long, ValidateReason::Header);
    // 8 KiB of it: too long for the usual limit, and for a header where that is raised.
    let longer = es256().with_key_id(&"k".repeat(8192)).token();
    fixture.refuses(&longer, ValidateReason::TooLong);
    let wide = Fixture::with(keys_of(&[&signer]), |b| b.max_token_len(1 << 20));
    wide.refuses(&longer, ValidateReason::Header);
    // What is shown of a name is bounded and escaped.
    let odd = es256().with_key_id(&"\u{1b}[31m\n\"".repeat(100)).token();
    let error = fixture.cold.validate(&odd).unwrap_err();
    assert!(error.key_id().unwrap().len() <= 64);
    assert!(!format!("{error:?} {error}").contains(['\n', '\u{1b}']));
}

#[test]
fn a05_a_key_that_the_token_brings_is_not_looked_at() {
    let (trusted, evil) = (es256(), Signer::new("evil-p256", Algorithm::ES256));
    let fixture = warm_fixture(&[&trusted]);
    let lax = Fixture::with(keys_of(&[&trusted]), |b| b.allow_unknown_headers(true));
    // Somebody listens there, so that a look at it would be seen.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    for (name, value) in [
        ("jwk", evil.jwk()),
        ("jwk", trusted.jwk()),
        ("jku", json!(format!("http://{at}/jwks.json"))),
        ("jku", json!(format!("https://{at}/jwks.json"))),
        ("x5u", json!(format!("http://{at}/x.pem"))),
        ("x5u", json!(format!("https://{at}/x.pem"))),
        ("x5c", json!(["AAAA"])),
        ("x5t", json!("AAAA")),
        ("x5t#S256", json!("AAAA")),
        ("x5t#of-tomorrow", json!("AAAA")),
    ] {
        for signer in [&evil, &trusted] {
            let mut header = header_with(signer, name, value.clone());
            header["kid"] = json!("p256");
            let token = with_header(signer, &header);
            fixture.refuses(&token, ValidateReason::Header);
            lax.refuses(&token, ValidateReason::Header);
        }
    }
    let nobody = listener.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    // Who does look is seen.
    drop(TcpStream::connect(at).unwrap());
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap();
    // Any other field is refused as well, unless it is asked for that it passes.
    for name in ["cty", "zip", "private", "Alg", ""] {
        let token = with_header(&trusted, &header_with(&trusted, name, json!("x")));
        fixture.refuses(&token, ValidateReason::Header);
        lax.accepts(&token);
    }
}

#[test]
fn a06_crit_is_refused_whatever_it_says() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let lax = Fixture::with(keys_of(&[&signer]), |b| b.allow_unknown_headers(true));
    for value in [
        json!(["x"]),
        json!([]),
        json!("x"),
        json!(["exp"]),
        json!(["b64"]),
        Value::Null,
    ] {
        let token = with_header(&signer, &header_with(&signer, "crit", value));
        fixture.refuses(&token, ValidateReason::Header);
        lax.refuses(&token, ValidateReason::Header);
    }
}

#[test]
fn a07_an_unencoded_payload_is_refused() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let header = header_with(&signer, "b64", json!(false)).to_string();
    let encoded = signer.sign_texts(&header, &claims().to_string());
    fixture.refuses(&encoded, ValidateReason::Header);
    let unencoded = signer.sign_parts(&base64(&header), &claims().to_string());
    assert!(fixture.judge(&unencoded).is_err());
    let (start, signature) = encoded.rsplit_once('.').unwrap();
    let (header, _) = start.split_once('.').unwrap();
    fixture.refuses(&format!("{header}..{signature}"), ValidateReason::Malformed);
}

#[test]
fn a08_a_huge_token_is_refused_unread() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    for huge in [
        ".".repeat(1 << 20),
        "A".repeat(1 << 20),
        "eyJ".repeat(1 << 18),
        "[".repeat(1 << 14),
        "a.b.c".repeat(1 << 18),
    ] {
        fixture.refuses(&huge, ValidateReason::TooLong);
    }
    fixture.refuses(&".".repeat(8192), ValidateReason::Malformed);
    fixture.refuses(&".".repeat(8193), ValidateReason::TooLong);
    let wide = Fixture::with(keys_of(&[&signer]), |b| b.max_token_len(1 << 20));
    wide.refuses(&".".repeat(1 << 20), ValidateReason::Malformed);
}

#[test]
fn a09_depth_and_numbers_break_nothing() {
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
    wide.refuses(
        &signer.sign_texts(&header, &unclosed),
        ValidateReason::Claims,
    );
    wide.refuses(
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
        wide.refuses(&exp(past), ValidateReason::Expired);
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
        wide.refuses(&exp(none), ValidateReason::Claims);
    }
}

#[test]
fn a10_an_ecdsa_signature_is_two_numbers_of_full_length() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let token = signer.token();
    let (signed, _) = token.rsplit_once('.').unwrap();
    let order: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let good = signer.sign_bytes(signed.as_bytes());
    let (r, s) = good.split_at(32);
    let zero = [0; 32];
    let der = {
        let integer = |n: &[u8]| [&[2, 33, 0], n].concat();
        let both = [integer(r), integer(s)].concat();
        [&[0x30, u8::try_from(both.len()).unwrap()], &both[..]].concat()
    };
    for bad in [
        [zero, zero].concat(),
        [&zero, s].concat(),
        [r, &zero].concat(),
        [&order, s].concat(),
        [r, &order].concat(),
        [order, order].concat(),
        der,
        vec![0],
        good[..63].to_vec(),
        [&good[..], &[0]].concat(),
        [&[0], &good[..]].concat(),
        [&[0], r, &[0], s].concat(),
        vec![0; 72],
        [0x30, 6, 2, 1, 0, 2, 1, 0].to_vec(),
        [&good[..], &good[..]].concat(),
        vec![0xff; 1100],
    ] {
        fixture.refuses(
            &format!("{signed}.{}", base64(bad)),
            ValidateReason::Signature,
        );
    }
    fixture.refuses(&format!("{signed}."), ValidateReason::Malformed);
    fixture.accepts(&format!("{signed}.{}", base64(good)));
}

#[test]
fn a11_two_spellings_of_one_signature_are_two_tokens_with_one_verdict() {
    // Both are valid by the standard. Nothing is ever decided by the token's text: the cache holds
    // no refusals, and what ends one ends the other.
    let cases = crate::signer::VECTORS["cases"].as_array().unwrap();
    let find = |id: &str| cases.iter().find(|case| case["id"] == id).unwrap();
    let (low, high) = (find("ecdsa-low-s"), find("ecdsa-high-s"));
    assert_ne!(low["token"], high["token"]);
    let source = crate::support::Swappable::new(set_of("td.test", &[es256().jwk()]));
    let clock = crate::support::HandClock::at(low["now"].as_i64().unwrap());
    let audiences = low["audience"].as_array().unwrap().iter();
    let validator = Validator::builder(source.clone())
        .audiences(audiences.map(|a| a.as_str().unwrap()))
        .clock(clock)
        .build()
        .unwrap();
    for case in [low, high, low, high] {
        validator.validate(case["token"].as_str().unwrap()).unwrap();
    }
    source.set(Ok(set_of("td.test", &[])));
    for case in [low, high] {
        let error = validator
            .validate(case["token"].as_str().unwrap())
            .unwrap_err();
        assert_eq!(error.reason(), ValidateReason::KeyUnknown);
    }
}

#[test]
fn a12_each_part_is_base64url_with_one_spelling() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    // Texts whose encoding leaves bits over.
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
            // Signed over the text as it stands, so that nothing but the text is wrong.
            fixture.refuses(&signer.sign_parts(&h, &p), ValidateReason::Malformed);
        }
        let token = signer.sign_parts(&header, &payload);
        fixture.refuses(&format!("{token}{odd}"), ValidateReason::Malformed);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        fixture.refuses(
            &format!("{signed}.{odd}{signature}"),
            ValidateReason::Malformed,
        );
    }
    // Another last letter with the same bytes in it.
    let next = |text: &str| {
        let last = text.chars().last().unwrap();
        let other = char::from_u32(last as u32 + 1).unwrap();
        format!("{}{other}", &text[..text.len() - 1])
    };
    let token = signer.token();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    assert_eq!(signature.len() % 4, 2);
    fixture.refuses(
        &format!("{signed}.{}", next(signature)),
        ValidateReason::Malformed,
    );
    for text in [&header, &payload] {
        if text.len() % 4 != 0 {
            let spelt =
                signer
                    .sign_parts(&header, &payload)
                    .replacen(text.as_str(), &next(text), 1);
            fixture.refuses(&spelt, ValidateReason::Malformed);
        }
    }
    // One letter more is no byte.
    let long = format!("{signed}.{signature}AAA");
    fixture.refuses(&long, ValidateReason::Malformed);
}

#[test]
fn a13_there_are_three_parts() {
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
        fixture.refuses(&bad, ValidateReason::Malformed);
    }
}

#[test]
fn a14_no_name_comes_twice() {
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
            fixture.refuses(&token, ValidateReason::Header);
            lax.refuses(&token, ValidateReason::Header);
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
            fixture.refuses(&token, ValidateReason::Claims);
        }
    }
    // Many names, the last of them the first again.
    let mut many = claims();
    for n in 0..200 {
        many[format!("c{n}")] = json!(n);
    }
    let header = header.to_string();
    fixture.accepts(&signer.sign_texts(&header, &many.to_string()));
    for name in ["\"c0\"", "\"c199\"", "\"\\u0063150\""] {
        let payload = twice(&many, name, &json!(0), false);
        fixture.refuses(
            &signer.sign_texts(&header, &payload),
            ValidateReason::Claims,
        );
    }
}

#[test]
fn a15_a_claim_of_a_wrong_type_is_not_absent() {
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
            fixture.refuses(&token, ValidateReason::Claims);
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
        fixture.refuses(
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
        fixture.refuses(
            &signer.sign(&claims_with("sub", value)),
            ValidateReason::Claims,
        );
    }
    for name in ["sub", "aud", "exp"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        fixture.refuses(&signer.sign(&claims), ValidateReason::Claims);
    }
}

#[test]
fn a16_an_audience_is_compared_byte_for_byte() {
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
        fixture.refuses(
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
    unicode.refuses(
        &signer.sign(&claims_with("aud", json!("cafe\u{301}"))),
        ValidateReason::Audience,
    );
    // A validator without a name would take every token of the trust domain.
    let source = || crate::support::Swappable::new(JwtBundleSet::default());
    let build = |audiences: &[&str]| {
        Validator::builder(source())
            .audiences(audiences.iter().copied())
            .build()
            .unwrap_err()
    };
    assert_eq!(build(&[]), BuildValidatorError::NoAudience);
    assert_eq!(build(&["a", ""]), BuildValidatorError::EmptyAudience);
}

#[test]
fn a17_same_kid_in_two_trust_domains_is_two_keys() {
    let (ours, theirs) = (
        es256(),
        Signer::new("p256-b", Algorithm::ES256).with_key_id("p256"),
    );
    let fixture = Fixture::with(
        JwtBundleSet::from_iter([
            bundle("td.test", &[ours.jwk()]),
            bundle("other.test", &[theirs.jwk()]),
        ]),
        |builder| builder,
    );
    let of = |trust_domain: &str| claims_with("sub", json!(format!("spiffe://{trust_domain}/web")));
    let (a, b) = (of("td.test"), of("other.test"));
    fixture.refuses(&ours.sign(&b), ValidateReason::Signature);
    fixture.refuses(&theirs.sign(&a), ValidateReason::Signature);
    fixture.accepts(&ours.sign(&a));
    fixture.accepts(&theirs.sign(&b));
    fixture.refuses(&ours.sign(&b), ValidateReason::Signature);
    fixture.refuses(&theirs.sign(&a), ValidateReason::Signature);
    // Whatever else in the token names a trust domain has no say.
    let mut issued = b.clone();
    issued["iss"] = json!("spiffe://td.test");
    fixture.refuses(&ours.sign(&issued), ValidateReason::Signature);
    fixture.refuses(
        &ours.sign(&of("third.test")),
        ValidateReason::TrustDomainUnknown,
    );
}

/// So many cases of each: 4096, or what `PROPTEST_CASES` says. Those of the row are
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
    fn a21_no_text_makes_it_panic_or_pass(token in any::<String>()) {
        prop_assert!(shared().judge(&token).is_err());
    }

    #[test]
    fn a21_no_three_parts_make_it_panic_or_pass(
        header in any::<Vec<u8>>(), payload in any::<Vec<u8>>(), signature in any::<Vec<u8>>(),
    ) {
        let token = format!("{}.{}.{}", base64(header), base64(payload), base64(signature));
        prop_assert!(shared().judge(&token).is_err());
    }

    #[test]
    fn a21_no_mended_token_passes(at in 0_usize..300, byte in any::<u8>()) {
        let mut token = token_of_shared().clone().into_bytes();
        let at = at % token.len();
        prop_assume!(token[at] != byte);
        token[at] = byte;
        if let Ok(token) = String::from_utf8(token) {
            prop_assert!(shared().judge(&token).is_err());
        }
    }

    #[test]
    fn a21_no_json_in_a_payload_makes_it_panic(text in "[\\[\\]{}\",:0-9eE.+a-z\\\\ u-]{0,60}") {
        let token = es256().sign_texts(&es256().header().to_string(), &text);
        prop_assert!(shared().judge(&token).is_err());
    }

    #[test]
    fn a21_no_document_makes_the_reader_of_keys_panic(text in any::<Vec<u8>>()) {
        let trust_domain = tower_spiffe::TrustDomain::parse("td.test").unwrap();
        let _ = tower_spiffe::JwtBundle::from_jwks(trust_domain, &text);
    }

    #[test]
    fn a21_no_element_makes_the_reader_of_keys_panic(
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

#[test]
fn a22_a_warm_cache_lets_nothing_through() {
    let signer = es256();
    let other = Signer::new("p256-b", Algorithm::ES256);
    let fixture = warm_fixture(&[&signer]);
    let token = signer.token();
    fixture.accepts(&token);
    let hits = fixture.warm.cache_stats().hits;
    fixture.accepts(&token);
    assert!(fixture.warm.cache_stats().hits > hits, "it is warm");

    // Another signature under the same header and payload; one byte flipped; one cut.
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let evil = base64(other.sign_bytes(signed.as_bytes()));
    fixture.refuses(&format!("{signed}.{evil}"), ValidateReason::Signature);
    let mut flipped = signature.to_owned().into_bytes();
    flipped[10] = if flipped[10] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    fixture.refuses(&format!("{signed}.{flipped}"), ValidateReason::Signature);
    let cut = base64(&signer.sign_bytes(signed.as_bytes())[..60]);
    fixture.refuses(&format!("{signed}.{cut}"), ValidateReason::Signature);

    // Another validator does not see this one's cache.
    let stranger = Validator::builder(fixture.source.clone())
        .audience("spiffe://td.test/other")
        .clock(fixture.clock.clone())
        .build()
        .unwrap();
    assert_eq!(
        stranger.validate(&token).unwrap_err().reason(),
        ValidateReason::Audience
    );

    // The clock goes on, and back.
    fixture.clock.set(UnixTime::from_secs(NOW + 310));
    fixture.refuses(&token, ValidateReason::Expired);
    fixture.clock.set(UnixTime::from_secs(NOW));
    fixture.accepts(&token);

    // The key goes, comes back, is another under the same name, of another type, the trust domain
    // goes, the source cannot judge.
    let same_name = other.jwk();
    let mut same_name_other_key = same_name.clone();
    same_name_other_key["kid"] = json!("p256");
    let rsa = rs256().with_key_id("p256");
    for (set, reason) in [
        (Ok(keys_of(&[&other])), ValidateReason::KeyUnknown),
        (
            Ok(set_of("td.test", &[same_name_other_key])),
            ValidateReason::Signature,
        ),
        (Ok(keys_of(&[&rsa])), ValidateReason::KeyUnfit),
        (Ok(set_of("td.test", &[])), ValidateReason::KeyUnknown),
        (
            Ok(JwtBundleSet::default()),
            ValidateReason::TrustDomainUnknown,
        ),
        (
            Err(CannotJudge::Withdrawn),
            ValidateReason::CannotJudge(CannotJudge::Withdrawn),
        ),
        (
            Err(CannotJudge::Closed),
            ValidateReason::CannotJudge(CannotJudge::Closed),
        ),
    ] {
        fixture.source.set(set);
        fixture.refuses(&token, reason);
        fixture.source.set(Ok(keys_of(&[&signer])));
        fixture.accepts(&token);
    }
    // A key whose JWK now forbids what it allowed.
    let mut restricted = signer.jwk();
    restricted["key_ops"] = json!(["sign"]);
    fixture.source.set(Ok(set_of("td.test", &[restricted])));
    fixture.refuses(&token, ValidateReason::KeyUnfit);
}

#[test]
fn a24_time_saturates_and_never_wraps() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let exp = |exp: i64| signer.sign(&claims_with("exp", json!(exp)));
    let nbf = |nbf: i64| signer.sign(&claims_with("nbf", json!(nbf)));
    // 10 s of leeway.
    for (token, refused) in [
        (exp(NOW + 1), None),
        (exp(NOW), None),
        (exp(NOW - 9), None),
        (exp(NOW - 10), Some(ValidateReason::Expired)),
        (exp(i64::MAX), None),
        (exp(i64::MIN), Some(ValidateReason::Expired)),
        (nbf(NOW + 10), None),
        (nbf(NOW + 11), Some(ValidateReason::NotYetValid)),
        (nbf(i64::MIN), None),
        (nbf(i64::MAX), Some(ValidateReason::NotYetValid)),
        (signer.sign(&claims_with("iat", json!(NOW + 9999))), None),
        (signer.sign(&claims_with("iat", json!(i64::MAX))), None),
    ] {
        match refused {
            None => drop(fixture.accepts(&token)),
            Some(reason) => fixture.refuses(&token, reason),
        }
    }
    // Between two seconds.
    fixture.clock.set(UnixTime::new(NOW + 9, 999_999_999));
    fixture.accepts(&exp(NOW));
    fixture.clock.set(UnixTime::new(NOW + 10, 0));
    fixture.refuses(&exp(NOW), ValidateReason::Expired);
    // A clock before 1970, at both ends, and one that steps back.
    let far = exp(i64::MAX - 1000);
    for now in [
        UnixTime::MIN,
        UnixTime::from_secs(-1),
        UnixTime::from_secs(0),
    ] {
        fixture.clock.set(now);
        fixture.accepts(&far);
        fixture.accepts(&exp(NOW));
    }
    fixture.clock.set(UnixTime::MAX);
    fixture.refuses(&far, ValidateReason::Expired);
    fixture.clock.set(UnixTime::from_secs(NOW));
    fixture.accepts(&far);
    // A leeway that is no leeway any more is refused when the validator is built.
    for leeway in [
        std::time::Duration::from_secs(301),
        std::time::Duration::MAX,
    ] {
        let built = Validator::builder(fixture.source.clone())
            .audience("a")
            .leeway(leeway)
            .build();
        assert_eq!(built.unwrap_err(), BuildValidatorError::LeewayTooLong);
    }
}

/// What is compared with a token is public, so the time that a comparison takes tells nothing. That
/// stays so as long as no secret can come in: neither as an algorithm nor as a key.
#[test]
fn a25_there_is_no_secret_to_compare() {
    for algorithm in Algorithm::ALL {
        assert!(["RS", "ES", "PS"].contains(&&algorithm.as_str()[..2]));
    }
    let secret = [7; 32];
    for name in ["HS256", "HS384", "HS512"] {
        let mut oct = json!({"kty": "oct", "kid": "p256", "k": base64(secret)});
        for alg in [Value::Null, json!(name)] {
            if !alg.is_null() {
                oct["alg"] = alg;
            }
            let bundle = bundle("td.test", &[oct.clone()]);
            assert!(bundle.is_empty());
            assert_eq!(bundle.ignored().len(), 1);
            let fixture = Fixture::with(JwtBundleSet::from_iter([bundle]), |b| b);
            let header = header_with(&es256(), "alg", json!(name)).to_string();
            let signed = format!("{}.{}", base64(header), base64(claims().to_string()));
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let tag = hmac::sign(&key, signed.as_bytes());
            let token = format!("{signed}.{}", base64(tag));
            fixture.refuses(&token, ValidateReason::Algorithm);
            // Nor is it a key for the algorithms that there are.
            fixture.refuses(&es256().token(), ValidateReason::KeyUnknown);
        }
    }
}

#[test]
fn a26_no_token_makes_a_fault_of_ours() {
    let fixture = warm_fixture(&[&es256()]);
    for case in crate::signer::VECTORS["cases"].as_array().unwrap() {
        if let Some(token) = case["token"].as_str()
            && let Err(reason) = fixture.judge(token)
        {
            assert!(
                !matches!(reason, ValidateReason::CannotJudge(_)),
                "{}",
                case["id"]
            );
        }
    }
    // Only our own side can make one, and only for what would otherwise be asked of it.
    fixture.source.set(Err(CannotJudge::NotReady));
    fixture.refuses(
        &es256().token(),
        ValidateReason::CannotJudge(CannotJudge::NotReady),
    );
    fixture.refuses("rubbish", ValidateReason::Malformed);
    let expired = es256().sign(&claims_with("exp", json!(NOW - 99)));
    fixture.refuses(&expired, ValidateReason::Expired);
}

#[test]
fn a29_a_bad_element_costs_itself_and_no_other() {
    let good = es256();
    let with = |name: &str, value: Value| {
        let mut jwk = Signer::new("p256-b", Algorithm::ES256)
            .with_key_id("x")
            .jwk();
        jwk[name] = value;
        jwk
    };
    let rsa = |n: &[u8], e: &str| json!({"kty": "RSA", "kid": "x", "n": base64(n), "e": e});
    for (element, reason) in [
        (with("use", json!("x509-svid")), IgnoredReason::Use),
        (with("use", json!("sig")), IgnoredReason::Use),
        (with("use", Value::Null), IgnoredReason::Use),
        (with("d", json!("AAAA")), IgnoredReason::PrivateKey),
        (with("k", Value::Null), IgnoredReason::PrivateKey),
        (with("kty", json!("oct")), IgnoredReason::KeyType),
        (with("kty", json!("AKP")), IgnoredReason::KeyType),
        (with("crv", json!("secp256k1")), IgnoredReason::Curve),
        (with("crv", json!("P-384")), IgnoredReason::Encoding),
        (with("x", json!("AA==")), IgnoredReason::Encoding),
        (with("x", json!(base64([1; 32]))), IgnoredReason::NotOnCurve),
        (with("kid", json!("")), IgnoredReason::KeyId),
        (with("kid", json!(7)), IgnoredReason::KeyId),
        (rsa(&[0xff; 128], "AQAB"), IgnoredReason::Modulus),
        (
            rsa(&[&[0x7f], &[0xff; 255][..]].concat(), "AQAB"),
            IgnoredReason::Modulus,
        ),
        (rsa(&[0xff; 1025], "AQAB"), IgnoredReason::Modulus),
        (
            rsa(&[&[0xff; 255][..], &[0xfe]].concat(), "AQAB"),
            IgnoredReason::Modulus,
        ),
        (rsa(&[0xff; 256], "AQ"), IgnoredReason::Exponent),
        (rsa(&[0xff; 256], "Ag"), IgnoredReason::Exponent),
        (rsa(&[0xff; 256], "AA"), IgnoredReason::Exponent),
        (rsa(&[0xff; 256], "_____w8"), IgnoredReason::Exponent),
        (rsa(&[0xff; 256], ""), IgnoredReason::Exponent),
        (rsa(&[0xff; 256], "AQAB="), IgnoredReason::Encoding),
        (json!(7), IgnoredReason::NotAnObject),
        (json!({}), IgnoredReason::KeyId),
    ] {
        let bundle = bundle("td.test", &[element.clone(), good.jwk(), element]);
        assert_eq!(bundle.len(), 1);
        assert_eq!(bundle.ignored().len(), 2, "{bundle:?}");
        assert_eq!(bundle.ignored()[0].reason(), reason);
        assert_eq!(
            (
                bundle.ignored()[0].position(),
                bundle.ignored()[1].position()
            ),
            (0, 2)
        );
        let fixture = Fixture::with(JwtBundleSet::from_iter([bundle]), |b| b);
        fixture.accepts(&good.token());
    }
    // One name, two keys: none of them, whichever comes first.
    let (a, b) = (
        good.jwk(),
        Signer::new("p256-b", Algorithm::ES256)
            .with_key_id("p256")
            .jwk(),
    );
    for keys in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
        let fixture = Fixture::with(set_of("td.test", &keys), |b| b);
        fixture.refuses(&good.token(), ValidateReason::KeyUnknown);
    }
    let fixture = Fixture::with(set_of("td.test", &[a.clone(), a]), |b| b);
    fixture.accepts(&good.token());
}
