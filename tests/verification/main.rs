//! Levels 1 to 3 through the public API: rules, attacks, vectors, costs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "tests may"
)]

mod attacks;
mod bundle_map;
mod bundle_sources;
mod cache;
mod conformance;
mod e19_empty_bundles;
mod e34_missing_key_id;
mod error_texts;
mod h08_key_use;
mod histories;
mod ids;
mod jwk_members;
mod rule_table;
mod rules;
mod second_opinion;
mod support;
mod svid_getters;
mod t02_sole_audience;
mod wire;
mod wrong_documents;
mod wycheproof;

use tower_spiffe_test_support::signer;
