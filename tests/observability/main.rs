//! What an operator sees: the scrape, the dashboard and the alerts that use it, and the log.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod alerts;
mod dashboard;
mod h13_sources;
mod inherited;
mod log;
mod promql;
mod scrape;
mod week;
mod words;
