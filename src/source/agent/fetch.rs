//! Fetches tokens over the connection of the source, for its cache.

use std::sync::Arc;

use super::shared::Shared;
use crate::clock::Clock as _;
use crate::token::TokenErrorReason;
use crate::token::{
    FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason, JwtSvid, SvidRequest,
};
use crate::workload_api::{WorkloadApiError, WorkloadApiErrorReason};

/// For the cache of the source. Holds no handle of the source.
pub(super) struct Fetcher(pub(super) Arc<Shared>);

impl FetchSvid for Fetcher {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let shared = self.0.clone();
        let request = request.clone();
        Box::pin(async move { shared.fetch(&request).await })
    }
}

impl Shared {
    /// One call to the agent for one token.
    pub(crate) async fn fetch(&self, request: &SvidRequest) -> Result<JwtSvid, FetchSvidError> {
        let closed = || FetchSvidError::new(FetchSvidReason::Closed, "the source was shut down");
        if self.is_closed() {
            return Err(closed());
        }
        let outcome = tokio::select! {
            biased;
            outcome = self.ask(request) => outcome,
            () = self.until_closing() => return Err(closed()),
        };
        match &outcome {
            Ok(_) => self.answered(true),
            Err(error) if error.is_answer() => self.answered(false),
            Err(_) => {}
        }
        outcome.map_err(|error| {
            if self.is_closed() {
                closed()
            } else {
                error.into()
            }
        })
    }

    /// Fetches by SPIFFE ID if the hint of the request was resolved before, else by hint. Also by hint
    /// if it belongs to another identity now.
    async fn ask(&self, request: &SvidRequest) -> Result<JwtSvid, WorkloadApiError> {
        let Some(hint) = request.hint() else {
            return self.client.fetch_jwt_svid(request).await;
        };
        if let Some(id) = self.hints.get(hint) {
            match self.client.fetch_jwt_svid_of(request, hint, &id).await {
                Ok(Some(svid)) => return Ok(svid),
                Ok(None) => {}
                // That identity is no longer registered; another may have its hint.
                Err(error) if error.reason() == WorkloadApiErrorReason::PermissionDenied => {}
                Err(error) => return Err(error),
            }
        }
        let svid = self.client.fetch_jwt_svid(request).await?;
        self.hints.learn(hint, svid.spiffe_id());
        Ok(svid)
    }

    /// As [`fetch`](Self::fetch), and records it. The cache records its own calls.
    pub(crate) async fn fetch_counted(
        &self,
        request: &SvidRequest,
    ) -> Result<JwtSvid, FetchSvidError> {
        let began = self.clock.monotonic();
        let outcome = self.fetch(request).await;
        let latency = self.clock.monotonic().saturating_sub(began);
        let word = outcome.as_ref().map_or_else(
            |error| TokenErrorReason::of(error.reason()).as_str(),
            |_| "ok",
        );
        self.metrics.record_svid_fetch(word, latency);
        outcome
    }
}
