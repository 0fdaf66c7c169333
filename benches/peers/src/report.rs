//! What came out of a run, section by section, and what follows from it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ahead;
use crate::bars;
use crate::names::footnotes;
use crate::run::Run;
use crate::table::{Cell, Table};

#[derive(Serialize, Deserialize)]
pub struct Report {
    /// Only shows that everything works: its figures mean nothing.
    pub quick: bool,
    pub run: Run,
    pub sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
pub struct Section {
    pub name: String,
    pub seconds: f64,
    /// The machine's load average when it began.
    pub load: String,
    pub tables: Vec<Table>,
}

/// A report as it is written: with what follows from its figures.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    report: &'a Report,
    bars: Vec<bars::Bar>,
    ahead: Vec<ahead::Ahead>,
    footnotes: serde_json::Map<String, serde_json::Value>,
}

impl Report {
    pub fn new(quick: bool, run: Run) -> Self {
        Self {
            quick,
            run,
            sections: Vec::new(),
        }
    }

    /// What stands in this file, if there is one.
    pub fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let report = serde_json::from_str(&text);
        Some(report.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    pub fn write(&self, path: &Path) {
        let footnotes = footnotes(&self.markdown())
            .map(|(key, text)| (key.to_owned(), text.into()))
            .collect();
        let written = Written {
            report: self,
            bars: bars::bars(self),
            ahead: ahead::ahead(self),
            footnotes,
        };
        std::fs::create_dir_all(path.parent().expect("a folder")).unwrap();
        // Never half a file: the figures of before are worth something.
        let new = path.with_extension("json.new");
        let mut text = serde_json::to_string_pretty(&written).unwrap();
        text.push('\n');
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// In place of what was measured before under that name; in the order of `names`.
    pub fn put(&mut self, section: Section, names: &[&str]) {
        self.sections.retain(|other| other.name != section.name);
        self.sections.push(section);
        let place = |name: &str| names.iter().position(|other| *other == name);
        self.sections.sort_by_key(|section| place(&section.name));
    }

    pub fn has(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }

    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.sections.iter().flat_map(|section| &section.tables)
    }

    pub fn table(&self, id: &str) -> Option<&Table> {
        self.tables().find(|table| table.id == id)
    }

    /// A figure: of the first row whose name begins so.
    pub fn cell(&self, table: &str, row: &str, column: &str) -> Option<Cell> {
        self.table(table)?.cell(row, column)
    }

    /// Where the figures are from, and with how much else going on.
    pub fn about(&self) -> String {
        let mut text = self.run.about();
        let seconds: f64 = self.sections.iter().map(|section| section.seconds).sum();
        let loads = self.sections.iter().map(|section| section.load.as_str());
        let loads: Vec<&str> = loads.collect();
        text.push_str(&format!(
            "- measured in: {:.0} minutes; load average when each section began: {}\n",
            seconds / 60.0,
            loads.join(", ")
        ));
        text
    }

    /// All tables.
    pub fn markdown(&self) -> String {
        let tables = self.tables().map(Table::markdown);
        tables.collect::<Vec<_>>().join("\n")
    }

    /// What the tables' footnotes say.
    pub fn footnotes(&self) -> String {
        let text = self.markdown();
        let notes = footnotes(&text).map(|(key, text)| format!("[^{key}]: {text}\n"));
        notes.collect::<Vec<_>>().join("\n")
    }
}
