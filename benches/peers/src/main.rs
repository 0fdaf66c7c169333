//! Times tower-spiffe against what one would use in its place: everybody in one process, on the
//! same tokens, keys and allocator, in interleaved rounds.
//!
//!     cargo run --release --manifest-path benches/peers/Cargo.toml -- [--quick] [--json PATH] [missing | SECTION…]
//!     cargo run --release --manifest-path benches/peers/Cargo.toml -- draw [--json PATH]
//!
//! The first prints the tables as Markdown and writes them as JSON, after each section: all of
//! them, those that are named, or those that an earlier run of the same name has not measured. A
//! run is named by what its figures depend on; sections of another run are never put beside them.
//! It fails where a bar is missed. `--quick` only shows that everything works, in a file of its own.
//!
//! The second puts a whole run into `docs/`: the JSON, the tables, what follows from them, pictures.

mod ahead;
mod backends;
mod bars;
mod builds;
mod claims;
mod draw;
mod full_load;
mod growth;
mod inject;
mod keys;
mod layer;
mod live;
mod loopback;
mod measure;
mod memory;
mod names;
mod peers;
mod process;
mod report;
mod run;
mod table;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use measure::Effort;
use report::{Report, Section};
use run::Run;
use table::Table;

/// A part of the comparison: its name, and what it measures.
type Measured = (&'static str, fn(Effort) -> Vec<Table>);

const SECTIONS: &[Measured] = &[
    ("cold", verify::cold),
    ("repeated", |effort| vec![verify::repeated(effort)]),
    ("refusals", verify::refusals),
    ("growth", |effort| {
        vec![
            growth::bundles(effort),
            growth::server_audiences(effort),
            growth::tokens(effort),
            growth::threads(effort),
            inject::growth(effort),
        ]
    }),
    ("layer", layer::calls),
    ("layer-refusals", layer::refusals),
    ("injection", |effort| vec![inject::injection(effort)]),
    ("start", |effort| vec![live::start(effort)]),
    ("own-token", |effort| vec![live::own_token(effort)]),
    ("update", |effort| vec![live::update(effort)]),
    ("memory", memory::memory),
    ("axum", loopback::axum),
    ("tonic", loopback::tonic),
    ("full-load", |effort| vec![full_load::run(effort)]),
    ("backends", |effort| vec![backends::run(effort)]),
    ("builds", |effort| vec![builds::run(effort)]),
];

fn names() -> Vec<&'static str> {
    SECTIONS.iter().map(|(name, _)| *name).collect()
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[derive(Default)]
struct Wanted {
    quick: bool,
    draw: bool,
    missing: bool,
    json: Option<PathBuf>,
    sections: Vec<String>,
}

impl Wanted {
    fn read(arguments: impl IntoIterator<Item = String>) -> Self {
        let mut wanted = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => wanted.quick = true,
                "--json" => wanted.json = Some(arguments.next().expect("--json PATH").into()),
                "draw" => wanted.draw = true,
                "missing" => wanted.missing = true,
                name if names().contains(&name) => wanted.sections.push(argument),
                other => panic!("no section is called {other}: {:?}", names()),
            }
        }
        wanted
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--child", rest)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        memory::be_child(rest);
        return ExitCode::SUCCESS;
    }
    let wanted = Wanted::read(arguments);
    let done = if wanted.draw {
        draw::draw(wanted.json, &here().join("../../docs"))
    } else {
        measure(wanted)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Where figures are put when nothing else is said. Never into `docs/`: `draw` does that.
fn figures(quick: bool) -> PathBuf {
    let name = if quick {
        "peers-quick.json"
    } else {
        "peers.json"
    };
    here().join("target").join(name)
}

fn measure(wanted: Wanted) -> Result<(), String> {
    let effort = match wanted.quick {
        true => Effort::QUICK,
        false => Effort::FULL,
    };
    let path = wanted.json.clone().unwrap_or_else(|| figures(wanted.quick));
    let mut report = begin(&wanted, &path)?;
    print!("{}", report.run.about());
    for (name, section) in SECTIONS {
        let named = wanted.sections.iter().any(|wanted| wanted == name);
        if !named && !wanted.sections.is_empty() || wanted.missing && report.has(name) {
            continue;
        }
        let load = run::load();
        let start = Instant::now();
        let tables = section(effort);
        let seconds = start.elapsed().as_secs_f64().round();
        for table in &tables {
            println!("\n{}", table.markdown());
        }
        eprintln!("{name}: {seconds} s");
        let section = Section {
            name: (*name).to_owned(),
            seconds,
            load,
            tables,
        };
        report.put(section, &names());
        report.write(&path);
    }
    judge(&report, &path)
}

/// What there is already of this run; nothing of another one.
fn begin(wanted: &Wanted, path: &Path) -> Result<Report, String> {
    let new = Report::new(wanted.quick, Run::here());
    let Some(old) = Report::read(path) else {
        return Ok(new);
    };
    let shown = path.display();
    if old.quick != wanted.quick {
        return Err(format!(
            "{shown} is of another kind of run: give another --json"
        ));
    }
    let differences = old.run.differences(&new.run);
    if differences.is_empty() {
        return Ok(old);
    }
    if (wanted.missing || !wanted.sections.is_empty()) && !wanted.quick {
        return Err(format!(
            "{shown} is of another run ({}): measure all of it, or give another --json",
            differences.join("; ")
        ));
    }
    std::fs::rename(path, path.with_extension("json.before")).map_err(|error| error.to_string())?;
    Ok(new)
}

/// Says what follows from the figures.
fn judge(report: &Report, path: &Path) -> Result<(), String> {
    println!("\n### Bars\n\n{}", bars::markdown(&bars::bars(report)));
    let ahead = ahead::ahead(report);
    println!(
        "### Where another one is ahead\n\n{}",
        ahead::markdown(report, &ahead)
    );
    println!("{}", report.footnotes());
    eprintln!("the figures are in {}", path.display());
    let unexplained = ahead::unexplained(&ahead);
    if unexplained > 0 {
        eprintln!(
            "{unexplained} figures of others are ahead of ours and not explained: see ahead.rs"
        );
    }
    let missed = bars::bars(report).iter().filter(|bar| !bar.held).count();
    if missed > 0 && !report.quick {
        return Err(format!("{missed} bars are MISSED: see above"));
    }
    Ok(())
}
