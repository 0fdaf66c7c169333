//! Streams that send recorded messages of a real SPIRE agent, byte for byte.

use std::collections::HashMap;

use serde::Deserialize;
use tonic::Code;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::GrpcCode;

use crate::support::*;

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Bundles { bundles: HashMap<String, String> },
    StreamEnd { code: i32, message: String },
}

fn recording() -> Vec<Line> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/spire/bundles.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn recording_is_replayed_byte_for_byte() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let replay = agent.replay();
    let sent = async {
        for line in recording() {
            match line {
                Line::Bundles { bundles } => replay.send(bundles).await,
                Line::StreamEnd { code, message } => {
                    replay.end(GrpcCode::from_i32(code), &message).await;
                }
            }
        }
    };
    let heard = async {
        let mut stream = client.bundles().await.unwrap();
        for line in recording() {
            let next = stream.message().await;
            match line {
                Line::Bundles { bundles } => {
                    let next = next.unwrap().unwrap();
                    assert_eq!(next.bundles.len(), bundles.len());
                    for (name, jwks) in bundles {
                        assert_eq!(next.bundles[&name], jwks.as_bytes());
                    }
                }
                Line::StreamEnd { code, message } => {
                    let status = next.unwrap_err();
                    assert_eq!(status.code(), Code::from_i32(code));
                    assert_eq!(status.message(), message);
                    stream = client.bundles().await.unwrap();
                }
            }
        }
    };
    tokio::join!(sent, heard);
    assert_eq!(recording().len(), 16);
}

#[tokio::test]
async fn replay_waits_for_clients_and_ends() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let replay = agent.replay();
    let client = dial(&agent).await;
    let (_, mut stream) = tokio::join!(replay.send([("x", vec![0xff, 0])]), async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let mut stream = client.bundles().await.unwrap();
        let said = stream.message().await.unwrap().unwrap();
        assert_eq!(said.bundles["x"], vec![0xff, 0]);
        stream
    });
    // Changes that are published meanwhile are not sent.
    agent.issuer().rotate_now();
    assert!(silent(&mut stream).await);
    drop(replay);
    assert_eq!(next_key_ids(&mut stream, TD).await.len(), 2);
}

#[tokio::test]
async fn replayed_clean_end_is_clean() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let replay = agent.replay();
    let client = dial(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let (_, ended) = tokio::join!(replay.end(GrpcCode::Ok, ""), end(&mut stream));
    assert_eq!(ended, Code::Ok);
}
