//! The caller as an argument of an axum handler.

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::caller::{self, Answers, CallerState, NoCaller};
use super::reason::RejectionReason;
use super::rejection::{HandlerRejection, Rejection};
use crate::verify::VerifiedSvid;

/// The verified caller. Rejects with 401 if the caller is not verified; the layer replaces this
/// with its own rejection. Rejects with 500 if
/// [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer) is missing from the stack.
impl<S: Sync> FromRequestParts<S> for VerifiedSvid {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        caller::verified(&parts.extensions)
            .cloned()
            .map_err(|fault| rejection(fault, parts))
    }
}

/// The verified caller, or `None`. Rejects with 500 if the layer is missing from the stack.
impl<S: Sync> OptionalFromRequestParts<S> for VerifiedSvid {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        state(parts).map(|state| state.verified().cloned())
    }
}

/// The state that the layer stored. Rejects with 500 if the layer is missing from the stack.
impl<S: Sync> FromRequestParts<S> for CallerState {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        state(parts).cloned()
    }
}

fn state(parts: &Parts) -> Result<&CallerState, Rejection> {
    CallerState::from_extensions(&parts.extensions)
        .ok_or_else(|| rejection(NoCaller::NotWired, parts))
}

fn rejection(fault: NoCaller, parts: &Parts) -> Rejection {
    let answers = Answers::of(&parts.extensions);
    fault.into_handler_rejection(answers.protocol.wire(parts), &answers.realm)
}

/// The default response. If the layer is missing, the body says so.
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let body = match self.reason() {
            RejectionReason::NotWired if !self.is_grpc() => Body::from(self.to_string()),
            _ => Body::empty(),
        };
        let mut response = self.response_with(body);
        HandlerRejection::mark(self, &mut response);
        response
    }
}
