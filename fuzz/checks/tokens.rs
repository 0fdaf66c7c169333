//! Tokens, and the header that brings them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use serde_json::Value;
use serde_json::value::RawValue;
use tower::{Layer as _, Service as _};
use tower_spiffe::bundle::FixedBundles;
use tower_spiffe::testing::Issuer;
use tower_spiffe::verify::MAX_TOKEN_LEN;
use tower_spiffe::{Allow, JwtSvid, ValidateJwtSvidLayer, Validator};

use super::is_presentable;

const AUDIENCE: &str = "spiffe://example.org/reports";

struct World {
    issuer: Issuer,
    validator: Validator,
    good: String,
}

/// One issuer and one validator for the whole process.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let issuer = Issuer::new("example.org").expect("a trust domain");
        let bundles = FixedBundles::new([issuer.bundle()].into_iter().collect());
        let validator = Validator::builder(bundles)
            .audience(AUDIENCE)
            .build()
            .expect("an audience is there");
        // As long as anybody may want to fuzz.
        let good = issuer
            .token("spiffe://example.org/web", AUDIENCE)
            .expires_in(Duration::from_secs(30 * 24 * 3_600))
            .sign();
        World {
            issuer,
            validator,
            good,
        }
    })
}

/// The input is a token, and is not admitted: nobody guesses a signature. It is also the claims of
/// a token that is signed well, and the header of one: then what is admitted says who, for whom and
/// until when, exactly once each.
pub fn token(data: &[u8]) {
    let world = world();
    if let Ok(text) = std::str::from_utf8(data) {
        let refused = world.validator.validate(text).expect_err("unsigned");
        is_presentable(&refused);
        if let Err(error) = JwtSvid::parse_unverified(text, "") {
            is_presentable(&error);
        }
    }

    let signed = |claims: bool| {
        let token = world.issuer.token("spiffe://example.org/web", AUDIENCE);
        if claims {
            token.raw_payload(data).sign()
        } else {
            token.raw_header(data).sign()
        }
    };
    let claims = signed(true);
    match world.validator.validate(&claims) {
        Ok(svid) => {
            // Each on its own: a claim that means nothing to us may be a number beyond every range.
            let claims: BTreeMap<String, Box<RawValue>> =
                serde_json::from_slice(data).expect("admitted claims are JSON");
            let claim = |name: &str| -> Value {
                serde_json::from_str(claims[name].get()).expect("a claim that counts can be read")
            };
            assert_eq!(claim("sub"), svid.spiffe_id().as_str());
            let audience = claim("aud");
            let ours = audience == AUDIENCE
                || audience
                    .as_array()
                    .is_some_and(|all| all.contains(&AUDIENCE.into()));
            assert!(ours, "{audience}");
            assert!(claim("exp").is_number());
            assert!(svid.spiffe_id().trust_domain_name() == "example.org");
        }
        Err(error) => is_presentable(&error),
    }
    // Our own token is read without a signature: it must not be read differently.
    if let Ok(own) = JwtSvid::parse_unverified(&claims, "") {
        assert_eq!(own.token(), claims);
        assert!(!own.audiences().is_empty());
        assert!(HeaderValue::try_from(own.token()).is_ok());
    }
    match world.validator.validate(&signed(false)) {
        Ok(_) => {
            let header: Value = serde_json::from_slice(data).expect("an admitted header is JSON");
            assert_eq!(header["alg"], "ES256");
            assert_eq!(header["kid"], world.issuer.signing_key_id());
            assert!(header.get("crit").is_none());
        }
        Err(error) => is_presentable(&error),
    }
}

/// The input is what stands in `authorization`, line by line; a byte 1 stands for a good token.
/// Admitted is exactly one line of `Bearer`, in whatever case, and the token.
pub fn header_line(data: &[u8]) {
    let world = world();
    let mut request = Request::new(String::new());
    let mut lines = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        let mut value = Vec::new();
        for byte in line {
            match byte {
                1 => value.extend_from_slice(world.good.as_bytes()),
                other => value.push(*other),
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            lines.push(value.clone());
            request.headers_mut().append(AUTHORIZATION, value);
        }
    }

    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let mut service = layer.layer(tower::service_fn(async |_: Request<String>| {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut answer = Box::pin(service.call(request));
    let status = match answer.as_mut().poll(&mut cx) {
        Poll::Ready(Ok(response)) => response.status(),
        Poll::Ready(Err(never)) => match never {},
        Poll::Pending => panic!("nothing is waited for"),
    };

    let admitted = match lines.as_slice() {
        [line] => is_bearer(line.as_bytes(), &world.good),
        _ => false,
    };
    if admitted {
        assert_eq!(status, StatusCode::OK, "{lines:?}");
    } else if lines.iter().all(|line| line.len() <= MAX_TOKEN_LEN) {
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::BAD_REQUEST];
        assert!(refused.contains(&status), "{status}: {lines:?}");
    }
}

/// The scheme, spaces, the token, and nothing after it (RFC 9110 section 11.4).
fn is_bearer(line: &[u8], token: &str) -> bool {
    let Some((scheme, rest)) = line.split_at_checked(6) else {
        return false;
    };
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    scheme.eq_ignore_ascii_case(b"bearer")
        && spaces > 0
        && rest.get(spaces..) == Some(token.as_bytes())
        // Many spaces are too long, as a whole.
        && rest.len() <= MAX_TOKEN_LEN
}
