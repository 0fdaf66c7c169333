//! Rejections made inside: by an extractor of an axum handler, or by a tonic method.
//!
//! The layer answers them as its own: through its `on_reject`, counted, logged, and with the
//! request's body drained. Only a request without a verified caller can be rejected that late.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response};

use super::caller::CallerState;
use super::layer::Shared;
use super::protocol::Wire;
use super::rejection::{HandlerRejection, OnReject};
use crate::bundle::BundleAnswer;

/// A drain of the body that the handler had.
pub(crate) type AnyDrain = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Looks at the response of the inner service.
pub(crate) trait Late<B>: Send + Sync {
    /// Returns the response, or the layer's own if a handler rejected the request; and what that
    /// response has to wait for.
    fn answer(self: Box<Self>, response: Response<B>) -> (Response<B>, Option<AnyDrain>);
}

struct Unverified<R> {
    shared: Arc<Shared<R>>,
    parts: Parts,
    kept: kept::Kept,
}

impl<R> Shared<R> {
    /// Prepares for a rejection by the handler, if this request can meet one.
    pub(crate) fn late<B, ReqBody>(
        self: &Arc<Self>,
        request: &mut Request<ReqBody>,
    ) -> Option<Box<dyn Late<B>>>
    where
        R: OnReject<B>,
        ReqBody: http_body::Body + 'static,
    {
        if !cfg!(any(feature = "axum", feature = "tonic")) {
            return None;
        }
        match CallerState::from_extensions(request.extensions()) {
            Some(state) if state.verified().is_none() => {}
            _ => return None,
        }
        // The handler consumes the request, and `on_reject` takes its parts.
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = request.method().clone();
        parts.uri = request.uri().clone();
        parts.version = request.version();
        parts.headers = request.headers().clone();
        parts.extensions = request.extensions().clone();
        Some(Box::new(Unverified {
            shared: self.clone(),
            kept: kept::Kept::new(request),
            parts,
        }))
    }
}

impl<B, R: OnReject<B>> Late<B> for Unverified<R> {
    fn answer(self: Box<Self>, response: Response<B>) -> (Response<B>, Option<AnyDrain>) {
        let Some(rejection) = HandlerRejection::of(&response) else {
            return (response, None);
        };
        let Self {
            shared,
            parts,
            kept,
        } = *self;
        let gate = &shared.gate;
        // The handler knows which protocol it speaks.
        let wire = Wire::of_content_type(response.headers()).unwrap_or(Wire::Http);
        let rejection = rejection.reworded(wire, &gate.realm, gate.uniform);
        let source = gate.validator.source();
        let is_known = |name: &str| matches!(source.bundle(name), BundleAnswer::Ready(_));
        gate.telemetry.refused(
            &rejection,
            true,
            is_known,
            gate.validator.accepted_audiences(),
        );
        let mut response = shared.refuse(rejection, &parts);
        let drain = kept.drain(&gate.drain, &parts, &mut response);
        (response, drain)
    }
}

#[cfg(not(any(feature = "axum", feature = "tonic")))]
mod kept {
    use super::*;
    use crate::server::drain::DrainLimits;

    /// Without these features no handler rejects.
    pub(super) struct Kept;

    impl Kept {
        pub(super) fn new<B>(_: &mut Request<B>) -> Self {
            Self
        }

        pub(super) fn drain<B>(
            self,
            _: &DrainLimits,
            _: &Parts,
            _: &mut Response<B>,
        ) -> Option<AnyDrain> {
            None
        }
    }
}

/// An HTTP/1 body that the handler drops unread, kept so that it can be drained.
#[cfg(any(feature = "axum", feature = "tonic"))]
mod kept {
    use std::any::Any;
    use std::mem::take;
    use std::sync::{Mutex, PoisonError};
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http::Version;
    use http_body::{Body, Frame, SizeHint};

    use super::*;
    use crate::server::drain::{DrainLimits, close};

    type Slot<B> = Arc<Mutex<Option<B>>>;

    /// The body types that can be replaced by a wrapped one of the same type. Others are dropped by
    /// the handler, and the response closes the connection.
    pub(super) enum Kept {
        /// The end of the body was seen, or HTTP/2 needs no drain.
        Unneeded,
        OfUnknownType,
        #[cfg(feature = "axum")]
        Axum(Slot<axum_core::body::Body>),
        #[cfg(feature = "tonic")]
        Tonic(Slot<tonic::body::Body>),
    }

    impl Kept {
        pub(super) fn new<B: Body + 'static>(request: &mut Request<B>) -> Self {
            if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
                return Self::Unneeded;
            }
            let body: &mut dyn Any = request.body_mut();
            #[cfg(feature = "axum")]
            if let Some(body) = body.downcast_mut::<axum_core::body::Body>() {
                let (kept, slot) = KeptBody::new(take(body));
                *body = axum_core::body::Body::new(kept);
                return Self::Axum(slot);
            }
            #[cfg(feature = "tonic")]
            if let Some(body) = body.downcast_mut::<tonic::body::Body>() {
                let (kept, slot) = KeptBody::new(take(body));
                *body = tonic::body::Body::new(kept);
                return Self::Tonic(slot);
            }
            let _ = body;
            Self::OfUnknownType
        }

        pub(super) fn drain<B>(
            self,
            limits: &DrainLimits,
            parts: &Parts,
            response: &mut Response<B>,
        ) -> Option<AnyDrain> {
            match self {
                Self::Unneeded => None,
                Self::OfUnknownType => {
                    close(response);
                    None
                }
                #[cfg(feature = "axum")]
                Self::Axum(slot) => drain(&slot, limits, parts, response),
                #[cfg(feature = "tonic")]
                Self::Tonic(slot) => drain(&slot, limits, parts, response),
            }
        }
    }

    /// If the slot is empty, the handler read the body to its end, or still holds it.
    fn drain<D, B>(
        slot: &Slot<D>,
        limits: &DrainLimits,
        parts: &Parts,
        response: &mut Response<B>,
    ) -> Option<AnyDrain>
    where
        D: Body + Send + 'static,
    {
        let body = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let drain = limits.begin(parts, body, response)?;
        Some(drain)
    }

    struct KeptBody<B: Body + Unpin> {
        inner: Option<B>,
        slot: Slot<B>,
    }

    impl<B: Body + Unpin> KeptBody<B> {
        fn new(inner: B) -> (Self, Slot<B>) {
            let slot = Slot::default();
            let kept = Self {
                inner: Some(inner),
                slot: slot.clone(),
            };
            (kept, slot)
        }
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
