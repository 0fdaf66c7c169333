use super::*;
use crate::testing::{Issuer, verified_svid};
use crate::verify::Validator;

const X_SVID: HeaderName = HeaderName::from_static("x-jwt-svid");

fn headers<'a>(pairs: impl IntoIterator<Item = (&'a HeaderName, &'a str)>) -> HeaderMap {
    let pairs = pairs.into_iter();
    let pairs = pairs.map(|(name, value)| (name.clone(), value.parse().unwrap()));
    pairs.collect()
}

#[test]
fn only_callers_token_is_withheld() {
    let issuer = Issuer::new("x").unwrap();
    let bundles = crate::bundle::FixedBundles::new([issuer.bundle()].into_iter().collect());
    let validator = Validator::builder(bundles).audience("a").build().unwrap();
    let token = issuer.token("spiffe://x/web", "a").sign();
    let caller = validator.validate(&token).unwrap();

    let bearer = format!("Bearer {token}");
    let listed = format!("a={token};b=2");
    let other = format!("Bearer {}", issuer.token("spiffe://x/other", "a").sign());
    let before = headers([
        (&AUTHORIZATION, &*bearer),
        (&AUTHORIZATION, &other),
        (&X_SVID, &token),
        (&http::header::COOKIE, &listed),
        (&http::header::USER_AGENT, "short"),
        (&http::header::REFERER, &other),
    ]);
    let mut after = before.clone();
    withhold(&mut after, &AUTHORIZATION, &caller);
    let expected = headers([
        (&AUTHORIZATION, &*other),
        (&http::header::USER_AGENT, "short"),
        (&http::header::REFERER, &other),
    ]);
    assert_eq!(after, expected);
}

/// A caller made by `testing` has no token, so any bearer token in the header may be the caller's.
#[test]
fn bearer_token_of_an_assumed_caller_is_withheld() {
    let caller = verified_svid("spiffe://x/web");
    for scheme in ["Bearer", "bearer"] {
        let mut after = headers([
            (&AUTHORIZATION, &*format!("{scheme} a")),
            (&AUTHORIZATION, "Basic b"),
            (&X_SVID, "Bearer c"),
        ]);
        withhold(&mut after, &AUTHORIZATION, &caller);
        assert_eq!(
            after,
            headers([(&AUTHORIZATION, "Basic b"), (&X_SVID, "Bearer c")])
        );
    }
}

#[test]
fn shown_host_has_at_most_128_bytes() {
    for (len, more) in [(1, ""), (128, ""), (129, "…")] {
        let host = HeaderValue::from_str(&"h".repeat(len)).unwrap();
        let expected = format!("{}{more}", "h".repeat(len.min(128)));
        assert_eq!(shown(&host), expected);
    }
}
