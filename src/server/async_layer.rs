//! The layer for checks that take time: the wait for a key, and an asynchronous policy.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::ask::{Asking, Question};
use super::async_policy::AskPolicy;
use super::gate::{Checked, Gate};
use super::held::AsyncResponseFuture;
use super::layer::{Shared, ValidateJwtSvidLayer};
use super::on_reject::{DefaultOnReject, OnReject};
use super::service::{clone_fields, inner_accessors};
use super::wait_for_key::{KeyWait, Room, UnknownKeyWait};
use crate::verify::Sight;

/// A [`ValidateJwtSvidLayer`] whose requests can wait: for a key
/// ([`wait_for_unknown_keys`](Self::wait_for_unknown_keys)), and for the decision of an asynchronous
/// policy ([`ask`](Self::ask)).
///
/// While a request waits, it holds no permit of the inner service, which must be `Clone`. Right
/// before the call its token and the synchronous policy are checked again. It needs a tokio runtime
/// with timers.
pub struct AsyncValidateJwtSvidLayer<R = DefaultOnReject> {
    shared: Arc<Shared<R>>,
    waits: Waits,
}

/// The service that an [`AsyncValidateJwtSvidLayer`] makes.
pub struct AsyncValidateJwtSvid<S, R = DefaultOnReject> {
    inner: S,
    shared: Arc<Shared<R>>,
    waits: Waits,
}

/// What requests can wait for.
#[derive(Clone, Default)]
pub(crate) struct Waits {
    room: Option<Arc<Room>>,
    asking: Option<Arc<Asking>>,
}

/// What a request waits for. Dropping it frees its place.
pub(crate) enum Wait {
    Key(KeyWait),
    Decision(Question),
}

impl<R> ValidateJwtSvidLayer<R> {
    /// Waits for the key of a token if the bundle of its trust domain does not have it yet. The
    /// trust domain must be known, and the source must report changes. Call it last: the layer that
    /// it returns has only this setting and [`ask`](Self::ask).
    #[must_use]
    pub fn wait_for_unknown_keys(self, wait: UnknownKeyWait) -> AsyncValidateJwtSvidLayer<R> {
        self.with_waits().wait_for_unknown_keys(wait)
    }

    /// Asks this asynchronous policy about every request that the token and the synchronous policy
    /// allow. Call it last: the layer that it returns has only this setting and
    /// [`wait_for_unknown_keys`](Self::wait_for_unknown_keys).
    ///
    /// Requests that the synchronous policy makes public
    /// ([`GrpcPolicyBuilder::public`](super::GrpcPolicyBuilder::public),
    /// [`Policy::is_public`](super::Policy::is_public)) are not asked about: probes do not depend
    /// on another service.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_spiffe::server::{Allow, AskPolicy, AsyncPolicy, ValidateJwtSvidLayer};
    ///
    /// # fn example(
    /// #     validator: tower_spiffe::Validator,
    /// #     opa: impl AsyncPolicy,
    /// # ) -> Result<(), tower_spiffe::server::PolicyError> {
    /// let ask = AskPolicy::new(opa)
    ///     .timeout(Duration::from_millis(200))
    ///     .max_in_flight(64)
    ///     .cache(10_000, Duration::from_secs(5));
    /// let layer = ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org")?)
    ///     .ask(ask);
    /// # drop(layer);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn ask(self, ask: AskPolicy) -> AsyncValidateJwtSvidLayer<R> {
        self.with_waits().ask(ask)
    }

    fn with_waits(self) -> AsyncValidateJwtSvidLayer<R> {
        AsyncValidateJwtSvidLayer {
            shared: self.shared,
            waits: Waits::default(),
        }
    }
}

impl<R> AsyncValidateJwtSvidLayer<R> {
    /// Waits for unknown keys; see [`ValidateJwtSvidLayer::wait_for_unknown_keys`].
    #[must_use]
    pub fn wait_for_unknown_keys(mut self, wait: UnknownKeyWait) -> Self {
        let clock = self.shared.gate.validator.clock().clone();
        self.waits.room = Some(Arc::new(Room::new(wait, clock)));
        self
    }

    /// Asks this asynchronous policy; see [`ValidateJwtSvidLayer::ask`]. Replaces the one that was
    /// set before.
    #[must_use]
    pub fn ask(mut self, ask: AskPolicy) -> Self {
        let clock = self.shared.gate.validator.clock().clone();
        self.waits.asking = Some(Arc::new(Asking::new(ask, clock)));
        self
    }
}

impl Waits {
    /// Lets the request wait, or returns its verdict.
    fn begin(&self, gate: &Gate, parts: &mut Parts, checked: Checked) -> Result<Wait, Checked> {
        let checked = match &self.room {
            Some(room) => match KeyWait::begin(gate, room, parts, checked) {
                Ok(wait) => return Ok(Wait::Key(wait)),
                Err(checked) => checked,
            },
            None => checked,
        };
        self.ask(gate, parts, checked)
    }

    /// Asks the asynchronous policy, or returns the verdict.
    pub(crate) fn ask(
        &self,
        gate: &Gate,
        parts: &Parts,
        checked: Checked,
    ) -> Result<Wait, Checked> {
        match &self.asking {
            Some(asking) => Question::begin(gate, asking, parts, checked).map(Wait::Decision),
            None => Err(checked),
        }
    }

    pub(crate) fn asks(&self) -> bool {
        self.asking.is_some()
    }
}

impl<S, R> Layer<S> for AsyncValidateJwtSvidLayer<R> {
    type Service = AsyncValidateJwtSvid<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AsyncValidateJwtSvid {
            inner,
            shared: self.shared.clone(),
            waits: self.waits.clone(),
        }
    }
}

inner_accessors!(AsyncValidateJwtSvid<S, R>);

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for AsyncValidateJwtSvid<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: OnReject<ResBody>,
    ReqBody: Body + 'static,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = AsyncResponseFuture<S, R, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let gate = &self.shared.gate;
        let checked = gate.check(&mut parts, Sight::First);
        match self.waits.begin(gate, &mut parts, checked) {
            Ok(wait) => AsyncResponseFuture::held(
                &mut self.inner,
                &self.shared,
                &self.waits,
                (parts, body),
                wait,
            ),
            Err(checked) => {
                let future = self.shared.act(&mut self.inner, parts, body, checked);
                AsyncResponseFuture::done(future)
            }
        }
    }
}

clone_fields!(<R> AsyncValidateJwtSvidLayer<R> { shared, waits });
clone_fields!(<S: Clone, R> AsyncValidateJwtSvid<S, R> { inner, shared, waits });

impl<R> fmt::Debug for AsyncValidateJwtSvidLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncValidateJwtSvidLayer")
            .field("gate", &self.shared.gate)
            .field("wait", &self.waits.room.as_ref().map(|room| &room.config))
            .field("ask", &self.waits.asking.as_ref().map(|asking| &asking.ask))
            .finish()
    }
}

impl<S: fmt::Debug, R> fmt::Debug for AsyncValidateJwtSvid<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncValidateJwtSvid")
            .field("inner", &self.inner)
            .field("gate", &self.shared.gate)
            .finish_non_exhaustive()
    }
}
