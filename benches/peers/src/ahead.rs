//! Where another one is ahead of tower-spiffe, found by the figures, and why, known by looking.

use serde::Serialize;

use crate::names::Role;
use crate::report::Report;
use crate::table::{Better, Cell, Row, Table};

/// A figure of a peer that is better than ours, beyond what rounds differ by.
#[derive(Clone, Serialize)]
pub struct Ahead {
    pub table: String,
    pub column: String,
    pub peer: String,
    pub ours: String,
    theirs: Cell,
    ours_is: Cell,
}

/// Why peers are ahead in these tables; in all of their columns where none is named, and all of
/// the peers whose name has this in it.
struct Reason {
    tables: &'static [&'static str],
    columns: &'static [&'static str],
    peer: &'static str,
    why: &'static str,
}

const REASONS: &[Reason] = &[];

pub fn ahead(report: &Report) -> Vec<Ahead> {
    report.tables().flat_map(in_table).collect()
}

fn in_table(table: &Table) -> Vec<Ahead> {
    let of = |role| table.rows.iter().filter(move |row| row.who.role == role);
    let mut all = Vec::new();
    for peer in of(Role::Peer) {
        for ours in of(Role::Ours).filter(|ours| ours.who.job == peer.who.job) {
            all.extend(between(table, peer, ours));
        }
    }
    all
}

fn between(table: &Table, peer: &Row, ours: &Row) -> Vec<Ahead> {
    let cells = peer.cells.iter().zip(&ours.cells).zip(&table.columns);
    let better = cells.filter_map(|((theirs, ours_is), column)| {
        let (theirs, ours_is) = ((*theirs)?, (*ours_is)?);
        is_better(theirs, ours_is, column.better).then(|| Ahead {
            table: table.id.clone(),
            column: column.name.trim_end().to_owned(),
            peer: peer.who.name.clone().into_owned(),
            ours: ours.who.name.clone().into_owned(),
            theirs,
            ours_is,
        })
    });
    better.collect()
}

/// Beyond the spread: the better one's worse quarter is better than the other's better quarter.
fn is_better(theirs: Cell, ours: Cell, better: Better) -> bool {
    let of = |cell: Cell| cell.quartiles.unwrap_or((cell.value, cell.value));
    match better {
        Better::Less => of(theirs).1 < of(ours).0,
        Better::More => of(theirs).0 > of(ours).1,
        Better::Neither => false,
    }
}

impl Ahead {
    fn why(&self) -> Option<&'static str> {
        let applies = |reason: &&Reason| {
            reason.tables.contains(&self.table.as_str())
                && (reason.columns.is_empty() || reason.columns.contains(&self.column.as_str()))
                && self.peer.contains(reason.peer)
        };
        REASONS.iter().find(applies).map(|reason| reason.why)
    }

    fn figures(&self) -> String {
        format!(
            "{}: {} against {}",
            self.column,
            self.theirs.text(),
            self.ours_is.text()
        )
    }
}

/// Each reason with what it explains. What nobody has explained yet is shown as such.
pub fn markdown(report: &Report, all: &[Ahead]) -> String {
    if all.is_empty() {
        return "In no figure of this run is another one ahead.\n".to_owned();
    }
    let mut text = String::new();
    let mut whys: Vec<Option<&str>> = Vec::new();
    for one in all {
        if !whys.contains(&one.why()) {
            whys.push(one.why());
        }
    }
    for why in whys {
        let mut rows: Vec<(&Ahead, Vec<String>)> = Vec::new();
        for one in all.iter().filter(|one| one.why() == why) {
            let same = |(row, _): &&mut (&Ahead, Vec<String>)| {
                (&row.table, &row.peer, &row.ours) == (&one.table, &one.peer, &one.ours)
            };
            match rows.iter_mut().find(same) {
                Some((_, figures)) => figures.push(one.figures()),
                None => rows.push((one, vec![one.figures()])),
            }
        }
        for (row, figures) in rows {
            let title = report.table(&row.table).map_or("", |table| &table.title);
            text.push_str(&format!(
                "- *{title}*: {} ahead of {}. {}.\n",
                plain(&row.peer),
                plain(&row.ours),
                figures.join("; ")
            ));
        }
        text.push_str(&format!(
            "\n{}\n\n",
            why.unwrap_or("**Not explained yet.**")
        ));
    }
    text
}

pub fn unexplained(all: &[Ahead]) -> usize {
    all.iter().filter(|one| one.why().is_none()).count()
}

/// A row's name without its footnote.
fn plain(name: &str) -> String {
    let end = name.find(" [^").unwrap_or(name.len());
    let (name, rest) = name.split_at(end);
    let rest = rest.split_once(']').map_or("", |(_, rest)| rest);
    format!("{name}{rest}").replace("**", "")
}
