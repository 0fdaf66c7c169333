//! JSON of tokens and keys: strings without copies, unique names, exact numbers.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::clock::UnixTime;

/// A JSON string, borrowed unless it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// The string in a raw JSON value; `None` if it is not a string, or not valid text (a lone surrogate).
pub(crate) fn read_text(raw: &str) -> Option<Cow<'_, str>> {
    // Checked by the first byte: a parser's error would need an allocation.
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    // A parser has read the value already: without an escape, it is the text itself.
    if !inner.as_bytes().contains(&b'\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<Text<'_>>(raw)
        .ok()
        .map(|text| text.0)
}

/// The NumericDate (RFC 7519 section 2) in a raw JSON value: with or without a fraction or an exponent,
/// never rounded to seconds. Beyond `i64` it saturates; `None` if it overflows a double.
pub(crate) fn read_numeric_date(raw: &str) -> Option<UnixTime> {
    if let Ok(secs) = raw.parse::<i64>() {
        return Some(UnixTime::from_secs(secs));
    }
    // Rust's parser accepts `inf` and `NaN`, which JSON does not.
    if !raw.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return None;
    }
    if let Some(exact) = read_fraction(raw) {
        return Some(exact);
    }
    raw.parse::<f64>().ok().and_then(UnixTime::from_secs_f64)
}

/// `123.456` read digit by digit: a double cannot represent ten digits of seconds with nanoseconds
/// exactly.
fn read_fraction(raw: &str) -> Option<UnixTime> {
    let (whole, fraction) = raw.split_once('.')?;
    if whole.starts_with('-') || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let secs = whole.parse::<i64>().ok()?;
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    Some(UnixTime::new(secs, nanos))
}

/// The raw values of a JSON object that are kept. Each is checked when it is used.
pub(crate) trait Object<'a> {
    /// Whether skipped members must be unique too.
    const ALL_ONCE: bool;

    /// Where the value of the member with this name is kept; `None` if it is skipped.
    fn place(&mut self, name: &str) -> Option<&mut Option<&'a str>>;
}

/// Reads all of `json` into `object`, in one pass and without recursion into skipped members. Returns
/// whether a member is a duplicate.
///
/// # Errors
/// It is not one JSON object. The error may quote the text: it must not be shown.
pub(crate) fn read_object<'a>(
    json: &'a str,
    object: &mut impl Object<'a>,
) -> Result<bool, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let is_repeated = deserializer.deserialize_map(ObjectReader(object))?;
    deserializer.end()?;
    Ok(is_repeated)
}

struct ObjectReader<'o, O>(&'o mut O);

impl<'de, O: Object<'de>> Visitor<'de> for ObjectReader<'_, O> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut others = Names::new();
        let mut is_repeated = false;
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            is_repeated |= if let Some(place) = self.0.place(&name) {
                place
                    .replace(map.next_value::<&RawValue>()?.get())
                    .is_some()
            } else {
                map.next_value::<IgnoredAny>()?;
                O::ALL_ONCE && !others.insert(name)
            };
        }
        Ok(is_repeated)
    }
}

/// The names of one object, to find duplicates. A few names are compared with each other; further ones
/// go into a set, so that the cost is linear in the length of the object.
struct Names<'a> {
    few: [Option<Cow<'a, str>>; FEW],
    count: usize,
    many: Option<HashSet<Cow<'a, str>>>,
}

const FEW: usize = 8;

impl<'a> Names<'a> {
    const fn new() -> Self {
        Self {
            few: [const { None }; FEW],
            count: 0,
            many: None,
        }
    }

    /// Inserts `name`. Returns false if it was there already.
    fn insert(&mut self, name: Cow<'a, str>) -> bool {
        let mut seen = self.few.iter().take(self.count).flatten();
        if seen.any(|seen| *seen == name) {
            return false;
        }
        if let Some(free) = self.few.get_mut(self.count) {
            *free = Some(name);
            self.count += 1;
            return true;
        }
        self.many.get_or_insert_default().insert(name)
    }
}
