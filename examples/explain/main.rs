//! Why is my token refused? Each check in the order in which a server makes it, with what was
//! found, what was expected, and how to mend it.
//!
//! ```text
//! cargo run --example explain -- --bundles FILE --audience AUD [--audience AUD]… [--leeway S]
//!     [--now UNIX] [--format jwks|bundle|map] [--trust-domain TD] < token
//! cargo run --example explain -- --jsonl < cases
//! ```
//!
//! The token comes on standard input, from a file or a pipe, never as an argument, and no part of
//! it is printed: only what it says. FILE is what the Workload API gives for one trust domain
//! (`jwks`), a SPIFFE bundle (`bundle`), both with `--trust-domain`, or many of them: a JSON object
//! from trust domain to JWK Set, or a SPIFFE Bundle Map (`map`). Where it is plain which one it is,
//! `--format` can be left out. Exit code: 0 accepted, 1 refused, 2 for a wrong command line or a
//! file that cannot be read.
//!
//! With `--jsonl` each input line is
//! `{"token": …, "bundles": {"<trust domain>": <JWK Set>}, "audience": […], "now": N, "leeway": S}`
//! (`token_b64` in place of `token` for bytes that are no text), and each output line
//! `{"ok": bool, "reason": "<class>", "spiffe_id": …}`, in the same order. A line that cannot be
//! read gives `{"ok": false, "reason": "usage", "error": …}`, and it goes on. The judge is the same
//! `Validator` as in a server, its cache on: one for each audience and leeway of the whole run, the
//! bundles and the clock swapped beneath it.
#![allow(clippy::print_stderr, reason = "a program")]

/// A line to standard output. That nobody reads on is no fault of the token's: the exit code stays
/// what it is.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

mod args;
mod beneath;
mod bundles;
mod checks;
mod jsonl;

use std::io::{self, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use args::{Args, Once};
use tower_spiffe::bundle::FixedBundles;
use tower_spiffe::{Clock, SystemClock, Validator};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["--help"]) {
        say!("{}", args::USAGE);
        return ExitCode::SUCCESS;
    }
    let run = Args::parse(std::env::args_os().skip(1)).and_then(|args| match args {
        Args::Jsonl => jsonl::run(&mut io::stdin().lock(), &mut io::stdout().lock())
            .map(|()| ExitCode::SUCCESS),
        Args::Once(once) => explain(&once),
    });
    run.unwrap_or_else(|error| {
        eprintln!("explain: {error}");
        ExitCode::from(2)
    })
}

fn explain(once: &Once) -> Result<ExitCode, BoxError> {
    let document = std::fs::read(&once.bundles)
        .map_err(|error| format!("cannot read {}: {error}", once.bundles.display()))?;
    let bundles::Bundles {
        set,
        format,
        skipped,
    } = bundles::read(&document, once.format, once.trust_domain.as_ref())
        .map_err(|error| format!("{}: {error}", once.bundles.display()))?;
    let now = once.now.unwrap_or_else(|| SystemClock::shared().now());

    let mut token = Vec::new();
    io::stdin().lock().read_to_end(&mut token)?;
    let (token, noted) = checks::unwrap(&token)?;

    let validator = Validator::builder(FixedBundles::new(set.clone()))
        .audiences(&once.audiences)
        .leeway(Duration::from_secs(once.leeway))
        .clock(beneath::StillClock::at(now))
        .build()?;
    say!("bundles: {}, read as {format}", once.bundles.display());
    for skipped in skipped {
        say!("         skipped: {skipped}");
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
