//! Finds the message boundaries of a gRPC-Web body. Its trailers are a frame in the body
//! (PROTOCOL-WEB of gRPC); within a message, they would be read as a part of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The flag of the frame that has the trailers.
pub(crate) const TRAILERS: u8 = 0x80;

/// A byte of flags, and the length in four, big-endian.
const HEAD: usize = 5;

/// Follows the frames of one body.
#[derive(Debug, Default)]
pub(crate) struct GrpcWebFrames {
    // Of the frame that is being sent.
    head: [u8; HEAD],
    head_len: usize,
    left: usize,
    is_behind_trailers: bool,
    // In text mode: an incomplete quad of base64, and whether invalid base64 was seen.
    quad: [u8; 4],
    quad_len: usize,
    is_broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Between,
    Within,
    BehindTrailers,
}

impl GrpcWebFrames {
    pub(crate) fn place(&self) -> Place {
        if self.is_broken || self.quad_len > 0 || self.head_len > 0 {
            Place::Within
        } else if self.is_behind_trailers {
            Place::BehindTrailers
        } else {
            Place::Between
        }
    }

    /// Reads the data that are sent next; in text mode base64, padded in pieces or as a whole.
    pub(crate) fn sent(&mut self, data: &[u8], text: bool) {
        if !text {
            self.bytes(data);
            return;
        }
        for letter in data.iter().filter(|letter| !letter.is_ascii_whitespace()) {
            if let Some(place) = self.quad.get_mut(self.quad_len) {
                *place = *letter;
            }
            self.quad_len += 1;
            if self.quad_len == self.quad.len() {
                self.quad_len = 0;
                let mut bytes = [0; 3];
                match STANDARD.decode_slice(self.quad, &mut bytes) {
                    Ok(len) => self.bytes(bytes.get(..len).unwrap_or_default()),
                    Err(_) => self.is_broken = true,
                }
            }
        }
    }

    fn bytes(&mut self, mut data: &[u8]) {
        while let Some((first, rest)) = data.split_first() {
            if self.left > 0 {
                let taken = self.left.min(data.len());
                self.left -= taken;
                data = data.get(taken..).unwrap_or_default();
            } else {
                if let Some(place) = self.head.get_mut(self.head_len) {
                    *place = *first;
                }
                self.head_len += 1;
                data = rest;
                if self.head_len < HEAD {
                    continue;
                }
                let [_, length @ ..] = self.head;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            }
            if self.left == 0 {
                let [flags, ..] = self.head;
                self.is_behind_trailers |= flags & TRAILERS != 0;
                self.head_len = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"\0\0\0\0\x03one\0\0\0\0\0\x01\0\0\0\x02ab\x80\0\0\0\x04a:b\n";

    /// Where a message ends, the last one being the trailers.
    const ENDS: [usize; 5] = [0, 8, 13, 20, 29];

    fn expected(sent: usize) -> Place {
        match ENDS.contains(&sent) {
            _ if sent == BODY.len() => Place::BehindTrailers,
            true => Place::Between,
            false => Place::Within,
        }
    }

    #[test]
    fn message_boundaries_are_found_in_any_pieces() {
        for size in 1..=BODY.len() {
            let (mut frames, mut sent) = (GrpcWebFrames::default(), 0);
            assert_eq!(frames.place(), Place::Between);
            for piece in BODY.chunks(size) {
                frames.sent(piece, false);
                sent += piece.len();
                assert_eq!(frames.place(), expected(sent), "{sent} in {size}");
            }
        }
    }

    #[test]
    fn text_boundaries_are_found_with_any_padding() {
        for size in 1..=BODY.len() {
            let (mut frames, mut sent) = (GrpcWebFrames::default(), 0);
            for piece in BODY.chunks(size) {
                // Cut once more, within the text.
                let text = STANDARD.encode(piece);
                let (one, other) = text.split_at(text.len() / 3);
                frames.sent(one.as_bytes(), true);
                frames.sent(other.as_bytes(), true);
                sent += piece.len();
                assert_eq!(frames.place(), expected(sent), "{sent} in {size}");
            }
            let mut frames = GrpcWebFrames::default();
            let text = STANDARD.encode(BODY);
            text.as_bytes()
                .chunks(size)
                .for_each(|piece| frames.sent(piece, true));
            assert_eq!(frames.place(), Place::BehindTrailers);
        }
    }

    #[test]
    fn invalid_base64_is_within_a_message() {
        let mut frames = GrpcWebFrames::default();
        frames.sent(b"AAAA", true);
        frames.sent(b"A*==", true);
        frames.sent(b"AAAA", true);
        assert_eq!(frames.place(), Place::Within);
    }
}
