//! Messages are read even if the runtime's blocking pool is full.

use std::sync::mpsc;

use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator};

use crate::support::*;

/// All threads for blocking work are busy. No message of any size waits for them.
#[test]
fn e20_full_blocking_pool_delays_no_update() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let agent = FakeAgent::start_in_memory(TD).await.unwrap();
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
        let token = agent.token(WEB, AUD);
        assert!(validator.validate(&token).is_ok());

        let (open, gate) = mpsc::channel::<()>();
        let taken = tokio::task::spawn_blocking(move || gate.recv());
        let replay = agent.replay();
        let own = entry(agent.issuer());
        let sets = many_keys(199, 10).into_iter().chain([own.clone()]);
        soon("a reader", replay.send(sets)).await;
        soon("the large set", updates.changed()).await.unwrap();
        let set = source.bundle_set().unwrap();
        assert_eq!(set.len(), 200);
        assert_eq!(set.iter().map(|bundle| bundle.len()).sum::<usize>(), 1991);
        assert!(validator.validate(&token).is_ok());

        // One large document without the key.
        let empty = padded(br#"{"keys": []}"#, 100_000);
        soon("a reader", replay.send([(own.0, empty)])).await;
        soon("the revocation", updates.changed()).await.unwrap();
        assert!(validator.validate(&token).is_err());

        soon("a reader", replay.send([entry(agent.issuer())])).await;
        soon("the small set", updates.changed()).await.unwrap();
        assert!(source.is_healthy());
        open.send(()).unwrap();
        taken.await.unwrap().unwrap();
    });
}
