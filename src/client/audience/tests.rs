use http::Uri;

use super::*;

/// The audience for a URI.
fn found(audience: &Audience, uri: &str) -> Option<String> {
    let uri: Uri = uri.parse().unwrap();
    let target = Target::of_uri(&uri).ok()??;
    let request = match audience.find(target) {
        Found::Rule(_, request) => request.clone(),
        Found::Made(request) => request,
        Found::Nothing => return None,
        Found::Invalid(error) => return Some(error.to_string()),
    };
    // The look-up as text finds the same rule, or nothing.
    let glance = uri
        .authority()
        .filter(|_| uri.scheme_str() == Some("https"));
    if let Some((_, as_written)) = glance.and_then(|it| audience.find_as_written(it.as_str())) {
        assert_eq!(*as_written, request, "{uri}");
    }
    Some(request.audiences().next()?.to_owned())
}

#[test]
fn fixed_audience_matches_bound_origins() {
    let audience = Audience::fixed("a")
        .for_origins(["https://one", "https://two:8443"])
        .unwrap();
    assert_eq!(found(&audience, "https://one/x").as_deref(), Some("a"));
    assert_eq!(found(&audience, "https://TWO:8443/x").as_deref(), Some("a"));
    for other in [
        "https://two/x",
        "http://one/x",
        "https://three/x",
        "https://one.two",
    ] {
        assert_eq!(found(&audience, other), None, "{other}");
    }
    let any = Audience::fixed("a").any_origin().unwrap();
    assert_eq!(found(&any, "https://any/x").as_deref(), Some("a"));
}

#[test]
fn map_of_any_size_finds_each_origin() {
    for size in [1, 4, 5, 300] {
        let entries = (0..size).map(|n| (format!("https://h{n}:{}", 1000 + n), format!("aud-{n}")));
        let audience = Audience::map(entries).unwrap();
        for n in 0..size {
            let uri = format!("https://H{n}:{}/x", 1000 + n);
            assert_eq!(found(&audience, &uri), Some(format!("aud-{n}")));
            assert_eq!(found(&audience, &format!("https://h{n}/x")), None);
        }
    }
}

#[test]
fn from_origin_applies_to_allowed_origins() {
    let first = |origin: &Origin| origin.host().split('.').next().map(str::to_owned);
    let allowed = ["https://one:8443", "https://*.svc.example.org"];
    let audience = Audience::from_origin(first, allowed).unwrap();
    for _ in 0..2 {
        assert_eq!(
            found(&audience, "https://one:8443/").as_deref(),
            Some("one")
        );
        assert_eq!(
            found(&audience, "https://Web.Svc.example.org/").as_deref(),
            Some("web")
        );
    }
    for other in [
        "https://one/",
        "https://svc.example.org/",
        "https://.svc.example.org/",
        "https://xsvc.example.org/",
        "https://a.b.svc.example.org/",
        "https://web.svc.example.org:8443/",
        "http://web.svc.example.org/",
        "https://web.svc.example.org.evil.test/",
        "https://web.svc.example.org./",
    ] {
        assert_eq!(found(&audience, other), None, "{other}");
    }
    let none = Audience::from_origin(|_| None, ["https://one"]).unwrap();
    assert_eq!(found(&none, "https://one/"), None);
}

#[test]
fn wildcard_needs_a_domain() {
    for bad in [
        "https://*.org",
        "https://*.",
        "https://*",
        "https://*.[::1]",
        "https://a.*.org",
        // Otherwise an address would match: 127.0.0.1.
        "https://*.0.0.1",
        "https://*.127.0.0.1",
        "https://*.0.0x1",
        "https://*.0.0X1:8443",
        "https://*.0.0x",
    ] {
        let error = Audience::from_origin(|_| None, [bad]).unwrap_err();
        assert!(
            matches!(error, AudienceError::Origin { .. }),
            "{bad}: {error:?}"
        );
        assert!(error.to_string().contains("`https://*.example.org`"));
    }
}

#[test]
fn wildcard_domain_may_contain_numbers() {
    for good in [
        "https://*.1.example",
        "https://*.0x1.org",
        "https://*.a.0xyz",
        "https://*.a.1a",
    ] {
        assert!(Audience::from_origin(|_| None, [good]).is_ok(), "{good}");
    }
}

#[test]
fn invalid_configuration_has_its_reason() {
    let no_request = AudienceError::Request;
    assert_eq!(
        Audience::fixed("").any_origin().unwrap_err(),
        no_request(SvidRequestError::EmptyAudience)
    );
    assert_eq!(
        Audience::fixed("a\n").any_origin().unwrap_err(),
        no_request(SvidRequestError::AudienceWhitespace)
    );
    assert_eq!(
        Audience::fixed("a")
            .any_origin()
            .unwrap()
            .hint("")
            .unwrap_err(),
        no_request(SvidRequestError::EmptyHint)
    );
    assert_eq!(
        Audience::map::<&str, &str>([]).unwrap_err(),
        AudienceError::NoOrigin
    );
    assert_eq!(
        Audience::fixed("a").for_origins::<&str>([]).unwrap_err(),
        AudienceError::NoOrigin
    );
    let twice = Audience::map([("https://a", "1"), ("https://A:443/", "2")]).unwrap_err();
    assert_eq!(twice, AudienceError::Twice("https://a".parse().unwrap()));
    for (origin, why) in [
        ("https://user@a", "an origin has no user name"),
        ("ledger", "expected `https://host`"),
        ("ledger:8443", "expected `https://host`"),
        ("/ledger", "expected `https://host`"),
        ("*", "expected `https://host`"),
        ("https://ledger/v1", "an origin has no path"),
    ] {
        let error = Audience::map([(origin, "1")]).unwrap_err().to_string();
        let beginning = format!("{origin:?} is not a valid origin: {why}");
        assert!(error.starts_with(&beginning), "{error}");
    }
}

#[test]
fn identity_applies_to_every_request() {
    let id: SpiffeId = "spiffe://x/web".parse().unwrap();
    let map = Audience::map([("https://a", "1"), ("https://b", "2")]).unwrap();
    let as_id = map.clone().spiffe_id(id.clone());
    assert!(
        as_id
            .requests()
            .all(|request| request.spiffe_id() == Some(&id))
    );
    assert_eq!(found(&as_id, "https://b/").as_deref(), Some("2"));
    let by_hint = map.hint("internal").unwrap();
    assert!(
        by_hint
            .requests()
            .all(|request| request.hint() == Some("internal"))
    );
    let made = Audience::from_origin(|_| Some("a".into()), ["https://a"])
        .unwrap()
        .spiffe_id(id.clone());
    let origin: Origin = "https://a".parse().unwrap();
    let Found::Made(request) = made.find(origin.target()) else {
        panic!()
    };
    assert_eq!(request.spiffe_id(), Some(&id));
}

#[test]
fn audience_is_derived_once_for_each_origin() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let made = move |origin: &Origin| {
        counted.fetch_add(1, Ordering::Relaxed);
        Some(origin.host().to_owned())
    };
    let audience = Audience::from_origin(made, ["https://a", "https://b"]).unwrap();
    for _ in 0..3 {
        assert_eq!(found(&audience, "https://a/").as_deref(), Some("a"));
        assert_eq!(found(&audience, "https://b/").as_deref(), Some("b"));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[test]
fn audience_error_has_its_source() {
    use std::error::Error as _;

    let request = Audience::fixed("").any_origin().unwrap_err();
    let source = request.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&SvidRequestError::EmptyAudience));
    let origin = Audience::fixed("a").for_origin("ftp://a").unwrap_err();
    let source = origin.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&OriginError::Scheme));
    assert!(AudienceError::NoOrigin.source().is_none());
}
