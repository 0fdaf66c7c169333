//! Checks that all pages of the guide are shown and listed, and that quoted items exist.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tower_spiffe::metrics::METRICS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Returns the names of the pages, without `.md`.
fn pages() -> Vec<String> {
    let files = fs::read_dir(root().join("docs/guide")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let names: Vec<_> = names
        .map(|name| name.strip_suffix(".md").unwrap().to_owned())
        .collect();
    assert!(names.len() > 10, "{names:?}");
    names
}

fn page(name: &str) -> String {
    read(&format!("docs/guide/{name}.md"))
}

fn rust_files(dir: PathBuf, found: &mut Vec<PathBuf>) {
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            rust_files(path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// Returns all string literals of the library in one text, as they are printed.
fn source() -> String {
    let mut files = Vec::new();
    rust_files(root().join("src"), &mut files);
    let mut all = String::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        // A `\` at the end of a line joins a literal with the next line.
        let mut lines = text.split("\\\n");
        all.push_str(lines.next().unwrap());
        for line in lines {
            all.push_str(line.trim_start());
        }
    }
    all.replace("\\\"", "\"")
}

/// Whether the source has this message; `…` is any value.
fn has_message(source: &str, message: &str) -> bool {
    const WITHIN: usize = 400;
    let mut parts = message.split('…').filter(|part| !part.trim().is_empty());
    let first = parts.next().unwrap();
    let rest: Vec<_> = parts.collect();
    source.match_indices(first).any(|(at, _)| {
        let mut tail = source.get(at + first.len()..).unwrap();
        let end = (WITHIN..).find(|end| tail.is_char_boundary((*end).min(tail.len())));
        tail = tail.get(..end.unwrap().min(tail.len())).unwrap();
        rest.iter().all(|part| match tail.split_once(*part) {
            Some((_, after)) => {
                tail = after;
                true
            }
            None => false,
        })
    })
}

/// Returns the lines of the blocks in this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            inside = !inside && fence == language;
        } else if inside {
            found.push(line.to_owned());
        }
    }
    found
}

/// Returns the code spans outside of blocks.
fn spans(text: &str) -> Vec<String> {
    let mut outside = String::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            outside.push_str(line);
            outside.push('\n');
        }
    }
    let parts = outside.split('`').map(str::to_owned);
    parts.skip(1).step_by(2).collect()
}

#[test]
fn every_page_is_shown_and_listed() {
    let (shown, index) = (read("src/guide.rs"), page("index"));
    for name in pages() {
        let include = format!("include_str!(\"../docs/guide/{name}.md\")");
        assert!(
            shown.contains(&include),
            "src/guide.rs does not show {name}.md"
        );
        if name != "index" {
            let module = name.replace('-', "_");
            assert!(
                shown.contains(&format!("pub mod {module} {{}}")),
                "the module of {name}.md is not `{module}`"
            );
            assert!(
                index.contains(&format!("]({module})")),
                "the index does not list {name}.md"
            );
        }
    }
}

#[test]
fn quoted_messages_exist_in_source() {
    let source = source();
    let text = page("troubleshooting");
    // A span with three words or more is a message.
    let spans = spans(&text).into_iter();
    let inline = spans.filter(|span| span.split(' ').count() > 2);
    let quoted: Vec<_> = blocks(&text, "text").into_iter().chain(inline).collect();
    assert!(quoted.len() > 20, "{quoted:?}");
    let missing: Vec<_> = quoted
        .iter()
        .filter(|message| !has_message(&source, message))
        .collect();
    assert!(missing.is_empty(), "not in the source: {missing:#?}");
}

#[test]
fn unknown_messages_are_found_missing() {
    let source = "the agent at {place} answered {code}: \"{said}\"";
    assert!(has_message(source, "the agent at … answered …"));
    assert!(has_message(source, "answered … \"…\""));
    assert!(!has_message(source, "the agent at … said …"));
    assert!(!has_message(source, "answered … the agent"));
}

#[test]
fn every_rejection_reason_is_explained() {
    let known: BTreeSet<_> = spans(&page("operating")).into_iter().collect();
    let reasons = read("src/server/reason.rs");
    let reasons = reasons.split("impl RejectionReason").nth(1).unwrap();
    let names: Vec<String> = [reasons, &read("src/verify/error.rs")]
        .iter()
        .flat_map(|text| text.split("=> \"").skip(1))
        .filter_map(|rest| rest.split_once("\",\n"))
        .map(|(name, _)| name.to_owned())
        .filter(|name| {
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        })
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(
            known.contains(&name),
            "operating.md does not explain `{name}`"
        );
    }
}

#[test]
fn listed_responses_exist_in_source() {
    // These are not texts of responses.
    const DESCRIBED: [&str; 3] = [
        "a challenge without `error`",
        "`invalid_request`",
        "a layer is missing",
    ];
    let source = source();
    let text = page("operating");
    let rows = text
        .lines()
        .filter(|row| row.starts_with("| 4") || row.starts_with("| 5"));
    let texts: Vec<_> = rows
        .map(|row| row.split('|').nth(2).unwrap().trim())
        .filter(|text| !DESCRIBED.contains(text))
        .collect();
    assert!(texts.len() > 8, "{texts:?}");
    for text in texts {
        assert!(has_message(&source, text), "not in the source: {text}");
    }
}

#[test]
fn listed_alerts_are_those_of_the_rules() {
    let rules = read("examples/observability/alerts.yaml");
    let rules: BTreeSet<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let spans = spans(&page("operating"));
    let listed: BTreeSet<_> = spans
        .iter()
        .map(String::as_str)
        .filter(|span| span.starts_with("Spiffe"))
        .collect();
    assert_eq!(listed, rules);
}

#[test]
fn named_metrics_files_and_commands_exist() {
    let mut found = [0; 3];
    for name in pages() {
        let text = page(&name);
        let mut code = spans(&text);
        code.extend(blocks(&text, "sh"));
        for code in &code {
            let is_metric = |word: &&str| {
                let suffixes = ["_total", "_seconds", "_ready", "_withdrawn"];
                word.starts_with("spiffe_") && suffixes.iter().any(|end| word.ends_with(end))
            };
            for word in code.split([' ', ',']).filter(is_metric) {
                found[0] += 1;
                assert!(
                    METRICS.iter().any(|metric| metric.name == word),
                    "{name}.md: {word}"
                );
            }
            if code.starts_with("examples/") {
                found[1] += 1;
                assert!(root().join(code).exists(), "{name}.md: {code}");
            }
            if let Some(rest) = code.strip_prefix("tower-spiffe ") {
                found[2] += 1;
                let command = rest.split(' ').next().unwrap().replace('-', "_");
                let path = root().join("cli/src").join(command);
                assert!(
                    path.is_dir() || path.with_extension("rs").exists(),
                    "{name}.md: {code}"
                );
            }
        }
    }
    assert!(found.iter().all(|count| *count > 4), "{found:?}");
}

#[test]
fn test_codes_of_threats_are_explained() {
    let legend = read("tests/README.md");
    let is_code = |span: &&String| {
        let (letter, number) = span.split_at_checked(1).unwrap_or_default();
        ["a", "e"].contains(&letter) && number.len() == 2 && number.parse::<u8>().is_ok()
    };
    let spans = spans(&page("threat-model"));
    let codes: Vec<_> = spans.iter().filter(is_code).collect();
    assert!(codes.len() > 20, "{codes:?}");
    for code in codes {
        assert!(legend.contains(&format!("| `{code}` |")), "{code}");
    }
}

#[test]
fn words_that_users_search_are_aliases() {
    let source = source();
    for word in [
        "authorize",
        "extractor",
        "bearer",
        "jwks",
        "oidc",
        "reload",
        "proxy",
        "gateway",
        "subscribe",
        "interceptor",
        "middleware",
        "oauth",
    ] {
        let alias = format!("#[doc(alias = \"{word}\")]");
        assert!(source.contains(&alias), "no item has the alias {word:?}");
    }
}
