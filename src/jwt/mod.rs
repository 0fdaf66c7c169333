//! Compact JWS, as JWT-SVIDs use it: split, header, claims, algorithms, keys, signatures.
//!
//! Pure computation: no I/O, no clock, no async. `verify` checks names and times.

mod algorithm;
mod base64url;
#[cfg(feature = "server")]
mod claim_index;
mod claims;
mod header;
mod json;
mod key;
mod split;
#[cfg(test)]
mod tests;

pub(crate) use algorithm::AlgorithmSet;
pub use algorithm::{Algorithm, UnknownAlgorithm};
pub(crate) use base64url::{Room, decode};
#[cfg(feature = "server")]
pub(crate) use claim_index::ClaimIndex;
pub(crate) use claims::{Claims, Life, PAYLOAD};
pub(crate) use header::{Header, HeaderFault, key_id_unchecked};
pub(crate) use json::{Object, Text, read_object, read_text};
pub(crate) use key::{Curve, KeyFault, PublicKey};
pub(crate) use split::Split;

/// The longest `kid`, in bytes; longer ones are rejected in tokens and ignored in bundles.
pub(crate) const MAX_KEY_ID_LEN: usize = 1024;

/// The longest token that is accepted by default, and the longest that is ever sent, in bytes.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;
