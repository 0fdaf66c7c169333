//! The caller of a tonic method, and rejections as `tonic::Status`.

use super::caller;
use super::protocol::Wire;
use super::realm::Realm;
use super::rejection::Rejection;
use crate::verify::VerifiedSvid;

impl VerifiedSvid {
    /// Returns the verified caller of this request.
    ///
    /// # Errors
    /// `Unauthenticated` if the caller is not verified, and `Internal` if the layer is missing from
    /// the stack.
    #[allow(
        clippy::result_large_err,
        reason = "it is what a tonic handler returns"
    )]
    pub fn from_request<T>(request: &tonic::Request<T>) -> Result<Self, tonic::Status> {
        caller::verified(request.extensions())
            .cloned()
            .map_err(|fault| {
                fault
                    .into_handler_rejection(Wire::Grpc, &Realm::default())
                    .into()
            })
    }
}

/// The same code and text as the layer's own response.
impl From<Rejection> for tonic::Status {
    fn from(rejection: Rejection) -> Self {
        let reason = rejection.reason();
        let code = i32::from(reason.grpc_code().as_u8()).into();
        let mut status = Self::new(code, rejection.description());
        // The layer reads it from there.
        status.set_source(std::sync::Arc::new(rejection));
        status
    }
}
