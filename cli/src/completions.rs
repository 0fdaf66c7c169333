//! `completions`: shell completions for this program.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

/// Write shell completions to standard output.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell to write completions for
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe completions bash > /etc/bash_completion.d/tower-spiffe
  tower-spiffe completions zsh > ~/.zfunc/_tower-spiffe
  tower-spiffe completions fish > ~/.config/fish/completions/tower-spiffe.fish";

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut crate::Cli::command(),
        "tower-spiffe",
        &mut script,
    );
    say!("{}", String::from_utf8_lossy(&script).trim_end());
    ExitCode::SUCCESS
}
