//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use tower_spiffe::{TrustDomain, UnixTime};

use crate::BoxError;

pub(crate) const USAGE: &str = "\
usage: explain --bundles FILE --audience AUD [--audience AUD]... [--leeway S] [--now UNIX]
               [--format jwks|bundle|map] [--trust-domain TD] < token
       explain --jsonl < cases";

pub(crate) enum Args {
    Once(Once),
    Jsonl,
}

/// One token to explain.
pub(crate) struct Once {
    pub(crate) bundles: PathBuf,
    pub(crate) audiences: Vec<String>,
    pub(crate) leeway: u64,
    pub(crate) now: Option<UnixTime>,
    pub(crate) format: Option<Format>,
    pub(crate) trust_domain: Option<TrustDomain>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Jwks,
    Bundle,
    Map,
}

impl Args {
    pub(crate) fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, BoxError> {
        let mut jsonl = false;
        let mut bundles = None;
        let mut once = Once {
            bundles: PathBuf::new(),
            audiences: Vec::new(),
            leeway: 10,
            now: None,
            format: None,
            trust_domain: None,
        };
        let mut others = 0;
        while let Some(name) = args.next() {
            let name = text(name)?;
            let mut any = || {
                args.next()
                    .ok_or_else(|| wrong(&format!("{name} wants a value")))
            };
            // The name of a file may be any.
            if name == "--bundles" {
                bundles = Some(PathBuf::from(any()?));
                others += 1;
                continue;
            }
            let mut value = || any().and_then(text);
            match name.as_str() {
                "--jsonl" => {
                    jsonl = true;
                    continue;
                }
                "--audience" => once.audiences.push(value()?),
                "--leeway" => {
                    once.leeway = value()?
                        .parse()
                        .map_err(|_| wrong("--leeway wants whole seconds"))?;
                }
                "--now" => once.now = Some(moment(&value()?)?),
                "--format" => {
                    once.format = Some(match value()?.as_str() {
                        "jwks" => Format::Jwks,
                        "bundle" => Format::Bundle,
                        "map" => Format::Map,
                        _ => return Err(wrong("--format is jwks, bundle or map")),
                    });
                }
                "--trust-domain" => {
                    let name = value()?;
                    let parsed = TrustDomain::parse(&name);
                    once.trust_domain =
                        Some(parsed.map_err(|why| wrong(&format!("--trust-domain: {why}")))?);
                }
                // Not repeated: it may be a token that was meant for standard input.
                _ => return Err(wrong("an argument is none of those below")),
            }
            others += 1;
        }
        if jsonl {
            return match others {
                0 => Ok(Self::Jsonl),
                _ => Err(wrong(
                    "--jsonl takes no other argument: each line says its own",
                )),
            };
        }
        once.bundles = bundles.ok_or_else(|| wrong("--bundles is missing"))?;
        if once.audiences.is_empty() {
            return Err(wrong(
                "--audience is missing: the name that the server goes by",
            ));
        }
        Ok(Self::Once(once))
    }
}

fn text(arg: OsString) -> Result<String, BoxError> {
    arg.into_string()
        .map_err(|_| wrong("an argument is no text in UTF-8"))
}

fn moment(text: &str) -> Result<UnixTime, BoxError> {
    let whole = text.parse().ok().map(UnixTime::from_secs);
    whole
        .or_else(|| text.parse().ok().and_then(UnixTime::from_secs_f64))
        .ok_or_else(|| wrong("--now wants seconds since 1970"))
}

fn wrong(what: &str) -> BoxError {
    format!("{what}\n{USAGE}").into()
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jwks => "a JWK Set of the Workload API (`use` may be absent)",
            Self::Bundle => "a SPIFFE bundle (only keys with `use` jwt-svid count)",
            Self::Map => "a map of trust domains",
        })
    }
}
