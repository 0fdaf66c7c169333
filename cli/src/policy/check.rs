//! `policy check`: explains one decision rule by rule.

use std::path::PathBuf;
use std::process::ExitCode;

use http::request::Parts;
use tower_spiffe::server::Decision;

use super::{read, request};
use crate::BoxError;

/// Check a policy file, and explain its decision on a request.
///
/// Prints the pattern that decides, and the outcome of each rule whose pattern matches the path.
/// Without a request, checks only the file.
#[derive(clap::Args)]
#[command(override_usage = USAGE, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The policy file
    file: PathBuf,
    /// The SPIFFE ID of the caller
    #[arg(long, value_name = "ID", group = "who", requires = "what")]
    caller: Option<String>,
    /// The claims of the caller's token, a JSON object
    #[arg(
        long,
        value_name = "JSON",
        requires = "caller",
        conflicts_with = "anonymous"
    )]
    claims: Option<String>,
    /// The request has no token
    #[arg(long, group = "who", requires = "what")]
    anonymous: bool,
    /// The request, such as "GET /reports/7"
    #[arg(long, value_name = "REQUEST", group = "what", requires = "who", value_parser = request::request)]
    request: Option<Parts>,
    /// The request, a gRPC method
    #[arg(long, value_name = "METHOD", group = "what", requires = "who", value_parser = request::grpc)]
    grpc_method: Option<Parts>,
}

const USAGE: &str = "\
tower-spiffe policy check <FILE>
       tower-spiffe policy check <FILE> --caller <ID> [--claims <JSON>] --request <REQUEST>
       tower-spiffe policy check <FILE> --anonymous --grpc-method <METHOD>";

const EXAMPLES: &str = "\
Examples:
  tower-spiffe policy check policy.toml
  tower-spiffe policy check policy.toml --caller spiffe://example.org/web --request \"GET /reports/7\"
  tower-spiffe policy check policy.toml --caller spiffe://example.org/ops \\
      --claims '{\"groups\": [\"operators\"]}' --request \"DELETE /reports/7\"
  tower-spiffe policy check policy.toml --anonymous --grpc-method /r.Reports/Get

Exit code: 0 if the request is allowed, or the file is valid; 1 if the request is denied or needs a
token; 2 for an invalid command line or an invalid file.";

pub(super) fn run(args: &Args) -> Result<ExitCode, BoxError> {
    let policy = read(&args.file)?;
    let Some(parts) = args.request.as_ref().or(args.grpc_method.as_ref()) else {
        let rules = policy.len();
        say!("{}: valid, rules: {rules}", args.file.display());
        return Ok(ExitCode::SUCCESS);
    };
    let claims = args.claims.as_deref().map(request::claims).transpose()?;
    let claims = claims.unwrap_or_default();
    let caller = args.caller.as_deref();
    let caller = caller.map(|id| request::caller(id, claims)).transpose()?;
    let explanation = policy.explain(caller.as_ref(), parts);
    say!("{explanation}");
    Ok(match explanation.decision() {
        Decision::Allow => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
