//! Tests of `testing` itself: it behaves like SPIRE, or has exactly the requested fault. Other clients
//! and another verifier are used, so that this crate does not check itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod as_spire;
mod cleanup;
#[cfg(unix)]
mod e31_authority;
mod e32_stop;
mod e32_tmpdir;
#[cfg(unix)]
mod e33_files;
mod examples;
mod faults;
mod issuer;
mod keepalive;
mod rejected_calls;
mod replay;
mod rotation;
mod support;

use tower_spiffe_test_support::wire;
