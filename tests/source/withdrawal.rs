//! The issuer withdraws its bundles (WA-29), with each policy.

use std::sync::{Arc, Mutex};

use tower_spiffe::JwtSource;
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::metrics::MetricsRecorder;
use tower_spiffe::source::WithdrawalPolicy;
use tower_spiffe::testing::{FakeAgent, Fault};
use tower_spiffe::token::GrpcCode;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe_test_support::clock::HandClock;

use crate::support::*;

const WITHDRAWN: Option<ValidateReason> = Some(ValidateReason::BundlesUnavailable(
    BundlesUnavailable::Withdrawn,
));

#[derive(Default)]
struct Recorded(Mutex<Vec<bool>>);

impl MetricsRecorder for Recorded {
    fn record_withdrawal(&self, withdrawn: bool) {
        self.0.lock().unwrap().push(withdrawn);
    }
}

#[tokio::test(start_paused = true)]
async fn wa29_immediate_withdrawal_stops_validation_until_restored() {
    let world = World::new().await;
    let (source, recorded) = world.recorded_source::<Recorded>().await;
    let validator = world.validator(&source);
    let token = world.token();
    assert!(validator.validate(&token).is_ok());
    let mut updates = source.updated();
    world.agent.withdraw();
    assert_eq!(soon("the withdrawal", updates.changed()).await.unwrap(), 2);
    // Cached results are withdrawn too.
    assert_eq!(reason(validator.validate(&token)), WITHDRAWN);
    let state = source.state();
    let withdrawal = state.withdrawn.as_ref().expect("a withdrawal");
    assert!(withdrawal.in_force);
    assert!(
        withdrawal.why.contains("PermissionDenied"),
        "{}",
        withdrawal.why
    );
    assert!(!state.is_ready() && !state.is_healthy());
    assert_eq!(state.trust_domains, []);
    tokio::time::sleep(secs(60)).await;
    assert_eq!(source.state().withdrawn.unwrap().age, secs(60));

    world.agent.restore();
    assert_eq!(soon("the restoration", updates.changed()).await.unwrap(), 3);
    assert!(validator.validate(&token).is_ok());
    assert!(source.state().withdrawn.is_none());
    assert_eq!(*recorded.0.lock().unwrap(), [true, false]);
}

/// Unreadable bundles do not end a withdrawal. Callers get 503, as before the first sync, and not
/// "unknown key".
#[tokio::test(start_paused = true)]
async fn wa29_unreadable_bundles_do_not_end_a_withdrawal() {
    let world = World::new().await;
    let (source, recorded) = world.recorded_source::<Recorded>().await;
    let validator = world.validator(&source);
    let token = world.token();
    world.agent.withdraw();
    world.time_until(|| !source.state().is_ready()).await;
    world.agent.fail(Fault::Garbage);
    world.agent.restore();
    world.time_until(|| source.state().connected).await;
    assert_eq!(reason(validator.validate(&token)), WITHDRAWN);
    let state = source.state();
    assert!(state.withdrawn.is_some_and(|it| it.in_force));
    assert!(state.trust_domains[0].last_error.is_some());

    world.agent.recover();
    world.time_until(|| source.is_healthy()).await;
    assert!(validator.validate(&token).is_ok());
    assert_eq!(*recorded.0.lock().unwrap(), [true, false]);
}

#[tokio::test(start_paused = true)]
async fn wa29_denied_reconnect_withdraws() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.stop().await;
    world.agent.withdraw();
    world.agent.start_again().await.unwrap();
    let validator = world.validator(&source);
    let token = world.token();
    let is_withdrawn = || reason(validator.validate(&token)) == WITHDRAWN;
    assert!(world.time_until(is_withdrawn).await <= secs(1));
}

#[tokio::test(start_paused = true)]
async fn delayed_withdrawal_takes_effect_on_time() {
    let world = World::new().await;
    let after = WithdrawalPolicy::After(secs(90));
    let source = world.builder().withdrawal(after).build().await.unwrap();
    let validator = world.validator(&source);
    let token = world.token();
    tokio::time::sleep(secs(11)).await;
    let mut updates = source.updated();
    world.agent.withdraw();
    settle().await;
    assert!(validator.validate(&token).is_ok());
    let withdrawn = source.state().withdrawn.clone().expect("a withdrawal");
    assert!(!withdrawn.in_force);
    assert!(!source.is_healthy() && source.is_ready());
    // Later denials do not delay it.
    tokio::time::sleep(secs(89)).await;
    assert!(world.agent.counts().fetch_jwt_bundles > 5);
    assert!(validator.validate(&token).is_ok());
    tokio::time::sleep(secs(1)).await;
    assert_eq!(reason(validator.validate(&token)), WITHDRAWN);
    assert_eq!(soon("the withdrawal", updates.changed()).await.unwrap(), 2);
    assert!(source.state().withdrawn.expect("still").in_force);
}

#[tokio::test(start_paused = true)]
async fn restored_in_time_nothing_is_withdrawn() {
    let world = World::new().await;
    let after = WithdrawalPolicy::After(secs(90));
    let source = world.builder().withdrawal(after).build().await.unwrap();
    let validator = world.validator(&source);
    let updates = source.updated();
    for _ in 0..3 {
        world.agent.withdraw();
        tokio::time::sleep(secs(60)).await;
        world.agent.restore();
        world
            .time_until(|| source.state().withdrawn.is_none())
            .await;
        // The next withdrawal has the full delay again.
        tokio::time::sleep(secs(29)).await;
        assert!(validator.validate(&world.token()).is_ok());
    }
    assert_eq!(updates.last(), 1);
    tokio::time::sleep(secs(3600)).await;
    assert!(validator.validate(&world.token()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn keep_policy_validates_and_reports() {
    let world = World::new().await;
    let recorded = Arc::new(Recorded::default());
    let builder = world.builder().withdrawal(WithdrawalPolicy::Keep);
    let source = builder.metrics(recorded.clone()).build().await.unwrap();
    let validator = world.validator(&source);
    let updates = source.updated();
    world.agent.withdraw();
    tokio::time::sleep(secs(24 * 3600)).await;
    assert!(validator.validate(&world.token()).is_ok());
    let state = source.state();
    assert!(!state.withdrawn.as_ref().expect("a withdrawal").in_force);
    assert!(state.is_ready() && !state.is_healthy());
    assert_eq!((updates.last(), recorded.0.lock().unwrap().len()), (1, 1));
    world.agent.restore();
    world.time_until(|| source.is_healthy()).await;
    assert_eq!(*recorded.0.lock().unwrap(), [true, false]);
}

#[tokio::test(start_paused = true)]
async fn only_denials_withdraw() {
    let world = World::new().await;
    let source = world.source().await;
    let validator = world.validator(&source);
    let token = world.token();
    let replay = world.agent.replay();
    for code in (0..=16).map(GrpcCode::from_i32) {
        if code == GrpcCode::PermissionDenied {
            continue;
        }
        soon("a stream to end", async {
            tokio::time::timeout(secs(15), replay.end(code, "no")).await
        })
        .await
        .unwrap();
        tokio::time::sleep(millis(1)).await;
        assert!(source.state().withdrawn.is_none(), "{code}");
        assert!(validator.validate(&token).is_ok(), "{code}");
    }
}

/// Both are checked against the clock at each validation; neither needs the task.
#[test]
fn withdrawal_and_staleness_apply_without_the_task() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let clock = HandClock::at(1_790_000_000);
    let start = async || {
        let agent = FakeAgent::builder(TD)
            .clock(clock.clone())
            .start_in_memory()
            .await
            .unwrap();
        let builder = JwtSource::builder()
            .connector(agent.connector())
            .clock(clock.clone());
        (agent, builder)
    };
    let (withdrawn, stale) = runtime.block_on(async {
        let (agent, builder) = start().await;
        let after = WithdrawalPolicy::After(secs(90));
        let withdrawn = builder.withdrawal(after).build().await.unwrap();
        agent.withdraw();
        let is_withdrawn = || withdrawn.state().withdrawn.is_some();
        eventually("the withdrawal", is_withdrawn).await;
        let (other, builder) = start().await;
        let stale = builder.max_staleness(secs(200)).build().await.unwrap();
        ((agent, withdrawn), (other, stale))
    });
    // The runtime is not driven from here on.
    let verdict = |(agent, source): &(FakeAgent, JwtSource)| {
        let validator = tower_spiffe::Validator::builder(source.clone())
            .audience(AUD)
            .clock(clock.clone())
            .build()
            .unwrap();
        reason(validator.validate(&agent.token(WEB, AUD)))
    };
    clock.set_elapsed(secs(89));
    assert_eq!((verdict(&withdrawn), verdict(&stale)), (None, None));
    clock.set_elapsed(secs(90));
    assert_eq!((verdict(&withdrawn), verdict(&stale)), (WITHDRAWN, None));
    clock.set_elapsed(secs(200));
    let too_old = Some(ValidateReason::BundlesUnavailable(
        BundlesUnavailable::Stale,
    ));
    assert_eq!(verdict(&stale), too_old);
    assert!(!stale.1.is_healthy() && !withdrawn.1.is_healthy());
    assert_eq!(
        stale.1.state().bundles_unavailable,
        Some(BundlesUnavailable::Stale)
    );
}
