//! The options of a source of access tokens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::{Request, Response};
use tower_service::Service;

use super::error::{AccessTokensError, AccessTokensErrorReason as Reason};
use super::exchange::{Exchange, Fetcher, Options};
use super::state::History;
use super::transport::Transport;
use super::{AccessTokens, BoxError};
use crate::client::{Origin, Plaintext};
use crate::metrics::{MetricsRecorder, Shielded, SvidCacheEvent};
use crate::presentable::debug_fields;
use crate::token::{SvidCache, SvidCacheBuilder, SvidRequest};

/// The `client_assertion_type`: the parameter that describes the JWT-SVID to the authorization
/// server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum AssertionType {
    /// `urn:ietf:params:oauth:client-assertion-type:jwt-spiffe`, of
    /// draft-ietf-oauth-spiffe-client-auth: for servers that support SPIFFE.
    #[default]
    JwtSpiffe,
    /// `urn:ietf:params:oauth:client-assertion-type:jwt-bearer`, of RFC 7523. Such servers may
    /// require an `iss` claim that equals the `client_id`, which JWT-SVIDs need not have.
    JwtBearer,
}

impl AssertionType {
    /// Returns the URN.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JwtSpiffe => "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
            Self::JwtBearer => "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        }
    }
}

/// The parameter that the audiences of a request are sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum TargetParameter {
    /// `audience` (RFC 8693 section 2.1), once for each.
    #[default]
    Audience,
    /// `resource` (RFC 8707), once for each. They must be absolute URIs.
    Resource,
    /// No parameter: the server uses the scope. The audiences only identify the access token in the
    /// cache.
    None,
}

/// Options of [`AccessTokens`]. The [module docs](crate::oauth) list what is sent.
#[must_use = "a builder does nothing until it is built"]
pub struct AccessTokensBuilder {
    svids: SvidCache,
    issuer: Option<String>,
    endpoint: Option<String>,
    single_use: bool,
    options: Options,
    plaintext: Option<Plaintext>,
    transport: Option<Transport>,
    metrics: Option<Arc<dyn MetricsRecorder>>,
    cache: Option<Box<dyn FnOnce(SvidCacheBuilder) -> SvidCacheBuilder + Send>>,
}

impl AccessTokensBuilder {
    pub(super) fn new(svids: SvidCache) -> Self {
        Self {
            svids,
            issuer: None,
            endpoint: None,
            single_use: false,
            options: Options {
                client_id: None,
                assertion_type: AssertionType::default(),
                exchanges: false,
                actor: false,
                target: TargetParameter::default(),
                scope: None,
                scopes: Vec::new(),
                parameters: Vec::new(),
                default_lifetime: Duration::from_secs(300),
                max_lifetime: Duration::from_secs(24 * 3600),
            },
            plaintext: None,
            transport: None,
            metrics: None,
            cache: None,
        }
    }

    /// Sets the issuer identifier of the authorization server: `issuer` in its metadata. It is the
    /// only audience of the JWT-SVIDs that are sent. Required.
    ///
    /// Some servers expect the URL of the token endpoint instead: pass that URL here.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// Sets the URL of the token endpoint: https, unless
    /// [`allow_plaintext`](Self::allow_plaintext) permits http. Required.
    pub fn token_endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Sends this `client_id`. None by default: the server finds the client by the `sub` of the
    /// JWT-SVID.
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.options.client_id = Some(id.into());
        self
    }

    /// Sets the `client_assertion_type`. [`JwtSpiffe`](AssertionType::JwtSpiffe) by default.
    pub fn assertion_type(mut self, assertion_type: AssertionType) -> Self {
        self.options.assertion_type = assertion_type;
        self
    }

    /// Fetches a separate JWT-SVID for each exchange ([`SvidRequest::single_use`]), for servers that
    /// accept a `jti` once, such as Keycloak. By default a cached one is used until it expires.
    pub fn single_use_assertions(mut self) -> Self {
        self.single_use = true;
        self
    }

    /// Uses token exchange (RFC 8693) instead of the grant `client_credentials`. The subject token
    /// is this workload's JWT-SVID, or the [`SubjectToken`](super::SubjectToken) of the request.
    pub fn token_exchange(mut self) -> Self {
        self.options.exchanges = true;
        self
    }

    /// Sends this workload's JWT-SVID as the `actor_token` if the subject token is a caller's
    /// token. Not sent by default.
    pub fn actor_token(mut self) -> Self {
        self.options.actor = true;
        self
    }

    /// Sets the parameter of the audiences of a request. [`Audience`](TargetParameter::Audience) by
    /// default.
    pub fn target(mut self, target: TargetParameter) -> Self {
        self.options.target = target;
        self
    }

    /// Sets the scope of all access tokens: names, with single spaces between them. None by default.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.options.scope = Some(scope.into());
        self
    }

    /// Sets the scope of access tokens for this audience, instead of [`scope`](Self::scope).
    pub fn scope_for(mut self, audience: impl Into<String>, scope: impl Into<String>) -> Self {
        self.options.scopes.push((audience.into(), scope.into()));
        self
    }

    /// Sends another parameter in each request, such as `requested_token_type`.
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.parameters.push((name.into(), value.into()));
        self
    }

    /// Sets the lifetime of an access token if the response has no `expires_in`. 5 minutes by
    /// default.
    pub fn default_lifetime(mut self, lifetime: Duration) -> Self {
        self.options.default_lifetime = lifetime;
        self
    }

    /// Limits the lifetime of access tokens. 24 hours by default. An access token is refreshed
    /// after about 60 % of its lifetime.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.options.max_lifetime = lifetime;
        self
    }

    /// Allows a token endpoint over http. By default only https is allowed: over http, everyone on
    /// the network path could use the JWT-SVID and the access token.
    pub fn allow_plaintext(mut self, plaintext: Plaintext) -> Self {
        self.plaintext = Some(plaintext);
        self
    }

    /// Sets the HTTP client: a tower service of `http` requests whose body can be made of [`Bytes`]:
    /// `Bytes` itself, `http_body_util::Full<Bytes>`, `axum::body::Body`. Required, unless there is
    /// a `reqwest::Client`.
    ///
    /// **It must not follow redirects**: otherwise the JWT-SVID could be sent to another server.
    pub fn http_client<S, B, R>(mut self, client: S) -> Self
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: From<Bytes> + Send + 'static,
        R: http_body::Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        self.transport = Some(Transport::service(client));
        self
    }

    /// Sets the HTTP client: a `reqwest::Client` (feature `reqwest`). Even if it follows redirects,
    /// the JWT-SVID is not sent again, and the exchange fails.
    #[cfg(feature = "reqwest")]
    pub fn reqwest(mut self, client: reqwest::Client) -> Self {
        self.transport = Some(Transport::reqwest(client));
        self
    }

    /// Sets the recorder of exchanges, and of the events of the cache. None by default.
    pub fn metrics(mut self, metrics: Arc<dyn MetricsRecorder>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Changes the options of the cache: its size, limits and delays. By default it uses the clock
    /// of the JWT-SVIDs; keep that clock.
    ///
    /// ```
    /// # fn f(builder: tower_spiffe::oauth::AccessTokensBuilder) {
    /// // One access token for each caller.
    /// let builder = builder.cache(|cache| cache.max_entries(10_000));
    /// # }
    /// ```
    pub fn cache(
        mut self,
        options: impl FnOnce(SvidCacheBuilder) -> SvidCacheBuilder + Send + 'static,
    ) -> Self {
        self.cache = Some(Box::new(options));
        self
    }

    /// Builds the source. It makes no request yet.
    ///
    /// # Errors
    /// Returns an [`AccessTokensError`] if an option is missing or invalid.
    pub fn build(self) -> Result<AccessTokens, AccessTokensError> {
        let error = AccessTokensError::new;
        let issuer = self.issuer.ok_or_else(|| {
            let text =
                "issuer is missing: it is the audience of the JWT-SVIDs; call `.issuer(...)`";
            error(Reason::Issuer, text)
        })?;
        let assertion = match SvidRequest::new([&issuer]) {
            Ok(request) if self.single_use => request.single_use(),
            Ok(request) => request,
            Err(why) => return Err(error(Reason::Issuer, &format!("issuer is invalid: {why}"))),
        };
        let url = self.endpoint.ok_or_else(|| {
            let text = "token endpoint is missing: call `.token_endpoint(...)`";
            error(Reason::TokenEndpoint, text)
        })?;
        let endpoint = endpoint(&url, self.plaintext).map_err(|why| {
            let shown = shown(&url).map_or(String::new(), |url| format!(" {url:?}"));
            let text = format!("token endpoint{shown} is invalid: {why}");
            error(Reason::TokenEndpoint, &text)
        })?;
        let transport = self.transport.ok_or_else(|| {
            let text = "HTTP client is missing: call `.http_client(...)`, or `.reqwest(...)` with \
                        feature `reqwest`";
            error(Reason::HttpClient, text)
        })?;
        self.options.check()?;
        let clock = self.svids.clock().clone();
        let exchange = Arc::new(Exchange {
            svids: self.svids,
            clock: clock.clone(),
            assertion,
            endpoint,
            options: self.options,
            transport,
            metrics: self.metrics.clone().map(Shielded::new),
            history: History::default(),
        });
        let mut cache = SvidCache::builder(Fetcher(exchange.clone())).clock(clock);
        if let Some(metrics) = self.metrics {
            cache = cache.metrics(Arc::new(CacheEvents(metrics)));
        }
        if let Some(options) = self.cache {
            cache = options(cache);
        }
        Ok(AccessTokens {
            exchange,
            cache: cache.build(),
        })
    }
}

impl Options {
    fn check(&self) -> Result<(), AccessTokensError> {
        let invalid = |text: &str| Err(AccessTokensError::new(Reason::Parameter, text));
        let scopes = self.scopes.iter().map(|(_, scope)| scope);
        if let Some(scope) = self.scope.iter().chain(scopes).find(|it| !is_scope(it)) {
            return invalid(&format!(
                "scope {scope:?} is invalid: expected printable ASCII without quotes and \
                 backslashes, with single spaces between names (RFC 6749 section 3.3)"
            ));
        }
        if self.client_id.as_deref() == Some("") {
            return invalid(
                "client ID is empty: leave it out, or set the ID that is registered at the server",
            );
        }
        for (name, _) in &self.parameters {
            if name.is_empty() || OWN_PARAMETERS.contains(&name.as_str()) {
                return invalid(&format!(
                    "parameter {name:?} is invalid: it is empty, or this crate sends it; use its own \
                     option"
                ));
            }
        }
        if self.default_lifetime.is_zero() || self.max_lifetime.is_zero() {
            let text = "lifetime is zero: no access token could be sent; set a longer one";
            return Err(AccessTokensError::new(Reason::Lifetime, text));
        }
        Ok(())
    }
}

/// The parameters that have their own options.
const OWN_PARAMETERS: &[&str] = &[
    "grant_type",
    "client_id",
    "client_assertion",
    "client_assertion_type",
    "subject_token",
    "subject_token_type",
    "actor_token",
    "actor_token_type",
    "audience",
    "resource",
    "scope",
];

fn is_scope(scope: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    let mut names = scope.split(' ');
    names.all(|name| !name.is_empty() && name.bytes().all(allowed))
}

/// A URL without its query, which may be a secret; `None` if it has a password.
fn shown(url: &str) -> Option<&str> {
    let url = url.split(['?', '#']).next()?;
    (!url.contains('@')).then_some(url)
}

fn endpoint(url: &str, plaintext: Option<Plaintext>) -> Result<Uri, String> {
    const WANTED: &str = "expected `https://host/path`";
    // A fragment is not allowed (RFC 6749 section 3.2), and `Uri` would drop it.
    if url.contains('#') {
        return Err("a token endpoint has no fragment; remove it".to_owned());
    }
    let uri: Uri = url.parse().map_err(|_| WANTED.to_owned())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(WANTED.to_owned());
    };
    let origin: Result<Origin, _> = format!("{scheme}://{authority}").parse();
    let origin = origin.map_err(|error| format!("{WANTED}: {error}"))?;
    if !origin.target().may_get_token(plaintext) {
        return Err(
            "the JWT-SVID would be sent in plaintext; use https, or `allow_plaintext`".into(),
        );
    }
    Ok(uri)
}

/// The recorder of the cache. Its fetches are exchanges, which `Exchange` counts.
struct CacheEvents(Arc<dyn MetricsRecorder>);

impl MetricsRecorder for CacheEvents {
    fn record_svid_cache(&self, event: SvidCacheEvent) {
        self.0.record_svid_cache(event);
    }
}

debug_fields!(AccessTokensBuilder, |it| {
    issuer: it.issuer,
    token_endpoint: it.endpoint.as_deref().and_then(shown),
    client_id: it.options.client_id,
    assertion_type: it.options.assertion_type,
    token_exchange: it.options.exchanges,
    target: it.options.target,
    scope: it.options.scope,
});
