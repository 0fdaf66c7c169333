//! Rejections by code of the user: a middleware or a handler inside the layer.

use http::{Request, Response};

use super::caller::{self, NoCaller};
use super::late::copied_parts;
use super::protocol::Wire;
use super::realm::Realm;
use super::reason::{PolicyFailure, RejectionReason};
use super::rejection::{HandlerRejection, Rejection};

/// Rejections by your own middleware or handler, inside a
/// [`ValidateJwtSvidLayer`](super::ValidateJwtSvidLayer).
///
/// The layer replaces them with its own responses: through its `on_reject`, in its protocol and
/// realm. It also counts and logs them. In axum, return the [`Rejection`] as a response; in a tonic
/// method, return `tonic::Status::from(rejection)`; elsewhere return [`into_inner_response`].
///
/// If the layer is missing from the stack, each of these responses has status 500 (gRPC 13). Over
/// HTTP/1.x, the response to a request with a body has `connection: close`, because the layer can
/// no longer read the body. tower-http's `ValidateRequest` does not see responses: there, the
/// default response is sent, and it is not counted or logged.
///
/// ```
/// use std::convert::Infallible;
/// use http::{Request, Response};
/// use tower::{Layer, service_fn};
/// use tower_spiffe::{Allow, Rejection, ValidateJwtSvidLayer};
///
/// # fn example(validator: tower_spiffe::Validator) {
/// let quota = service_fn(async |request: Request<String>| {
///     let rejection = Rejection::denied(&request).because("over quota");
///     Ok::<_, Infallible>(rejection.into_inner_response::<String>())
/// });
/// let service = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain()).layer(quota);
/// # drop(service); }
/// ```
///
/// [`into_inner_response`]: Rejection::into_inner_response
impl Rejection {
    /// Denies this request: 403, in gRPC `PERMISSION_DENIED`. The log line has the caller of the
    /// request, if it is verified.
    pub fn denied<B>(request: &Request<B>) -> Self {
        Self::inside(request, RejectionReason::NotAllowed)
    }

    /// Asks the anonymous caller of this request for a token: 401, in gRPC `UNAUTHENTICATED`. For a
    /// verified caller it is the same as [`denied`](Self::denied).
    pub fn authentication_required<B>(request: &Request<B>) -> Self {
        Self::inside(request, RejectionReason::Missing)
    }

    /// Rejects this request because the policy cannot decide now: 503, in gRPC `UNAVAILABLE`.
    pub fn policy_unavailable<B>(request: &Request<B>) -> Self {
        let reason = RejectionReason::PolicyUnavailable(PolicyFailure::Failed);
        Self::inside(request, reason)
    }

    /// Returns the response for a middleware inside the layer. The layer replaces it with its own.
    /// In axum, return the rejection itself.
    pub fn into_inner_response<B: Default>(self) -> Response<B> {
        self.into_inner_response_with(B::default())
    }

    /// Returns the response for a middleware inside the layer, with this body: for body types
    /// without `Default`.
    pub fn into_inner_response_with<B>(self, body: B) -> Response<B> {
        let mut response = self.response_with(body);
        HandlerRejection::mark(self, &mut response);
        response
    }

    fn inside<B>(request: &Request<B>, reason: RejectionReason) -> Self {
        // The layer replaces this protocol and realm; they are visible only without a layer.
        let (wire, realm) = (Wire::Http, &Realm::default());
        let rejection = match (caller::verified(request.extensions()), reason) {
            (Err(fault @ NoCaller::NotWired), _) => {
                return fault.into_handler_rejection(wire, realm);
            }
            (Ok(caller), RejectionReason::Missing) => {
                Self::of_caller(RejectionReason::NotAllowed, Some(caller), wire, realm)
            }
            (Ok(caller), reason) => Self::of_caller(reason, Some(caller), wire, realm),
            (Err(fault), RejectionReason::Missing) => fault.into_rejection(wire, realm),
            (Err(_), reason) => Self::new(reason, wire, realm),
        };
        rejection.with_request(copied_parts(request))
    }
}
