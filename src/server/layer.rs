//! The layer and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::allow_callers::AllowCallersLayer;
use super::drain::DrainLimits;
use super::future::ResponseFuture;
use super::gate::{Checked, Gate, Mode};
use super::on_reject::{DefaultOnReject, OnReject};
use super::policy::Policy;
use super::protocol::Protocol;
use super::realm::{InvalidRealm, Realm};
use super::rejection::Rejection;
use super::service::{ValidateJwtSvid, clone_fields};
#[cfg(feature = "tower-http")]
use super::tower_http::JwtSvidValidateRequest;
use crate::metrics::MetricsRecorder;
use crate::verify::Validator;

/// Allows callers whose JWT-SVID is valid and that the policy allows.
///
/// The [module docs](super) show how to put it around a router, a tonic server or a hyper service.
/// `R` makes the responses to rejected requests.
#[doc(alias = "middleware")]
#[doc(alias = "authenticate")]
#[doc(alias = "bearer")]
pub struct ValidateJwtSvidLayer<R = DefaultOnReject> {
    pub(crate) shared: Arc<Shared<R>>,
}

/// What a layer and all of its services share.
pub(crate) struct Shared<R, G = Gate> {
    pub(crate) gate: G,
    pub(crate) on_reject: Arc<R>,
}

clone_fields!(<R, G: Clone> Shared<R, G> { gate, on_reject });

impl ValidateJwtSvidLayer {
    /// Rejects every request without a valid token of an allowed caller.
    ///
    /// A request without a token is rejected (401) before the policy is asked, unless the policy
    /// makes the request public ([`GrpcPolicyBuilder::public`], or your own [`Policy::is_public`]).
    /// [`Allow::anyone`] alone makes no request public.
    ///
    /// A closure must be wrapped in [`Allow::when`], which sets the types of its arguments.
    ///
    /// [`Allow::when`]: super::Allow::when
    /// [`GrpcPolicyBuilder::public`]: super::GrpcPolicyBuilder::public
    /// [`Allow::anyone`]: super::Allow::anyone
    pub fn required(validator: Validator, policy: impl Policy) -> Self {
        Self::new(validator, policy, Mode::Required)
    }

    /// Rejects every request of a caller that the policy does not allow. The policy also decides
    /// about requests without a token: such a request passes, as [`Anonymous`], only if the policy
    /// allows anonymous callers. [`Allow::anyone`] does, and a [`GrpcPolicy`] does on its public
    /// methods; all other rules ask for a token (401). A request with an invalid token is rejected.
    ///
    /// [`Allow::anyone`]: super::Allow::anyone
    /// [`GrpcPolicy`]: super::GrpcPolicy
    /// [`Anonymous`]: super::CallerState::Anonymous
    pub fn optional(validator: Validator, policy: impl Policy) -> Self {
        Self::new(validator, policy, Mode::Optional)
    }

    /// Rejects nothing, for a roll-out. Requests that [`required`](Self::required) would reject pass
    /// as [`AuditFailed`], and are counted and logged.
    ///
    /// [`AuditFailed`]: super::CallerState::AuditFailed
    pub fn audit(validator: Validator, policy: impl Policy) -> Self {
        Self::new(validator, policy, Mode::Audit)
    }

    fn new(validator: Validator, policy: impl Policy, mode: Mode) -> Self {
        let gate = Gate::new(validator, policy, mode);
        Self {
            shared: Shared::new(gate, DefaultOnReject::default()),
        }
    }
}

impl<R> ValidateJwtSvidLayer<R> {
    /// Sets the protocol of rejections: the protocol that the server speaks. The default is the
    /// protocol that the policy implies ([`Protocol::Grpc`] for a
    /// [`GrpcPolicy`](super::GrpcPolicy)), else [`Protocol::Http`].
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.configured(|gate| gate.access.protocol = Some(protocol))
    }

    /// Sets the header that the token is read from, bare or after `Bearer`. The default is
    /// `authorization`. Use another header if `authorization` carries another credential.
    #[must_use]
    pub fn header(self, name: HeaderName) -> Self {
        self.configured(|gate| gate.headers = [name].into())
    }

    /// Reads the token from this header if the request has none of the headers before it.
    ///
    /// The first header that the request has decides: an invalid token in it is rejected, two
    /// tokens in it are an error, and a credential of another scheme counts as a missing token. The
    /// headers after it are neither read nor changed. In `authorization` a token must follow
    /// `Bearer`; every other header may also have a bare token.
    ///
    /// ```
    /// use http::HeaderName;
    /// use http::header::AUTHORIZATION;
    /// # use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
    ///
    /// # fn example(validator: tower_spiffe::Validator) {
    /// let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain())
    ///     .header(HeaderName::from_static("x-spiffe-authorization"))
    ///     .or_header(AUTHORIZATION);
    /// # drop(layer); }
    /// ```
    #[must_use]
    pub fn or_header(self, name: HeaderName) -> Self {
        self.configured(|gate| gate.headers = gate.headers.iter().cloned().chain([name]).collect())
    }

    /// Sets the realm of challenges. The default is `spiffe`.
    ///
    /// # Errors
    /// The text cannot be quoted in a challenge.
    pub fn realm(self, realm: &str) -> Result<Self, InvalidRealm> {
        let realm = Realm::new(realm)?;
        Ok(self.configured(|gate| gate.access.realm = realm))
    }

    /// Keeps the token in the request. By default a verified token is removed from its header,
    /// because the inner service could forward it, and the receiver could use it against this
    /// service.
    ///
    /// A layer inside this one that reads the same header verifies the token by its own rules
    /// either way. `audit` keeps all tokens; a credential of another scheme or in another
    /// header always stays.
    #[must_use]
    pub fn keep_credential(self) -> Self {
        self.configured(|gate| gate.keep_credential = true)
    }

    /// Sets the recorder of allowed and rejected requests. The default is the recorder of the
    /// validator. `Arc::new(())` records nothing. The validator records its verdicts on tokens
    /// itself.
    #[must_use]
    pub fn metrics(self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.configured(|gate| gate.access.set_recorder(recorder))
    }

    /// Responds to every invalid token with one text, "the token is invalid". By default the text
    /// names the class of the error.
    ///
    /// The default texts let a caller without any key find out which audiences and key IDs the
    /// server accepts. Logs, metrics, [`Rejection::reason`] and [`Rejection::token_error`] keep the
    /// details; an [`on_reject`](Self::on_reject) closure must not send them. Response times can
    /// still differ, most of all with [`wait_for_unknown_keys`](Self::wait_for_unknown_keys).
    #[must_use]
    pub fn uniform_token_errors(self) -> Self {
        self.configured(|gate| gate.uniform = true)
    }

    /// Sets the interval in which at most one log line per class of rejection and caller is written.
    /// The default is ten seconds.
    #[must_use]
    pub fn log_interval(self, interval: Duration) -> Self {
        self.configured(|gate| gate.access.telemetry.set_log_interval(interval))
    }

    /// Limits how much of a rejected request's unread body is read over HTTP/1, and for how long,
    /// before the rejection is sent. The default is 65,536 bytes (64 KiB) within 0.5 seconds; zero
    /// reads nothing. See [Rejections of requests with a body](super#rejections-of-requests-with-a-body).
    #[must_use]
    pub fn drain_rejected(self, max_bytes: u64, max_time: Duration) -> Self {
        self.configured(|gate| gate.access.drain = DrainLimits::new(max_bytes, max_time))
    }

    /// Sets the response to rejected requests: a closure or function, which returns a response with
    /// the body type of the inner service (in axum `axum::body::Body`). The default is
    /// [`Rejection::response`], which needs a body type with `Default`.
    ///
    /// If that body type has neither `Default` nor a constructor, see
    /// [Bodies without Default](super#bodies-without-default). [`Rejection::response_with`] keeps the
    /// headers of the default response; set the `content-type` of your body.
    ///
    /// ```
    /// # use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
    /// use http::{HeaderValue, header::CONTENT_TYPE};
    ///
    /// # fn example(validator: tower_spiffe::verify::Validator) {
    /// let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain())
    ///     .on_reject(|rejection, _parts| {
    ///         // One of a few fixed sentences, which need no escapes.
    ///         let body = format!(r#"{{"error": "{rejection}"}}"#);
    ///         let mut response = rejection.response_with(body);
    ///         let json = HeaderValue::from_static("application/json");
    ///         response.headers_mut().insert(CONTENT_TYPE, json);
    ///         response
    ///     });
    /// # drop(layer); }
    /// ```
    #[must_use]
    pub fn on_reject<F, B>(self, on_reject: F) -> ValidateJwtSvidLayer<F>
    where
        F: Fn(&Rejection, &Parts) -> Response<B> + Send + Sync + 'static,
    {
        ValidateJwtSvidLayer {
            shared: Shared::new(self.shared.gate.clone(), on_reject),
        }
    }

    /// Creates an [`AllowCallersLayer`] for a part of the inner service. It responds, counts and logs
    /// with the current settings of this layer.
    ///
    /// ```
    /// use axum::{Router, routing::post};
    /// use tower::Layer;
    /// use tower_spiffe::{Allow, ValidateJwtSvidLayer};
    ///
    /// # fn example(validator: tower_spiffe::Validator) -> Result<Router, Box<dyn std::error::Error>> {
    /// let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?)
    ///     .realm("reports")?
    ///     .on_reject(|rejection, _parts| rejection.response_with(rejection.to_string().into()));
    /// let only_ops = layer.allow_callers(Allow::id("spiffe://example.org/ops")?);
    /// let router = Router::new().route("/admin", post(async || "done").layer(only_ops));
    /// # let app =
    /// layer.layer(router)
    /// # ; Ok(Router::new().fallback_service(app)) }
    /// ```
    pub fn allow_callers(&self, policy: impl Policy) -> AllowCallersLayer<R> {
        AllowCallersLayer::inside(&self.shared, policy)
    }

    /// Returns a `ValidateRequest` for tower-http's `ValidateRequestHeaderLayer::custom`.
    ///
    /// ```
    /// use tower_http::validate_request::ValidateRequestHeaderLayer;
    /// use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
    /// # fn example(validator: tower_spiffe::verify::Validator) {
    /// let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
    /// let layer = ValidateRequestHeaderLayer::custom(layer.into_validate_request::<String>());
    /// # drop(layer); }
    /// ```
    #[cfg(feature = "tower-http")]
    pub fn into_validate_request<ResBody>(self) -> JwtSvidValidateRequest<ResBody, R> {
        JwtSvidValidateRequest::new(self.shared)
    }

    fn configured(mut self, change: impl FnOnce(&mut Gate)) -> Self {
        change(&mut Arc::make_mut(&mut self.shared).gate);
        self
    }
}

impl<S, R> Layer<S> for ValidateJwtSvidLayer<R> {
    type Service = ValidateJwtSvid<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ValidateJwtSvid::new(inner, self.shared.clone())
    }
}

clone_fields!(<R> ValidateJwtSvidLayer<R> { shared });

impl<R> fmt::Debug for ValidateJwtSvidLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValidateJwtSvidLayer")
            .field(&self.shared.gate)
            .finish()
    }
}

impl<R, G> Shared<R, G> {
    pub(crate) fn new(gate: G, on_reject: R) -> Arc<Self> {
        let on_reject = Arc::new(on_reject);
        Arc::new(Self { gate, on_reject })
    }

    /// Returns the response to a rejected request.
    pub(crate) fn reject<B>(&self, rejection: Rejection, parts: &Parts) -> Response<B>
    where
        R: OnReject<B>,
    {
        let mut response = self.on_reject.respond(&rejection, parts);
        rejection.settle(&mut response);
        response
    }
}

impl<R> Shared<R> {
    /// Acts on the verdict: calls the inner service, or rejects the request.
    pub(crate) fn act<S, ReqBody, ResBody>(
        self: &Arc<Self>,
        inner: &mut S,
        mut parts: Parts,
        body: ReqBody,
        checked: Checked,
    ) -> ResponseFuture<S::Future, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
        R: OnReject<ResBody>,
        ReqBody: Body + 'static,
    {
        let is_verified = checked.is_verified();
        match self.gate.apply(&mut parts, checked) {
            Ok(span) => {
                let mut request = Request::from_parts(parts, body);
                let late = self.late(&mut request, is_verified);
                let future = span.in_scope(|| inner.call(request));
                ResponseFuture::inner(future, span, Some(late))
            }
            Err(rejection) => {
                let response = self.reject(rejection, &parts);
                ResponseFuture::rejected(response, &self.gate.access.drain, &parts, body, inner)
            }
        }
    }
}
