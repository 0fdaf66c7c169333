//! The sentences of the page that contain figures.

use crate::report::Report;
use crate::table::{Cell, Table, Unit};

/// Summarizes the figures. A sentence is omitted if its figures are missing.
pub fn summary(report: &Report) -> String {
    let sentences = [
        seen(report),
        new(report),
        rejected(report),
        more(report),
        full_load(report),
        backend(report),
    ];
    let lines = sentences.into_iter().flatten();
    lines.map(|line| format!("- {line}\n")).collect()
}

const OURS: &str = "**tower-spiffe**";
const RAW: &str = "aws-lc-rs alone";

fn seen(report: &Report) -> Option<String> {
    let ours = report.cell("repeated", OURS, "time")?;
    let raw = report.cell("repeated", RAW, "time")?;
    let allocations = report.cell("repeated", OURS, "allocations")?;
    Some(format!(
        "**A known token costs {:.2} % of a signature check** ({} of {}, ES256) and {} \
         allocations. The cache compares the whole token. Each hit still checks the token's times, \
         the state of the source, and that the key is still in the bundle.",
        ours.value / raw.value * 100.0,
        ours.text(),
        raw.text(),
        allocations.text(),
    ))
}

fn new(report: &Report) -> Option<String> {
    let above = |row, column| report.cell("cold-above", row, column).map(Cell::text);
    let raw = |column| report.cell("cold", RAW, column).map(Cell::text);
    Some(format!(
        "**A new token costs the signature check and little more**: {} in addition with ES256, {} \
         with RS256. If the cache is full and each new token evicts another one, it is {} and {}. \
         The signature check is done by aws-lc and takes the same time in every crate that uses \
         it. To reduce it, let the issuer sign with RS256 ({} here) instead of ES256 ({}), or \
         reuse tokens.",
        above(OURS, "ES256")?,
        above(OURS, "RS256")?,
        above("**tower-spiffe**, its cache full", "ES256")?,
        above("**tower-spiffe**, its cache full", "RS256")?,
        raw("RS256")?,
        raw("ES256")?,
    ))
}

fn rejected(report: &Report) -> Option<String> {
    let ours = report.cell("rejections", OURS, "expired")?;
    let spiffe = report.cell("rejections", "spiffe", "expired")?;
    Some(format!(
        "**Rejections that do not need the signature happen before the signature check**: an \
         expired token costs {}. `spiffe` verifies the signature first and takes {}, {:.0} times \
         as long.",
        ours.text(),
        spiffe.text(),
        spiffe.value / ours.value,
    ))
}

fn more(report: &Report) -> Option<String> {
    let bundles = |column| report.cell("growth-bundles", OURS, column).map(Cell::text);
    let tokens = |column| report.cell("growth-tokens", OURS, column).map(Cell::text);
    let threads = |row| report.cell("growth-threads", row, "ratio").map(Cell::text);
    Some(format!(
        "**Scaling**: with 2000 trust domains of ten keys each, a known token takes {} ({} with \
         one trust domain and one key). Each thread caches 256 tokens; further tokens are read \
         from the cache that all threads share: {} with 5000 tokens in use, {} with one. Two \
         threads verify {} as many known tokens as one thread; for pure arithmetic the ratio is \
         {}.",
        bundles("2000 × 10")?,
        bundles("1 × 1")?,
        tokens("5000")?,
        tokens("1")?,
        threads("**tower-spiffe**, 50 tokens")?,
        threads("arithmetic")?,
    ))
}

fn full_load(report: &Report) -> Option<String> {
    let of = |row, column| report.cell("full-load", row, column).map(Cell::text);
    const LAYERS: &str = "**tower-spiffe**, client and server layer";
    const ROTATING: &str = "**tower-spiffe**, client and server layer, keys rotate";
    Some(format!(
        "**Full load**: with both layers the throughput is {} of the throughput without layers \
         ({}), and {} while keys rotate ten times a second. p50 is {} (without layers {}, while \
         keys rotate {}). p99.9 is {} (without layers {}, while keys rotate {}).",
        of(LAYERS, "to no layers")?,
        of("no layers", "requests")?,
        of(ROTATING, "to no layers")?,
        of(LAYERS, "p50")?,
        of("no layers", "p50")?,
        of(ROTATING, "p50")?,
        of(LAYERS, "p99.9")?,
        of("no layers", "p99.9")?,
        of(ROTATING, "p99.9")?,
    ))
}

fn backend(report: &Report) -> Option<String> {
    let ratio = |column| {
        let slow = report.cell("backends", "spiffe 0.19 on RustCrypto", column)?;
        let fast = report.cell("backends", "spiffe 0.19 on aws-lc", column)?;
        Cell::ratio(slow.value / fast.value).map(Cell::text)
    };
    Some(format!(
        "**aws-lc is faster than RustCrypto**: `spiffe` on RustCrypto, its default backend, takes {} \
         as long as on aws-lc with ES256, and {} with RS256.",
        ratio("ES256")?,
        ratio("RS256")?,
    ))
}

/// Lists the differences between two measurements of the same baseline.
pub fn noise(report: &Report) -> String {
    const AGAIN: &str = "aws-lc-rs alone, once more";
    const NO_LAYER: &str = "no layer at all, once more";
    let mut text = String::new();
    let mut line = |what: &str, is: Option<String>| {
        if let Some(is) = is {
            text.push_str(&format!("- {what}: {is}.\n"));
        }
    };
    line(
        "the bare signature check, by algorithm",
        largest(report.table("cold-above"), AGAIN)
            .map(|worst| format!("at most {} (median of rounds)", Unit::Nanos.text(worst))),
    );
    line(
        "a request through no layer",
        largest(report.table("layer-above"), NO_LAYER)
            .map(|worst| format!("at most {}", Unit::Nanos.text(worst))),
    );
    for (server, tables) in [
        ("axum", ["axum-seen", "axum-new"]),
        ("tonic", ["tonic-seen", "tonic-new"]),
    ] {
        let [seen, new] = tables.map(|id| {
            let cell = report.cell(id, NO_LAYER, "above no layer")?;
            Some(cell.text())
        });
        line(
            &format!("{server}'s processor time for a request without a layer"),
            seen.zip(new)
                .map(|(seen, new)| format!("{seen} (one token) and {new} (new tokens)")),
        );
    }
    text
}

/// Returns the largest absolute value in this row.
fn largest(table: Option<&Table>, row: &str) -> Option<f64> {
    let row = table?
        .rows
        .iter()
        .find(|other| other.who.name.starts_with(row))?;
    let values = row.cells.iter().flatten().map(|cell| cell.value);
    values.map(f64::abs).max_by(f64::total_cmp)
}
