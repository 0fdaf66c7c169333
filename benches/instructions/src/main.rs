//! Instruction counts of the hot paths. They show the cost of a change without the noise of a clock.
//!
//! `cargo run --release` counts each path under callgrind and compares it with `counts.txt`. A path
//! fails if its count is more than 3 % above the recorded count. It also fails if it is more than 3 %
//! below, because a later change could lose that gain unnoticed. `cargo run --release -- accept`
//! records new counts. With another compiler, C library or valgrind the counts are not comparable: the
//! comparison is skipped, and a message is printed.
//!
//! A count includes everything between call and return, with the allocator and the wrapper
//! aws-lc-rs, but not the C code of aws-lc. Tokens, keys and the time are from the conformance
//! vectors, so all runs have the same signatures. Each process seeds its hashes: the seed changes the
//! place of an entry in a table, but not the cost of its hash. The recorded spread is the difference
//! between three runs. A count outside the tolerance is repeated twice, and the median is used.

#[path = "../../limits/callgrind.rs"]
mod callgrind;
mod paths;
mod record;

use std::process::ExitCode;

use record::Record;

/// The allowed difference from the recorded count.
const TOLERANCE: f64 = 0.03;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        [] => compare(),
        ["accept"] => accept(),
        // Run by callgrind.
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

/// Returns the instructions of one run of this path, without the C code of aws-lc.
fn count(name: &str) -> f64 {
    // The names of C functions contain the version: `aws_lc_0_47_0_…`.
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
                "The lock file differs from the recorded one: the counts may differ for that reason."
            );
            continue;
        }
        println!("SKIPPED: the counts are recorded with {what} {then}, but this is {now}.");
        println!("`bash .ci/instructions accept` records counts for this environment.");
        return ExitCode::SUCCESS;
    }
    let (mut worse, mut better) = (false, false);
    println!("{:>10} {:>10} {:>8}  path", "recorded", "now", "change");
    for &name in paths::NAMES {
        let mut now = count(name);
        let Some(then) = record.count(name) else {
            println!("{:>10} {now:>10.0} {:>8}  {name}: NOT RECORDED", "", "");
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
            ": LESS THAN RECORDED"
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
    println!("change, and give the reason in the commit message.");
    ExitCode::FAILURE
}

/// Returns the median, and the difference between the extremes relative to it.
fn median(mut runs: [f64; 3]) -> (f64, f64) {
    runs.sort_by(f64::total_cmp);
    let [least, middle, most] = runs;
    (middle, (most - least) / middle)
}

fn accept() -> ExitCode {
    let counts = paths::NAMES.iter().map(|&name| {
        // Three processes, because each has another hash seed.
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
