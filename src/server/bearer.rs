//! Finds the one bearer credential in a header map (RFC 6750 section 2.1, RFC 9110 section
//! 11.6.2), borrowed.

use http::header::{AUTHORIZATION, Entry};
use http::{HeaderMap, HeaderName};

const SCHEME: &[u8] = b"bearer";

/// The number of bytes of scheme and spaces that may precede a token of the maximum length.
const PREFIX_ROOM: usize = 64;

/// The content of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential<'a> {
    /// The header is missing.
    Absent,
    /// The header has a credential of another scheme.
    OtherScheme,
    /// The header does not have exactly one bearer credential.
    Malformed,
    /// The token is longer than the maximum and was not read.
    TooLong,
    /// The text in the place of the token. [`is_token68`] is checked only if the token is invalid:
    /// a valid token consists of three base64url parts.
    Token(&'a str),
}

/// Finds the credential.
pub(crate) fn credential<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    max_token_len: usize,
) -> Credential<'a> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Credential::Absent;
    };
    if values.next().is_some() {
        return Credential::Malformed;
    }
    read(value.as_bytes(), name != AUTHORIZATION, max_token_len)
}

/// As [`credential`], and marks all lines of this header sensitive, so that debug output hides them.
/// Returns `None` if [`credential`] must be called. With one line, the usual case, this is one
/// look-up.
pub(crate) fn mark_and_read<'a>(
    headers: &'a mut HeaderMap,
    name: &HeaderName,
    max_token_len: usize,
) -> Option<Credential<'a>> {
    if headers.len() != headers.keys_len() {
        mark_sensitive(headers, name);
        return None;
    }
    let value = headers.get_mut(name)?;
    value.set_sensitive(true);
    Some(read(value.as_bytes(), name != AUTHORIZATION, max_token_len))
}

/// Reads one field line. With `bare`, the scheme may be missing.
fn read(value: &[u8], bare: bool, max_token_len: usize) -> Credential<'_> {
    let rest = match scheme(value) {
        Scheme::Bearer(rest) => rest,
        Scheme::Other if bare => value,
        Scheme::Other if has_second_bearer(value) => return Credential::Malformed,
        Scheme::Other => return Credential::OtherScheme,
        Scheme::Broken => return Credential::Malformed,
    };
    if rest.len() > max_token_len.saturating_add(PREFIX_ROOM) {
        return Credential::TooLong;
    }
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    let token = rest.get(spaces..).unwrap_or_default();
    if token.is_empty() {
        return Credential::Malformed;
    }
    if token.len() > max_token_len {
        return Credential::TooLong;
    }
    match std::str::from_utf8(token) {
        Ok(token) => Credential::Token(token),
        Err(_) => Credential::Malformed,
    }
}

enum Scheme<'a> {
    /// `bearer` and the rest: nothing, or a space and more.
    Bearer(&'a [u8]),
    /// Another scheme.
    Other,
    /// No scheme, or `bearer` followed by another character than a space.
    Broken,
}

fn scheme(value: &[u8]) -> Scheme<'_> {
    if let Some((head, rest)) = value.split_at_checked(SCHEME.len())
        && head.eq_ignore_ascii_case(SCHEME)
    {
        return match rest.first() {
            None | Some(b' ') => Scheme::Bearer(rest),
            Some(byte) if is_tchar(*byte) => Scheme::Other,
            Some(_) => Scheme::Broken,
        };
    }
    match value.first() {
        Some(byte) if is_tchar(*byte) => Scheme::Other,
        _ => Scheme::Broken,
    }
}

/// Returns whether a bearer credential follows a comma, as when two field lines were joined
/// (RFC 9110 section 5.3). Commas inside the parameters of other schemes do not match.
///
/// Reads the whole value at any length: another server that reads this header could use the second
/// credential. The server's limit on header sizes bounds the work, and nothing is copied.
fn has_second_bearer(value: &[u8]) -> bool {
    value
        .split(|byte| *byte == b',')
        .skip(1)
        .any(|part| matches!(scheme(part.trim_ascii()), Scheme::Bearer(_)))
}

/// A character of a token in the sense of RFC 9110 section 5.6.2.
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `token68` of RFC 9110 section 11.2, the same as `b64token` of RFC 6750 section 2.1.
pub(crate) fn is_token68(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    let legal = |b: u8| {
        b.is_ascii_alphanumeric() | matches!(b, b'-'..=b'/') | matches!(b, b'_' | b'~' | b'+')
    };
    // Without a branch per byte, so that the compiler can check many bytes at a time. Every byte of
    // an invalid token is read, but its length is bounded.
    !body.is_empty() && body.bytes().fold(true, |all, b| all & legal(b))
}

/// Marks all lines of this header sensitive, so that debug output hides them.
pub(crate) fn mark_sensitive(headers: &mut HeaderMap, name: &HeaderName) {
    if headers.contains_key(name)
        && let Entry::Occupied(mut entry) = headers.entry(name)
    {
        entry.iter_mut().for_each(|value| value.set_sensitive(true));
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const MAX: usize = 8192;

    #[test]
    fn token68_matches_rfc_9110_byte_for_byte() {
        let legal = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/";
        for byte in (0..=127).filter(|byte| *byte != b'=') {
            for at in [0, 1, 40, 64] {
                let mut token = [b'a'; 65];
                token[at] = byte;
                let token = std::str::from_utf8(&token).unwrap();
                assert_eq!(is_token68(token), legal.contains(&byte), "{token:?}");
            }
        }
        assert!(is_token68("a==") && !is_token68("a=a") && !is_token68("=") && !is_token68(""));
        assert!(!is_token68("caf\u{e9}"));
    }

    fn of<'a>(headers: &'a HeaderMap, values: &[&[u8]]) -> Credential<'a> {
        assert_eq!(headers.get_all(AUTHORIZATION).iter().count(), values.len());
        credential(headers, &AUTHORIZATION, MAX)
    }

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[track_caller]
    fn assert_reads(values: &[&[u8]], expected: Credential<'_>) {
        let headers = headers(values);
        let mut found = of(&headers, values);
        if let Credential::Token(token) = found
            && !is_token68(token)
        {
            found = Credential::Malformed;
        }
        assert_eq!(found, expected, "{values:?}");
    }

    #[test]
    fn jwt18_bearer_scheme_allows_any_case_and_spaces() {
        for value in [
            "Bearer a.b.c",
            "bearer a.b.c",
            "BEARER   a.b.c",
            "bEaReR a.b.c",
        ] {
            assert_reads(&[value.as_bytes()], Credential::Token("a.b.c"));
        }
        assert_reads(&[b"Bearer aA0-._~+/=="], Credential::Token("aA0-._~+/=="));
    }

    #[test]
    fn no_credential_or_another_scheme_is_missing() {
        assert_reads(&[], Credential::Absent);
        for value in [
            "Basic dXNlcjpwYXNz",
            "Digest username=\"a\", realm=\"b, c\", nonce=\"bearerish\"",
            "Bearerx a.b.c",
            "Bearer-token a.b.c",
            "DPoP a.b.c",
            "Bear",
            "a.b.c",
        ] {
            assert_reads(&[value.as_bytes()], Credential::OtherScheme);
        }
    }

    #[test]
    fn a18_anything_but_one_credential_is_malformed() {
        let values: &[&[u8]] = &[
            b"",
            b" ",
            b"\t",
            b"Bearer",
            b"Bearer ",
            b"Bearer    ",
            b"Bearer\ta.b.c",
            b"Bearer \ta.b.c",
            b"Bearer,a.b.c",
            b"Bearer=a.b.c",
            b"Bearer: a.b.c",
            b"Bearer a.b.c, Bearer a.b.c",
            b"Bearer a.b.c,Bearer a.b.c",
            b"Bearer a.b.c,",
            b"Basic eDp5, Bearer a.b.c",
            b"Basic eDp5 ,\tbearer a.b.c",
            b"Bearer a.b.c ",
            b"Bearer a.b.c extra",
            b"Bearer a.b.c\t",
            b"Bearer token=a.b.c",
            b"Bearer \"a.b.c\"",
            b"Bearer =",
            b"Bearer a=b",
            b"Bearer a.b.\xff",
            "Bearer a.b.\u{e9}".as_bytes(),
            b"\"Bearer\" a.b.c",
            b", Bearer a.b.c",
        ];
        for value in values {
            assert_reads(&[value], Credential::Malformed);
        }
    }

    #[test]
    fn a18_two_header_lines_are_malformed() {
        let good: &[u8] = b"Bearer a.b.c";
        for other in [good, b"Basic eDp5", b"", b"Bearer x"] {
            assert_reads(&[good, other], Credential::Malformed);
            assert_reads(&[other, good], Credential::Malformed);
        }
        assert_reads(&[b"Basic x", b"Basic y"], Credential::Malformed);
    }

    #[test]
    fn a08_long_tokens_are_not_read() {
        let exact = format!("Bearer {}", "a".repeat(MAX));
        assert_reads(&[exact.as_bytes()], Credential::Token(&"a".repeat(MAX)));
        for long in [
            format!("Bearer {}", "a".repeat(MAX + 1)),
            format!("Bearer {}", ",".repeat(MAX + 1)),
            format!("Bearer {}", " ".repeat(1 << 20)),
            format!("Bearer {}", ".".repeat(1 << 20)),
        ] {
            let headers = headers(&[long.as_bytes()]);
            assert_eq!(of(&headers, &[long.as_bytes()]), Credential::TooLong);
        }
    }

    #[test]
    fn e17_long_credential_pairs_are_malformed() {
        for len in [0, 64, MAX - 1, MAX, MAX + PREFIX_ROOM, 9000, 1 << 20] {
            let fill = "a".repeat(len);
            for pair in [
                format!("Basic {fill}, Bearer a.b.c"),
                format!("Basic {fill},bearer"),
                format!("Digest response=\"{fill}\"\t,\tBEARER a.b.c, Basic eDp5"),
                format!("x{fill} y, Bearer {fill}"),
            ] {
                assert_reads(&[pair.as_bytes()], Credential::Malformed);
            }
            let single = format!("Basic {fill}, Bearerx a.b.c");
            assert_reads(&[single.as_bytes()], Credential::OtherScheme);
        }
    }

    #[test]
    fn spaces_before_a_token_are_bounded() {
        let token = "a".repeat(MAX);
        for (spaces, expected) in [
            (1, Credential::Token(&token)),
            (PREFIX_ROOM, Credential::Token(&token)),
            (PREFIX_ROOM + 1, Credential::TooLong),
        ] {
            let value = format!("Bearer{}{token}", " ".repeat(spaces));
            assert_reads(&[value.as_bytes()], expected);
        }
    }

    #[test]
    fn other_headers_may_carry_a_bare_token() {
        let name = HeaderName::from_static("x-jwt-svid");
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(&name, HeaderValue::from_static(value));
            match credential(&headers, &name, MAX) {
                Credential::Token(token) if is_token68(token) => Ok(token.to_owned()),
                other => Err(format!("{other:?}")),
            }
        };
        assert_eq!(read("a.b.c").as_deref(), Ok("a.b.c"));
        assert_eq!(read("bearer a.b.c").as_deref(), Ok("a.b.c"));
        assert_eq!(read("Bearer"), Err("Malformed".to_owned()));
        assert!(read("Basic eDp5").is_err());
        assert!(read("a.b.c, d.e.f").is_err());
        assert_eq!(read(""), Err("Malformed".to_owned()));
    }

    #[test]
    fn a28_every_line_is_marked_sensitive() {
        let mut headers = headers(&[b"Bearer a.b.c", b"Bearer d.e.f", b"Basic x"]);
        mark_sensitive(&mut headers, &AUTHORIZATION);
        assert!(
            headers
                .get_all(AUTHORIZATION)
                .iter()
                .all(HeaderValue::is_sensitive)
        );
        assert!(!format!("{headers:?}").contains("a.b.c"));
    }
}
