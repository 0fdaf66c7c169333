//! A start that does not come says why: what, where, and how to mend it.

use std::time::Duration;

use super::{JwtSource, JwtSourceError, JwtSourceErrorReason as Reason, ResourceLimits};
use crate::grpc_code::GrpcCode;
use crate::testing::{FakeAgent, Fault};

async fn fails(agent: &FakeAgent, limits: ResourceLimits) -> JwtSourceError {
    let built = JwtSource::builder()
        .connector(agent.connector())
        .resource_limits(limits)
        .initial_sync_timeout(Some(Duration::from_secs(11)))
        .build()
        .await;
    let Err(error) = built else {
        panic!("it starts");
    };
    let text = format!("{error} {error:?}");
    assert!(!text.contains("eyJ") && text.len() < 2_000, "{text}");
    error
}

async fn agent() -> FakeAgent {
    FakeAgent::start_in_memory("x").await.expect("an agent")
}

#[tokio::test(start_paused = true)]
async fn a_start_that_times_out_says_what_the_agent_sent() {
    let rubbish = agent().await;
    rubbish.fail(Fault::Garbage);
    let crowd = agent().await;
    crowd.federate("y").expect("a domain");
    let away = agent().await;
    away.fail(Fault::Refuse(GrpcCode::Unavailable));
    let hung = agent().await;
    hung.fail(Fault::Hang);
    let default = ResourceLimits::default;
    for (agent, limits, code, what) in [
        (
            rubbish,
            default(),
            None,
            "trust domain x: its JWK Set cannot be read",
        ),
        (
            crowd,
            default().max_bundles(1),
            None,
            "ResourceLimits::max_bundles",
        ),
        (
            away,
            default(),
            Some(GrpcCode::Unavailable),
            "answered Unavailable",
        ),
        (hung, default(), None, "10s"),
    ] {
        let error = fails(&agent, limits).await;
        assert_eq!((error.reason(), error.code()), (Reason::InitialSync, code));
        let text = error.to_string();
        for part in ["the agent at a given connector within 11s", what] {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
}
