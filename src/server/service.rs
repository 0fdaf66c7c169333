//! The service of the layer.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::future::ResponseFuture;
use super::layer::Shared;
use super::on_reject::{DefaultOnReject, OnReject};
use crate::verify::Sight;

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

/// Accessors to the inner service, as in tower's middleware.
macro_rules! inner_accessors {
    ($type:ident<S $(, $generic:ident)?>) => {
        impl<S $(, $generic)?> $type<S $(, $generic)?> {
            /// Returns a reference to the inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// Returns a mutable reference to the inner service.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Returns the inner service.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
pub(super) use inner_accessors;

/// `Clone` without the bound `R: Clone` of a derive: the function that responds is shared.
macro_rules! clone_fields {
    (<$($param:ident $(: $bound:ident)?),+> $type:ty { $($field:ident),+ }) => {
        impl<$($param $(: $bound)?),+> Clone for $type {
            fn clone(&self) -> Self {
                Self {
                    $($field: self.$field.clone()),+
                }
            }
        }
    };
}
pub(super) use clone_fields;

inner_accessors!(ValidateJwtSvid<S, R>);
clone_fields!(<S: Clone, R> ValidateJwtSvid<S, R> { inner, shared });

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ValidateJwtSvid<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: OnReject<ResBody>,
    ReqBody: Body + 'static,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let checked = self.shared.gate.check(&mut parts, Sight::First);
        self.shared.act(&mut self.inner, parts, body, checked)
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
