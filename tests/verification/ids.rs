//! SPIFFE IDs and trust domains from arbitrary text.

use proptest::prelude::*;
use tower_spiffe::{SpiffeId, TrustDomain};

proptest! {
    #[test]
    fn a21_ids_of_any_text_do_not_panic(text in "(spiffe://)?\\PC{0,40}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain_name(), id.path()), text.clone());
        }
        let _ = TrustDomain::parse(&text);
    }
}
