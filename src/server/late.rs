//! Rejections by code inside the layer: an extractor of an axum handler, a tonic method, or a
//! middleware of the user ([`Rejection::denied`](super::Rejection::denied)).
//!
//! The layer replaces them with its own: it calls its `on_reject`, counts and logs. If the caller
//! is not verified, it also drains the request's body. A middleware supplies the request that it
//! rejects, so requests of verified callers need no copy.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Request, Response, Version};

use super::drain;
use super::layer::Shared;
use super::on_reject::OnReject;
use super::protocol::Wire;
use super::rejection::{HandlerRejection, Rejection};

/// A drain of the body that the handler received.
pub(crate) type AnyDrain = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Checks the response of the inner service.
pub(crate) trait Late<B>: Send + Sync {
    /// Returns the response, or the layer's own if the request was rejected inside, and the drain
    /// that it has to wait for.
    fn answer(self: Arc<Self>, response: Response<B>) -> (Response<B>, Option<AnyDrain>);
}

struct Unverified<R> {
    shared: Arc<Shared<R>>,
    parts: Parts,
    kept: Option<kept::Kept>,
}

impl<R> Shared<R> {
    /// Prepares for a rejection by code inside the layer.
    pub(crate) fn late<B, ReqBody>(
        self: &Arc<Self>,
        request: &mut Request<ReqBody>,
        is_verified: bool,
    ) -> Arc<dyn Late<B>>
    where
        R: OnReject<B>,
        ReqBody: http_body::Body + 'static,
    {
        if is_verified || !cfg!(any(feature = "axum", feature = "tonic")) {
            return self.clone();
        }
        // The handler consumes the request, and `on_reject` takes its parts.
        Arc::new(Unverified {
            shared: self.clone(),
            parts: copied_parts(request),
            kept: kept::keep(request),
        })
    }

    fn answer_rejection<B>(&self, rejection: Rejection, parts: &Parts, wire: Wire) -> Response<B>
    where
        R: OnReject<B>,
    {
        let gate = &self.gate;
        let rejection = rejection.reworded(wire, &gate.access.realm, gate.uniform);
        gate.record_rejection(&rejection, true);
        self.reject(rejection, parts)
    }
}

/// Copies the parts of a request that is forwarded.
pub(crate) fn copied_parts<B>(request: &Request<B>) -> Parts {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    parts.extensions = request.extensions().clone();
    parts
}

/// Replaces the response of a middleware that supplied the request it rejects.
impl<B, R: OnReject<B>> Late<B> for Shared<R> {
    fn answer(self: Arc<Self>, response: Response<B>) -> (Response<B>, Option<AnyDrain>) {
        let Some((rejection, Some(parts))) =
            HandlerRejection::of(&response).map(Rejection::take_request)
        else {
            return (response, None);
        };
        let wire = self.gate.access.wire(&parts);
        let mut response = self.answer_rejection(rejection, &parts, wire);
        // The inner service had the body, and may not have read it.
        let has_body = parts.headers.contains_key(TRANSFER_ENCODING)
            || parts
                .headers
                .get(CONTENT_LENGTH)
                .is_some_and(|length| length != "0");
        if has_body && parts.version < Version::HTTP_2 {
            drain::close(response.headers_mut());
        }
        (response, None)
    }
}

impl<B, R: OnReject<B>> Late<B> for Unverified<R> {
    fn answer(self: Arc<Self>, response: Response<B>) -> (Response<B>, Option<AnyDrain>) {
        let rejection = HandlerRejection::of(&response);
        let (Some(rejection), Some(unverified)) = (rejection, Arc::into_inner(self)) else {
            return (response, None);
        };
        let Self {
            shared,
            parts,
            kept,
        } = unverified;
        let (rejection, given) = rejection.take_request();
        let wire = match &given {
            Some(parts) => shared.gate.access.wire(parts),
            // The protocol of the handler's response is used.
            None => Wire::of_content_type(response.headers()).unwrap_or(Wire::Http),
        };
        let seen = given.as_deref().unwrap_or(&parts);
        let mut response = shared.answer_rejection(rejection, seen, wire);
        let limits = &shared.gate.access.drain;
        let drain = kept.and_then(|kept| kept(limits, &parts, response.headers_mut()));
        (response, drain)
    }
}

/// An HTTP/1 body that the handler drops unread, kept so that it can be drained.
#[cfg_attr(
    not(any(feature = "axum", feature = "tonic")),
    allow(unused, reason = "then no handler rejects")
)]
mod kept {
    use std::any::Any;
    use std::mem::take;
    use std::sync::{Mutex, PoisonError};
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http::{HeaderMap, Version};
    use http_body::{Body, Frame, SizeHint};

    use super::*;
    use crate::server::drain::{DrainLimits, close};

    type Slot<B> = Arc<Mutex<Option<B>>>;

    /// Returns the drain of the body, or closes the connection if it cannot be drained.
    pub(super) type Kept =
        Box<dyn FnOnce(&DrainLimits, &Parts, &mut HeaderMap) -> Option<AnyDrain> + Send + Sync>;

    /// Keeps the body if a wrapped one of the same type can replace it. Others are dropped by the
    /// handler, and the response closes the connection. `None` if the end of the body was seen, or
    /// HTTP/2 needs no drain.
    pub(super) fn keep<B: Body + 'static>(request: &mut Request<B>) -> Option<Kept> {
        if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
            return None;
        }
        let body: &mut dyn Any = request.body_mut();
        #[cfg(feature = "axum")]
        if let Some(body) = body.downcast_mut() {
            return Some(keep_body(body, axum_core::body::Body::new));
        }
        #[cfg(feature = "tonic")]
        if let Some(body) = body.downcast_mut() {
            return Some(keep_body(body, tonic::body::Body::new));
        }
        let _ = body;
        Some(Box::new(|_, _, headers| {
            close(headers);
            None
        }))
    }

    fn keep_body<B>(body: &mut B, wrapped: impl FnOnce(KeptBody<B>) -> B) -> Kept
    where
        B: Body<Data = Bytes> + Default + Send + Unpin + 'static,
    {
        let slot = Slot::default();
        *body = wrapped(KeptBody {
            inner: Some(take(body)),
            slot: slot.clone(),
        });
        Box::new(move |limits, parts, headers| {
            // If it is empty, the handler read the body to its end, or still holds it.
            let body = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let drain = limits.begin(parts, body, headers)?;
            Some(drain)
        })
    }

    struct KeptBody<B: Body + Unpin> {
        inner: Option<B>,
        slot: Slot<B>,
    }

    impl<B: Body<Data = Bytes> + Unpin> Body for KeptBody<B> {
        type Data = Bytes;
        type Error = B::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
            let Some(inner) = &mut self.inner else {
                return Poll::Ready(None);
            };
            let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
            if frame.is_none() {
                self.inner = None;
            }
            Poll::Ready(frame)
        }

        fn is_end_stream(&self) -> bool {
            self.inner.as_ref().is_none_or(Body::is_end_stream)
        }

        fn size_hint(&self) -> SizeHint {
            self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
        }
    }

    impl<B: Body + Unpin> Drop for KeptBody<B> {
        fn drop(&mut self) {
            let unread = self.inner.take().filter(|inner| !inner.is_end_stream());
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = unread;
        }
    }
}
