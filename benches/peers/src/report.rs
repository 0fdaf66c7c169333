//! The results of a run by section, and the texts derived from them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ahead;
use crate::bars;
use crate::names::footnotes;
use crate::run::Run;
use crate::table::{Cell, Table};

#[derive(Serialize, Deserialize)]
pub struct Report {
    /// A quick run only tests the program. Its figures mean nothing.
    pub quick: bool,
    pub run: Run,
    pub sections: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
pub struct Section {
    pub name: String,
    pub seconds: f64,
    /// The machine's load average at the start of the section.
    pub load: String,
    pub tables: Vec<Table>,
}

/// The JSON file: a report, and the parts derived from its figures.
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

    /// Reads a report. Returns `None` if the file cannot be read.
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
        // Replaced atomically, so that an interrupted run keeps the earlier figures.
        let new = path.with_extension("json.new");
        let mut text = serde_json::to_string_pretty(&written).unwrap();
        text.push('\n');
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Adds a section and replaces an older one of the same name. Sorts by the order of `names`.
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

    /// Returns the figure of the first row whose name starts with `row`.
    pub fn cell(&self, table: &str, row: &str, column: &str) -> Option<Cell> {
        self.table(table)?.cell(row, column)
    }

    /// Describes the environment, the duration and the machine's load.
    pub fn about(&self) -> String {
        let mut text = self.run.about();
        let seconds: f64 = self.sections.iter().map(|section| section.seconds).sum();
        let loads = self.sections.iter().map(|section| section.load.as_str());
        let loads: Vec<&str> = loads.collect();
        text.push_str(&format!(
            "- duration: {:.0} minutes; load average at the start of each section: {}\n",
            seconds / 60.0,
            loads.join(", ")
        ));
        text
    }

    /// Returns all tables as Markdown.
    pub fn markdown(&self) -> String {
        let tables = self.tables().map(Table::markdown);
        tables.collect::<Vec<_>>().join("\n")
    }

    /// Returns the footnotes of the tables.
    pub fn footnotes(&self) -> String {
        let text = self.markdown();
        let notes = footnotes(&text).map(|(key, text)| format!("[^{key}]: {text}\n"));
        notes.collect::<Vec<_>>().join("\n")
    }
}
