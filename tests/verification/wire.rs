//! The conformance vectors through the server layer, as HTTP and as gRPC. Tokens that a validator
//! rejects must get a client error that names the cause.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, Version};
use serde_json::Value;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::Validator;
use tower_spiffe::server::{Allow, CallerState, Protocol, Rejection, ValidateJwtSvidLayer};

use crate::conformance::{Harness, token_of};

/// Returns the text of the rejection for this reason string, or `None` if it is not a token error.
fn text_of(class: &str) -> Option<&'static str> {
    Some(match class {
        "too-long" | "malformed-token" | "header" | "claims" => "the token is malformed",
        "algorithm" | "key-unfit" => "the token's algorithm is not allowed",
        "expired" => "the token has expired",
        "not-yet-valid" => "the token is not yet valid",
        "audience" => "the token is for another audience",
        "trust-domain-unknown" | "key-unknown" => "the token's signing key is unknown",
        "signature" => "the token's signature is wrong",
        _ => return None,
    })
}

/// Returns the reason strings that the vectors list for this case.
fn classes(case: &Value) -> Vec<&str> {
    let or = case["or"].as_array().into_iter().flatten();
    let all = std::iter::once(&case["expect"]).chain(or);
    all.map(|class| class.as_str().unwrap()).collect()
}

/// Checks for bytes that RFC 9110 section 11.2 does not allow in a `token68`.
fn is_invalid_credential(token: &[u8]) -> bool {
    let end = token.iter().rposition(|byte| *byte != b'=');
    let body = &token[..end.map_or(0, |end| end + 1)];
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    body.is_empty() || !body.iter().all(legal)
}

struct Answer {
    status: u16,
    /// The caller that the inner service received.
    reached: Option<String>,
    class: Option<&'static str>,
    header: HashMap<&'static str, String>,
}

/// Sends a request to a server with this validator, as gRPC or as HTTP.
async fn send(validator: Validator, authorization: &HeaderValue, grpc: bool) -> Answer {
    let inner = service_fn(|request: Request<String>| async move {
        let state = CallerState::from_extensions(request.extensions()).unwrap();
        let id = state.verified().unwrap().spiffe_id().to_string();
        let mut response = Response::new(id);
        if grpc {
            let ok = HeaderValue::from_static("0");
            response.headers_mut().insert("grpc-status", ok);
        }
        Ok::<_, Infallible>(response)
    });
    let mut request = Request::new(String::new());
    request
        .headers_mut()
        .insert(AUTHORIZATION, authorization.clone());
    if grpc {
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        let kind = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert(CONTENT_TYPE, kind);
    }
    let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain())
        .protocol(Protocol::Auto);
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    let rejection = response.extensions().get::<Rejection>();
    let names = [WWW_AUTHENTICATE.as_str(), "grpc-status", "grpc-message"];
    let header = names.into_iter().filter_map(|name| {
        let value = response.headers().get(name)?;
        Some((name, value.to_str().unwrap().to_owned()))
    });
    Answer {
        status: response.status().as_u16(),
        class: rejection.map(|rejection| rejection.reason().as_str()),
        header: header.collect(),
        reached: Some(response.into_body()).filter(|id| !id.is_empty()),
    }
}

/// Returns what is wrong with this response, if anything.
fn problem(case: &Value, token: &[u8], grpc: bool, answer: &Answer) -> Option<String> {
    let Answer {
        status,
        reached,
        class,
        header,
    } = answer;
    let shown = format!("{status} {class:?} {header:?} {reached:?}");
    let field = |name| header.get(name).map(String::as_str);
    if case["expect"] == "ok" {
        let id = reached.as_deref();
        let right = *status == 200
            && class.is_none()
            && field("grpc-status") == grpc.then_some("0")
            && id.is_some()
            && case["spiffe_id"]
                .as_str()
                .is_none_or(|want| id == Some(want));
        return (!right).then_some(shown);
    }
    let Some(class) = class else {
        return Some(format!("not rejected: {shown}"));
    };
    // An invalid credential is a bad request. Every other case is an invalid token, with a reason that
    // the vectors list.
    let bad_request = *class == "malformed-header";
    // Leading spaces are not part of a credential (RFC 9110 section 11.4). A token that was signed
    // with one is verified without it.
    let expected = match token.starts_with(b" ") {
        true => vec!["signature"],
        false => classes(case),
    };
    let text = if bad_request {
        "the header does not carry exactly one bearer token"
    } else {
        match text_of(class).filter(|_| expected.contains(class)) {
            Some(text) => text,
            None => return Some(format!("another class: {shown}")),
        }
    };
    let challenge = if bad_request {
        "Bearer realm=\"spiffe\", error=\"invalid_request\"".to_owned()
    } else {
        format!("Bearer realm=\"spiffe\", error=\"invalid_token\", error_description=\"{text}\"")
    };
    let right = reached.is_none()
        && (!bad_request || is_invalid_credential(token))
        && if grpc {
            *status == 200
                && field("grpc-status") == Some("16")
                && field("grpc-message") == Some(text)
        } else {
            *status == if bad_request { 400 } else { 401 }
                && field(WWW_AUTHENTICATE.as_str()) == Some(challenge.as_str())
        };
    (!right).then_some(shown)
}

#[tokio::test]
async fn a26_every_vector_is_allowed_or_a_client_error() {
    let mut harness = Harness::new(false, true);
    let cases = harness.vectors["cases"].as_array().unwrap().clone();
    let by_id: BTreeMap<_, _> = cases
        .iter()
        .map(|case| (case["id"].as_str().unwrap(), case))
        .collect();
    let (mut wrong, mut unsendable) = (Vec::new(), Vec::new());
    let (mut allowed, mut rejected, mut bad_requests) = (0_usize, 0_usize, 0_usize);
    for case in &cases {
        let token = token_of(case);
        let value = [b"Bearer ", &token[..]].concat();
        // Values that are not valid in a header cannot be sent.
        let Ok(value) = HeaderValue::from_bytes(&value) else {
            unsendable.push(case["id"].as_str().unwrap());
            continue;
        };
        if let Some(first) = case["after"].as_str() {
            let first = by_id[first];
            let value = [b"Bearer ", &token_of(first)[..]].concat();
            let value = HeaderValue::from_bytes(&value).unwrap();
            let answer = send(harness.validator(first), &value, false).await;
            assert_eq!(answer.status, 200, "{}", first["id"]);
        }
        for grpc in [false, true] {
            let answer = send(harness.validator(case), &value, grpc).await;
            if let Some(problem) = problem(case, &token, grpc, &answer) {
                wrong.push(format!("{} (gRPC: {grpc}): {problem}", case["id"]));
            }
            match answer.class {
                None => allowed += 1,
                Some("malformed-header") => bad_requests += 1,
                Some(_) => rejected += 1,
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // They contain a line break or another control character.
    assert_eq!(unsendable.len(), 8, "{unsendable:?}");
    eprintln!("not valid in a header: {unsendable:?}");
    assert_eq!((allowed + rejected + bad_requests) / 2 + 8, 625);
    let good = cases.iter().filter(|case| case["expect"] == "ok").count();
    assert_eq!(allowed / 2, good);
    assert!(bad_requests > 0, "some are no token68");
}
