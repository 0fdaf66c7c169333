//! Keys of this module against each other.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::{Algorithm, Curve, PublicKey};

fn point() -> Vec<u8> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    pair.public_key().as_ref()[1..].to_vec()
}

#[test]
fn a03_a_key_verifies_with_its_own_algorithm_only() {
    let key = PublicKey::rsa(&[0xff; 256], &[1, 0, 1], None).unwrap();
    for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::ES512] {
        assert!(!key.algorithms().contains(algorithm));
        assert!(!key.verify(algorithm, b"", &[0; 64]));
    }
}

/// A key that is known is shared, and no other is taken for it.
#[test]
fn only_the_very_key_that_is_known_is_taken_for_it() {
    let (one, two) = (point(), point());
    let (x, y) = one.split_at(32);
    let (other_x, other_y) = two.split_at(32);
    let key = PublicKey::ec(Curve::P256, x, y, None).unwrap();
    let again = PublicKey::ec(Curve::P256, x, y, Some(&key)).unwrap();
    let other = PublicKey::ec(Curve::P256, other_x, other_y, Some(&key)).unwrap();
    assert!(key.is_one_with(&again) && key == again);
    assert!(!key.is_one_with(&other) && key != other);
    // What is refused is refused whatever is known.
    assert!(PublicKey::ec(Curve::P256, x, x, Some(&key)).is_err());
    assert!(PublicKey::ec(Curve::P256, &x[1..], y, Some(&key)).is_err());

    let modulus = [0xff; 256];
    let key = PublicKey::rsa(&modulus, &[1, 0, 1], None).unwrap();
    // Leading zeros are no part of a number.
    let again = PublicKey::rsa(&modulus, &[0, 1, 0, 1], Some(&key)).unwrap();
    assert!(key.is_one_with(&again) && key == again);
    for (modulus, exponent) in [(&modulus[..], &[3][..]), (&[0xfd; 256], &[1, 0, 1])] {
        let other = PublicKey::rsa(modulus, exponent, Some(&key)).unwrap();
        assert!(!key.is_one_with(&other) && key != other);
    }
    let cross = PublicKey::ec(Curve::P256, x, y, Some(&key)).unwrap();
    assert!(!key.is_one_with(&cross) && key != cross);
}
