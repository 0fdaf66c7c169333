//! What came out: for people as Markdown, for programs as JSON.

use serde::{Deserialize, Serialize};

use crate::measure::Outcome;

#[derive(Serialize, Deserialize)]
pub struct Report {
    pub machine: Vec<(String, String)>,
    pub tables: Vec<Table>,
}

impl Report {
    /// Where the figures are from.
    pub fn about(&self) -> String {
        let lines = self.machine.iter();
        lines
            .map(|(what, is)| format!("- {what}: {is}\n"))
            .collect()
    }
}

#[derive(Serialize, Deserialize)]
pub struct Table {
    pub id: String,
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub cells: Vec<Option<Cell>>,
}

/// A figure with its unit.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub struct Cell {
    pub value: f64,
    pub unit: Unit,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Nanos,
    Count,
    Bytes,
    Ratio,
    Rate,
}

impl Cell {
    pub fn nanos(value: f64) -> Option<Self> {
        Self::of(value, Unit::Nanos)
    }

    pub fn count(value: f64) -> Option<Self> {
        Self::of(value, Unit::Count)
    }

    pub fn bytes(value: f64) -> Option<Self> {
        Self::of(value, Unit::Bytes)
    }

    pub fn ratio(value: f64) -> Option<Self> {
        Self::of(value, Unit::Ratio)
    }

    pub fn rate(value: f64) -> Option<Self> {
        Self::of(value, Unit::Rate)
    }

    fn of(value: f64, unit: Unit) -> Option<Self> {
        value.is_finite().then_some(Self { value, unit })
    }

    pub fn text(self) -> String {
        let value = self.value;
        match self.unit {
            Unit::Nanos if value.abs() < 1e3 => format!("{value:.0} ns"),
            Unit::Nanos if value.abs() < 1e6 => format!("{:.2} µs", value / 1e3),
            Unit::Nanos if value.abs() < 1e9 => format!("{:.2} ms", value / 1e6),
            Unit::Nanos => format!("{:.1} s", value / 1e9),
            Unit::Bytes if value.abs() < 1024.0 * 10.0 => format!("{value:.0} B"),
            Unit::Bytes if value.abs() < 1024.0 * 1024.0 => format!("{:.0} KiB", value / 1024.0),
            Unit::Bytes => format!("{:.1} MiB", value / 1024.0 / 1024.0),
            Unit::Ratio => format!("{value:.2} ×"),
            Unit::Rate => format!("{value:.0}/s"),
            Unit::Count if (value - value.round()).abs() < 0.05 => format!("{value:.0}"),
            Unit::Count => format!("{value:.1}"),
        }
    }
}

impl Table {
    pub fn new(id: &str, title: &str, columns: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn row(&mut self, name: impl Into<String>, cells: Vec<Option<Cell>>) {
        self.rows.push(Row {
            name: name.into(),
            cells,
        });
    }

    pub fn note(mut self, note: &str) -> Self {
        self.notes.push(note.to_owned());
        self
    }

    /// Time, spread and allocations of each.
    pub fn contest(id: &str, title: &str, outcomes: Vec<(String, Outcome)>) -> Self {
        let columns = [
            "time",
            "faster quarter",
            "slower quarter",
            "allocations",
            "allocated",
        ];
        let mut table = Self::new(id, title, &columns);
        for (name, outcome) in outcomes {
            table.row(
                name,
                vec![
                    Cell::nanos(outcome.nanos),
                    Cell::nanos(outcome.quartiles.0),
                    Cell::nanos(outcome.quartiles.1),
                    Cell::count(outcome.allocations),
                    Cell::bytes(outcome.bytes),
                ],
            );
        }
        table
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n|  |", self.title);
        for column in &self.columns {
            text.push_str(&format!(" {column} |"));
        }
        text.push_str("\n| --- |");
        text.push_str(&" ---: |".repeat(self.columns.len()));
        for row in &self.rows {
            text.push_str(&format!("\n| {} |", row.name));
            for cell in &row.cells {
                let cell = cell.map_or_else(|| "–".to_owned(), Cell::text);
                text.push_str(&format!(" {cell} |"));
            }
        }
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("\n{note}\n"));
        }
        text
    }
}

/// The machine, as a reader wants to know it.
pub fn machine() -> Vec<(String, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let run = |program: &str, argument: &str| {
        let output = std::process::Command::new(program).arg(argument).output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = || {
        let text = read("/proc/loadavg");
        text.split(' ').next().unwrap_or_default().to_owned()
    };
    [
        (
            "processor",
            format!(
                "{}, {cores} cores",
                field(&read("/proc/cpuinfo"), "model name")
            ),
        ),
        (
            "system",
            format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        ),
        ("compiler", run("rustc", "--version")),
        (
            "processes waiting when it began",
            format!("{} (load average)", load()),
        ),
        ("date", run("date", "-uI")),
    ]
    .map(|(what, is)| (what.to_owned(), is))
    .to_vec()
}
