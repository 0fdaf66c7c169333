//! Starting a source: immediate, delayed, or failed with the cause.

use std::time::Duration;

use tokio::time::Instant;
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::source::{JwtSourceErrorReason, ResourceLimits};
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{GrpcCode, TokenErrorReason};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::workload_api::WorkloadApiErrorReason;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn build_returns_a_source_with_bundles() {
    let world = World::new().await;
    let source = world.source().await;
    let state = source.state();
    assert!(state.is_ready() && state.connected && state.is_healthy());
    assert_eq!(state.revision, 1);
    assert!(world.validator(&source).validate(&world.token()).is_ok());
    soon("what is there", source.ready()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn build_waits_for_a_late_agent() {
    let world = World::new().await;
    world.agent.stop().await;
    let (source, ()) = tokio::join!(world.builder().build(), async {
        tokio::time::sleep(secs(15)).await;
        world.agent.start_again().await.unwrap();
    });
    assert!(source.unwrap().is_healthy());
}

#[tokio::test(start_paused = true)]
async fn build_fails_after_the_initial_sync_timeout() {
    let world = World::new().await;
    world.agent.fail(Fault::Refuse(GrpcCode::Unavailable));
    for (set, waited) in [(None, 30), (Some(3), 3)] {
        let builder = world.builder();
        let builder = match set {
            Some(within) => builder.initial_sync_timeout(secs(within)),
            None => builder,
        };
        let began = Instant::now();
        let error = builder.build().await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), waited);
        assert_eq!(error.reason(), JwtSourceErrorReason::InitialSync);
        assert_eq!(error.code(), Some(GrpcCode::Unavailable));
        assert!(error.is_retryable());
        let text = error.to_string();
        assert!(text.contains(&format!("within {waited}s")), "{text}");
        assert!(text.contains("returned Unavailable"), "{text}");
    }
    let agent = &world.agent;
    eventually("the end", || agent.counts().open_connections == 0).await;
}

#[tokio::test(start_paused = true)]
async fn build_without_a_timeout_keeps_waiting() {
    let world = World::new().await;
    world.agent.withdraw();
    let building = world.builder().initial_sync_timeout(None).build();
    let (source, ()) = tokio::join!(building, async {
        tokio::time::sleep(secs(3600)).await;
        world.agent.restore();
    });
    assert!(source.unwrap().is_healthy());
}

/// EP-12 to EP-14, appendix A: which statuses fail a start, and which are retried.
#[tokio::test(start_paused = true)]
async fn ep12_to_ep14_statuses_fail_or_retry_a_start() {
    for code in [
        GrpcCode::InvalidArgument,
        GrpcCode::Unimplemented,
        GrpcCode::Unavailable,
        GrpcCode::PermissionDenied,
        GrpcCode::Internal,
        GrpcCode::Unknown,
        GrpcCode::ResourceExhausted,
        GrpcCode::Unauthenticated,
        GrpcCode::DeadlineExceeded,
    ] {
        let world = World::new().await;
        world
            .agent
            .fail_call(AgentCall::FetchJwtBundles, Fault::Refuse(code));
        let began = Instant::now();
        let building = world.builder().build();
        let recovering = async {
            tokio::time::sleep(secs(5)).await;
            world.agent.recover();
        };
        let (outcome, ()) = tokio::join!(async { (building.await, began.elapsed()) }, recovering);
        let (built, took) = outcome;
        let reason = match code {
            GrpcCode::InvalidArgument => WorkloadApiErrorReason::InvalidArgument,
            GrpcCode::Unimplemented => WorkloadApiErrorReason::Unimplemented,
            _ => {
                assert!(built.is_ok(), "{code}");
                assert!(world.agent.counts().fetch_jwt_bundles >= 3, "{code}");
                continue;
            }
        };
        let error = built.unwrap_err();
        assert_eq!(error.reason(), JwtSourceErrorReason::Refused(reason));
        assert_eq!(error.code(), Some(code));
        assert!(!error.is_retryable());
        assert!(took < millis(10), "{took:?}");
        assert_eq!(world.agent.counts().fetch_jwt_bundles, 1);
        let text = format!("{error:#}");
        assert!(text.contains("with a permanent error"), "{text}");
        assert!(text.contains("FetchJWTBundles: the agent at"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn ep12_other_calls_do_not_stop_a_start() {
    let world = World::new().await;
    for code in [GrpcCode::InvalidArgument, GrpcCode::Unimplemented] {
        let fail = Fault::Refuse(code);
        world.agent.fail_call(AgentCall::FetchJwtSvid, fail.clone());
        world.agent.fail_call(AgentCall::ValidateJwtSvid, fail);
        let source = world.source().await;
        let error = source.fetch_jwt_svid([AUD]).await.unwrap_err();
        let reason = JwtSourceErrorReason::Token(TokenErrorReason::InvalidRequest);
        assert_eq!(error.reason(), reason);
        assert_eq!(error.code(), Some(code));
        assert!(!error.is_retryable());
        assert!(source.is_healthy());
    }
}

#[tokio::test(start_paused = true)]
async fn ep14_missing_identity_error_says_where_to_look() {
    let world = World::new().await;
    world.agent.withdraw();
    let error = world.builder().build().await.unwrap_err();
    assert_eq!(error.code(), Some(GrpcCode::PermissionDenied));
    let text = error.to_string();
    assert!(
        text.contains("registration entry for this workload"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn build_lazy_is_ready_after_the_first_sync() {
    let world = World::new().await;
    world.agent.stop().await;
    let source = world.builder().build_lazy().unwrap();
    let validator = world.validator(&source);
    let not_ready = ValidateReason::BundlesUnavailable(BundlesUnavailable::NotReady);
    assert_eq!(reason(validator.validate(&world.token())), Some(not_ready));
    let error = source.bundle_set().unwrap_err();
    let cannot = JwtSourceErrorReason::BundlesUnavailable(BundlesUnavailable::NotReady);
    assert_eq!(error.reason(), cannot);
    assert!(source.bundle_for_trust_domain(&td(TD)).is_err());
    assert!(source.try_bundle_for_trust_domain(&td(TD)).is_none());
    assert!(!source.is_healthy() && source.state().revision == 0);
    assert!(tokio::time::timeout(secs(5), source.ready()).await.is_err());

    world.agent.start_again().await.unwrap();
    soon("the first sync", source.ready()).await.unwrap();
    assert!(validator.validate(&world.token()).is_ok());
    assert!(source.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn ready_reports_only_the_latest_permanent_error() {
    let world = World::new().await;
    let fail = |code| world.agent.fail(Fault::Refuse(code));
    fail(GrpcCode::Unimplemented);
    let source = world.builder().build_lazy().unwrap();
    for _ in 0..3 {
        let error = source.ready().await.unwrap_err();
        let reason = WorkloadApiErrorReason::Unimplemented;
        assert_eq!(error.reason(), JwtSourceErrorReason::Refused(reason));
    }
    // The agent is replaced by one that starts later.
    fail(GrpcCode::Unavailable);
    tokio::time::sleep(secs(11)).await;
    assert!(
        tokio::time::timeout(secs(30), source.ready())
            .await
            .is_err()
    );
    world.agent.recover();
    soon("a start after all", source.ready()).await.unwrap();
    // An old error is not reported later.
    world.agent.withdraw();
    let mut updates = source.updated();
    soon("the withdrawal", updates.wait_for(|revision| revision > 1))
        .await
        .unwrap();
    assert!(
        tokio::time::timeout(secs(30), source.ready())
            .await
            .is_err()
    );
}

#[test]
fn build_without_a_runtime_says_what_to_do() {
    let error = tower_spiffe::JwtSource::builder()
        .endpoint(NO_AGENT)
        .build_lazy()
        .unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::NoRuntime);
    assert!(!error.is_retryable());
    let text = error.to_string();
    assert!(
        text.contains("no tokio runtime") && text.contains("runtime.enter()"),
        "{text}"
    );
    // The same outside tokio.
    let builder = tower_spiffe::JwtSource::builder().endpoint(NO_AGENT);
    let error = futures_util::FutureExt::now_or_never(builder.build())
        .expect("no wait")
        .unwrap_err();
    assert_eq!(error.reason(), JwtSourceErrorReason::NoRuntime);
}

#[tokio::test(start_paused = true)]
async fn cancelled_build_leaves_nothing() {
    let world = World::new().await;
    world.agent.fail(Fault::Hang);
    let building = world.builder().build();
    assert!(tokio::time::timeout(secs(2), building).await.is_err());
    let agent = &world.agent;
    assert_eq!(agent.counts().connections, 1);
    eventually("the end", || agent.counts().open_connections == 0).await;
    assert_eq!(world.openings(secs(60)).await, [Duration::ZERO; 0]);
}

#[tokio::test(start_paused = true)]
async fn too_many_bundles_at_start_name_the_limit() {
    let world = World::new().await;
    world.agent.federate(OTHER).unwrap();
    let limits = ResourceLimits::default().max_bundles(1);
    let building = world.builder().resource_limits(limits).build();
    let text = building.await.unwrap_err().to_string();
    assert!(
        text.contains("2 bundles") && text.contains("ResourceLimits::max_bundles"),
        "{text}"
    );
}
