//! What a test needs in place of a SPIFFE deployment: a clock that it moves.

mod clock;

pub use clock::PausedClock;
