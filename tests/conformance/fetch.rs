//! JF: fetching JWT-SVIDs.

use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::{GrpcCode, SvidRequest, TokenErrorReason};
use tower_spiffe_test_support::raw_agent::RawAgent;
use tower_spiffe_test_support::signer::NOW;

use crate::support::*;

/// Returns a token that the agent returns unchanged; it expires in 2100.
fn token(sub: &str, audiences: &[&str]) -> String {
    let claims =
        serde_json::json!({"sub": sub, "aud": audiences, "iat": NOW, "exp": 4_102_444_800_i64});
    key("key-1").sign(&claims)
}

async fn forwards(audiences: &[&str]) {
    let agent = RawAgent::default();
    let served = token(WORKLOAD, audiences);
    agent.answer(&[(WORKLOAD, &served, "")]);
    let request = SvidRequest::new(audiences.iter().copied()).unwrap();
    let fetched = agent.client().fetch_jwt_svid(&request).await.unwrap();
    assert_eq!(fetched.token(), served);
    let asked = agent.asked();
    assert_eq!(asked.len(), 1);
    let mut sorted = audiences.to_vec();
    sorted.sort_unstable();
    assert_eq!(asked[0].audience, sorted);
    assert_eq!(asked[0].spiffe_id, "");
}

#[tokio::test]
async fn jf_01_audience_is_requested_and_token_returned() {
    forwards(&[AUDIENCE]).await;
}

#[tokio::test]
async fn jf_02_several_audiences_are_forwarded() {
    forwards(&[AUDIENCE, "spiffe://test.example.org/backend", "another"]).await;
}

#[tokio::test]
async fn jf_03_spiffe_id_is_forwarded() {
    let other = "spiffe://test.example.org/other";
    let agent = RawAgent::default();
    let (theirs, served) = (token(WORKLOAD, &[AUDIENCE]), token(other, &[AUDIENCE]));
    // The agent of the suite returns both, for any request.
    agent.answer(&[(WORKLOAD, &theirs, ""), (other, &served, "")]);
    let request = SvidRequest::new([AUDIENCE]).unwrap();
    let request = request.with_spiffe_id(other.parse().unwrap());
    let fetched = agent.client().fetch_jwt_svid(&request).await.unwrap();
    assert_eq!(fetched.token(), served);
    assert_eq!(agent.asked()[0].spiffe_id, other);
}

#[tokio::test(start_paused = true)]
async fn jf_04_denied_fetch_returns_no_token() {
    let live = Live::start().await;
    live.source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    let denied = Fault::Refuse(GrpcCode::PermissionDenied);
    live.agent.fail_call(AgentCall::FetchJwtSvid, denied);
    let error = live.source.fetch_jwt_svid([AUDIENCE]).await.unwrap_err();
    let reason = JwtSourceErrorReason::Token(TokenErrorReason::Denied);
    assert_eq!(error.reason(), reason);
}
