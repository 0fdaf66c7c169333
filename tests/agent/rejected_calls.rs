//! Every invalid call that was recorded with a SPIRE agent gets the same status here.

use serde::Deserialize;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tower_spiffe::testing::FakeAgent;

use crate::support::*;
use crate::wire::pb::JwtBundlesRequest;

#[derive(Deserialize)]
struct RejectedCall {
    call: String,
    code: i32,
}

/// Makes the call that the recording describes.
async fn ask(client: &Client, call: &str) -> Result<(), Status> {
    let mut raw = client.0.clone();
    match call {
        "FetchJWTSVID without the security header" => raw
            .fetch_jwtsvid(Request::new(wanted(&[AUD], "")))
            .await
            .map(drop),
        "FetchJWTSVID with workload.spiffe.io: 1" => {
            let mut request = Request::new(wanted(&[AUD], ""));
            let one = MetadataValue::from_static("1");
            request.metadata_mut().insert("workload.spiffe.io", one);
            raw.fetch_jwtsvid(request).await.map(drop)
        }
        "FetchJWTSVID without an audience" => client.fetch(&[], "").await.map(drop),
        "FetchJWTSVID with an empty audience" => client.fetch(&[""], "").await.map(drop),
        "FetchJWTSVID with a malformed spiffe_id" => client.fetch(&[AUD], "x").await.map(drop),
        "FetchJWTSVID with an unregistered spiffe_id" => {
            let id = "spiffe://example.org/unregistered";
            client.fetch(&[AUD], id).await.map(drop)
        }
        "FetchJWTBundles without the security header" => raw
            .fetch_jwt_bundles(Request::new(JwtBundlesRequest {}))
            .await
            .map(drop),
        "FetchJWTBundles" => client.bundles().await?.message().await.map(drop),
        "ValidateJWTSVID without an audience" => client.validate("", "x").await.map(drop),
        "ValidateJWTSVID without a token" => client.validate(AUD, "").await.map(drop),
        "ValidateJWTSVID of rubbish" => client.validate(AUD, "rubbish").await.map(drop),
        other => panic!("unknown call in the recording: {other}"),
    }
}

#[tokio::test]
async fn invalid_calls_get_the_status_of_spire() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/spire/refusals.jsonl");
    let recording = std::fs::read_to_string(path).unwrap();
    assert_eq!(recording.lines().count(), 11);
    for line in recording.lines() {
        let recorded: RejectedCall = serde_json::from_str(line).unwrap();
        let code = match ask(&client, &recorded.call).await {
            Ok(()) => Code::Ok,
            Err(status) => status.code(),
        };
        assert_eq!(code, Code::from_i32(recorded.code), "{}", recorded.call);
    }
}

/// Header and claims have the members of a recorded token, with the same types. `iss` and `jti` are
/// deployment-specific.
#[tokio::test]
async fn tokens_have_the_members_of_spires() {
    use crate::issuer::part;
    use serde_json::Value;

    fn shape(part: &Value) -> Vec<(String, std::mem::Discriminant<Value>)> {
        part.as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| !["iss", "jti"].contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), std::mem::discriminant(value)))
            .collect()
    }

    let agent = FakeAgent::start(TD).await.unwrap();
    let ours = dial(&agent).await.token(AUD).await.unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/spire/run.jsonl");
    let recording = std::fs::read_to_string(path).unwrap();
    let tokens: Vec<String> = recording
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| Some(line.get("token")?.as_str()?.to_owned()))
        .collect();
    assert!(tokens.len() > 20);
    for token in tokens {
        for at in [0, 1] {
            assert_eq!(shape(&part(&ours, at)), shape(&part(&token, at)));
        }
    }
}
