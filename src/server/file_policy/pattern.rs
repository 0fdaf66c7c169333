//! Path patterns in the syntax of axum's router, and the paths that they are compared with.

use std::borrow::Cow;

/// Longer patterns are errors.
const MAX_LEN: usize = 512;

/// matchit panics if a pattern has more parameters.
const MAX_PARAMETERS: usize = 25;

/// A path pattern.
#[derive(Debug, Clone, Default)]
pub(super) struct Pattern {
    pub(super) text: Box<str>,
    /// The text without the names of the parameters. Patterns with the same key match the same paths.
    pub(super) key: Box<str>,
    /// The key up to each wildcard, and the kind of that wildcard. Empty if the pattern is a path.
    pub(super) wildcards: Vec<(Box<str>, Wildcard)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wildcard {
    Parameter,
    CatchAll,
}

impl Pattern {
    /// Parses a pattern. The error says why it is invalid.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_LEN {
            return Err("it is longer than 512 bytes");
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err("it does not begin with `/`");
        };
        let mut key = String::with_capacity(text.len());
        let mut wildcards = Vec::new();
        let mut segments = rest.split('/').peekable();
        while let Some(segment) = segments.next() {
            key.push('/');
            let is_last = segments.peek().is_none();
            match segment {
                "" if is_last => continue,
                "" => return Err("it has an empty segment"),
                "." | ".." => return Err("it has a dot segment, which clients remove"),
                _ => {}
            }
            if segment.starts_with([':', '*']) {
                return Err("it has the syntax of other routers; write `{name}` or `{*name}`");
            }
            let Some((literal, rest)) = segment.split_once('{') else {
                literals(segment, &mut key)?;
                continue;
            };
            literals(literal, &mut key)?;
            let Some(name) = rest.strip_suffix('}') else {
                return Err(
                    "text after a parameter, or an unmatched brace; a parameter ends its segment",
                );
            };
            let (name, kind) = match name.strip_prefix('*') {
                Some(name) => (name, Wildcard::CatchAll),
                None => (name, Wildcard::Parameter),
            };
            let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
            if name.is_empty() || !name.bytes().all(is_name) {
                return Err("a parameter needs a name of letters, digits, `_` and `-`");
            }
            if kind == Wildcard::CatchAll && !is_last {
                return Err("a catch-all is not the last segment");
            }
            if kind == Wildcard::CatchAll && !literal.is_empty() {
                return Err("a catch-all is not a whole segment");
            }
            wildcards.push((key.as_str().into(), kind));
            if wildcards.len() > MAX_PARAMETERS {
                return Err("it has more than 25 parameters");
            }
            key.push_str(match kind {
                Wildcard::Parameter => "{}",
                Wildcard::CatchAll => "{*}",
            });
        }
        Ok(Self {
            text: text.into(),
            key: key.into(),
            wildcards,
        })
    }
}

/// Accepts the characters that a URI has without escapes. An escape in a pattern would match only
/// one of its spellings.
fn literals(text: &str, key: &mut String) -> Result<(), &'static str> {
    for b in text.bytes() {
        match b {
            b'%' => return Err("it has an escape; write a parameter in its place"),
            b'{' | b'}' => return Err("it has an unmatched brace"),
            _ if b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b) => {}
            _ => return Err("it has a character that URIs escape; write a parameter in its place"),
        }
    }
    key.push_str(text);
    Ok(())
}

/// Whether every program reads this path in the same way: there are no empty segments, no dot
/// segments and no backslashes.
pub(super) fn is_plain(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let is_plain = |segment: &str| {
        let is_ambiguous = |b: u8| b == b'\\' || b.is_ascii_control();
        !matches!(segment, "" | "." | "..") && !segment.bytes().any(is_ambiguous)
    };
    let mut segments = rest.strip_suffix('/').unwrap_or(rest).split('/');
    rest.is_empty() || segments.all(is_plain)
}

/// Decodes the escapes of a path. `None` if one is malformed, or the result is not UTF-8.
pub(super) fn decoded(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            _ => b,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p01_patterns_are_those_of_axum() {
        for (text, key) in [
            ("/", "/"),
            ("/reports", "/reports"),
            ("/reports/", "/reports/"),
            ("/reports/{id}", "/reports/{}"),
            ("/v{version}/{*rest}", "/v{}/{*}"),
            ("/a/{x}/b/{y}/", "/a/{}/b/{}/"),
            ("/items:batch", "/items:batch"),
        ] {
            assert_eq!(&*Pattern::parse(text).unwrap().key, key);
        }
        for text in [
            "",
            "reports",
            "//",
            "/a//b",
            "/a/../b",
            "/./a",
            "/:id",
            "/*rest",
            "/{}",
            "/{*}",
            "/{a",
            "/a}",
            "/{a}b",
            "/{a}{b}",
            "/{{a}}",
            "/{a/b}",
            "/{*a}/b",
            "/a{*b}",
            "/a%20b",
            "/ä",
            "/a b",
            "/a?b",
            "/a#b",
            "/a\\b",
            &"/{a}".repeat(26),
            &format!("/{}", "a".repeat(512)),
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
        assert!(Pattern::parse(&"/{a}".repeat(25)).is_ok());
    }

    #[test]
    fn p01_paths_with_several_readings_are_not_plain() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/...",
            "/a.b",
            "/.well-known/x",
            "/a;b",
        ] {
            assert!(is_plain(path), "{path}");
        }
        for path in [
            "", "*", "a", "//", "//a", "/a//", "/a//b", "/.", "/..", "/a/../b", "/a/.", "/a\\b",
            "/a\u{7f}", "/a\n",
        ] {
            assert!(!is_plain(path), "{path}");
        }
        assert_eq!(decoded("/a%2Fb%c3%A4").as_deref(), Some("/a/bä"));
        for malformed in ["/%", "/%2", "/%2g", "/%ff", "/%+1"] {
            assert_eq!(decoded(malformed), None, "{malformed}");
        }
    }
}
