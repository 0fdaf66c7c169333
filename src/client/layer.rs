use std::sync::Arc;

use tower_layer::Layer;

use super::audience::Audience;
use super::config::{Config, options};
use super::service::AddJwtSvid;
use crate::token::SvidCache;

/// Wraps services in [`AddJwtSvid`]: each request gets a fresh token for where it goes.
///
/// See the [module](crate::client) for an example, and for where in a stack it belongs.
///
/// A token is never sent past its end, however long the service beneath takes to become ready. What
/// happens to a request after it was handed to that service is out of our hands: in the queue of a
/// `Buffer` beneath, a token grows older.
#[derive(Debug, Clone)]
pub struct AddJwtSvidLayer {
    config: Arc<Config>,
}

impl AddJwtSvidLayer {
    /// Signs requests with tokens of `source` (a `JwtSource`, or a [`SvidCache`] over a fetcher of
    /// your own) for `audience`.
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
    /// The layer that makes these.
    pub fn layer(source: impl Into<SvidCache>, audience: Audience) -> AddJwtSvidLayer {
        AddJwtSvidLayer::new(source, audience)
    }
}
