//! The command line.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::{SpiffeId, TrustDomain};

/// Explain why a token is accepted or rejected, check by check.
///
/// Reads the token from standard input and never prints it. Reads FILE as a server reads its bundle
/// files: either the JWK Set (`jwks`) or SPIFFE bundle (`bundle`) of one trust domain, which need
/// `--trust-domain`, or the bundles of several trust domains in one of the other formats.
///
/// Polls a URL once, as a server does. A URL needs `--trust-domain`, and `--jwks`, `--oidc`,
/// `--https-web` or `--https-spiffe` for its kind.
#[derive(clap::Args)]
#[command(override_usage = USAGE, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{LINES}"))]
pub(crate) struct Args {
    /// Explain many tokens: read one JSON object per line, write one result per line
    #[arg(long, exclusive = true)]
    jsonl: bool,
    /// The file with the bundles, or an https URL
    #[arg(long, value_name = "FILE|URL", required_unless_present = "jsonl")]
    bundles: Option<PathBuf>,
    /// An audience that the server accepts; may be repeated
    #[arg(long, value_name = "AUD", required_unless_present = "jsonl")]
    audience: Vec<String>,
    /// The clock skew that the server accepts, in whole seconds
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
    /// The URL is that of a JWK Set
    #[arg(long, help_heading = HTTPS, group = "kind", conflicts_with = "format")]
    jwks: bool,
    /// The URL is an OIDC issuer, without /.well-known/openid-configuration
    #[arg(long, help_heading = HTTPS, group = "kind", conflicts_with = "format")]
    oidc: bool,
    /// The URL is a SPIFFE bundle endpoint with a certificate for its host (https_web)
    #[arg(long, help_heading = HTTPS, group = "kind", conflicts_with = "format")]
    https_web: bool,
    /// The URL is a SPIFFE bundle endpoint whose X.509-SVID has this SPIFFE ID (https_spiffe)
    #[arg(
        long,
        value_name = "ID",
        help_heading = HTTPS,
        group = "kind",
        conflicts_with = "format",
        requires = "bootstrap"
    )]
    https_spiffe: Option<SpiffeId>,
    /// The SPIFFE bundle that verifies the endpoint of --https-spiffe
    #[arg(
        long,
        value_name = "FILE",
        help_heading = HTTPS,
        requires = "https_spiffe",
        // With these, "conflicts with" is a clearer error than "requires --https-spiffe".
        conflicts_with_all = ["jwks", "oidc", "https_web"]
    )]
    bootstrap: Option<PathBuf>,
    /// More root certificates to trust, in PEM
    #[arg(long, value_name = "FILE", help_heading = HTTPS, requires = "kind", conflicts_with = "https_spiffe")]
    ca: Option<PathBuf>,
}

const HTTPS: &str = "Bundles over https";

const USAGE: &str = "\
tower-spiffe explain [OPTIONS] --bundles <FILE|URL> --audience <AUD>... < token
       tower-spiffe explain --jsonl < cases";

const EXAMPLES: &str = "\
Examples:
  spire-server bundle show -format spiffe > bundle.json
  tower-spiffe explain --bundles bundle.json --trust-domain example.org \\
      --audience spiffe://example.org/reports < token
  tower-spiffe explain --bundles https://oidc.example.org --oidc --trust-domain example.org \\
      --audience reports < token
  tower-spiffe explain --bundles https://oidc.example.org/keys --jwks --ca ca.pem \\
      --trust-domain example.org --audience reports < token
  tower-spiffe explain --bundles https://spire.example.org:8443 --trust-domain example.org \\
      --https-spiffe spiffe://example.org/spire/server --bootstrap bundle.json \\
      --audience reports < token
  tower-spiffe explain --jsonl < cases

Exit code: 0 if the token is accepted, 1 if it is rejected, 2 if the command line is invalid or
the bundles cannot be read or fetched.";

const LINES: &str = "\
Lines of --jsonl, input and output in the same order:
  {\"token\": …, \"bundles\": {\"<trust domain>\": <JWK Set>}, \"audience\": […], \"now\": N, \"leeway\": S}
  {\"ok\": bool, \"reason\": \"<class>\", \"spiffe_id\": …}
Use `token_b64` instead of `token` for bytes that are not UTF-8. For an invalid line the output is
{\"ok\": false, \"reason\": \"usage\", \"error\": …}.";

/// One token to explain.
pub(crate) struct Once<'a> {
    pub(crate) bundles: &'a Path,
    pub(crate) audiences: &'a [String],
    pub(crate) leeway: u64,
    pub(crate) now: Option<UnixTime>,
    pub(crate) format: Option<Format>,
    pub(crate) trust_domain: Option<&'a TrustDomain>,
    pub(crate) kind: Option<Kind<'a>>,
    pub(crate) ca: Option<&'a Path>,
}

/// The kind of a URL.
#[derive(Clone, Copy)]
pub(crate) enum Kind<'a> {
    Jwks,
    Oidc,
    HttpsWeb,
    HttpsSpiffe {
        id: &'a SpiffeId,
        bootstrap: &'a Path,
    },
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
    /// Returns the options for one token; `None` for `--jsonl`.
    pub(crate) fn once(&self) -> Option<Once<'_>> {
        Some(Once {
            bundles: self.bundles.as_deref()?,
            audiences: &self.audience,
            leeway: self.leeway,
            now: self.now,
            format: self.format,
            trust_domain: self.trust_domain.as_ref(),
            kind: self.kind(),
            ca: self.ca.as_deref(),
        })
    }

    fn kind(&self) -> Option<Kind<'_>> {
        if let (Some(id), Some(bootstrap)) = (&self.https_spiffe, &self.bootstrap) {
            return Some(Kind::HttpsSpiffe { id, bootstrap });
        }
        match (self.jwks, self.oidc, self.https_web) {
            (true, _, _) => Some(Kind::Jwks),
            (_, true, _) => Some(Kind::Oidc),
            (_, _, true) => Some(Kind::HttpsWeb),
            _ => None,
        }
    }
}

fn moment(text: &str) -> Result<UnixTime, String> {
    let whole = text.parse().ok().map(UnixTime::from_secs);
    whole
        .or_else(|| text.parse().ok().and_then(UnixTime::from_secs_f64))
        .ok_or_else(|| "not a number of seconds since 1970".to_owned())
}

impl std::fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jwks => "a JWK Set (`use` may be absent, jwt-svid or sig)",
            Self::Oidc => "an OIDC issuer (`use` may be absent, jwt-svid or sig)",
            Self::HttpsWeb | Self::HttpsSpiffe { .. } => {
                "a SPIFFE bundle endpoint (only keys with `use` jwt-svid count)"
            }
        })
    }
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
