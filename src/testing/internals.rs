//! Doors into the crate for its own fuzz targets. Not for users: no promise is made.

use crate::bundle::JwtBundleSet;
use crate::source::ResourceLimits;
use crate::source::intake;
use crate::workload_api::pb::JwtBundlesResponse;

/// What a source makes of one message of the bundle stream, as it came over the wire: the set, and
/// how many of its parts were unreadable. `None` where the whole message is discarded.
pub fn read_bundle_message(bytes: &[u8], known: &JwtBundleSet) -> Option<(JwtBundleSet, usize)> {
    let message: JwtBundlesResponse = prost::Message::decode(bytes).ok()?;
    let intake = intake::read(message.bundles, known, &ResourceLimits::default()).ok()?;
    let unreadable = intake.troubles.len() + intake.unnamed.len();
    Some((intake.set, unreadable))
}

/// One message as it goes over the wire.
pub fn write_bundle_message<'a>(bundles: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let bundles = bundles
        .into_iter()
        .map(|(name, jwks)| (name.to_owned(), jwks.to_vec().into()))
        .collect();
    prost::Message::encode_to_vec(&JwtBundlesResponse { bundles })
}
