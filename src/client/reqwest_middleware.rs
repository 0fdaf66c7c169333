use http::Extensions;
use http::header::HeaderName;
use reqwest::{Request, Response};
use reqwest_middleware::{Error, Middleware, Next, Result};

use super::audience::{Audience, AudienceError};
use super::config::{Config, Decision, OnExisting, Plaintext, insert};
use super::no_room;
use super::request::refuses;
use super::request::sealed::Request as _;
use crate::svid_cache::SvidCache;

/// A middleware of `reqwest_middleware` that puts a fresh token into each request.
///
/// It stands above `reqwest`'s redirects: `reqwest` takes `authorization` off where a redirect
/// leads to another origin, and the next hop gets no token.
#[derive(Debug, Clone)]
pub struct JwtSvidMiddleware {
    config: Config,
}

impl JwtSvidMiddleware {
    /// Signs requests to these origins for these audiences; others pass without a token.
    ///
    /// # Errors
    /// A text that is no origin, an origin named twice, an empty audience, or none at all.
    pub fn new<O: AsRef<str>, A: AsRef<str>>(
        source: impl Into<SvidCache>,
        audiences: impl IntoIterator<Item = (O, A)>,
    ) -> std::result::Result<Self, AudienceError> {
        Ok(Self::with_audience(source, Audience::map(audiences)?))
    }

    /// Signs requests for this audience. One in the extensions of a request
    /// (`with_extension`) takes its place for that request.
    pub fn with_audience(source: impl Into<SvidCache>, audience: Audience) -> Self {
        Self {
            config: Config::new(source.into(), audience),
        }
    }

    /// Puts the token into this header instead of `authorization`, where that belongs to somebody
    /// else's token, such as the end user's. The server must look there too.
    ///
    /// **Mind redirects**: `reqwest` follows them, and takes `authorization` off when it goes to
    /// another host, but knows nothing of this header. Build the client with
    /// `redirect(Policy::none())`.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.config.set_header(name);
        self
    }

    /// What to do with a request that has the header already: [`OnExisting::Keep`] by default.
    #[must_use]
    pub fn on_existing(mut self, on_existing: OnExisting) -> Self {
        self.config.set_on_existing(on_existing);
        self
    }

    /// Refuses requests to origins that no token may go to, whatever header they have; by default
    /// they pass without a token, and are counted.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.config.set_strict();
        self
    }

    /// Lets tokens go in the clear, as far as this says. By default they go by https alone.
    #[must_use]
    pub fn allow_plaintext(mut self, plaintext: Plaintext) -> Self {
        self.config.set_plaintext(plaintext);
        self
    }
}

#[async_trait::async_trait]
impl Middleware for JwtSvidMiddleware {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let view = request.view();
        let issued = match self
            .config
            .decide(view.target, view.headers, Some(extensions))
        {
            Decision::Pass => return next.run(request, extensions).await,
            Decision::Fail(error) => return Err(Error::middleware(error)),
            Decision::Token(issue) => issue.settle().await.map_err(Error::middleware)?,
        };
        if !insert(request.headers_mut(), self.config.header(), issued.header()) {
            return Err(Error::middleware(no_room()));
        }
        let place = request.place();
        let response = next.run(request, extensions).await?;
        if refuses(&response, place) {
            issued.refused();
        }
        Ok(response)
    }
}
