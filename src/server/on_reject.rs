//! The function that makes the response to a rejected request.

use http::Response;
use http::request::Parts;

use super::rejection::Rejection;

/// A function that makes the response to rejected requests: `Fn(&Rejection, &Parts) ->
/// Response<B>`, set by [`on_reject`], or the default, [`DefaultOnReject`].
///
/// The trait is sealed and public, so that it can be used in bounds. Closures and functions
/// implement it. To name the type of a layer with its own responses, use a function pointer:
///
/// ```
/// use http::{Response, request::Parts};
/// use tower_spiffe::{Allow, Rejection, ValidateJwtSvidLayer, Validator};
///
/// type Answer = fn(&Rejection, &Parts) -> Response<String>;
///
/// struct Server {
///     layer: ValidateJwtSvidLayer<Answer>,
/// }
///
/// fn answer(rejection: &Rejection, _: &Parts) -> Response<String> {
///     rejection.response_with(rejection.to_string())
/// }
///
/// # fn example(validator: Validator) -> Server {
/// let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
/// Server { layer: layer.on_reject(answer as Answer) }
/// # }
/// ```
///
/// Types of other crates cannot implement it:
///
/// ```compile_fail,E0277
/// use http::{Response, request::Parts};
/// use tower_spiffe::{Rejection, server::OnReject};
///
/// struct Answer;
///
/// impl OnReject<String> for Answer {
///     fn respond(&self, rejection: &Rejection, _: &Parts) -> Response<String> {
///         rejection.response()
///     }
/// }
/// ```
///
/// [`on_reject`]: super::ValidateJwtSvidLayer::on_reject
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot make a rejection with a response body of type `{B}`",
    label = "the default rejection needs a response body with `Default`",
    note = "if you can make such a body, add `.on_reject(|rejection, _parts| \
            rejection.response_with(body))` to the layer",
    note = "if you cannot (hyper's `Incoming`, the bodies of tower-http's layers), add \
            `MapResponseBodyLayer::new(Body::new)` of tower-http directly inside the layer, with the \
            `Body` of axum or tonic"
)]
pub trait OnReject<B>: sealed::OnReject<B> + Send + Sync + 'static {
    /// Returns the response to a rejected request. `parts` are the parts of the request. Its
    /// credential is marked sensitive.
    fn respond(&self, rejection: &Rejection, parts: &Parts) -> Response<B>;
}

mod sealed {
    use super::{DefaultOnReject, Parts, Rejection, Response};

    pub trait OnReject<B> {}

    impl<B: Default> OnReject<B> for DefaultOnReject {}

    impl<F, B> OnReject<B> for F where F: Fn(&Rejection, &Parts) -> Response<B> {}
}

/// Responds with [`Rejection::response`].
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DefaultOnReject;

impl<B: Default> OnReject<B> for DefaultOnReject {
    fn respond(&self, rejection: &Rejection, _: &Parts) -> Response<B> {
        rejection.response()
    }
}

impl<F, B> OnReject<B> for F
where
    F: Fn(&Rejection, &Parts) -> Response<B> + Send + Sync + 'static,
{
    fn respond(&self, rejection: &Rejection, parts: &Parts) -> Response<B> {
        self(rejection, parts)
    }
}
