use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::BoxError;
use super::audience::Audience;
use super::caller;
use super::config::{Config, Decision, insert, withhold};
use super::deadline::Deadline;
use super::future::{Held, ResponseFuture};
use super::options::options;
use super::request::{IncomingResponse, OutgoingRequest};
use crate::token::{Issue, SvidCache};

/// Adds a fresh token to each request. Made by [`AddJwtSvidLayer`](super::AddJwtSvidLayer).
#[derive(Debug, Clone)]
#[doc(alias = "middleware")]
#[doc(alias = "interceptor")]
pub struct AddJwtSvid<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> AddJwtSvid<S> {
    /// Adds tokens of `source` (a `JwtSource`, or a [`SvidCache`] over your own fetcher) for
    /// `audience` to requests to `inner`.
    pub fn new(inner: S, source: impl Into<SvidCache>, audience: Audience) -> Self {
        Self::with_config(inner, Arc::new(Config::new(source.into(), audience)))
    }

    pub(super) fn with_config(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }

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

options!(AddJwtSvid<S>, S);

impl<S, R> Service<R> for AddJwtSvid<S>
where
    S: Service<R> + Clone,
    S::Error: Into<BoxError>,
    S::Response: IncomingResponse,
    R: OutgoingRequest,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: R) -> Self::Future {
        let view = request.view();
        let caller = view.extensions.and_then(caller::verified).cloned();
        let decision = self
            .config
            .decide(view.destination, view.headers, view.extensions);
        if let Some(caller) = &caller {
            withhold(request.headers_to_change(), &self.config.header, caller);
        }
        match decision {
            Decision::Pass => ResponseFuture::sent(self.inner.call(request), None),
            Decision::Token(Issue::Ready(issued)) => {
                if let Err(error) =
                    insert(request.headers_to_change(), &self.config.header, &issued)
                {
                    drop(self.give_up());
                    return ResponseFuture::failed(error);
                }
                let place = request.place();
                ResponseFuture::sent(self.inner.call(request), Some((issued, place)))
            }
            Decision::Token(Issue::Wait(waiter)) => {
                let deadline = Deadline::of(request.view().headers, &self.config.cache);
                let held = Held {
                    inner: self.give_up(),
                    request,
                    header: self.config.header.clone(),
                    cache: self.config.cache.clone(),
                    asked: waiter.request().clone(),
                    deadline,
                };
                ResponseFuture::waiting(waiter, held)
            }
            Decision::Fail(error) => {
                drop(self.give_up());
                ResponseFuture::failed(error)
            }
        }
    }
}

impl<S: Clone> AddJwtSvid<S> {
    /// Drops the ready service and returns a clone that is not ready yet.
    ///
    /// A ready service may hold a permit or a place in a queue. If it were held during a fetch,
    /// other requests could not use it. With a concurrency limit of one, no request could continue.
    fn give_up(&mut self) -> S {
        let fresh = self.inner.clone();
        drop(mem::replace(&mut self.inner, fresh.clone()));
        fresh
    }
}

/// Wraps services in [`AddJwtSvid`]: each request gets a fresh token for its destination.
///
/// See the [module docs](crate::client) for an example and for the position of the layer in a
/// stack.
///
/// An expired token is never sent, even if the inner service takes long to become ready. This does
/// not hold after the request was passed to the inner service: a token can expire in the queue of
/// an inner `Buffer`.
#[derive(Debug, Clone)]
#[doc(alias = "middleware")]
#[doc(alias = "bearer")]
#[doc(alias = "proxy")]
#[doc(alias = "gateway")]
pub struct AddJwtSvidLayer {
    config: Arc<Config>,
}

impl AddJwtSvidLayer {
    /// Creates a layer that adds tokens of `source` (a `JwtSource`, or a [`SvidCache`] over your
    /// own fetcher) for `audience`.
    pub fn new(source: impl Into<SvidCache>, audience: Audience) -> Self {
        Self {
            config: Arc::new(Config::new(source.into(), audience)),
        }
    }
}

impl<S> Layer<S> for AddJwtSvidLayer {
    type Service = AddJwtSvid<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AddJwtSvid::with_config(inner, self.config.clone())
    }
}

options!(AddJwtSvidLayer);

impl<S> AddJwtSvid<S> {
    /// Creates the layer that makes this service.
    pub fn layer(source: impl Into<SvidCache>, audience: Audience) -> AddJwtSvidLayer {
        AddJwtSvidLayer::new(source, audience)
    }
}
