//! A narrower policy for a part of a server: authorizes again, without authentication.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::caller;
use super::drain::DrainLimits;
use super::future::ResponseFuture;
use super::gate::Gate;
use super::on_reject::{DefaultOnReject, OnReject};
use super::policy::{self, Decision, Policy};
use super::protocol::Protocol;
use super::realm::Realm;
use super::reason::RejectionReason;
use super::rejection::Rejection;
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
    shared: Arc<Shared<R>>,
}

/// The service that an [`AllowCallersLayer`] makes.
pub struct AllowCallers<S, R = DefaultOnReject> {
    inner: S,
    shared: Arc<Shared<R>>,
}

struct Shared<R> {
    settings: Settings,
    on_reject: Arc<R>,
}

#[derive(Clone)]
struct Settings {
    policy: Arc<dyn Policy>,
    protocol: Option<Protocol>,
    // The protocol of the layer that made this one. It is the default here too.
    outer: Option<Arc<dyn Policy>>,
    realm: Realm,
    telemetry: Telemetry,
    drain: DrainLimits,
}

// === impl AllowCallersLayer ===

impl AllowCallersLayer {
    /// Allows the callers that this policy allows, with default settings. To use all settings of the
    /// outer layer (realm, log interval, limits), call its
    /// [`allow_callers`](super::ValidateJwtSvidLayer::allow_callers) instead.
    pub fn new(policy: impl Policy) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings: Settings {
                    policy: Arc::new(policy),
                    protocol: None,
                    outer: None,
                    realm: Realm::default(),
                    telemetry: Telemetry::new(SystemClock::shared()),
                    drain: DrainLimits::default(),
                },
                on_reject: Arc::new(DefaultOnReject::default()),
            }),
        }
    }
}

impl<R> AllowCallersLayer<R> {
    /// Creates a layer that responds, counts and logs like the layer with this gate.
    pub(super) fn inside(gate: &Gate, on_reject: Arc<R>, policy: impl Policy) -> Self {
        gate.telemetry.give_recorder(&policy);
        Self {
            shared: Arc::new(Shared {
                settings: Settings {
                    policy: Arc::new(policy),
                    protocol: gate.protocol,
                    outer: Some(gate.policy.clone()),
                    realm: gate.realm.clone(),
                    telemetry: gate.telemetry.clone(),
                    drain: gate.drain,
                },
                on_reject,
            }),
        }
    }

    /// Sets the protocol of rejections: the protocol that the server speaks. The default is the
    /// protocol that the policy implies ([`Protocol::Grpc`] for a
    /// [`GrpcPolicy`](super::GrpcPolicy)), else the protocol of the layer that made this one
    /// ([`allow_callers`](super::ValidateJwtSvidLayer::allow_callers)), else [`Protocol::Http`].
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.configured(|settings| settings.protocol = Some(protocol))
    }

    /// Sets the recorder of rejections. The outer layer counts allowed requests.
    #[must_use]
    pub fn metrics(self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.configured(|settings| {
            settings.telemetry.set_recorder(recorder);
            settings.telemetry.give_recorder(&*settings.policy);
        })
    }

    /// Sets the response to rejected requests. See the
    /// [outer layer's method](super::ValidateJwtSvidLayer::on_reject).
    #[must_use]
    pub fn on_reject<F, B>(self, on_reject: F) -> AllowCallersLayer<F>
    where
        F: Fn(&Rejection, &Parts) -> Response<B> + Send + Sync + 'static,
    {
        AllowCallersLayer {
            shared: Arc::new(Shared {
                settings: self.shared.settings.clone(),
                on_reject: Arc::new(on_reject),
            }),
        }
    }

    fn configured(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        let on_reject = self.shared.on_reject.clone();
        Self {
            shared: Arc::new(Shared {
                settings,
                on_reject,
            }),
        }
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

impl<R> Clone for AllowCallersLayer<R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<R> fmt::Debug for AllowCallersLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllowCallersLayer")
    }
}

// === impl Settings ===

impl Settings {
    fn check(&self, parts: &Parts) -> Result<(), Rejection> {
        let fault = match caller::verified(&parts.extensions) {
            Ok(caller) => match policy::decide_verified(&*self.policy, caller, parts) {
                Decision::Allow => return Ok(()),
                denied => {
                    let wire = self.protocol().wire(parts);
                    return Err(Rejection::by_policy(
                        denied,
                        Some(caller),
                        wire,
                        &self.realm,
                    ));
                }
            },
            Err(fault) => fault,
        };
        let decision = match fault {
            caller::NoCaller::NotWired => Decision::AuthenticationRequired,
            _ => self.policy.decide(None, parts),
        };
        let wire = self.protocol().wire(parts);
        match decision {
            Decision::Allow => Ok(()),
            Decision::AuthenticationRequired => Err(fault.into_rejection(wire, &self.realm)),
            denied => Err(Rejection::by_policy(denied, None, wire, &self.realm)),
        }
    }

    fn protocol(&self) -> Protocol {
        let outer = || self.outer.as_ref().and_then(|policy| policy.protocol());
        self.protocol
            .or_else(|| self.policy.protocol())
            .or_else(outer)
            .unwrap_or_default()
    }
}

// === impl AllowCallers ===

super::service::inner_accessors!(AllowCallers<S, R>);

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
        let Shared {
            settings,
            on_reject,
        } = &*self.shared;
        let rejection = match settings.check(&parts) {
            Ok(()) => {
                let request = Request::from_parts(parts, body);
                let future = self.inner.call(request);
                return ResponseFuture::inner(future, tracing::Span::none(), None);
            }
            Err(rejection) => rejection,
        };
        // Without a verified caller, the trust domain is unverified.
        let is_verified = |_: &str| rejection.caller().is_some();
        settings
            .telemetry
            .rejected(&rejection, true, is_verified, &[]);
        let mut response = on_reject.respond(&rejection, &parts);
        if rejection.reason() == RejectionReason::NotWired {
            let text = HeaderValue::from_static(rejection.reason().description());
            response.headers_mut().insert(MISWIRED, text);
        }
        rejection.settle(&mut response);
        ResponseFuture::rejected(response, &settings.drain, &parts, body, &mut self.inner)
    }
}

impl<S: Clone, R> Clone for AllowCallers<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for AllowCallers<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllowCallers")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
