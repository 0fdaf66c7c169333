use super::*;

fn target(uri: &str) -> Result<Option<Origin>, OriginError> {
    let uri: Uri = uri.parse().map_err(|_| OriginError::Malformed)?;
    Ok(Target::of_uri(&uri)?.map(Target::to_origin))
}

#[test]
fn spellings_of_an_origin_are_equal() {
    let reports: Origin = "https://reports:443".parse().unwrap();
    for same in [
        "https://reports",
        "https://reports/",
        "HTTPS://REPORTS/path?query",
        "https://Reports:443",
        "https://reports:0443/x",
    ] {
        assert_eq!(target(same), Ok(Some(reports.clone())), "{same}");
    }
    assert_eq!(reports.to_string(), "https://reports");
    assert_eq!(
        "http://[::1]:80".parse::<Origin>().unwrap().to_string(),
        "http://[::1]"
    );
}

#[test]
fn similar_looking_uri_is_not_the_origin() {
    let reports: Origin = "https://reports.example.org".parse().unwrap();
    for other in [
        "http://reports.example.org",
        "http://reports.example.org:443",
        "https://reports.example.org:8443",
        "https://reports.example.org:0",
        "https://reports.example.org:",
        "https://reports.example.org:4430",
        "https://reports.example.org:65979",
        "https://reports.example.org.",
        "https://reports.example.org.evil.test",
        "https://evil.test/reports.example.org",
        "https://evil.test?reports.example.org",
        "https://reports.example.org@evil.test",
        "https://reports.example.org:443@evil.test",
        "https://user@reports.example.org",
        "https://user:pass@reports.example.org",
        "https://xreports.example.org",
        "https://reports-example.org",
        "https://reports%2eexample.org",
        "https://%72eports.example.org",
        "https://reports.example.org%00",
        "https://xn--reports-9l8a.example.org",
        "https://reports.example.org\u{ff0e}evil.test",
        "https://\u{440}eports.example.org",
        "wss://reports.example.org",
        "ftp://reports.example.org",
        "reports.example.org",
        "reports.example.org:443",
        "//reports.example.org/",
        "/reports.example.org",
        "*",
    ] {
        assert_ne!(target(other), Ok(Some(reports.clone())), "{other}");
    }
}

#[test]
fn only_uri_without_authority_has_no_origin() {
    for open in ["/x", "/", "*", "/x?https://reports"] {
        assert_eq!(target(open), Ok(None), "{open}");
    }
    for half in ["reports", "reports:443", "evil.test:3128", "[::1]:80"] {
        assert_eq!(target(half), Err(OriginError::Malformed), "{half}");
    }
}

#[test]
fn address_is_matched_as_written() {
    let loopback: Origin = "https://127.0.0.1:8443".parse().unwrap();
    for other in [
        "https://127.1:8443",
        "https://0x7f.0.0.1:8443",
        "https://2130706433:8443",
        "https://127.0.0.01:8443",
        "https://[::ffff:127.0.0.1]:8443",
        "https://localhost:8443",
    ] {
        assert_ne!(target(other), Ok(Some(loopback.clone())), "{other}");
    }
}

#[test]
fn loopback_needs_its_usual_form() {
    let is_loopback = |uri: &str| {
        let uri: Uri = uri.parse().unwrap();
        Target::of_uri(&uri).is_ok_and(|target| target.is_some_and(Target::is_loopback))
    };
    for loopback in [
        "http://127.0.0.1",
        "http://127.8.9.1:80",
        "http://[::1]",
        "http://LocalHost",
    ] {
        assert!(is_loopback(loopback), "{loopback}");
    }
    for other in [
        "http://127.1",
        "http://0x7f000001",
        "http://2130706433",
        "http://0177.0.0.1",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://[::]",
        "http://[::ffff:127.0.0.1]",
        "http://localhost.",
        "http://localhost.evil.test",
        "http://127.0.0.1.evil.test",
        "http://notlocalhost",
        "http://127.0.0.1@evil.test",
    ] {
        assert!(!is_loopback(other), "{other}");
    }
}

#[test]
fn invalid_origin_has_its_reason() {
    let error = |text: &str| text.parse::<Origin>().unwrap_err();
    assert_eq!(error(""), OriginError::Malformed);
    assert_eq!(error("reports"), OriginError::Malformed);
    assert_eq!(error("https://"), OriginError::Malformed);
    assert_eq!(error("https://b\u{fc}cher.example"), OriginError::Malformed);
    assert_eq!(error("ftp://reports"), OriginError::Scheme);
    assert_eq!(error("https://user@reports"), OriginError::UserInfo);
    assert_eq!(error("https://reports.."), OriginError::Host);
    assert_eq!(error("https://rep%6frts"), OriginError::Malformed);
    assert_eq!(error("https://*.reports"), OriginError::Host);
    assert_eq!(error("https://reports:0"), OriginError::Port);
    assert_eq!(error("https://reports:"), OriginError::Port);
    assert_eq!(error("https://reports/v1"), OriginError::Path);
    assert_eq!(error("https://reports?x"), OriginError::Path);
    assert_eq!(error("https://reports#x"), OriginError::Path);
    for error in [OriginError::Malformed, OriginError::Host, OriginError::Path] {
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn hash_ignores_case() {
    use std::hash::{BuildHasher, RandomState};
    let hasher = RandomState::new();
    let long = "https://A-very-Long-host-name.of-more-than-32-bytes.example.org:8443";
    let lower = long.to_ascii_lowercase();
    let (a, b): (Uri, Uri) = (long.parse().unwrap(), lower.parse().unwrap());
    let (a, b) = (
        Target::of_uri(&a).unwrap().unwrap(),
        Target::of_uri(&b).unwrap().unwrap(),
    );
    assert_eq!(a, b);
    assert_eq!(hasher.hash_one(a), hasher.hash_one(b));
}

/// The comparison of text must find the same origin as the parser.
#[test]
fn fast_match_agrees_with_parsed_origin() {
    let origins = [
        "https://a",
        "https://a:8443",
        "https://a.",
        "https://[::1]:8443",
        "https://[::1]",
        "https://xn--bcher-kva.example",
        "https://127.0.0.1:444",
        "http://a",
        "http://a:443",
    ];
    let uris = [
        "https://a/x",
        "https://A/x",
        "https://a:443/x",
        "https://a:8443",
        "https://a:08443/x",
        "https://a:/x",
        "https://u@a/x",
        "https://a@b/x",
        "https://a./x",
        "https://a%2e/x",
        "https://[::1]:8443/x",
        "https://[0:0::1]:8443/x",
        "https://[::1]/x",
        "https://xn--bcher-kva.example/x",
        "https://127.0.0.1:444/x",
        "https://2130706433:444/x",
        "http://a/x",
        "http://a:443/x",
        "HTTPS://a/x",
        "ftp://a/x",
        "/x",
    ];
    let mut as_written = 0;
    for uri in uris {
        let Ok(uri) = uri.parse::<Uri>() else {
            continue;
        };
        let destination = Destination::Uri(&uri);
        for origin in origins {
            let origin: Origin = origin.parse().unwrap();
            let glance = destination.https_authority();
            if glance.is_some_and(|authority| origin.is_https_as_written(authority)) {
                assert_eq!(destination.target(), Ok(Some(origin.target())), "{uri}");
                as_written += 1;
            }
        }
    }
    // One for each https origin, and another with the scheme in upper case.
    assert_eq!(as_written, 8);
}

#[test]
fn origin_has_scheme_host_and_port() {
    for (text, scheme, host, port) in [
        ("https://Reports", "https", "reports", 443),
        ("https://reports:8443/", "https", "reports", 8443),
        ("http://reports.", "http", "reports.", 80),
        ("http://[::1]:443", "http", "[::1]", 443),
    ] {
        let origin: Origin = text.parse().unwrap();
        assert_eq!(origin.scheme(), scheme, "{text}");
        assert_eq!(origin.host(), host, "{text}");
        assert_eq!(origin.port(), port, "{text}");
        assert_eq!(format!("{origin:?}"), origin.to_string());
        assert_eq!(origin.to_string().parse(), Ok(origin), "{text}");
    }
}

#[test]
fn is_below_counts_whole_labels() {
    let domain: Origin = "https://svc.example.org".parse().unwrap();
    for (uri, labels) in [
        ("https://svc.example.org", None),
        ("https://a.svc.example.org", Some(1)),
        ("https://A.SVC.example.org:443", Some(1)),
        ("https://a.b.svc.example.org", Some(2)),
        ("https://asvc.example.org", None),
        ("https://example.org", None),
        ("https://a.svc.example.com", None),
        ("http://a.svc.example.org", None),
        ("https://a.svc.example.org:8443", None),
        ("https://a.svc.example.org.", None),
    ] {
        let uri: Uri = uri.parse().unwrap();
        let target = Target::of_uri(&uri).unwrap().unwrap();
        for n in 0..4 {
            let below = target.is_below(domain.target(), n);
            assert_eq!(below, labels == Some(n), "{uri} with {n} labels");
        }
    }
}

#[test]
fn user_name_is_found_in_a_whole_uri() {
    for uri in ["https://user@reports", "https://user:1@reports:443/x"] {
        assert_eq!(target(uri), Err(OriginError::UserInfo), "{uri}");
    }
}

#[test]
fn host_header_names_the_same_host_and_port() {
    let reports: Origin = "https://reports".parse().unwrap();
    for same in ["reports", "REPORTS", "reports:443", "reports:0443"] {
        assert!(reports.target().is_host_header(same.as_bytes()), "{same}");
    }
    for other in [
        "reports.evil.test",
        "reports443",
        "reports:",
        "reports:+443",
        "reports:443x",
        "reports:80",
        "report",
        "xreports",
        "",
    ] {
        assert!(
            !reports.target().is_host_header(other.as_bytes()),
            "{other}"
        );
    }
}
