//! Required values of claims.

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::policy_error::PolicyError;
use crate::jwt::read_text;

/// The required value of a claim, for [`Allow::claim`](super::Allow::claim).
///
/// Values are strings, booleans and integers. Types are not converted: `1` is neither `"1"` nor
/// `1.0`. A missing claim matches nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    values: Box<[ClaimValue]>,
    in_array: bool,
}

/// A value that a claim can have: a string, a boolean or an integer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimValue(Value);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(Box<str>),
    Integer(i64),
    Boolean(bool),
}

impl Claim {
    /// Requires this value.
    pub fn equals(value: impl Into<ClaimValue>) -> Self {
        Self {
            values: [value.into()].into(),
            in_array: false,
        }
    }

    /// Requires one of these values.
    ///
    /// # Errors
    /// The list of values is empty.
    pub fn one_of<V: Into<ClaimValue>>(
        values: impl IntoIterator<Item = V>,
    ) -> Result<Self, PolicyError> {
        Self::any(values, false)
    }

    /// Requires an array with this element, or this value alone.
    pub fn contains(value: impl Into<ClaimValue>) -> Self {
        Self {
            in_array: true,
            ..Self::equals(value)
        }
    }

    /// Requires an array with one of these elements, or one of these values alone.
    ///
    /// # Errors
    /// The list of values is empty.
    pub fn contains_any<V: Into<ClaimValue>>(
        values: impl IntoIterator<Item = V>,
    ) -> Result<Self, PolicyError> {
        Self::any(values, true)
    }

    fn any<V: Into<ClaimValue>>(
        values: impl IntoIterator<Item = V>,
        in_array: bool,
    ) -> Result<Self, PolicyError> {
        let values: Box<[ClaimValue]> = values.into_iter().map(Into::into).collect();
        if values.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok(Self { values, in_array })
    }

    /// Returns whether the claim with this JSON text matches.
    pub(crate) fn matches(&self, raw: &str) -> bool {
        if self.in_array && raw.starts_with('[') {
            let mut deserializer = serde_json::Deserializer::from_str(raw);
            return deserializer
                .deserialize_seq(Elements(self))
                .unwrap_or(false);
        }
        self.is_one(raw)
    }

    fn is_one(&self, raw: &str) -> bool {
        // An escaped string is decoded once.
        let text = read_text(raw);
        self.values.iter().any(|value| match &value.0 {
            Value::Text(expected) => text.as_deref() == Some(&**expected),
            Value::Integer(expected) => text.is_none() && raw.parse() == Ok(*expected),
            Value::Boolean(expected) => raw.parse() == Ok(*expected),
        })
    }
}

/// Reads an array to its end without copying it.
struct Elements<'a>(&'a Claim);

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            found = found || self.0.is_one(raw.get());
        }
        Ok(found)
    }
}

impl From<&str> for ClaimValue {
    fn from(text: &str) -> Self {
        Self(Value::Text(text.into()))
    }
}

impl From<String> for ClaimValue {
    fn from(text: String) -> Self {
        Self(Value::Text(text.into()))
    }
}

impl From<i64> for ClaimValue {
    fn from(integer: i64) -> Self {
        Self(Value::Integer(integer))
    }
}

impl From<bool> for ClaimValue {
    fn from(boolean: bool) -> Self {
        Self(Value::Boolean(boolean))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.in_array { "contains" } else { "equals" };
        let values = self.values.iter().map(|value| match &value.0 {
            Value::Text(text) => text as &dyn fmt::Debug,
            Value::Integer(integer) => integer,
            Value::Boolean(boolean) => boolean,
        });
        write!(f, "{name} ")?;
        f.debug_list().entries(values).finish()
    }
}
