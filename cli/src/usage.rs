//! Prints errors in the command line. Hides tokens that were passed as arguments by mistake.

use std::ffi::OsString;
use std::process::ExitCode;

/// Prints help and the version to standard output, errors to standard error.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let hidden = without_tokens(&text, std::env::args_os().skip(1));
    if hidden == text {
        let _ = error.print();
    } else {
        warn!("{}", hidden.trim_end());
    }
    ExitCode::from(2)
}

fn without_tokens(text: &str, args: impl Iterator<Item = OsString>) -> String {
    let mut text = text.to_owned();
    for arg in args {
        let arg = arg.to_string_lossy();
        let value = arg.split_once('=').map_or("", |(_, value)| value);
        for part in [&*arg, value] {
            if may_be_token(part) {
                text = text.replace(part, "[hidden: it may be a token]");
            }
        }
    }
    text
}

/// A token is longer than 64 bytes; `eyJ` is the start of a JSON object in base64.
fn may_be_token(part: &str) -> bool {
    part.len() > 64 || part.contains("eyJ")
}
