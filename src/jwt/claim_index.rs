//! The top-level claims of a payload, found once.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::Text;

/// Payloads with more claims are parsed at each lookup, so that an index stays small.
const MAX_INDEXED: usize = 64;

/// Where the claims of one payload are.
pub(crate) struct ClaimIndex(Option<Box<[Member]>>);

type Member = (Box<str>, Range<usize>);

impl ClaimIndex {
    pub(crate) fn new(payload: &str) -> Self {
        let mut found = Vec::new();
        let is_read = for_each(payload, |name, raw| {
            // The value is a part of the payload.
            let start = (raw.as_ptr() as usize).saturating_sub(payload.as_ptr() as usize);
            if found.len() <= MAX_INDEXED {
                found.push((name.into(), start..start.saturating_add(raw.len())));
            }
        });
        Self((is_read && found.len() <= MAX_INDEXED).then(|| found.into()))
    }

    /// Returns the JSON text of this claim. `payload` is the one that was indexed.
    pub(crate) fn get<'a>(&self, payload: &'a str, name: &str) -> Option<&'a str> {
        if let Some(index) = &self.0 {
            let (_, at) = index.iter().find(|(claim, _)| **claim == *name)?;
            return payload.get(at.clone());
        }
        let mut found = None;
        let is_read = for_each(payload, |claim, raw| {
            if claim == name {
                found = Some(raw);
            }
        });
        found.filter(|_| is_read)
    }
}

/// Returns whether the payload is a JSON object.
fn for_each<'a>(payload: &'a str, visit: impl FnMut(Cow<'a, str>, &'a str)) -> bool {
    struct Members<F>(F);

    impl<'de, F: FnMut(Cow<'de, str>, &'de str)> Visitor<'de> for Members<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                self.0(name, map.next_value::<&RawValue>()?.get());
            }
            Ok(())
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(payload);
    deserializer.deserialize_map(Members(visit)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_in_small_and_large_payloads() {
        let small = r#" { "a" : "x" , "b\u0063": [1, {"a":2}], "d":-1.5e3 } "#;
        let many: Vec<String> = (0..100).map(|n| format!("\"n{n}\":{n}")).collect();
        let large = format!(
            "{{{},{}",
            many.join(","),
            small.trim_start().trim_start_matches('{')
        );
        for payload in [small, &large] {
            let index = ClaimIndex::new(payload);
            assert_eq!(index.0.is_some(), payload == small);
            assert_eq!(index.get(payload, "a"), Some("\"x\""));
            assert_eq!(index.get(payload, "bc"), Some("[1, {\"a\":2}]"));
            assert_eq!(index.get(payload, "d"), Some("-1.5e3"));
            assert_eq!(index.get(payload, "c"), None);
        }
        for payload in ["", "[]", "{\"a\":", "null"] {
            assert_eq!(
                ClaimIndex::new(payload).get(payload, "a"),
                None,
                "{payload}"
            );
        }
    }
}
