//! The command line tool of `tower-spiffe`: one module per subcommand.

/// Writes a line to standard output. Ignores errors, for example a closed pipe: the exit code reports
/// the result.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

/// Writes a line to standard error.
macro_rules! warn {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($what)*);
    }};
}

mod agent;
mod agent_load;
mod call;
mod completions;
mod explain;
mod policy;
mod stop;
mod token_file;
mod usage;
mod waiting;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Tools for SPIFFE JWT-SVIDs: follow an agent, explain a rejected token, call a service, check a
/// policy file, write token files, run a local agent.
#[derive(Parser)]
#[command(
    name = "tower-spiffe",
    // Usage lines show this name on Windows too, not that of the `.exe` file.
    bin_name = "tower-spiffe",
    version,
    // The last value of an option is used, so that scripts can append to a command line.
    args_override_self = true,
    after_help = EXAMPLES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe watch
  tower-spiffe explain --bundles bundle.json --trust-domain example.org --audience reports < token
  tower-spiffe call --audience reports https://reports:8443/health
  tower-spiffe policy check policy.toml --caller spiffe://example.org/web --request \"GET /reports\"
  tower-spiffe token-file --file sts.amazonaws.com /run/tokens/aws
  tower-spiffe agent --id spiffe://example.org/web
  tower-spiffe completions bash > /etc/bash_completion.d/tower-spiffe

`watch`, `call` and `token-file` use the agent at SPIFFE_ENDPOINT_SOCKET, for example
unix:///run/spire/agent.sock. `tower-spiffe <COMMAND> --help` has more examples.";

#[derive(Subcommand)]
enum Command {
    Watch(watch::Args),
    Explain(explain::Args),
    Call(call::Args),
    Policy(policy::Args),
    TokenFile(token_file::Args),
    Agent(agent::Args),
    AgentLoad(agent_load::Args),
    Completions(completions::Args),
}

impl Command {
    fn run(self) -> ExitCode {
        match self {
            Self::Watch(args) => watch::run(&args),
            Self::Explain(args) => explain::run(&args),
            Self::Call(args) => call::run(args),
            Self::Policy(args) => policy::run(&args),
            Self::TokenFile(args) => token_file::run(&args),
            Self::Agent(args) => agent::run(&args),
            Self::AgentLoad(args) => agent_load::run(&args),
            Self::Completions(args) => completions::run(&args),
        }
    }
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.command.run(),
        Err(error) => usage::report(&error),
    }
}
