//! The rows of the public conformance suite for SPIFFE SDKs (harness contract v1), as tests of this
//! crate: `docs/conformance.md` lists them with their results.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test may"
)]

mod bundles;
mod endpoint;
mod fetch;
mod ids;
mod support;
mod table;
mod tokens;
mod workload_api;
