//! Tokens, and the `Authorization` header.

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

use super::check_error_text;

const AUDIENCE: &str = "spiffe://example.org/reports";

struct Fixture {
    issuer: Issuer,
    validator: Validator,
    valid: String,
}

/// One issuer and one validator for the whole process.
fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let issuer = Issuer::new("example.org").expect("a trust domain");
        let bundles = FixedBundles::new([issuer.bundle()].into_iter().collect());
        let validator = Validator::builder(bundles)
            .audience(AUDIENCE)
            .build()
            .expect("a valid audience");
        // Longer than any fuzzing run.
        let valid = issuer
            .token("spiffe://example.org/web", AUDIENCE)
            .expires_in(Duration::from_secs(30 * 24 * 3_600))
            .sign();
        Fixture {
            issuer,
            validator,
            valid,
        }
    })
}

/// Checks the input as a token, which is rejected because it has no valid signature. Then checks it as
/// the claims and as the header of a signed token: if that is accepted, it has a subject, an audience
/// and an expiry.
pub fn token(data: &[u8]) {
    let fixture = fixture();
    if let Ok(text) = std::str::from_utf8(data) {
        let error = fixture.validator.validate(text).expect_err("unsigned");
        check_error_text(&error);
        if let Err(error) = JwtSvid::parse_unverified(text, "") {
            check_error_text(&error);
        }
    }

    let signed = |claims: bool| {
        let token = fixture.issuer.token("spiffe://example.org/web", AUDIENCE);
        if claims {
            token.raw_payload(data).sign()
        } else {
            token.raw_header(data).sign()
        }
    };
    let claims = signed(true);
    match fixture.validator.validate(&claims) {
        Ok(svid) => {
            // Claims are read one by one, because an unknown claim may be an out-of-range number.
            let claims: BTreeMap<String, Box<RawValue>> =
                serde_json::from_slice(data).expect("accepted claims are JSON");
            let claim = |name: &str| -> Value {
                serde_json::from_str(claims[name].get()).expect("a checked claim can be read")
            };
            assert_eq!(claim("sub"), svid.spiffe_id().as_str());
            let audience = claim("aud");
            let accepted = audience == AUDIENCE
                || audience
                    .as_array()
                    .is_some_and(|all| all.contains(&AUDIENCE.into()));
            assert!(accepted, "{audience}");
            assert!(claim("exp").is_number());
            assert!(svid.spiffe_id().trust_domain_name() == "example.org");
        }
        Err(error) => check_error_text(&error),
    }
    // A token that can be parsed without verification keeps its text and has an audience.
    if let Ok(own) = JwtSvid::parse_unverified(&claims, "") {
        assert_eq!(own.token(), claims);
        assert!(own.audiences().len() > 0);
        assert!(HeaderValue::try_from(own.token()).is_ok());
    }
    match fixture.validator.validate(&signed(false)) {
        Ok(_) => {
            let header: Value = serde_json::from_slice(data).expect("an accepted header is JSON");
            assert_eq!(header["alg"], "ES256");
            assert_eq!(header["kid"], fixture.issuer.signing_key_id());
            assert!(header.get("crit").is_none());
        }
        Err(error) => check_error_text(&error),
    }
}

/// Checks the lines of the `Authorization` header. A byte 1 is replaced by a valid token. Only a
/// single line with `Bearer`, in any case, and the token is accepted.
pub fn header_line(data: &[u8]) {
    let fixture = fixture();
    let mut request = Request::new(String::new());
    let mut lines = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        let mut value = Vec::new();
        for byte in line {
            match byte {
                1 => value.extend_from_slice(fixture.valid.as_bytes()),
                other => value.push(*other),
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            lines.push(value.clone());
            request.headers_mut().append(AUTHORIZATION, value);
        }
    }

    let layer =
        ValidateJwtSvidLayer::required(fixture.validator.clone(), Allow::any_trust_domain());
    let mut service = layer.layer(tower::service_fn(async |_: Request<String>| {
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut response = Box::pin(service.call(request));
    let status = match response.as_mut().poll(&mut cx) {
        Poll::Ready(Ok(response)) => response.status(),
        Poll::Ready(Err(never)) => match never {},
        Poll::Pending => panic!("the service is always ready"),
    };

    let valid = match lines.as_slice() {
        [line] => is_bearer(line.as_bytes(), &fixture.valid),
        _ => false,
    };
    if valid {
        assert_eq!(status, StatusCode::OK, "{lines:?}");
    } else if lines.iter().all(|line| line.len() <= MAX_TOKEN_LEN) {
        let rejections = [StatusCode::UNAUTHORIZED, StatusCode::BAD_REQUEST];
        assert!(rejections.contains(&status), "{status}: {lines:?}");
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
        // The limit includes the spaces.
        && rest.len() <= MAX_TOKEN_LEN
}
