//! H06 and H09: early polls for unknown keys.

use std::convert::Infallible;

use http::{Request, Response};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_spiffe::Validator;
use tower_spiffe::bundle::BundleSource as _;
use tower_spiffe::server::{Allow, UnknownKeyWait, ValidateJwtSvidLayer};
use tower_spiffe::verify::ValidateReason;

use super::*;

#[tokio::test(start_paused = true)]
async fn h06_many_unknown_kids_cause_one_request() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let validator = world.validator(&bundles);
    polls(&bundles, 1).await;
    let stranger = Issuer::with_clock(TD, world.clock.shared()).unwrap();
    let unknown = |kid: usize| {
        let token = stranger
            .token(WEB, AUD)
            .header("kid", format!("unknown-{kid}"))
            .sign();
        let error = validator.validate(&token).unwrap_err();
        assert_eq!(error.reason(), ValidateReason::KeyUnknown);
    };
    for kid in 0..10_000 {
        unknown(kid);
    }
    polls(&bundles, 2).await;
    (0..1_000).for_each(&unknown);
    advance(secs(9)).await;
    (0..1_000).for_each(&unknown);
    rest().await;
    assert_eq!(world.server.seen().len(), 2);
    // The next poll waits for the cooldown, which may be shorter than a minute.
    advance(secs(1)).await;
    (0..1_000).for_each(&unknown);
    let state = polls(&bundles, 3).await;
    assert!(state.next_poll.unwrap() >= secs(270));
    assert_eq!(world.server.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn h06_known_keys_and_other_domains_cause_no_request() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    let validator = world.validator(&bundles);
    polls(&bundles, 1).await;
    assert!(validator.validate(&world.token()).is_ok());
    let altered = format!("{}AAAA", world.token());
    assert!(validator.validate(&altered).is_err());
    let other = Issuer::with_clock("other.test", world.clock.shared()).unwrap();
    let foreign = other.token("spiffe://other.test/web", AUD).sign();
    let error = validator.validate(&foreign).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::TrustDomainUnknown);
    bundles.unknown_key("other.test", "kid");
    let expired = world
        .issuer
        .token(WEB, AUD)
        .header("kid", "x")
        .expired(secs(60))
        .sign();
    assert!(validator.validate(&expired).is_err());
    rest().await;
    assert_eq!(world.server.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn h06_waiting_requests_share_one_poll() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    let layer =
        ValidateJwtSvidLayer::required(world.validator(&bundles), Allow::any_trust_domain())
            .wait_for_unknown_keys(UnknownKeyWait::new(secs(5)));
    let service = layer.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    world.issuer.rotate_now();
    world.server.answer(Reply::json(world.issuer.jwks()));
    let request = Request::get("https://reports.test/")
        .header("authorization", format!("Bearer {}", world.token()))
        .body(String::new())
        .unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|_| tokio::spawn(service.clone().oneshot(request.clone())))
        .collect();
    for response in waiting {
        assert_eq!(response.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(world.server.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn h06_retry_after_delays_early_polls() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    world
        .server
        .answer(Reply::status("429 Too Many Requests").header("retry-after", "100"));
    bundles.unknown_key(TD, "x");
    polls(&bundles, 2).await;
    advance(secs(99)).await;
    bundles.unknown_key(TD, "x");
    rest().await;
    assert_eq!(world.server.seen().len(), 2);
    advance(secs(1)).await;
    bundles.unknown_key(TD, "x");
    polls(&bundles, 3).await;
}

#[tokio::test(start_paused = true)]
async fn h06_unknown_key_during_a_poll_keeps_retry_after() {
    let world = World::new().await;
    let bundles = world.jwks().await;
    polls(&bundles, 1).await;
    let seeing = bundles.clone();
    world.server.script(move |_| {
        seeing.unknown_key(TD, "x");
        Reply::status("429 Too Many Requests").header("retry-after", "100")
    });
    next_poll(&bundles).await;
    advance(secs(98)).await;
    rest().await;
    assert_eq!(world.server.seen().len(), 2);
    advance(secs(2)).await;
    bundles.unknown_key(TD, "x");
    polls(&bundles, 3).await;
}

#[tokio::test(start_paused = true)]
async fn h09_domains_with_the_same_kid_stay_apart() {
    let world = World::new().await;
    let other = Issuer::with_clock("other.test", world.clock.shared()).unwrap();
    let with_kid = |issuer: &Issuer| {
        let mut set: Value = serde_json::from_slice(&issuer.jwks()).unwrap();
        set["keys"][0]["kid"] = json!("same");
        set.to_string()
    };
    let (ours, theirs) = (with_kid(&world.issuer), with_kid(&other));
    world.server.script(move |path| match path {
        "/ours" => Reply::json(&ours),
        _ => Reply::json(&theirs),
    });
    let source = async |name: &str, path: &str| {
        let builder = HttpsBundles::jwks_url(td(name), world.server.url(path));
        let bundles = world.set_up(builder).build().await.unwrap();
        world.validator(&bundles)
    };
    let ours: Validator = source(TD, "/ours").await;
    let theirs: Validator = source("other.test", "/theirs").await;
    let token = |signer: &Issuer, id: &str| signer.token(id, AUD).header("kid", "same").sign();
    let other_web = "spiffe://other.test/web";
    assert!(ours.validate(&token(&world.issuer, WEB)).is_ok());
    assert!(theirs.validate(&token(&other, other_web)).is_ok());
    let reason =
        |validator: &Validator, token: String| validator.validate(&token).unwrap_err().reason();
    assert_eq!(reason(&ours, token(&other, WEB)), ValidateReason::Signature);
    assert_eq!(
        reason(&theirs, token(&world.issuer, other_web)),
        ValidateReason::Signature
    );
    assert_eq!(
        reason(&ours, token(&other, other_web)),
        ValidateReason::TrustDomainUnknown
    );
}
