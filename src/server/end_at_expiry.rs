//! Ends responses when the caller's token expires.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use super::caller::CallerState;
use super::grpc_web_frames::{GrpcWebFrames, Place, TRAILERS};
use super::protocol::Wire;
use super::reason::RejectionReason;
use super::telemetry::Telemetry;
use crate::clock::{Clock, UnixTime};
use crate::identity::SpiffeId;
use crate::metrics::MetricsRecorder;
use crate::runtime::{self, Missing};
use crate::verify::{ValidateReason, Validator};

/// The longest timer. After it, the wall clock is read again, because it may have been stepped.
const MAX_SLEEP: Duration = Duration::from_secs(30);

const EXPIRED: RejectionReason = RejectionReason::Token(ValidateReason::Expired);

/// Ends the responses that are still being sent when the caller's token expires (plus the leeway).
///
/// | request and response | end |
/// | --- | --- |
/// | both gRPC (POST over HTTP/2, both content types `application/grpc`) | status 16 (`UNAUTHENTICATED`) in the trailers |
/// | both gRPC-Web (POST, both content types `application/grpc-web`) | status 16 in the last frame; within a message that is sent in part, an error |
/// | anything else | an error of the body, which the client sees |
///
/// The content type of the response alone is not enough: a file of type `application/grpc` ends
/// with an error. The error breaks the chunked body, the body with a `content-length`, or the
/// HTTP/2 stream. The exception is an HTTP/1.0 response without a length, which lasts until the
/// connection closes: when it is cut, it looks complete. Give such responses a `content-length`.
///
/// Put it outside of a layer that translates gRPC-Web to gRPC (`tonic_web::GrpcWebLayer`): inside,
/// gRPC-Web calls over HTTP/1.1 end with an error.
///
/// Put it inside a [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer): it uses the identity set by
/// that layer; anonymous callers are unaffected. If that layer is missing from the stack, no response
/// is ended, and one error is logged. It does not end request bodies or upgraded connections (a
/// WebSocket): check [`expires_at`](crate::verify::VerifiedSvid::expires_at) there.
///
/// Ended responses are logged: at most one line every ten seconds, with one of the callers.
///
/// It needs a tokio runtime with timers, and a body whose data type is [`Bytes`].
#[derive(Clone)]
pub struct EndAtExpiryLayer {
    shared: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    clock: Arc<dyn Clock>,
    leeway: Duration,
    telemetry: Telemetry,
    /// The missing layer was logged.
    logged_not_wired: Arc<AtomicBool>,
}

/// The service that an [`EndAtExpiryLayer`] makes.
#[derive(Debug, Clone)]
pub struct EndAtExpiry<S> {
    inner: S,
    layer: EndAtExpiryLayer,
}

/// The error of a response that ended because the caller's token expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenExpired;

// === impl EndAtExpiryLayer ===

impl EndAtExpiryLayer {
    /// Creates the layer with the clock, the leeway and the recorder of this validator.
    pub fn new(validator: &Validator) -> Self {
        Self {
            shared: Arc::new(Settings {
                clock: validator.clock().clone(),
                leeway: validator.leeway(),
                telemetry: Telemetry::of(validator),
                logged_not_wired: Arc::default(),
            }),
        }
    }

    /// Sets the recorder of ended responses. The default is the recorder of the validator.
    #[must_use]
    pub fn metrics(self, recorder: Arc<dyn MetricsRecorder>) -> Self {
        self.configured(|telemetry| telemetry.set_recorder(recorder))
    }

    /// Sets the interval in which at most one log line is written. The default is ten seconds.
    #[must_use]
    pub fn log_interval(self, interval: Duration) -> Self {
        self.configured(|telemetry| telemetry.set_log_interval(interval))
    }

    fn configured(mut self, change: impl FnOnce(&mut Telemetry)) -> Self {
        change(&mut Arc::make_mut(&mut self.shared).telemetry);
        self
    }
}

impl<S> Layer<S> for EndAtExpiryLayer {
    type Service = EndAtExpiry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EndAtExpiry {
            inner,
            layer: self.clone(),
        }
    }
}

impl fmt::Debug for EndAtExpiryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndAtExpiryLayer")
            .field("leeway", &self.shared.leeway)
            .finish()
    }
}

// === impl EndAtExpiry ===

super::service::inner_accessors!(EndAtExpiry<S>);

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for EndAtExpiry<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<EndAtExpiryBody<ResBody>>;
    type Error = S::Error;
    type Future = EndAtExpiryFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let state = CallerState::from_extensions(request.extensions());
        let logged = &self.layer.shared.logged_not_wired;
        // Without this line, a missing layer would go unnoticed.
        if state.is_none() && !logged.swap(true, Ordering::Relaxed) {
            let reason = RejectionReason::NotWired;
            tracing::error!(
                reason = reason.as_str(),
                "responses do not end when the caller's token expires: {}",
                reason.description()
            );
        }
        let caller = state.and_then(CallerState::verified);
        let wire = Wire::of_request(request.method(), request.version(), request.headers());
        let end = caller.map(|caller| End {
            at: caller.expires_at().saturating_add(self.layer.shared.leeway),
            caller: caller.spiffe_id().clone(),
            shared: self.layer.shared.clone(),
        });
        EndAtExpiryFuture {
            inner: self.inner.call(request),
            end,
            wire,
        }
    }
}

/// When a response must end.
struct End {
    at: UnixTime,
    caller: SpiffeId,
    shared: Arc<Settings>,
}

impl End {
    /// The time until the end, or until the clock is read again. `None` if the end has passed.
    fn left(&self) -> Option<Duration> {
        let left = self.at.saturating_since(self.shared.clock.now());
        (!left.is_zero()).then(|| left.min(MAX_SLEEP))
    }

    fn poll_end(
        &self,
        sleep: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Missing>> {
        while let Some(left) = self.left() {
            if sleep.is_none() {
                runtime::with_timers()?;
            }
            let timer = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
            ready!(timer.as_mut().poll(cx));
            *sleep = None;
        }
        Poll::Ready(Ok(()))
    }
}

pin_project! {
    /// The future of [`EndAtExpiry`].
    pub struct EndAtExpiryFuture<F> {
        #[pin]
        inner: F,
        end: Option<End>,
        // Of the request.
        wire: Wire,
    }
}

impl<F, B, E> Future for EndAtExpiryFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<EndAtExpiryBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        let wire = match (*this.wire, Wire::of_content_type(response.headers())) {
            (Wire::Grpc, Some(wire @ Wire::Grpc))
            | (Wire::GrpcWeb { .. }, Some(wire @ Wire::GrpcWeb { .. })) => wire,
            _ => Wire::Http,
        };
        let end = this.end.take();
        if end.is_some() && wire != Wire::Http {
            // A body with added trailers has no content length.
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        Poll::Ready(Ok(response.map(|inner| EndAtExpiryBody {
            end,
            wire,
            ..EndAtExpiryBody::endless(inner)
        })))
    }
}

// === impl EndAtExpiryBody ===

pin_project! {
    /// A body that ends when the caller's token expires.
    pub struct EndAtExpiryBody<B> {
        #[pin]
        inner: B,
        end: Option<End>,
        // Created at the first wait: most bodies end before one.
        sleep: Option<Pin<Box<Sleep>>>,
        wire: Wire,
        frames: GrpcWebFrames,
        ended: bool,
    }
}

impl<B> Body for EndAtExpiryBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        let Some(end) = this.end else {
            return this.inner.poll_frame(cx).map_err(Into::into);
        };
        // Checked before each frame, so that a stream that never pauses ends too.
        if end.left().is_some() {
            if let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) {
                if let (Wire::GrpcWeb { text, .. }, Some(Ok(frame))) = (*this.wire, &frame)
                    && let Some(data) = frame.data_ref()
                {
                    this.frames.sent(data, text);
                }
                // No frame may follow the end of the inner body.
                *this.ended = match &frame {
                    Some(Ok(frame)) => frame.is_trailers(),
                    Some(Err(_)) | None => true,
                };
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            if let Err(missing) = ready!(end.poll_end(this.sleep, cx)) {
                *this.ended = true;
                // Without timers, a body that pauses would never be ended.
                let why = "the response cannot be ended when its token expires";
                return Poll::Ready(Some(Err(format!("{why}: {missing}").into())));
            }
        }
        *this.ended = true;
        let place = this.frames.place();
        if this.inner.is_end_stream() || place == Place::BehindTrailers {
            // Nothing was left to send.
            return Poll::Ready(None);
        }
        end.shared.telemetry.ended(&end.caller);
        Poll::Ready(Some(match place {
            Place::Between | Place::BehindTrailers => last_frame(*this.wire),
            Place::Within => Err(TokenExpired.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match (self.wire, &self.end) {
            (Wire::Http, _) | (_, None) => self.inner.size_hint(),
            // The body may be ended early, so the inner length does not apply.
            _ => SizeHint::default(),
        }
    }
}

impl<B: Default> Default for EndAtExpiryBody<B> {
    fn default() -> Self {
        Self::endless(B::default())
    }
}

impl<B> EndAtExpiryBody<B> {
    /// A body that only ends by itself.
    fn endless(inner: B) -> Self {
        Self {
            inner,
            end: None,
            sleep: None,
            wire: Wire::Http,
            frames: GrpcWebFrames::default(),
            ended: false,
        }
    }
}

/// The last frame of an ended response.
fn last_frame(wire: Wire) -> Result<Frame<Bytes>, Box<dyn Error + Send + Sync>> {
    let (code, message) = (EXPIRED.grpc_code().as_u8(), EXPIRED.description());
    let text = match wire {
        Wire::Http => return Err(TokenExpired.into()),
        Wire::Grpc => {
            let mut trailers = HeaderMap::with_capacity(2);
            trailers.insert("grpc-status", u16::from(code).into());
            trailers.insert("grpc-message", HeaderValue::from_static(message));
            return Ok(Frame::trailers(trailers));
        }
        Wire::GrpcWeb { text, .. } => text,
    };
    // gRPC-Web has its trailers in the body.
    let lines = format!("grpc-status:{code}\r\ngrpc-message:{message}\r\n");
    let len = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    let frame = [&[TRAILERS], &len.to_be_bytes()[..], lines.as_bytes()].concat();
    Ok(Frame::data(if text {
        STANDARD.encode(&frame).into()
    } else {
        frame.into()
    }))
}

// === impl TokenExpired ===

impl fmt::Display for TokenExpired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the caller's token expired while the response was being sent")
    }
}

impl Error for TokenExpired {}
