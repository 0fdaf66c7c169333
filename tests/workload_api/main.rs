//! The Workload API client by itself, over each kind of place that an agent can be at: what it
//! gives, and what it says where it gives nothing. (Its rules call by call: `tests/source/calls.rs`.)

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
