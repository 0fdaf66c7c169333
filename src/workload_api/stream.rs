//! The bundle stream without reconnection.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use tokio::time::Instant;

use super::bundles::JwtBundlesMessage;
use super::channel::{Line, Numbered};
use super::error::{Call, WorkloadApiError, WorkloadApiErrorReason as Reason};
use crate::presentable::debug_fields;

/// An open `FetchJWTBundles` stream. It ends when the agent ends it (`None`), or with an error;
/// the caller opens another one, with backoff (Workload API section 4.2).
pub struct JwtBundleStream {
    inner: tonic::Streaming<JwtBundlesMessage>,
    line: Arc<Line>,
    over: Arc<Numbered>,
    // When the first message must have arrived; `None` once it has.
    first_by: Option<Pin<Box<tokio::time::Sleep>>>,
    ended: bool,
}

impl JwtBundleStream {
    pub(crate) fn new(
        inner: tonic::Streaming<JwtBundlesMessage>,
        line: Arc<Line>,
        over: Arc<Numbered>,
        first_by: Option<Instant>,
    ) -> Self {
        // On the runtime of the connection, which may outlive that of this call.
        let _inside = line.runtime().enter();
        let first_by = first_by.map(|by| Box::pin(tokio::time::sleep_until(by)));
        Self {
            inner,
            line,
            over,
            first_by,
            ended: false,
        }
    }

    /// Returns the next message; `None` if the agent ended the stream without an error.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// The stream broke, or the first message did not arrive in time.
    pub async fn message(&mut self) -> Result<Option<JwtBundlesMessage>, WorkloadApiError> {
        self.next().await.transpose()
    }

    /// The generation of the connection of this stream.
    pub(crate) fn generation(&self) -> u64 {
        self.over.generation
    }
}

impl Stream for JwtBundleStream {
    type Item = Result<JwtBundlesMessage, WorkloadApiError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        const CALL: Call = Call::FetchJwtBundles;
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let outcome = match pin!(&mut this.inner).poll_next(cx) {
            Poll::Ready(Some(Ok(message))) => {
                this.first_by = None;
                return Poll::Ready(Some(Ok(message)));
            }
            Poll::Ready(Some(Err(status))) => {
                let (place, not_http2) = (this.line.place(), this.line.pulse().not_http2());
                Some(WorkloadApiError::from_status(
                    CALL, place, not_http2, &status, None,
                ))
            }
            Poll::Ready(None) => None,
            Poll::Pending => match &mut this.first_by {
                Some(first_by) => {
                    std::task::ready!(first_by.as_mut().poll(cx));
                    let within = this.line.timing().first_message;
                    let place = this.line.place();
                    let text = format!(
                        "the agent at {place} sent no bundles within {within:?}; check that it is healthy"
                    );
                    Some(WorkloadApiError::new(CALL, Reason::Timeout, text))
                }
                None => return Poll::Pending,
            },
        };
        this.ended = true;
        if let Some(error) = &outcome
            && error.casts_doubt_on_connection()
        {
            this.line.doubt(this.over.generation);
        }
        Poll::Ready(outcome.map(Err))
    }
}

debug_fields!(JwtBundleStream, |it| { endpoint: it.line.place(), ended: it.ended });
