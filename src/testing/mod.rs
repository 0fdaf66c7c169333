//! What a test needs in place of a SPIFFE deployment: an issuer of tokens, right and wrong, and a
//! clock that the test moves.

mod assumed;
mod clock;
mod issuer;
mod misuse;

pub use assumed::{verified_svid, verified_svid_with_claims};
pub use clock::PausedClock;
pub use issuer::{Issuer, TokenBuilder};
use misuse::{misuse, must};
