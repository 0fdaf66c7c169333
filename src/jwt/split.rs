//! The three parts of a compact JWS (RFC 7515 section 3.1).

/// Header, payload and signature of a compact JWS, encoded and not empty.
#[derive(Clone, Copy)]
pub(crate) struct Split<'a> {
    pub(crate) header: &'a str,
    pub(crate) payload: &'a str,
    pub(crate) signature: &'a str,
    /// The signed text: header, dot, payload.
    pub(crate) signed: &'a str,
}

impl<'a> Split<'a> {
    /// Splits into exactly three parts. Does not search after the second dot, so a text with a million
    /// dots costs no more.
    pub(crate) fn new(token: &'a str) -> Option<Self> {
        let (header, rest) = token.split_once('.')?;
        let (payload, signature) = rest.split_once('.')?;
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return None;
        }
        let signed = token.get(..header.len() + 1 + payload.len())?;
        // A dot in the signature is found by decoding: it is not base64url.
        Some(Self {
            header,
            payload,
            signature,
            signed,
        })
    }
}
