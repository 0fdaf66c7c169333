//! Checks the alert rules against the scrape.

use std::collections::{BTreeMap, BTreeSet};

use crate::dashboard::keeps;
use crate::promql::{self, TARGET_LABELS};

const RULES: &str = include_str!("../../examples/observability/alerts.yaml");

#[derive(Debug, Default)]
struct Rule {
    name: String,
    expr: String,
    hold: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// Parses the rules. They use a small part of YAML; any other line is an error.
fn rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut section = "";
    let mut lines = RULES.lines().enumerate();
    assert_eq!(skip_comments(&mut lines), "groups:");
    for (number, line) in lines {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim_start();
        let is_text = section == "expr" && indent >= 10;
        if text.is_empty() || text.starts_with('#') && !is_text {
            continue;
        }
        let wrong = format!("line {}: {line}", number + 1);
        let (key, value) = match text.split_once(':') {
            Some((key, value)) if !is_text => (key, value.trim_start()),
            _ if is_text => ("", text),
            _ => panic!("{wrong}"),
        };
        match (indent, key) {
            (2, "- name") if !value.is_empty() => section = "group",
            (4, "rules") if section == "group" && value.is_empty() => section = "rules",
            (6, "- alert") => {
                rules.push(Rule {
                    name: value.to_owned(),
                    ..Rule::default()
                });
                section = "alert";
            }
            (8, "expr") if value == ">-" => section = "expr",
            (8, "for") => rules.last_mut().unwrap().hold = Some(value.to_owned()),
            (8, "labels") if value.is_empty() => section = "labels",
            (8, "annotations") if value.is_empty() => section = "annotations",
            (10.., "") => {
                let expr = &mut rules.last_mut().unwrap().expr;
                expr.push(' ');
                expr.push_str(text);
            }
            (10, key) => {
                let rule = rules.last_mut().unwrap();
                let (map, value) = match section {
                    "labels" => (&mut rule.labels, Some(value)),
                    // Quoted, because they contain colons and braces.
                    "annotations" => {
                        let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
                        (
                            &mut rule.annotations,
                            bare.filter(|v| !v.contains(['"', '\\'])),
                        )
                    }
                    _ => panic!("{wrong}"),
                };
                let value = value.expect(&wrong);
                map.insert(key.to_owned(), value.to_owned());
            }
            _ => panic!("{wrong}"),
        }
    }
    rules
}

fn skip_comments<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>) -> &'a str {
    lines
        .map(|(_, line)| line)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .unwrap()
}

#[test]
fn alerts_use_only_names_of_the_scrape() {
    let rules = rules();
    assert!(rules.len() >= 10);
    for Rule { name, expr, .. } in &rules {
        let used = promql::metrics_of(expr).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!used.is_empty(), "{name}");
    }
}

#[test]
fn each_alert_has_cause_severity_and_action() {
    let rules = rules();
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names.len(), rules.len(), "duplicate name");
    let mut faults = BTreeSet::new();
    for rule in &rules {
        let name = &rule.name;
        assert!(name.starts_with("Spiffe"), "{name}");
        let hold = rule.hold.as_deref().expect(name);
        let (count, unit) = hold.split_at(hold.len() - 1);
        assert!(
            count.parse::<u32>().is_ok() && ["s", "m", "h"].contains(&unit),
            "{name}"
        );
        let labels: Vec<&str> = rule.labels.keys().map(String::as_str).collect();
        assert_eq!(labels, ["fault", "severity"], "{name}");
        faults.insert(rule.labels["fault"].as_str());
        let severity = rule.labels["severity"].as_str();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}"
        );
        let annotations: Vec<&str> = rule.annotations.keys().map(String::as_str).collect();
        assert_eq!(annotations, ["description", "summary"], "{name}");
    }
    let known = ["agent", "authorization-server", "blindness", "caller"];
    assert_eq!(faults, BTreeSet::from(known));
}

#[test]
fn annotations_use_labels_of_their_expression() {
    for rule in rules() {
        let kept = |label: &str| {
            let known = promql_labels(&rule.expr);
            known.contains(label) && keeps(&rule.expr, label)
        };
        for (what, text) in &rule.annotations {
            for template in text.split("{{").skip(1) {
                let template = template.split_once("}}").expect(text).0.trim();
                let label = template.strip_prefix("$labels.");
                let known = match label {
                    Some(label) => kept(label),
                    None => template.starts_with("$value |"),
                };
                assert!(known, "{} {what}: {template}", rule.name);
            }
        }
    }
}

/// Returns the labels that any metric of this expression has.
fn promql_labels(expr: &str) -> BTreeSet<&'static str> {
    let metrics = promql::metrics_of(expr).unwrap();
    let own = tower_spiffe::metrics::METRICS.iter();
    let of_source = metrics
        .iter()
        .any(|name| crate::words::is_of_a_source(name));
    own.filter(|metric| metrics.contains(metric.name))
        .flat_map(|metric| metric.labels.iter().copied())
        .chain(of_source.then_some("source"))
        .chain(TARGET_LABELS)
        .collect()
}

#[test]
fn readme_lists_every_alert_and_only_existing_metrics() {
    let readme = include_str!("../../examples/observability/README.md");
    for rule in rules() {
        assert!(
            readme.contains(&format!("| `{}` |", rule.name)),
            "{}",
            rule.name
        );
    }
    for name in readme.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if name.starts_with("spiffe_") {
            promql::metrics_of(name).unwrap();
        }
    }
}
