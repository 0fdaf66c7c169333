//! `explain`: runs each check in the server's order, and prints the actual value, the expected value
//! and how to fix it.
//!
//! With `--jsonl` the results come from a `Validator` with its cache enabled. There is one validator per
//! audience and leeway for the whole run; its bundles and clock are replaced between lines.

mod args;
mod bundles;
mod checks;
mod clock;
mod https;
mod jsonl;

use std::io::{self, Read as _};
use std::process::ExitCode;
use std::time::Duration;

pub(crate) use args::Args;

use args::Once;
use tower_spiffe::Validator;
use tower_spiffe::bundle::FixedBundles;
use tower_spiffe::clock::{Clock, SystemClock};

use crate::BoxError;

pub(crate) fn run(args: &Args) -> ExitCode {
    let run = match args.once() {
        None => jsonl::run(&mut io::stdin().lock(), &mut io::stdout().lock())
            .map(|()| ExitCode::SUCCESS),
        Some(once) => explain(&once),
    };
    run.unwrap_or_else(|error| {
        warn!("explain: {error}");
        ExitCode::from(2)
    })
}

fn explain(once: &Once<'_>) -> Result<ExitCode, BoxError> {
    let bundles::Read { set, what, notes } = match https::url(once.bundles) {
        Some(url) => https::fetch(url, once)?,
        None => bundles::read_file(once)?,
    };
    let now = once.now.unwrap_or_else(|| SystemClock::shared().now());

    let mut token = Vec::new();
    io::stdin().lock().read_to_end(&mut token)?;
    let (token, noted) = checks::unwrap(&token)?;

    let validator = Validator::builder(FixedBundles::new(set.clone()))
        .audiences(once.audiences)
        .leeway(Duration::from_secs(once.leeway))
        .clock(clock::StillClock::at(now))
        .build()?;
    say!("bundles: {}, read as {what}", once.bundles.display());
    for note in notes {
        say!("         {note}");
    }
    for bundle in set.iter() {
        for ignored in bundle.ignored() {
            say!(
                "         {}: element {} ({}) is ignored: {}",
                bundle.trust_domain(),
                ignored.position(),
                ignored.key_id().map_or("no kid".into(), checks::shown),
                ignored
            );
        }
    }
    if let Some(noted) = noted {
        say!("note:    {noted}");
    }
    let accepted = checks::Report::new(&token, &validator, &set, now).print();
    Ok(if accepted {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
