//! The three parts of a compact JWS (RFC 7515 section 3.1).

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
