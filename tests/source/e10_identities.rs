//! Identities are selected by SPIFFE ID or hint, on every getter. A resolved hint is requested by ID.

use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::token::{SvidRequestError, TokenErrorReason};
use tower_spiffe::{JwtSvid, SpiffeId};

use crate::raw_agent::RawAgent;
use crate::support::*;

const DB: &str = "spiffe://example.org/db-user";

fn id(id: &str) -> SpiffeId {
    SpiffeId::parse(id).unwrap()
}

async fn two() -> World {
    let world = World::new().await;
    world.agent.register(WEB, "external", secs(300)).unwrap();
    world.agent.register(DB, "internal", secs(300)).unwrap();
    world
}

fn sub(header: &http::HeaderValue) -> String {
    let token = &header.to_str().unwrap()["Bearer ".len()..];
    JwtSvid::parse_unverified(token, "")
        .unwrap()
        .spiffe_id()
        .to_string()
}

#[tokio::test(start_paused = true)]
async fn e10_every_getter_selects_an_identity() {
    let world = two().await;
    let source = world.builder().build().await.unwrap();
    for (wanted, hint) in [(WEB, "external"), (DB, "internal")] {
        let wanted = id(wanted);
        let by_id = Some(&wanted);
        for svid in [
            source.get_jwt_svid_with_id([AUD], by_id).await.unwrap(),
            source.get_jwt_svid_with_hint([AUD], hint).await.unwrap(),
            source.fetch_jwt_svid_with_id([AUD], by_id).await.unwrap(),
            source.fetch_jwt_svid_with_hint([AUD], hint).await.unwrap(),
        ] {
            assert_eq!((svid.spiffe_id(), svid.hint()), (&wanted, hint));
        }
        for header in [
            source.authorization_with_id(AUD, by_id).await.unwrap(),
            source.authorization_with_hint(AUD, hint).await.unwrap(),
        ] {
            assert_eq!(sub(&header), wanted.as_str());
        }
    }
    let error = source.authorization_with_hint(AUD, "").await.unwrap_err();
    let empty = JwtSourceErrorReason::InvalidRequest(SvidRequestError::EmptyHint);
    assert_eq!(error.reason(), empty);
    let error = source
        .get_jwt_svid_with_hint([AUD], "other")
        .await
        .unwrap_err();
    let denied = JwtSourceErrorReason::Token(TokenErrorReason::Denied);
    assert_eq!(error.reason(), denied);
}

/// A scripted agent, and a source that uses it.
async fn raw() -> (World, RawAgent, tower_spiffe::JwtSource) {
    let world = World::new().await;
    let raw = RawAgent::default();
    let source = tower_spiffe::JwtSource::builder()
        .connector(raw.connector())
        .build_lazy()
        .unwrap();
    (world, raw, source)
}

fn token(of: &str) -> String {
    tower_spiffe::testing::Issuer::new(TD)
        .unwrap()
        .token(of, AUD)
        .sign()
}

#[tokio::test(start_paused = true)]
async fn e10_resolved_hint_is_requested_by_id() {
    let (_world, raw, source) = raw().await;
    let (web, db) = (token(WEB), token(DB));
    raw.answer(&[(WEB, &web, "external"), (DB, &db, "internal")]);
    for expected in ["", DB, DB] {
        let svid = source
            .fetch_jwt_svid_with_hint([AUD], "internal")
            .await
            .unwrap();
        assert_eq!(svid.spiffe_id().as_str(), DB);
        assert_eq!(raw.asked().last().unwrap().spiffe_id, expected);
    }
    // The cache sends the same requests, for every audience.
    source
        .get_jwt_svid_with_hint([AUD], "internal")
        .await
        .unwrap();
    assert_eq!(raw.asked().last().unwrap().spiffe_id, DB);
    assert_eq!(raw.asked().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn e10_moved_hint_is_resolved_again() {
    let (_world, raw, source) = raw().await;
    let (web, db) = (token(WEB), token(DB));
    raw.answer(&[(WEB, &web, "external"), (DB, &db, "internal")]);
    source
        .fetch_jwt_svid_with_hint([AUD], "internal")
        .await
        .unwrap();
    // Another identity has the hint now.
    raw.answer(&[(WEB, &web, "internal"), (DB, &db, "other")]);
    let svid = source
        .fetch_jwt_svid_with_hint([AUD], "internal")
        .await
        .unwrap();
    assert_eq!(svid.spiffe_id().as_str(), WEB);
    let asked: Vec<_> = raw.asked().into_iter().map(|it| it.spiffe_id).collect();
    assert_eq!(asked, ["", DB, ""]);
    source
        .fetch_jwt_svid_with_hint([AUD], "internal")
        .await
        .unwrap();
    assert_eq!(raw.asked().last().unwrap().spiffe_id, WEB);
}

#[tokio::test(start_paused = true)]
async fn e10_unregistered_identity_is_resolved_again() {
    let world = two().await;
    let source = world.builder().build().await.unwrap();
    let by_hint = async || source.fetch_jwt_svid_with_hint([AUD], "internal").await;
    assert_eq!(by_hint().await.unwrap().spiffe_id().as_str(), DB);
    world.agent.unregister(DB);
    assert!(by_hint().await.is_err());
    world.agent.unregister(WEB);
    world.agent.register(WEB, "internal", secs(300)).unwrap();
    assert_eq!(by_hint().await.unwrap().spiffe_id().as_str(), WEB);
}
