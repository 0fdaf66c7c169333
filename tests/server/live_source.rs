//! The layer with a `JwtSource`, as in production, and faults of the agent.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::Validator;
use tower_spiffe::server::{Allow, Rejection, RejectionReason, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::verify::ValidateReason;

use crate::support::{AUDIENCE, with_authorization};

/// Returns the status, and the reason if it is a rejection.
async fn send<S>(service: &S, request: Request<String>) -> (u16, Option<RejectionReason>)
where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible> + Clone,
{
    let response = service.clone().oneshot(request).await.unwrap();
    let rejection = response.extensions().get::<Rejection>();
    (response.status().as_u16(), rejection.map(Rejection::reason))
}

async fn inner(_: Request<String>) -> Result<Response<String>, Infallible> {
    Ok(Response::default())
}

#[tokio::test(start_paused = true)]
async fn a26_unreadable_trust_domain_is_not_a_5xx() {
    let agent = FakeAgent::start_in_memory("x").await.unwrap();
    agent.federate_raw("broken.test", "no JWK Set").unwrap();
    let source = agent.source().await.unwrap();
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
    let service = layer.layer(service_fn(inner));

    // Any caller can name that trust domain.
    let other = tower_spiffe::testing::Issuer::new("broken.test").unwrap();
    let token = other.token("spiffe://broken.test/web", AUDIENCE);
    let rejected = send(&service, with_authorization(&token.bearer())).await;
    let unknown = RejectionReason::Token(ValidateReason::KeyUnknown);
    assert_eq!(rejected, (401, Some(unknown)));
    let good = agent.bearer("spiffe://x/web", AUDIENCE);
    assert_eq!(send(&service, with_authorization(&good)).await, (200, None));

    // The state has the error of that trust domain.
    let state = source.state();
    let broken = state
        .trust_domains
        .iter()
        .find(|domain| domain.trust_domain.name() == "broken.test");
    assert!(broken.unwrap().last_error.is_some());

    // When its keys arrive, its callers are allowed.
    let mut updates = source.updated();
    agent.federate_with(&other);
    tokio::time::timeout(Duration::from_secs(10), updates.changed())
        .await
        .expect("no keys arrive")
        .unwrap();
    let token = other.token("spiffe://broken.test/web", AUDIENCE);
    let allowed = send(&service, with_authorization(&token.bearer())).await;
    assert_eq!(allowed, (200, None));
}
