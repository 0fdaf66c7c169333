//! The fixture itself: what `testing` gives is what SPIRE would give, or exactly the wrong thing
//! that was asked for. Checked with foreign clients and a foreign verifier, so that our own code
//! does not vouch for itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod as_spire;
mod bad_days;
mod cleanup;
#[cfg(unix)]
mod e31_authority;
mod e32_stop;
mod e32_tmpdir;
mod e33_files;
mod examples;
mod issuer;
mod keepalive;
mod rejected_calls;
mod replay;
mod rotation;
mod support;

use tower_spiffe_test_support::wire;
