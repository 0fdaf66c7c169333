//! The results of the closure of `Audience::from_origin`, and their effect on the request.

use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvidLayer, Audience};
use tower_spiffe::token::{TokenError, TokenErrorReason};

use crate::layer::{sent, to};
use crate::support::Bench;

const ORIGIN: &str = "https://reports:8443";

fn returning(audience: Option<&str>) -> Audience {
    let audience = audience.map(str::to_owned);
    Audience::from_origin(move |_| audience.clone(), [ORIGIN]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_audience_means_no_token() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), returning(None));
    assert!(sent(layer.clone(), to(ORIGIN)).await.unwrap().is_empty());
    let strict = sent(layer.strict(), to(ORIGIN)).await;
    assert_eq!(strict, Err(TokenErrorReason::ForeignOrigin));
    assert_eq!(bench.cache.stats().fetches, 0);
}

#[tokio::test(start_paused = true)]
async fn invalid_audience_fails_the_request() {
    let long = format!("{}\n", "a".repeat(1000));
    for audience in ["", " ", "a ", "\ta", "a\r\n", &long] {
        let bench = Bench::new();
        let layer = AddJwtSvidLayer::new(bench.cache.clone(), returning(Some(audience)));
        let mut own = to(ORIGIN);
        own.extensions_mut().insert(returning(Some(audience)));
        let per_request = AddJwtSvidLayer::new(bench.cache.clone(), Audience::per_request());
        for (layer, request) in [
            (layer.clone(), to(ORIGIN)),
            // The same request again.
            (layer.clone(), to(ORIGIN)),
            (layer.strict(), to(ORIGIN)),
            (per_request, own),
        ] {
            let inner = service_fn(|_: http::Request<()>| async {
                panic!("sent without a token");
                #[allow(unreachable_code)]
                Ok::<_, std::convert::Infallible>(http::Response::new(()))
            });
            let error = layer.layer(inner).oneshot(request).await.unwrap_err();
            let error = TokenError::find(&*error).unwrap();
            assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
            let text = error.to_string();
            assert!(text.contains(ORIGIN), "{text}");
            let shown = format!("{:?}", audience.get(..128).unwrap_or(audience));
            assert!(text.contains(&shown), "{text}");
            assert!(text.len() < 500, "{text}");
        }
        assert_eq!(bench.cache.stats().fetches, 0);
    }
}

/// The closure is not called for other origins.
#[tokio::test(start_paused = true)]
async fn invalid_audience_leaves_other_origins_alone() {
    let bench = Bench::new();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), returning(Some("")));
    assert!(sent(layer, to("https://other")).await.unwrap().is_empty());
}
