//! WA: behaviour of a Workload API client, on the JWT calls.

use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{AgentCall, Fault, RawSvid};
use tower_spiffe::token::{GrpcCode, TokenErrorReason};
use tower_spiffe::verify::ValidateReason;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn wa_1_closed_stream_is_opened_again() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (before, after) = (key("key-1"), key("key-2"));
    live.push(&replay, &[(TD, &[before.jwk()])]).await;
    live.accepts(&before, WORKLOAD);
    let streams = live.agent.counts().fetch_jwt_bundles;
    replay.end(GrpcCode::Unavailable, "restarting").await;
    // The last set is trusted until the stream is open again.
    settle().await;
    assert!(!live.source.state().connected);
    live.accepts(&before, WORKLOAD);
    live.push(&replay, &[(TD, &[after.jwk()])]).await;
    live.accepts(&after, WORKLOAD);
    live.rejects(&before, WORKLOAD, ValidateReason::KeyUnknown);
    assert!(live.agent.counts().fetch_jwt_bundles > streams);
}

#[tokio::test(start_paused = true)]
async fn wa_2_response_with_an_empty_field_is_discarded() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (first, last) = (key("key-1"), key("key-2"));
    live.push(&replay, &[(TD, &[first.jwk()])]).await;
    // A message without bundles.
    replay.send(Vec::<(String, String)>::new()).await;
    settle().await;
    assert!(live.source.state().discarding);
    live.accepts(&first, WORKLOAD);
    assert!(live.source.is_ready());
    let both = [first.jwk(), last.jwk()];
    live.push(&replay, &[(TD, &both)]).await;
    live.accepts(&last, WORKLOAD);

    // A response without tokens, without the ID, without the token.
    let token = live.agent.token(WORKLOAD, AUDIENCE);
    for svids in [
        vec![],
        vec![RawSvid::new("", &token, "")],
        vec![RawSvid::new(WORKLOAD, "", "")],
    ] {
        live.agent
            .fail_call(AgentCall::FetchJwtSvid, Fault::Svids(svids));
        let error = live.source.fetch_jwt_svid([AUDIENCE]).await.unwrap_err();
        let reason = JwtSourceErrorReason::Token(TokenErrorReason::Unacceptable);
        assert_eq!(error.reason(), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn wa_3_first_svid_is_the_default() {
    let live = Live::start().await;
    let other = "spiffe://test.example.org/other";
    for ids in [[WORKLOAD, other], [other, WORKLOAD]] {
        let svids = ids.map(|id| RawSvid::new(id, &live.agent.token(id, AUDIENCE), ""));
        live.agent
            .fail_call(AgentCall::FetchJwtSvid, Fault::Svids(svids.to_vec()));
        let svid = live.source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
        assert_eq!(svid.spiffe_id().as_str(), ids[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn wa_4_denied_stream_withdraws_bundles() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let signer = key("key-1");
    live.push(&replay, &[(TD, &[signer.jwk()])]).await;
    live.accepts(&signer, WORKLOAD);
    replay
        .end(GrpcCode::PermissionDenied, "no identity issued")
        .await;
    let withdrawn = async { eventually("the withdrawal", || !live.source.is_ready()).await };
    soon("the withdrawal", withdrawn).await;
    let error = live.validator.validate(&signer.sign(&claims(WORKLOAD)));
    let reason = error.unwrap_err().reason();
    assert!(
        matches!(reason, ValidateReason::BundlesUnavailable(_)),
        "{reason}"
    );
}
