//! `policy test`: compares decisions with expected decisions.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Map, Value};
use toml::Spanned;
use tower_spiffe::server::{Decision, PolicyDocument};

use super::{read, request};
use crate::BoxError;

/// Compare the decisions of a policy file with expected decisions.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The policy file
    file: PathBuf,
    /// The file with the expected decisions
    expectations: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe policy test policy.toml expectations.toml

The expected decisions are a list in TOML:
  [[expect]]
  request = \"DELETE /reports/7\"           # or: grpc_method = \"/r.Reports/Delete\"
  caller = \"spiffe://example.org/ops\"     # or: anonymous = true
  claims = { groups = [\"operators\"] }     # optional
  decision = \"allow\"                      # or: \"deny\", \"token-required\"

Exit code: 0 if all decisions are as expected, 1 if one is not, 2 for an invalid command line or an
invalid file.";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectations {
    expect: Vec<Spanned<Expectation>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectation {
    request: Option<String>,
    grpc_method: Option<String>,
    caller: Option<String>,
    #[serde(default)]
    anonymous: bool,
    #[serde(default)]
    claims: Map<String, Value>,
    decision: Expected,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expected {
    Allow,
    Deny,
    TokenRequired,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, BoxError> {
    let policy = read(&args.file)?;
    let path = args.expectations.display();
    let text = std::fs::read_to_string(&args.expectations)
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    let all: Expectations = toml::from_str(&text)
        .map_err(|error| format!("{path}: {}", error.to_string().trim_end()))?;
    if all.expect.is_empty() {
        return Err(format!("{path} has no expectations; add an `[[expect]]`").into());
    }
    let mut failed = 0;
    for expectation in &all.expect {
        let before = text.get(..expectation.span().start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let holds = expectation.get_ref().holds(&policy, line);
        let holds = holds.map_err(|error| format!("{path}, line {line}: {error}"))?;
        failed += usize::from(!holds);
    }
    say!("expectations: {}, failed: {failed}", all.expect.len());
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

impl Expectation {
    fn holds(&self, policy: &PolicyDocument, line: usize) -> Result<bool, String> {
        let (parts, request) = match (&self.request, &self.grpc_method) {
            (Some(text), None) => (request::request(text)?, text),
            (None, Some(path)) => (request::grpc(path)?, path),
            _ => return Err("an expectation needs either `request` or `grpc_method`".to_owned()),
        };
        let caller = match (&self.caller, self.anonymous) {
            (Some(id), false) => Some(request::caller(id, self.claims.clone())?),
            (None, true) if self.claims.is_empty() => None,
            (None, true) => return Err("an anonymous caller cannot have `claims`".to_owned()),
            _ => {
                return Err("an expectation needs either `caller` or `anonymous = true`".to_owned());
            }
        };
        let explanation = policy.explain(caller.as_ref(), &parts);
        let decision = Expected::of(explanation.decision());
        let by = self.caller.as_deref().unwrap_or("an anonymous caller");
        if decision == self.decision {
            say!("ok      line {line}: {request} by {by}: {decision}");
            return Ok(true);
        }
        say!(
            "FAILED  line {line}: {request} by {by}: expected {}, got {decision}",
            self.decision
        );
        for explained in explanation.to_string().lines() {
            say!("        {explained}");
        }
        Ok(false)
    }
}

impl Expected {
    fn of(decision: Decision) -> Self {
        match decision {
            Decision::Allow => Self::Allow,
            Decision::AuthenticationRequired => Self::TokenRequired,
            _ => Self::Deny,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::TokenRequired => "token-required",
        })
    }
}
