//! The limits of a policy file are exact, and each kind of mistake has its own text.

use serde_json::json;
use tower_spiffe::server::{Decision, PolicyDocument};

use super::{decide, document, web_rule, with_claims};

fn error(text: &str) -> String {
    let error = text.parse::<PolicyDocument>().expect_err(text);
    error.to_string()
}

#[test]
fn p01_limits_are_exact() {
    let path = |len: usize| web_rule(&format!("/{}", "a".repeat(len - 1)), "['GET']");
    document(&path(512));
    assert!(error(&path(513)).contains("longer than 512 bytes"));
    let parameters = |count: usize| {
        let segments = (0..count).map(|at| format!("/{{p{at}}}"));
        web_rule(&segments.collect::<String>(), "['GET']")
    };
    document(&parameters(25));
    assert!(error(&parameters(26)).contains("more than 25 parameters"));
    let methods = |count: u8| {
        let names: Vec<_> = (0..count).map(|at| char::from(b'A' + at)).collect();
        let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
        web_rule("/a", &format!("[{}]", names.join(", ")))
    };
    document(&methods(16));
    for count in [17, 18] {
        assert!(error(&methods(count)).contains("more than 16 entries"));
    }
}

#[test]
fn p01_pattern_errors_name_the_mistake() {
    for (pattern, why) in [
        ("reports", "begin with `/`"),
        ("/a//b", "empty segment"),
        ("/a/../b", "dot segment"),
        ("/:id", "syntax of other routers"),
        ("/*rest", "syntax of other routers"),
        ("/{a}b", "text after a parameter"),
        ("/{}", "needs a name"),
        ("/{a b}", "needs a name"),
        ("/{*a}/b", "not the last segment"),
        ("/a{*b}", "not a whole segment"),
        ("/a%20b", "an escape"),
        ("/a}", "unmatched brace"),
        ("/a}b/{c}", "unmatched brace"),
        ("/a b", "a character that URIs escape"),
    ] {
        let said = error(&web_rule(pattern, "['GET']"));
        assert!(said.contains(why), "{pattern}: {said}");
    }
}

#[test]
fn p01_covering_rules_are_named() {
    let (get, put) = (web_rule("/a", "['GET']"), web_rule("/a", "['PUT']"));
    let both = web_rule("/a", "['GET', 'PUT']");
    for (text, why) in [
        (format!("{both}{get}"), "the rule in line 1 allows all"),
        (
            format!("{both}{}", web_rule("/a", "['PUT', 'GET']")),
            "the rule in line 1 allows all",
        ),
        (
            format!("{get}{put}{both}"),
            "other rules, such as that in line 1 allow all",
        ),
        (
            format!("{put}{get}{both}"),
            "other rules, such as that in line 5 allow all",
        ),
    ] {
        let said = error(&text);
        assert!(said.contains(why), "{text}: {said}");
    }
}

#[test]
fn p01_last_rule_without_effect_is_reported() {
    let (a, b) = (web_rule("/a", "['GET']"), web_rule("/b", "['GET']"));
    for text in [
        format!("{a}{b}{a}{b}"),
        format!("{a}{b}{b}{a}"),
        format!("{a}{a}{b}{b}"),
        format!("{a}{a}{a}{a}"),
    ] {
        let error = text.parse::<PolicyDocument>().expect_err(&text);
        assert_eq!(error.line(), Some(13), "{text}: {error}");
    }
}

#[test]
fn p03_operators_differ_for_texts_and_lists() {
    for (operator, text, list, other) in [
        ("equals = 'a'", true, false, false),
        ("one_of = ['a', 'b']", true, false, false),
        ("contains = 'a'", true, true, false),
        ("contains_any = ['a', 'b']", true, true, true),
    ] {
        let rule = format!(
            "{}claims.group = {{ {operator} }}\n",
            web_rule("/a", "['GET']")
        );
        let policy = document(&rule);
        let allows = |value| {
            let caller = with_claims(json!({ "group": value }));
            decide(&policy, Some(&caller), "/a") == Decision::Allow
        };
        assert_eq!(allows(json!("a")), text, "{operator}");
        assert_eq!(allows(json!(["a", "c"])), list, "{operator}");
        assert_eq!(allows(json!(["b", "c"])), other, "{operator}");
        for value in [json!("c"), json!([]), json!(["c"]), json!(null), json!({})] {
            assert!(!allows(value), "{operator}");
        }
    }
}
