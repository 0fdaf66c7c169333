//! The layer for tower-http's `ValidateRequestHeaderLayer`.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response};
use tower_http::validate_request::ValidateRequest;

use super::layer::Shared;
use super::on_reject::{DefaultOnReject, OnReject};
use super::service::clone_fields;
use crate::verify::Sight;

/// The layer's verdict as a [`ValidateRequest`]; made by
/// [`into_validate_request`](super::ValidateJwtSvidLayer::into_validate_request).
///
/// It runs outside the span that the layer serves requests in, and it cannot read the request's
/// body: over HTTP/1.x, clients can lose the rejection of a request with a body. Rejections by an
/// extractor get the default response. Everything else works as in the layer.
pub struct JwtSvidValidateRequest<ResBody, R = DefaultOnReject> {
    shared: Arc<Shared<R>>,
    body: PhantomData<fn() -> ResBody>,
}

impl<ResBody, R> JwtSvidValidateRequest<ResBody, R> {
    pub(super) fn new(shared: Arc<Shared<R>>) -> Self {
        Self {
            shared,
            body: PhantomData,
        }
    }
}

impl<B, ResBody, R> ValidateRequest<B> for JwtSvidValidateRequest<ResBody, R>
where
    R: OnReject<ResBody>,
{
    type ResponseBody = ResBody;

    fn validate(&mut self, request: &mut Request<B>) -> Result<(), Response<ResBody>> {
        // The check needs owned parts, which a borrowed request does not have.
        let (mut parts, ()) = Request::new(()).into_parts();
        exchange(request, &mut parts);
        let checked = self.shared.gate.check(&mut parts, Sight::First);
        let answer = match self.shared.gate.apply(&mut parts, checked) {
            Ok(_) => Ok(()),
            Err(rejection) => Err(self.shared.reject(rejection, &parts)),
        };
        exchange(request, &mut parts);
        answer
    }
}

fn exchange<B>(request: &mut Request<B>, parts: &mut Parts) {
    use std::mem::swap;

    swap(request.method_mut(), &mut parts.method);
    swap(request.uri_mut(), &mut parts.uri);
    swap(request.version_mut(), &mut parts.version);
    swap(request.headers_mut(), &mut parts.headers);
    swap(request.extensions_mut(), &mut parts.extensions);
}

clone_fields!(<ResBody, R> JwtSvidValidateRequest<ResBody, R> { shared, body });

impl<ResBody, R> fmt::Debug for JwtSvidValidateRequest<ResBody, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JwtSvidValidateRequest")
            .field(&self.shared.gate)
            .finish()
    }
}
