use std::sync::Arc;

use http::header::HeaderName;
use tower_layer::Layer;

use super::audience::{Audience, AudienceError};
use super::config::{Config, OnExisting, Plaintext};
use super::service::AddJwtSvid;
use crate::spiffe_id::SpiffeId;
use crate::svid_cache::SvidCache;

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

/// The options, the same on the layer, the service, the middleware and the interceptor.
macro_rules! options {
    ($type:ty $(, $generic:ident)?) => {
        impl $(<$generic>)? $type {
            /// Puts the token into this header instead of `authorization`, where that belongs to
            /// somebody else's token, such as the end user's. The server must look there too.
            /// A 401 may then be about the other token; ours is refreshed all the same, not more
            /// than once per 10 s.
            ///
            /// **Mind redirects**: a client that follows them takes `authorization` off when it
            /// goes to another host, but knows nothing of this header. Switch redirects off in the
            /// client beneath, or put this beneath what follows them.
            #[must_use]
            pub fn header(mut self, name: HeaderName) -> Self {
                Arc::make_mut(&mut self.config).set_header(name);
                self
            }

            /// What to do with a request that has the header already: [`OnExisting::Keep`] by
            /// default.
            #[must_use]
            pub fn on_existing(mut self, on_existing: OnExisting) -> Self {
                Arc::make_mut(&mut self.config).set_on_existing(on_existing);
                self
            }

            /// Refuses requests to origins that no token may go to, whatever header they have; by
            /// default they pass without a token, and are counted.
            #[must_use]
            pub fn strict(mut self) -> Self {
                Arc::make_mut(&mut self.config).set_strict();
                self
            }

            /// Lets tokens go in the clear, as far as this says. By default they go by https alone.
            #[must_use]
            pub fn allow_plaintext(mut self, plaintext: Plaintext) -> Self {
                Arc::make_mut(&mut self.config).set_plaintext(plaintext);
                self
            }

            /// Asks for tokens of this identity, for all audiences, those in the extensions of
            /// requests too where they name none of their own. Where several identities are
            /// registered for a workload, SPIRE's order is arbitrary, and which one comes first
            /// may change: name the one that the callee admits.
            #[must_use]
            pub fn spiffe_id(mut self, id: SpiffeId) -> Self {
                let config = Arc::make_mut(&mut self.config);
                config.set_audience(config.audience().clone().spiffe_id(id));
                self
            }

            /// Asks for tokens of the identity with this hint, for all audiences, as
            /// [`spiffe_id`](Self::spiffe_id) does.
            ///
            /// # Errors
            /// The hint is empty.
            pub fn hint(mut self, hint: &str) -> Result<Self, AudienceError> {
                let config = Arc::make_mut(&mut self.config);
                config.set_audience(config.audience().clone().hint(hint)?);
                Ok(self)
            }
        }
    };
}
pub(super) use options;

options!(AddJwtSvidLayer);
