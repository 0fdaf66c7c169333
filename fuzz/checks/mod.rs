//! What must be so, whatever comes in. Each check is a fuzz target, and is run on its corpus by a
//! plain `cargo test` of the crate (`tests/corpora.rs`).
//!
//! A check fails by a panic, the crate's or its own.

// Each target uses one.
#![allow(
    dead_code,
    unused_imports,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used
)]

mod bundles;
mod ids;
mod stream;
mod tokens;

pub(crate) use bundles::{bundle_map, bundle_message, jwks};
pub(crate) use ids::{endpoint, spiffe_id};
pub(crate) use stream::bundle_stream;
pub(crate) use tokens::{header_line, token};

/// An error says what is wrong in a few words, whatever was read: no line of it can fill a log or
/// forge another one.
fn is_presentable(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty());
    assert!(text.len() < 1_024, "{} bytes of error", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
