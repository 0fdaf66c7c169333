//! The machine is suspended: the wall clock moves on, the monotonic clock does not.

use tower_spiffe::JwtSource;
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::source::FileBundles;
use tower_spiffe::source::WithdrawalPolicy;
use tower_spiffe::verify::ValidateReason;

use crate::support::*;

const STALE: Option<ValidateReason> = Some(ValidateReason::BundlesUnavailable(
    BundlesUnavailable::Stale,
));
const WITHDRAWN: Option<ValidateReason> = Some(ValidateReason::BundlesUnavailable(
    BundlesUnavailable::Withdrawn,
));
const NIGHT: i64 = 36_000;

impl World {
    async fn limited(&self) -> JwtSource {
        let builder = self.builder().max_staleness(secs(60));
        builder.build().await.unwrap()
    }

    /// Validates a token that was signed now.
    fn verdict(&self, source: &JwtSource) -> Option<ValidateReason> {
        reason(self.validator(source).validate(&self.token()))
    }
}

#[tokio::test(start_paused = true)]
async fn e21_suspend_without_agent_makes_bundles_stale() {
    let world = World::new().await;
    let source = world.limited().await;
    world.agent.stop().await;
    world.clock.step_wall(59);
    assert_eq!(world.verdict(&source), None);
    world.clock.step_wall(1);
    assert_eq!(world.verdict(&source), STALE);
    world.clock.step_wall(NIGHT);
    assert_eq!(world.verdict(&source), STALE);
    let state = source.state();
    for age in [state.last_message, state.last_contact] {
        assert!(age.unwrap() >= secs(36_059), "{age:?}");
    }
    tokio::time::sleep(secs(3600)).await;
    assert_eq!(world.verdict(&source), STALE);
    world.agent.start_again().await.unwrap();
    world.time_until(|| source.is_healthy()).await;
    assert_eq!(world.verdict(&source), None);
}

#[tokio::test(start_paused = true)]
async fn e21_suspend_with_agent_is_stale_until_refreshed() {
    let world = World::new().await;
    let source = world.limited().await;
    tokio::time::sleep(secs(5)).await;
    let before = world.agent.counts().fetch_jwt_bundles;
    world.clock.step_wall(NIGHT);
    assert_eq!(world.verdict(&source), STALE);
    let back = world.time_until(|| source.is_ready()).await;
    assert!(back <= millis(10), "{back:?}");
    assert_eq!(world.verdict(&source), None);
    settle().await;
    assert_eq!(world.agent.counts().fetch_jwt_bundles, before + 1);
    let state = source.state();
    assert!(state.is_healthy());
    assert_eq!((state.reconnects, state.reconnect_attempts), (0, 0));
}

/// No request comes in during the suspend.
#[tokio::test(start_paused = true)]
async fn e21_idle_source_refreshes_within_a_second() {
    let world = World::new().await;
    let source = world.source().await;
    tokio::time::sleep(secs(5)).await;
    let before = world.agent.counts().fetch_jwt_bundles;
    world.clock.step_wall(NIGHT);
    let asked = || world.agent.counts().fetch_jwt_bundles > before;
    assert!(world.time_until(asked).await <= millis(1010));
    // Without a limit, tokens are validated all the time.
    assert!(source.is_ready());
    world.agent.stop().await;
    world.clock.step_wall(NIGHT);
    tokio::time::sleep(secs(5)).await;
    assert_eq!(world.verdict(&source), None);
}

#[tokio::test(start_paused = true)]
async fn e21_reconnect_wait_ends_with_suspend() {
    let world = World::new().await;
    let source = world.limited().await;
    world.agent.stop().await;
    tokio::time::sleep(secs(300)).await;
    for _ in 0..5 {
        world.clock.step_wall(NIGHT);
        let attempts = source.state().reconnect_attempts;
        let tried = || source.state().reconnect_attempts > attempts;
        let waited = world.time_until(tried).await;
        assert!(waited <= millis(1300), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn e21_withdrawal_takes_effect_after_suspend() {
    let world = World::new().await;
    let after = WithdrawalPolicy::After(secs(60));
    let source = world.builder().withdrawal(after).build().await.unwrap();
    let mut updates = source.updated();
    world.agent.withdraw();
    world
        .time_until(|| source.state().withdrawn.is_some())
        .await;
    world.clock.step_wall(NIGHT);
    assert_eq!(world.verdict(&source), WITHDRAWN);
    assert!(!source.is_ready());
    soon("the withdrawal", updates.changed()).await.unwrap();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(world.verdict(&source), WITHDRAWN);
    world.agent.restore();
    world.time_until(|| source.is_healthy()).await;
    assert_eq!(world.verdict(&source), None);
}

#[tokio::test(start_paused = true)]
async fn e21_restored_agent_ends_withdrawal_after_suspend() {
    let world = World::new().await;
    let after = WithdrawalPolicy::After(secs(60));
    let source = world.builder().withdrawal(after).build().await.unwrap();
    world.agent.withdraw();
    world
        .time_until(|| source.state().withdrawn.is_some())
        .await;
    world.agent.restore();
    world.clock.step_wall(NIGHT);
    assert_eq!(world.verdict(&source), WITHDRAWN);
    let back = world.time_until(|| source.is_healthy()).await;
    assert!(back <= millis(1300), "{back:?}");
}

#[tokio::test(start_paused = true)]
async fn e21_backward_step_counts_as_zero() {
    let world = World::new().await;
    let source = world.limited().await;
    world.agent.stop().await;
    tokio::time::sleep(secs(10)).await;
    world.clock.step_wall(-86_400);
    assert!(source.is_ready());
    let age = source.state().last_message.unwrap();
    assert!((secs(10)..secs(11)).contains(&age), "{age:?}");
    // The monotonic clock moves on, and a suspend is still noticed.
    tokio::time::sleep(secs(30)).await;
    assert!(source.is_ready());
    world.clock.step_wall(19);
    assert!(source.is_ready());
    world.clock.step_wall(1);
    assert!(!source.is_ready());
}

/// A wall clock that jumps back and forth causes at most one call per second.
#[tokio::test(start_paused = true)]
async fn e21_jumping_wall_clock_causes_few_calls() {
    let world = World::new().await;
    let source = world.source().await;
    let before = world.agent.counts().fetch_jwt_bundles;
    for step in [NIGHT, -NIGHT].into_iter().cycle().take(1_000) {
        world.clock.step_wall(step);
        let _ = source.state();
        tokio::time::sleep(millis(10)).await;
    }
    let asked = world.agent.counts().fetch_jwt_bundles - before;
    assert!((5..=11).contains(&asked), "{asked}");
    assert!(source.is_ready());
}

#[tokio::test(start_paused = true)]
async fn e21_files_are_read_after_suspend() {
    let world = World::new().await;
    let path = std::env::temp_dir().join(format!("e21-files-{}.json", std::process::id()));
    std::fs::write(&path, world.agent.issuer().jwks()).unwrap();
    let files = FileBundles::builder()
        .jwks(td(TD), &path)
        .poll_interval(secs(3600))
        .clock(world.clock.shared())
        .open()
        .unwrap();
    tokio::time::sleep(secs(5)).await;
    std::fs::write(&path, r#"{"keys": []}"#).unwrap();
    tokio::time::sleep(secs(5)).await;
    assert_eq!(files.state().revision, 1);
    assert!(files.state().is_healthy());
    world.clock.step_wall(NIGHT);
    // The next read is due by the monotonic clock or by the wall clock.
    let state = files.state();
    assert!(state.overdue && !state.is_healthy());
    assert!(state.files[0].last_look >= secs(36_000));
    let read = world.time_until(|| files.state().revision == 2).await;
    assert!(read <= millis(1010), "{read:?}");
    let state = files.state();
    assert!(state.is_healthy() && state.files[0].last_look < secs(2));
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn e21_breaker_closes_after_suspend() {
    let world = World::new().await;
    let source = world
        .builder()
        .svid_cache(|cache| cache.retry(secs(300), secs(300)))
        .build()
        .await
        .unwrap();
    world.agent.stop().await;
    for n in 0..4 {
        let _ = source.get_jwt_svid([format!("audience-{n}")]).await;
    }
    assert!(source.state().svid_cache.breaker_open);
    world.agent.start_again().await.unwrap();
    assert!(source.get_jwt_svid(["before"]).await.is_err());
    world.clock.step_wall(-NIGHT);
    assert!(source.get_jwt_svid(["stepped back"]).await.is_err());
    world.clock.step_wall(2 * NIGHT);
    assert!(source.get_jwt_svid(["after"]).await.is_ok());
}
