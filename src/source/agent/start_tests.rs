//! Error texts of a failed start.

use std::time::Duration;

use super::{JwtSource, JwtSourceError, JwtSourceErrorReason as Reason, ResourceLimits};
use crate::grpc_code::GrpcCode;
use crate::testing::{FakeAgent, Fault};

async fn start_error(agent: &FakeAgent, limits: ResourceLimits) -> JwtSourceError {
    let built = JwtSource::builder()
        .connector(agent.connector())
        .resource_limits(limits)
        .initial_sync_timeout(Some(Duration::from_secs(11)))
        .build()
        .await;
    let Err(error) = built else {
        panic!("the source started");
    };
    let text = format!("{error} {error:?}");
    assert!(!text.contains("eyJ") && text.len() < 2_000, "{text}");
    error
}

async fn agent() -> FakeAgent {
    FakeAgent::start_in_memory("x").await.expect("an agent")
}

#[tokio::test(start_paused = true)]
async fn start_timeout_reports_the_last_response() {
    let malformed = agent().await;
    malformed.fail(Fault::Garbage);
    let large = agent().await;
    large.federate("y").expect("a domain");
    let unavailable = agent().await;
    unavailable.fail(Fault::Refuse(GrpcCode::Unavailable));
    let hanging = agent().await;
    hanging.fail(Fault::Hang);
    let default = ResourceLimits::default;
    for (agent, limits, code, what) in [
        (
            malformed,
            default(),
            None,
            "trust domain x: its JWK Set cannot be read",
        ),
        (
            large,
            default().max_bundles(1),
            None,
            "ResourceLimits::max_bundles",
        ),
        (
            unavailable,
            default(),
            Some(GrpcCode::Unavailable),
            "returned Unavailable",
        ),
        (hanging, default(), None, "10s"),
    ] {
        let error = start_error(&agent, limits).await;
        assert_eq!((error.reason(), error.code()), (Reason::InitialSync, code));
        let text = error.to_string();
        for part in ["the agent at a given connector within 11s", what] {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
}
