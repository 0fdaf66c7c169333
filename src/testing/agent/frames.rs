//! Reads the heads of HTTP/2 frames in a byte stream.

/// The type, flags and stream of one frame (RFC 9113 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    /// Of DATA and HEADERS.
    pub(super) const END_STREAM: u8 = 1;
    /// Of PING.
    pub(super) const ACK: u8 = 1;

    fn read(bytes: [u8; 9]) -> (usize, Self) {
        let [a, b, c, kind, flags, s1, s2, s3, s4] = bytes;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // The highest bit of the stream is reserved.
        let stream = u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]);
        let head = Self {
            kind,
            flags,
            stream,
        };
        (length, head)
    }
}

/// Finds the frames in one direction of a connection. The bytes may arrive in pieces of any size.
#[derive(Debug)]
pub(super) struct FrameReader {
    /// How many bytes to skip: the client's preface, then the contents of frames.
    skip: usize,
    head: [u8; 9],
    have: usize,
}

impl FrameReader {
    /// For the bytes of a client, which begin with 24 bytes of preface (RFC 9113 section 3.4).
    pub(super) fn of_client() -> Self {
        Self {
            skip: 24,
            head: [0; 9],
            have: 0,
        }
    }

    pub(super) fn of_server() -> Self {
        Self {
            skip: 0,
            head: [0; 9],
            have: 0,
        }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn at_boundary(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], mut frame: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            while self.skip == 0
                && let Some((first, rest)) = bytes.split_first()
            {
                if let Some(place) = self.head.get_mut(self.have) {
                    *place = *first;
                }
                self.have += 1;
                bytes = rest;
                if self.have == self.head.len() {
                    self.have = 0;
                    let (length, head) = FrameHead::read(self.head);
                    self.skip = length;
                    frame(head);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]); // SETTINGS
        bytes.extend([0, 0, 8, 6, 0, 0, 0, 0, 0]); // PING
        bytes.extend([9; 8]);
        bytes.extend([0, 0, 3, 0, 1, 0x80, 0, 0, 5]); // DATA of stream 5, its last
        bytes.extend([7; 3]);
        for size in 1..=bytes.len() {
            let mut reader = FrameReader::of_client();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                reader.feed(piece, |head| {
                    seen.push((head.kind, head.flags, head.stream))
                });
            }
            assert_eq!(seen, [(4, 0, 0), (6, 0, 0), (0, 1, 5)], "by {size}");
            assert!(reader.at_boundary());
        }
    }
}
