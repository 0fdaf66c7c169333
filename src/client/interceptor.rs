use std::sync::Arc;

use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::audience::Audience;
use super::caller;
use super::config::{Config, Decision, insert, withhold};
use super::options::options;
use super::origin::Destination;
use crate::token::{SvidCache, TokenError, TokenErrorReason};

/// A tonic interceptor that adds a cached token to each call.
///
/// An interceptor cannot wait: while there is no token, calls fail with UNAVAILABLE, with any
/// deadline. Keep the audience warm ([`SvidCache::keep_warm`]), or use
/// [`AddJwtSvid`](super::AddJwtSvid) around the channel: it waits, and sees rejected tokens.
#[derive(Debug, Clone)]
pub struct JwtSvidInterceptor {
    config: Arc<Config>,
}

impl JwtSvidInterceptor {
    /// Adds tokens of `source` to calls. An interceptor does not see the origin, so the audience
    /// must state it: [`UnboundAudience::assume_origin`](super::UnboundAudience::assume_origin).
    pub fn new(source: impl Into<SvidCache>, audience: Audience) -> Self {
        Self {
            config: Arc::new(Config::new(source.into(), audience)),
        }
    }
}

options!(JwtSvidInterceptor);

impl Interceptor for JwtSvidInterceptor {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let mut headers = metadata.into_headers();
        let destination = Destination::Read(Ok(None));
        let decision = self.config.decide(destination, &headers, Some(&extensions));
        if let Some(caller) = caller::verified(&extensions) {
            withhold(&mut headers, &self.config.header, caller);
        }
        match decision {
            Decision::Pass => {}
            Decision::Fail(error) => return Err(error.into()),
            Decision::Token(issue) => {
                let issued = issue.at_once().ok_or_else(not_cached_yet)?;
                insert(&mut headers, &self.config.header, &issued)?;
            }
        }
        let metadata = tonic::metadata::MetadataMap::from_headers(headers);
        Ok(Request::from_parts(metadata, extensions, message))
    }
}

fn not_cached_yet() -> TokenError {
    TokenError::new(
        TokenErrorReason::Unavailable,
        "there is no token yet, and an interceptor cannot wait for it; it is being fetched, so retry \
         later, or keep the audience warm",
    )
}
