//! JWK Sets and the messages that carry them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::{Algorithm, IgnoredKey, JwtBundle, JwtBundleSet};
use tower_spiffe::testing::internals;

use super::check_error_text;
use super::stream::check_source;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("a trust domain")
}

/// Checks a JWK Set: each key has a key ID, and reading it twice gives equal bundles. The reader of
/// SPIFFE bundles accepts no more keys than the reader of JWK Sets.
pub fn jwks(data: &[u8]) {
    let read = JwtBundle::from_jwks(trust_domain(), data);
    let strict = JwtBundle::from_spiffe_bundle(trust_domain(), data);
    match &read {
        Ok(bundle) => {
            check_bundle(bundle);
            let again = JwtBundle::from_jwks(trust_domain(), data).expect("it was read before");
            assert!(again == *bundle);
            assert!(internals::share_authorities(again, bundle) == *bundle);
        }
        Err(error) => check_error_text(error),
    }
    match &strict {
        Ok(strict) => {
            check_bundle(strict);
            let bundle = read.expect("the strict reader accepted it");
            assert!(strict.len() <= bundle.len());
        }
        Err(error) => check_error_text(error),
    }
}

fn check_bundle(bundle: &JwtBundle) {
    assert_eq!(bundle.authorities().count(), bundle.len());
    assert_eq!(bundle.is_empty(), bundle.authorities().next().is_none());
    for authority in bundle.authorities() {
        assert!(!authority.key_id().is_empty());
        // An RSA key supports six algorithms. A key for another use supports none.
        let supported = Algorithm::ALL
            .iter()
            .filter(|algorithm| authority.supports(**algorithm));
        assert!(supported.count() <= 6);
        let found = bundle
            .authority(authority.key_id())
            .expect("found by its key ID");
        assert!(found == authority);
    }
    for ignored in bundle.ignored() {
        assert!(format!("{ignored:?}").len() < 2_048);
    }
}

/// Checks a message of the bundle stream: if it is read again as an update, it changes nothing, and a
/// source returns its bundles.
pub fn bundle_message(data: &[u8]) {
    let empty = JwtBundleSet::default();
    let Some((set, unreadable)) = internals::read_bundle_message(data, &empty) else {
        return;
    };
    set.iter().for_each(|bundle| check_bundle(bundle));
    let (again, unreadable_again) =
        internals::read_bundle_message(data, &set).expect("it was read before");
    assert!(again == set);
    assert_eq!(unreadable_again, unreadable);
    check_source(data, &set);
}

/// Checks a map of bundles, as in a file. After a zero byte follows a second map, which is read as an
/// update. Each trust domain has the keys of its own entry, or its previous keys if that entry is
/// unreadable.
pub fn bundle_map(data: &[u8]) {
    for spiffe_bundles in [false, true] {
        let mut known = JwtBundleSet::default();
        for document in data.splitn(2, |byte| *byte == 0) {
            let read = |known| internals::read_bundle_map(document, spiffe_bundles, known);
            match read(&known) {
                Ok((set, unreadable, error)) => {
                    let invalid_names =
                        check_entries(document, spiffe_bundles, &known, &set, &unreadable);
                    let is_unusable = |bundle: &Arc<JwtBundle>| {
                        let is_error = |key: &IgnoredKey| !key.is_x509_svid() && !key.is_wit_svid();
                        bundle.is_empty() && bundle.ignored().iter().any(is_error)
                    };
                    let is_unusable = set.iter().any(|bundle| {
                        is_unusable(bundle) && !unreadable.contains(bundle.trust_domain())
                    });
                    let is_reported = invalid_names > 0 || !unreadable.is_empty() || is_unusable;
                    assert_eq!(error.is_some(), is_reported);
                    error.iter().for_each(|error| check_error_text(error));
                    let again = read(&set).expect("it was read before");
                    assert!(again == (set.clone(), unreadable, error));
                    known = set;
                }
                Err(error) => check_error_text(&error),
            }
        }
    }
}

/// Checks each trust domain against its entry. Returns the number of entries with an invalid name.
fn check_entries(
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
        serde_json::from_str(map["trust_domains"].get()).expect("an object or null");
    let mut left = set.len();
    let mut invalid_names = 0;
    for (name, entry) in entries.iter().flatten() {
        let Ok(domain) = TrustDomain::parse(name) else {
            invalid_names += 1;
            continue;
        };
        let found = set.get(domain.name());
        let own = if spiffe_bundles {
            JwtBundle::from_spiffe_bundle(domain.clone(), entry.get().as_bytes())
        } else {
            JwtBundle::from_jwks(domain.clone(), entry.get().as_bytes())
        };
        assert_eq!(own.is_err(), unreadable.contains(&domain), "{name}");
        match own {
            Ok(own) => {
                let found = found.expect("a readable entry is in the set");
                check_bundle(found);
                assert!(**found == own && found.ignored() == own.ignored());
            }
            Err(_) => assert!(found == known.get(domain.name())),
        }
        left -= usize::from(found.is_some());
    }
    // The set has no other trust domains, and no trust domain has two entries.
    assert_eq!(left, 0);
    invalid_names
}
