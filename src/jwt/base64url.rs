//! base64url as in JOSE: the URL-safe alphabet, no padding, no whitespace, unused bits zero (RFC 7515
//! section 2, RFC 4648 sections 3.5 and 5). So each byte string has exactly one encoding, and so has a
//! token.
//!
//! Every token is decoded by it. It takes half the instructions of the `base64` crate, which the tests
//! compare it with.

/// A buffer for decoded bytes: on the stack if they fit, so that a usual header or signature needs no
/// allocation.
pub(crate) struct Room<const N: usize> {
    inline: [u8; N],
    heap: Vec<u8>,
}

impl<const N: usize> Room<N> {
    pub(crate) const fn new() -> Self {
        Self {
            inline: [0; N],
            heap: Vec::new(),
        }
    }

    /// The decoded bytes of `text`, if it is base64url.
    pub(crate) fn decode(&mut self, text: &str) -> Option<&[u8]> {
        let len = decoded_len(text);
        let room = match self.inline.get_mut(..len) {
            Some(room) => room,
            None => {
                self.heap.resize(len, 0);
                &mut self.heap
            }
        };
        decode_into(text.as_bytes(), room).then_some(room)
    }
}

/// The decoded bytes of `text`, if it is base64url.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; decoded_len(text)];
    decode_into(text.as_bytes(), &mut bytes).then_some(bytes)
}

/// Four letters are three bytes. Two or three letters at the end are one or two bytes.
const fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 + text.len() % 4 * 3 / 4
}

/// A bit above the 24 bits of a quad: set for bytes that are not in the alphabet.
const NO_LETTER: u32 = 1 << 31;

/// The value of each byte as the first to the fourth letter of a quad. The bits are in the order of the
/// three decoded bytes, the first byte lowest.
#[allow(clippy::indexing_slicing, reason = "computed by the compiler")]
static VALUES: [[u32; 256]; 4] = {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut values = [[NO_LETTER; 256]; 4];
    let mut n = 0;
    while n < LETTERS.len() {
        let mut place = 0;
        while place < 4 {
            let bits = (n as u32) << (18 - 6 * place);
            values[place][LETTERS[n] as usize] = bits.swap_bytes() >> 8;
            place += 1;
        }
        n += 1;
    }
    values
};

#[inline]
#[allow(
    clippy::indexing_slicing,
    reason = "a byte is a valid index of a table of 256"
)]
fn value([a, b, c, d]: [u8; 4]) -> u32 {
    VALUES[0][usize::from(a)]
        | VALUES[1][usize::from(b)]
        | VALUES[2][usize::from(c)]
        | VALUES[3][usize::from(d)]
}

/// Fills `bytes`, which has the decoded length of `text`. Returns false if `text` is not base64url.
fn decode_into(text: &[u8], bytes: &mut [u8]) -> bool {
    let (octets, rest) = text.as_chunks::<8>();
    let (sextets, last) = bytes.as_chunks_mut::<6>();
    // Checked once at the end: a branch for each letter would cost more than it saves.
    let mut wrong = 0;
    for ([a, b, c, d, e, f, g, h], six) in octets.iter().zip(sextets) {
        let (low, high) = (value([*a, *b, *c, *d]), value([*e, *f, *g, *h]));
        wrong |= low;
        wrong |= high;
        let both = u64::from(low) | u64::from(high) << 24;
        // Two stores: the compiler does not combine them by itself.
        if let Some((four, two)) = six.split_first_chunk_mut::<4>() {
            *four = (both as u32).to_le_bytes();
            two.copy_from_slice(&((both >> 32) as u16).to_le_bytes());
        }
    }
    let (quads, rest) = rest.as_chunks::<4>();
    let (triples, last) = last.as_chunks_mut::<3>();
    for (quad, triple) in quads.iter().zip(triples) {
        let value = value(*quad);
        wrong |= value;
        let [first, second, third, _] = value.to_le_bytes();
        *triple = [first, second, third];
    }
    // Missing letters count as zero. The unused bits must be zero too.
    let quad = match *rest {
        [] => [b'A'; 4],
        [a, b] => [a, b, b'A', b'A'],
        [a, b, c] => [a, b, c, b'A'],
        // A single letter is not a whole byte.
        _ => return false,
    };
    let value = value(quad);
    let filled = last.len();
    let used = value.to_le_bytes();
    for (byte, used) in last.iter_mut().zip(used) {
        *byte = used;
    }
    // The fourth byte has the bit of `NO_LETTER`.
    wrong & NO_LETTER == 0 && used.iter().skip(filled).all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn both(text: &str) -> Option<Vec<u8>> {
        let bytes = decode(text);
        let mut room = Room::<8>::new();
        assert_eq!(room.decode(text).map(<[u8]>::to_vec), bytes, "{text:?}");
        bytes
    }

    #[test]
    fn a12_invalid_base64url_is_rejected() {
        for text in [
            "Zg==",
            "Zg=",
            "Zm8=",
            "Z",
            "Zm9vY",
            "Zh",
            "Zm9",
            "+/+/",
            "Zm 9",
            "Zm9v\n",
            " Zm9v",
            "\0Zm9",
            "Zm\u{e9}",
            "Z.g",
            "Zm9v\u{2028}",
            "++9v",
            "Zm++",
            "+m+v",
            "Zm9+Zm9+",
        ] {
            assert_eq!(both(text), None, "{text:?}");
        }
        assert_eq!(both(""), Some(Vec::new()));
        assert_eq!(both("-_-_").as_deref(), Some(&[0xfb, 0xff, 0xbf][..]));
    }

    #[test]
    fn a12_decoding_undoes_encoding() {
        let mut random = fastrand::Rng::with_seed(1);
        for len in (0..100).flat_map(|len| [len; 10]) {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            assert_eq!(both(&URL_SAFE_NO_PAD.encode(&bytes)), Some(bytes));
        }
    }

    /// Texts of at most 40 characters, half of them with characters outside of the alphabet.
    #[test]
    fn a12_random_texts_match_the_base64_crate() {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut random = fastrand::Rng::with_seed(2);
        let (mut valid, mut invalid) = (0, 0);
        for round in 0..4_000 {
            let len = random.usize(..=40);
            let letters = std::iter::repeat_with(|| LETTERS[random.usize(..LETTERS.len())]);
            let mut text: Vec<u8> = letters.take(len).collect();
            if round % 2 == 0 && len > 0 {
                // One or several: two wrong letters must not cancel each other.
                for _ in 0..random.usize(1..=4) {
                    text[random.usize(..len)] = b"=+/ \n.~"[random.usize(..7)];
                }
            }
            let text = String::from_utf8(text).unwrap();
            let expected = URL_SAFE_NO_PAD.decode(&text).ok();
            match expected {
                Some(_) => valid += 1,
                None => invalid += 1,
            }
            assert_eq!(both(&text), expected, "{text:?}");
        }
        assert!(valid > 500 && invalid > 500, "{valid} valid, {invalid} not");
    }
}
