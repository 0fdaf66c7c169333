//! When to poll, and one poll.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::super::on_drop::OnDrop;
use super::super::polling::NAP;
use super::bootstrap::{Disk, SpiffeBootstrap, disk_timeout, read_file, replace_file};
use super::document::{self, About, Document};
use super::fetch::{BoxError, Client, FETCH_WITHIN, FetchError, Fetched, Hosts, Validators};
use super::shared::Shared;
use super::state::PollError;
use super::tls;
use super::url::Url;
use crate::clock::Clock;
use crate::identity::SpiffeId;

/// The shortest and the longest wait between two polls, unless an unknown key causes one.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(300);

/// The ceilings of the waits before the first success: they double from the first to the second.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = SHORTEST;

/// What is polled.
#[derive(Clone)]
pub(super) enum Target {
    Jwks,
    /// The issuer, exactly as configured.
    Oidc(Arc<str>),
    Web,
    Spiffe(SpiffeId, SpiffeBootstrap),
}

/// One poll at a time.
#[derive(Clone)]
pub(super) struct Poller {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Target,
    // Of the discovery document, for an OIDC issuer.
    pub(super) url: Url,
    pub(super) saved_at: Option<PathBuf>,
    // None for `https_spiffe`, where each poll trusts other roots.
    pub(super) client: Option<Client>,
    pub(super) hosts: Hosts,
    pub(super) disk: Disk,
    pub(super) known: Known,
    // The saved bundle as it was at the start.
    pub(super) saved: Option<Arc<About>>,
}

/// What the server gave last.
#[derive(Clone, Default)]
pub(super) struct Known {
    discovery: Option<(Validators, String)>,
    document: Option<Validators>,
}

pub(super) fn spawn(mut poller: Poller, seed: Option<u64>, runtime: &Handle) -> AbortHandle {
    let mut draw = seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let shared = poller.shared.clone();
    let ended = shared.clone();
    // Also after a panic or an abort.
    let ended = OnDrop(move || ended.ended());
    let task = async move {
        let _ended = ended;
        let mut ceiling = FIRST_RETRY;
        loop {
            shared.poll_begins();
            let outcome = poller.poll_guarded().await;
            let retry_after = outcome.err().and_then(|error| {
                shared.fail(error.poll);
                Some(error.retry_after?.min(LONGEST))
            });
            let wait = if shared.latest().is_some() {
                let hint = shared
                    .with_latest_about(|about| about.refresh_hint)
                    .flatten();
                interval(hint, &mut draw)
            } else {
                let wait = ceiling.mul_f64(draw.f64());
                ceiling = ceiling.saturating_mul(2).min(LAST_RETRY);
                wait
            };
            let wait = wait.max(retry_after.unwrap_or_default());
            shared.poll_ends(wait, retry_after);
            sleep(&shared, wait, retry_after.unwrap_or_default()).await;
        }
    };
    runtime.spawn(task).abort_handle()
}

/// A quarter of the hint, within the bounds, with a tenth of it as jitter.
fn interval(hint: Option<Duration>, draw: &mut fastrand::Rng) -> Duration {
    let wanted = hint
        .map_or(LONGEST, |hint| hint / 4)
        .clamp(SHORTEST, LONGEST);
    // Kept within the bounds: near the shortest wait, the jitter is added instead of subtracted.
    let low = wanted.mul_f64(0.9).max(SHORTEST);
    let high = wanted.max(SHORTEST.mul_f64(1.1));
    low + (high - low).mul_f64(draw.f64())
}

/// Waits. After `not_before`, an unknown key ends the wait early. After a suspend the trust clock,
/// which counts it, shows that the wait is over.
async fn sleep(shared: &Shared, wait: Duration, not_before: Duration) {
    let (began, until) = (
        Instant::now(),
        shared.clock.monotonic().saturating_add(wait),
    );
    loop {
        let left = wait.saturating_sub(began.elapsed());
        if left.is_zero() || shared.clock.monotonic() >= until {
            return;
        }
        let early = timeout(left.min(NAP), shared.early.notified()).await;
        // An unknown key seen during the last poll does not know of its `Retry-After`.
        if early.is_ok() && began.elapsed() >= not_before {
            return;
        }
        shared.beat();
    }
}

impl Poller {
    /// One poll within the time allowed. A panic in it, in a given client for example, is an error.
    async fn poll_guarded(&mut self) -> Result<(), FetchError> {
        let mut poller = self.clone();
        let mut poll = JoinSet::new();
        poll.spawn(async move {
            let outcome = match timeout(FETCH_WITHIN, poller.poll()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(FetchError::new(format!(
                    "no complete response within {FETCH_WITHIN:?}"
                ))),
            };
            if let Ok(Some(document)) = &outcome {
                poller.save(document).await;
            }
            (poller, outcome.map(drop))
        });
        match poll.join_next().await {
            Some(Ok((poller, outcome))) => {
                *self = poller;
                outcome
            }
            _ => Err(PollError::new("internal", "the poll panicked").into()),
        }
    }

    /// Returns the document if it is a new one.
    async fn poll(&mut self) -> Result<Option<Arc<[u8]>>, FetchError> {
        let now = self.shared.clock.now();
        let client = self.client().await?;
        let url = match &self.target {
            Target::Oidc(issuer) => {
                let known = self.known.discovery.as_ref().map(|(known, _)| known);
                match client.fetch(&self.url, known, now, &self.hosts).await? {
                    Fetched::NotModified => {}
                    Fetched::Document(bytes, validators) => {
                        let jwks_uri = document::discovery(&bytes, issuer).map_err(unreadable)?;
                        self.known.discovery = Some((validators, jwks_uri));
                    }
                }
                let jwks_uri = self.known.discovery.as_ref().map(|(_, jwks_uri)| jwks_uri);
                let url = Url::parse(jwks_uri.map_or("", String::as_str))
                    .map_err(|why| unreadable(format!("its `jwks_uri` is invalid: {why}")))?;
                if !self.hosts.allow(&url) {
                    let text = "its `jwks_uri` has a host that is not allowed; if it is the right \
                                one, add it by `.allowed_hosts(...)`";
                    return Err(unreadable(text));
                }
                url
            }
            _ => self.url.clone(),
        };
        match client
            .fetch(&url, self.known.document.as_ref(), now, &self.hosts)
            .await?
        {
            Fetched::NotModified => {
                self.shared.not_modified();
                Ok(None)
            }
            Fetched::Document(bytes, validators) => {
                let bytes: Arc<[u8]> = bytes.into();
                let document = self.read(&bytes).map_err(unreadable)?;
                let is_accepted = self.shared.take(document, bytes.clone());
                Ok(is_accepted.then(|| {
                    self.known.document = Some(validators);
                    bytes
                }))
            }
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<Document, BoxError> {
        let before = self.shared.latest();
        let is_spiffe_bundle = matches!(self.target, Target::Web | Target::Spiffe(..));
        let trust_domain = &self.shared.trust_domain;
        Document::read(bytes, is_spiffe_bundle, trust_domain, before.as_deref())
    }

    async fn client(&mut self) -> Result<Client, FetchError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let Target::Spiffe(id, bootstrap) = self.target.clone() else {
            return Err(FetchError::new("there is no client"));
        };
        let roots = self.roots(&id, &bootstrap).await?;
        let tls = tls::spiffe_config(id, roots, self.shared.clock.clone());
        let tls = tls.map_err(|error| FetchError::of("TLS cannot be configured", error))?;
        Ok(Client::Own(tls))
    }

    /// The roots of the latest bundle of the endpoint's trust domain: the one that was fetched
    /// last, unless the bootstrap bundle has a higher sequence.
    async fn roots(
        &mut self,
        id: &SpiffeId,
        bootstrap: &SpiffeBootstrap,
    ) -> Result<Vec<CertificateDer<'static>>, FetchError> {
        let serves_itself = id.trust_domain() == self.shared.trust_domain;
        if let (None, Some(path), true) = (&self.saved, self.saved_at.clone(), serves_itself) {
            self.saved = self.read_saved(path).await.map(Arc::new);
        }
        let bootstrap = bootstrap.read(&self.disk).await;
        let latest = || {
            let copy = |about: &About| (about.sequence, about.roots.clone());
            let fetched = self.shared.with_latest_about(copy);
            fetched.or_else(|| self.saved.as_deref().map(copy))
        };
        let (roots, which) = match (serves_itself.then(latest).flatten(), bootstrap) {
            (Some((sequence, _)), Ok(bootstrap))
                if sequence.is_some() && bootstrap.sequence > sequence =>
            {
                (bootstrap.roots, "bootstrap")
            }
            (Some((_, roots)), _) => (roots, "latest"),
            (None, Ok(bootstrap)) => (bootstrap.roots, "bootstrap"),
            (None, Err(error)) => {
                return Err(FetchError::of("the bootstrap bundle cannot be read", error));
            }
        };
        if roots.is_empty() {
            let text = format!(
                "the {which} bundle has no X.509 roots to verify the endpoint with; provide a \
                 bootstrap bundle with keys whose `use` is x509-svid"
            );
            return Err(FetchError::new(text));
        }
        Ok(roots)
    }

    async fn read_saved(&self, path: PathBuf) -> Option<About> {
        let read = self.disk.run(move || match read_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        });
        let about = match read.await {
            Ok(None) => return None,
            Ok(Some(bytes)) => About::read(&bytes),
            Err(error) => Err(error.into()),
        };
        about
            .inspect_err(|error| {
                let trust_domain = self.shared.trust_domain.name();
                tracing::warn!(trust_domain, %error, "the saved bundle cannot be read");
            })
            .ok()
    }

    async fn save(&self, document: &Arc<[u8]>) {
        if let Some(path) = self.saved_at.clone() {
            let document = document.clone();
            let saved = self.disk.run(move || match read_file(&path) {
                // Written only if it changed.
                Ok(before) if *before == *document => Ok(()),
                _ => replace_file(&path, &document),
            });
            let saved = timeout(FETCH_WITHIN, saved).await;
            let saved = saved.unwrap_or_else(|_| Err(disk_timeout()));
            self.shared.saved(saved);
        }
    }
}

fn unreadable(cause: impl Into<BoxError>) -> FetchError {
    let failed = PollError::new("bundle-unreadable", "the document is invalid");
    failed.because(cause.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h01_interval_is_a_quarter_of_the_hint() {
        let secs = Duration::from_secs;
        for (hint, low, high) in [
            (None, 270, 300),
            (Some(0), 60, 66),
            (Some(1), 60, 66),
            (Some(240), 60, 66),
            (Some(400), 90, 100),
            (Some(1200), 270, 300),
            (Some(86_400), 270, 300),
            (Some(u64::MAX), 270, 300),
        ] {
            let mut drawn: Vec<_> = (0..1000)
                .map(|seed| interval(hint.map(secs), &mut fastrand::Rng::with_seed(seed)))
                .collect();
            drawn.sort();
            assert!(
                drawn[0] >= secs(low) && drawn[999] <= secs(high),
                "{hint:?}"
            );
            assert!(drawn[999] - drawn[0] > secs(high - low) / 2, "{hint:?}");
        }
    }
}
