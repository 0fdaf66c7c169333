//! What the page says in words, with the figures of the run that it shows.

use crate::report::Report;
use crate::table::{Cell, Table, Unit};

/// What a reader may take from the figures. A sentence whose figures are not there is left out.
pub fn take_away(report: &Report) -> String {
    let sentences = [
        seen(report),
        new(report),
        refused(report),
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
        "**A token that was verified before costs {:.2} % of a signature check** ({} of {}, ES256) \
         and {} allocations. The cache is asked for the whole token, byte by byte; on each hit the \
         time is judged anew, whether the source can still judge, and whether the key is still in \
         the bundle.",
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
        "**A token never seen costs the signature check and little more**: {} above it with ES256, \
         {} with RS256; {} and {} where the cache is full and each new token pushes out another. \
         The check itself belongs to aws-lc and is the same for all of them; who wants less of it \
         takes RS256 ({} here) instead of ES256 ({}) from the issuer, or lets tokens be used more \
         than once.",
        above(OURS, "ES256")?,
        above(OURS, "RS256")?,
        above("**tower-spiffe**, its cache full", "ES256")?,
        above("**tower-spiffe**, its cache full", "RS256")?,
        raw("RS256")?,
        raw("ES256")?,
    ))
}

fn refused(report: &Report) -> Option<String> {
    let ours = report.cell("refusals", OURS, "expired")?;
    let spiffe = report.cell("refusals", "spiffe", "expired")?;
    Some(format!(
        "**A refusal that needs no signature check comes before the check**: an expired token costs \
         {}, where those that verify first pay {} and more, {:.0} times as much.",
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
        "**More of everything**: with 2000 trust domains of ten keys a token seen before takes {} \
         ({} with one). With more than the 256 tokens that a thread keeps for itself the shared \
         cache is asked: {} with 5000 tokens, {} with one. Two threads do {} of what one does, \
         arithmetic alone {}.",
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
        "**At full load both layers together leave {} of the requests per second** ({} without \
         them), and {} while keys rotate ten times a second; p50 is {} ({} without them, {} while \
         keys rotate), p99.9 {} ({}, {}).",
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
        "**On aws-lc everybody is shown at his best**: `spiffe` on RustCrypto, its default, takes {} \
         the time with ES256, {} with RS256.",
        ratio("ES256")?,
        ratio("RS256")?,
    ))
}

/// By how much the same thing differs from itself.
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
        most(report.table("cold-above"), AGAIN)
            .map(|worst| format!("at most {} (median of rounds)", Unit::Nanos.text(worst))),
    );
    line(
        "a request through no layer",
        most(report.table("layer-above"), NO_LAYER)
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
                .map(|(seen, new)| format!("{seen} and {new} in the two runs of it")),
        );
    }
    text
}

/// The figure furthest from nothing in this row.
fn most(table: Option<&Table>, row: &str) -> Option<f64> {
    let row = table?
        .rows
        .iter()
        .find(|other| other.who.name.starts_with(row))?;
    let values = row.cells.iter().flatten().map(|cell| cell.value);
    values.max_by(|one, other| one.abs().total_cmp(&other.abs()))
}
