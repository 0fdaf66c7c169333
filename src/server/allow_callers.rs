//! A narrower policy for a part of a server: authorizes again, without authentication.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::access::Access;
use super::caller::{self, NoCaller};
use super::future::ResponseFuture;
use super::layer::Shared;
use super::on_reject::{DefaultOnReject, OnReject};
use super::policy::{Decision, Policy};
use super::protocol::Protocol;
use super::reason::RejectionReason;
use super::rejection::Rejection;
use super::service::{clone_fields, inner_accessors};
use super::telemetry::Telemetry;
use crate::clock::SystemClock;
use crate::metrics::MetricsRecorder;

/// Names the missing layer. In a header, because the body can be of any type.
const MISWIRED: HeaderName = HeaderName::from_static("x-tower-spiffe-error");

/// Narrows a route to fewer callers. Put it inside a
/// [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer): it uses the identity set by that layer,
/// and never reads a token.
///
/// A caller without a verified identity is anonymous. It gets 401, unless the policy allows
/// anonymous callers ([`Allow::anyone`](super::Allow::anyone), public methods) and the outer layer
/// allowed it. If `ValidateJwtSvidLayer` is missing from the stack, every request gets 500, with a
/// header and a log line that name the missing layer.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_spiffe::server::{Allow, AllowCallersLayer};
///
/// let only_ops = AllowCallersLayer::new(Allow::id("spiffe://example.org/ops")?);
/// let router: Router = Router::new().route("/admin", post(|| async {}).layer(only_ops));
/// # drop(router);
/// # Ok::<(), tower_spiffe::server::PolicyError>(())
/// ```
pub struct AllowCallersLayer<R = DefaultOnReject> {
    shared: Arc<Shared<R, Access>>,
}

/// The service that an [`AllowCallersLayer`] makes.
pub struct AllowCallers<S, R = DefaultOnReject> {
    inner: S,
    shared: Arc<Shared<R, Access>>,
}

clone_fields!(<R> AllowCallersLayer<R> { shared });
clone_fields!(<S: Clone, R> AllowCallers<S, R> { inner, shared });

// === impl AllowCallersLayer ===

impl AllowCallersLayer {
    /// Allows the callers that this policy allows, with default settings. To use all settings of the
    /// outer layer (realm, log interval, limits), call its
    /// [`allow_callers`](super::ValidateJwtSvidLayer::allow_callers) instead.
    pub fn new(policy: impl Policy) -> Self {
        let access = Access::new(policy, Telemetry::new(SystemClock::shared()));
        Self {
            shared: Shared::new(access, DefaultOnReject::default()),
        }
    }
}

impl<R> AllowCallersLayer<R> {
    /// Creates a layer that responds, counts and logs like the outer one.
    pub(super) fn inside(outer: &Shared<R>, policy: impl Policy) -> Self {
        let access = outer.gate.access.clone();
        access.telemetry.give_recorder(&policy);
        let gate = Access {
            outer: Some(access.policy),
            policy: Arc::new(policy),
            ..access
        };
        let on_reject = outer.on_reject.clone();
        Self {
            shared: Arc::new(Shared { gate, on_reject }),
        }
    }

    /// Sets the protocol of rejections: the protocol that the server speaks. The default is the
    /// protocol that the policy implies ([`Protocol::Grpc`] for a
    /// [`GrpcPolicy`](super::GrpcPolicy)), else the protocol of the layer that made this one
    /// ([`allow_callers`](super::ValidateJwtSvidLayer::allow_callers)), else [`Protocol::Http`].
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.configured(|access| access.protocol = Some(protocol))
    }

    /// Sets the recorder of rejections. The outer layer counts allowed requests.
    #[must_use]
    pub fn metrics(self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.configured(|access| access.set_recorder(recorder))
    }

    /// Sets the response to rejected requests. See the
    /// [outer layer's method](super::ValidateJwtSvidLayer::on_reject).
    #[must_use]
    pub fn on_reject<F, B>(self, on_reject: F) -> AllowCallersLayer<F>
    where
        F: Fn(&Rejection, &Parts) -> Response<B> + Send + Sync + 'static,
    {
        AllowCallersLayer {
            shared: Shared::new(self.shared.gate.clone(), on_reject),
        }
    }

    fn configured(mut self, change: impl FnOnce(&mut Access)) -> Self {
        change(&mut Arc::make_mut(&mut self.shared).gate);
        self
    }
}

impl<S, R> Layer<S> for AllowCallersLayer<R> {
    type Service = AllowCallers<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AllowCallers {
            inner,
            shared: self.shared.clone(),
        }
    }
}

impl<R> fmt::Debug for AllowCallersLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllowCallersLayer")
    }
}

fn check(access: &Access, parts: &Parts) -> Result<(), Rejection> {
    let fault = match caller::verified(&parts.extensions) {
        Ok(caller) => return access.decide_verified(caller, parts),
        Err(fault) => fault,
    };
    let decision = match fault {
        NoCaller::NotWired => Decision::AuthenticationRequired,
        _ => access.policy.decide(None, parts),
    };
    match decision {
        Decision::Allow => Ok(()),
        Decision::AuthenticationRequired => {
            Err(fault.into_rejection(access.wire(parts), &access.realm))
        }
        denied => Err(access.denied(denied, None, parts)),
    }
}

// === impl AllowCallers ===

inner_accessors!(AllowCallers<S, R>);

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for AllowCallers<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: OnReject<ResBody>,
    ReqBody: Body,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let access = &self.shared.gate;
        let rejection = match check(access, &parts) {
            Ok(()) => {
                let request = Request::from_parts(parts, body);
                let future = self.inner.call(request);
                return ResponseFuture::inner(future, tracing::Span::none(), None);
            }
            Err(rejection) => rejection,
        };
        // Without a verified caller, the trust domain is unverified.
        let is_verified = |_: &str| rejection.caller().is_some();
        access
            .telemetry
            .rejected(&rejection, true, is_verified, &[]);
        let reason = rejection.reason();
        let mut response = self.shared.reject(rejection, &parts);
        if reason == RejectionReason::NotWired {
            let text = HeaderValue::from_static(reason.description());
            response.headers_mut().insert(MISWIRED, text);
        }
        ResponseFuture::rejected(response, &access.drain, &parts, body, &mut self.inner)
    }
}

impl<S: fmt::Debug, R> fmt::Debug for AllowCallers<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllowCallers")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
