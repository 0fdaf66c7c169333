//! Token exchange: access tokens in the name of a caller, on paused time.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::oauth::{AccessTokensBuilder, SubjectToken};
use tower_spiffe::testing::{Issuer, TokenEndpointFault};
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tower_spiffe::verify::VerifiedSvid;
use tower_spiffe::{
    AddJwtSvidLayer, Allow, Audience, CallerState, SvidCache, ValidateJwtSvidLayer, Validator,
};
use tracing::Level;

use crate::log::Log;
use crate::support::{request, secs};
use crate::x01_oauth::{CRON, WEB, WORKLOAD, World, echo, to};

#[tokio::test(start_paused = true)]
async fn x01_own_svid_is_exchanged() {
    let world = World::with(|builder| builder.token_exchange().actor_token()).await;
    let token = world.get("api").await.unwrap();
    let issued = world.server.find(token.token()).unwrap();
    assert_eq!(issued.subject.as_str(), WORKLOAD);
    assert_eq!(issued.actor, None);
    let form = world.last_form();
    assert_eq!(
        form["grant_type"],
        "urn:ietf:params:oauth:grant-type:token-exchange"
    );
    assert_eq!(form["subject_token"], form["client_assertion"]);
    assert_eq!(
        form["subject_token_type"],
        "urn:ietf:params:oauth:token-type:jwt"
    );
}

#[tokio::test(start_paused = true)]
async fn x01_each_caller_has_its_own_token() {
    let world = World::with(|builder| builder.token_exchange().actor_token()).await;
    let (web, cron) = (world.subject(WEB, secs(120)), world.subject(CRON, secs(60)));
    let mut seen = Vec::new();
    for (subject, id, life) in [(&web, WEB, 120), (&cron, CRON, 60)] {
        let request = request("api").on_behalf_of(subject.clone());
        let token = world.cache.get(&request).await.unwrap();
        let issued = world.server.find(token.token()).unwrap();
        assert_eq!(issued.subject.as_str(), id);
        assert_eq!(issued.client.as_str(), WORKLOAD);
        assert_eq!(issued.actor.unwrap().as_str(), WORKLOAD);
        // The server's token lives for 300 s.
        let left = token.expires_at().saturating_since(world.clock_now());
        assert_eq!(left, secs(life));
        assert_eq!(
            world.cache.get(&request).await.unwrap().token(),
            token.token()
        );
        seen.push(token.token().to_owned());
    }
    seen.push(world.get("api").await.unwrap().token().to_owned());
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), world.requests()), (3, 3));
    // Not after the caller's token has expired; no request is sent.
    tokio::time::sleep(secs(60)).await;
    let request = request("api").on_behalf_of(cron);
    let before = world.requests();
    let error = world.cache.get(&request).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
    assert!(
        error.to_string().contains("subject token has expired"),
        "{error}"
    );
    assert_eq!(world.recorder.last(), "expired-subject");
    assert_eq!(world.requests(), before);
}

#[tokio::test(start_paused = true)]
async fn x01_callers_token_is_exchanged_once() {
    let world = World::with(AccessTokensBuilder::token_exchange).await;
    world.server.set_token_life(secs(3600));
    let on_behalf = request("api").on_behalf_of(world.subject(WEB, secs(300)));
    // A newer access token would expire at the same time, with the caller's token.
    let first = world.cache.get(&on_behalf).await.unwrap();
    for _ in 0..290 {
        tokio::time::sleep(secs(1)).await;
        let token = world.cache.get(&on_behalf).await.unwrap();
        assert_eq!(token.token(), first.token());
    }
    assert_eq!(world.requests(), 1);
    // A token that the resource rejects is replaced, at most once per 10 s.
    let header = world.cache.header(&on_behalf).await.unwrap();
    assert!(world.cache.report_refused(&on_behalf, &header));
    let second = world.cache.header(&on_behalf).await.unwrap();
    assert_ne!(second, header);
    assert!(!world.cache.report_refused(&on_behalf, &second));
    assert_eq!(world.cache.header(&on_behalf).await.unwrap(), second);
    assert_eq!(world.requests(), 2);
    // An access token that expires before the caller's token is refreshed.
    world.server.set_token_life(secs(60));
    let on_behalf = request("api").on_behalf_of(world.subject(CRON, secs(300)));
    for _ in 0..55 {
        world.cache.get(&on_behalf).await.unwrap();
        tokio::time::sleep(secs(1)).await;
    }
    assert_eq!(world.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn x01_expired_subject_does_not_close_the_breaker() {
    let world = World::with(AccessTokensBuilder::token_exchange).await;
    world.server.fail(TokenEndpointFault::Down);
    for n in 0..10 {
        assert!(world.get(&format!("api-{n}")).await.is_err());
    }
    assert!(world.cache.stats().breaker_open);
    // The next probe is allowed.
    tokio::time::sleep(secs(6)).await;
    let (subject, requests) = (world.subject(WEB, secs(0)), world.requests());
    let on_behalf = request("api").on_behalf_of(subject);
    let error = world.cache.get(&on_behalf).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
    assert_eq!(world.recorder.last(), "expired-subject");
    assert_eq!(world.requests(), requests);
    assert!(world.cache.stats().breaker_open);
    // It does not delay the probe of another request.
    world.server.recover();
    assert!(world.get("api").await.is_ok());
    assert!(!world.cache.stats().breaker_open);
}

#[tokio::test(start_paused = true)]
async fn x01_callers_token_is_not_reused_for_another() {
    let world = World::with(AccessTokensBuilder::token_exchange).await;
    // An invalid subject token does not get the token of a valid one.
    let good = world.subject(WEB, secs(120));
    let forged = Issuer::with_clock("example.org", world.clock.shared()).unwrap();
    let forged = forged.token(WEB, "gateway").expires_in(secs(120)).sign();
    let forged = SubjectToken::new(&forged, good.expires_at()).unwrap();
    let get = async |subject: &SubjectToken| {
        let request = request("api").on_behalf_of(subject.clone());
        world.cache.get(&request).await
    };
    get(&good).await.unwrap();
    let error = get(&forged).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
    // The same token with another type is another subject.
    let as_other = good.clone().token_type("urn:example:other");
    assert_ne!(as_other, good);
    assert!(get(&as_other).await.is_err());
    assert!(get(&good).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn x01_callers_fill_neither_cache_nor_log() {
    let log = Log::default();
    let _listening = log.begin(Level::WARN);
    let world = World::with(|builder| {
        builder
            .token_exchange()
            .cache(|cache| cache.max_entries(20))
    })
    .await;
    world.get("api").await.unwrap();
    for n in 0..100 {
        let subject = world.subject(&format!("spiffe://example.org/{n}"), secs(600));
        let request = request("api").on_behalf_of(subject);
        world.cache.get(&request).await.unwrap();
        assert!(world.cache.stats().entries <= 20);
    }
    world
        .server
        .fail(TokenEndpointFault::error(400, "invalid_grant"));
    for n in 0..100 {
        let subject = world.subject(&format!("spiffe://example.org/x{n}"), secs(600));
        let request = request("api").on_behalf_of(subject);
        assert!(world.cache.get(&request).await.is_err());
    }
    assert_eq!(
        log.lines_with("fetching a JWT-SVID failed"),
        0,
        "{}",
        log.text()
    );
}

#[tokio::test(start_paused = true)]
async fn x01_subject_needs_a_source_that_exchanges() {
    // The grant has no subject token.
    let world = World::new().await;
    let on_behalf = request("api").on_behalf_of(world.subject(WEB, secs(60)));
    let error = world.cache.get(&on_behalf).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
    assert!(error.to_string().contains(".token_exchange()"), "{error}");
    // The workload's own JWT-SVID is not sent for the caller.
    let svids = SvidCache::from(world.source.clone());
    let error = svids.get(&on_behalf).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
    assert!(error.to_string().contains("AccessTokens"), "{error}");
    assert_eq!(world.requests(), 0);
}

/// Returns a caller's request, as the server layer of a gateway leaves it.
async fn arrived(world: &World, keep: bool) -> Request<()> {
    let taken = Arc::new(Mutex::new(None));
    let gateway = service_fn({
        let taken = taken.clone();
        move |request: Request<String>| {
            *taken.lock().unwrap() = Some(request);
            async { Ok::<_, Infallible>(Response::new(String::new())) }
        }
    });
    let validator = Validator::builder(world.source.clone()).clock(world.clock.shared());
    let validator = validator.audience("gateway").build().unwrap();
    let layer =
        ValidateJwtSvidLayer::required(validator, Allow::trust_domain("example.org").unwrap());
    let layer = if keep { layer.keep_credential() } else { layer };
    let mut request = to("https://api/x").map(|()| String::new());
    let bearer = world.agent.bearer(WEB, "gateway");
    request.headers_mut().insert(AUTHORIZATION, bearer);
    let response = layer.layer(gateway).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let request = taken.lock().unwrap().take();
    request.unwrap().map(drop)
}

#[tokio::test(start_paused = true)]
async fn x01_layer_exchanges_the_kept_token_of_the_caller() {
    let world = World::with(AccessTokensBuilder::token_exchange).await;
    let audience = || Audience::fixed("api").for_origin("https://api").unwrap();
    let on_behalf = |audience: Audience| {
        AddJwtSvidLayer::new(&world.tokens, audience.on_behalf_of_caller()).layer(echo())
    };
    let by_map = Audience::map([("https://api", "api"), ("https://b", "b")]).unwrap();
    let made = Audience::from_origin(|_| Some("api".to_owned()), ["https://api"]).unwrap();
    for audience in [audience(), by_map, made] {
        let client = on_behalf(audience);
        let request = arrived(&world, true).await;
        let sent = client.clone().oneshot(request).await.unwrap().into_body();
        let issued = world
            .server
            .find(&sent.unwrap()["Bearer ".len()..])
            .unwrap();
        assert_eq!(issued.subject.as_str(), WEB);
        // Without the kept token, the request fails, and the workload's own token is not sent.
        let request = arrived(&world, false).await;
        let error = client.clone().oneshot(request).await.unwrap_err();
        let error = TokenError::find(&*error).unwrap();
        assert_eq!(error.reason(), TokenErrorReason::InvalidRequest);
        assert!(error.to_string().contains("keep_credential"), "{error}");
        // So does a request without a caller.
        assert!(client.oneshot(to("https://api/")).await.is_err());
    }
    // The mark also works on the audience of a request.
    let client = AddJwtSvidLayer::new(&world.tokens, Audience::per_request()).layer(echo());
    let mut request = arrived(&world, false).await;
    request
        .extensions_mut()
        .insert(audience().on_behalf_of_caller());
    assert!(client.oneshot(request).await.is_err());
    // Without the mark, the workload's token is sent, and the caller's token is not.
    let client = AddJwtSvidLayer::new(&world.tokens, audience()).layer(echo());
    let request = arrived(&world, true).await;
    let sent = client.oneshot(request).await.unwrap().into_body().unwrap();
    let issued = world.server.find(&sent["Bearer ".len()..]).unwrap();
    assert_eq!(issued.subject.as_str(), WORKLOAD);
}

#[tokio::test(start_paused = true)]
async fn x01_layer_exchanges_the_subject_in_the_extensions() {
    let world = World::with(AccessTokensBuilder::token_exchange).await;
    let audience = Audience::fixed("api").for_origin("https://api").unwrap();
    let client = AddJwtSvidLayer::new(&world.tokens, audience).layer(echo());
    let request = arrived(&world, true).await;
    let state = CallerState::from_extensions(request.extensions()).unwrap();
    let caller: &VerifiedSvid = state.verified().unwrap();
    let subject = SubjectToken::of_caller(caller, request.headers()).unwrap();
    assert_eq!(subject.spiffe_id(), Some(caller.spiffe_id()));
    assert_eq!(subject.expires_at(), caller.expires_at());
    let mut onward = to("https://api/");
    onward.extensions_mut().insert(subject.clone());
    let sent = client.clone().oneshot(onward).await.unwrap().into_body();
    let issued = world
        .server
        .find(&sent.unwrap()["Bearer ".len()..])
        .unwrap();
    assert_eq!(issued.subject.as_str(), WEB);
    // It is not sent to another origin.
    let mut onward = to("https://other/");
    onward.extensions_mut().insert(subject);
    assert_eq!(client.oneshot(onward).await.unwrap().into_body(), None);
    // The header has another token than the verified caller.
    let mut other = request.headers().clone();
    other.insert(AUTHORIZATION, world.agent.bearer(CRON, "gateway"));
    assert!(SubjectToken::of_caller(caller, &other).is_none());
    let mut parts = request.headers().clone();
    let bearer = parts[AUTHORIZATION]
        .to_str()
        .unwrap()
        .replace("Bearer", "bearer");
    parts.insert(AUTHORIZATION, bearer.parse().unwrap());
    assert!(SubjectToken::of_caller(caller, &parts).is_some());
    parts.clear();
    assert!(SubjectToken::of_caller(caller, &parts).is_none());
}
