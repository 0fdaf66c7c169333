//! The caller as an argument of an axum handler.

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::caller::{self, Answers, CallerState};
use super::rejection::{Rejection, RejectionReason};
use crate::svid::VerifiedSvid;

/// The verified caller. Refuses with 401 where there is none, in the realm and the protocol of the
/// layer above, and with 500 where no layer stands above the handler.
impl<S: Sync> FromRequestParts<S> for VerifiedSvid {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        caller::verified(&parts.extensions)
            .cloned()
            .map_err(|fault| {
                let answers = Answers::of(&parts.extensions);
                fault.into_rejection(answers.protocol.wire(parts), &answers.realm)
            })
    }
}

/// The verified caller, where there is one. Refuses with 500 where no layer stands above the
/// handler.
impl<S: Sync> OptionalFromRequestParts<S> for VerifiedSvid {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        state(parts).map(|state| state.verified().cloned())
    }
}

/// Whatever the layer found. Refuses with 500 where no layer stands above the handler.
impl<S: Sync> FromRequestParts<S> for CallerState {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        state(parts).cloned()
    }
}

fn state(parts: &Parts) -> Result<&CallerState, Rejection> {
    CallerState::of(&parts.extensions).ok_or_else(|| {
        let answers = Answers::of(&parts.extensions);
        let wire = answers.protocol.wire(parts);
        Rejection::new(RejectionReason::NotWired, wire, &answers.realm)
    })
}

/// The default answer. A server that is put together wrongly says so in the body.
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let body = match self.reason() {
            RejectionReason::NotWired if !self.is_grpc() => Body::from(self.to_string()),
            _ => Body::empty(),
        };
        self.response_with(body)
    }
}
