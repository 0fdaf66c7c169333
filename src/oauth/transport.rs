//! The HTTP client of the user.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tower_service::Service;

use super::BoxError;
use crate::source::body;

/// The maximum length of a body.
pub(super) const MAX_BODY: usize = 64 * 1024;

type Send1 = dyn Fn(Request<Bytes>) -> Sending + Send + Sync;
type Sending = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

/// Sends a request, and reads the response.
#[derive(Clone)]
pub(super) struct Transport(Arc<Send1>);

/// A response.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// `None` if it is too large.
    pub(super) body: Option<Bytes>,
    /// Whether the client followed a redirect.
    pub(super) redirected: bool,
}

impl Transport {
    pub(super) fn service<S, B, R>(service: S) -> Self
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: From<Bytes> + Send + 'static,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        // Many services are `Send`, but not `Sync`.
        let service = Mutex::new(service);
        Self(Arc::new(move |request| {
            let shared = service.lock().unwrap_or_else(PoisonError::into_inner);
            let mut service = shared.clone();
            Box::pin(async move {
                poll_fn(|cx| service.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                let response = service.call(request.map(B::from)).await;
                read(response.map_err(Into::into)?, false).await
            })
        }))
    }

    #[cfg(feature = "reqwest")]
    pub(super) fn reqwest(client: reqwest::Client) -> Self {
        Self(Arc::new(move |request| {
            let client = client.clone();
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let url = reqwest::Url::parse(&head.uri.to_string())?;
                // reqwest follows a redirect with 307 or 308 only if it can send the body again. It
                // cannot send a stream again.
                let body = reqwest::Body::wrap(http_body_util::Full::new(body));
                let sent = client.post(url.clone()).headers(head.headers).body(body);
                let response = sent.send().await.map_err(reqwest::Error::without_url)?;
                let redirected = *response.url() != url;
                read(Response::<reqwest::Body>::from(response), redirected).await
            })
        }))
    }

    pub(super) async fn send(&self, request: Request<Bytes>) -> Result<Answer, BoxError> {
        (self.0)(request).await
    }
}

async fn read<R>(response: Response<R>, redirected: bool) -> Result<Answer, BoxError>
where
    R: Body + Send,
    R::Data: Send,
    R::Error: Into<BoxError>,
{
    let (head, body) = response.into_parts();
    let body = body::read(body, MAX_BODY).await.map_err(Into::into)?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: body.map(Bytes::from),
        redirected,
    })
}
