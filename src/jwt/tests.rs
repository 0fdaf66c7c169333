//! Keys, algorithms and numbers of this module.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::json::read_numeric_date;
use super::key::KeyFault;
use super::{Algorithm, AlgorithmSet, Curve, PublicKey, UnknownAlgorithm};
use crate::clock::UnixTime;

fn point() -> Vec<u8> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    pair.public_key().as_ref()[1..].to_vec()
}

#[test]
fn a03_key_verifies_only_with_its_algorithms() {
    let key = PublicKey::rsa(&[0xff; 256], &[1, 0, 1], None).unwrap();
    for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::ES512] {
        assert!(!key.algorithms().contains(algorithm));
        assert!(!key.verify(algorithm, b"", &[0; 64]));
    }
}

/// A known key is shared; another key is not mistaken for it.
#[test]
fn only_equal_keys_are_shared() {
    let (one, two) = (point(), point());
    let (x, y) = one.split_at(32);
    let (other_x, other_y) = two.split_at(32);
    let key = PublicKey::ec(Curve::P256, x, y, None).unwrap();
    let again = PublicKey::ec(Curve::P256, x, y, Some(&key)).unwrap();
    let other = PublicKey::ec(Curve::P256, other_x, other_y, Some(&key)).unwrap();
    assert!(key.is_one_with(&again) && key == again);
    assert!(!key.is_one_with(&other) && key != other);
    // Invalid keys are rejected, also with a known key.
    assert!(PublicKey::ec(Curve::P256, x, x, Some(&key)).is_err());
    for (x, y) in [(&x[1..], y), (x, &y[1..]), (&one, y), (x, &one)] {
        let fault = PublicKey::ec(Curve::P256, x, y, Some(&key)).err();
        assert_eq!(fault, Some(KeyFault::CoordinateLength));
    }

    let modulus = [0xff; 256];
    let key = PublicKey::rsa(&modulus, &[1, 0, 1], None).unwrap();
    // Leading zeros do not count.
    let again = PublicKey::rsa(&modulus, &[0, 1, 0, 1], Some(&key)).unwrap();
    assert!(key.is_one_with(&again) && key == again);
    // Two that were parsed separately are equal.
    let parsed_again = PublicKey::rsa(&modulus, &[1, 0, 1], None).unwrap();
    assert!(!key.is_one_with(&parsed_again) && key == parsed_again);
    for (modulus, exponent) in [(&modulus[..], &[3][..]), (&[0xfd; 256], &[1, 0, 1])] {
        let other = PublicKey::rsa(modulus, exponent, Some(&key)).unwrap();
        assert!(!key.is_one_with(&other) && key != other);
    }
    let cross = PublicKey::ec(Curve::P256, x, y, Some(&key)).unwrap();
    assert!(!key.is_one_with(&cross) && key != cross);
}

#[test]
fn algorithm_parses_from_its_display_text() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
    }
    for name in ["none", "HS256", "es256", ""] {
        assert_eq!(name.parse::<Algorithm>(), Err(UnknownAlgorithm), "{name}");
    }
    // The message lists the names to choose from.
    let message = UnknownAlgorithm.to_string();
    for algorithm in Algorithm::ALL {
        assert!(message.contains(algorithm.as_str()), "{message}");
    }
}

#[test]
fn algorithm_named_twice_is_allowed() {
    let twice = AlgorithmSet::NONE.with(Algorithm::ES256);
    let twice = twice.with(Algorithm::ES256);
    assert!(twice.contains(Algorithm::ES256));
    assert!(!twice.contains(Algorithm::RS256));
}

#[test]
fn numeric_date_is_exact_to_the_nanosecond() {
    for (text, secs, nanos) in [
        ("1790000000.123456789", 1_790_000_000, 123_456_789),
        ("1790000000.1", 1_790_000_000, 100_000_000),
        ("1790000000.000000001", 1_790_000_000, 1),
        ("1790000000.9999999999", 1_790_000_000, 999_999_999),
        ("0.5", 0, 500_000_000),
    ] {
        let exact = Some(UnixTime::new(secs, nanos));
        assert_eq!(read_numeric_date(text), exact, "{text}");
    }
}

#[test]
fn rsa_exponent_has_2_to_33_bits() {
    let fault = |exponent: &[u8]| PublicKey::rsa(&[0xff; 256], exponent, None).err();
    for good in [&[3][..], &[1, 0, 1], &[0, 1, 0, 1], &[1, 0, 0, 0, 1]] {
        assert_eq!(fault(good), None, "{good:?}");
    }
    for bad in [
        &[1][..],
        &[2],
        &[],
        &[0],
        &[1, 0, 0, 0, 2],
        &[2, 0, 0, 0, 1],
    ] {
        assert_eq!(fault(bad), Some(KeyFault::Exponent), "{bad:?}");
    }
}

#[test]
fn key_shows_its_type_and_curve() {
    let point = point();
    let (x, y) = point.split_at(32);
    let ec = PublicKey::ec(Curve::P256, x, y, None).unwrap();
    let rsa = PublicKey::rsa(&[0xff; 256], &[1, 0, 1], None).unwrap();
    assert_eq!((ec.type_name(), rsa.type_name()), ("EC P-256", "RSA"));
}
