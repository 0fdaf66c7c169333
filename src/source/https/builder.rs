//! The builder of a polled source.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;

use super::bootstrap::Disk;
use super::error::{HttpsBundlesError, HttpsBundlesErrorReason};
#[cfg(feature = "testing")]
use super::fetch::MemoryStreams;
use super::fetch::{BoxError, Client, GivenClient, Hosts};
use super::poll::{self, Known, Poller, Target};
use super::shared::Shared;
use super::tls::WebRoots;
use super::url::Url;
use super::{HttpsBundles, Inner};
use crate::clock::{Clock, SystemClock};
use crate::identity::TrustDomain;
use crate::metrics::{MetricsRecorder, Shielded};
use crate::presentable::presentable;
use crate::runtime;

/// The options of an [`HttpsBundles`].
#[derive(Clone)]
#[must_use]
pub struct HttpsBundlesBuilder {
    trust_domain: TrustDomain,
    target: Target,
    url: String,
    roots: WebRoots,
    bad_root: Option<HttpsBundlesError>,
    client: Option<GivenClient>,
    #[cfg(feature = "testing")]
    streams: Option<MemoryStreams>,
    hosts: Option<Vec<String>>,
    saved_at: Option<PathBuf>,
    max_staleness: Option<Duration>,
    cooldown: Duration,
    initial_sync: Option<Duration>,
    seed: Option<u64>,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
}

impl HttpsBundlesBuilder {
    pub(super) fn new(trust_domain: TrustDomain, target: Target, url: String) -> Self {
        Self {
            trust_domain,
            target,
            url,
            roots: WebRoots::default(),
            bad_root: None,
            client: None,
            #[cfg(feature = "testing")]
            streams: None,
            hosts: None,
            saved_at: None,
            max_staleness: None,
            cooldown: Duration::from_secs(10),
            initial_sync: Some(Duration::from_secs(30)),
            seed: None,
            clock: SystemClock::shared(),
            metrics: None,
        }
    }

    /// Adds root certificates in PEM to those of the system. Not for
    /// [`https_spiffe`](HttpsBundles::https_spiffe), which has its roots from bundles. Malformed PEM
    /// is an error when the source is built.
    pub fn add_roots_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        if let Err(error) = self.roots.add_pem(pem.as_ref()) {
            self.bad_root = Some(error);
        }
        self
    }

    /// Adds a root certificate in DER to those of the system. Not for
    /// [`https_spiffe`](HttpsBundles::https_spiffe).
    pub fn add_root_der(mut self, certificate: impl Into<Vec<u8>>) -> Self {
        self.roots.added.push(certificate.into().into());
        self
    }

    /// Trusts the added root certificates only, and not the system's. Not for
    /// [`https_spiffe`](HttpsBundles::https_spiffe).
    pub fn without_system_roots(mut self) -> Self {
        self.roots.without_system = true;
        self
    }

    /// Sends requests with this function, for a proxy or a client certificate. The client in it
    /// must verify the server, and must not follow redirects: the source follows them, to https
    /// URLs only. The limits of the source apply. Not for
    /// [`https_spiffe`](HttpsBundles::https_spiffe).
    ///
    /// ```
    /// use tower_spiffe::TrustDomain;
    /// use tower_spiffe::source::HttpsBundles;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = reqwest::Client::builder()
    ///     .redirect(reqwest::redirect::Policy::none())
    ///     .build()?;
    /// let partner = TrustDomain::parse("partner.example")?;
    /// let bundles = HttpsBundles::jwks_url(partner, "https://partner.example/keys")
    ///     .client(move |request| {
    ///         let client = client.clone();
    ///         async move {
    ///             let request = reqwest::Request::try_from(request.map(|()| ""))?;
    ///             client.execute(request).await.map(http::Response::<reqwest::Body>::from)
    ///         }
    ///     })
    ///     .build_lazy()?;
    /// # drop(bundles);
    /// # Ok(())
    /// # }
    /// ```
    pub fn client<F, Fut, B, E>(mut self, send: F) -> Self
    where
        F: Fn(Request<()>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        self.client = Some(GivenClient::new(send));
        self
    }

    /// Replaces the connections by streams in memory, for fuzzing.
    #[cfg(feature = "testing")]
    pub(crate) fn streams(mut self, open: MemoryStreams) -> Self {
        self.streams = Some(open);
        self
    }

    /// Limits where redirects and a `jwks_uri` may lead: to the host of the URL or the issuer, and to
    /// these hosts (`keys.example.org`, or `keys.example.org:8443` for another port than 443). An
    /// empty list allows only the first. By default they may lead to any host that TLS verifies:
    /// issuers often publish their keys elsewhere.
    ///
    /// Use it if an issuer may not choose which hosts this process connects to.
    ///
    /// ```
    /// # use tower_spiffe::TrustDomain;
    /// use tower_spiffe::source::HttpsBundles;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let partner = TrustDomain::parse("partner.example")?;
    /// let bundles = HttpsBundles::oidc_issuer(partner, "https://oidc.partner.example")
    ///     .allowed_hosts(["keys.partner.example"]);
    /// # drop(bundles);
    /// # Ok(())
    /// # }
    /// ```
    pub fn allowed_hosts<'a>(mut self, hosts: impl IntoIterator<Item = &'a str>) -> Self {
        self.hosts = Some(hosts.into_iter().map(str::to_owned).collect());
        self
    }

    /// Saves the latest bundle to this file, which is replaced in one step. After a restart the
    /// endpoint is verified with it, so that a rotation of the roots since the bootstrap bundle was
    /// written does not lock the source out. It has no keys for tokens. If it is wrong, delete it,
    /// or provide a bootstrap bundle with a higher `spiffe_sequence`.
    ///
    /// For [`https_spiffe`](HttpsBundles::https_spiffe) only, if the endpoint is in the trust domain
    /// that it serves. Not saved by default.
    pub fn save_to(mut self, path: impl AsRef<Path>) -> Self {
        self.saved_at = Some(path.as_ref().into());
        self
    }

    /// Sets for how long the last good bundle is used without a successful poll. No limit by
    /// default: a key that is revoked during an outage of the endpoint stays valid here until a poll
    /// succeeds.
    ///
    /// Past the limit tokens cannot be verified (`503`,
    /// [`BundlesUnavailable::Stale`](crate::bundle::BundlesUnavailable::Stale)). The age is the
    /// longer of the ages on the monotonic clock and on the wall clock. With a limit below 300 s
    /// the source can become stale between two polls.
    pub fn max_staleness(mut self, max: impl Into<Option<Duration>>) -> Self {
        self.max_staleness = max.into();
        self
    }

    /// Sets how often an unknown `kid` may cause an early poll. 10 s by default; at least 1 s.
    /// Anyone can send a token with an unknown `kid`.
    pub fn unknown_key_cooldown(mut self, cooldown: Duration) -> Self {
        self.cooldown = cooldown.max(Duration::from_secs(1));
        self
    }

    /// Sets how long [`build`](Self::build) waits for the first bundle. 30 s by default; `None`
    /// waits without a limit.
    pub fn initial_sync_timeout(mut self, within: impl Into<Option<Duration>>) -> Self {
        self.initial_sync = within.into();
        self
    }

    /// Draws the jitter from this seed, for a test that can be repeated.
    pub fn poll_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets the clock, also for the validity of certificates. The system clock by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the recorder of changes, errors, contacts and readiness. None by default. Validators and
    /// server layers built on the source use it too, unless they are given one of their own.
    pub fn metrics(mut self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(recorder);
        self
    }

    /// Builds the source and waits for its first bundle. Errors of polls are retried.
    ///
    /// # Errors
    /// As [`build_lazy`](Self::build_lazy), immediately. After the
    /// [`initial_sync_timeout`](Self::initial_sync_timeout), with the last error of a poll.
    pub async fn build(self) -> Result<HttpsBundles, HttpsBundlesError> {
        let within = self.initial_sync;
        let bundles = self.build_lazy()?;
        let ready = bundles.ready();
        let ready = match within {
            None => Some(ready.await),
            Some(within) => tokio::time::timeout(within, ready).await.ok(),
        };
        let state = bundles.state();
        let (url, domain) = (without_query(&state.url), state.trust_domain);
        let failed = format!("the bundle of {domain} could not be fetched from {url}");
        match ready {
            Some(Ok(())) => Ok(bundles),
            Some(Err(_)) => Err(HttpsBundlesError::new(
                HttpsBundlesErrorReason::Closed,
                format!("{failed}: the tokio runtime has ended"),
            )),
            None => {
                let failed = format!("{failed} within {:?}", within.unwrap_or_default());
                let timeout = |text| HttpsBundlesError::new(HttpsBundlesErrorReason::Timeout, text);
                Err(match state.last_error {
                    Some(last) => timeout(failed).because(last),
                    None => timeout(format!("{failed}: the first poll is still running")),
                })
            }
        }
    }

    /// Builds the source without waiting. Tokens cannot be verified until the first poll succeeds.
    /// Reads the system's root certificates, which blocks for a few milliseconds.
    ///
    /// # Errors
    /// The URL or the issuer is invalid; root certificates are malformed or missing; a
    /// setting does not fit the kind of source; there is no tokio runtime with timers and I/O (a
    /// [`client`](Self::client) needs timers only).
    pub fn build_lazy(self) -> Result<HttpsBundles, HttpsBundlesError> {
        let runtime = match self.client {
            // It may have its own transport.
            Some(_) => runtime::with_timers(),
            None => runtime::with_io(),
        };
        let runtime = runtime.map_err(|missing| {
            let text = format!("bundles cannot be polled: {missing}");
            HttpsBundlesError::new(HttpsBundlesErrorReason::NoRuntime, text)
        })?;
        if let Some(error) = self.bad_root {
            return Err(error);
        }
        let is_spiffe = matches!(self.target, Target::Spiffe(..));
        if self.saved_at.is_some() && !is_spiffe {
            let text =
                "only a bundle of an https_spiffe endpoint can be saved; remove `.save_to(...)`";
            return Err(HttpsBundlesError::settings(text));
        }
        let url = polled(&self.target, &self.url)?;
        let hosts = match &self.hosts {
            Some(hosts) => Hosts(Some(allowed(&url, hosts)?)),
            None => Hosts(None),
        };
        let client = match (&self.target, self.client) {
            (Target::Spiffe(..), _) if self.roots.is_set() => {
                let text = "an https_spiffe endpoint is verified by the roots of bundles only; \
                            remove `.add_roots_pem(...)`, `.add_root_der(...)` and \
                            `.without_system_roots()`";
                return Err(HttpsBundlesError::settings(text));
            }
            (Target::Spiffe(..), Some(_)) => {
                let text = "an https_spiffe endpoint cannot be polled by a given client: only the \
                            source verifies SPIFFE IDs; remove `.client(...)`";
                return Err(HttpsBundlesError::settings(text));
            }
            (Target::Spiffe(..), None) => None,
            (_, Some(given)) => Some(Client::Given(given)),
            (_, None) => {
                let tls = self.roots.config(self.clock.clone())?;
                Some(Client::Own(tls))
            }
        };
        #[cfg(feature = "testing")]
        let client = self.streams.map(Client::Memory).or(client);
        let recorder = self.metrics.clone().unwrap_or_else(|| Arc::new(()));
        let shared = Arc::new(Shared::new(
            self.trust_domain,
            url.to_string(),
            self.clock,
            Arc::new(Shielded::new(recorder)),
            self.max_staleness,
            self.cooldown,
        ));
        let poller = Poller {
            shared: shared.clone(),
            target: self.target,
            url,
            saved_at: self.saved_at,
            client,
            hosts,
            disk: Disk::default(),
            known: Known::default(),
            saved: None,
        };
        let task = poll::spawn(poller, self.seed, &runtime);
        let inner = Arc::new(Inner {
            shared,
            task,
            metrics: self.metrics,
        });
        Ok(HttpsBundles { inner })
    }
}

fn allowed(own: &Url, hosts: &[String]) -> Result<Arc<[(String, u16)]>, HttpsBundlesError> {
    let mut origins = vec![own.origin()];
    for host in hosts {
        let url = Url::parse(&format!("https://{host}/")).ok();
        let url = url.filter(|url| url.authority() == host);
        let origin = url.ok_or_else(|| {
            let host = shown(host);
            let text = format!(
                "the allowed host \"{host}\" is invalid; use a host name or an address, and a \
                 port if it is not 443"
            );
            HttpsBundlesError::settings(text)
        })?;
        origins.push(origin.origin());
    }
    Ok(origins.into())
}

/// The URL that is polled.
fn polled(target: &Target, text: &str) -> Result<Url, HttpsBundlesError> {
    let (what, is_issuer) = match target {
        Target::Oidc(_) => ("the issuer", true),
        _ => ("the URL", false),
    };
    let invalid = |why: &str| {
        let text = shown(text);
        let text = format!("{what} \"{text}\" is invalid: {why}; use an https URL");
        HttpsBundlesError::settings(text)
    };
    // OpenID Connect Discovery section 4: no query, no fragment.
    if is_issuer && text.contains(['?', '#']) {
        return Err(invalid("it has a query or a fragment"));
    }
    let url = Url::parse(text).map_err(invalid)?;
    if !is_issuer {
        return Ok(url);
    }
    let base = text.strip_suffix('/').unwrap_or(text);
    Url::parse(&format!("{base}/.well-known/openid-configuration")).map_err(invalid)
}

/// A URL or a host for errors, valid or not: without user information and query, which may be
/// secrets.
fn shown(text: &str) -> String {
    let text = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    presentable(without_query(text))
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

impl fmt::Debug for HttpsBundlesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsBundlesBuilder")
            .field("trust_domain", &self.trust_domain)
            .field("url", &shown(&self.url))
            .field("max_staleness", &self.max_staleness)
            .finish_non_exhaustive()
    }
}
