//! Access tokens of an OAuth authorization server, on paused time.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::bundle::{FixedBundles, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::metrics::{EXCHANGE_OUTCOMES, MetricsRecorder, SvidCacheEvent};
use tower_spiffe::oauth::{
    AccessTokens, AccessTokensBuilder, AccessTokensErrorReason, AssertionType, SubjectToken,
    TargetParameter,
};
use tower_spiffe::testing::{
    AgentCall, FakeAgent, FakeAuthorizationServer, Fault, PausedClock, TokenEndpointFault,
};
use tower_spiffe::token::{
    FetchSvidReason, GrpcCode, ParseJwtSvidError, SvidRequest, TokenError, TokenErrorReason,
};
use tower_spiffe::{AddJwtSvidLayer, Audience, JwtSource, JwtSvid, SvidCache};
use tracing::Level;

use crate::log::Log;
use crate::support::{START, millis, request, secs, settle};

const ISSUER: &str = "https://as.example.org";
pub const WORKLOAD: &str = "spiffe://example.org/workload";
pub const WEB: &str = "spiffe://example.org/web";
pub const CRON: &str = "spiffe://example.org/cron";

/// An agent, an authorization server, and a source of access tokens.
pub struct World {
    pub clock: PausedClock,
    pub agent: FakeAgent,
    pub source: JwtSource,
    pub server: FakeAuthorizationServer,
    pub tokens: AccessTokens,
    pub cache: SvidCache,
    pub recorder: Arc<Recorder>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    pub async fn with(options: impl FnOnce(AccessTokensBuilder) -> AccessTokensBuilder) -> Self {
        let clock = PausedClock::new(UnixTime::from_secs(START));
        let agent = FakeAgent::builder("example.org").clock(clock.shared());
        let agent = agent.start_in_memory().await.unwrap();
        let source = agent.source().await.unwrap();
        let server = FakeAuthorizationServer::builder(source.clone())
            .issuer(ISSUER)
            .subject_audience("gateway")
            .client_id("https://client.example.org/metadata.json", WORKLOAD)
            .clock(clock.shared())
            .build();
        let recorder = Arc::new(Recorder::default());
        let builder = AccessTokens::builder(source.clone())
            .issuer(ISSUER)
            .token_endpoint(server.token_endpoint())
            .http_client(server.service())
            .metrics(recorder.clone());
        let tokens = options(builder).build().unwrap();
        Self {
            cache: SvidCache::from(&tokens),
            clock,
            agent,
            source,
            server,
            tokens,
            recorder,
        }
    }

    pub async fn get(&self, audience: &str) -> Result<JwtSvid, TokenError> {
        self.cache.get(&request(audience)).await
    }

    pub fn requests(&self) -> u64 {
        self.server.counts().requests
    }

    /// The parameters of the last request.
    pub fn last_form(&self) -> HashMap<String, String> {
        let body = self.server.bodies().pop().unwrap();
        form_urlencoded::parse(body.as_bytes())
            .into_owned()
            .collect()
    }

    /// A caller's token for the gateway, as a subject token.
    pub fn subject(&self, id: &str, life: Duration) -> SubjectToken {
        let token = self.agent.issuer().token(id, "gateway").expires_in(life);
        let exp = self.clock_now().saturating_add(life);
        SubjectToken::new(&token.sign(), exp).unwrap()
    }

    pub fn clock_now(&self) -> UnixTime {
        use tower_spiffe::clock::Clock as _;
        self.clock.now()
    }
}

#[derive(Default)]
pub struct Recorder {
    exchanges: Mutex<Vec<&'static str>>,
    hits: Mutex<u32>,
    fetches: Mutex<u32>,
}

impl MetricsRecorder for Recorder {
    fn record_token_exchange(&self, outcome: &'static str, _: Duration) {
        assert!(EXCHANGE_OUTCOMES.contains(&outcome), "{outcome}");
        self.exchanges.lock().unwrap().push(outcome);
    }

    fn record_svid_cache(&self, event: SvidCacheEvent) {
        if event == SvidCacheEvent::Hit {
            *self.hits.lock().unwrap() += 1;
        }
    }

    fn record_svid_fetch(&self, _: &'static str, _: Duration) {
        *self.fetches.lock().unwrap() += 1;
    }
}

impl Recorder {
    pub fn last(&self) -> &'static str {
        self.exchanges.lock().unwrap().last().unwrap()
    }
}

/// A service that returns the `authorization` header of its request.
pub fn echo()
-> impl Service<Request<()>, Response = Response<Option<String>>, Error = Infallible, Future: Send>
+ Clone {
    service_fn(async |request: Request<()>| {
        let sent = request.headers().get(AUTHORIZATION);
        let sent = sent.map(|value| value.to_str().unwrap().to_owned());
        Ok::<_, Infallible>(Response::new(sent))
    })
}

pub fn to(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn x01_concurrent_requests_share_one_exchange() {
    let world = World::new().await;
    world.server.fail(TokenEndpointFault::Slow(millis(50)));
    let audience = Audience::fixed("api").for_origin("https://api").unwrap();
    let client = AddJwtSvidLayer::new(&world.tokens, audience).layer(echo());
    let sent: Vec<_> = (0..50)
        .map(|_| tokio::spawn(client.clone().oneshot(to("https://api/x"))))
        .collect();
    let mut headers = Vec::new();
    for sent in sent {
        headers.push(sent.await.unwrap().unwrap().into_body().unwrap());
    }
    headers.dedup();
    let [header] = headers.as_slice() else {
        panic!("more than one token");
    };
    let issued = world.server.find(header.strip_prefix("Bearer ").unwrap());
    let issued = issued.unwrap();
    assert_eq!(issued.client.as_str(), WORKLOAD);
    assert_eq!(issued.subject.as_str(), WORKLOAD);
    assert_eq!(issued.audiences, ["api"]);
    assert_eq!((world.requests(), world.cache.stats().fetches), (1, 1));
    assert_eq!(*world.recorder.fetches.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn x01_outage_fails_no_request_while_token_lives() {
    let faults = [
        TokenEndpointFault::Down,
        TokenEndpointFault::Hang,
        TokenEndpointFault::error(503, "temporarily_unavailable"),
        TokenEndpointFault::html(502, "<html>bad gateway</html>"),
        TokenEndpointFault::error(401, "invalid_client"),
        TokenEndpointFault::json(200, "{}"),
    ];
    for fault in faults {
        let world = World::new().await;
        let first = world.get("api").await.unwrap();
        world.server.fail(fault.clone());
        for second in 0..297 {
            let token = world.get("api").await;
            let token = token.unwrap_or_else(|error| panic!("{fault:?} {second}: {error}"));
            assert_eq!(token.token(), first.token());
            tokio::time::sleep(secs(1)).await;
        }
        tokio::time::sleep(secs(3)).await;
        assert!(world.get("api").await.is_err(), "{fault:?}");
        world.server.recover();
        tokio::time::sleep(secs(45)).await;
        assert!(world.get("api").await.is_ok(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn x01_token_is_refreshed_before_it_expires() {
    let world = World::new().await;
    let first = world.get("api").await.unwrap();
    tokio::time::sleep(secs(200)).await;
    world.get("api").await.unwrap();
    settle().await;
    tokio::time::sleep(millis(10)).await;
    let second = world.get("api").await.unwrap();
    assert_ne!(first.token(), second.token());
    assert_eq!(world.requests(), 2);
    // It works with `keep_warm` and refresh events.
    let _warm = world.cache.keep_warm([request("api")]).unwrap();
    let pin = world.cache.pin(request("api"));
    pin.get().await.unwrap();
    let third = pin.changed().await.unwrap();
    assert!(world.server.find(third.token()).is_some());
}

#[tokio::test(start_paused = true)]
async fn x01_token_that_is_issued_again_stays_in_use() {
    let world = World::new().await;
    world.server.fail(TokenEndpointFault::SameToken);
    let first = world.get("api").await.unwrap();
    for second in 0..900 {
        tokio::time::sleep(secs(1)).await;
        let token = world.get("api").await;
        let token = token.unwrap_or_else(|error| panic!("{second}: {error}"));
        assert_eq!(token.token(), first.token());
    }
    let requests = world.requests();
    assert!((4..60).contains(&requests), "{requests}");
}

#[tokio::test(start_paused = true)]
async fn x01_unusable_expires_in_is_rejected() {
    let day = 24 * 3600;
    let cases: &[(Option<&str>, Option<u64>)] = &[
        (None, Some(300)),
        (Some("null"), Some(300)),
        (Some("1"), Some(1)),
        (Some("3600"), Some(3600)),
        (Some("\"3599\""), Some(3599)),
        (Some("60.9"), Some(60)),
        (Some("1e3"), Some(1000)),
        (Some("86401"), Some(day)),
        (Some("18446744073709551615"), Some(day)),
        (Some("18446744073709551616"), Some(day)),
        (Some("1e300"), Some(day)),
        (Some("\"99999999999999999999999\""), Some(day)),
        (Some("0"), None),
        (Some("0.5"), None),
        (Some("-0"), None),
        (Some("-1"), None),
        (Some("-1e300"), None),
        (Some("1e999"), None),
        (Some("\"\""), None),
        (Some("\"-5\""), None),
        (Some("\"soon\""), None),
        (Some("true"), None),
        (Some("[3600]"), None),
        (Some("{}"), None),
    ];
    let world = World::new().await;
    for (at, (raw, lifetime)) in cases.iter().enumerate() {
        let fault = TokenEndpointFault::ExpiresIn(raw.map(str::to_owned));
        world.server.fail(fault);
        let got = world.get(&format!("api-{at}")).await;
        match lifetime {
            Some(secs) => {
                let left = got
                    .unwrap()
                    .expires_at()
                    .saturating_since(world.clock_now());
                assert_eq!(left.as_secs(), *secs, "{raw:?}");
            }
            None => {
                let error = got.unwrap_err();
                assert_eq!(error.reason(), TokenErrorReason::Unacceptable, "{raw:?}");
                assert_eq!(world.recorder.last(), "unacceptable");
            }
        }
    }
    let world =
        World::with(|builder| builder.default_lifetime(secs(30)).max_lifetime(secs(60))).await;
    world.server.fail(TokenEndpointFault::ExpiresIn(None));
    let token = world.get("a").await.unwrap();
    assert_eq!(
        token.expires_at().saturating_since(world.clock_now()),
        secs(30)
    );
    world.server.recover();
    let token = world.get("b").await.unwrap();
    assert_eq!(
        token.expires_at().saturating_since(world.clock_now()),
        secs(60)
    );
}

#[tokio::test(start_paused = true)]
async fn x01_lifetime_without_a_limit_is_no_overflow() {
    let world = World::with(|builder| builder.max_lifetime(Duration::MAX)).await;
    for raw in ["18446744073709551615", "1e300", "9223372036854775807"] {
        let fault = TokenEndpointFault::ExpiresIn(Some(raw.to_owned()));
        world.server.fail(fault);
        let request = request(&format!("api-{raw}"));
        let token = world.cache.get(&request).await.unwrap();
        tokio::time::sleep(secs(3600)).await;
        let later = world.cache.get(&request).await.unwrap();
        assert_eq!(later.token(), token.token(), "{raw}");
        assert!(world.cache.snapshot_of(&request).unwrap().expires_in > Some(secs(3600)));
    }
}

#[tokio::test(start_paused = true)]
async fn x01_lifetime_counts_from_the_request() {
    let world = World::new().await;
    world.server.fail(TokenEndpointFault::Slow(secs(4)));
    let began = world.clock_now();
    let token = world.get("api").await.unwrap();
    assert_eq!(token.expires_at().saturating_since(began), secs(300));
}

#[tokio::test(start_paused = true)]
async fn x01_errors_are_mapped_to_reasons() {
    use TokenErrorReason::{Denied, InvalidRequest, Other, Unavailable};
    let error = TokenEndpointFault::error;
    let html = TokenEndpointFault::html;
    let cases = [
        (error(401, "invalid_client"), Denied, "invalid-client"),
        (error(400, "invalid_client"), Denied, "invalid-client"),
        (error(400, "invalid_grant"), Denied, "invalid-grant"),
        (error(400, "unauthorized_client"), Denied, "denied"),
        (error(400, "access_denied"), Denied, "denied"),
        (
            error(400, "invalid_request"),
            InvalidRequest,
            "invalid-request",
        ),
        (
            error(400, "unsupported_grant_type"),
            InvalidRequest,
            "invalid-request",
        ),
        (error(400, "invalid_scope"), InvalidRequest, "invalid-scope"),
        (
            error(400, "invalid_target"),
            InvalidRequest,
            "invalid-target",
        ),
        (
            error(400, "temporarily_unavailable"),
            Unavailable,
            "unavailable",
        ),
        (error(500, "server_error"), Unavailable, "unavailable"),
        (error(400, "what_is_this"), Other, "other"),
        (error(403, "what_is_this"), Denied, "denied"),
        (error(429, "invalid_request"), Unavailable, "unavailable"),
        (html(400, "<html>no</html>"), Other, "other"),
        (html(401, "<html>no</html>"), Denied, "denied"),
        (html(404, ""), Other, "other"),
        (html(500, "<html>no</html>"), Unavailable, "unavailable"),
        (
            TokenEndpointFault::json(400, r#"{"error":7}"#),
            Other,
            "other",
        ),
        (
            TokenEndpointFault::json(400, r#"{"error":"a","error":"b"}"#),
            Other,
            "other",
        ),
        (
            TokenEndpointFault::TooManyRequests(1),
            Unavailable,
            "unavailable",
        ),
        (TokenEndpointFault::Down, Unavailable, "unreachable"),
    ];
    for (fault, reason, outcome) in cases {
        let world = World::new().await;
        world.server.fail(fault.clone());
        let failed = world.get("api").await.unwrap_err();
        assert_eq!(failed.reason(), reason, "{fault:?}");
        assert_eq!(world.recorder.last(), outcome, "{fault:?}");
        assert!(
            failed.to_string().contains("https://as.example.org/token"),
            "{failed}"
        );
        let oauth = failed.fetch_error().unwrap().oauth();
        let TokenEndpointFault::Error { status, error, .. } = fault else {
            continue;
        };
        let oauth = oauth.unwrap();
        assert_eq!((oauth.status(), oauth.error()), (status, Some(&*error)));
        assert!(failed.to_string().contains(&error), "{failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn x01_hostile_responses_are_unacceptable() {
    let token = |token: &str| format!(r#"{{"access_token":{token},"token_type":"Bearer"}}"#);
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let with_type = |kind: &str| format!(r#"{{"access_token":"abc","token_type":{kind}}}"#);
    let bodies = [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "access_token=abc&token_type=Bearer".to_owned(),
        "<html>welcome</html>".to_owned(),
        r#"{"access_token":"abc"}"#.to_owned(),
        r#"{"token_type":"Bearer"}"#.to_owned(),
        token("null"),
        token("7"),
        token(r#""""#),
        token(r#"" ""#),
        token(r#""a b""#),
        token(r#""a\r\nx-admin: 1""#),
        token(r#""a\u0000""#),
        token(r#""tökén""#),
        token(r#""a,b""#),
        token(r#""====""#),
        token(&format!("\"{}\"", "x".repeat(8193))),
        with_type(r#""DPoP""#),
        with_type(r#""N_A""#),
        with_type(r#""mac""#),
        with_type("null"),
        r#"{"access_token":"abc","access_token":"def","token_type":"Bearer"}"#.to_owned(),
        format!(
            r#"{{"access_token":"abc","token_type":"Bearer","x":"{}"}}"#,
            "x".repeat(70_000)
        ),
        r#"{"access_token":"abc","token_type":"Bearer""#.to_owned(),
        format!(r#"{{"access_token":"abc","token_type":"Bearer","expires_in":{deep}}}"#),
    ];
    for body in bodies {
        let world = World::new().await;
        world
            .server
            .fail(TokenEndpointFault::json(200, body.clone()));
        let error = world.get("api").await.unwrap_err();
        let shown = &body[..body.len().min(80)];
        assert_eq!(error.reason(), TokenErrorReason::Unacceptable, "{shown}");
        assert!(error.to_string().len() < 700, "{error}");
        assert!(!error.to_string().contains("x-admin"), "{error}");
        let oauth = error.fetch_error().unwrap().oauth();
        assert!(oauth.is_none_or(|oauth| oauth.status() == 200));
    }
    // Unknown members are skipped at any depth.
    let world = World::new().await;
    let body = format!(r#"{{"x":{deep},"access_token":"abc","token_type":"Bearer"}}"#);
    world.server.fail(TokenEndpointFault::json(200, body));
    assert_eq!(world.get("api").await.unwrap().token(), "abc");
    // The longest token, and the type in upper case.
    for kind in ["Bearer", "bearer", "BEARER"] {
        let world = World::new().await;
        let long = "x".repeat(8192);
        let body = format!(r#"{{"access_token":"{long}","token_type":"{kind}","x":[{{}}]}}"#);
        world.server.fail(TokenEndpointFault::json(201, body));
        assert_eq!(world.get("api").await.unwrap().token(), long);
    }
}

#[tokio::test(start_paused = true)]
async fn x01_dpop_tokens_are_an_error() {
    let world = World::new().await;
    world
        .server
        .fail(TokenEndpointFault::TokenType("DPoP".to_owned()));
    let error = world.get("api").await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unacceptable);
    assert!(error.to_string().contains("token_type"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn x01_tokens_and_assertions_never_leak() {
    let log = Log::default();
    let _listening = log.begin(Level::TRACE);
    let world = World::with(|builder| builder.token_exchange().actor_token()).await;
    let subject = world.subject(WEB, secs(100));
    let on_behalf = request("api").on_behalf_of(subject.clone());
    let opaque = SubjectToken::new("0paque-sub~ject/token+x==", UnixTime::from_secs(START + 50));
    let opaque = request("api").on_behalf_of(opaque.unwrap());
    let audience = Audience::fixed("api").for_origin("https://api").unwrap();
    let layer = AddJwtSvidLayer::new(&world.tokens, audience);
    let mut shown = format!("{subject:?} {on_behalf:?} {opaque:?} {layer:?}");
    let granted = world.get("api").await.unwrap();
    let for_caller = world.cache.get(&on_behalf).await.unwrap();
    let assertion = world.last_form()["client_assertion"].clone();
    let parts: Vec<&str> = assertion.split('.').collect();
    // Error texts of a server that tries to get the assertion logged.
    let says = [
        assertion.clone(),
        format!("invalid assertion: {assertion}!"),
        format!("bad signature {}", parts[2]),
        format!("({})", parts[1]),
        "subject 0paque-sub~ject/token+x== unknown".to_owned(),
        // As it is in the form of the request.
        "subject_token=0paque-sub%7Eject%2Ftoken%2Bx%3D%3D unknown".to_owned(),
        format!("subject {} unknown", subject.token()),
        "line\nbreak \u{1b}[31m red".to_owned(),
        "x".repeat(100_000),
    ];
    for (at, text) in says.iter().enumerate() {
        for error in ["invalid_client", text.as_str()] {
            world.server.fail(TokenEndpointFault::Error {
                status: 400,
                error: error.to_owned(),
                description: Some(text.clone()),
            });
            for request in [&on_behalf, &opaque] {
                // Tokens of other requests cannot be redacted.
                if text.contains("0paque") && request == &on_behalf {
                    continue;
                }
                let again = SvidRequest::new([format!("{at}-{}", error.len())]).unwrap();
                let again = again.on_behalf_of(request.subject().unwrap().clone());
                let error = world.cache.get(&again).await.unwrap_err();
                assert!(
                    error.to_string().len() < 1_500,
                    "{}",
                    error.to_string().len()
                );
                let fetch = error.fetch_error().unwrap();
                shown += &format!("{error} {error:?} {fetch:?} {:?}", fetch.oauth());
            }
        }
    }
    world.server.fail(TokenEndpointFault::Echo);
    let error = world.get("echo").await.unwrap_err();
    shown += &format!("{error} {error:?}");
    shown += &format!(
        "{:?} {:?} {:?}",
        world.tokens,
        world.tokens.state(),
        world.cache
    );
    shown += &format!("{:?} {granted:?} {granted} {for_caller:?}", world.server);
    shown += &log.text();
    assert!(log.text().contains("fetching a JWT-SVID failed"));
    let secrets = [
        granted.token(),
        for_caller.token(),
        subject.token(),
        "0paque-sub",
        parts[0],
        parts[1],
        parts[2],
        "\u{1b}",
    ];
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[tokio::test(start_paused = true)]
async fn x01_errors_of_the_http_client_never_leak() {
    let log = Log::default();
    let _listening = log.begin(Level::TRACE);
    // Its error has a part of the request.
    let quoting = service_fn(async |request: Request<Bytes>| {
        let body = String::from_utf8_lossy(request.body());
        let mut parameters = body.split('&');
        let subject = parameters.find(|it| it.starts_with("subject_token=0paque"));
        let part = subject.map_or(request.uri().to_string(), str::to_owned);
        let error = std::io::Error::other(format!("{part} was not sent"));
        Err::<Response<Full<Bytes>>, _>(error)
    });
    let world = World::with(|builder| {
        let endpoint = "https://as.example.org/token?key=s3cret";
        let builder = builder.token_exchange().token_endpoint(endpoint);
        builder.http_client(quoting)
    })
    .await;
    let opaque = SubjectToken::new("0paque-sub~ject/token+x==", UnixTime::from_secs(START + 50));
    let on_behalf = request("api").on_behalf_of(opaque.unwrap());
    let mut shown = String::new();
    for request in [on_behalf, request("api")] {
        let error = world.cache.get(&request).await.unwrap_err();
        assert_eq!(world.recorder.last(), "unreachable");
        shown += &format!("{error} {error:?} {:?}", world.tokens.state());
    }
    shown += &log.text();
    assert!(shown.contains("https://as.example.org/token is unreachable"));
    for secret in ["0paque-sub", "s3cret"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn x01_tokens_go_to_their_origin_only() {
    let world = World::new().await;
    let audience = Audience::fixed("api").for_origin("https://api").unwrap();
    let client = AddJwtSvidLayer::new(&world.tokens, audience).layer(echo());
    let send = async |request| client.clone().oneshot(request).await;
    assert!(
        send(to("https://api/"))
            .await
            .unwrap()
            .into_body()
            .is_some()
    );
    for other in [
        "https://elsewhere/",
        "https://api:444/",
        "https://api.evil/",
    ] {
        assert_eq!(send(to(other)).await.unwrap().into_body(), None, "{other}");
    }
    let mut other_host = to("https://api/");
    other_host
        .headers_mut()
        .insert("host", "evil".parse().unwrap());
    assert_eq!(send(other_host).await.unwrap().into_body(), None);
    assert_eq!(send(to("http://api/")).await.unwrap().into_body(), None);
    assert_eq!(world.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn x01_rejections_cause_one_exchange_per_10_s() {
    let world = World::new().await;
    let audience = Audience::fixed("api").for_origin("https://api").unwrap();
    let server = world.server.clone();
    let resource = service_fn(move |request: Request<()>| {
        let sent = request.headers()[AUTHORIZATION].to_str().unwrap();
        let known = server.find(&sent["Bearer ".len()..]).is_some();
        let status = if known { 200 } else { 401 };
        let response = Response::builder().status(status).body(()).unwrap();
        async move { Ok::<_, Infallible>(response) }
    });
    let client = AddJwtSvidLayer::new(&world.tokens, audience).layer(resource);
    let send = async || {
        let sent = client.clone().oneshot(to("https://api/")).await;
        sent.unwrap().status()
    };
    assert_eq!(send().await, StatusCode::OK);
    // A token that the resource rejects is replaced at once.
    let token = world.get("api").await.unwrap();
    assert!(world.server.revoke(token.token()));
    assert_eq!(send().await, StatusCode::UNAUTHORIZED);
    assert_eq!(send().await, StatusCode::OK);
    assert_eq!(world.requests(), 2);
    // A resource that rejects every token.
    for _ in 0..600 {
        let token = world.get("api").await.unwrap();
        world.server.revoke(token.token());
        send().await;
        tokio::time::sleep(millis(100)).await;
    }
    let more = world.requests() - 2;
    assert!((4..=7).contains(&more), "{more} in 60 s");
}

#[tokio::test(start_paused = true)]
async fn x01_agent_outage_leaves_access_tokens_in_use() {
    let world = World::new().await;
    world.server.set_token_life(secs(900));
    let token = world.get("api").await.unwrap();
    world.agent.fail_call(
        AgentCall::FetchJwtSvid,
        Fault::Refuse(GrpcCode::Unavailable),
    );
    // Longer than the lifetime of the JWT-SVID.
    for _ in 0..85 {
        tokio::time::sleep(secs(10)).await;
        assert_eq!(world.get("api").await.unwrap().token(), token.token());
    }
    let error = world.get("other").await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unavailable);
    assert!(
        error.to_string().contains("to authenticate with"),
        "{error}"
    );
    assert_eq!(
        error.fetch_error().unwrap().code(),
        Some(GrpcCode::Unavailable)
    );
    assert_eq!(world.recorder.last(), "no-svid");
    assert_eq!(world.requests(), 1);
    world.agent.recover();
    tokio::time::sleep(secs(45)).await;
    assert!(world.get("other").await.is_ok());
    // An identity that is not registered is reported as such.
    world.agent.unregister(WORKLOAD);
    tokio::time::sleep(secs(600)).await;
    let error = world.get("third").await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Denied);
}

#[tokio::test(start_paused = true)]
async fn x01_exchange_after_a_rotation_uses_a_new_svid() {
    let world = World::new().await;
    world.get("a").await.unwrap();
    let first = world.last_form()["client_assertion"].clone();
    // The SVID is cached for exchanges too.
    world.get("b").await.unwrap();
    assert_eq!(world.last_form()["client_assertion"], first);
    world.agent.rotate().await;
    tokio::time::sleep(secs(200)).await;
    world.get("c").await.unwrap();
    tokio::time::sleep(secs(1)).await;
    world.get("d").await.unwrap();
    assert_ne!(world.last_form()["client_assertion"], first);
    assert_eq!(world.server.counts().rejected, 0);
    // The server lost the key of the SVID: the next exchange uses another SVID.
    world.agent.forget_tokens();
    let before = world.last_form()["client_assertion"].clone();
    world
        .server
        .fail(TokenEndpointFault::error(401, "invalid_client"));
    assert!(world.get("e").await.is_err());
    world.server.recover();
    tokio::time::sleep(secs(3)).await;
    world.get("e").await.unwrap();
    assert_ne!(world.last_form()["client_assertion"], before);
}

#[tokio::test(start_paused = true)]
async fn x01_client_assertions_follow_the_options() {
    let world = World::new().await;
    world.get("api").await.unwrap();
    let form = world.last_form();
    let get = |name: &str| form.get(name).map(String::as_str);
    assert_eq!(get("grant_type"), Some("client_credentials"));
    assert_eq!(
        get("client_assertion_type"),
        Some("urn:ietf:params:oauth:client-assertion-type:jwt-spiffe")
    );
    assert_eq!(get("audience"), Some("api"));
    for name in [
        "client_id",
        "scope",
        "subject_token",
        "resource",
        "actor_token",
    ] {
        assert_eq!(get(name), None, "{name}");
    }
    // The issuer is the only audience.
    let svid = JwtSvid::parse_unverified(&form["client_assertion"], "").unwrap();
    assert!(svid.audiences().eq([ISSUER]));

    let world = World::with(|builder| {
        builder
            .assertion_type(AssertionType::JwtBearer)
            .client_id("https://client.example.org/metadata.json")
            .target(TargetParameter::Resource)
            .scope("read write")
            .scope_for("https://admin", "admin")
            .parameter(
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            )
    })
    .await;
    let token = world.get("https://api").await.unwrap();
    let issued = world.server.find(token.token()).unwrap();
    assert_eq!(issued.assertion_type, AssertionType::JwtBearer.as_str());
    assert_eq!(issued.scope.as_deref(), Some("read write"));
    assert_eq!(issued.audiences, ["https://api"]);
    let form = world.last_form();
    assert_eq!(
        form["client_id"],
        "https://client.example.org/metadata.json"
    );
    assert_eq!(form["resource"], "https://api");
    assert!(form["requested_token_type"].ends_with(":access_token"));
    let token = world.get("https://admin").await.unwrap();
    let issued = world.server.find(token.token()).unwrap();
    assert_eq!(issued.scope.as_deref(), Some("admin"));

    let world = World::with(|builder| builder.target(TargetParameter::None)).await;
    let token = world.get("api").await.unwrap();
    assert!(
        world
            .server
            .find(token.token())
            .unwrap()
            .audiences
            .is_empty()
    );
    // Another identity of this workload.
    world.agent.register(WORKLOAD, "", secs(300)).unwrap();
    world.agent.register(CRON, "nightly", secs(300)).unwrap();
    let as_cron = request("api").with_spiffe_id(CRON.parse().unwrap());
    let by_hint = request("api").with_hint("nightly").unwrap();
    for request in [as_cron, by_hint] {
        let token = world.cache.get(&request).await.unwrap();
        assert_eq!(token.spiffe_id().as_str(), CRON);
        let issued = world.server.find(token.token()).unwrap();
        assert_eq!(issued.client.as_str(), CRON);
    }
}

#[tokio::test(start_paused = true)]
async fn x01_single_use_assertions_are_distinct() {
    let world = World::with(AccessTokensBuilder::single_use_assertions).await;
    world.agent.forget_tokens();
    let mut sent = Vec::new();
    for n in 0..5 {
        world.agent.forget_tokens();
        // Another `iat` makes another token.
        tokio::time::sleep(secs(2)).await;
        world.get(&format!("api-{n}")).await.unwrap();
        sent.push(world.last_form()["client_assertion"].clone());
    }
    sent.sort();
    sent.dedup();
    assert_eq!(sent.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn x01_retry_after_is_honored_within_60_s() {
    for (asked, waits) in [(20, 20), (3_600, 60), (u64::MAX, 60)] {
        let world = World::new().await;
        world
            .server
            .fail(TokenEndpointFault::TooManyRequests(asked));
        let error = world.get("api").await.unwrap_err();
        let oauth = error.fetch_error().unwrap().oauth().unwrap().clone();
        assert_eq!(oauth.retry_after(), Some(secs(asked)));
        assert_eq!(error.retry_after(), Some(secs(waits)));
        for _ in 0..(waits - 1) {
            tokio::time::sleep(secs(1)).await;
            assert!(world.get("api").await.is_err());
        }
        assert_eq!(world.requests(), 1, "{asked}");
        world.server.recover();
        tokio::time::sleep(secs(2)).await;
        assert!(world.get("api").await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn x01_error_responses_do_not_open_the_breaker() {
    let world = World::new().await;
    world
        .server
        .fail(TokenEndpointFault::error(503, "temporarily_unavailable"));
    for n in 0..10 {
        assert!(world.get(&format!("api-{n}")).await.is_err());
    }
    assert_eq!(world.cache.stats().breaker_opened, 0);
    assert_eq!(world.requests(), 10);
    // Without responses, the breaker opens.
    world.server.fail(TokenEndpointFault::Down);
    for n in 10..20 {
        assert!(world.get(&format!("api-{n}")).await.is_err());
    }
    assert_eq!(world.cache.stats().breaker_opened, 1);
    assert!(world.requests() < 16, "{}", world.requests());
}

#[tokio::test(start_paused = true)]
async fn x01_slow_exchanges_end_within_the_limit() {
    let world = World::with(|builder| builder.cache(|cache| cache.fetch_timeout(secs(3)))).await;
    world.server.fail(TokenEndpointFault::Hang);
    let error = world.get("api").await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Timeout);
    assert_eq!(world.recorder.last(), "abandoned");
    let state = world.tokens.state();
    assert_eq!((state.exchanges, state.failures), (1, 1));
    let last = state.last_error.unwrap();
    assert_eq!(last.reason(), FetchSvidReason::Timeout);
}

#[tokio::test(start_paused = true)]
async fn x01_state_and_metrics_cover_exchanges() {
    let world = World::new().await;
    let state = world.tokens.state();
    assert_eq!((state.exchanges, state.last_success), (0, None));
    assert_eq!(&*state.token_endpoint, "https://as.example.org/token");
    world.get("api").await.unwrap();
    tokio::time::sleep(secs(5)).await;
    world.get("api").await.unwrap();
    let state = world.tokens.state();
    assert_eq!((state.exchanges, state.failures), (1, 0));
    assert_eq!(state.last_success, Some(secs(5)));
    let [token] = state.tokens.as_slice() else {
        panic!("one token");
    };
    assert_eq!(token.request, request("api"));
    assert_eq!(token.spiffe_id.as_ref().unwrap().as_str(), WORKLOAD);
    assert_eq!(state.cache.hits, 1);
    world
        .server
        .fail(TokenEndpointFault::error(400, "invalid_scope"));
    assert!(world.get("other").await.is_err());
    let state = world.tokens.state();
    assert_eq!((state.exchanges, state.failures), (2, 1));
    let error = state.last_error.unwrap();
    assert_eq!(error.oauth().unwrap().error(), Some("invalid_scope"));
    assert_eq!(
        *world.recorder.exchanges.lock().unwrap(),
        ["ok", "invalid-scope"]
    );
    assert_eq!(*world.recorder.hits.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn x01_shutdown_of_the_source_ends_exchanges() {
    let world = World::new().await;
    let token = world.get("api").await.unwrap();
    world.source.shutdown().await;
    assert_eq!(world.get("api").await.unwrap().token(), token.token());
    let error = world.get("other").await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Closed);
    world.cache.close();
    assert!(world.get("api").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn x01_client_that_is_not_ready_is_awaited() {
    let world = World::new().await;
    let ready = Arc::new(AtomicBool::new(false));
    let endpoint = world.server.service();
    let strict = tower::util::BoxCloneService::new(service_fn({
        let ready = ready.clone();
        move |request: Request<Full<Bytes>>| {
            assert!(ready.load(Ordering::SeqCst));
            let endpoint = endpoint.clone();
            async move {
                use http_body_util::BodyExt as _;
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                endpoint.oneshot(Request::from_parts(head, body)).await
            }
        }
    }));
    ready.store(true, Ordering::SeqCst);
    let tokens = AccessTokens::builder(world.source.clone())
        .issuer(ISSUER)
        .token_endpoint(world.server.token_endpoint())
        .http_client(tower::limit::ConcurrencyLimit::new(strict, 1))
        .build()
        .unwrap();
    let cache = SvidCache::from(tokens);
    for n in 0..3 {
        cache.get(&request(&format!("api-{n}"))).await.unwrap();
    }
}

#[test]
fn x01_invalid_options_say_how_to_fix_them() {
    use AccessTokensErrorReason::{
        HttpClient, Issuer as NoIssuer, Lifetime, Parameter, TokenEndpoint,
    };
    let builder = || {
        let bundles = FixedBundles::new(JwtBundleSet::default());
        let server = FakeAuthorizationServer::new(ISSUER, bundles);
        AccessTokens::builder(SvidCache::new(Nothing))
            .issuer(ISSUER)
            .token_endpoint(server.token_endpoint())
            .http_client(server.service())
    };
    assert!(builder().build().is_ok());
    let endpoint = |url: &str| builder().token_endpoint(url);
    let none = || AccessTokens::builder(SvidCache::new(Nothing));
    let cases = [
        (none(), NoIssuer, "issuer"),
        (
            none().issuer(ISSUER),
            TokenEndpoint,
            "`.token_endpoint(...)`",
        ),
        (
            none().issuer(ISSUER).token_endpoint("https://as/t"),
            HttpClient,
            "`.http_client(...)`",
        ),
        (builder().issuer(""), NoIssuer, "issuer is invalid"),
        (builder().issuer(" x"), NoIssuer, "white space"),
        (
            endpoint("http://as.example.org/token"),
            TokenEndpoint,
            "plaintext",
        ),
        (
            endpoint("http://127.0.0.1/token"),
            TokenEndpoint,
            "plaintext",
        ),
        (
            endpoint("as.example.org/token"),
            TokenEndpoint,
            "expected `https://host/path`",
        ),
        (endpoint("/token"), TokenEndpoint, "expected"),
        (endpoint(""), TokenEndpoint, "expected"),
        (endpoint("ftp://as/token"), TokenEndpoint, "scheme"),
        (
            endpoint("https://user:pass@as/token"),
            TokenEndpoint,
            "user name",
        ),
        (
            endpoint("http://as/token?key=user:pass"),
            TokenEndpoint,
            "plaintext",
        ),
        (endpoint("https://as/token#x"), TokenEndpoint, "fragment"),
        (builder().client_id(""), Parameter, "client ID is empty"),
        (builder().scope(""), Parameter, "scope"),
        (builder().scope("a  b"), Parameter, "scope"),
        (builder().scope("a\"b"), Parameter, "scope"),
        (builder().scope_for("api", "a\nb"), Parameter, "scope"),
        (
            builder().parameter("subject_token", "x"),
            Parameter,
            "subject_token",
        ),
        (builder().parameter("", "x"), Parameter, "empty"),
        (builder().default_lifetime(Duration::ZERO), Lifetime, "zero"),
        (builder().max_lifetime(Duration::ZERO), Lifetime, "zero"),
    ];
    for (builder, reason, text) in cases {
        assert!(!format!("{builder:?}").contains("user:pass"));
        let error = builder.build().unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(!error.to_string().contains("user:pass"), "{error}");
    }
    use tower_spiffe::client::Plaintext;
    let loopback = |url| endpoint(url).allow_plaintext(Plaintext::Loopback).build();
    assert!(loopback("http://127.0.0.1:8080/token").is_ok());
    assert!(loopback("http://as.example.org/token").is_err());
    let any = endpoint("http://as.example.org/token").allow_plaintext(Plaintext::Any);
    assert!(any.build().is_ok());
}

/// A fetcher that is never called.
struct Nothing;

impl tower_spiffe::token::FetchSvid for Nothing {
    fn fetch_svid(&self, _: &SvidRequest) -> tower_spiffe::token::FetchSvidFuture {
        Box::pin(std::future::pending())
    }
}

#[test]
fn x01_opaque_tokens_have_the_syntax_of_bearer_tokens() {
    let of = |token: &str| {
        let (at, end) = (UnixTime::from_secs(START), UnixTime::from_secs(START + 60));
        let id = WEB.parse().unwrap();
        JwtSvid::access_token(token, &request("api"), id, at, end).map(|token| token.token().len())
    };
    assert_eq!(of("abc-._~+/=="), Ok(11));
    assert_eq!(of(&"x".repeat(8192)), Ok(8192));
    assert_eq!(of(&"x".repeat(8193)), Err(ParseJwtSvidError::TooLong));
    for bad in ["", "=", "a=b", "a b", "a\n", "ä", "a\"b", "a;b", "a:b"] {
        assert_eq!(of(bad), Err(ParseJwtSvidError::Characters), "{bad:?}");
        let subject = SubjectToken::new(bad, UnixTime::from_secs(START));
        assert!(subject.is_err(), "{bad:?}");
    }
}
