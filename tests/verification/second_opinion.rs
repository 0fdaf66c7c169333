//! Compares results with `jsonwebtoken`, for the eight algorithms it supports. Results must agree,
//! except for tokens that it does not check as strictly.

use jsonwebtoken::{Algorithm as Theirs, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::verify::ValidateReason;

use crate::signer::{AUDIENCE, NOW, Signer, claims, claims_with};
use crate::support::Fixture;

fn theirs(signer: &Signer, token: &str) -> bool {
    let jwk = signer.jwk();
    let text = |name: &str| jwk[name].as_str().unwrap().to_owned();
    let key = if jwk["kty"] == "EC" {
        DecodingKey::from_ec_components(&text("x"), &text("y"))
    } else {
        DecodingKey::from_rsa_components(&text("n"), &text("e"))
    };
    let algorithm: Theirs = signer.algorithm.as_str().parse().unwrap();
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "sub", "aud"]);
    // It reads the machine's clock, which these tests cannot set.
    validation.validate_exp = false;
    decode::<Value>(token, &key.unwrap(), &validation).is_ok()
}

#[test]
fn results_agree_for_eight_algorithms() {
    for algorithm in Algorithm::ALL {
        if algorithm == Algorithm::ES512 {
            continue;
        }
        let signer = Signer::for_algorithm(algorithm);
        // The vectors have a second key of each kind, except P-384.
        let stranger = match algorithm {
            Algorithm::ES256 => Some("evil-p256"),
            Algorithm::ES384 => None,
            _ => Some("evil-rsa2048"),
        };
        let fixture = Fixture::new(&[&signer]);
        let good = signer.token();
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let mut flipped = signature.to_owned().into_bytes();
        flipped[20] = if flipped[20] == b'A' { b'B' } else { b'A' };
        let flipped = format!("{signed}.{}", String::from_utf8(flipped).unwrap());
        let mut without_aud = claims();
        without_aud.as_object_mut().unwrap().remove("aud");
        let cases = [
            (good.clone(), true),
            (signer.sign(&claims_with("aud", json!(AUDIENCE))), true),
            (signer.sign(&claims_with("exp", json!(NOW + 1))), true),
            (flipped, false),
            (signer.sign(&claims_with("aud", json!("x"))), false),
            (signer.sign(&without_aud), false),
            (format!("{good}="), false),
            (format!("{good}.x"), false),
            (signed.to_owned(), false),
            (String::new(), false),
        ];
        for (token, expected) in &cases {
            assert_eq!(
                theirs(&signer, token),
                *expected,
                "theirs, {algorithm}: {token}"
            );
            assert_eq!(
                fixture.validate(token).is_ok(),
                *expected,
                "ours, {algorithm}: {token}"
            );
        }
        if let Some(name) = stranger {
            let forged = Signer::new(name, algorithm)
                .with_key_id(&signer.key_id)
                .token();
            assert!(!theirs(&signer, &forged));
            fixture.rejects(&forged, ValidateReason::Signature);
        }
    }
}
