//! What tower-spiffe promises to stay below, and whether it does.

use serde::Serialize;

use crate::report::Report;
use crate::table::{Cell, Unit};

/// A promise about one figure.
struct Promise {
    what: &'static str,
    limit: f64,
    table: &'static str,
    row: &'static str,
    column: &'static str,
}

const PROMISES: &[Promise] = &[
    Promise {
        what: "axum: processor time that the layer adds to a request whose token was seen before",
        limit: 300.0,
        table: "axum-seen",
        row: "**tower-spiffe**",
        column: "above no layer",
    },
    Promise {
        what: "tonic: the same",
        limit: 300.0,
        table: "tonic-seen",
        row: "**tower-spiffe**",
        column: "above no layer",
    },
    Promise {
        what: "crates in a user's build with default features, to those of `spiffe` with its JWT features",
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

/// Those whose figure was measured.
pub fn bars(report: &Report) -> Vec<Bar> {
    let bar = |promise: &Promise| {
        let cell = report.cell(promise.table, promise.row, promise.column)?;
        let Cell {
            value,
            quartiles,
            unit,
        } = cell;
        Some(Bar {
            what: promise.what,
            limit: promise.limit,
            unit,
            measured: value,
            quartiles,
            held: value <= promise.limit,
        })
    };
    PROMISES.iter().filter_map(bar).collect()
}

pub fn markdown(bars: &[Bar]) -> String {
    let mut text = String::from(
        "| what | at most | measured | half of the rounds | |\n| --- | ---: | ---: | ---: | --- |\n",
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
            if bar.held { "held" } else { "**MISSED**" },
        ));
    }
    text
}
