//! What a test needs in place of a SPIFFE deployment.

mod agent;
mod assumed;
mod clock;
mod error;
mod issuer;
mod misuse;

pub use agent::{Call, Counts, Fault, Replay, WorkloadApi, WorkloadApiBuilder};
pub use assumed::{verified_svid, verified_svid_with_claims};
pub use clock::PausedClock;
pub use error::Error;
pub use issuer::{Issuer, TokenBuilder};
use misuse::{misuse, must};
