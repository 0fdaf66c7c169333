//! The layer on a `JwtSource`, as servers run it: what an agent's bad day makes of callers.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::Validator;
use tower_spiffe::server::{Allow, Rejection, RejectionReason, ValidateJwtSvidLayer};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::verify::ValidateReason;

use crate::support::{AUDIENCE, with_authorization};

/// The status, and the reason if it is a rejection.
async fn ask<S>(service: &S, request: Request<String>) -> (u16, Option<RejectionReason>)
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
async fn a26_a_trust_domain_whose_keys_could_never_be_read_is_no_fault_of_ours() {
    let agent = FakeAgent::start_in_memory("x").await.unwrap();
    agent.federate_raw("broken.test", "no JWK Set").unwrap();
    let source = agent.source().await.unwrap();
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
    let service = layer.layer(service_fn(inner));

    // Anyone can name that trust domain.
    let other = tower_spiffe::testing::Issuer::new("broken.test").unwrap();
    let token = other.token("spiffe://broken.test/web", AUDIENCE);
    let rejected = ask(&service, with_authorization(&token.bearer())).await;
    let unknown = RejectionReason::Token(ValidateReason::KeyUnknown);
    assert_eq!(rejected, (401, Some(unknown)));
    let good = agent.bearer("spiffe://x/web", AUDIENCE);
    assert_eq!(ask(&service, with_authorization(&good)).await, (200, None));

    // Whose trouble it is stands in the state.
    let state = source.state();
    let broken = state
        .trust_domains()
        .iter()
        .find(|domain| domain.trust_domain().name() == "broken.test");
    assert!(broken.unwrap().last_error().is_some());

    // When its keys come, its callers do.
    let mut updates = source.updated();
    agent.federate_with(&other);
    tokio::time::timeout(Duration::from_secs(10), updates.changed())
        .await
        .expect("the keys come")
        .unwrap();
    let token = other.token("spiffe://broken.test/web", AUDIENCE);
    let admitted = ask(&service, with_authorization(&token.bearer())).await;
    assert_eq!(admitted, (200, None));
}
