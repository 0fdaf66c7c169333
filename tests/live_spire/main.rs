//! Runs the source and both layers with a real agent, if `SPIFFE_ENDPOINT_SOCKET` is set:
//!
//! ```sh
//! cargo test --test live_spire
//! TOWER_SPIFFE_LIVE_SECONDS=600 cargo test --test live_spire live_watch -- --nocapture
//! ```
//!
//! `tests/README.md` has the commands for a local SPIRE. Without the variable each test reports that it
//! is skipped; `embedded.rs` then runs them all on the embedded agent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

mod embedded;
mod layers;
mod source;
mod watch;

use std::io::Write as _;

use tower_spiffe::JwtSource;
use tower_spiffe::workload_api::ENDPOINT_VARIABLE;
use tower_spiffe_test_support::wait::soon;

const AUDIENCE: &str = "spiffe://example.org/live";

/// Prints a line that the test harness does not capture, so that skipped tests are visible.
fn report(line: &str) {
    let _ = writeln!(std::io::stderr(), "live_spire: {line}");
}

/// Returns a source for the agent of the environment, or `None` if the variable is not set.
async fn source(test: &str) -> Option<JwtSource> {
    if std::env::var_os(ENDPOINT_VARIABLE).is_none() {
        report(&format!(
            "{test} is skipped: {ENDPOINT_VARIABLE} is not set"
        ));
        return None;
    }
    let source = soon("the first bundles", JwtSource::new()).await;
    Some(source.unwrap_or_else(|error| panic!("{error:#}")))
}
