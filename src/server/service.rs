//! The service: one request at a time.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::future::ResponseFuture;
use super::layer::Shared;
use super::rejection::{DefaultOnReject, OnReject};

/// The service that a [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer) makes.
pub struct ValidateJwtSvid<S, R = DefaultOnReject> {
    inner: S,
    shared: Arc<Shared<R>>,
}

impl<S, R> ValidateJwtSvid<S, R> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<R>>) -> Self {
        Self { inner, shared }
    }
}

/// What tower's middleware has: the way to the service beneath.
macro_rules! beneath {
    ($type:ident<S $(, $generic:ident)?>) => {
        impl<S $(, $generic)?> $type<S $(, $generic)?> {
            /// The service beneath.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// The service beneath.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// The service beneath, freed of this one.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
pub(super) use beneath;

beneath!(ValidateJwtSvid<S, R>);

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ValidateJwtSvid<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    R: OnReject<ResBody>,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        match self.shared.gate.admit(&mut parts) {
            Ok(span) => {
                let request = Request::from_parts(parts, body);
                let future = span.in_scope(|| self.inner.call(request));
                ResponseFuture::inner(future, span)
            }
            Err(rejection) => ResponseFuture::refused(self.shared.refuse(rejection, &parts)),
        }
    }
}

impl<S: Clone, R> Clone for ValidateJwtSvid<S, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for ValidateJwtSvid<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtSvid")
            .field("inner", &self.inner)
            .field("gate", &self.shared.gate)
            .finish()
    }
}
