//! The source as a fetcher of tokens: what the cache asks.

use std::sync::Arc;

use super::shared::Shared;
use crate::svid::{FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason, SvidRequest};

/// Fetches over the source's connection. Holds no handle of the source.
pub(crate) struct Fetcher(Arc<Shared>);

impl Fetcher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl FetchSvid for Fetcher {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let shared = self.0.clone();
        let request = request.clone();
        Box::pin(async move { shared.fetch(&request).await })
    }
}

impl Shared {
    /// One call to the agent for one token.
    pub(crate) async fn fetch(
        &self,
        request: &SvidRequest,
    ) -> Result<crate::svid::JwtSvid, FetchSvidError> {
        let closed = || FetchSvidError::new(FetchSvidReason::Closed, "the source was shut down");
        if self.is_closed() {
            return Err(closed());
        }
        let began = self.clock.monotonic();
        let outcome = tokio::select! {
            biased;
            outcome = self.client.fetch_jwt_svid(request) => outcome,
            () = self.until_closing() => return Err(closed()),
        };
        let latency = self.clock.monotonic().saturating_sub(began);
        let word = outcome.as_ref().map_or_else(|error| error.kind(), |_| "ok");
        self.metrics.record_svid_fetch(word, latency);
        outcome.map_err(|error| {
            if self.is_closed() {
                closed()
            } else {
                error.into()
            }
        })
    }
}
