//! Instruction counts of the hot paths: what a change costs, told without the noise of a clock.
//!
//! `cargo run --release` counts each path under callgrind and compares it with `counts.txt`: a path
//! that takes more than 3 % more than on record fails. `cargo run --release -- accept` writes what
//! was counted to the record. On another compiler, C library or valgrind than the record's the
//! counts mean nothing: the comparison is skipped, and says so.
//!
//! Counted is everything that runs between call and return, the allocator and the wrapper
//! aws-lc-rs included; the C code of aws-lc is not. Tokens, keys and the time are those of the
//! conformance vectors, so no signature differs from one run to the next. Hashes are seeded by
//! each process; `spread` in the record says how much two runs differ for it.

mod callgrind;
mod paths;
mod record;

use std::process::ExitCode;

use record::Record;

/// A path may take this much more than on record.
const TOLERANCE: f64 = 0.03;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        [] => compare(),
        ["accept"] => accept(),
        // What callgrind runs.
        ["path", name] => {
            paths::run(name);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: cargo run --release [-- accept]");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> ExitCode {
    let record = Record::read();
    let here = record::here();
    for (what, then) in &record.made_with {
        let now = here
            .iter()
            .find(|(name, _)| name == what)
            .map(|(_, now)| now);
        if now == Some(then) {
            continue;
        }
        let now = now.map_or("absent", String::as_str);
        if what == "lock" {
            println!(
                "The lock file is another one than the record's: that may be why counts differ."
            );
            continue;
        }
        println!("SKIPPED: instruction counts are on record for {what} {then}; here is {now}.");
        println!("`bash .ci/instructions accept` makes a record for what is here.");
        return ExitCode::SUCCESS;
    }
    let mut worse = false;
    println!("{:>10} {:>10} {:>8}  path", "on record", "now", "change");
    for &name in paths::NAMES {
        let now = callgrind::count(name);
        let Some(then) = record.count(name) else {
            println!("{:>10} {now:>10.0} {:>8}  {name}: NOT ON RECORD", "", "");
            worse = true;
            continue;
        };
        let change = now / then - 1.0;
        let verdict = if change > TOLERANCE {
            worse = true;
            ": MORE THAN ALLOWED"
        } else if change < -TOLERANCE {
            ": less; put the new figure on record"
        } else {
            ""
        };
        println!(
            "{then:>10.0} {now:>10.0} {:>+7.1}%  {name}{verdict}",
            change * 100.0
        );
    }
    if !worse {
        return ExitCode::SUCCESS;
    }
    println!();
    println!(
        "A hot path takes more instructions than on record. Mend it; or, where that is what the"
    );
    println!(
        "change is worth, run `bash .ci/instructions accept`, commit benches/instructions/counts.txt"
    );
    println!("with the change, and say why in the message.");
    ExitCode::FAILURE
}

fn accept() -> ExitCode {
    let counts = paths::NAMES.iter().map(|&name| {
        // Each process seeds its hashes anew.
        let mut runs: Vec<f64> = (0..3).map(|_| callgrind::count(name)).collect();
        runs.sort_by(f64::total_cmp);
        let spread = (runs[2] - runs[0]) / runs[1];
        println!("{:>10.0} ± {:.2} %  {name}", runs[1], spread * 50.0);
        (name.to_owned(), runs[1], spread)
    });
    let record = Record {
        counts: counts.collect(),
        made_with: record::here(),
    };
    record.write();
    ExitCode::SUCCESS
}
