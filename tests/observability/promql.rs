//! Finds the metrics, labels and words that a PromQL expression uses. It is not a complete parser: it
//! supports this repository's expressions, and returns an error for others.

use std::collections::BTreeSet;

use tower_spiffe::metrics::METRICS;

use crate::words;

/// Labels that Prometheus adds.
pub(crate) const TARGET_LABELS: [&str; 2] = ["job", "instance"];

const FUNCTIONS: [&str; 13] = [
    "avg",
    "clamp_min",
    "count",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "rate",
    "sum",
    "time",
    "topk",
    "vector",
];
const WITH_LABELS: [&str; 5] = ["by", "without", "on", "ignoring", "group_left"];
const OPERATORS: [&str; 4] = ["and", "or", "unless", "bool"];

#[derive(Debug, Clone, PartialEq)]
enum Piece<'a> {
    Name(&'a str),
    Text(&'a str),
    Sign(char),
}

fn pieces(expr: &str) -> Result<Vec<Piece<'_>>, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut pieces = Vec::new();
    let mut rest = expr.trim_start();
    while let Some(first) = rest.chars().next() {
        let used = if first.is_ascii_digit() {
            // A number or a duration.
            rest.find(|c: char| !is_name(c) && c != '.')
                .unwrap_or(rest.len())
        } else if is_name(first) {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            pieces.push(Piece::Name(&rest[..end]));
            end
        } else if first == '"' {
            let end = rest[1..].find('"').ok_or("a text without an end")?;
            pieces.push(Piece::Text(&rest[1..=end]));
            end + 2
        } else if first == '[' {
            // A range: `[5m]` or `[$__rate_interval]`.
            rest.find(']').ok_or("a range without an end")? + 1
        } else if "(){},=!~<>+-*/".contains(first) {
            pieces.push(Piece::Sign(first));
            1
        } else {
            return Err(format!("{first:?}"));
        };
        rest = rest[used..].trim_start();
    }
    Ok(pieces)
}

/// Returns the metrics of an expression. Metrics, labels and words that a scrape cannot have are
/// errors.
pub(crate) fn metrics_of(expr: &str) -> Result<BTreeSet<&'static str>, String> {
    let pieces = pieces(expr)?;
    let mut found = BTreeSet::new();
    let mut labels = BTreeSet::new();
    let mut at = 0;
    while let Some(piece) = pieces.get(at) {
        at += 1;
        let &Piece::Name(name) = piece else { continue };
        let next = pieces.get(at);
        if WITH_LABELS.contains(&name) {
            // `group_left` may have no list of labels.
            if next == Some(&Piece::Sign('(')) && name != "group_left" {
                let end = pieces[at..]
                    .iter()
                    .position(|piece| *piece == Piece::Sign(')'))
                    .ok_or("labels without an end")?;
                for label in &pieces[at + 1..at + end] {
                    match label {
                        Piece::Name(label) => drop(labels.insert(*label)),
                        Piece::Sign(',') => {}
                        other => return Err(format!("{other:?} among labels")),
                    }
                }
                at += end + 1;
            }
        } else if OPERATORS.contains(&name) {
        } else if next == Some(&Piece::Sign('(')) || is_grouping(next) {
            if !FUNCTIONS.contains(&name) {
                return Err(format!("unknown function {name}"));
            }
        } else {
            let metric = words::metric_of(name).ok_or(format!("no metric {name}"))?;
            found.insert(metric.name);
            if next == Some(&Piece::Sign('{')) {
                let end = pieces[at..]
                    .iter()
                    .position(|piece| *piece == Piece::Sign('}'))
                    .ok_or("matchers without an end")?;
                matchers(metric.name, &pieces[at + 1..at + end])?;
                at += end + 1;
            }
        }
    }
    for label in labels {
        let of_one = METRICS
            .iter()
            .filter(|metric| found.contains(metric.name))
            .any(|metric| {
                metric.labels.contains(&label)
                    || label == "le" && metric.kind == "histogram"
                    || label == "source" && words::is_of_a_source(metric.name)
            });
        if !of_one && !TARGET_LABELS.contains(&label) {
            return Err(format!("no metric of {found:?} has a label {label}"));
        }
    }
    Ok(found)
}

/// Whether grouping labels follow: `sum by (job) (…)`.
fn is_grouping(next: Option<&Piece<'_>>) -> bool {
    matches!(next, Some(Piece::Name("by" | "without")))
}

/// `label="word"`, `label!="word"`, `label=~"word|word"`, `label!~"word|word"`, with commas between.
fn matchers(metric: &'static str, pieces: &[Piece<'_>]) -> Result<(), String> {
    for matcher in pieces.split(|piece| *piece == Piece::Sign(',')) {
        let [Piece::Name(label), signs @ .., Piece::Text(text)] = matcher else {
            return Err(format!("{matcher:?} is not a matcher"));
        };
        let by_regex = match signs {
            [Piece::Sign('=')] | [Piece::Sign('!'), Piece::Sign('=')] => false,
            [Piece::Sign('='), Piece::Sign('~')] | [Piece::Sign('!'), Piece::Sign('~')] => true,
            other => return Err(format!("{other:?}")),
        };
        if TARGET_LABELS.contains(label) {
            if *text != format!("${label}") {
                return Err(format!("{label} is set by the operator"));
            }
            continue;
        }
        let known = words::metric_of(metric)
            .filter(|metric| metric.labels.contains(label))
            .and_then(|metric| words::of(metric.name, label))
            .ok_or(format!("{metric} has no label {label} with fixed values"))?;
        let parts = if by_regex {
            text.split('|')
        } else {
            text.split('\0')
        };
        for word in parts {
            if !known.contains(word) {
                return Err(format!("{label} of {metric} is never {word:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn used_metrics_are_found() {
    let expr = "sum by (job, outcome) (rate(spiffe_svid_fetches_total{job=~\"$job\", \
                outcome!=\"ok\"}[5m])) / ignoring (outcome) group_left sum by (job) \
                (rate(spiffe_svid_fetch_duration_seconds_count[$__rate_interval])) > 0.2e1 \
                unless on (job) spiffe_bundle_ready == bool 0";
    let found = metrics_of(expr).unwrap();
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [
            "spiffe_bundle_ready",
            "spiffe_svid_fetch_duration_seconds",
            "spiffe_svid_fetches_total",
        ]
    );
}

#[test]
fn unknown_names_are_errors() {
    for (wrong, says) in [
        (
            "rate(spiffe_svid_fetch_total[5m])",
            "no metric spiffe_svid_fetch_total",
        ),
        ("spiffe_bundle_ready_total", "no metric"),
        // A histogram has no sample with its own name.
        ("spiffe_svid_fetch_duration_seconds", "no metric"),
        ("spiffe_bundle_ready_count", "no metric"),
        (
            "sum(rates(spiffe_svid_fetches_total[5m]))",
            "unknown function rates",
        ),
        (
            "sum by (outcom) (spiffe_svid_fetches_total)",
            "a label outcom",
        ),
        ("sum by (kind) (spiffe_svid_fetches_total)", "a label kind"),
        ("sum by (le) (spiffe_svid_fetches_total)", "a label le"),
        (
            "spiffe_svid_fetches_total{result=\"ok\"}",
            "no label result",
        ),
        (
            "spiffe_svid_fetches_total{outcome=\"fine\"}",
            "never \"fine\"",
        ),
        (
            "spiffe_svid_fetches_total{outcome!~\"ok|timeouts\"}",
            "never \"timeouts\"",
        ),
        // A word of another metric.
        ("spiffe_verifications_total{outcome=\"verified\"}", "never"),
        ("spiffe_source_errors_total{kind=~\"bundle-.*\"}", "never"),
        (
            "spiffe_admissions_total{trust_domain=\"example.org\"}",
            "with fixed values",
        ),
        ("spiffe_bundle_ready{job=\"web\"}", "set by the operator"),
        ("spiffe_bundle_ready{job}", "not a matcher"),
        ("spiffe_bundle_ready @ 5", "'@'"),
    ] {
        let error = metrics_of(wrong).expect_err(wrong);
        assert!(error.contains(says), "{wrong}: {error}");
    }
}
