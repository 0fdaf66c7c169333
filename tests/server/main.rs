//! The server layer, from one request to whole servers on loopback.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod axum;
mod costs;
mod e03_forwarding;
mod e12_anonymous;
mod e13_protocol;
mod e16_end_at_expiry;

mod end_at_expiry;
mod extremes;
mod golden;
mod hyper;
mod live_source;
#[allow(dead_code, reason = "other tests read more of a log")]
mod log;
mod loopback;
mod mending;
mod modes;
mod policy;
mod raw;
mod refusals;
mod secrets;
mod support;
mod talk;
mod telemetry;
mod tonic;
mod tower_http;
mod wait;
