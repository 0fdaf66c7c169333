//! One message of the bundle stream, read in place: its entries are counted before a map is built.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use bytes::{Buf as _, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::pb::JwtBundlesRequest;
use crate::presentable::debug_fields;

/// One message of the stream: the whole current set of bundles, as the agent sent it. A trust
/// domain that is not in it is withdrawn (Workload API section 4.4).
#[derive(Clone)]
pub struct JwtBundlesMessage {
    wire: Bytes,
    entries: usize,
}

impl JwtBundlesMessage {
    /// Checks a whole message and counts its entries. Allocates nothing.
    pub(crate) fn read(wire: Bytes) -> Result<Self, Malformed> {
        let mut entries = 0;
        for entry in Entries(&wire) {
            entry?;
            entries += 1;
        }
        Ok(Self { wire, entries })
    }

    /// Returns the entries in the order of the message: the trust domain as the agent names it
    /// (its SPIFFE ID, `spiffe://example.org`) and its JWK Set. If a name is duplicate, the
    /// last entry counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        // Errors were reported by `read`.
        Entries(&self.wire).filter_map(Result::ok)
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Returns whether the message has no entry: a mandatory field at its default, so the message
    /// must be discarded (Workload API section 4.5).
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub(crate) fn into_bundles(self) -> HashMap<String, Bytes> {
        let own = |(name, jwks): (&str, &[u8])| (name.to_owned(), self.wire.slice_ref(jwks));
        self.iter().map(own).collect()
    }
}

/// Two messages are equal if they have the same bundles, in any order.
impl PartialEq for JwtBundlesMessage {
    fn eq(&self, other: &Self) -> bool {
        let bundles = |message: &Self| message.clone().into_bundles();
        self.wire == other.wire || bundles(self) == bundles(other)
    }
}

impl Eq for JwtBundlesMessage {}

debug_fields!(JwtBundlesMessage, |it| { entries: it.entries, bytes: it.wire.len() });

/// A field is cut short, or its type is not that of the message definition.
#[derive(Debug)]
pub(crate) struct Malformed;

impl From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

/// The entries of the one field of the message, `map<string, bytes> bundles = 1`.
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(&'a str, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            match field(&mut self.0, 1..=1) {
                Ok(None) => {}
                Ok(Some((_, value))) => return Some(entry(value)),
                Err(malformed) => {
                    self.0 = &[];
                    return Some(Err(malformed));
                }
            }
        }
        None
    }
}

/// A map entry is a message of its key (1) and its value (2). A missing field is empty; of duplicates
/// the last counts.
fn entry(mut rest: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut name, mut jwks) = ("", &[][..]);
    while !rest.is_empty() {
        match field(&mut rest, 1..=2)? {
            Some((1, value)) => name = std::str::from_utf8(value).map_err(|_| Malformed)?,
            Some((_, value)) => jwks = value,
            None => {}
        }
    }
    Ok((name, jwks))
}

/// The next field if its tag is known; all known fields are length-delimited. `None` if it was skipped.
fn field<'a>(
    rest: &mut &'a [u8],
    known: RangeInclusive<u32>,
) -> Result<Option<(u32, &'a [u8])>, Malformed> {
    let (tag, wire_type) = decode_key(rest)?;
    if !known.contains(&tag) {
        skip_field(wire_type, tag, rest, DecodeContext::default())?;
        return Ok(None);
    }
    if wire_type != WireType::LengthDelimited {
        return Err(Malformed);
    }
    let len = usize::try_from(decode_varint(rest)?).map_err(|_| Malformed)?;
    let (value, after) = rest.split_at_checked(len).ok_or(Malformed)?;
    *rest = after;
    Ok(Some((tag, value)))
}

/// The codec of `FetchJWTBundles`. The generated one builds the map before its entries can be counted:
/// two million tiny entries take 434 MB.
#[derive(Default)]
pub(super) struct BundlesCodec;

pub(super) struct BundlesDecoder;

impl Codec for BundlesCodec {
    type Encode = JwtBundlesRequest;
    type Decode = JwtBundlesMessage;
    type Encoder = ProstEncoder<JwtBundlesRequest>;
    type Decoder = BundlesDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BundlesDecoder
    }
}

impl Decoder for BundlesDecoder {
    type Item = JwtBundlesMessage;
    type Error = Status;

    fn decode(&mut self, wire: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let wire = wire.copy_to_bytes(wire.remaining());
        match JwtBundlesMessage::read(wire) {
            Ok(message) => Ok(Some(message)),
            Err(Malformed) => Err(Status::internal(
                "failed to decode Protobuf message: a field is cut short or has a wrong type",
            )),
        }
    }
}

#[cfg(test)]
#[path = "bundles_tests.rs"]
mod tests;
