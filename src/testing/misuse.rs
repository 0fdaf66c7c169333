//! Where the fixture gives up: a test that cannot be set up must end, at the line that is wrong.

use std::fmt::Debug;

/// The test asked for what cannot be.
#[track_caller]
#[allow(clippy::panic, reason = "a test's mistake ends the test")]
pub(super) fn misuse(what: &str) -> ! {
    panic!("tower_spiffe::testing: {what}")
}

/// What can only fail with the machine (no randomness, no memory), or by a documented panic.
#[track_caller]
#[allow(clippy::panic, reason = "a test cannot go on without it")]
pub(super) fn must<T, E: Debug>(result: Result<T, E>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("tower_spiffe::testing: expected that {what}: {error:?}"),
    }
}
