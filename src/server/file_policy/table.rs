//! Access to the TOML of a document, with errors that have a position.

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{FilePolicyError, FilePolicyErrorReason as Reason};
use crate::presentable::presentable;

/// A table of a document, and where it begins.
pub(super) struct Table<'a> {
    /// The document, for the positions of errors.
    pub(super) document: &'a str,
    pub(super) at: Range<usize>,
    pub(super) entries: &'a DeTable<'a>,
}

pub(super) type Value<'a> = Spanned<DeValue<'a>>;

impl<'a> Table<'a> {
    /// An error at this byte of the document.
    pub(super) fn error_at(&self, at: usize, why: impl AsRef<str>) -> FilePolicyError {
        FilePolicyError::at(Reason::Invalid, self.document, at, why)
    }

    /// An error about this table.
    pub(super) fn error(&self, why: impl AsRef<str>) -> FilePolicyError {
        self.error_at(self.at.start, why)
    }

    /// An error about this value.
    pub(super) fn wrong<T>(&self, value: &Spanned<T>, why: impl AsRef<str>) -> FilePolicyError {
        self.error_at(value.span().start, why)
    }

    /// The table that this value is.
    pub(super) fn inner(
        &self,
        value: &'a Value<'a>,
        what: &str,
    ) -> Result<Table<'a>, FilePolicyError> {
        match value.get_ref() {
            DeValue::Table(entries) => Ok(Table {
                document: self.document,
                at: value.span(),
                entries,
            }),
            _ => Err(self.wrong(value, format!("{what} is not a table"))),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.entries.get(key)
    }

    /// Rejects unknown keys.
    pub(super) fn keys(&self, known: &[&str]) -> Result<(), FilePolicyError> {
        let mut keys = self.entries.keys();
        match keys.find(|key| !known.contains(&&**key.get_ref())) {
            None => Ok(()),
            Some(unknown) => {
                let key = shown(unknown.get_ref());
                let known = known.join("`, `");
                let why = format!("unknown key {key}; the keys here are `{known}`");
                Err(self.wrong(unknown, why))
            }
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<Spanned<&'a str>>, FilePolicyError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        self.text_of(value, key).map(Some)
    }

    /// A key whose only value is `true`.
    pub(super) fn flag(&self, key: &str) -> Result<bool, FilePolicyError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) if value.get_ref().as_bool() == Some(true) => Ok(true),
            Some(value) => {
                let why = format!("`{key}` is not `true`; leave it out if it does not apply");
                Err(self.wrong(value, why))
            }
        }
    }

    /// A list of texts, not empty and without duplicates.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<Spanned<&'a str>>, FilePolicyError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let DeValue::Array(items) = value.get_ref() else {
            let why = format!("`{key}` is not a list; write `{key} = [\"…\"]`");
            return Err(self.wrong(value, why));
        };
        if items.is_empty() {
            let why = format!("`{key}` is empty; leave it out if it does not apply");
            return Err(self.wrong(value, why));
        }
        let mut known = HashSet::new();
        let mut texts = Vec::with_capacity(items.len());
        for item in items.iter() {
            let text = self.text_of(item, key)?;
            if !known.insert(*text.get_ref()) {
                let why = format!("{} is in `{key}` twice", shown(text.get_ref()));
                return Err(self.wrong(item, why));
            }
            texts.push(text);
        }
        Ok(texts)
    }

    fn text_of(
        &self,
        value: &'a Value<'_>,
        key: &str,
    ) -> Result<Spanned<&'a str>, FilePolicyError> {
        match value.get_ref().as_str() {
            Some("") => Err(self.wrong(value, format!("`{key}` has an empty text"))),
            Some(text) => Ok(Spanned::new(value.span(), text)),
            None => Err(self.wrong(value, format!("`{key}` has a value that is not a text"))),
        }
    }
}

/// The text in quotes, bounded and escaped.
pub(super) fn shown(text: &str) -> String {
    format!("\"{}\"", presentable(&bounded(text, 80)))
}

/// The first characters of a text.
pub(super) fn bounded(text: &str, most: usize) -> String {
    let mut chars = text.chars();
    let mut bounded: String = chars.by_ref().take(most).collect();
    if chars.next().is_some() {
        bounded.push('…');
    }
    bounded
}
