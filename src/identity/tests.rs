//! Named after the rules of the SPIFFE-ID document (ID-n: section 2 to 2.4).

use super::*;

fn assert_rejected(text: &str, why: SpiffeIdError) {
    assert_eq!(SpiffeId::parse(text), Err(why), "{text:?}");
}

fn accepted(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

#[test]
fn id_1_scheme_is_spiffe() {
    for text in [
        "s",
        "spiffe:/",
        "spiffe:path",
        "xspiffe://td",
        "http://td/x",
        " spiffe://td",
        "td/x",
    ] {
        assert_rejected(text, SpiffeIdError::Scheme);
    }
    assert_rejected("", SpiffeIdError::Empty);
}

#[test]
fn id_2_id_5_trust_domain_is_not_empty() {
    for text in ["spiffe://", "spiffe:///", "spiffe:///path"] {
        assert_rejected(text, SpiffeIdError::EmptyTrustDomain);
    }
}

#[test]
fn id_3_no_query_or_fragment() {
    assert_rejected("spiffe://td/x?q", SpiffeIdError::PathCharacter);
    assert_rejected("spiffe://td/x#f", SpiffeIdError::PathCharacter);
    assert_rejected("spiffe://td?q", SpiffeIdError::TrustDomainCharacter);
    assert_rejected("spiffe://td#f", SpiffeIdError::TrustDomainCharacter);
}

#[test]
fn id_4_path_is_optional() {
    let id = accepted("spiffe://td");
    assert_eq!((id.trust_domain_name(), id.path()), ("td", ""));
}

#[test]
fn id_6_no_userinfo_or_port() {
    for text in [
        "spiffe://user@td/x",
        "spiffe://td:80/x",
        "spiffe://td:/x",
        "spiffe://@td",
    ] {
        assert_rejected(text, SpiffeIdError::TrustDomainCharacter);
    }
}

#[test]
fn id_7_id_20_upper_case_is_rejected() {
    assert_rejected("SPIFFE://td/x", SpiffeIdError::Scheme);
    assert_rejected("Spiffe://td/x", SpiffeIdError::Scheme);
    assert_rejected("spiffe://TD/x", SpiffeIdError::TrustDomainCharacter);
    // U+212A KELVIN SIGN folds to `k` in Unicode; nothing is folded here.
    assert_rejected(
        "spiffe://\u{212a}ube.test/x",
        SpiffeIdError::TrustDomainCharacter,
    );
}

#[test]
fn id_8_trust_domain_charset() {
    for c in (0..=255u8).map(char::from).filter(|&c| c != '/') {
        let legal = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        let id = SpiffeId::parse(&format!("spiffe://td{c}/x"));
        assert_eq!(id.is_ok(), legal, "{c:?}");
        assert_eq!(
            TrustDomain::parse(&format!("td{c}")).is_ok(),
            legal,
            "{c:?}"
        );
    }
}

#[test]
fn id_9_id_12_no_percent_encoding() {
    assert_rejected("spiffe://t%64/x", SpiffeIdError::TrustDomainCharacter);
    assert_rejected("spiffe://td/%61", SpiffeIdError::PathCharacter);
}

#[test]
fn id_10_ipv4_is_a_name_ipv6_is_not() {
    assert_eq!(
        accepted("spiffe://1.2.3.4/x").trust_domain_name(),
        "1.2.3.4"
    );
    assert_rejected("spiffe://[::1]/x", SpiffeIdError::TrustDomainCharacter);
}

#[test]
fn id_11_name_may_not_be_a_dns_name() {
    for name in [
        "example..org",
        ".x",
        "x.",
        "-x",
        "x-",
        ".",
        "-",
        "a_b.example",
        "_",
    ] {
        assert_eq!(
            accepted(&format!("spiffe://{name}/x")).trust_domain_name(),
            name
        );
    }
}

#[test]
fn id_13_no_empty_or_dot_segments() {
    for text in ["spiffe://td//x", "spiffe://td/x//y"] {
        assert_rejected(text, SpiffeIdError::EmptySegment);
    }
    for text in [
        "spiffe://td/.",
        "spiffe://td/./x",
        "spiffe://td/x/./y",
        "spiffe://td/..",
        "spiffe://td/../x",
    ] {
        assert_rejected(text, SpiffeIdError::DotSegment);
    }
    for text in [
        "spiffe://td/...",
        "spiffe://td/.x",
        "spiffe://td/..x",
        "spiffe://td/x.",
    ] {
        accepted(text);
    }
}

#[test]
fn id_14_no_trailing_slash() {
    for text in ["spiffe://td/", "spiffe://td//", "spiffe://td/x/"] {
        assert_rejected(text, SpiffeIdError::TrailingSlash);
    }
}

#[test]
fn id_15_path_charset() {
    for c in (0..=255u8).map(char::from).filter(|&c| c != '/') {
        let legal = c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        assert_eq!(
            SpiffeId::parse(&format!("spiffe://td/x{c}")).is_ok(),
            legal,
            "{c:?}"
        );
    }
    assert_rejected("spiffe://td/x\n", SpiffeIdError::PathCharacter);
}

#[test]
fn id_16_paths_may_be_hierarchies() {
    assert_eq!(
        accepted("spiffe://td/ns/prod/sa/web").path(),
        "/ns/prod/sa/web"
    );
}

#[test]
fn id_17_id_18_at_most_2048_bytes() {
    let longest = format!("spiffe://td/{}", "x".repeat(MAX_SPIFFE_ID_LEN - 12));
    assert_eq!(longest.len(), 2048);
    accepted(&longest);
    assert_rejected(&format!("{longest}x"), SpiffeIdError::TooLong);
}

#[test]
fn id_19_trust_domain_has_at_most_255_bytes() {
    let longest = "x".repeat(MAX_TRUST_DOMAIN_LEN);
    assert_eq!(
        accepted(&format!("spiffe://{longest}/y")).trust_domain_name(),
        longest
    );
    assert_rejected(
        &format!("spiffe://{longest}x/y"),
        SpiffeIdError::TrustDomainTooLong,
    );
    assert_eq!(
        TrustDomain::parse(&format!("{longest}x")),
        Err(SpiffeIdError::TrustDomainTooLong)
    );
}

#[test]
fn id_20_path_is_case_sensitive() {
    assert_ne!(accepted("spiffe://td/Web"), accepted("spiffe://td/web"));
}

#[test]
fn trust_domain_parses_from_name_or_id() {
    let td = TrustDomain::parse("td.test").unwrap();
    assert_eq!(td, TrustDomain::parse("spiffe://td.test").unwrap());
    assert_eq!(td, accepted("spiffe://td.test/x").trust_domain());
    assert_eq!(
        accepted("spiffe://td.test/x")
            .trust_domain()
            .to_spiffe_id()
            .as_str(),
        "spiffe://td.test"
    );
    assert_eq!(td.to_spiffe_id().as_str(), "spiffe://td.test");
    assert_eq!(
        TrustDomain::parse("spiffe://td/x"),
        Err(SpiffeIdError::UnexpectedPath)
    );
    assert_eq!(TrustDomain::parse(""), Err(SpiffeIdError::Empty));
    assert_eq!(
        TrustDomain::parse("td/x"),
        Err(SpiffeIdError::TrustDomainCharacter)
    );
}

#[test]
fn map_by_trust_domain_is_searched_by_name() {
    let map = std::collections::HashMap::from([(accepted("spiffe://td/x").trust_domain(), 1)]);
    assert_eq!(map.get("td"), Some(&1));
}

#[test]
fn serde_uses_the_text_and_parses_strictly() {
    let id = accepted("spiffe://td/x");
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"spiffe://td/x\"");
    assert_eq!(
        serde_json::from_str::<SpiffeId>("\"spiffe:\\/\\/td/x\"").unwrap(),
        id
    );
    assert!(serde_json::from_str::<SpiffeId>("\"spiffe://TD/x\"").is_err());
    assert_eq!(serde_json::to_string(&id.trust_domain()).unwrap(), "\"td\"");
}

#[test]
fn matchers_match_only_named_ids() {
    let ids = [
        "spiffe://foo",
        "spiffe://foo/A",
        "spiffe://foo/B",
        "spiffe://foo/A/C",
        "spiffe://foo/AB",
        "spiffe://bar/A",
    ]
    .map(accepted);
    let matched = |m: SpiffeIdMatcher| ids.each_ref().map(|id| m.matches(id));
    let foo_a = accepted("spiffe://foo/A");
    assert_eq!(matched(SpiffeIdMatcher::any()), [true; 6]);
    assert_eq!(
        matched(SpiffeIdMatcher::id(foo_a.clone())),
        [false, true, false, false, false, false]
    );
    assert_eq!(matched(SpiffeIdMatcher::one_of([])), [false; 6]);
    assert!(SpiffeIdMatcher::one_of([]).matches_nothing());
    assert_eq!(
        matched(SpiffeIdMatcher::one_of([ids[2].clone(), ids[5].clone()])),
        [false, false, true, false, false, true]
    );
    assert_eq!(
        matched(SpiffeIdMatcher::trust_domain("foo".parse().unwrap())),
        [true, true, true, true, true, false]
    );
    assert_eq!(
        matched(SpiffeIdMatcher::path_prefix(foo_a)),
        [false, true, false, true, false, false]
    );
    assert_eq!(
        matched(SpiffeIdMatcher::path_prefix(accepted("spiffe://foo"))),
        [true, true, true, true, true, false]
    );
}
