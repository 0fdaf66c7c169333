//! The three calls of the Workload API client, without a source.

use futures_util::StreamExt as _;
use tokio::time::Instant;
use tower_spiffe::SpiffeId;
use tower_spiffe::testing::{AgentCall, Fault, Issuer};
use tower_spiffe::token::{GrpcCode, SvidRequest};
use tower_spiffe::workload_api::{
    JwtBundlesMessage, WorkloadApiClient, WorkloadApiError, WorkloadApiErrorReason as Reason,
};

use crate::raw_agent::RawAgent;
use crate::support::*;
use crate::wire::pb::ValidateJwtsvidResponse;

const DB: &str = "spiffe://example.org/db-user";

fn client(world: &World) -> WorkloadApiClient {
    WorkloadApiClient::with_connector(world.agent.connector())
        .clock(tower_spiffe::clock::SystemClock::shared())
        .build()
        .unwrap()
}

fn request() -> SvidRequest {
    SvidRequest::new([AUD]).unwrap()
}

fn id(id: &str) -> SpiffeId {
    SpiffeId::parse(id).unwrap()
}

/// An agent with two identities, and its client.
async fn two() -> (World, WorkloadApiClient) {
    let world = World::new().await;
    world.agent.register(WEB, "external", secs(300)).unwrap();
    world.agent.register(DB, "internal", secs(300)).unwrap();
    let client = client(&world);
    (world, client)
}

fn issuer() -> Issuer {
    Issuer::new(TD).unwrap()
}

#[tokio::test(start_paused = true)]
async fn wa20_token_has_exactly_the_requested_audiences() {
    let (world, client) = two().await;
    let both = SvidRequest::new(["z", "a", "z"]).unwrap();
    let svid = client.fetch_jwt_svid(&both).await.unwrap();
    let mut audiences: Vec<&str> = svid.audiences().collect();
    audiences.sort_unstable();
    assert_eq!(audiences, ["a", "z"]);
    // One call each, nothing cached.
    client.fetch_jwt_svid(&both).await.unwrap();
    assert_eq!(world.agent.counts().fetch_jwt_svid, 2);
    assert_eq!(world.agent.counts().connections, 1);

    // A token for other, more or fewer audiences is rejected.
    let raw = RawAgent::default();
    let raw_client = raw.client();
    for audiences in [&["other"][..], &["a"], &["a", "z", "more"], &[]] {
        let token = issuer()
            .token(WEB, "x")
            .audiences(audiences.iter().copied());
        raw.answer(&[(WEB, &token.sign(), "")]);
        let error = raw_client.fetch_jwt_svid(&both).await.unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidAnswer, "{error}");
    }
    assert_eq!(raw.asked()[0].audience, ["a", "z"]);
    assert_eq!(raw.asked()[0].spiffe_id, "");
}

#[tokio::test(start_paused = true)]
async fn wa20_invalid_requests_fail_without_a_call() {
    let none: [&str; 0] = [];
    assert!(SvidRequest::new(none).is_err());
    assert!(SvidRequest::new(["a", ""]).is_err());
    assert!(request().with_hint("").is_err());
    let (world, client) = two().await;
    for (audience, token) in [("", "a.b.c"), (AUD, "")] {
        let error = client.validate_jwt_svid(audience, token).await.unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidRequest);
        assert!(!error.is_retryable() && error.to_string().contains("empty"));
    }
    assert_eq!(world.agent.counts().validate_jwt_svid, 0);
}

#[tokio::test(start_paused = true)]
async fn wa21_all_identities_keep_the_agents_order() {
    let (_world, client) = two().await;
    let svids = client.fetch_jwt_svids(&request()).await.unwrap();
    let all: Vec<_> = svids
        .iter()
        .map(|svid| (svid.spiffe_id().as_str(), svid.hint()))
        .collect();
    assert_eq!(all, [(WEB, "external"), (DB, "internal")]);
    // `fetch_jwt_svid` returns the first (WA-11), or the one with this SPIFFE ID.
    let first = client.fetch_jwt_svid(&request()).await.unwrap();
    assert_eq!(first.spiffe_id().as_str(), WEB);
    let named = request().with_spiffe_id(id(DB));
    let svids = client.fetch_jwt_svids(&named).await.unwrap();
    assert_eq!(svids.len(), 1);
    assert_eq!(svids[0].spiffe_id().as_str(), DB);
}

#[tokio::test(start_paused = true)]
async fn hint_selects_an_identity() {
    let (world, client) = two().await;
    let by = |hint| request().with_hint(hint).unwrap();
    let svid = client.fetch_jwt_svid(&by("internal")).await.unwrap();
    assert_eq!((svid.spiffe_id().as_str(), svid.hint()), (DB, "internal"));
    let error = client.fetch_jwt_svid(&by("unknown")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NoSuchHint);
    assert!(error.to_string().contains("\"unknown\""), "{error}");
    // The entry may be registered later.
    assert!(error.is_retryable());
    // Each is one call: the request message has no field for the hint.
    assert_eq!(world.agent.counts().fetch_jwt_svid, 2);
}

#[tokio::test(start_paused = true)]
async fn wa22_response_without_mandatory_fields_is_rejected() {
    let raw = RawAgent::default();
    let client = raw.client();
    let good = issuer().token(WEB, AUD).sign();
    let long = issuer()
        .token(WEB, AUD)
        .claim("pad", "x".repeat(9000))
        .sign();
    for (svids, says) in [
        (&[][..], "has no token"),
        (&[("", good.as_str(), "")], "is not the `sub`"),
        (&[(DB, good.as_str(), "")], "is not the `sub`"),
        (&[(WEB, "", "")], "cannot be used"),
        (&[(WEB, "not a token", "")], "cannot be used"),
        (&[(WEB, long.as_str(), "")], "cannot be used"),
    ] {
        raw.answer(svids);
        for error in [
            client.fetch_jwt_svid(&request()).await.unwrap_err(),
            client.fetch_jwt_svids(&request()).await.unwrap_err(),
        ] {
            assert_eq!(error.reason(), Reason::InvalidAnswer);
            let text = error.to_string();
            assert!(text.contains(says), "{text}");
            assert!(!text.contains(&good[..20]), "{text}");
            assert!(error.is_retryable());
        }
    }
    // A response must be for the SPIFFE ID in the request.
    raw.answer(&[(WEB, &good, "")]);
    let named = request().with_spiffe_id(id(DB));
    let error = client.fetch_jwt_svid(&named).await.unwrap_err();
    assert!(error.to_string().contains("the request is for"), "{error}");
    assert_eq!(raw.asked().last().unwrap().spiffe_id, DB);
}

#[tokio::test(start_paused = true)]
async fn wa23_first_of_equal_hints_counts() {
    let raw = RawAgent::default();
    let client = raw.client();
    let issuer = issuer();
    let ids = ["a", "b", "c", "d", "e"].map(|path| format!("spiffe://{TD}/{path}"));
    let tokens = ids.clone().map(|id| issuer.token(&id, AUD).sign());
    let hints = ["", "same", "same", "", "other"];
    let svids: Vec<_> = (0..5).map(|n| (&*ids[n], &*tokens[n], hints[n])).collect();
    raw.answer(&svids);
    let kept = client.fetch_jwt_svids(&request()).await.unwrap();
    let kept: Vec<&str> = kept.iter().map(|svid| svid.spiffe_id().as_str()).collect();
    assert_eq!(kept, [&ids[0], &ids[1], &ids[3], &ids[4]]);
    let same = request().with_hint("same").unwrap();
    let svid = client.fetch_jwt_svid(&same).await.unwrap();
    assert_eq!(svid.spiffe_id().as_str(), ids[1]);
}

#[tokio::test(start_paused = true)]
async fn wa12_missing_or_invalid_hints_are_ignored() {
    let raw = RawAgent::default();
    let client = raw.client();
    let token = issuer().token(WEB, AUD).sign();
    let (just, long) = ("h".repeat(1024), "h".repeat(1025));
    for (hint, kept) in [
        ("", ""),
        ("of another \u{1b}[1mkind", "of another \u{1b}[1mkind"),
        (&just, &just),
        // An invalid hint is ignored; the token is valid.
        (&long, ""),
    ] {
        raw.answer(&[(WEB, &token, hint)]);
        let svid = client.fetch_jwt_svid(&request()).await.unwrap();
        assert_eq!(svid.hint(), kept);
        let all = client.fetch_jwt_svids(&request()).await.unwrap();
        assert_eq!((all.len(), all[0].hint()), (1, kept));
    }
    let asks_for_long = request().with_hint(&long).unwrap();
    let error = client.fetch_jwt_svid(&asks_for_long).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NoSuchHint);
}

#[tokio::test(start_paused = true)]
async fn invalid_token_affects_only_its_identity() {
    let raw = RawAgent::default();
    let client = raw.client();
    let token = issuer().token(WEB, AUD).sign();
    raw.answer(&[(WEB, &token, "mine"), (DB, "not a token", "theirs")]);
    let svid = client.fetch_jwt_svid(&request()).await.unwrap();
    assert_eq!(svid.token(), token);
    raw.answer(&[(DB, "not a token", "theirs"), (WEB, &token, "mine")]);
    let by_hint = request().with_hint("mine").unwrap();
    let found = client.fetch_jwt_svid(&by_hint).await.unwrap();
    assert_eq!(found.token(), token);
    let by_id = request().with_spiffe_id(id(WEB));
    let found = client.fetch_jwt_svid(&by_id).await.unwrap();
    assert_eq!(found.token(), token);
    // `fetch_jwt_svids` returns the error.
    assert!(client.fetch_jwt_svids(&request()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn wa24_unauthorized_identity_is_denied_and_retryable() {
    let (world, client) = two().await;
    let other = request().with_spiffe_id(id("spiffe://example.org/not-ours"));
    let not_ours = client.fetch_jwt_svid(&other).await.unwrap_err();
    world.agent.withdraw();
    let nothing = client.fetch_jwt_svids(&request()).await.unwrap_err();
    for error in [not_ours, nothing] {
        assert_eq!(error.reason(), Reason::PermissionDenied);
        assert_eq!(error.code(), Some(GrpcCode::PermissionDenied));
        assert!(error.is_retryable());
        assert!(error.to_string().contains("registration entry"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn ep12_to_ep14_each_status_is_classified() {
    let (world, client) = two().await;
    for (code, reason, retryable) in [
        (GrpcCode::InvalidArgument, Reason::InvalidArgument, false),
        (GrpcCode::Unimplemented, Reason::Unimplemented, false),
        (GrpcCode::Unavailable, Reason::Unavailable, true),
        (GrpcCode::PermissionDenied, Reason::PermissionDenied, true),
        (GrpcCode::Aborted, Reason::Status, true),
    ] {
        world.agent.fail(Fault::Refuse(code));
        let token = world.token();
        let errors = [
            client.fetch_jwt_svid(&request()).await.unwrap_err(),
            client.fetch_jwt_bundles().await.map(drop).unwrap_err(),
            client.validate_jwt_svid(AUD, &token).await.unwrap_err(),
        ];
        for (error, call) in
            errors
                .iter()
                .zip(["FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"])
        {
            assert_eq!((error.reason(), error.code()), (reason, Some(code)));
            assert_eq!(error.is_retryable(), retryable, "{error}");
            assert_eq!(error.call().to_string(), call);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{call}: the agent at "))
            );
        }
    }
    assert_eq!(world.agent.counts().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn wa30_agent_validates_a_token_and_returns_claims() {
    let (world, client) = two().await;
    let validated = client.validate_jwt_svid(AUD, &world.token()).await.unwrap();
    assert_eq!(validated.spiffe_id().as_str(), WEB);
    assert_eq!(validated.claims()["sub"], WEB);
    assert_eq!(validated.claims()["aud"], serde_json::json!([AUD]));
    assert!(validated.claims()["exp"].is_i64());
    assert_eq!(world.agent.counts().validate_jwt_svid, 1);
}

#[tokio::test(start_paused = true)]
async fn ep12_rejected_token_is_not_a_client_error() {
    let (world, client) = two().await;
    let good = world.token();
    for bad in [
        world.agent.token(WEB, "another-audience"),
        good[..good.len() - 4].to_owned(),
        "not a token".to_owned(),
    ] {
        let error = client.validate_jwt_svid(AUD, &bad).await.unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidArgument);
        // Permanent for this token, but not for others.
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("rejects the token"), "{text}");
        assert!(!text.contains("workload.spiffe.io"), "{text}");
        assert!(!text.contains("eyJ"), "{text}");
        client.validate_jwt_svid(AUD, &good).await.unwrap();
    }
    // For the other calls, the status is an error of the client.
    let invalid = Fault::Refuse(GrpcCode::InvalidArgument);
    world.agent.fail_call(AgentCall::FetchJwtSvid, invalid);
    let error = client.fetch_jwt_svid(&request()).await.unwrap_err();
    assert!(error.to_string().contains("workload.spiffe.io"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn wa30_result_without_mandatory_fields_is_rejected() {
    let raw = RawAgent::default();
    let client = raw.client();
    let claims = Some(prost_types::Struct::default());
    for (spiffe_id, claims) in [("", claims.clone()), ("no id", claims), (WEB, None)] {
        raw.verdict(ValidateJwtsvidResponse {
            spiffe_id: spiffe_id.to_owned(),
            claims,
        });
        let error = client.validate_jwt_svid(AUD, "a.b.c").await.unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidAnswer, "{error}");
    }
}

fn names(message: &JwtBundlesMessage) -> Vec<&str> {
    let mut names: Vec<&str> = message.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names
}

#[tokio::test(start_paused = true)]
async fn wa25_wa26_bundle_stream_returns_each_message() {
    let (world, client) = two().await;
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(names(&first), ["spiffe://example.org"]);
    let (_, jwks) = first.iter().next().unwrap();
    assert_eq!(jwks, world.agent.issuer().jwks());
    assert!(!first.is_empty());

    // Messages are returned unchanged: the whole set each time, also if it is equal or empty.
    world.agent.federate(OTHER).unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(
        names(&second),
        ["spiffe://example.org", "spiffe://other.test"]
    );
    assert_eq!(second.len(), 2);
    let replay = world.agent.replay();
    replay
        .send([("spiffe://example.org", "not a JWK Set")])
        .await;
    let raw = stream.message().await.unwrap().unwrap();
    assert_eq!(
        raw.iter().next(),
        Some(("spiffe://example.org", &b"not a JWK Set"[..]))
    );
    let nothing: [(&str, &str); 0] = [];
    replay.send(nothing).await;
    assert!(stream.message().await.unwrap().unwrap().is_empty());
    drop(replay);
    stream.message().await.unwrap().unwrap();

    // Dropping a wait loses no message. The `Stream` implementation returns the same messages.
    assert!(
        tokio::time::timeout(secs(60), stream.message())
            .await
            .is_err()
    );
    world.agent.unfederate(OTHER);
    let third = stream.next().await.unwrap().unwrap();
    assert_eq!(names(&third), ["spiffe://example.org"]);
    // The stream ends with one error. It does not reconnect by itself.
    world.agent.withdraw();
    let error: WorkloadApiError = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Reason::PermissionDenied);
    assert!(stream.next().await.is_none());
    assert_eq!(stream.message().await.unwrap(), None);
    tokio::time::sleep(secs(600)).await;
    let counts = world.agent.counts();
    assert_eq!((counts.fetch_jwt_bundles, counts.connections), (1, 1));
    drop(client);
    drop(stream);
    let agent = &world.agent;
    eventually("the end", || agent.counts().open_connections == 0).await;
}

#[tokio::test(start_paused = true)]
async fn clean_stream_end_is_not_an_error() {
    let (world, client) = two().await;
    world.agent.fail(Fault::HangUp);
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(stream.message().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn wa5_stream_without_first_message_times_out() {
    let (world, client) = two().await;
    // The stream opens, and sends nothing.
    let _replay = world.agent.replay();
    let began = Instant::now();
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    let error = stream.message().await.unwrap_err();
    assert_eq!(
        (error.reason(), began.elapsed().as_secs()),
        (Reason::Timeout, 10)
    );
    assert!(
        error.to_string().contains("sent no bundles within 10s"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn every_call_has_its_deadline() {
    let (world, client) = two().await;
    world.agent.fail(Fault::Hang);
    for (within, outcome) in [
        (35, {
            let began = Instant::now();
            let error = client.fetch_jwt_svid(&request()).await.unwrap_err();
            (began.elapsed(), error)
        }),
        (35, {
            let began = Instant::now();
            let error = client.validate_jwt_svid(AUD, "a.b.c").await.unwrap_err();
            (began.elapsed(), error)
        }),
        (10, {
            let began = Instant::now();
            let error = client.fetch_jwt_bundles().await.map(drop).unwrap_err();
            (began.elapsed(), error)
        }),
    ] {
        let (took, error) = outcome;
        assert_eq!((took.as_secs(), error.reason()), (within, Reason::Timeout));
        let says = format!("did not respond within {within}s");
        assert!(error.to_string().contains(&says), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn dead_connection_is_replaced_after_one_timeout() {
    let (world, client) = two().await;
    client.fetch_jwt_svid(&request()).await.unwrap();
    world.agent.half_open();
    // Many calls wait on it; it is replaced once.
    let wanted = request();
    let calls = (0..20).map(|_| client.fetch_jwt_svid(&wanted));
    for call in futures_util::future::join_all(calls).await {
        call.unwrap_err();
    }
    for _ in 0..3 {
        client.fetch_jwt_svid(&request()).await.unwrap();
    }
    assert_eq!(world.agent.counts().connections, 2);
    // The same for a stream that sends nothing.
    world.agent.half_open();
    client.fetch_jwt_bundles().await.map(drop).unwrap_err();
    client.fetch_jwt_bundles().await.unwrap();
    assert_eq!(world.agent.counts().connections, 3);
}

#[tokio::test(start_paused = true)]
async fn panic_of_a_connector_fails_its_call_only() {
    let world = World::new().await;
    let dial = world.agent.connector();
    let dials = std::sync::atomic::AtomicU64::new(0);
    let client = WorkloadApiClient::with_connector(move || {
        if dials.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            std::panic::resume_unwind(Box::new("the connector's own fault"));
        }
        dial()
    })
    .build()
    .unwrap();
    let error = client.fetch_jwt_svid(&request()).await.unwrap_err();
    assert_eq!((error.reason(), error.code()), (Reason::Connect, None));
    assert!(
        error.to_string().contains("the connector panicked"),
        "{error}"
    );
    client.fetch_jwt_svid(&request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn response_size_is_limited() {
    let (world, client) = two().await;
    world
        .agent
        .fail_call(AgentCall::FetchJwtSvid, Fault::Oversized(5 << 20));
    let error = client.fetch_jwt_svid(&request()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::MessageTooLarge);
    assert_eq!(error.code(), None, "not a status from the agent");
    world
        .agent
        .fail_call(AgentCall::FetchJwtBundles, Fault::Oversized(5 << 20));
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
}

#[test]
fn client_without_a_runtime_is_an_error() {
    let endpoint = NO_AGENT.parse().unwrap();
    let error = WorkloadApiClient::connect(&endpoint).unwrap_err();
    assert_eq!(error.reason(), Reason::NoRuntime);
    assert!(error.to_string().contains("runtime.enter()"), "{error}");
}
