//! JWT-SVIDs: our own to send ([`JwtSvid`]), and those of callers, checked ([`VerifiedSvid`]).
//!
//! A [`Validator`] checks tokens for anything, HTTP or not:
//!
//! ```
//! use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
//! use tower_spiffe::svid::{ValidateReason, Validator};
//!
//! let bundles = FixedBundles::new(JwtBundleSet::default());
//! let validator = Validator::builder(bundles).audience("spiffe://example.org/reports").build()?;
//!
//! let refused = validator.validate("no.token.").unwrap_err();
//! assert_eq!(refused.reason(), ValidateReason::Malformed);
//! # Ok::<(), tower_spiffe::svid::BuildValidatorError>(())
//! ```

mod builder;
mod cache;
mod error;
mod fetch;
mod judge;
mod known_header;
mod own;
mod validator;
mod verified;

pub use builder::{BuildValidatorError, ValidatorBuilder};
pub use cache::CacheStats;
pub use error::{ValidateError, ValidateReason};
#[cfg(feature = "client")]
pub(crate) use fetch::Identity;
pub use fetch::{
    FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason, SvidRequest, SvidRequestError,
};
#[cfg(feature = "client")]
pub(crate) use own::Subject;
pub use own::{JwtSvid, ParseJwtSvidError};
#[cfg(feature = "server")]
pub(crate) use validator::Sight;
pub use validator::Validator;
pub use verified::{ClaimsError, VerifiedSvid};

/// The longest token that is accepted by default, and the longest that is ever sent, in bytes.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;
