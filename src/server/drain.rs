//! Reads the rest of a rejected request's body, so that the rejection reaches its HTTP/1 client.
//!
//! A server that stops reading closes the connection while the client is still sending. The client
//! then sees a reset instead of the response.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::runtime;

const MAX_BYTES: u64 = 64 * 1024;
const MAX_TIME: Duration = Duration::from_millis(500);

/// Frames read in one poll. A body that is always ready, even with empty frames, must not keep the
/// timer from being polled.
const MAX_FRAMES: usize = 32;

/// How much of a rejected request's body is read, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainLimits {
    max_bytes: u64,
    max_time: Duration,
}

pin_project! {
    /// Reads a body within the limits. Returns whether its end was reached.
    pub(crate) struct Drain<B> {
        #[pin]
        body: B,
        bytes_left: u64,
        limits: DrainLimits,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

// === impl DrainLimits ===

impl Default for DrainLimits {
    fn default() -> Self {
        Self::new(MAX_BYTES, MAX_TIME)
    }
}

impl DrainLimits {
    pub(crate) fn new(max_bytes: u64, max_time: Duration) -> Self {
        Self {
            max_bytes,
            max_time,
        }
    }

    /// Returns the drain that the response has to wait for, if any. If the body will not be read,
    /// the response closes the connection.
    pub(crate) fn begin<D: Body>(
        &self,
        parts: &Parts,
        body: D,
        headers: &mut HeaderMap,
    ) -> Option<Pin<Box<Drain<D>>>> {
        // Nothing is needed: the end of the body was seen, or HTTP/2 ends only the stream.
        if parts.version >= Version::HTTP_2 || body.is_end_stream() {
            return None;
        }
        let is_too_long = self.max_bytes == 0
            || self.max_time.is_zero()
            || body.size_hint().lower() > self.max_bytes
            || content_lengths(parts).any(|length| length > self.max_bytes);
        // A server answers the first poll of such a body with `100 Continue`.
        if is_too_long || expects_continue(parts) {
            close(headers);
            return None;
        }
        Some(Box::pin(Drain {
            body,
            bytes_left: self.max_bytes,
            limits: *self,
            timer: None,
        }))
    }

    /// Most bodies are read before a timer is needed, so it starts with the first wait. Without
    /// timers it does not wait.
    fn poll_time_up(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        let timer = match timer {
            Some(timer) => timer,
            None if runtime::with_timers().is_err() => return Poll::Ready(()),
            None => timer.insert(Box::pin(tokio::time::sleep(self.max_time))),
        };
        timer.as_mut().poll(cx)
    }
}

fn content_lengths(parts: &Parts) -> impl Iterator<Item = u64> + '_ {
    let values = parts.headers.get_all(CONTENT_LENGTH).iter();
    values.filter_map(|value| value.to_str().ok()?.trim().parse().ok())
}

fn expects_continue(parts: &Parts) -> bool {
    let values = parts.headers.get_all(EXPECT).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|member| member.trim_ascii().eq_ignore_ascii_case(b"100-continue"))
}

/// Makes the server close the connection after the response with these headers.
pub(crate) fn close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

// === impl Drain ===

impl<B: Body> Future for Drain<B> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut this = self.project();
        for _ in 0..MAX_FRAMES {
            let Poll::Ready(frame) = this.body.as_mut().poll_frame(cx) else {
                ready!(this.limits.poll_time_up(this.timer, cx));
                return Poll::Ready(false);
            };
            match frame {
                None => return Poll::Ready(true),
                Some(Err(_)) => return Poll::Ready(false),
                Some(Ok(frame)) => {
                    let read = frame.data_ref().map_or(0, Buf::remaining);
                    let read = u64::try_from(read).unwrap_or(u64::MAX);
                    let Some(left) = this.bytes_left.checked_sub(read) else {
                        return Poll::Ready(false);
                    };
                    *this.bytes_left = left;
                    if this.body.is_end_stream() {
                        return Poll::Ready(true);
                    }
                }
            }
        }
        if this.limits.poll_time_up(this.timer, cx).is_ready() {
            return Poll::Ready(false);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
