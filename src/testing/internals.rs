//! Internals of the crate for its own tests and fuzz targets. Not covered by semver.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::clock::Clock;
use crate::jwt::{Algorithm, Curve, PublicKey};
use crate::source::BundleFormat;
use crate::source::agent::intake;
use crate::source::agent::shared::Shared;
use crate::source::file::{self, MapRead};
use crate::source::trust_clock::TrustClock;
use crate::source::{JwtSourceBuilder, LastError, ResourceLimits, SourceState, WithdrawalPolicy};
use crate::token::SvidCache;
use crate::workload_api::pb::JwtBundlesResponse;
use crate::workload_api::{
    Call, JwtBundlesMessage, WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason,
};

/// The messages of the Workload API with their client and server stubs.
pub mod messages {
    pub use crate::workload_api::pb::*;
}

/// A public key that verifies signatures of any message, not only of tokens.
pub struct Key(PublicKey);

impl Key {
    /// Returns the key of the ES algorithm's curve at this point, or `None` if it is not valid.
    pub fn ec(algorithm: Algorithm, x: &[u8], y: &[u8]) -> Option<Self> {
        let curves = [Curve::P256, Curve::P384, Curve::P521];
        let curve = curves
            .into_iter()
            .find(|curve| curve.algorithm() == algorithm)?;
        PublicKey::ec(curve, x, y, None).ok().map(Self)
    }

    /// Returns the RSA key with this modulus and exponent, or `None` if it is not valid.
    pub fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        PublicKey::rsa(n, e, None).ok().map(Self)
    }

    /// Returns whether the signature is valid.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify(algorithm, message, signature)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

/// Makes the random delays of the source repeatable.
pub fn seeded(builder: JwtSourceBuilder, seed: u64) -> JwtSourceBuilder {
    builder.seed(seed)
}

/// Reports to the cache which signing keys were removed, as a source does; `removed` gets the name
/// of a trust domain and a key ID.
pub fn remove_authorities(cache: &SvidCache, removed: &dyn Fn(&str, &str) -> bool) {
    cache.authorities_removed(removed);
}

/// Returns `bundle` with the authorities that it shares with `previous`, as a source does for each
/// new set: tokens that were verified with them stay in the verified cache.
pub fn share_authorities(bundle: JwtBundle, previous: &JwtBundle) -> JwtBundle {
    bundle.sharing_with(previous)
}

/// Reads one encoded message of the bundle stream as a source does: the set, and how many of its parts
/// were unreadable. `None` if the whole message is discarded.
pub fn read_bundle_message(bytes: &[u8], known: &JwtBundleSet) -> Option<(JwtBundleSet, usize)> {
    let bundles = read_message(bytes)?.ok()?;
    let intake = intake::read(bundles, known, &ResourceLimits::default()).ok()?;
    let unreadable = intake.troubles.len() + intake.unnamed.len();
    Some((intake.set, unreadable))
}

/// The bundles of a message; `None` if it is malformed.
fn read_message(bytes: &[u8]) -> Option<Result<HashMap<String, Bytes>, intake::Trouble>> {
    let message = JwtBundlesMessage::read(Bytes::copy_from_slice(bytes)).ok()?;
    Some(intake::unpack(message, &ResourceLimits::default()))
}

/// One encoded message.
pub fn write_bundle_message<'a>(bundles: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let bundles = bundles
        .into_iter()
        .map(|(name, jwks)| (name.to_owned(), jwks.to_vec().into()))
        .collect();
    prost::Message::encode_to_vec(&JwtBundlesResponse { bundles })
}

/// Reads a map of SPIFFE bundles or JWK Sets as files do, after `known`: the set, the trust domains
/// whose bundle cannot be read, and the error text.
pub fn read_bundle_map(
    bytes: &[u8],
    spiffe_bundles: bool,
    known: &JwtBundleSet,
) -> Result<MapRead, String> {
    let format = if spiffe_bundles {
        BundleFormat::BundleMap
    } else {
        BundleFormat::JwksMap
    };
    file::read_map(bytes, &format, known)
}

/// Polls over streams in memory in place of connections: `open` gets the URL of a request, and returns
/// the client's end.
#[cfg(feature = "https-bundles")]
pub fn over_streams(
    builder: crate::source::https::HttpsBundlesBuilder,
    open: impl Fn(&str) -> tokio::io::DuplexStream + Send + Sync + 'static,
) -> crate::source::https::HttpsBundlesBuilder {
    builder.streams(Arc::new(open))
}

/// The state of a source without its stream: messages of the agent are put in by hand, and validators
/// read it like a source.
pub struct Keeper(Shared);

impl Keeper {
    /// Creates one without bundles. The client is never called.
    pub fn new(
        client: WorkloadApiClient,
        clock: Arc<dyn Clock>,
        withdrawal: WithdrawalPolicy,
        max_staleness: Option<Duration>,
    ) -> Self {
        let recorder = Arc::new(());
        Self(Shared::new(
            client,
            Arc::new(TrustClock::new(clock)),
            recorder,
            withdrawal,
            max_staleness,
        ))
    }

    /// Applies one encoded message of the bundle stream. Returns false if all of it is discarded.
    pub fn take_in(&self, bytes: &[u8]) -> bool {
        let Some(message) = read_message(bytes) else {
            return false;
        };
        let known = self.0.known();
        let limits = ResourceLimits::default();
        match message.and_then(|bundles| intake::read(bundles, &known, &limits)) {
            Ok(intake) => {
                self.0.take_in(intake);
                true
            }
            Err(_) => {
                self.0.discarding();
                false
            }
        }
    }

    /// Ends the stream with PermissionDenied.
    pub fn withdraw(&self) {
        let reason = WorkloadApiErrorReason::PermissionDenied;
        let error = WorkloadApiError::new(Call::FetchJwtBundles, reason, "withdrawn");
        self.0.stream_ended(Some(LastError::of(&error)));
    }

    /// The same as for a source.
    pub fn state(&self) -> SourceState {
        self.0.state()
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl BundleSource for Keeper {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        self.0.revision()
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.0.published.bundle(trust_domain)
    }
}
