use super::*;

const X: &str = r#"{"kty": "EC", "crv": "P-256", "kid": "a",
    "x": "bVDjA5e6fbeeyTcGBKr7nOk7JcsJBBSY5AfzijSjWi0",
    "y": "Cav0NjSa0vjokblBt6XX3cuVwwqCmhC20E0wgNmBGMU"}"#;

fn jwks(kids: &[&str]) -> String {
    let keys: Vec<String> = kids
        .iter()
        .map(|kid| X.replace(r#""a""#, &format!(r#""{kid}""#)))
        .collect();
    format!(r#"{{"keys": [{}]}}"#, keys.join(","))
}

fn message<'a>(bundles: impl IntoIterator<Item = (&'a str, String)>) -> HashMap<String, Bytes> {
    let bundles = bundles.into_iter();
    bundles
        .map(|(name, jwks)| (name.to_owned(), Bytes::from(jwks)))
        .collect()
}

fn take(bundles: HashMap<String, Bytes>, known: &JwtBundleSet) -> Intake {
    read(bundles, known, &ResourceLimits::default()).expect("a valid message")
}

fn kids(set: &JwtBundleSet, name: &str) -> Vec<String> {
    let bundle = set.get(name).expect(name);
    bundle
        .authorities()
        .map(|key| key.key_id().to_owned())
        .collect()
}

#[test]
fn wa9_message_without_bundles_is_discarded() {
    let outcome = read(
        HashMap::new(),
        &JwtBundleSet::default(),
        &ResourceLimits::default(),
    );
    assert_eq!(outcome.expect_err("empty").kind, "empty-message");
}

#[test]
fn wa8_missing_trust_domain_is_removed() {
    let none = JwtBundleSet::default();
    let both = take(
        message([("spiffe://x", jwks(&["a"])), ("spiffe://y", jwks(&["b"]))]),
        &none,
    );
    let one = take(message([("spiffe://x", jwks(&["a"]))]), &both.set);
    assert!(one.set.get("y").is_none());
    assert_eq!(kids(&one.set, "x"), ["a"]);
}

#[test]
fn tb9_empty_set_is_a_bundle_without_keys() {
    let none = JwtBundleSet::default();
    let before = take(message([("spiffe://x", jwks(&["a"]))]), &none);
    let after = take(message([("spiffe://x", jwks(&[]))]), &before.set);
    assert!(kids(&after.set, "x").is_empty() && after.troubles.is_empty());
}

#[test]
fn unreadable_jwks_affects_only_its_trust_domain() {
    let none = JwtBundleSet::default();
    let before = take(
        message([("spiffe://x", jwks(&["a"])), ("spiffe://y", jwks(&["a"]))]),
        &none,
    );
    let after = take(
        message([
            ("spiffe://x", "garbage".to_owned()),
            ("spiffe://y", jwks(&["b"])),
            ("spiffe://z", "{}".to_owned()),
        ]),
        &before.set,
    );
    assert_eq!(kids(&after.set, "x"), ["a"], "the last good bundle stays");
    assert_eq!(kids(&after.set, "y"), ["b"]);
    assert!(after.set.get("z").is_none(), "there was no bundle before");
    let failing: Vec<&str> = after.troubles.keys().map(TrustDomain::name).collect();
    assert_eq!(failing, ["x", "z"]);
}

#[test]
fn tb8_invalid_key_does_not_affect_other_keys() {
    let bad = jwks(&["a", "b"]).replacen(r#""kid": "b""#, r#""kidd": "b""#, 1);
    let taken = take(message([("spiffe://x", bad)]), &JwtBundleSet::default());
    assert_eq!(kids(&taken.set, "x"), ["a"]);
    assert!(taken.troubles.is_empty());
}

#[test]
fn unchanged_bundles_and_keys_are_shared() {
    let none = JwtBundleSet::default();
    let before = take(message([("spiffe://x", jwks(&["a", "b"]))]), &none).set;
    let same = take(message([("spiffe://x", jwks(&["b", "a"]))]), &before).set;
    let get = |set: &JwtBundleSet| set.get("x").cloned().expect("x");
    assert!(Arc::ptr_eq(&get(&before), &get(&same)));
    let next = take(message([("spiffe://x", jwks(&["b", "c"]))]), &before).set;
    let key = |set: &JwtBundleSet| get(set).authority("b").cloned().expect("b");
    assert!(Arc::ptr_eq(&key(&before), &key(&next)));
}

#[test]
fn wa26_name_is_a_spiffe_id_or_bare() {
    let none = JwtBundleSet::default();
    let taken = take(
        message([("spiffe://x", jwks(&["a"])), ("y", jwks(&["b"]))]),
        &none,
    );
    assert_eq!(
        (kids(&taken.set, "x"), kids(&taken.set, "y")),
        (vec!["a".into()], vec!["b".into()])
    );
    for _ in 0..20 {
        let both = take(
            message([("x", jwks(&["bare"])), ("spiffe://x", jwks(&["id"]))]),
            &none,
        );
        assert_eq!(kids(&both.set, "x"), ["id"], "the form of section 6.2.2");
    }
}

#[test]
fn invalid_name_is_reported_and_skipped() {
    let hostile = format!("spiffe://x/\u{1b}{}", "y".repeat(10_000));
    let taken = take(
        message([
            (hostile.as_str(), jwks(&["a"])),
            ("spiffe://x", jwks(&["b"])),
        ]),
        &JwtBundleSet::default(),
    );
    assert_eq!(kids(&taken.set, "x"), ["b"]);
    let (name, why) = taken.unnamed.first().expect("an invalid name");
    assert!(name.len() < 320 && !name.contains('\u{1b}'), "{name}");
    assert!(why.contains("not the name of a trust domain"), "{why}");
}

#[test]
fn limits_are_checked_before_keys_are_read() {
    let none = JwtBundleSet::default();
    let limits = ResourceLimits::default()
        .max_bundles(2)
        .max_bundle_jwks_bytes(1000);
    let names = ["spiffe://x", "spiffe://y", "spiffe://z"];
    let three = message(names.map(|name| (name, jwks(&["a"]))));
    let outcome = read(three, &none, &limits).expect_err("too many");
    assert_eq!(outcome.kind, "too-many-bundles");
    assert!(
        outcome
            .text
            .contains("sent 3 bundles, more than the 2 allowed")
    );
    assert!(outcome.text.contains("ResourceLimits::max_bundles"));

    let before = take(message([("spiffe://x", jwks(&["a"]))]), &none).set;
    let large = message([
        (
            "spiffe://x",
            format!("{}{}", jwks(&["b"]), " ".repeat(1000)),
        ),
        ("spiffe://y", jwks(&["b"])),
    ]);
    let taken = read(large, &before, &limits).expect("one too large");
    assert_eq!(
        (kids(&taken.set, "x"), kids(&taken.set, "y")),
        (vec!["a".into()], vec!["b".into()])
    );
    let trouble = taken.troubles.values().next().expect("an error");
    assert_eq!(trouble.kind, "bundle-too-large");
    assert!(trouble.text.contains("1000"), "{}", trouble.text);
}

#[test]
fn e22_entries_are_counted_before_they_are_unpacked() {
    let limits = ResourceLimits::default().max_bundles(2);
    let sent = |names: &[&str]| {
        let bundles = names.iter().map(|name| (*name, "{}".as_bytes()));
        let wire = crate::testing::internals::write_bundle_message(bundles);
        let message = JwtBundlesMessage::read(wire.into()).expect("a message");
        unpack(message, &limits).map(|bundles| bundles.len())
    };
    assert_eq!(sent(&[]), Ok(0));
    assert_eq!(sent(&["x", "y"]), Ok(2));
    let outcome = sent(&["x", "y", "z"]).expect_err("too many");
    assert_eq!(outcome.kind, "too-many-bundles");
    assert!(
        outcome
            .text
            .contains("sent 3 bundles, more than the 2 allowed")
    );
}

#[test]
fn e23_message_without_valid_names_is_discarded() {
    let none = JwtBundleSet::default();
    let before = take(message([("spiffe://x", jwks(&["a"]))]), &none).set;
    let sent = message([("spiffe://X", jwks(&[])), ("http://x", jwks(&[]))]);
    let outcome = read(sent, &before, &ResourceLimits::default()).expect_err("no name");
    assert_eq!(outcome.kind, "bundle-unnamed");
    assert!(
        outcome
            .text
            .contains("\"http://x\": not the name of a trust domain")
    );
}

#[test]
fn e19_empty_value_is_a_bundle_without_keys() {
    let none = JwtBundleSet::default();
    let before = take(message([("spiffe://x", jwks(&["a"]))]), &none);
    let after = take(message([("spiffe://x", String::new())]), &before.set);
    assert!(after.set.get("x").is_some_and(|bundle| bundle.is_empty()));
    assert!(after.troubles.is_empty() && after.unnamed.is_empty());
    let spaces = take(message([("spiffe://x", " ".to_owned())]), &before.set);
    assert_eq!(kids(&spaces.set, "x"), ["a"]);
    assert_eq!(spaces.troubles.len(), 1);
}

#[test]
fn jwks_of_exactly_the_limit_is_read() {
    let jwks = jwks(&["a"]);
    for (limit, is_read) in [(jwks.len(), true), (jwks.len() - 1, false)] {
        let limits = ResourceLimits::default().max_bundle_jwks_bytes(limit);
        let message = message([("spiffe://x", jwks.clone())]);
        let taken = read(message, &JwtBundleSet::default(), &limits).expect("a message");
        assert_eq!(taken.troubles.is_empty(), is_read, "{limit}");
        assert_eq!(taken.set.get("x").is_some(), is_read, "{limit}");
    }
}

#[test]
fn forgotten_bundles_exclude_those_of_the_message() {
    let none = JwtBundleSet::default();
    let before = take(
        message([("spiffe://x", jwks(&["a"])), ("spiffe://y", jwks(&["b"]))]),
        &none,
    );
    let unreadable = "not a JWK Set".to_owned();
    let mut after = take(
        message([("spiffe://x", unreadable), ("spiffe://y", jwks(&["c"]))]),
        &before.set,
    );
    assert_eq!(kids(&after.set, "x"), ["a"]);
    after.forget_kept();
    assert!(after.set.get("x").is_none());
    assert_eq!(kids(&after.set, "y"), ["c"]);
}
