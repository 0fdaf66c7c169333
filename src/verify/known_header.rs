//! Headers that this thread has read before.
//!
//! An issuer writes the same header into every token that it signs with one key, so nearly all tokens of
//! a service begin with one of a few texts. A parsed header depends only on its text and on whether
//! unknown fields are allowed, so an entry is never outdated. Only headers of tokens with a valid
//! signature are kept, so invalid tokens cannot replace them.

use std::cell::RefCell;
use std::sync::Arc;

use crate::jwt::{Algorithm, Header};

const SLOTS: usize = 16;

/// Longer texts are read each time. Together with their key IDs they take 16 KiB of a thread at most.
const MAX_LEN: usize = 512;

/// A header that was acceptable.
#[derive(Clone)]
pub(super) struct KnownHeader(Arc<Known>);

struct Known {
    /// The encoded text.
    text: Box<str>,
    allow_unknown: bool,
    algorithm: Algorithm,
    key_id: Option<Box<str>>,
}

thread_local! {
    static KNOWN: RefCell<[Option<KnownHeader>; SLOTS]> = const { RefCell::new([const { None }; SLOTS]) };
}

impl KnownHeader {
    /// The header with this text, if it was read under the same rule.
    pub(super) fn find(text: &str, allow_unknown: bool) -> Option<Self> {
        let at = slot(text)?;
        let find = |known: &RefCell<[Option<Self>; SLOTS]>| {
            let known = known.try_borrow().ok()?;
            let Self(header) = known.get(at)?.as_ref()?;
            let same = *header.text == *text && header.allow_unknown == allow_unknown;
            same.then(|| Self(Arc::clone(header)))
        };
        KNOWN.try_with(find).ok().flatten()
    }

    /// Stores the header of this text, in place of another one.
    pub(super) fn keep(text: &str, allow_unknown: bool, header: &Header<'_>) {
        let Some(at) = slot(text) else {
            return;
        };
        let known = Self(Arc::new(Known {
            text: text.into(),
            allow_unknown,
            algorithm: header.algorithm,
            key_id: header.key_id.as_deref().map(Into::into),
        }));
        // A thread that is ending stores nothing.
        let _ = KNOWN.try_with(|all| {
            let mut all = all.try_borrow_mut().ok()?;
            all.get_mut(at)?.replace(known)
        });
    }

    pub(super) fn header(&self) -> Header<'_> {
        Header {
            algorithm: self.0.algorithm,
            key_id: self.0.key_id.as_deref().map(Into::into),
        }
    }
}

/// The slot of a text; `None` if it is not stored. Headers of two keys differ in the middle, where the
/// key ID is. Only an issuer could make them collide.
fn slot(text: &str) -> Option<usize> {
    if text.len() > MAX_LEN {
        return None;
    }
    let middle = text.as_bytes().get(text.len() / 2..)?.first_chunk::<8>()?;
    let spread = u64::from_le_bytes(*middle).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some((spread >> (u64::BITS - SLOTS.ilog2())) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(key_id: &str) -> Header<'_> {
        Header {
            algorithm: Algorithm::ES256,
            key_id: Some(key_id.into()),
        }
    }

    #[test]
    fn header_is_found_by_text_and_rule() {
        let text = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImtleS0xIiwidHlwIjoiSldUIn0";
        assert!(KnownHeader::find(text, false).is_none());
        KnownHeader::keep(text, false, &header("key-1"));
        let found = KnownHeader::find(text, false).expect("kept");
        assert_eq!(found.header().key_id.as_deref(), Some("key-1"));
        assert!(KnownHeader::find(text, true).is_none());
        for (at, _) in text.char_indices() {
            let mut other = text.to_owned();
            other.replace_range(at..=at, "_");
            assert!(KnownHeader::find(&other, false).is_none(), "{other}");
            assert!(KnownHeader::find(&text[..at], false).is_none());
        }
        // Another thread has read nothing yet.
        let elsewhere = std::thread::spawn(move || KnownHeader::find(text, false).is_none());
        assert!(elsewhere.join().unwrap());
    }

    #[test]
    fn headers_of_two_keys_are_kept_together() {
        // They differ in the middle only, where the key ID is.
        let texts =
            ["a", "b"].map(|key| format!("eyJhbGciOiJFUzI1NiIs{}InR5cCI6IkpXVCJ9", key.repeat(20)));
        for text in &texts {
            KnownHeader::keep(text, false, &header(text));
        }
        for text in &texts {
            assert!(KnownHeader::find(text, false).is_some(), "{text}");
        }
    }

    #[test]
    fn stored_headers_are_bounded_in_number_and_length() {
        let long = "e".repeat(MAX_LEN + 1);
        KnownHeader::keep(&long, false, &header("long"));
        assert!(KnownHeader::find(&long, false).is_none());
        assert!(KnownHeader::find("", false).is_none());
        let longest = "e".repeat(MAX_LEN);
        KnownHeader::keep(&longest, false, &header("longest"));
        assert!(KnownHeader::find(&longest, false).is_some());
        let texts: Vec<_> = (0..200)
            .map(|n| format!("eyJhbGciOiJ{n:032}IsInR5cCI6IkpXVCJ9"))
            .collect();
        for text in &texts {
            KnownHeader::keep(text, false, &header(text));
            let found = KnownHeader::find(text, false).expect("kept");
            assert_eq!(found.header().key_id.as_deref(), Some(&**text));
        }
        let found = texts
            .iter()
            .filter(|text| KnownHeader::find(text, false).is_some());
        assert!(found.count() <= SLOTS);
    }
}
