//! One check for each fuzz target. `tests/corpora.rs` runs each check on its corpus.
//!
//! A check fails if it panics, or if the crate does.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "checks"
)]

mod bundles;
mod https;
mod ids;
mod policy;
mod stream;
mod tokens;

pub use bundles::{bundle_map, bundle_message, jwks};
pub use https::https_response;
pub use ids::{endpoint, spiffe_id};
pub use policy::policy_file;
pub use stream::bundle_stream;
pub use tokens::{header_line, token};

/// Checks that an error is short and has no control characters, so that it cannot flood a log or forge
/// a log line.
fn check_error_text(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty());
    assert!(text.len() < 1_024, "{} bytes of error", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
