//! Instruction counts of the hot paths: what a change costs, told without the noise of a clock.
//!
//! `cargo run --release` counts each path under callgrind and compares it with `counts.txt`: a path
//! that takes more than 3 % more than on record fails, and so does one that takes 3 % less, because
//! a later change could take all of that back unseen. `cargo run --release -- accept` writes what
//! was counted to the record. On another compiler, C library or valgrind than the record's the
//! counts mean nothing: the comparison is skipped, and says so.
//!
//! Counted is everything that runs between call and return, the allocator and the wrapper
//! aws-lc-rs included; the C code of aws-lc is not. Tokens, keys and the time are those of the
//! conformance vectors, so no signature differs from one run to the next. Hashes are seeded by
//! each process: a seed decides where an entry lies in a table, not how long its hash takes. The
//! spread in the record is what three runs, three seeds, differ by; what is out of tolerance is
//! counted twice more, and the median decides.

#[path = "../../judging/callgrind.rs"]
mod callgrind;
mod paths;
mod record;

use std::process::ExitCode;

use record::Record;

/// A path may take this much more or less than on record.
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

/// The instructions of one time through this path, without aws-lc's C code.
fn count(name: &str) -> f64 {
    // aws_lc_0_47_0_…: the version is in each name.
    let library = |name: &str| {
        let versioned = name.strip_prefix("aws_lc_");
        versioned.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    callgrind::count(&callgrind::Path {
        arguments: &["path", name],
        toggle: "*paths::counted*",
        times: paths::TIMES,
        library,
    })
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
    let (mut worse, mut better) = (false, false);
    println!("{:>10} {:>10} {:>8}  path", "on record", "now", "change");
    for &name in paths::NAMES {
        let mut now = count(name);
        let Some(then) = record.count(name) else {
            println!("{:>10} {now:>10.0} {:>8}  {name}: NOT ON RECORD", "", "");
            worse = true;
            continue;
        };
        if (now / then - 1.0).abs() > TOLERANCE {
            now = median([now, count(name), count(name)]).0;
        }
        let change = now / then - 1.0;
        let verdict = if change > TOLERANCE {
            worse = true;
            ": MORE THAN ALLOWED"
        } else if change < -TOLERANCE {
            better = true;
            ": LESS THAN ON RECORD"
        } else {
            ""
        };
        println!(
            "{then:>10.0} {now:>10.0} {:>+7.1}%  {name}{verdict}",
            change * 100.0
        );
    }
    if worse {
        println!("\nA hot path takes more instructions than recorded. Fix it, or if the change is");
        println!("worth that cost, record the new counts:");
    } else if better {
        println!(
            "\nA hot path takes fewer instructions than recorded. Record the new counts, so that"
        );
        println!("a later change cannot lose the gain unnoticed:");
    } else {
        return ExitCode::SUCCESS;
    }
    println!("run `bash .ci/instructions accept`, commit benches/instructions/counts.txt with the");
    println!("change, and say why in the message.");
    ExitCode::FAILURE
}

/// The middle one of three, and what they differ by, of it.
fn median(mut runs: [f64; 3]) -> (f64, f64) {
    runs.sort_by(f64::total_cmp);
    let [least, middle, most] = runs;
    (middle, (most - least) / middle)
}

fn accept() -> ExitCode {
    let counts = paths::NAMES.iter().map(|&name| {
        // Each process seeds its hashes anew.
        let (count, spread) = median([(); 3].map(|()| count(name)));
        println!("{count:>10.0} ± {:.2} %  {name}", spread * 50.0);
        (name.to_owned(), count, spread)
    });
    let record = Record {
        counts: counts.collect(),
        made_with: record::here(),
    };
    record.write();
    ExitCode::SUCCESS
}
