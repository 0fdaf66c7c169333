//! Panics for mistakes in a test.

use std::fmt::Debug;

/// Panics because a setting of the test is impossible.
#[track_caller]
#[allow(clippy::panic, reason = "a test's mistake ends the test")]
pub(super) fn misuse(what: &str) -> ! {
    panic!("tower_spiffe::testing: {what}")
}

/// Unwraps results that fail only if the system fails (no randomness, no memory), or by a documented
/// panic.
#[track_caller]
#[allow(clippy::panic, reason = "a test cannot go on without it")]
pub(super) fn must<T, E: Debug>(result: Result<T, E>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("tower_spiffe::testing: expected that {what}: {error:?}"),
    }
}
