//! The service of the layer.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::Asking;
use super::future::{AskPolicyFuture, Question};
use crate::server::on_reject::{DefaultOnReject, OnReject};
use crate::verify::Sight;

/// The service that an [`AskPolicyLayer`](super::AskPolicyLayer) makes.
pub struct AskPolicyService<S, R = DefaultOnReject> {
    inner: S,
    asking: Arc<Asking<R>>,
}

impl<S, R> AskPolicyService<S, R> {
    pub(super) fn new(inner: S, asking: Arc<Asking<R>>) -> Self {
        Self { inner, asking }
    }
}

crate::server::service::inner_accessors!(AskPolicyService<S, R>);

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for AskPolicyService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: OnReject<ResBody>,
    ReqBody: Body + 'static,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = AskPolicyFuture<S, R, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let shared = &self.asking.shared;
        let judged = shared.gate.judge(&mut parts, Sight::First);
        let question = Question::begin(&self.asking, &parts, judged);
        shared.hold(&mut self.inner, parts, body, question)
    }
}

impl<S: Clone, R> Clone for AskPolicyService<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            asking: self.asking.clone(),
        }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for AskPolicyService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskPolicyService")
            .field("inner", &self.inner)
            .field("gate", &self.asking.shared.gate)
            .finish_non_exhaustive()
    }
}
