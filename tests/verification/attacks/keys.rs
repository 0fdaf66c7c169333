//! Attacks on the inputs of verification: algorithm, key, signature, and the header fields that
//! name them.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};

use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;
use aws_lc_rs::hmac;
use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{IgnoredReason, JwtBundleSet};
use tower_spiffe::verify::ValidateReason;

use super::{header_with, warm_fixture, with_header};
use crate::signer::{Signer, base64, bundle, claims, set_of};
use crate::support::{Fixture, es256, keys_of, rs256};

/// Encodes like `openssl`.
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
fn a01_public_key_as_hmac_secret_is_rejected() {
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
                fixture.rejects(&token, ValidateReason::Algorithm);
            }
        }
    }
    // `Algorithm` has no values for them.
    assert!("HS256".parse::<Algorithm>().is_err());
    assert_eq!(Algorithm::ALL.len(), 9);
}

#[test]
fn a02_algorithm_none_is_rejected() {
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
        fixture.rejects(&token, ValidateReason::Algorithm);
        let (signed, _) = token.rsplit_once('.').unwrap();
        fixture.rejects(&format!("{signed}."), ValidateReason::Malformed);
        let good = signer.token();
        let (_, signature) = good.rsplit_once('.').unwrap();
        fixture.rejects(&format!("{signed}.{signature}"), ValidateReason::Algorithm);
    }
    let mut header = signer.header();
    header.as_object_mut().unwrap().remove("alg");
    fixture.rejects(&with_header(&signer, &header), ValidateReason::Algorithm);
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
                fixture.rejects(&token, ValidateReason::Signature);
            } else {
                fixture.rejects(&token, ValidateReason::KeyUnfit);
            }
        }
    }
    let ps256 = Signer::for_algorithm(Algorithm::PS256);
    let mut jwk = ps256.jwk();
    jwk["alg"] = json!("RS256");
    fixture.source.set(Ok(set_of("td.test", &[jwk])));
    fixture.rejects(&ps256.token(), ValidateReason::KeyUnfit);
    fixture.accepts(&rs256().token());
}

#[test]
fn a04_kid_is_an_opaque_name() {
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
        fixture.rejects(&token, ValidateReason::KeyUnknown);
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
        fixture.rejects(&with_header(&signer, &header), ValidateReason::Header);
    }
    let long = es256().with_key_id(&"k".repeat(5000)).token();
    fixture.rejects(&long, ValidateReason::Header);
    // A `kid` of 8 KiB: too long for the default limit, and for a header under a higher limit.
    let longer = es256().with_key_id(&"k".repeat(8192)).token();
    fixture.rejects(&longer, ValidateReason::TooLong);
    let wide = Fixture::with(keys_of(&[&signer]), |b| b.max_token_len(1 << 20));
    wide.rejects(&longer, ValidateReason::Header);
    // Names in errors are bounded and escaped.
    let odd = es256().with_key_id(&"\u{1b}[31m\n\"".repeat(100)).token();
    let error = fixture.cold.validate(&odd).unwrap_err();
    assert!(error.key_id().unwrap().len() <= 64);
    assert!(!format!("{error:?} {error}").contains(['\n', '\u{1b}']));
}

#[test]
fn a05_keys_in_the_header_are_rejected() {
    let (trusted, evil) = (es256(), Signer::new("evil-p256", Algorithm::ES256));
    let fixture = warm_fixture(&[&trusted]);
    let lax = Fixture::with(keys_of(&[&trusted]), |b| b.allow_unknown_headers(true));
    // A listener would notice any request to these URLs.
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
            fixture.rejects(&token, ValidateReason::Header);
            lax.rejects(&token, ValidateReason::Header);
        }
    }
    let no_request = listener.accept().unwrap_err();
    assert_eq!(no_request.kind(), ErrorKind::WouldBlock);
    // Check that the listener notices a connection.
    drop(TcpStream::connect(at).unwrap());
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap();
    // Unknown fields are rejected too, unless they are allowed.
    for name in ["cty", "zip", "private", "Alg", ""] {
        let token = with_header(&trusted, &header_with(&trusted, name, json!("x")));
        fixture.rejects(&token, ValidateReason::Header);
        lax.accepts(&token);
    }
}

#[test]
fn a06_crit_is_always_rejected() {
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
        fixture.rejects(&token, ValidateReason::Header);
        lax.rejects(&token, ValidateReason::Header);
    }
}

#[test]
fn a07_unencoded_payload_is_rejected() {
    let signer = es256();
    let fixture = warm_fixture(&[&signer]);
    let header = header_with(&signer, "b64", json!(false)).to_string();
    let encoded = signer.sign_texts(&header, &claims().to_string());
    fixture.rejects(&encoded, ValidateReason::Header);
    let unencoded = signer.sign_parts(&base64(&header), &claims().to_string());
    assert!(fixture.validate(&unencoded).is_err());
    let (start, signature) = encoded.rsplit_once('.').unwrap();
    let (header, _) = start.split_once('.').unwrap();
    fixture.rejects(&format!("{header}..{signature}"), ValidateReason::Malformed);
}

#[test]
fn a10_malformed_ecdsa_signatures_are_rejected() {
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
        fixture.rejects(
            &format!("{signed}.{}", base64(bad)),
            ValidateReason::Signature,
        );
    }
    fixture.rejects(&format!("{signed}."), ValidateReason::Malformed);
    fixture.accepts(&format!("{signed}.{}", base64(good)));
}

#[test]
fn a11_both_ecdsa_signature_forms_have_one_result() {
    // Both are valid signatures. No decision depends on the token's text: the cache holds no
    // rejections, and a revoked key ends both entries.
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

/// Tokens are compared with public values only, so timing reveals no secret. This test fails if
/// a secret key or algorithm becomes possible.
#[test]
fn a25_no_secret_is_compared() {
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
            fixture.rejects(&token, ValidateReason::Algorithm);
            // Nor is a secret key accepted under an existing algorithm.
            fixture.rejects(&es256().token(), ValidateReason::KeyUnknown);
        }
    }
}

#[test]
fn a29_invalid_key_is_ignored_alone() {
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
    // Two keys with one name: both are ignored, in either order.
    let (a, b) = (
        good.jwk(),
        Signer::new("p256-b", Algorithm::ES256)
            .with_key_id("p256")
            .jwk(),
    );
    for keys in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
        let fixture = Fixture::with(set_of("td.test", &keys), |b| b);
        fixture.rejects(&good.token(), ValidateReason::KeyUnknown);
    }
    let fixture = Fixture::with(set_of("td.test", &[a.clone(), a]), |b| b);
    fixture.accepts(&good.token());
}
