//! The source that follows an agent's Workload API.

mod availability;
mod backoff;
mod builder;
mod error;
mod fetch;
mod heartbeat;
mod hints;
pub(crate) mod intake;
mod jwt_source;
mod limits;
mod published;
mod record;
pub(crate) mod shared;
mod state;
mod supervisor;
mod updates;

pub use builder::JwtSourceBuilder;
pub use error::{JwtSourceError, JwtSourceErrorReason};
pub use jwt_source::JwtSource;
pub use limits::{ResourceLimits, WithdrawalPolicy};
pub use state::{LastError, SourceState, TrustDomainState, Withdrawal};
pub use updates::SourceUpdates;

#[cfg(test)]
#[cfg(feature = "testing")]
mod heartbeat_tests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod rotation_tests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod start_tests;
#[cfg(test)]
#[cfg(feature = "testing")]
mod withdrawal_tests;
