//! Wildcards in `Audience::from_origin`: each `*` is exactly one label.

use http::header::AUTHORIZATION;
use tower_spiffe::client::{AddJwtSvidLayer, Audience, AudienceError, OriginError};

use crate::layer::{sent, to};
use crate::support::Bench;

/// Asserts which of these origins get a token with this pattern.
async fn assert_matches(pattern: &str, matched: &[&str], others: &[&str]) {
    let bench = Bench::new();
    let audience = Audience::from_origin(|origin| Some(origin.to_string()), [pattern]).unwrap();
    let layer = AddJwtSvidLayer::new(bench.cache.clone(), audience);
    for (origins, expected) in [(matched, true), (others, false)] {
        for origin in origins {
            // The second request uses the cache of known origins.
            for _ in 0..2 {
                let headers = sent(layer.clone(), to(&format!("{origin}/x")))
                    .await
                    .unwrap();
                let signed = headers.contains_key(AUTHORIZATION);
                assert_eq!(signed, expected, "{pattern}: {origin}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn e02_wildcard_is_exactly_one_label() {
    assert_matches(
        "https://*.svc.example.org",
        &[
            "https://reports.svc.example.org",
            "https://REPORTS.Svc.Example.org",
            "https://reports.svc.example.org:443",
            "https://xn--bcher-kva.svc.example.org",
            "https://_dns.svc.example.org",
            "https://10.svc.example.org",
        ],
        &[
            "https://svc.example.org",
            "https://reports.attacker.svc.example.org",
            "https://a.b.c.svc.example.org",
            "https://.svc.example.org",
            "https://reports..svc.example.org",
            "https://reports.svc.example.org.",
            "https://reports.svc.example.org..",
            "https://reportssvc.example.org",
            "https://reports.xsvc.example.org",
            "https://reports.svc.example.org.evil.test",
            "https://reports.svc.example.org:8443",
            "http://reports.svc.example.org",
            "https://10.0.0.1",
            "https://[::1]",
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn e02_several_wildcards_are_as_many_labels() {
    assert_matches(
        "https://*.*.svc.example.org:8443",
        &[
            "https://reports.team-a.svc.example.org:8443",
            "https://xn--a.xn--b.svc.example.org:8443",
        ],
        &[
            "https://reports.svc.example.org:8443",
            "https://a.reports.team-a.svc.example.org:8443",
            "https://reports..svc.example.org:8443",
            "https://.reports.svc.example.org:8443",
            "https://..svc.example.org:8443",
            "https://reports.team-a.svc.example.org",
        ],
    )
    .await;
    assert_matches(
        "https://*.*.*.example.org",
        &["https://a.b.c.example.org"],
        &["https://b.c.example.org", "https://z.a.b.c.example.org"],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn e02_absolute_pattern_matches_absolute_names_only() {
    assert_matches(
        "https://*.svc.cluster.local.",
        &["https://reports.svc.cluster.local."],
        &[
            "https://reports.svc.cluster.local",
            "https://a.reports.svc.cluster.local.",
            "https://svc.cluster.local.",
        ],
    )
    .await;
}

#[test]
fn e02_wildcards_are_leftmost_labels_only() {
    for bad in [
        "https://*",
        "https://*.*",
        "https://*.*.",
        "https://*.org",
        "https://*.org.",
        "https://*.*.org",
        "https://*.*.org.",
        "https://*..example.org",
        "https://.*.example.org",
        "https://**.example.org",
        "https://a*.example.org",
        "https://*a.example.org",
        "https://reports.*.example.org",
        "https://*.reports.*.example.org",
        "https://*.example.*",
        "https://*.example..org",
        "https://*.*.0.0.1",
        "https://*.0.0.1.",
        "https://*.[::1]",
        "https://*.user@example.org",
        "https://*.example.org/v1",
        "https://*.example.org:0",
        "wss://*.example.org",
        "*.example.org",
        "https://*%2eexample.org",
    ] {
        let error = Audience::from_origin(|_| Some("a".into()), [bad]).unwrap_err();
        assert!(matches!(error, AudienceError::Origin { .. }), "{bad}");
        let text = error.to_string();
        assert!(text.contains("`https://*.*.example.org`"), "{text}");
    }
    // A wildcard is not an origin.
    let error = Audience::fixed("a").for_origin("https://*.example.org");
    let Err(AudienceError::Origin { error, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error, OriginError::Host);
}
