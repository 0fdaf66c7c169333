//! The policy of the example `policy_opa`, with its fake OPA server and its faults.

#[path = "../../examples/policy_opa/agent.rs"]
mod agent;
#[path = "../../examples/policy_opa/opa.rs"]
mod opa;

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{
    Allow, AskPolicy, AsyncValidateJwtSvidLayer, PolicyFailure, Rejection, RejectionReason,
    ValidateJwtSvidLayer,
};

use crate::support::{OPS, WEB, World};
use agent::{Agent, Behavior};
use opa::Opa;

async fn send(
    layer: &AsyncValidateJwtSvidLayer,
    mut request: Request<String>,
    method: &str,
) -> Rejected {
    *request.method_mut() = method.parse().unwrap();
    let ok =
        service_fn(async |_: Request<String>| Ok::<_, Infallible>(Response::new(String::new())));
    let response = layer.layer(ok).oneshot(request).await.unwrap();
    let rejection = response.extensions().get::<Rejection>().cloned();
    (response.status().as_u16(), rejection)
}

type Rejected = (u16, Option<Rejection>);

fn layer(world: &World, agent: &Agent, timeout: Duration) -> AsyncValidateJwtSvidLayer {
    let opa = Opa::new(&agent.base, "reports/authz").unwrap();
    ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone())
        .ask(AskPolicy::new(opa).timeout(timeout))
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn opa_decides() {
    let world = World::new();
    let agent = Agent::start().await.unwrap();
    let layer = layer(&world, &agent, LONG);
    assert_eq!(send(&layer, world.request(WEB), "GET").await.0, 200);
    assert_eq!(send(&layer, world.request(OPS), "POST").await.0, 200);
    let (status, rejection) = send(&layer, world.request(WEB), "POST").await;
    let rejection = rejection.unwrap();
    assert_eq!(
        (status, rejection.reason()),
        (403, RejectionReason::NotAllowed)
    );
    assert_eq!(rejection.policy_reason(), Some("only ops may write"));
    assert_eq!(send(&layer, Request::default(), "GET").await.0, 401);
    // The policy is also asked about an anonymous caller, if one could be allowed.
    assert_eq!(agent.asked(), 5);
}

#[tokio::test]
async fn faults_of_opa_fail_closed() {
    let world = World::new();
    let agent = Agent::start().await.unwrap();
    let layer = layer(&world, &agent, LONG);
    for behavior in [
        Behavior::Broken,
        Behavior::TooLong,
        Behavior::Invalid(""),
        Behavior::Invalid("true"),
        Behavior::Invalid("{\"result\": true}"),
        Behavior::Invalid("{\"result\": {\"allow\": \"true\"}}"),
        Behavior::Invalid("{\"result\": {\"allow\": 1}}"),
        Behavior::Invalid("{\"result\": {}}"),
        Behavior::Invalid("{\"result\": {\"allow\": true}} {"),
        Behavior::Invalid("\u{0}\u{ff}"),
    ] {
        agent.set(behavior);
        let (status, rejection) = send(&layer, world.request(OPS), "GET").await;
        let reason = rejection.map(|rejection| rejection.reason());
        let failed = RejectionReason::PolicyUnavailable(PolicyFailure::Failed);
        assert_eq!((status, reason), (503, Some(failed)), "{behavior:?}");
    }
    // An undefined rule denies.
    agent.set(Behavior::Invalid("{}"));
    assert_eq!(send(&layer, world.request(OPS), "GET").await.0, 403);
    agent.set(Behavior::Normal);
    assert_eq!(send(&layer, world.request(OPS), "GET").await.0, 200);
}

#[tokio::test]
async fn slow_opa_times_out() {
    let world = World::new();
    let agent = Agent::start().await.unwrap();
    agent.set(Behavior::Slow(Duration::from_secs(600)));
    let layer = layer(&world, &agent, Duration::from_millis(50));
    let (status, rejection) = send(&layer, world.request(OPS), "GET").await;
    let timed_out = RejectionReason::PolicyUnavailable(PolicyFailure::TimedOut);
    assert_eq!((status, rejection.unwrap().reason()), (503, timed_out));
}

#[tokio::test]
async fn an_unreachable_opa_fails_closed() {
    let world = World::new();
    let agent = Agent::start().await.unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let opa = Opa::new(
        &format!("http://{}", free.local_addr().unwrap()),
        "reports/authz",
    )
    .unwrap();
    drop(free);
    let unreachable =
        ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
            .ask(AskPolicy::new(opa).timeout(LONG));
    let (status, rejection) = send(&unreachable, world.request(OPS), "GET").await;
    let failed = RejectionReason::PolicyUnavailable(PolicyFailure::Failed);
    assert_eq!((status, rejection.unwrap().reason()), (503, failed));
    assert_eq!(agent.asked(), 0);
}
