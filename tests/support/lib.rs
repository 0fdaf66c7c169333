//! What the test suites and the benches share.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

pub mod log;
pub mod raw_agent;
pub mod signer;
pub mod wire;
