//! The Workload API client by itself: the three calls, driven by hand.

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

/// Two identities, and a client.
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
async fn wa20_the_token_is_for_the_audiences_asked_for_and_no_others() {
    let (world, client) = two().await;
    let both = SvidRequest::new(["z", "a", "z"]).unwrap();
    let svid = client.fetch_jwt_svid(&both).await.unwrap();
    let mut audiences: Vec<&str> = svid.audiences().iter().map(|it| &**it).collect();
    audiences.sort_unstable();
    assert_eq!(audiences, ["a", "z"]);
    // One call each, nothing cached.
    client.fetch_jwt_svid(&both).await.unwrap();
    assert_eq!(world.agent.counts().fetch_jwt_svid, 2);
    assert_eq!(world.agent.counts().connections, 1);

    // An agent that gives others, more or fewer is not believed.
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
async fn wa20_what_the_agent_would_refuse_for_ever_is_refused_before_asking() {
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
async fn wa21_without_an_id_all_identities_come_in_the_agents_order() {
    let (_world, client) = two().await;
    let svids = client.fetch_jwt_svids(&request()).await.unwrap();
    let all: Vec<_> = svids
        .iter()
        .map(|svid| (svid.spiffe_id().as_str(), svid.hint()))
        .collect();
    assert_eq!(all, [(WEB, "external"), (DB, "internal")]);
    // One alone: the first (WA-11), or the one that is named.
    let first = client.fetch_jwt_svid(&request()).await.unwrap();
    assert_eq!(first.spiffe_id().as_str(), WEB);
    let named = request().with_spiffe_id(id(DB));
    let svids = client.fetch_jwt_svids(&named).await.unwrap();
    assert_eq!(svids.len(), 1);
    assert_eq!(svids[0].spiffe_id().as_str(), DB);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_chosen_by_its_hint() {
    let (world, client) = two().await;
    let by = |hint| request().with_hint(hint).unwrap();
    let svid = client.fetch_jwt_svid(&by("internal")).await.unwrap();
    assert_eq!((svid.spiffe_id().as_str(), svid.hint()), (DB, "internal"));
    let error = client.fetch_jwt_svid(&by("no such")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NoSuchHint);
    assert!(error.to_string().contains("\"no such\""), "{error}");
    // It may be registered yet.
    assert!(error.is_retryable());
    // Each is one call: the hint is no field of it.
    assert_eq!(world.agent.counts().fetch_jwt_svid, 2);
}

#[tokio::test(start_paused = true)]
async fn wa22_an_answer_without_its_mandatory_fields_is_none() {
    let raw = RawAgent::default();
    let client = raw.client();
    let good = issuer().token(WEB, AUD).sign();
    let long = issuer()
        .token(WEB, AUD)
        .claim("pad", "x".repeat(9000))
        .sign();
    for (svids, says) in [
        (&[][..], "holds no token"),
        (&[("", good.as_str(), "")], "another identity"),
        (&[(DB, good.as_str(), "")], "another identity"),
        (&[(WEB, "", "")], "cannot be used"),
        (&[(WEB, "rubbish", "")], "cannot be used"),
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
    // One that was asked for by ID must be that one.
    raw.answer(&[(WEB, &good, "")]);
    let named = request().with_spiffe_id(id(DB));
    let error = client.fetch_jwt_svid(&named).await.unwrap_err();
    assert!(
        error.to_string().contains("asked for a token of"),
        "{error}"
    );
    assert_eq!(raw.asked().last().unwrap().spiffe_id, DB);
}

#[tokio::test(start_paused = true)]
async fn wa23_of_equal_hints_the_first_counts_and_empty_ones_are_not_equal() {
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
async fn wa12_a_hint_that_is_missing_unexpected_or_too_long_is_coped_with() {
    let raw = RawAgent::default();
    let client = raw.client();
    let token = issuer().token(WEB, AUD).sign();
    let (just, long) = ("h".repeat(1024), "h".repeat(1025));
    for (hint, kept) in [
        ("", ""),
        ("of another \u{1b}[1mkind", "of another \u{1b}[1mkind"),
        (&just, &just),
        // Nobody has to keep what nobody should send; the token is good all the same.
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
async fn an_odd_token_of_another_identity_is_no_matter_of_the_one_asked_for() {
    let raw = RawAgent::default();
    let client = raw.client();
    let token = issuer().token(WEB, AUD).sign();
    raw.answer(&[(WEB, &token, "mine"), (DB, "rubbish", "theirs")]);
    let svid = client.fetch_jwt_svid(&request()).await.unwrap();
    assert_eq!(svid.token(), token);
    raw.answer(&[(DB, "rubbish", "theirs"), (WEB, &token, "mine")]);
    let by_hint = request().with_hint("mine").unwrap();
    let found = client.fetch_jwt_svid(&by_hint).await.unwrap();
    assert_eq!(found.token(), token);
    let by_id = request().with_spiffe_id(id(WEB));
    let found = client.fetch_jwt_svid(&by_id).await.unwrap();
    assert_eq!(found.token(), token);
    // Whoever asks for all is told.
    assert!(client.fetch_jwt_svids(&request()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn wa24_what_is_not_authorized_is_denied_and_may_be_later() {
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
async fn ep12_to_ep14_each_status_of_each_call_has_its_class() {
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
async fn wa30_the_agent_judges_a_token_and_gives_its_claims() {
    let (world, client) = two().await;
    let judged = client.validate_jwt_svid(AUD, &world.token()).await.unwrap();
    assert_eq!(judged.spiffe_id().as_str(), WEB);
    assert_eq!(judged.claims()["sub"], WEB);
    assert_eq!(judged.claims()["aud"], serde_json::json!([AUD]));
    assert!(judged.claims()["exp"].is_i64());
    assert_eq!(world.agent.counts().validate_jwt_svid, 1);
}

#[tokio::test(start_paused = true)]
async fn ep12_a_token_that_the_agent_refuses_is_no_fault_of_the_client() {
    let (world, client) = two().await;
    let good = world.token();
    for bad in [
        world.agent.token(WEB, "somebody-else"),
        good[..good.len() - 4].to_owned(),
        "rubbish".to_owned(),
    ] {
        let error = client.validate_jwt_svid(AUD, &bad).await.unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidArgument);
        // Final for this token, and for no other one.
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("refuses the token"), "{text}");
        assert!(!text.contains("workload.spiffe.io"), "{text}");
        assert!(!text.contains("eyJ"), "{text}");
        client.validate_jwt_svid(AUD, &good).await.unwrap();
    }
    // Of the other calls it is.
    let invalid = Fault::Refuse(GrpcCode::InvalidArgument);
    world.agent.fail_call(AgentCall::FetchJwtSvid, invalid);
    let error = client.fetch_jwt_svid(&request()).await.unwrap_err();
    assert!(error.to_string().contains("workload.spiffe.io"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn wa30_a_verdict_without_its_mandatory_fields_is_none() {
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
async fn wa25_wa26_the_bundle_stream_is_driven_by_hand() {
    let (world, client) = two().await;
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(names(&first), ["spiffe://example.org"]);
    let (_, jwks) = first.iter().next().unwrap();
    assert_eq!(jwks, world.agent.issuer().jwks());
    assert!(!first.is_empty());

    // As it comes: the whole set each time, equal sets and empty ones too.
    world.agent.federate(OTHER).unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(
        names(&second),
        ["spiffe://example.org", "spiffe://other.test"]
    );
    assert_eq!(second.len(), 2);
    let replay = world.agent.replay();
    replay.send([("spiffe://example.org", "rubbish")]).await;
    let raw = stream.message().await.unwrap().unwrap();
    assert_eq!(
        raw.iter().next(),
        Some(("spiffe://example.org", &b"rubbish"[..]))
    );
    let nothing: [(&str, &str); 0] = [];
    replay.send(nothing).await;
    assert!(stream.message().await.unwrap().unwrap().is_empty());
    drop(replay);
    stream.message().await.unwrap().unwrap();

    // A dropped wait loses nothing; as a `Stream` it gives the same.
    assert!(
        tokio::time::timeout(secs(60), stream.message())
            .await
            .is_err()
    );
    world.agent.unfederate(OTHER);
    let third = stream.next().await.unwrap().unwrap();
    assert_eq!(names(&third), ["spiffe://example.org"]);
    // Its end is an error, then nothing more; the next one is up to whoever drives it.
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
async fn a_clean_end_of_the_stream_is_none_and_no_error() {
    let (world, client) = two().await;
    world.agent.fail(Fault::HangUp);
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(stream.message().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn wa5_a_stream_without_its_first_message_ends_in_time() {
    let (world, client) = two().await;
    // The stream is opened, and says nothing.
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
        let says = format!("gave no answer within {within}s");
        assert!(error.to_string().contains(&says), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dead_is_exchanged_after_the_first_call_that_shows_it() {
    let (world, client) = two().await;
    client.fetch_jwt_svid(&request()).await.unwrap();
    world.agent.half_open();
    // However many wait on it, it is exchanged once.
    let wanted = request();
    let calls = (0..20).map(|_| client.fetch_jwt_svid(&wanted));
    for call in futures_util::future::join_all(calls).await {
        call.unwrap_err();
    }
    for _ in 0..3 {
        client.fetch_jwt_svid(&request()).await.unwrap();
    }
    assert_eq!(world.agent.counts().connections, 2);
    // The same for a stream that says nothing.
    world.agent.half_open();
    client.fetch_jwt_bundles().await.map(drop).unwrap_err();
    client.fetch_jwt_bundles().await.unwrap();
    assert_eq!(world.agent.counts().connections, 3);
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_costs_its_call_and_no_other() {
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
async fn an_answer_has_a_limit_of_its_own() {
    let (world, client) = two().await;
    world
        .agent
        .fail_call(AgentCall::FetchJwtSvid, Fault::Oversized(5 << 20));
    let error = client.fetch_jwt_svid(&request()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::MessageTooLarge);
    assert_eq!(error.code(), None, "the agent did not say so");
    world
        .agent
        .fail_call(AgentCall::FetchJwtBundles, Fault::Oversized(5 << 20));
    let mut stream = client.fetch_jwt_bundles().await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
}

#[test]
fn outside_of_a_runtime_a_client_is_an_error() {
    let endpoint = "unix:///nowhere.sock".parse().unwrap();
    let error = WorkloadApiClient::connect(&endpoint).unwrap_err();
    assert_eq!(error.reason(), Reason::NoRuntime);
    assert!(error.to_string().contains("runtime.enter()"), "{error}");
}
