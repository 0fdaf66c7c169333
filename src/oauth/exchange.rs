//! One request for an access token.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Uri};

use super::builder::{AssertionType, TargetParameter};
use super::response::{self, Failure};
use super::state::History;
use super::transport::Transport;
use crate::clock::Clock;
use crate::metrics::{MetricsRecorder as _, Shielded};
use crate::presentable::chain;
use crate::token::{
    FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason, JwtSvid, SvidCache, SvidRequest,
    TokenError, TokenErrorReason,
};

/// The grant of a token exchange (RFC 8693 section 2.1).
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// The type of this workload's token in a token exchange (RFC 8693 section 3).
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The options of the requests.
pub(super) struct Options {
    pub(super) client_id: Option<String>,
    pub(super) assertion_type: AssertionType,
    pub(super) exchanges: bool,
    pub(super) actor: bool,
    pub(super) target: TargetParameter,
    pub(super) scope: Option<String>,
    pub(super) scopes: Vec<(String, String)>,
    pub(super) parameters: Vec<(String, String)>,
    pub(super) default_lifetime: Duration,
    pub(super) max_lifetime: Duration,
}

/// Fetches access tokens, without a cache.
pub(super) struct Exchange {
    /// The cache of this workload's JWT-SVIDs.
    pub(super) svids: SvidCache,
    pub(super) clock: Arc<dyn Clock>,
    /// The request for the JWT-SVID, without an identity.
    pub(super) assertion: SvidRequest,
    pub(super) endpoint: Uri,
    pub(super) options: Options,
    pub(super) transport: Transport,
    pub(super) metrics: Option<Shielded>,
    pub(super) history: History,
}

impl Exchange {
    /// The token endpoint without its query, which may be a secret.
    pub(super) fn shown_endpoint(&self) -> Box<str> {
        let uri = &self.endpoint;
        let scheme = uri.scheme_str().unwrap_or_default();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        format!("{scheme}://{authority}{}", uri.path()).into()
    }

    async fn run(&self, request: &SvidRequest) -> Result<JwtSvid, Failure> {
        let Self { svids, clock, .. } = self;
        if let Some(subject) = request.subject() {
            if !self.options.exchanges {
                return Err(Failure::new(
                    "invalid-request",
                    FetchSvidReason::InvalidRequest,
                    "the grant `client_credentials` has no subject token; call \
                     `.token_exchange()` on the builder",
                ));
            }
            if subject.expires_at() <= clock.now() {
                return Err(Failure::new(
                    "expired-subject",
                    FetchSvidReason::InvalidRequest,
                    "the subject token has expired; the caller must send a newer one",
                ));
            }
        }
        let own = self.assertion.clone().with_identity_of(request);
        let svid = svids.get(&own).await.map_err(|error| no_svid(&error))?;

        // The server counts the lifetime from a later time, so the token does not expire earlier.
        let began = clock.now();
        let answer = self.transport.send(self.request(request, &svid)).await;
        let endpoint = self.shown_endpoint();
        let subject = request.subject();
        let mut secrets = vec![svid.token()];
        secrets.extend(subject.map(|subject| subject.token()));
        secrets.extend(self.endpoint.query());
        let answer = answer.map_err(|error| {
            let why = response::clean(&chain(&*error), &secrets, usize::MAX);
            let text = format!("token endpoint {endpoint} is unreachable: {why}");
            Failure::new("unreachable", FetchSvidReason::Unavailable, text)
        })?;
        let granted = response::read(&answer, &endpoint, &secrets, clock.now());
        let granted = granted.inspect_err(|failure| {
            let own_subject = failure.outcome == "invalid-grant" && subject.is_none();
            if failure.outcome == "invalid-client" || own_subject {
                // The server may no longer know its key, and may accept another token.
                if let Ok(header) = HeaderValue::from_str(svid.bearer()) {
                    svids.report_refused(&own, &header);
                }
            }
        })?;

        let lifetime = granted.lifetime.unwrap_or(self.options.default_lifetime);
        let mut expires_at = began.saturating_add(lifetime.min(self.options.max_lifetime));
        if let Some(subject) = subject {
            expires_at = expires_at.min(subject.expires_at());
        }
        let id = svid.spiffe_id().clone();
        JwtSvid::access_token(&granted.access_token, request, id, began, expires_at).map_err(
            |why| {
                let text =
                    format!("the response of token endpoint {endpoint} is unacceptable: {why}");
                Failure::new("unacceptable", FetchSvidReason::Unacceptable, text)
            },
        )
    }

    fn request(&self, request: &SvidRequest, svid: &JwtSvid) -> Request<Bytes> {
        let options = &self.options;
        let mut form = form_urlencoded::Serializer::new(String::new());
        if options.exchanges {
            form.append_pair("grant_type", TOKEN_EXCHANGE);
            match request.subject() {
                Some(subject) => {
                    form.append_pair("subject_token", subject.token());
                    form.append_pair("subject_token_type", subject.kind());
                    if options.actor {
                        form.append_pair("actor_token", svid.token());
                        form.append_pair("actor_token_type", JWT);
                    }
                }
                None => {
                    form.append_pair("subject_token", svid.token());
                    form.append_pair("subject_token_type", JWT);
                }
            }
        } else {
            form.append_pair("grant_type", "client_credentials");
        }
        form.append_pair("client_assertion_type", options.assertion_type.as_str());
        form.append_pair("client_assertion", svid.token());
        if let Some(client_id) = &options.client_id {
            form.append_pair("client_id", client_id);
        }
        let target = match options.target {
            TargetParameter::Audience => Some("audience"),
            TargetParameter::Resource => Some("resource"),
            TargetParameter::None => None,
        };
        if let Some(name) = target {
            for audience in request.audiences() {
                form.append_pair(name, audience);
            }
        }
        if let Some(scope) = self.scope(request) {
            form.append_pair("scope", scope);
        }
        for (name, value) in &options.parameters {
            form.append_pair(name, value);
        }
        let mut request = Request::new(Bytes::from(form.finish()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        request
    }

    /// Returns the scope for the first audience with its own scope, or the common scope.
    fn scope(&self, request: &SvidRequest) -> Option<&str> {
        let mut scopes = self.options.scopes.iter();
        let own = scopes.find(|(for_audience, _)| {
            let mut audiences = request.audiences();
            audiences.any(|audience| audience == for_audience)
        });
        let own = own.map(|(_, scope)| scope.as_str());
        own.or(self.options.scope.as_deref())
    }
}

/// The error if there is no JWT-SVID to authenticate with.
fn no_svid(error: &TokenError) -> Failure {
    let text = format!("no JWT-SVID to authenticate with: {error}");
    let cause = error.fetch_error();
    let reason = match (cause, error.reason()) {
        (Some(cause), _) => cause.reason(),
        (None, TokenErrorReason::Timeout) => FetchSvidReason::Timeout,
        (None, TokenErrorReason::Unavailable) => FetchSvidReason::Unavailable,
        (None, TokenErrorReason::Closed) => FetchSvidReason::Closed,
        (None, TokenErrorReason::NoRuntime) => FetchSvidReason::NoRuntime,
        (None, _) => FetchSvidReason::Other,
    };
    let mut failure = Failure::new("no-svid", reason, text);
    if let Some(code) = cause.and_then(FetchSvidError::code) {
        failure.error = failure.error.with_code(code);
    }
    failure
}

/// Counts an exchange, even if it is cancelled.
struct Counted<'a> {
    exchange: &'a Exchange,
    began: Duration,
    ended: Option<(&'static str, Option<FetchSvidError>)>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let Exchange { clock, metrics, .. } = self.exchange;
        let now = clock.monotonic();
        let (outcome, error) = self.ended.take().unwrap_or_else(|| {
            let text = format!(
                "token endpoint {} did not respond in time, or the cache was closed",
                self.exchange.shown_endpoint()
            );
            let error = FetchSvidError::new(FetchSvidReason::Timeout, text);
            ("abandoned", Some(error))
        });
        self.exchange.history.ended(error, now);
        if let Some(metrics) = metrics {
            metrics.record_token_exchange(outcome, now.saturating_sub(self.began));
        }
    }
}

/// The exchange as the fetcher of a cache.
pub(super) struct Fetcher(pub(super) Arc<Exchange>);

impl FetchSvid for Fetcher {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let (exchange, request) = (self.0.clone(), request.clone());
        Box::pin(async move {
            let mut counted = Counted {
                exchange: &exchange,
                began: exchange.clock.monotonic(),
                ended: None,
            };
            let (ended, answer) = match exchange.run(&request).await {
                Ok(token) => (("ok", None), Ok(token)),
                Err(Failure { outcome, error }) => ((outcome, Some(error.clone())), Err(error)),
            };
            counted.ended = Some(ended);
            answer
        })
    }

    fn exchanges_subjects(&self) -> bool {
        true
    }
}
