//! Upper limits for tower-spiffe, and whether the figures are within them.

use serde::Serialize;

use crate::report::Report;
use crate::table::{Cell, Unit};

/// An upper limit for one figure.
struct Limit {
    what: &'static str,
    limit: f64,
    table: &'static str,
    row: &'static str,
    column: &'static str,
}

const LIMITS: &[Limit] = &[
    Limit {
        what: "axum: processor time that the layer adds to a request with a known token",
        limit: 300.0,
        table: "axum-seen",
        row: "**tower-spiffe**",
        column: "above no layer",
    },
    Limit {
        what: "tonic: processor time that the layer adds to a request with a known token",
        limit: 300.0,
        table: "tonic-seen",
        row: "**tower-spiffe**",
        column: "above no layer",
    },
    Limit {
        what: "crates in a user's build with default features, relative to `spiffe` with its JWT \
               features",
        limit: 1.1,
        table: "builds",
        row: "**tower-spiffe**, default features",
        column: "to spiffe's",
    },
];

#[derive(Serialize)]
pub struct Bar {
    what: &'static str,
    limit: f64,
    unit: Unit,
    measured: f64,
    quartiles: Option<(f64, f64)>,
    pub held: bool,
}

/// Returns the limits whose figures were measured.
pub fn bars(report: &Report) -> Vec<Bar> {
    let bar = |target: &Limit| {
        let cell = report.cell(target.table, target.row, target.column)?;
        let Cell {
            value,
            quartiles,
            unit,
        } = cell;
        Some(Bar {
            what: target.what,
            limit: target.limit,
            unit,
            measured: value,
            quartiles,
            held: value <= target.limit,
        })
    };
    LIMITS.iter().filter_map(bar).collect()
}

pub fn markdown(bars: &[Bar]) -> String {
    let mut text = String::from(
        "| figure | limit | measured | middle half of the rounds | |\n| --- | ---: | ---: | ---: | --- |\n",
    );
    for bar in bars {
        let of = |value| bar.unit.text(value);
        let rounds = bar.quartiles.map_or_else(
            || "–".to_owned(),
            |(lower, upper)| format!("{} to {}", of(lower), of(upper)),
        );
        text.push_str(&format!(
            "| {} | {} | {} | {rounds} | {} |\n",
            bar.what,
            of(bar.limit),
            of(bar.measured),
            if bar.held { "ok" } else { "**EXCEEDED**" },
        ));
    }
    text
}
