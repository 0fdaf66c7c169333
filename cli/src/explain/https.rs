//! Fetches bundles with the source that a server uses.

use std::path::Path;
use std::time::Duration;

use tower_spiffe::bundle::{BundlesUnavailable, JwtBundleSet};
use tower_spiffe::source::HttpsBundles;
use tower_spiffe::source::https::SpiffeBootstrap;

use super::args::{Kind, Once};
use super::bundles::Read;
use crate::{BoxError, waiting};

/// Returns the value of `--bundles` if it is a URL.
pub(crate) fn url(bundles: &Path) -> Option<&str> {
    bundles.to_str().filter(|text| text.contains("://"))
}

/// Polls the endpoint once.
///
/// # Errors
/// An option is missing or invalid, or the bundle cannot be fetched or read.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn fetch(url: &str, once: &Once<'_>) -> Result<Read, BoxError> {
    let kind = once.kind.ok_or(
        "--bundles is a URL: add --jwks, --oidc, --https-web or --https-spiffe for its kind",
    )?;
    let trust_domain = once.trust_domain.cloned().ok_or(
        "--trust-domain is missing: the keys at the URL verify only tokens of that trust domain",
    )?;
    let mut builder = match kind {
        Kind::Jwks => HttpsBundles::jwks_url(trust_domain, url),
        Kind::Oidc => HttpsBundles::oidc_issuer(trust_domain, url),
        Kind::HttpsWeb => HttpsBundles::https_web(trust_domain, url),
        Kind::HttpsSpiffe { id, bootstrap } => {
            let bootstrap = SpiffeBootstrap::file(bootstrap);
            HttpsBundles::https_spiffe(trust_domain, url, id.clone(), bootstrap)
        }
    };
    if let Some(path) = once.ca {
        let pem = std::fs::read(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        builder = builder.add_roots_pem(pem);
    }
    let bundles = builder.build_lazy();
    let bundles = bundles.map_err(|error| format!("{error:#}"))?;
    let first = async {
        // One poll takes 10 s at most. A server would retry; here its error is the result.
        while bundles.state().polls == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    waiting::announced("explain", || format!("the bundle from {url}"), first).await;
    let state = bundles.state();
    let error = state.last_error.as_ref();
    let bundle = bundles.jwt_bundle().map_err(|why| match (why, error) {
        (BundlesUnavailable::NotReady, Some(error)) => {
            let text = error.text();
            let hint = match error.kind() {
                "bundle-unreadable" if !matches!(kind, Kind::Oidc) => {
                    "; check whether the URL is of the kind that the option names"
                }
                _ if text.contains("UnknownIssuer") => "; add its root certificate with --ca",
                _ => "",
            };
            format!("{url}: {text}{hint}")
        }
        _ => format!("{url}: {why}"),
    })?;
    let mut notes = Vec::new();
    if let Some(sequence) = state.sequence {
        notes.push(format!("spiffe_sequence {sequence}"));
    }
    notes.extend(error.map(|error| error.text().to_owned()));
    Ok(Read {
        set: JwtBundleSet::from_iter([bundle]),
        what: kind.to_string(),
        notes,
    })
}
