//! Times tower-spiffe against what one would use in its place: everybody in one process, on the
//! same tokens, keys and allocator, in interleaved rounds.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml` prints the tables as Markdown and
//! writes them as JSON; the same with `-- draw` draws those into `docs/`. `-- --quick` only shows
//! that everything works, `-- NAME…` runs those sections alone, `--json PATH` says where the figures
//! are.

mod builds;
mod draw;
mod growth;
mod inject;
mod keys;
mod layer;
mod live;
mod loopback;
mod measure;
mod peers;
mod report;
mod verify;

use std::path::Path;

use measure::Effort;
use report::{Report, Table};

/// A part of the comparison: its name, and what it measures.
type Section = (&'static str, fn(Effort) -> Vec<Table>);

const SECTIONS: &[Section] = &[
    ("cold", verify::cold),
    ("repeated", |effort| vec![verify::repeated(effort)]),
    ("refusals", verify::refusals),
    ("growth", |effort| {
        vec![
            growth::bundles(effort),
            growth::tokens(effort),
            growth::threads(effort),
        ]
    }),
    ("layer", |effort| vec![layer::calls(effort)]),
    ("layer-refusals", |effort| vec![layer::refusals(effort)]),
    ("injection", |effort| vec![inject::injection(effort)]),
    ("start", |effort| vec![live::start(effort)]),
    ("own-token", |effort| vec![live::own_token(effort)]),
    ("update", |effort| vec![live::update(effort)]),
    ("memory", |effort| vec![live::memory(effort)]),
    ("loopback", loopback::run),
    ("builds", |effort| vec![builds::run(effort)]),
];

fn main() {
    let mut effort = Effort::FULL;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut json = here.join("peers.json");
    let mut drawing = false;
    let mut wanted = Vec::new();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--child", rest)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        return live::be_child(rest);
    }
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => effort = Effort::QUICK,
            "--json" => json = arguments.next().expect("--json PATH").into(),
            "draw" => drawing = true,
            name if SECTIONS.iter().any(|(section, _)| *section == name) => {
                wanted.push(argument);
            }
            other => panic!("no section is called {other}: {:?}", names()),
        }
    }
    if drawing {
        let text = std::fs::read_to_string(&json).expect("there are figures to draw");
        return draw::draw(
            &serde_json::from_str(&text).unwrap(),
            &here.join("../../docs"),
        );
    }
    let mut report = Report {
        machine: report::machine(),
        tables: Vec::new(),
    };
    print!("{}", report.about());
    for (name, section) in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        for table in section(effort) {
            println!("\n{}", table.markdown());
            report.tables.push(table);
        }
    }
    std::fs::write(&json, serde_json::to_string_pretty(&report).unwrap()).unwrap();
    eprintln!("the figures are in {}", json.display());
}

fn names() -> Vec<&'static str> {
    SECTIONS.iter().map(|(name, _)| *name).collect()
}
