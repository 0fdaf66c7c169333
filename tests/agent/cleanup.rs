//! Tasks and connections end.

use std::time::Duration;

use tokio::runtime::Handle;
use tower_spiffe::testing::{FakeAgent, Fault};
use tower_spiffe::token::GrpcCode;

use crate::support::*;

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn calls_that_hang_end_with_their_clients() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let before = tasks();
    agent.fail(Fault::Hang);
    for _ in 0..5 {
        let client = dial(&agent).await;
        for _ in 0..5 {
            let waited = tokio::time::timeout(Duration::from_millis(5), client.token(AUD)).await;
            assert!(waited.is_err());
        }
    }
    eventually(|| tasks() == before && agent.counts().open_connections == 0).await;
}

#[tokio::test]
async fn faults_leave_no_tasks_or_connections() {
    let before = tasks();
    let agent = FakeAgent::start(TD).await.unwrap();
    for fault in [
        Fault::Slow(Duration::from_millis(1)),
        Fault::HangUp,
        Fault::Garbage,
        Fault::NotProtobuf,
        Fault::HalfOpen,
        Fault::Refuse(GrpcCode::Unavailable),
    ] {
        let client = dial(&agent).await;
        let mut stream = client.bundles().await.unwrap();
        next_key_ids(&mut stream, TD).await;
        agent.fail(fault);
        let again = tokio::time::timeout(Duration::from_millis(50), client.bundles()).await;
        drop((client, stream, again));
        agent.recover();
    }
    agent.rotate().await;
    agent.rotate_every(Duration::from_secs(3_600));
    agent.cut_connections().await;
    eventually(|| agent.counts().open_connections == 0 && agent.counts().open_streams == 0).await;
    drop(agent);
    eventually(|| tasks() == before).await;
}
