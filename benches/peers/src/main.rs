//! Compares tower-spiffe with its alternatives in one process, with the same tokens, keys and
//! allocator, in interleaved rounds.
//!
//!     cargo run --release --manifest-path benches/peers/Cargo.toml -- [--quick] [--json PATH] [missing | SECTION…]
//!     cargo run --release --manifest-path benches/peers/Cargo.toml -- draw [--json PATH]
//!
//! The first command measures. It prints the tables as Markdown and writes the JSON after each
//! section. It runs all sections, the named sections, or (`missing`) the sections that the file
//! does not contain yet. A file contains only sections of one environment (see [`run`]). The
//! command fails if a limit is exceeded. `--quick` only tests the program and writes to a separate
//! file.
//!
//! The second command writes a complete run into `docs/`: the JSON, the generated parts of the page
//! and the pictures.

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

/// A section of the comparison: its name and its function.
type Measured = (&'static str, fn(Effort) -> Vec<Table>);

const SECTIONS: &[Measured] = &[
    ("cold", verify::cold),
    ("repeated", |effort| vec![verify::repeated(effort)]),
    ("rejections", verify::rejections),
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
    ("layer-rejections", layer::rejections),
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
                other => panic!(
                    "unknown section \"{other}\"; the sections are {:?}",
                    names()
                ),
            }
        }
        wanted
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--child", rest)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        match rest {
            [section, cache] if section == "cold" => verify::run_child(cache),
            _ => memory::run_child(rest),
        }
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

/// Returns the default path of the figures. Only `draw` writes into `docs/`.
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
    let mut report = load_or_create(&wanted, &path)?;
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
    summarize(&report, &path)
}

/// Returns the report in this file if its run matches this one. Otherwise returns an empty report.
fn load_or_create(wanted: &Wanted, path: &Path) -> Result<Report, String> {
    let new = Report::new(wanted.quick, Run::here());
    let Some(old) = Report::read(path) else {
        return Ok(new);
    };
    let shown = path.display();
    if old.quick != wanted.quick {
        return Err(format!(
            "{shown}: one of the two runs is quick and the other is not; use another --json path"
        ));
    }
    let differences = old.run.differences(&new.run);
    if differences.is_empty() {
        return Ok(old);
    }
    if (wanted.missing || !wanted.sections.is_empty()) && !wanted.quick {
        return Err(format!(
            "{shown} is from another environment ({}); measure all sections, or use another --json \
             path",
            differences.join("; ")
        ));
    }
    std::fs::rename(path, path.with_extension("json.before")).map_err(|error| error.to_string())?;
    Ok(new)
}

/// Prints the limits and the figures that are better than ours. Fails if a limit is exceeded.
fn summarize(report: &Report, path: &Path) -> Result<(), String> {
    println!("\n### Limits\n\n{}", bars::markdown(&bars::bars(report)));
    let ahead = ahead::ahead(report);
    println!(
        "### Figures better than ours\n\n{}",
        ahead::markdown(report, &ahead)
    );
    println!("{}", report.footnotes());
    eprintln!("the figures are in {}", path.display());
    let unexplained = ahead::unexplained(&ahead);
    if unexplained > 0 {
        eprintln!(
            "{unexplained} better figures of other crates have no explanation; add it to ahead.rs"
        );
    }
    let missed = bars::bars(report).iter().filter(|bar| !bar.held).count();
    if missed > 0 && !report.quick {
        return Err(format!("{missed} limits are EXCEEDED; see the list above"));
    }
    Ok(())
}
