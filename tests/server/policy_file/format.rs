//! The format, and its errors.

use std::error::Error as _;

use tower_spiffe::server::{FilePolicyErrorReason, PolicyDocument, PolicyError};

use super::{document, rule, web_rule};
use crate::support::WEB;

fn error(text: &str) -> (String, Option<usize>, Option<usize>) {
    let error = text.parse::<PolicyDocument>().expect_err(text);
    let said = error.to_string();
    assert!(said.len() < 600 && !said.contains('\n'), "{said}");
    let (line, column) = (error.line(), error.column());
    let position = format!("line {}, column {}", line.unwrap(), column.unwrap());
    assert!(said.contains(&position), "{said}");
    (said, line, column)
}

#[test]
fn p01_every_key_is_read() {
    let policy = document(
        r#"
        # A comment.
        [[rule]]
        name = "probes"
        path = "/livez"
        methods = "any"
        public = true

        [[rule]]
        path = "/a/{x}/{*rest}"
        methods = ["GET", "PURGE"]
        ids = ["spiffe://x/web"]
        path_prefixes = ["spiffe://x/batch"]
        trust_domains = ["y"]
        claims.stage = "live"
        claims.tier = 7
        claims.beta = true
        claims.role = { equals = "admin" }
        claims.region = { one_of = ["eu", "us"] }
        claims.groups = { contains = "a" }
        claims.teams = { contains_any = ["a", 1] }

        [[rule]]
        grpc_service = "r.R"
        any_trust_domain = true

        [[rule]]
        grpc_method = "/r.R/Delete"
        ids = ["spiffe://x/ops"]
        "#,
    );
    assert_eq!(policy.len(), 4);
}

#[test]
fn p01_errors_have_line_and_column() {
    let cases = [
        // Syntax.
        ("rule", 1, 5, "not TOML"),
        ("\n\n  a = [1", 3, 9, "not TOML"),
        ("[[rule]]\npath = '/a'\npath = '/b'", 3, 1, "not TOML"),
        // Structure.
        ("", 1, 1, "no rule"),
        ("# nothing\n", 1, 1, "no rule"),
        ("rule = 1", 1, 8, "[[rule]]"),
        ("rule = [1]", 1, 9, "a rule is not a table"),
        ("\nrules = []", 2, 1, "unknown key \"rules\""),
        ("[[rule]]\npaths = '/'", 2, 1, "unknown key \"paths\""),
        ("[[rule]]\n", 1, 1, "matches no request"),
        ("[[rule]]\npath = 7", 2, 8, "not a text"),
        ("[[rule]]\npath = ''", 2, 8, "empty text"),
        ("[[rule]]\npath = '/a'\npublic = true", 1, 1, "`methods`"),
        (
            "[[rule]]\npath = '/a'\nmethods = 'GET'",
            3,
            11,
            "not a list",
        ),
        ("[[rule]]\npath = '/a'\nmethods = []", 3, 11, "is empty"),
        (
            "[[rule]]\npath = '/a'\nmethods = ['get']",
            3,
            12,
            "upper case",
        ),
        (
            "[[rule]]\npath = '/a'\nmethods = ['GET', 'GET']",
            3,
            19,
            "twice",
        ),
        (
            "[[rule]]\npath = '/a'\nmethods = ['GET']",
            1,
            1,
            "names no callers",
        ),
        (
            "[[rule]]\ngrpc_method = '/r.R/*'\npublic = true",
            2,
            15,
            "`grpc_service`",
        ),
        (
            "[[rule]]\ngrpc_service = '/r.R'\npublic = true",
            2,
            16,
            "package.Service",
        ),
        (
            "[[rule]]\ngrpc_service = 'r.R'\nmethods = ['POST']",
            3,
            11,
            "always POST",
        ),
        (
            "[[rule]]\ngrpc_service = 'r.R'\npath = '/'",
            1,
            1,
            "one of `path`",
        ),
    ];
    for (text, line, column, part) in cases {
        let (said, at, in_line) = error(text);
        assert!(said.contains(part), "{text}: {said}");
        assert_eq!((at, in_line), (Some(line), Some(column)), "{text}: {said}");
    }
    // Errors in callers.
    let cases = [
        ("ids = ['spiffe://X/web']", 8, "is not a SPIFFE ID"),
        ("ids = ['spiffe://x/*']", 8, "is not a SPIFFE ID"),
        ("ids = 'spiffe://x/web'", 7, "not a list"),
        ("ids = []", 7, "is empty"),
        ("ids = ['spiffe://x/a', 'spiffe://x/a']", 24, "twice"),
        ("path_prefixes = ['x']", 18, "is not a SPIFFE ID"),
        ("trust_domains = ['X']", 18, "is not a trust domain"),
        ("public = false", 10, "not `true`"),
        ("any_trust_domain = 1", 20, "not `true`"),
        ("claims = 1\nids = ['spiffe://x/a']", 10, "not a table"),
        ("claims = {}\nids = ['spiffe://x/a']", 10, "is empty"),
        (
            "claims = { a = 1.5 }\nids = ['spiffe://x/a']",
            16,
            "not a string",
        ),
        (
            "claims = { a = [1] }\nids = ['spiffe://x/a']",
            16,
            "not a string",
        ),
        (
            "claims = { a = 9223372036854775808 }\nids = ['spiffe://x/a']",
            16,
            "64 bits",
        ),
        (
            "claims = { a = {} }\nids = ['spiffe://x/a']",
            16,
            "needs one of",
        ),
        (
            "claims = { a = { is = 1 } }\nids = ['spiffe://x/a']",
            18,
            "unknown key",
        ),
        (
            "claims = { a = { one_of = [] } }\nids = ['spiffe://x/a']",
            27,
            "a list of values",
        ),
        ("claims = { a = 1 }\npublic = true", 10, "public rule"),
    ];
    for (text, column, part) in cases {
        let text = format!("[[rule]]\npath = '/a'\nmethods = ['GET']\n{text}\n");
        let (said, at, in_line) = error(&text);
        assert!(said.contains(part), "{text}: {said}");
        assert_eq!((at, in_line), (Some(4), Some(column)), "{text}: {said}");
    }
}

#[test]
fn p01_errors_have_reason_and_source() {
    let of = |text: &str| text.parse::<PolicyDocument>().unwrap_err();
    assert_eq!(of("x").reason(), FilePolicyErrorReason::Syntax);
    let error = of("[[rule]]\npath = '/a'\nmethods = ['GET']\nids = ['web']");
    assert_eq!(error.reason(), FilePolicyErrorReason::Invalid);
    let source = error.source().unwrap().downcast_ref::<PolicyError>();
    assert!(matches!(source, Some(PolicyError::SpiffeId { text, .. }) if text == "web"));
}

#[test]
fn p01_conflicting_patterns_are_errors() {
    let both = format!(
        "{}{}",
        web_rule("/a/{x}", "['GET']"),
        web_rule("/a/{*rest}", "['GET']")
    );
    let (said, line, _) = error(&both);
    assert!(
        said.contains("conflicts with the pattern in line 1"),
        "{said}"
    );
    assert_eq!(line, Some(5));
    // Other parameter names at other positions.
    for (one, other) in [
        ("/a/{x}", "/a/{y}/b"),
        ("/a/{x}", "/a/b/{*rest}"),
        ("/a/{x}", "/b/{*rest}"),
        ("/a-{x}", "/{y}"),
        ("/{x}/b", "/a/{*rest}"),
    ] {
        document(&format!(
            "{}{}",
            web_rule(one, "['GET']"),
            web_rule(other, "['GET']")
        ));
    }
}

#[test]
fn p01_rules_without_effect_are_errors() {
    let ids = |ids: &str| format!("[[rule]]\npath = '/a/{{x}}'\nmethods = ['GET']\n{ids}\n");
    let web = "ids = ['spiffe://x/web']";
    let cases = [
        (ids(web), ids(web), 2),
        (ids(web), ids("path_prefixes = ['spiffe://x/web']"), 1),
        (ids(web), ids("trust_domains = ['x']"), 1),
        (ids("any_trust_domain = true"), ids(web), 2),
        (ids("public = true"), ids("any_trust_domain = true"), 2),
        (ids(web), ids("public = true"), 1),
        (
            ids("path_prefixes = ['spiffe://x/web/1']"),
            ids("path_prefixes = ['spiffe://x/web']"),
            1,
        ),
        // A required claim restricts a rule.
        (ids(web), ids(&format!("{web}\nclaims = {{ a = 1 }}")), 2),
        (
            ids(&format!("{web}\nclaims = {{ a = 1 }}")),
            ids("any_trust_domain = true\nclaims = { a = 1 }"),
            1,
        ),
        // Patterns are equal if only parameter names differ.
        (ids(web), web_rule("/a/{y}", "['GET']"), 2),
        // GET includes HEAD, `any` includes all but CONNECT.
        (ids(web), web_rule("/a/{x}", "['HEAD']"), 2),
        (web_rule("/a/{x}", "'any'"), ids(web), 2),
        (
            web_rule("/r.R/{m}", "['POST']"),
            format!("[[rule]]\ngrpc_service = 'r.R'\n{web}"),
            2,
        ),
    ];
    for (one, other, without_effect) in cases {
        let first = format!("{one}{other}");
        let (said, line, _) = error(&first);
        assert!(said.contains("no effect"), "{said}");
        let expected = if without_effect == 1 {
            1
        } else {
            5.max(one.lines().count() + 1)
        };
        assert_eq!(line, Some(expected), "{first}");
    }
    for (one, other) in [
        (ids(web), ids("ids = ['spiffe://x/ops']")),
        (ids(web), ids("path_prefixes = ['spiffe://x/web/1']")),
        (ids(web), ids("path_prefixes = ['spiffe://x/we']")),
        (ids(web), web_rule("/a/{x}", "['POST']")),
        (ids(web), web_rule("/a/b", "['GET']")),
        (
            web_rule("/a/{x}", "'any'"),
            web_rule("/a/{x}", "['CONNECT']"),
        ),
        (
            web_rule("/a/{x}", "['HEAD']"),
            web_rule("/a/{x}", "['POST']"),
        ),
        (
            ids(&format!("{web}\nclaims = {{ a = 1 }}")),
            ids(&format!("{web}\nclaims = {{ a = 2 }}")),
        ),
        (ids("any_trust_domain = true\nclaims = { a = 1 }"), ids(web)),
    ] {
        document(&format!("{one}{other}"));
    }
    // Two rules together allow everything that the third allows.
    let (said, line, _) = error(&format!(
        "{}{}{}",
        web_rule("/a", "['GET']"),
        web_rule("/a", "['PUT']"),
        web_rule("/a", "['GET', 'PUT']")
    ));
    assert!(said.contains("no effect"), "{said}");
    assert_eq!(line, Some(9));
}

#[test]
fn p01_hostile_texts_give_short_errors() {
    let long = "x".repeat(100_000);
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2ln";
    for text in [
        format!("{long} = 1"),
        format!("[[rule]]\n{long} = 1"),
        format!("[[rule]]\npath = '/{long}'\nmethods = ['GET']\npublic = true"),
        rule("/a", "['GET']", &long),
        rule("/a", "['GET']", "spiffe://x/\u{1b}[2J"),
        rule("/a", &format!("['{long}']"), WEB),
        format!("[[rule]]\ngrpc_service = '{long}*'\npublic = true"),
        format!("a = {}", "[".repeat(100_000)),
        format!("{}b = 1", "a.".repeat(100_000)),
        rule("/a", "['GET']", token),
        "\u{0}".to_owned(),
        "a = \"\u{1b}\"".to_owned(),
    ] {
        let (said, ..) = error(&text);
        assert!(!said.contains("eyJ"), "{said}");
        assert!(!said.chars().any(char::is_control), "{said}");
    }
}
