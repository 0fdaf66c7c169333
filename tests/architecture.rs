//! Checks the imports of `src` against the levels in ARCHITECTURE.md.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and its floor. A file may import its own room and rooms of lower floors.
const FLOORS: &[(&str, u8)] = &[
    ("identity", 0),
    ("clock", 0),
    ("grpc_code", 0),
    ("metrics", 0),
    ("presentable", 0),
    ("cause", 0),
    ("runtime", 0),
    ("jwt", 1),
    ("bundle", 2),
    ("verify", 3),
    ("token", 4),
    ("workload_api", 5),
    ("source", 6),
    ("server", 7),
    ("client", 7),
    ("token_file", 7),
    ("oauth", 7),
    ("testing", 7),
    ("guide", 8),
];

/// Crates, each with the highest floor that must not import it.
const BANNED_UP_TO: &[(&str, u8)] = &[
    ("tower", 4),
    ("tower_layer", 4),
    ("tower_service", 4),
    ("tower_http", 6),
    ("tonic", 4),
    ("tonic_prost", 4),
    ("prost", 4),
    ("prost_types", 4),
    ("hyper", 4),
    ("hyper_util", 4),
    ("axum_core", 6),
    ("reqwest", 6),
    ("reqwest_middleware", 6),
    ("http_body", 4),
    ("tokio", 3),
    ("http", 3),
];

/// Allowed imports on the same floor: `testing` builds whole services, and a token endpoint is an
/// origin.
const SAME_FLOOR: &[(&str, &str)] = &[
    ("testing", "server"),
    ("testing", "client"),
    ("testing", "oauth"),
    ("oauth", "client"),
];

/// Exceptions for single files; ARCHITECTURE.md has the reasons.
const EXEMPT: &[(&str, &str)] = &[
    ("token/cache/error.rs", "tonic"),
    ("token/cache/error.rs", "reqwest_middleware"),
    ("runtime.rs", "tokio"),
    ("client/caller.rs", "server"),
];

fn source_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The room of a file: the first part of its path in `src`.
fn room_of(file: &Path, src: &Path) -> String {
    let inside = file.strip_prefix(src).unwrap();
    let first = inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file, without comments and unit tests.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The identifiers right after `prefix` in `code`, including `{a, b::c}` groups.
fn named_after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            let mut at_start = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => at_start = true,
                    c if depth == 0 && at_start && (c.is_alphanumeric() || c == '_') => {
                        name.push(c)
                    }
                    c if c.is_whitespace() && name.is_empty() => {}
                    _ => at_start = false,
                }
                if (!at_start || c == ',') && !name.is_empty() {
                    names.push(std::mem::take(&mut name));
                }
            }
            if !name.is_empty() {
                names.push(name);
            }
        } else {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            names.push(name);
        }
    }
    names
}

#[test]
fn named_after_reads_groups() {
    let code = "use crate::{clock::Clock, svid::{A, B}};\nuse crate::bundle::X; crate::jwt::y(); tests::crate::no();";
    assert_eq!(
        named_after(code, "crate::"),
        ["clock", "svid", "bundle", "jwt"]
    );
}

#[test]
fn floors_import_only_downwards() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut files = Vec::new();
    source_files(&src, &mut files);
    assert!(
        files.len() > 20,
        "the source files are not where this test looks for them"
    );
    let mut broken = Vec::new();
    for file in files {
        let room = room_of(&file, &src);
        let name = file.file_name().and_then(|name| name.to_str()).unwrap();
        if room == "lib" || name.ends_with("tests.rs") {
            continue;
        }
        let Some(&floor) = floors.get(room.as_str()) else {
            broken.push(format!(
                "{}: `{room}` has no floor; give it one here and in ARCHITECTURE.md",
                file.display()
            ));
            continue;
        };
        let code = code_of(&fs::read_to_string(&file).unwrap());
        for name in named_after(&code, "crate::") {
            let Some(&other) = floors.get(name.as_str()) else {
                continue;
            };
            let allowed = name == room
                || other < floor
                || SAME_FLOOR.contains(&(room.as_str(), name.as_str()))
                || EXEMPT
                    .iter()
                    .any(|(path, known)| *known == name && file.ends_with(path))
                || (floor == 0 && other == 0);
            if !allowed {
                broken.push(format!(
                    "{}: `{room}` (floor {floor}) imports `{name}` (floor {other})",
                    file.display()
                ));
            }
        }
        for &(krate, up_to) in BANNED_UP_TO {
            let prefix = format!("{krate}::");
            if EXEMPT
                .iter()
                .any(|(path, known)| *known == krate && file.ends_with(path))
            {
                continue;
            }
            if floor <= up_to && named_after(&code, &prefix).iter().any(|n| !n.is_empty()) {
                broken.push(format!(
                    "{}: `{room}` (floor {floor}) imports `{krate}`",
                    file.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn architecture_page_names_every_room_and_dependency() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    for (room, _) in FLOORS {
        assert!(
            page.contains(&format!("`{room}`")),
            "ARCHITECTURE.md does not name the room `{room}`"
        );
    }
    let mut missing = Vec::new();
    for member in [
        "",
        "cli",
        "tests",
        "tests/support",
        "benches",
        "fuzz/checks",
    ] {
        let manifest = fs::read_to_string(root.join(member).join("Cargo.toml")).unwrap();
        let sections: Vec<_> = ["\n[dependencies]", "\n[dev-dependencies]"]
            .into_iter()
            .filter_map(|section| manifest.split_once(section))
            .collect();
        assert!(!sections.is_empty(), "{member} has no dependencies");
        for (_, body) in sections {
            let body = body.split_once("\n[").map_or(body, |(body, _)| body);
            for line in body.lines().filter(|l| !l.starts_with('#')) {
                let Some((name, _)) = line.split_once(" = ") else {
                    continue;
                };
                if !name.starts_with("tower-spiffe") && !page.contains(&format!("`{name}`")) {
                    missing.push(name.to_owned());
                }
            }
        }
    }
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md's table has no line for {missing:?}"
    );
}
