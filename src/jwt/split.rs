//! The three parts of a compact JWS and their base64url (RFC 7515 sections 3.1 and 2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Header, payload and signature of a compact JWS, still encoded; none of them empty.
#[derive(Clone, Copy)]
pub(crate) struct Split<'a> {
    pub(crate) header: &'a str,
    pub(crate) payload: &'a str,
    pub(crate) signature: &'a str,
    /// What the signature is over: header, dot, payload.
    pub(crate) signed: &'a str,
}

impl<'a> Split<'a> {
    /// Exactly three parts, nothing around them. Stops at the third dot: a text of a million dots
    /// costs no more than one of three.
    pub(crate) fn new(token: &'a str) -> Option<Self> {
        let (header, rest) = token.split_once('.')?;
        let (payload, signature) = rest.split_once('.')?;
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return None;
        }
        let signed = token.get(..header.len() + 1 + payload.len())?;
        // A dot in the signature is no base64url; decoding finds it.
        Some(Self {
            header,
            payload,
            signature,
            signed,
        })
    }
}

/// Decoded bytes on the stack where they fit, so that a header or a signature costs no allocation.
pub(crate) enum Bytes<const N: usize> {
    Inline([u8; N], usize),
    Heap(Vec<u8>),
}

impl<const N: usize> Bytes<N> {
    /// Decodes base64url without padding and with canonical trailing bits, so that one byte string
    /// has one text.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        if text.len() / 4 * 3 + 3 > N {
            return decode(text).map(Self::Heap);
        }
        let mut buffer = [0; N];
        let len = URL_SAFE_NO_PAD.decode_slice(text, &mut buffer).ok()?;
        Some(Self::Inline(buffer, len))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline(buffer, len) => buffer.get(..*len).unwrap_or_default(),
            Self::Heap(bytes) => bytes,
        }
    }
}

/// Decodes base64url without padding and with canonical trailing bits.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
