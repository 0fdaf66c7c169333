//! Checks README.md: code can be pasted as shown, and links work.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use crate::repository_root;

fn readme() -> String {
    std::fs::read_to_string(repository_root().join("README.md")).unwrap()
}

/// The code blocks of a language, each with the line on which it starts.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(usize, Vec<&'a str>)> {
    let mut found = Vec::new();
    let mut open = None;
    for (number, line) in text.lines().enumerate() {
        if let Some(info) = line.strip_prefix("```") {
            open = match open.take() {
                Some((Some(start), lines)) => {
                    found.push((start, lines));
                    None
                }
                Some((None, _)) => None,
                None => {
                    let wanted = info.split(',').next() == Some(language);
                    Some((wanted.then_some(number + 1), Vec::new()))
                }
            };
        } else if let Some((_, lines)) = &mut open {
            lines.push(line);
        }
    }
    found
}

/// The doctests compile each block. With hidden lines, the shown code would be incomplete.
#[test]
fn readme_code_has_no_hidden_lines() {
    let readme = readme();
    let blocks = blocks(&readme, "rust");
    assert_eq!(blocks.len(), 4);
    for (start, lines) in blocks {
        for line in &lines {
            let line = line.trim_start();
            let hidden = line == "#" || line.starts_with("# ");
            assert!(!hidden, "README.md:{start}: hidden line `{line}`");
        }
        let complete = lines.iter().any(|line| line.contains("fn main()"));
        assert!(complete, "README.md:{start}: the block has no main");
    }
}

#[test]
fn readme_links_exist() {
    let readme = readme();
    let headings: Vec<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| {
            let kept = heading.to_lowercase().replace(' ', "-");
            kept.chars()
                .filter(|c| c.is_alphanumeric() || *c == '-')
                .collect()
        })
        .collect();
    let links: Vec<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link)
        .collect();
    assert!(links.len() > 20);
    for link in links {
        if let Some(heading) = link.strip_prefix('#') {
            assert!(headings.iter().any(|h| h == heading), "no heading {link}");
        } else if !link.starts_with("https://") {
            assert!(repository_root().join(link).exists(), "no file {link}");
        }
    }
}

/// Every example is in the README, and every example that it names exists.
#[test]
fn readme_lists_every_example() {
    let readme = readme();
    let (_, table) = readme.split_once("## Examples").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let named: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .flat_map(|line| line.split(" | ").next().unwrap().split(", "))
        .map(|name| name.trim_matches('`'))
        .collect();
    let folder = repository_root().join("examples");
    for name in &named {
        let found = folder.join(format!("{name}.rs")).exists()
            || folder.join(name).join("main.rs").exists();
        assert!(found, "examples/{name} does not exist");
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists() {
            let name = Path::new(&path).file_stem().unwrap().to_str().unwrap();
            assert!(named.contains(&name), "the README does not list {name}");
        }
    }
}
