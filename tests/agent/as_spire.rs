//! The embedded Workload API without faults: it behaves like SPIRE's agent.

use std::time::Duration;

use prost_types::value::Kind;
use tonic::{Code, Request};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{Error, FakeAgent, PausedClock};

use crate::support::*;
use crate::wire::pb::JwtBundlesRequest;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn ep5_call_without_the_security_header_is_rejected() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let mut client = dial(&agent).await.0;
    let code = |result: Result<_, tonic::Status>| result.map(|_| ()).unwrap_err().code();

    let bare = Request::new(wanted(&[AUD], ""));
    assert_eq!(
        code(client.fetch_jwtsvid(bare).await.map(drop)),
        Code::InvalidArgument
    );
    let bare = Request::new(JwtBundlesRequest {});
    assert_eq!(
        code(client.fetch_jwt_bundles(bare).await.map(drop)),
        Code::InvalidArgument
    );

    let mut wrong = with_header(wanted(&[AUD], ""));
    wrong
        .metadata_mut()
        .insert("workload.spiffe.io", "1".parse().unwrap());
    assert_eq!(
        code(client.fetch_jwtsvid(wrong).await.map(drop)),
        Code::InvalidArgument
    );

    let mut twice = with_header(wanted(&[AUD], ""));
    twice
        .metadata_mut()
        .append("workload.spiffe.io", "true".parse().unwrap());
    assert_eq!(
        code(client.fetch_jwtsvid(twice).await.map(drop)),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn wa20_missing_and_empty_audiences_are_errors() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let code = async |audiences: &[&str]| client.fetch(audiences, "").await.unwrap_err().code();
    assert_eq!(code(&[]).await, Code::InvalidArgument);
    assert_eq!(code(&[""]).await, Code::Unavailable);
    // Next to another audience, the empty one is removed.
    let token = client.fetch(&["", AUD], "").await.unwrap().remove(0).svid;
    assert_eq!(claims(&token)["aud"], serde_json::json!([AUD]));
}

#[tokio::test]
async fn wa21_without_an_id_every_identity_gets_a_token() {
    let agent = FakeAgent::start(TD).await.unwrap();
    agent
        .register("spiffe://example.org/web", "external", MINUTE)
        .unwrap();
    agent
        .register("spiffe://example.org/jobs", "", 2 * MINUTE)
        .unwrap();
    agent
        .register("spiffe://example.org/more", "", MINUTE)
        .unwrap();
    agent
        .register("spiffe://example.org/twin", "external", MINUTE)
        .unwrap();
    let client = dial(&agent).await;
    let svids = client.fetch(&[AUD, "b"], "").await.unwrap();
    let received: Vec<_> = svids
        .iter()
        .map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str()))
        .collect();
    // WA-23: of two identities with one hint, the older one.
    assert_eq!(
        received,
        [
            ("spiffe://example.org/web", "external"),
            ("spiffe://example.org/jobs", ""),
            ("spiffe://example.org/more", ""),
        ]
    );
    for (svid, life) in svids.iter().zip([60, 120, 60]) {
        let claims = claims(&svid.svid);
        assert_eq!(claims["sub"], svid.spiffe_id);
        assert_eq!(claims["aud"], serde_json::json!([AUD, "b"]));
        let lives = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(lives, life);
    }

    let one = client
        .fetch(&[AUD], "spiffe://example.org/jobs")
        .await
        .unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].spiffe_id, "spiffe://example.org/jobs");
}

#[tokio::test]
async fn wa24_foreign_and_malformed_identities_are_errors() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let code = async |id: &str| client.fetch(&[AUD], id).await.unwrap_err().code();
    assert_eq!(
        code("spiffe://example.org/unregistered").await,
        Code::PermissionDenied
    );
    assert_eq!(
        code("spiffe://other.test/workload").await,
        Code::PermissionDenied
    );
    assert_eq!(code("not an id").await, Code::InvalidArgument);
}

#[tokio::test]
async fn agent_registers_only_its_own_trust_domain() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let error = agent.register("spiffe://other.test/x", "", MINUTE);
    assert!(matches!(error, Err(Error::ForeignTrustDomain)));
    assert!(matches!(
        agent.register("x", "", MINUTE),
        Err(Error::SpiffeId(_))
    ));
    assert!(matches!(
        FakeAgent::start("X").await,
        Err(Error::SpiffeId(_))
    ));
}

#[tokio::test]
async fn wa25_stream_sends_the_whole_set_each_time() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(
        first.bundles.keys().collect::<Vec<_>>(),
        ["spiffe://example.org"]
    );
    assert_eq!(first.bundles["spiffe://example.org"], agent.issuer().jwks());
    assert!(silent(&mut stream).await);

    let federated = agent.federate("other.test").unwrap();
    let both = stream.message().await.unwrap().unwrap();
    assert_eq!(both.bundles.len(), 2);
    assert_eq!(key_ids(&both, "other.test"), federated.key_ids());

    let new = federated.rotate_now();
    let rotated = stream.message().await.unwrap().unwrap();
    assert_eq!(key_ids(&rotated, "other.test")[1], new);

    agent.unfederate("other.test");
    let alone = stream.message().await.unwrap().unwrap();
    assert_eq!(alone, first);
    // A trust domain that is not federated any more is not followed.
    federated.rotate_now();
    assert!(silent(&mut stream).await);

    agent.federate_raw("other.test", "{\"keys\": []}").unwrap();
    let raw = stream.message().await.unwrap().unwrap();
    assert_eq!(raw.bundles["spiffe://other.test"], "{\"keys\": []}");
}

#[tokio::test]
async fn reordered_set_is_sent_like_spire() {
    let agent = FakeAgent::start(TD).await.unwrap();
    agent.issuer().rotate_now();
    let client = dial(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    let mut first = next_key_ids(&mut stream, TD).await;
    agent.send_again();
    let again = next_key_ids(&mut stream, TD).await;
    first.reverse();
    assert_eq!(again, first);
}

#[tokio::test]
async fn slow_reader_gets_only_the_latest_set() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    // All within one poll of this task, so the agent cannot send in between.
    for _ in 0..10 {
        agent.issuer().rotate_now();
    }
    assert_eq!(next_key_ids(&mut stream, TD).await.len(), 11);
    assert!(silent(&mut stream).await);
}

#[tokio::test]
async fn wa29_withdrawal_ends_the_stream() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    agent.withdraw();
    assert_eq!(end(&mut stream).await, Code::PermissionDenied);
    assert_eq!(
        client.token(AUD).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let mut denied = client.bundles().await.unwrap();
    assert_eq!(end(&mut denied).await, Code::PermissionDenied);
    // Validation needs no identity.
    let token = agent.token("spiffe://example.org/web", AUD);
    assert!(client.validate(AUD, &token).await.is_ok());

    agent.restore();
    assert!(client.token(AUD).await.is_ok());
    let mut back = client.bundles().await.unwrap();
    next_key_ids(&mut back, TD).await;

    agent.unregister("spiffe://example.org/workload");
    assert_eq!(end(&mut back).await, Code::PermissionDenied);
}

#[tokio::test]
async fn wa30_validate_returns_claims_or_invalid_argument() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let client = dial(&agent).await;
    let web = || agent.issuer().token("spiffe://example.org/web", AUD);

    let response = client
        .validate(AUD, &web().claim("tenant", 7).sign())
        .await
        .unwrap();
    assert_eq!(response.spiffe_id, "spiffe://example.org/web");
    let fields = response.claims.unwrap().fields;
    assert_eq!(fields["tenant"].kind, Some(Kind::NumberValue(7.0)));
    assert!(matches!(fields["aud"].kind, Some(Kind::ListValue(_))));
    let listed = client
        .validate(AUD, &web().claim("aud", AUD).sign())
        .await
        .unwrap();
    assert!(matches!(
        listed.claims.unwrap().fields["aud"].kind,
        Some(Kind::ListValue(_))
    ));

    let stranger = tower_spiffe::testing::Issuer::new(TD).unwrap();
    for (audience, token) in [
        ("", web().sign()),
        (AUD, String::new()),
        (AUD, "not a token".to_owned()),
        ("other", web().sign()),
        (AUD, web().expired(Duration::from_secs(90)).sign()),
        (AUD, web().signed_by(&stranger).sign()),
        (
            AUD,
            agent.issuer().token("spiffe://unknown.test/x", AUD).sign(),
        ),
    ] {
        let error = client.validate(audience, &token).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{}", error.message());
        assert!(token.is_empty() || !error.message().contains(&token));
    }
}

#[tokio::test]
async fn federated_tokens_return_only_spiffe_claims() {
    let agent = FakeAgent::start(TD).await.unwrap();
    let federated = agent.federate("other.test").unwrap();
    let client = dial(&agent).await;
    let token = federated
        .token("spiffe://other.test/x", AUD)
        .claim("tenant", 7)
        .sign();
    let claims = client.validate(AUD, &token).await.unwrap().claims.unwrap();
    let mut names: Vec<_> = claims.fields.keys().collect();
    names.sort();
    assert_eq!(names, ["aud", "exp", "sub"]);
    // `token` signs with the federated domain's key for a federated ID.
    let token = agent.token("spiffe://other.test/x", AUD);
    assert!(client.validate(AUD, &token).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn agent_caches_tokens_for_half_their_lifetime() {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = FakeAgent::builder(TD)
        .clock(clock.shared())
        .token_life(Duration::from_secs(1_000))
        .start_in_memory()
        .await
        .unwrap();
    let client = dial_in_memory(&agent).await;
    let first = client.token(AUD).await.unwrap();
    tokio::time::advance(Duration::from_secs(440)).await;
    assert_eq!(client.token(AUD).await.unwrap(), first);
    // Only the set of audiences matters, not their order.
    let ab = client.fetch(&["a", "b"], "").await.unwrap().remove(0).svid;
    let ba = client.fetch(&["b", "a"], "").await.unwrap().remove(0).svid;
    assert_eq!(ab, ba);
    assert_eq!(agent.counts().tokens_signed, 2);
    tokio::time::advance(Duration::from_secs(115)).await;
    assert_ne!(client.token(AUD).await.unwrap(), first);

    agent.forget_tokens();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_ne!(client.fetch(&["a", "b"], "").await.unwrap()[0].svid, ab);
}

#[tokio::test]
async fn without_a_cache_every_fetch_signs() {
    let agent = FakeAgent::builder(TD)
        .cache_tokens(false)
        .start()
        .await
        .unwrap();
    let client = dial(&agent).await;
    client.token(AUD).await.unwrap();
    client.token(AUD).await.unwrap();
    assert_eq!(agent.counts().tokens_signed, 2);
}

#[tokio::test]
async fn unknown_call_is_unimplemented() {
    use tonic::codegen::http::uri::PathAndQuery;
    let agent = FakeAgent::start_tcp(TD).await.unwrap();
    let address = format!("http://{}", agent.endpoint().tcp_address().unwrap());
    let channel = tonic::transport::Endpoint::new(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509SVID");
    let codec = tonic_prost::ProstCodec::<JwtBundlesRequest, JwtBundlesRequest>::default();
    let answer = grpc
        .unary(with_header(JwtBundlesRequest {}), path, codec)
        .await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn agent_counts_its_calls() {
    let agent = FakeAgent::start(TD).await.unwrap();
    assert_eq!(agent.counts(), tower_spiffe::testing::Counts::default());
    let client = dial(&agent).await;
    client.token(AUD).await.unwrap();
    client.token(AUD).await.unwrap();
    let _ = client.validate(AUD, "x").await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;
    let counts = agent.counts();
    assert_eq!((counts.connections, counts.open_connections), (1, 1));
    assert_eq!((counts.fetch_jwt_svid, counts.tokens_signed), (2, 1));
    assert_eq!(
        (
            counts.fetch_jwt_bundles,
            counts.open_streams,
            counts.bundle_messages
        ),
        (1, 1, 1)
    );
    assert_eq!(counts.validate_jwt_svid, 1);
    drop((client, stream));
    eventually(|| {
        let counts = agent.counts();
        counts.open_connections == 0 && counts.open_streams == 0
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn socket_is_private_and_removed() {
    use std::os::unix::fs::MetadataExt as _;
    let agent = FakeAgent::start(TD).await.unwrap();
    let endpoint = agent.endpoint();
    let socket = endpoint.unix_path().unwrap();
    let dir = socket.parent().unwrap();
    assert_eq!(std::fs::metadata(dir).unwrap().mode() & 0o777, 0o700);
    let client = dial(&agent).await;
    let mut stream = client.bundles().await.unwrap();
    next_key_ids(&mut stream, TD).await;

    let clone = agent.clone();
    drop(agent);
    assert!(client.token(AUD).await.is_ok());
    drop(clone);
    assert!(!dir.exists());
    assert!(stream.message().await.is_err());
}
