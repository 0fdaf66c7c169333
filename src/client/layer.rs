use std::sync::Arc;

use tower_layer::Layer;

use super::audience::Audience;
use super::config::Config;
use super::options::options;
use super::service::AddJwtSvid;
use crate::token::SvidCache;

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
