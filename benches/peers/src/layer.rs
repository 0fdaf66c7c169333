//! A request through a server layer: allowed or rejected.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::middleware::from_extractor_with_state;
use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use tower::{Layer as _, Service, ServiceExt as _};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_oauth2_resource_server::error::AuthError;
use tower_oauth2_resource_server::error_handler::ErrorHandler;

use crate::keys::{AUDIENCE, Signer};
use crate::measure::{Contest, Effort, Outcome, prepare};
use crate::names::{
    AXUM_JWT_AUTH, HAND_MADE, HAND_MADE_SPIFFE, JWT_AUTHORIZER, NO_LAYER, NO_LAYER_AGAIN,
    NO_LAYER_AXUM_07, OAUTH2, OURS, SLIM, STATIC,
};
use crate::peers::{
    AxumJwtAuthClaims, Bare, Jsonwebtoken, axum_jwt_auth, bearer, jwt_authorizer, oauth2_server,
    our_bundles, our_layer, request, spiffe_bundles, validator,
};
use crate::process::{self, Process};
use crate::table::{ALLOCATIONS, BYTES, OVER_BASE, TIME, Table};
use crate::verify::rejected_tokens;

type Axum07Body = axum_07::body::Body;

/// Sends requests through a service that never waits. Creating them is not measured.
pub fn pass<S, F, B>(
    service: &mut S,
    requests: Vec<Request<String>>,
    expected: StatusCode,
) -> Duration
where
    S: Service<Request<String>, Response = Response<B>, Future = F>,
    F: Future<Output = Result<Response<B>, S::Error>>,
    S::Error: std::fmt::Debug,
{
    let start = Instant::now();
    for request in requests {
        let ready = service
            .ready()
            .now_or_never()
            .expect("the service is ready");
        let response = ready.unwrap().call(request).now_or_never();
        let response = response.expect("the response is ready").unwrap();
        assert_eq!(response.status(), expected);
    }
    start.elapsed()
}

/// Sends requests with these tokens in turn.
fn with_tokens<S, F, B>(
    service: &mut S,
    tokens: &[http::HeaderValue],
    count: usize,
    expected: StatusCode,
) -> Duration
where
    S: Service<Request<String>, Response = Response<B>, Future = F>,
    F: Future<Output = Result<Response<B>, S::Error>>,
    S::Error: std::fmt::Debug,
{
    let requests = prepare(|| {
        (0..count)
            .map(|n| request(tokens.get(n % tokens.len().max(1))))
            .collect()
    });
    pass(service, requests, expected)
}

pub fn unauthorized() -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

pub fn token_of<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ")
}

/// The state of axum-jwt-auth's extractor.
pub fn decoder(signer: &Signer) -> axum_jwt_auth::Decoder<crate::peers::Claims> {
    Arc::new(axum_jwt_auth(signer).unwrap())
}

/// Starts the program of agntcy-slim-auth with the key and these tokens.
fn slim(program: &Path, signer: &Signer, headers: &[http::HeaderValue]) -> Process {
    let jwk = signer.jwk();
    let mut lines = format!("{AUDIENCE}\n{jwk}\n");
    for header in headers {
        let token = header.to_str().unwrap().trim_start_matches("Bearer ");
        lines.push_str(token);
        lines.push('\n');
    }
    Process::start(program, &lines).expect("agntcy-slim-auth supports ES256")
}

/// Compares all layers with these headers in turn. `slim_auth` is the program of agntcy-slim-auth.
fn contest(
    effort: Effort,
    signer: &Signer,
    slim_auth: Option<&Path>,
    headers: &[http::HeaderValue],
    fresh: bool,
    expected: StatusCode,
) -> Vec<Outcome> {
    let bundles = our_bundles(signer);
    let theirs = spiffe_bundles(signer);
    let kept = validator(&bundles);
    let jsonwebtoken = Arc::new(Jsonwebtoken::new(signer).unwrap());
    let string = Bare::<String>::new();

    let mut by_hand = ValidateRequestHeaderLayer::custom(move |request: &mut Request<String>| {
        let claims = token_of(request).and_then(|token| jsonwebtoken.verify_by_kid(token));
        request
            .extensions_mut()
            .insert(claims.ok_or_else(unauthorized)?);
        Ok(())
    })
    .layer(string.clone());
    let mut by_hand_spiffe =
        ValidateRequestHeaderLayer::custom(move |request: &mut Request<String>| {
            let verify =
                |token| spiffe::JwtSvid::parse_and_validate(token, &theirs, &[AUDIENCE]).ok();
            let svid = token_of(request).and_then(verify);
            request
                .extensions_mut()
                .insert(svid.ok_or_else(unauthorized)?);
            Ok(())
        })
        .layer(string.clone());
    let authorizer = Arc::new(jwt_authorizer(signer).unwrap());
    let mut authorizer = jwt_authorizer::layer::AuthorizationLayer::new(vec![authorizer])
        .layer(Bare::<Axum07Body>::new());
    let mut oauth2 = oauth2_server(signer)
        .unwrap()
        .into_layer::<String>()
        .layer(string.clone());

    let mut contest = Contest::new(effort).at_most(if fresh { headers.len() } else { 512 });
    let valid = expected == StatusCode::OK;
    if valid {
        for who in [NO_LAYER, NO_LAYER_AGAIN] {
            let mut bare = string.clone();
            contest = contest.batch(who, move |count| {
                with_tokens(&mut bare, headers, count, expected)
            });
        }
    }
    contest = contest.batch(OURS, move |count| {
        let mut service = prepare(|| {
            let validator = if fresh {
                validator(&bundles)
            } else {
                kept.clone()
            };
            our_layer(validator).layer(Bare::<String>::new())
        });
        with_tokens(&mut service, headers, count, expected)
    });
    // `bearer` compares with one fixed token.
    if !fresh && valid {
        let token = headers[0]
            .to_str()
            .unwrap()
            .strip_prefix("Bearer ")
            .unwrap();
        #[allow(deprecated, reason = "shows the minimum cost of a layer")]
        let mut fixed = ValidateRequestHeaderLayer::bearer(token).layer(string);
        contest = contest.batch(STATIC, move |count| {
            with_tokens(&mut fixed, headers, count, expected)
        });
    }
    contest = contest
        .batch(HAND_MADE, move |count| {
            with_tokens(&mut by_hand, headers, count, expected)
        })
        .batch(HAND_MADE_SPIFFE, move |count| {
            with_tokens(&mut by_hand_spiffe, headers, count, expected)
        })
        .batch(OAUTH2, move |count| {
            with_tokens(&mut oauth2, headers, count, expected)
        });
    let extractor = from_extractor_with_state::<AxumJwtAuthClaims, _>(decoder(signer));
    let mut extractor = extractor.layer(Bare::<axum::body::Body>::new());
    // axum-jwt-auth rejects some tokens with another status.
    let first = extractor.call(request(headers.first())).now_or_never();
    if first.expect("the response is ready").unwrap().status() == expected {
        contest = contest.batch(AXUM_JWT_AUTH, move |count| {
            with_tokens(&mut extractor, headers, count, expected)
        });
    }
    if let Some(program) = slim_auth {
        let mut process = slim(program, signer, headers);
        let verifier = if fresh { "fresh" } else { "kept" };
        let status = expected.as_u16();
        contest = contest.batch(SLIM, move |count| {
            process.time(&format!("{verifier} {status} {count}"))
        });
    }
    // Last, because jwt-authorizer has another baseline.
    if valid {
        let mut bare = Bare::<Axum07Body>::new();
        contest = contest
            .batch(NO_LAYER_AXUM_07, move |count| {
                with_tokens(&mut bare, headers, count, expected)
            })
            .against_last();
    }
    contest
        .batch(JWT_AUTHORIZER, move |count| {
            with_tokens(&mut authorizer, headers, count, expected)
        })
        .run()
}

/// Valid tokens: one that is repeated, and tokens that are always new.
pub fn calls(effort: Effort) -> Vec<Table> {
    let signer = Signer::usual();
    let tokens = signer.tokens(512);
    let headers: Vec<_> = tokens.iter().map(|token| bearer(token)).collect();
    let slim = slim_auth_program();
    let contest = |headers, fresh| {
        contest(
            effort,
            &signer,
            slim.as_deref(),
            headers,
            fresh,
            StatusCode::OK,
        )
    };
    let outcomes = [contest(&headers[..1], false), contest(&headers, true)];
    let columns = ["token seen before", "token never seen"];
    let table = |id, title, of| Table::beside(id, title, &columns, &outcomes, of);
    vec![
        table(
            "layer",
            "A request through the layer, which adds the identity to the extensions (ES256)",
            TIME,
        ),
        table(
            "layer-above",
            "The same: time in addition to the request without a layer",
            OVER_BASE,
        )
        .without(&[NO_LAYER, NO_LAYER_AXUM_07]),
        // Allocations of another process are not counted.
        table("layer-allocations", "The same: allocations", ALLOCATIONS)
            .without(&[NO_LAYER_AGAIN, SLIM]),
        table("layer-bytes", "The same: bytes allocated", BYTES).without(&[NO_LAYER_AGAIN, SLIM]),
    ]
}

/// Builds the program of agntcy-slim-auth, which needs libclang. A complete run needs it.
fn slim_auth_program() -> Option<std::path::PathBuf> {
    let program = process::build("slim");
    if program.is_none() {
        eprintln!("cannot build agntcy-slim-auth; install libclang and set LIBCLANG_PATH");
    }
    program
}

/// Writes the error into the body, so that the reason of a rejection can be checked.
struct ErrorInBody;

impl ErrorHandler<String> for ErrorInBody {
    fn map_error(&self, error: AuthError) -> Response<String> {
        Response::new(format!("{error:?}"))
    }
}

/// Rejected requests, including the response.
pub fn rejections(effort: Effort) -> Vec<Table> {
    let signer = Signer::usual();
    let cases = rejected_tokens(&signer);
    let mut titles = vec!["no header"];
    titles.extend(cases.iter().map(|case| case.title));
    let mut headers = vec![Vec::new()];
    headers.extend(cases.iter().map(|case| vec![bearer(&case.token)]));

    let mut oauth2 = oauth2_server(&signer)
        .unwrap()
        .into_layer_with_error_handler(Arc::new(ErrorInBody))
        .layer(Bare::<String>::new());
    for (case, headers) in cases.iter().zip(&headers[1..]) {
        let response = oauth2.call(request(headers.first())).now_or_never();
        case.expect_jsonwebtoken(response.unwrap().unwrap().body());
    }
    let slim = slim_auth_program();
    let outcomes: Vec<_> = headers
        .iter()
        .map(|headers| {
            let expected = StatusCode::UNAUTHORIZED;
            contest(effort, &signer, slim.as_deref(), headers, false, expected)
        })
        .collect();
    let table = |id, title, of| Table::beside(id, title, &titles, &outcomes, of);
    vec![
        table(
            "layer-rejections",
            "A rejected request, including the response (ES256)",
            TIME,
        ),
        table(
            "layer-rejections-allocations",
            "The same: allocations",
            ALLOCATIONS,
        )
        .without(&[SLIM]),
        table("layer-rejections-bytes", "The same: bytes allocated", BYTES).without(&[SLIM]),
    ]
}
