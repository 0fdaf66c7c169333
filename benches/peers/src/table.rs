//! Tables of figures, as Markdown and as JSON.

use serde::{Deserialize, Serialize};

use crate::measure::{Outcome, Spread};
use crate::names::Who;

#[derive(Clone, Serialize, Deserialize)]
pub struct Table {
    pub id: String,
    pub title: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// Which direction is better.
    pub better: Better,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Less,
    More,
    Neither,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    pub who: Who,
    pub cells: Vec<Option<Cell>>,
}

/// A figure with its unit.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub struct Cell {
    pub value: f64,
    /// The lower and the upper quartile of the rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quartiles: Option<(f64, f64)>,
    pub unit: Unit,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Nanos,
    Count,
    Bytes,
    Ratio,
    Share,
    Rate,
}

impl Cell {
    pub fn nanos(value: impl Into<Spread>) -> Option<Self> {
        Self::of(value, Unit::Nanos)
    }

    pub fn count(value: impl Into<Spread>) -> Option<Self> {
        Self::of(value, Unit::Count)
    }

    pub fn bytes(value: impl Into<Spread>) -> Option<Self> {
        Self::of(value, Unit::Bytes)
    }

    pub fn ratio(value: impl Into<Spread>) -> Option<Self> {
        Self::of(value, Unit::Ratio)
    }

    pub fn share(value: impl Into<Spread>) -> Option<Self> {
        Self::of(value, Unit::Share)
    }

    pub fn rate(value: impl Into<Spread>) -> Option<Self> {
        Self::of(value, Unit::Rate)
    }

    fn of(value: impl Into<Spread>, unit: Unit) -> Option<Self> {
        let Spread { median, quartiles } = value.into();
        median.is_finite().then_some(Self {
            value: tidy(median),
            quartiles: quartiles.map(|(lower, upper)| (tidy(lower), tidy(upper))),
            unit,
        })
    }

    pub fn text(self) -> String {
        self.unit.text(self.value)
    }
}

/// Rounds to three decimals, which is more than the precision of the figures.
fn tidy(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

impl Unit {
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Nanos if value.abs() < 1e3 => format!("{value:.0} ns"),
            Self::Nanos if value.abs() < 1e6 => format!("{:.2} µs", value / 1e3),
            Self::Nanos if value.abs() < 1e9 => format!("{:.2} ms", value / 1e6),
            Self::Nanos => format!("{:.1} s", value / 1e9),
            Self::Bytes if value.abs() < 1024.0 * 10.0 => format!("{value:.0} B"),
            Self::Bytes if value.abs() < 1024.0 * 1024.0 => format!("{:.0} KiB", value / 1024.0),
            Self::Bytes => format!("{:.1} MiB", value / 1024.0 / 1024.0),
            Self::Ratio => format!("{value:.2} ×"),
            Self::Share => format!("{:.1} %", value * 100.0),
            Self::Rate => format!("{value:.0}/s"),
            Self::Count if (value - value.round()).abs() < 0.05 => format!("{value:.0}"),
            Self::Count => format!("{value:.1}"),
        }
    }
}

/// Selects the value of an outcome for a cell.
pub type Of = fn(&Outcome) -> Option<Cell>;

pub const TIME: Of = |outcome| Cell::nanos(outcome.time);
pub const OVER_BASE: Of = |outcome| Cell::nanos(outcome.over_base);
pub const ALLOCATIONS: Of = |outcome| Cell::count(outcome.allocations);
pub const BYTES: Of = |outcome| Cell::bytes(outcome.bytes);

impl Table {
    /// Creates a table. In all columns less is better.
    pub fn new(id: &str, title: &str, columns: &[&str]) -> Self {
        let column = |&name: &&str| Column {
            name: name.to_owned(),
            better: Better::Less,
        };
        Self {
            id: id.to_owned(),
            title: title.to_owned(),
            columns: columns.iter().map(column).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Sets which direction is better in this column.
    pub fn better(mut self, column: &str, better: Better) -> Self {
        let found = self.columns.iter_mut().find(|other| other.name == column);
        found.expect("the table has that column").better = better;
        self
    }

    pub fn row(&mut self, who: Who, cells: Vec<Option<Cell>>) {
        assert_eq!(cells.len(), self.columns.len(), "{}: {}", self.id, who.name);
        self.rows.push(Row { who, cells });
    }

    pub fn note(mut self, note: &str) -> Self {
        self.notes.push(note.to_owned());
        self
    }

    /// Creates a table of time, quartiles and allocations.
    pub fn contest(id: &str, title: &str, outcomes: &[Outcome]) -> Self {
        const FASTER: &str = "faster quarter";
        const SLOWER: &str = "slower quarter";
        let columns = ["time", FASTER, SLOWER, "allocations", "allocated"];
        let mut table = Self::new(id, title, &columns)
            .better(FASTER, Better::Neither)
            .better(SLOWER, Better::Neither);
        for outcome in outcomes {
            let (faster, slower) = outcome.time.quartiles.unwrap_or_default();
            let cells = vec![
                TIME(outcome),
                Cell::nanos(faster),
                Cell::nanos(slower),
                ALLOCATIONS(outcome),
                BYTES(outcome),
            ];
            table.row(outcome.who.clone(), cells);
        }
        table
    }

    /// Creates a table of several contests, one column for each.
    pub fn beside(
        id: &str,
        title: &str,
        columns: &[&str],
        contests: &[Vec<Outcome>],
        of: Of,
    ) -> Self {
        let mut table = Self::new(id, title, columns);
        let mut all: Vec<&Who> = Vec::new();
        for outcome in contests.iter().flatten() {
            if !all.contains(&&outcome.who) {
                all.push(&outcome.who);
            }
        }
        for who in all {
            let cells = contests.iter().map(|outcomes| {
                let found = outcomes.iter().find(|outcome| outcome.who == *who);
                found.and_then(of)
            });
            table.row(who.clone(), cells.collect());
        }
        table
    }

    pub fn without(mut self, excluded: &[Who]) -> Self {
        self.rows.retain(|row| !excluded.contains(&row.who));
        self
    }

    /// Returns the figure in this column of the first row whose name starts with `row`.
    pub fn cell(&self, row: &str, column: &str) -> Option<Cell> {
        let at = self.columns.iter().position(|other| other.name == column)?;
        let row = self
            .rows
            .iter()
            .find(|other| other.who.name.starts_with(row))?;
        *row.cells.get(at)?
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n|  |", self.title);
        for column in &self.columns {
            text.push_str(&format!(" {} |", column.name));
        }
        text.push_str("\n| --- |");
        text.push_str(&" ---: |".repeat(self.columns.len()));
        for row in &self.rows {
            text.push_str(&format!("\n| {} |", row.who.name));
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
