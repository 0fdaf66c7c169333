//! The Workload API client with each kind of endpoint: results and errors. The rules of each call are
//! tested in `tests/source/calls.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod errors;
mod hostile;
mod places;
mod support;
mod unreachable;
