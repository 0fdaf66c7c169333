//! Verifies the JWT-SVIDs of callers: a [`Validator`] checks a token and returns a [`VerifiedSvid`].
//!
//! A validator needs neither HTTP nor a runtime:
//!
//! ```
//! use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
//! use tower_spiffe::verify::{ValidateReason, Validator};
//!
//! let bundles = FixedBundles::new(JwtBundleSet::default());
//! let validator = Validator::builder(bundles).audience("spiffe://example.org/reports").build()?;
//!
//! let error = validator.validate("no.token.").unwrap_err();
//! assert_eq!(error.reason(), ValidateReason::Malformed);
//! # Ok::<(), tower_spiffe::verify::BuildValidatorError>(())
//! ```

mod builder;
mod cache;
mod check;
mod error;
mod known_header;
mod validator;
mod verified;

pub use crate::jwt::MAX_TOKEN_LEN;
pub use builder::{BuildValidatorError, ValidatorBuilder};
pub use cache::VerifiedCacheStats;
pub use error::{ValidateError, ValidateReason};
#[cfg(feature = "server")]
pub(crate) use validator::Sight;
pub use validator::Validator;
pub use verified::{ClaimsError, VerifiedSvid};
