//! Checks that hold for any input. Each check is a fuzz target; `tests/corpora.rs` runs it on its
//! corpus.
//!
//! A check fails by panicking: in the crate or in the check itself.

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

/// An error says what is wrong in a few words, whatever was read: no line of it can fill a log or
/// forge another one.
fn is_presentable(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty());
    assert!(text.len() < 1_024, "{} bytes of error", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
