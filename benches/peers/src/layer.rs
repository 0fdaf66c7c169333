//! A request through a server layer: let in, or turned away.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use tower::{Layer as _, Service, ServiceExt as _};
use tower_http::validate_request::ValidateRequestHeaderLayer;

use crate::keys::{AUDIENCE, Signer};
use crate::measure::{Contest, Effort, Outcome, prepare};
use crate::peers::{
    Bare, Jsonwebtoken, bearer, jwt_authorizer, oauth2_server, our_bundles, our_layer, request,
    spiffe_bundles, validator,
};
use crate::report::{Cell, Table};
use crate::verify::{OURS, refused};

const BARE: &str = "no layer at all";
const STATIC: &str = "tower-http 0.7 `bearer` [^static]";
const HAND_MADE: &str = "tower-http 0.7 `custom` + jsonwebtoken 11.1 [^claims]";
const HAND_MADE_SPIFFE: &str = "tower-http 0.7 `custom` + spiffe 0.19";
const JWT_AUTHORIZER: &str = "jwt-authorizer 0.15 [^ring]";
const OAUTH2: &str = "tower-oauth2-resource-server 0.12 [^claims]";

type Axum07Body = axum_07::body::Body;

/// Passes requests through a service that waits for nothing; making them is not in the time.
pub fn pass<S, F, B>(service: &mut S, requests: Vec<Request<()>>, expected: StatusCode) -> Duration
where
    S: Service<Request<()>, Response = Response<B>, Future = F>,
    F: Future<Output = Result<Response<B>, S::Error>>,
    S::Error: std::fmt::Debug,
{
    let start = Instant::now();
    for request in requests {
        let ready = service.ready().now_or_never().expect("it is ready");
        let response = ready.unwrap().call(request).now_or_never();
        let response = response.expect("it waits for nothing").unwrap();
        assert_eq!(response.status(), expected);
    }
    start.elapsed()
}

/// The same with the token of each number.
fn with_tokens<S, F, B>(
    service: &mut S,
    tokens: &[http::HeaderValue],
    count: usize,
    expected: StatusCode,
) -> Duration
where
    S: Service<Request<()>, Response = Response<B>, Future = F>,
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

fn unauthorized() -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

fn token_of<B>(request: &Request<B>) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ")
}

/// Everybody's layer, with these headers in turn.
fn contest(
    effort: Effort,
    signer: &Signer,
    headers: &[http::HeaderValue],
    fresh: bool,
    expected: StatusCode,
) -> Vec<(String, Outcome)> {
    let bundles = our_bundles(signer);
    let theirs = spiffe_bundles(signer);
    let kept = validator(&bundles);
    let jsonwebtoken = Arc::new(Jsonwebtoken::new(signer).unwrap());
    let string = Bare::<String>::new();

    let mut by_hand = ValidateRequestHeaderLayer::custom(move |request: &mut Request<()>| {
        let claims = token_of(request).and_then(|token| jsonwebtoken.verify(token).ok());
        request
            .extensions_mut()
            .insert(claims.ok_or_else(unauthorized)?);
        Ok(())
    })
    .layer(string.clone());
    let mut by_hand_spiffe = ValidateRequestHeaderLayer::custom(move |request: &mut Request<()>| {
        let verify = |token| spiffe::JwtSvid::parse_and_validate(token, &theirs, &[AUDIENCE]).ok();
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
    if expected == StatusCode::OK {
        let mut bare = string.clone();
        contest = contest.batch(BARE, move |count| {
            with_tokens(&mut bare, headers, count, expected)
        });
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
    // It knows one token by heart.
    if !fresh && expected == StatusCode::OK {
        let token = headers[0]
            .to_str()
            .unwrap()
            .strip_prefix("Bearer ")
            .unwrap();
        #[allow(deprecated, reason = "it is what there is")]
        let mut fixed = ValidateRequestHeaderLayer::bearer(token).layer(string);
        contest = contest.batch(STATIC, move |count| {
            with_tokens(&mut fixed, headers, count, expected)
        });
    }
    contest
        .batch(HAND_MADE, move |count| {
            with_tokens(&mut by_hand, headers, count, expected)
        })
        .batch(HAND_MADE_SPIFFE, move |count| {
            with_tokens(&mut by_hand_spiffe, headers, count, expected)
        })
        .batch(JWT_AUTHORIZER, move |count| {
            with_tokens(&mut authorizer, headers, count, expected)
        })
        .batch(OAUTH2, move |count| {
            with_tokens(&mut oauth2, headers, count, expected)
        })
        .run()
}

/// Good tokens: one that comes again and again, and ones that are always new.
pub fn calls(effort: Effort) -> Table {
    let signer = Signer::usual();
    let tokens = signer.tokens(if effort.quick { 16 } else { 512 });
    let headers: Vec<_> = tokens.iter().map(|token| bearer(token)).collect();
    let repeated = contest(effort, &signer, &headers[..1], false, StatusCode::OK);
    let fresh = contest(effort, &signer, &headers, true, StatusCode::OK);
    let mut table = Table::new(
        "layer",
        "A request through the layer, the identity left in its extensions (ES256)",
        &[
            "token seen before",
            "above no layer",
            "allocations",
            "token never seen",
            "above no layer ",
            "allocations ",
        ],
    );
    for name in [
        BARE,
        OURS,
        STATIC,
        HAND_MADE,
        HAND_MADE_SPIFFE,
        JWT_AUTHORIZER,
        OAUTH2,
    ] {
        let cells = [&repeated, &fresh].into_iter().flat_map(|outcomes| {
            let found = outcomes.iter().find(|(other, _)| other == name);
            let outcome = found.map(|(_, outcome)| *outcome);
            [
                outcome.and_then(|outcome| Cell::nanos(outcome.nanos)),
                outcome.and_then(|outcome| Cell::nanos(outcome.over_first)),
                outcome.and_then(|outcome| Cell::count(outcome.allocations)),
            ]
        });
        table.row(name, cells.collect());
    }
    table
}

/// Requests that are turned away, the response included.
pub fn refusals(effort: Effort) -> Table {
    let signer = Signer::usual();
    let cases = refused(&signer);
    let mut titles = vec!["no header"];
    titles.extend(cases.iter().map(|case| case.title));
    let mut headers = vec![Vec::new()];
    headers.extend(cases.iter().map(|case| vec![bearer(&case.token)]));
    let outcomes: Vec<_> = headers
        .iter()
        .map(|headers| contest(effort, &signer, headers, false, StatusCode::UNAUTHORIZED))
        .collect();
    let mut table = Table::new(
        "layer-refusals",
        "A request that is turned away, the response included (ES256)",
        &titles,
    );
    for name in [OURS, HAND_MADE, HAND_MADE_SPIFFE, JWT_AUTHORIZER, OAUTH2] {
        let cells = outcomes.iter().map(|case| {
            let (_, outcome) = case.iter().find(|(other, _)| other == name)?;
            Cell::nanos(outcome.nanos)
        });
        table.row(name, cells.collect());
    }
    table
}
