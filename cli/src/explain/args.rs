//! The command line.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use tower_spiffe::TrustDomain;
use tower_spiffe::clock::UnixTime;

/// Explain why a token is accepted or rejected, check by check.
///
/// Reads the token from standard input, never from an argument, and prints no part of it. FILE is
/// read as a server reads its bundle files: the JWK Set (`jwks`) or SPIFFE bundle (`bundle`) of one
/// trust domain, both with `--trust-domain`; or bundles of many trust domains, in one of the other
/// formats.
#[derive(clap::Args)]
#[command(override_usage = USAGE, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{LINES}"))]
pub(crate) struct Args {
    /// Explain many tokens: read one JSON object per line, write one verdict per line
    #[arg(long, exclusive = true)]
    jsonl: bool,
    /// The file with the bundles
    #[arg(long, value_name = "FILE", required_unless_present = "jsonl")]
    bundles: Option<PathBuf>,
    /// An audience that the server accepts; may be repeated
    #[arg(long, value_name = "AUD", required_unless_present = "jsonl")]
    audience: Vec<String>,
    /// The clock skew that the server allows, in whole seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    leeway: u64,
    /// The time to check at, in seconds since 1970 [default: now]
    #[arg(long, value_name = "UNIX", allow_negative_numbers = true, value_parser = moment)]
    now: Option<UnixTime>,
    /// The format of the file [default: detected]
    #[arg(long)]
    format: Option<Format>,
    /// The trust domain of the keys, if the file does not name it
    #[arg(long, value_name = "TD")]
    trust_domain: Option<TrustDomain>,
}

const USAGE: &str = "\
tower-spiffe explain [OPTIONS] --bundles <FILE> --audience <AUD>... < token
       tower-spiffe explain --jsonl < cases";

const EXAMPLES: &str = "\
Examples:
  spire-server bundle show -format spiffe > bundle.json
  tower-spiffe explain --bundles bundle.json --trust-domain example.org \\
      --audience spiffe://example.org/reports < token
  tower-spiffe explain --jsonl < cases

Exit code: 0 if the token is accepted, 1 if it is rejected, 2 for an invalid command line or a file
that cannot be read.";

const LINES: &str = "\
Lines of --jsonl, input and output in the same order:
  {\"token\": …, \"bundles\": {\"<trust domain>\": <JWK Set>}, \"audience\": […], \"now\": N, \"leeway\": S}
  {\"ok\": bool, \"reason\": \"<class>\", \"spiffe_id\": …}
`token_b64` in place of `token` holds bytes that are not UTF-8. A line that cannot be read gives
{\"ok\": false, \"reason\": \"usage\", \"error\": …}, and the next line follows.";

/// One token to explain.
pub(crate) struct Once<'a> {
    pub(crate) bundles: &'a Path,
    pub(crate) audiences: &'a [String],
    pub(crate) leeway: u64,
    pub(crate) now: Option<UnixTime>,
    pub(crate) format: Option<Format>,
    pub(crate) trust_domain: Option<&'a TrustDomain>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The JWK Set of one trust domain; `use` may be absent, jwt-svid or sig
    Jwks,
    /// The SPIFFE bundle of one trust domain
    Bundle,
    /// An object from trust domain to JWK Set, or a SPIFFE Bundle Map (with `trust_domains`)
    Map,
    /// A Bundle Map (with `trust_domains`) of JWK Sets whose `use` may be absent
    JwksMap,
    /// The `jwt_bundle_file_name` of spiffe-helper
    SpiffeHelper,
    /// The output of `spire-agent api fetch jwt -output json`
    SpireAgent,
}

impl Args {
    /// `None` for `--jsonl`.
    pub(crate) fn once(&self) -> Option<Once<'_>> {
        Some(Once {
            bundles: self.bundles.as_deref()?,
            audiences: &self.audience,
            leeway: self.leeway,
            now: self.now,
            format: self.format,
            trust_domain: self.trust_domain.as_ref(),
        })
    }
}

fn moment(text: &str) -> Result<UnixTime, String> {
    let whole = text.parse().ok().map(UnixTime::from_secs);
    whole
        .or_else(|| text.parse().ok().and_then(UnixTime::from_secs_f64))
        .ok_or_else(|| "not a number of seconds since 1970".to_owned())
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jwks => "a JWK Set (`use` may be absent, jwt-svid or sig)",
            Self::Bundle => "a SPIFFE bundle (only keys with `use` jwt-svid count)",
            Self::Map => "a map of trust domains",
            Self::JwksMap => "a map of trust domains (`use` may be absent)",
            Self::SpiffeHelper => "a file of spiffe-helper",
            Self::SpireAgent => "the output of spire-agent",
        })
    }
}
