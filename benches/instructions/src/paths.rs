//! The hot paths, on the published keys and tokens of the conformance vectors.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use serde_json::Value;
use tower_layer::Layer as _;
use tower_service::Service;
use tower_spiffe::bundle::{
    BundleAnswer, BundlesUnavailable, FixedBundles, JwtBundle, JwtBundleSet,
};
use tower_spiffe::client::{AddJwtSvidLayer, Audience};
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::server::{Allow, AllowCallersLayer, GrpcPolicy, ValidateJwtSvidLayer};
use tower_spiffe::token::{FetchSvid, FetchSvidFuture, SvidRequest};
use tower_spiffe::{BundleSource, JwtSvid, SvidCache, TrustDomain, Validator};

pub const NAMES: &[&str] = &[
    "validate-seen",
    "validate-seen-by-another-thread",
    "validate-seen-before-an-update",
    "validate-new-es256",
    "validate-new-es384",
    "validate-new-rs256",
    "validate-new-ps512",
    "reject-expired",
    "reject-audience",
    "reject-key-unknown",
    "reject-signature",
    "layer-seen",
    "layer-seen-grpc",
    "layer-seen-allow-callers",
    "layer-no-header",
    "layer-expired",
    "inject-fixed",
    "inject-map",
    "inject-pinned",
    "bundle-read",
];

/// The number of counted runs of a path.
pub const TIMES: usize = 16;

/// The number of runs before the count, for work that is done only once.
const WARM: usize = 4;

#[inline(never)]
fn counted<T>(all: &mut [T], mut path: impl FnMut(&mut T)) {
    for one in all {
        path(black_box(one));
    }
}

/// Runs a path, first uncounted, then counted. `prepare` creates the input of each run.
fn measure<T, R>(mut prepare: impl FnMut() -> T, mut path: impl FnMut(&mut T) -> R) {
    for _ in 0..WARM {
        black_box(path(&mut prepare()));
    }
    let mut all: Vec<T> = (0..TIMES).map(|_| prepare()).collect();
    counted(&mut all, |one| {
        black_box(path(one));
    });
}

pub fn run(name: &str) {
    let vectors = Vectors::read();
    let valid = vectors.token("alg-es256-p256");
    let validator = || vectors.validator();
    let warm = validator();
    warm.validate(&valid).expect("a valid token");
    match name {
        "validate-seen" => measure(|| (), |()| warm.validate(black_box(&valid)).unwrap()),
        "validate-seen-by-another-thread" => measure(
            || {
                // Another thread validates the token, so that this thread finds it only in the shared cache.
                let validator = validator();
                std::thread::scope(|scope| {
                    scope.spawn(|| validator.validate(&valid).expect("a valid token"));
                });
                validator
            },
            |validator| validator.validate(black_box(&valid)).unwrap(),
        ),
        "validate-seen-before-an-update" => measure(
            || {
                let source = Arc::new(NewRevisions::new(vectors.bundles()));
                let validator = vectors.validator_of(source.clone());
                validator.validate(&valid).expect("a valid token");
                // The same keys, in a newer set.
                source.revision.fetch_add(1, Ordering::Release);
                validator
            },
            |validator| validator.validate(black_box(&valid)).unwrap(),
        ),
        "reject-expired" => reject(&vectors, "time-exp-year-ago"),
        "reject-audience" => reject(&vectors, "aud-other"),
        "reject-key-unknown" => reject(&vectors, "kid-unknown"),
        "reject-signature" => reject(&vectors, "sig-flipped-bit"),
        "layer-seen" => layer(&vectors, Some(&valid), 200),
        "layer-seen-grpc" => layer_grpc(&vectors, &valid),
        "layer-seen-allow-callers" => {
            let policy = Allow::trust_domain("td.test").unwrap();
            let inner = AllowCallersLayer::new(policy.clone()).layer(Bare);
            let layer = ValidateJwtSvidLayer::required(vectors.validator(), policy);
            let header = bearer(&valid);
            measure_calls(layer.layer(inner), || request(Some(&header)), 200);
        }
        "layer-no-header" => layer(&vectors, None, 401),
        "layer-expired" => layer(&vectors, Some(&vectors.token("time-exp-year-ago")), 401),
        "inject-fixed" | "inject-map" | "inject-pinned" => inject(name, valid),
        "bundle-read" => {
            let jwks = vectors.0["bundles"]["main"]["td.test"].to_string();
            measure(|| (), |()| bundle("td.test", black_box(&jwks)));
        }
        name => {
            // The token is new to the validator, which adds it to its cache.
            let case = match name.rsplit('-').next() {
                Some("es384") => "alg-es384-p384",
                Some("rs256") => "alg-rs256-rsa2048",
                Some("ps512") => "alg-ps512-rsa2048",
                _ => "alg-es256-p256",
            };
            let token = vectors.token(case);
            measure(validator, |validator| validator.validate(&token).unwrap());
        }
    }
}

fn reject(vectors: &Vectors, case: &str) {
    let token = vectors.token(case);
    let validator = vectors.validator();
    measure(
        || (),
        |()| validator.validate(black_box(&token)).unwrap_err(),
    );
}

fn layer(vectors: &Vectors, token: Option<&str>, status: u16) {
    let policy = Allow::trust_domain("td.test").unwrap();
    let service = ValidateJwtSvidLayer::required(vectors.validator(), policy).layer(Bare);
    let header = token.map(bearer);
    measure_calls(service, || request(header.as_ref()), status);
}

fn layer_grpc(vectors: &Vectors, token: &str) {
    let callers = Allow::trust_domain("td.test").unwrap();
    let policy = GrpcPolicy::deny_by_default()
        .method("/test.Reports/Get", callers)
        .build()
        .unwrap();
    let service = ValidateJwtSvidLayer::required(vectors.validator(), policy).layer(Bare);
    let header = bearer(token);
    let call = || {
        Request::post("https://reports/test.Reports/Get")
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header(AUTHORIZATION, &header)
            .body(String::new())
            .unwrap()
    };
    measure_calls(service, call, 200);
}

fn measure_calls<S>(mut service: S, request: impl Fn() -> Request<String>, status: u16)
where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible>,
{
    measure(
        || Some(request()),
        |request| {
            let response = service
                .call(request.take().expect("one request"))
                .now_or_never();
            let Ok(response) = response.expect("the response is ready");
            assert_eq!(response.status(), status);
        },
    );
}

fn inject(name: &str, token: String) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let cache = SvidCache::builder(SameToken(token))
        .clock(Arc::new(Stopped))
        .build();
    let wanted = SvidRequest::new(["reports"]).unwrap();
    let pinned = cache.pin(wanted.clone());
    runtime.block_on(cache.header(&wanted)).expect("a token");
    if name == "inject-pinned" {
        return measure(|| (), |()| pinned.try_header().expect("a token"));
    }
    let audience = if name == "inject-map" {
        let others = (0..15).map(|n| (format!("https://other{n}"), format!("other{n}")));
        let all = others.chain([("https://reports".to_owned(), "reports".to_owned())]);
        Audience::map(all).unwrap()
    } else {
        let fixed = Audience::fixed("reports");
        fixed.for_origin("https://reports").unwrap()
    };
    let mut service = AddJwtSvidLayer::new(cache, audience).layer(Bare);
    measure(
        || Some(request(None)),
        |request| {
            let response = service
                .call(request.take().expect("one request"))
                .now_or_never();
            assert!(response.expect("the response is ready").is_ok());
        },
    );
}

/// The conformance vectors.
struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        let text = include_str!("../../../tests/data/jwt-svid.json");
        Self(serde_json::from_str(text).unwrap())
    }

    fn token(&self, case: &str) -> String {
        let cases = self.0["cases"].as_array().unwrap();
        let case = cases.iter().find(|other| other["id"] == case);
        case.unwrap()["token"].as_str().unwrap().to_owned()
    }

    fn bundles(&self) -> JwtBundleSet {
        let jwks = self.0["bundles"]["main"]["td.test"].to_string();
        JwtBundleSet::from_iter([bundle("td.test", &jwks)])
    }

    fn validator(&self) -> Validator {
        self.validator_of(FixedBundles::new(self.bundles()))
    }

    fn validator_of(&self, source: impl BundleSource) -> Validator {
        Validator::builder(source)
            .audience("reports")
            .clock(Arc::new(Stopped))
            .build()
            .unwrap()
    }
}

fn bundle(trust_domain: &str, jwks: &str) -> JwtBundle {
    JwtBundle::from_jwks(TrustDomain::parse(trust_domain).unwrap(), jwks.as_bytes()).unwrap()
}

/// Constant bundles whose revision can be raised.
struct NewRevisions {
    bundles: FixedBundles,
    revision: AtomicU64,
}

impl NewRevisions {
    fn new(bundles: JwtBundleSet) -> Self {
        Self {
            bundles: FixedBundles::new(bundles),
            revision: AtomicU64::new(1),
        }
    }
}

impl BundleSource for NewRevisions {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        Ok(self.revision.load(Ordering::Acquire))
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        self.bundles.bundle(trust_domain)
    }
}

/// A clock that is stopped at the time of the vectors.
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(1_790_000_000)
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::from_secs(1000)
    }
}

/// An issuer that returns the same token for every request.
struct SameToken(String);

impl FetchSvid for SameToken {
    fn fetch_svid(&self, _: &SvidRequest) -> FetchSvidFuture {
        let svid = JwtSvid::parse_unverified(&self.0, "").unwrap();
        Box::pin(async move { Ok(svid) })
    }
}

#[derive(Clone)]
struct Bare;

impl Service<Request<String>> for Bare {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        drop(request);
        ready(Ok(Response::new(String::new())))
    }
}

fn bearer(token: &str) -> HeaderValue {
    HeaderValue::try_from(format!("Bearer {token}")).unwrap()
}

fn request(authorization: Option<&HeaderValue>) -> Request<String> {
    let mut request = Request::get("https://reports/today")
        .header("accept", "application/json")
        .body(String::new())
        .unwrap();
    if let Some(value) = authorization {
        request.headers_mut().insert(AUTHORIZATION, value.clone());
    }
    request
}
