//! `updated()`: which changes it reports, and to which handles.

use futures_util::{FutureExt as _, StreamExt as _};
use tower_spiffe::source::JwtSourceErrorReason;

use crate::agent;
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn first_sync_is_not_a_change() {
    let world = World::new().await;
    world.agent.stop().await;
    let source = world.builder().build_lazy().unwrap();
    let mut early = source.updated();
    assert_eq!(early.last(), 0);
    world.agent.start_again().await.unwrap();
    soon("the first sync", source.ready()).await.unwrap();
    assert_eq!(early.last(), 1);
    assert!(early.changed().now_or_never().is_none());
    world.agent.rotate_now();
    assert_eq!(soon("the change", early.changed()).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn changed_waits_for_changes_after_its_creation() {
    let world = World::new().await;
    let source = world.source().await;
    world.agent.rotate_now();
    world.time_until(|| source.state().revision == 2).await;
    let mut late = source.updated();
    assert!(
        tokio::time::timeout(secs(60), late.changed())
            .await
            .is_err()
    );
    world.agent.rotate_now();
    assert_eq!(soon("the change", late.changed()).await.unwrap(), 3);
    // Reported once.
    assert!(late.changed().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn missed_changes_are_reported_as_one() {
    let world = World::new().await;
    let source = world.source().await;
    let mut updates = source.updated();
    for revision in 2..=4 {
        world.agent.rotate_now();
        world
            .time_until(|| source.state().revision == revision)
            .await;
    }
    assert_eq!(updates.changed().await.unwrap(), 4);
    let waited = tokio::time::timeout(secs(1), updates.changed()).await;
    assert!(waited.is_err());
    world.agent.rotate_now();
    assert_eq!(soon("the change", updates.changed()).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_withdrawal_and_a_restoration_are_changes() {
    let world = World::new().await;
    let source = world.source().await;
    let mut updates = source.updated();
    for n in 0..3 {
        world.agent.withdraw();
        let revision = soon("the withdrawal", updates.changed()).await.unwrap();
        assert_eq!(revision, 2 + 2 * n);
        // The withdrawal is in force when it is reported.
        assert!(source.bundle_set().is_err());
        world.agent.restore();
        let revision = soon("the restoration", updates.changed()).await.unwrap();
        assert_eq!(revision, 3 + 2 * n);
        assert!(source.bundle_set().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn wait_for_checks_immediately_and_after_changes() {
    let world = World::new().await;
    let source = world.source().await;
    let mut updates = source.updated();
    let at_once = updates.wait_for(|revision| revision == 1).now_or_never();
    assert_eq!(at_once.unwrap().unwrap(), 1);
    let waits = tokio::spawn(async move {
        let revision = updates.wait_for(|revision| revision >= 3).await.unwrap();
        (revision, updates)
    });
    for revision in 2..=3 {
        settle().await;
        assert!(!waits.is_finished());
        world.agent.rotate_now();
        world
            .time_until(|| source.state().revision == revision)
            .await;
    }
    let (revision, mut updates) = soon("the third", waits).await.unwrap();
    assert_eq!(revision, 3);
    assert!(updates.changed().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn as_a_stream_it_ends_with_the_source() {
    let world = World::new().await;
    let source = world.source().await;
    let mut stream = source.updated();
    assert!(stream.next().now_or_never().is_none());
    world.agent.rotate_now();
    assert_eq!(soon("the change", stream.next()).await, Some(2));
    // A handle and its stream share one position.
    assert!(stream.changed().now_or_never().is_none());
    let mut clone = stream.clone();
    world.agent.withdraw();
    assert_eq!(soon("the withdrawal", stream.next()).await, Some(3));
    assert_eq!(soon("the withdrawal", clone.changed()).await.unwrap(), 3);
    source.shutdown().await;
    assert_eq!(stream.next().await, None);
    assert_eq!(stream.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn shutdown_ends_updates_without_a_change() {
    let agent = agent::start(TD).await;
    for _ in 0..100 {
        let source = agent.source().await.unwrap();
        let waits: Vec<_> = (0..16)
            .map(|_| {
                let mut updates = source.updated();
                tokio::spawn(async move { updates.changed().await })
            })
            .collect();
        tokio::task::yield_now().await;
        source.shutdown().await;
        for wait in waits {
            let ended = soon("the end", wait).await.unwrap();
            let reason = ended.map_err(|error| error.reason());
            assert_eq!(reason, Err(JwtSourceErrorReason::Closed));
        }
    }
}
