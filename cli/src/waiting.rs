//! Prints to standard error what a command waits for.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tower_spiffe::source::SourceState;
use tower_spiffe::workload_api::Endpoint;

/// A wait is reported after this time.
pub(crate) const REPORT_AFTER: Duration = Duration::from_millis(500);

/// Awaits `work`. If it takes longer than [`REPORT_AFTER`], prints `what` it waits for, and prints it
/// again when that text changes.
pub(crate) async fn announced<T>(
    command: &str,
    what: impl Fn() -> String,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let mut reported = String::new();
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(REPORT_AFTER) => {
                let text = what();
                if text != reported {
                    warn!("{command}: waiting for {text}");
                    reported = text;
                }
            }
        }
    }
}

/// Describes a wait for the first bundles, with its reason.
pub(crate) fn first_bundles(agent: &Endpoint, state: &SourceState) -> String {
    format!(
        "the first bundles from the agent at {agent}: {}",
        why(state)
    )
}

/// Returns the reason why there are no bundles yet.
pub(crate) fn why(state: &SourceState) -> &str {
    state
        .last_error
        .as_ref()
        .map_or("no response yet", |error| &error.text)
}
