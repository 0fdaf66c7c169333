//! Extreme settings and extreme clock times.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use serde_json::json;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::server::{Allow, EndAtExpiryLayer, UnknownKeyWait, ValidateJwtSvidLayer};
use tower_spiffe_test_support::clock::HandClock;

use crate::support::{Signer, WEB, World, bearer, with_authorization};

#[tokio::test(start_paused = true)]
async fn extreme_settings_break_no_request() {
    const ENDS: [Duration; 2] = [Duration::ZERO, Duration::MAX];
    let stranger = Signer::new("x", "k2");
    for end in ENDS {
        for bytes in [0, 1, 2047, usize::MAX] {
            let world = World::with(|builder| {
                let builder = builder.cache_bytes(bytes).max_token_len(usize::MAX);
                builder.max_lifetime(Some(end))
            });
            let layer =
                ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
                    .log_interval(end);
            let wait = UnknownKeyWait::new(end)
                .max_waiting(usize::MAX)
                .cool_down(end);
            let layer = layer.wait_for_unknown_keys(wait);
            let end_at_expiry = EndAtExpiryLayer::new(&world.validator).log_interval(end);
            let service =
                layer.layer(end_at_expiry.layer(service_fn(|_: Request<String>| async {
                    Ok::<_, Infallible>(Response::new(http_body_util::Full::from("whole")))
                })));
            let ask = |token: &str| service.clone().oneshot(with_authorization(&bearer(token)));
            let expected = if end.is_zero() { 401 } else { 200 };
            for exp in [json!(i64::MAX), json!(1e300), json!(4_000_000_000_u32)] {
                let token = world.issuer.token_with(WEB, json!({ "exp": exp }));
                for _ in 0..2 {
                    assert_eq!(
                        ask(&token).await.unwrap().status(),
                        expected,
                        "{exp} {bytes}"
                    );
                }
            }
            let past = world.issuer.token_with(WEB, json!({ "exp": i64::MIN }));
            assert_eq!(ask(&past).await.unwrap().status(), 401);
            // Infinite durations must last at least half a year.
            let unknown = stranger.token(WEB);
            if end.is_zero() {
                assert_eq!(ask(&unknown).await.unwrap().status(), 401);
            } else {
                let waited = Duration::from_secs(1 << 24);
                let asked = tokio::time::timeout(waited, ask(&unknown)).await;
                assert!(asked.is_err());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a24_extreme_clock_times_break_no_request() {
    let clock = HandClock::at(0);
    let world = World::with(|builder| builder.clock(clock.clone()));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain())
        .wait_for_unknown_keys(UnknownKeyWait::new(Duration::ZERO));
    let service = layer.layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let unknown =
        Signer::new("x", "k2").token_with(WEB, json!({ "exp": i64::MAX, "nbf": i64::MIN }));
    let forever = json!({ "exp": i64::MAX, "nbf": i64::MIN, "iat": null });
    let forever = world.issuer.token_with(WEB, forever);
    let moments = [
        (UnixTime::MIN, Duration::MAX, 200),
        (UnixTime::from_secs(-1), Duration::ZERO, 200),
        (UnixTime::from_secs(i64::MAX - 1), Duration::MAX, 200),
        // The latest times that can be represented.
        (UnixTime::MAX, Duration::ZERO, 401),
        (UnixTime::from_secs(0), Duration::MAX, 200),
    ];
    for (wall, monotonic, expected) in moments {
        clock.set_both(wall, monotonic);
        for (token, expected) in [(&forever, expected), (&unknown, 401)] {
            let request = with_authorization(&bearer(token));
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), expected, "{wall} {monotonic:?}");
        }
    }
}
