use std::sync::Arc;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Error, Middleware, Next};

use super::audience::{Audience, AudienceError};
use super::caller;
use super::config::{Config, Decision, insert, withhold};
use super::deadline::Deadline;
use super::options::options;
use super::request::rejects_token;
use super::request::sealed::Request as _;
use crate::token::{Issue, SvidCache};

/// A middleware of `reqwest_middleware` that adds a fresh token to each request.
///
/// It is outside of `reqwest`'s redirects: `reqwest` removes `authorization` if a redirect leads to
/// another origin, and the next hop gets no token.
#[derive(Debug, Clone)]
pub struct JwtSvidMiddleware {
    config: Arc<Config>,
}

impl JwtSvidMiddleware {
    /// Adds tokens for these audiences to requests to their origins. Other requests are sent
    /// without a token.
    ///
    /// # Errors
    /// An origin is invalid or listed twice, an audience is empty, or there are no pairs.
    pub fn new<O: AsRef<str>, A: AsRef<str>>(
        source: impl Into<SvidCache>,
        audiences: impl IntoIterator<Item = (O, A)>,
    ) -> Result<Self, AudienceError> {
        Ok(Self::with_audience(source, Audience::map(audiences)?))
    }

    /// Adds tokens for this audience. An `Audience` in the extensions of a request
    /// (`with_extension`) replaces it for that request.
    pub fn with_audience(source: impl Into<SvidCache>, audience: Audience) -> Self {
        Self {
            config: Arc::new(Config::new(source.into(), audience)),
        }
    }
}

options!(JwtSvidMiddleware);

#[async_trait::async_trait]
impl Middleware for JwtSvidMiddleware {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response, Error> {
        let view = request.view();
        let decision = self
            .config
            .decide(view.destination, view.headers, Some(extensions));
        if let Some(caller) = caller::verified(extensions) {
            withhold(request.headers_mut(), &self.config.header, caller);
        }
        let issued = match decision {
            Decision::Pass => return next.run(request, extensions).await,
            Decision::Fail(error) => return Err(Error::middleware(error)),
            Decision::Token(Issue::Ready(issued)) => issued,
            Decision::Token(Issue::Wait(waiter)) => {
                let cache = &self.config.cache;
                let deadline = Deadline::of(request.headers(), cache);
                let issued = Deadline::limit(deadline, waiter, cache)
                    .settle()
                    .await
                    .map_err(Error::middleware)?;
                if let Some(deadline) = deadline {
                    let headers = request.headers_mut();
                    deadline
                        .set_left(headers, cache)
                        .map_err(Error::middleware)?;
                }
                issued
            }
        };
        insert(request.headers_mut(), &self.config.header, &issued).map_err(Error::middleware)?;
        let place = request.place();
        let response = next.run(request, extensions).await?;
        if rejects_token(&response, place) {
            issued.rejected();
        }
        Ok(response)
    }
}
