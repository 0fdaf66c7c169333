//! JWK Sets and the messages that carry them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::{Algorithm, IgnoredKey, JwtBundle, JwtBundleSet};
use tower_spiffe::testing::internals;

use super::is_presentable;
use super::stream::is_kept;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a trust domain")
}

/// A set is read whatever its keys are; each key that is taken has a name; read twice, it is the
/// same. A SPIFFE bundle takes no key that the Workload API would not.
pub fn jwks(data: &[u8]) {
    let read = JwtBundle::from_jwks(trust_domain(), data);
    let strict = JwtBundle::from_spiffe_bundle(trust_domain(), data);
    match &read {
        Ok(bundle) => {
            is_sound(bundle);
            let again = JwtBundle::from_jwks(trust_domain(), data).expect("read before");
            assert!(again == *bundle);
            assert!(internals::share_authorities(again, bundle) == *bundle);
        }
        Err(error) => is_presentable(error),
    }
    match &strict {
        Ok(strict) => {
            is_sound(strict);
            let bundle = read.expect("the stricter reader took it");
            assert!(strict.len() <= bundle.len());
        }
        Err(error) => is_presentable(error),
    }
}

fn is_sound(bundle: &JwtBundle) {
    assert_eq!(bundle.authorities().count(), bundle.len());
    assert_eq!(bundle.is_empty(), bundle.authorities().next().is_none());
    for authority in bundle.authorities() {
        assert!(!authority.key_id().is_empty());
        // None, where the key says that it is for something else; six at most, for RSA.
        let supported = Algorithm::ALL
            .iter()
            .filter(|algorithm| authority.supports(**algorithm));
        assert!(supported.count() <= 6);
        let found = bundle
            .authority(authority.key_id())
            .expect("found by its name");
        assert!(found == authority);
    }
    for ignored in bundle.ignored() {
        assert!(format!("{ignored:?}").len() < 2_048);
    }
}

/// A message is a set or is discarded; read again on top of itself, it changes nothing; and a source
/// answers by it.
pub fn bundle_message(data: &[u8]) {
    let nothing = JwtBundleSet::default();
    let Some((set, unreadable)) = internals::read_bundle_message(data, &nothing) else {
        return;
    };
    set.iter().for_each(|bundle| is_sound(bundle));
    let (again, unreadable_again) =
        internals::read_bundle_message(data, &set).expect("it was read before");
    assert!(again == set);
    assert_eq!(unreadable_again, unreadable);
    is_kept(data, &set);
}

/// The input is a map of bundles, as a file has it, and where it has a zero byte, another one that is
/// read on top of what the first gave. Each trust domain has what its own entry says, the one before
/// where that cannot be read, and nothing of what other entries say.
pub fn bundle_map(data: &[u8]) {
    for spiffe_bundles in [false, true] {
        let mut known = JwtBundleSet::default();
        for document in data.splitn(2, |byte| *byte == 0) {
            let read = |known| internals::read_bundle_map(document, spiffe_bundles, known);
            match read(&known) {
                Ok((set, unreadable, told)) => {
                    let unnamed =
                        is_what_it_says(document, spiffe_bundles, &known, &set, &unreadable);
                    let is_unusable = |bundle: &Arc<JwtBundle>| {
                        let is_fault = |key: &IgnoredKey| !key.is_x509_svid() && !key.is_wit_svid();
                        bundle.is_empty() && bundle.ignored().iter().any(is_fault)
                    };
                    let is_unusable = set.iter().any(|bundle| {
                        is_unusable(bundle) && !unreadable.contains(bundle.trust_domain())
                    });
                    let is_told = unnamed > 0 || !unreadable.is_empty() || is_unusable;
                    assert_eq!(told.is_some(), is_told);
                    told.iter().for_each(|told| is_presentable(told));
                    let again = read(&set).expect("it was read before");
                    assert!(again == (set.clone(), unreadable, told));
                    known = set;
                }
                Err(error) => is_presentable(&error),
            }
        }
    }
}

fn is_what_it_says(
    document: &[u8],
    spiffe_bundles: bool,
    known: &JwtBundleSet,
    set: &JwtBundleSet,
    unreadable: &[TrustDomain],
) -> usize {
    type Members = BTreeMap<String, Box<RawValue>>;
    let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
    let map: Members = serde_json::from_slice(document).expect("an object");
    let entries: Option<Members> =
        serde_json::from_str(map["trust_domains"].get()).expect("an object in it, or null");
    let mut left = set.len();
    let mut unnamed = 0;
    for (name, entry) in entries.iter().flatten() {
        let Ok(domain) = TrustDomain::parse(name) else {
            unnamed += 1;
            continue;
        };
        let found = set.get(domain.name());
        let alone = if spiffe_bundles {
            JwtBundle::from_spiffe_bundle(domain.clone(), entry.get().as_bytes())
        } else {
            JwtBundle::from_jwks(domain.clone(), entry.get().as_bytes())
        };
        assert_eq!(alone.is_err(), unreadable.contains(&domain), "{name}");
        match alone {
            Ok(alone) => {
                let found = found.expect("what can be read is there");
                is_sound(found);
                assert!(**found == alone && found.ignored() == alone.ignored());
            }
            Err(_) => assert!(found == known.get(domain.name())),
        }
        left -= usize::from(found.is_some());
    }
    // Nobody twice under two names, and nobody else.
    assert_eq!(left, 0);
    unnamed
}
