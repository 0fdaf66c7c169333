//! Makes foreign text safe for errors, logs and states.

use serde_json::error::Category;

/// Implements `Debug` with these fields only: the others are secret, or of no use in a log.
macro_rules! debug_fields {
    ($type:ident, |$it:ident| { $($field:ident: $value:expr),* $(,)? }) => {
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let $it = self;
                f.debug_struct(stringify!($type))
                    $(.field(stringify!($field), &$value))*
                    .finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use debug_fields;

/// The first `len` bytes of `text`, cut at the end of a character.
#[cfg(feature = "client")]
pub(crate) fn bounded(text: &str, len: usize) -> &str {
    let end = (0..=len.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Bounds and escapes text of an agent, a file or a caller, and removes words that may be tokens.
#[cfg(any(feature = "server", feature = "client"))]
pub(crate) fn presentable(text: &str) -> String {
    const SHOWN: usize = 300;
    let mut out = String::new();
    for (at, word) in text.split(' ').enumerate() {
        if at > 0 {
            out.push(' ');
        }
        if may_be_token(word) {
            out.push_str("[redacted]");
        } else {
            out.extend(word.chars().take(SHOWN).flat_map(char::escape_debug));
        }
        if out.len() > SHOWN {
            let end = (0..=SHOWN)
                .rev()
                .find(|&at| out.is_char_boundary(at))
                .unwrap_or(0);
            out.truncate(end);
            out.push('…');
            break;
        }
    }
    out
}

/// Whether a part of it begins like an encoded JOSE header: `{"` and a letter, `eyJ` in base64url. An
/// attacker may write other forms: white space before the name, or another first character.
#[cfg(any(feature = "server", feature = "client"))]
fn may_be_token(word: &str) -> bool {
    // `{` and: a space, a tab, a line's end, `"`.
    const RARE: [&str; 7] = ["eyA", "ewk", "ewo", "ew0", "eyI", "eyK", "eyL"];
    let letter = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    // Normal words have them too, so they count only at the start of a text with dots.
    let is_rare = |run: &str| run.contains('.') && RARE.iter().any(|head| run.starts_with(head));
    word.contains("eyJ") || word.split(|char| !letter(char)).any(is_rare)
}

/// The text of an error and of its sources, without repetitions. Use [`presentable`] before it is logged.
#[cfg(any(feature = "https-bundles", feature = "oauth"))]
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Describes an error in a JSON document and its position. The parser's own text may quote the
/// document, at any length, and that may be a token.
pub(crate) fn json_fault(error: &serde_json::Error, expected: &str) -> String {
    let what = match error.classify() {
        Category::Syntax | Category::Io => "this is not JSON",
        Category::Eof => "the JSON ends too early",
        Category::Data => expected,
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(any(feature = "server", feature = "client"))]
    fn text_is_bounded_escaped_and_without_tokens() {
        assert_eq!(presentable("no identity issued"), "no identity issued");
        assert_eq!(presentable("bad \u{1b}[0m\n"), "bad \\u{1b}[0m\\n");
        let echoed = presentable("token \"eyJhbGciOiJFUzI1NiJ9.e30.c2ln\": expired");
        assert_eq!(echoed, "token [redacted] expired");
        // `{ "a`, tab, newline, carriage return, `{"1`.
        for head in ["eyAiYWxn", "ewkiYWxn", "ewoiYWxn", "ew0KImFs", "eyIxIjox"] {
            let echoed = presentable(&format!("token={head}.e30.c2ln: expired"));
            assert_eq!(echoed, "[redacted] expired");
        }
        assert_eq!(presentable("a framework.ewo"), "a framework.ewo");
        assert!(presentable(&"x".repeat(100_000)).len() < 310);
        assert!(presentable(&"ü ".repeat(100_000)).len() < 310);
    }

    #[test]
    fn json_fault_has_a_position_and_no_quotes() {
        let expected = "an array was expected";
        let fault = |json: &str| {
            let error = serde_json::from_str::<Vec<u8>>(json).expect_err(json);
            json_fault(&error, expected)
        };
        let token = format!("\n\"eyJhbGciOiJFUzI1NiJ9.{}.c2ln\"", "x".repeat(1 << 20));
        assert!(fault(&token).starts_with("an array was expected (line 2, column "));
        assert!(fault(&token).len() < 100);
        assert_eq!(fault("[1,"), "the JSON ends too early (line 1, column 3)");
        assert_eq!(fault("[1,]"), "this is not JSON (line 1, column 4)");
    }
}
