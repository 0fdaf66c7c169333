//! The service of the layer.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::future::{WaitFuture, Waiting};
use super::room::Room;
use crate::server::layer::Shared;
use crate::server::on_reject::{DefaultOnReject, OnReject};
use crate::verify::Sight;

/// The service that a [`WaitForKeyLayer`](super::WaitForKeyLayer) makes.
pub struct WaitForKey<S, R = DefaultOnReject> {
    inner: S,
    shared: Arc<Shared<R>>,
    room: Arc<Room>,
}

impl<S, R> WaitForKey<S, R> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<R>>, room: Arc<Room>) -> Self {
        Self {
            inner,
            shared,
            room,
        }
    }
}

crate::server::service::inner_accessors!(WaitForKey<S, R>);

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for WaitForKey<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: OnReject<ResBody>,
    ReqBody: Body + 'static,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = WaitFuture<S, R, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let judged = self.shared.gate.judge(&mut parts, Sight::First);
        let waiting = Waiting::begin(&self.shared, &self.room, &mut parts, judged);
        self.shared.hold(&mut self.inner, parts, body, waiting)
    }
}

impl<S: Clone, R> Clone for WaitForKey<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
            room: self.room.clone(),
        }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for WaitForKey<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForKey")
            .field("inner", &self.inner)
            .field("gate", &self.shared.gate)
            .finish_non_exhaustive()
    }
}
