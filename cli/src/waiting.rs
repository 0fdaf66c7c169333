//! Reports on standard error what a command waits for.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tower_spiffe::source::SourceState;
use tower_spiffe::workload_api::Endpoint;

/// How long a wait may take before it is reported.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Awaits `work`. If it takes longer than [`PATIENCE`], reports `what` it waits for, and again when
/// that text changes.
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
            () = tokio::time::sleep(PATIENCE) => {
                let text = what();
                if text != reported {
                    warn!("{command}: waiting for {text}");
                    reported = text;
                }
            }
        }
    }
}

/// The first bundles, and why they are not here yet.
pub(crate) fn first_bundles(agent: &Endpoint, state: &SourceState) -> String {
    format!(
        "the first bundles from the agent at {agent}: {}",
        why(state)
    )
}

/// Why there are no bundles yet.
pub(crate) fn why(state: &SourceState) -> &str {
    state
        .last_error()
        .map_or("no answer yet", |error| error.message())
}
