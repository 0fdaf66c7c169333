//! A large message is read where nobody else is held up.

use std::sync::mpsc;

use tower_spiffe::testing::WorkloadApi;
use tower_spiffe::{JwtSource, Validator};

use crate::support::*;

/// The runtime has one thread that may block, and that one is taken: what is read there has to
/// wait, and what is read on the worker would not.
#[test]
fn reading_two_thousand_keys_is_no_work_of_a_runtime_worker() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let agent = WorkloadApi::start_in_memory(TD).await.unwrap();
        let source = JwtSource::builder()
            .connector(agent.connector())
            .build()
            .await
            .unwrap();
        let validator = Validator::builder(source.clone())
            .audience(AUD)
            .build()
            .unwrap();
        let mut updates = source.updated();

        let (open, gate) = mpsc::channel::<()>();
        let taken = tokio::task::spawn_blocking(move || gate.recv());
        let replay = agent.replay();
        let own = entry(agent.issuer());
        let sets = many_keys(199, 10).into_iter().chain([own]);
        soon("a reader", replay.send(sets)).await;
        // The worker is free all the while: it goes round and round, and judges callers.
        let token = agent.token(WEB, AUD);
        let sent = agent.counts().bundle_messages;
        for _ in 0..2_000 {
            tokio::task::yield_now().await;
            assert!(validator.validate(&token).is_ok());
        }
        assert_eq!(agent.counts().bundle_messages, sent);
        assert_eq!((updates.last(), source.bundle_set().unwrap().len()), (1, 1));

        open.send(()).unwrap();
        soon("the large set", updates.changed()).await.unwrap();
        taken.await.unwrap().unwrap();
        let set = source.bundle_set().unwrap();
        assert_eq!(set.len(), 200);
        assert_eq!(set.iter().map(|bundle| bundle.len()).sum::<usize>(), 1991);
        assert!(validator.validate(&token).is_ok());

        // A small one is not worth the way there: it needs no such thread.
        let (open, gate) = mpsc::channel::<()>();
        let taken = tokio::task::spawn_blocking(move || gate.recv());
        soon("a reader", replay.send([entry(agent.issuer())])).await;
        soon("the small set", updates.changed()).await.unwrap();
        open.send(()).unwrap();
        taken.await.unwrap().unwrap();
    });
}
