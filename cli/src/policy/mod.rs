//! `policy`: explains and tests the decisions of a policy file, with the code of a server.

mod check;
mod request;
mod test;

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use tower_spiffe::server::{FilePolicy, PolicyDocument};

use crate::BoxError;

/// Check a policy file, explain its decisions, compare them with expected decisions.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe policy check policy.toml --caller spiffe://example.org/web --request \"GET /reports/7\"
  tower-spiffe policy check policy.toml --anonymous --grpc-method /r.Reports/Get
  tower-spiffe policy check policy.toml
  tower-spiffe policy test policy.toml expectations.toml

`tower-spiffe policy <COMMAND> --help` describes the exit codes.";

#[derive(Subcommand)]
enum Command {
    Check(Box<check::Args>),
    Test(test::Args),
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let (name, run) = match &args.command {
        Command::Check(args) => ("check", check::run(args)),
        Command::Test(args) => ("test", test::run(args)),
    };
    run.unwrap_or_else(|error| {
        warn!("policy {name}: {error}");
        ExitCode::from(2)
    })
}

/// Reads a policy file as a server does.
fn read(path: &Path) -> Result<PolicyDocument, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let _inside = runtime.enter();
    Ok(FilePolicy::builder(path).open()?.document())
}
