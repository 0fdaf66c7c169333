//! SPIFFE IDs and endpoints.

use tower_spiffe::workload_api::Endpoint;
use tower_spiffe::{SpiffeId, TrustDomain};

use super::check_error_text;

/// Checks that the parser accepts exactly the IDs that a second implementation allows, and returns
/// them unchanged.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match SpiffeId::parse(text) {
        Ok(id) => {
            assert!(allowed(text), "{text:?} was accepted");
            assert_eq!(id.as_str(), text);
            assert_eq!(id.trust_domain().to_spiffe_id().path(), "");
            assert!(id.is_member_of(&id.trust_domain()));
            let parts = format!("spiffe://{}{}", id.trust_domain_name(), id.path());
            assert_eq!(parts, text);
            let json = serde_json::to_string(&id).expect("an ID can be serialized");
            let read: SpiffeId = serde_json::from_str(&json).expect("JSON of an ID can be read");
            assert_eq!(read, id);
        }
        Err(error) => {
            assert!(!allowed(text), "{text:?} was rejected: {error}");
            check_error_text(&error);
        }
    }
    if let Ok(trust_domain) = TrustDomain::parse(text) {
        assert_eq!(
            TrustDomain::parse(trust_domain.name()).as_ref(),
            Ok(&trust_domain)
        );
    }
}

/// The rules of SPIFFE-ID sections 2.1 to 2.3, without exceptions.
fn allowed(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://") else {
        return false;
    };
    let (domain, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let both = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    text.len() <= 2048
        && !domain.is_empty()
        && domain.len() <= 255
        && domain.bytes().all(both)
        && path.split('/').skip(1).all(|segment| {
            !["", ".", ".."].contains(&segment)
                && segment.bytes().all(|b| both(b) || b.is_ascii_uppercase())
        })
}

/// Checks that an accepted endpoint is a Unix path or an IP address with a port, and that printing and
/// parsing it gives an equal endpoint.
pub fn endpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<Endpoint>() {
        Ok(endpoint) => {
            let path = endpoint.unix_path();
            assert!(path.is_some() != endpoint.tcp_address().is_some());
            assert!(path.is_none_or(|path| path.is_absolute()));
            let written = endpoint.to_string();
            let again: Endpoint = written.parse().expect("a printed endpoint can be parsed");
            assert_eq!(again, endpoint, "{written:?}");
        }
        Err(error) => check_error_text(&error),
    }
}
