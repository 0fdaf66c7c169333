//! Every public async method on a thread without tokio, and on a runtime without timers: it works,
//! or its error names what the call needs. Nothing panics.

#![allow(
    clippy::disallowed_methods,
    reason = "these threads have no tokio time to wait with"
)]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use tower::{Layer as _, Service as _, service_fn};
use tower_spiffe::server::UnknownKeyWait;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{FakeAgent, verified_svid};
use tower_spiffe::token::SvidRequest;
use tower_spiffe::workload_api::{JwtBundleStream, WorkloadApiClient};
use tower_spiffe::{
    AddJwtSvidLayer, Allow, Audience, BundleSource as _, CallerState, EndAtExpiryLayer,
    FileBundles, JwtSource, SvidCache, TrustDomain, ValidateJwtSvidLayer, Validator,
};

use crate::agent;
use crate::support::NO_AGENT;

const AGENT: &str = "example.org";

/// The outcome of a call: success, or the text of its error.
type Outcome = Result<(), String>;
type Call = Pin<Box<dyn Future<Output = Outcome>>>;

fn text<T>(result: Result<T, impl std::fmt::Display>) -> Outcome {
    result.map(drop).map_err(|error| format!("{error:#}"))
}

/// Polls to the end, without tokio's help.
fn run(future: impl Future<Output = Outcome>) -> Outcome {
    let mut future = pin!(future);
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut cx) {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err("the future did not end".to_owned())
}

/// The objects that are called; their runtime stays alive.
struct World {
    agent: Arc<FakeAgent>,
    source: JwtSource,
    // One for each way to close a source.
    ended: [JwtSource; 3],
    client: WorkloadApiClient,
    stream: Mutex<Option<JwtBundleStream>>,
    cache: SvidCache,
}

async fn world() -> World {
    let agent = agent::start(AGENT).await;
    let source = agent.source().await.unwrap();
    let client = WorkloadApiClient::connect(&agent.endpoint()).unwrap();
    let stream = client.fetch_jwt_bundles().await.unwrap();
    World {
        ended: [
            agent.source().await.unwrap(),
            agent.source().await.unwrap(),
            agent.source().await.unwrap(),
        ],
        cache: SvidCache::from(&source),
        agent: Arc::new(agent),
        source,
        client,
        stream: Mutex::new(Some(stream)),
    }
}

/// Returns an audience that is not cached. A failed call may have started a fetch of the others.
fn cold() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("cold-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn request() -> SvidRequest {
    SvidRequest::new([cold()]).unwrap()
}

/// Every public async method, and whether it works without timers.
fn calls(world: &World) -> Vec<(&'static str, bool, Call)> {
    let World {
        agent,
        source,
        ended: [first, second, third],
        client,
        stream,
        cache,
    } = world;
    let mut stream = stream.lock().unwrap().take().unwrap();
    let mut calls: Vec<(&'static str, bool, Call)> = Vec::new();
    macro_rules! call {
        ($name:literal, works: $works:literal, $body:expr) => {
            calls.push(($name, $works, Box::pin($body)));
        };
    }

    call!("JwtSource::new", works: false, async { text(JwtSource::new().await) });
    let endpoint = agent.endpoint().to_string();
    call!("JwtSourceBuilder::build", works: false, async move {
        text(JwtSource::builder().endpoint(endpoint.as_str()).build().await)
    });
    let connector = agent.connector();
    call!("JwtSourceBuilder::build_lazy", works: false, async move {
        text(JwtSource::builder().connector(connector).build_lazy())
    });
    let it = source.clone();
    call!("JwtSource::get_jwt_svid", works: false, async move {
        text(it.get_jwt_svid([cold()]).await)
    });
    let it = source.clone();
    call!("JwtSource::get_jwt_svid_with_id", works: false, async move {
        text(it.get_jwt_svid_with_id([cold()], None).await)
    });
    let it = source.clone();
    call!("JwtSource::get_jwt_svid_with_hint", works: false, async move {
        text(it.get_jwt_svid_with_hint([cold()], "hint").await)
    });
    let it = source.clone();
    call!("JwtSource::fetch_jwt_svid", works: false, async move {
        text(it.fetch_jwt_svid([cold()]).await)
    });
    let it = source.clone();
    call!("JwtSource::fetch_jwt_svid_with_id", works: false, async move {
        text(it.fetch_jwt_svid_with_id([cold()], None).await)
    });
    let it = source.clone();
    call!("JwtSource::fetch_jwt_svid_with_hint", works: false, async move {
        text(it.fetch_jwt_svid_with_hint([cold()], "hint").await)
    });
    let it = source.clone();
    call!("JwtSource::authorization", works: false, async move {
        text(it.authorization(&cold()).await)
    });
    let it = source.clone();
    call!("JwtSource::authorization_with_id", works: false, async move {
        text(it.authorization_with_id(&cold(), None).await)
    });
    let it = source.clone();
    call!("JwtSource::authorization_with_hint", works: false, async move {
        text(it.authorization_with_hint(&cold(), "hint").await)
    });
    let it = source.clone();
    call!("JwtSource::ready", works: true, async move { text(it.ready().await) });

    let mut updates = source.updated();
    call!("SourceUpdates::wait_for", works: true, async move {
        text(updates.wait_for(|revision| revision > 0).await)
    });
    let mut changed = source.updated();
    let mut streamed = source.updated();
    let seen = source.revision().unwrap();
    let next = source.changed_since(seen).unwrap();
    let rotated = agent.clone();
    call!("SourceUpdates::changed", works: true, async move {
        rotated.rotate_now();
        text(changed.changed().await)
    });
    call!("SourceUpdates::next", works: true, async move {
        streamed.next().await.map(drop).ok_or_else(String::new)
    });
    call!("BundleSource::changed_since", works: true, async move {
        next.await;
        Ok(())
    });

    let it = cache.clone();
    call!("SvidCache::get", works: false, async move { text(it.get(&request()).await) });
    let it = cache.clone();
    call!("SvidCache::header", works: false, async move { text(it.header(&request()).await) });
    let it = cache.pin(request());
    call!("PinnedSvid::get", works: false, async move { text(it.get().await) });
    let it = cache.pin(request());
    call!("PinnedSvid::header", works: false, async move { text(it.header().await) });
    let it = cache.clone();
    // Its task runs on the runtime that built the cache.
    call!("SvidCache::keep_warm", works: true, async move { text(it.keep_warm([request()])) });

    let it = client.clone();
    call!("WorkloadApiClient::fetch_jwt_svid", works: false, async move {
        text(it.fetch_jwt_svid(&request()).await)
    });
    let it = client.clone();
    call!("WorkloadApiClient::fetch_jwt_svids", works: false, async move {
        text(it.fetch_jwt_svids(&request()).await)
    });
    let it = client.clone();
    call!("WorkloadApiClient::fetch_jwt_bundles", works: false, async move {
        text(it.fetch_jwt_bundles().await)
    });
    let it = client.clone();
    call!("WorkloadApiClient::validate_jwt_svid", works: false, async move {
        text(it.validate_jwt_svid("cold", "a.b.c").await)
    });
    call!("JwtBundleStream::message", works: true, async move { text(stream.message().await) });
    call!("WorkloadApiClientBuilder::build", works: false, async move {
        text(WorkloadApiClient::with_connector(|| async {
            Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::Other.into())
        })
        .build())
    });

    call!("FileBundles::open", works: false, async move {
        let domain = TrustDomain::parse(AGENT).unwrap();
        text(FileBundles::builder().jwks(domain, "nowhere.json").open())
    });

    let audience = Audience::map([("https://cold.test", cold())]).unwrap();
    let mut signed = AddJwtSvidLayer::new(cache.clone(), audience).layer(service_fn(
        async |_: Request<String>| Ok::<_, Infallible>(Response::new(String::new())),
    ));
    call!("AddJwtSvid", works: false, async move {
        let request = Request::get("https://cold.test/").body(String::new()).unwrap();
        text(signed.call(request).await)
    });
    let validator = Validator::builder(source.clone())
        .audience("cold")
        .build()
        .unwrap();
    let mut waiting =
        ValidateJwtSvidLayer::required(validator.clone(), Allow::trust_domain(AGENT).unwrap())
            .wait_for_unknown_keys(UnknownKeyWait::new(Duration::from_secs(1)))
            .layer(service_fn(async |_: Request<String>| {
                Ok::<_, Infallible>(Response::new(String::new()))
            }));
    let strange = tower_spiffe::testing::Issuer::new(AGENT).unwrap();
    let strange = strange.token("spiffe://example.org/web", "cold").sign();
    call!("ValidateJwtSvid", works: true, async move {
        let request = Request::get("/")
            .header("authorization", format!("Bearer {strange}"))
            .body(String::new())
            .unwrap();
        // Rejected at once: nothing could end the wait.
        let response = waiting.call(request).await.map_err(|error| format!("{error:#}"))?;
        assert_eq!(response.status(), 401);
        Ok(())
    });
    let mut ending =
        EndAtExpiryLayer::new(&validator).layer(service_fn(async |_: Request<String>| {
            let never =
                futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
            Ok::<_, Infallible>(Response::new(StreamBody::new(never)))
        }));
    call!("EndAtExpiryBody", works: false, async move {
        let mut request = Request::new(String::new());
        let caller = verified_svid("spiffe://example.org/web");
        request.extensions_mut().insert(CallerState::Verified(caller));
        let response = ending.call(request).await.map_err(|error| format!("{error:#}"))?;
        text(response.into_body().frame().await.expect("an end"))
    });

    // Even when cancelled, each closes its source.
    let it = first.clone();
    call!("JwtSource::shutdown", works: true, async move {
        it.shutdown().await;
        text(it.bundle_set()).map_or(Ok(()), |()| Err("still open".to_owned()))
    });
    for (name, it) in [
        ("JwtSource::shutdown_with_timeout", second.clone()),
        ("JwtSource::shutdown_configured", third.clone()),
    ] {
        let call: Call = Box::pin(async move {
            let ended = match name {
                "JwtSource::shutdown_configured" => it.shutdown_configured().await,
                _ => it.shutdown_with_timeout(Duration::from_secs(5)).await,
            };
            assert!(it.bundle_set().is_err());
            text(ended)
        });
        calls.push((name, false, call));
    }
    calls
}

fn check(missing: &str, inside: Option<&tokio::runtime::Runtime>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(world());
    let calls = calls(&world);
    let _inside = inside.map(tokio::runtime::Runtime::enter);
    let mut wrong = Vec::new();
    for (name, works, call) in calls {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(call)));
        let right = match &outcome {
            Ok(Ok(())) => works,
            Ok(Err(text)) => {
                // `new` may fail earlier, because no endpoint is set.
                let says = text.contains(missing) && !text.contains("build the source");
                !works && (says || text.contains("SPIFFE_ENDPOINT_SOCKET"))
            }
            Err(_) => false,
        };
        if !right {
            wrong.push((name, outcome.map_err(|_| "it panics")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn e08_no_call_panics_on_a_plain_thread() {
    check("there is no tokio runtime here", None);
}

#[test]
fn e08_no_call_panics_without_timers() {
    let bare = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    check("the tokio runtime here has no timers", Some(&bare));
}

#[test]
fn e08_without_io_only_connectors_build() {
    let timed = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    timed.block_on(async {
        let build = || JwtSource::builder().endpoint(NO_AGENT).build();
        let error = build().await.unwrap_err();
        assert_eq!(error.reason(), JwtSourceErrorReason::NoRuntime);
        assert!(error.to_string().contains("has no I/O"), "{error}");
        let endpoint = NO_AGENT.parse().unwrap();
        let error = WorkloadApiClient::connect(&endpoint).unwrap_err();
        assert!(error.to_string().contains("has no I/O"), "{error}");

        let agent = FakeAgent::start_in_memory(AGENT).await.unwrap();
        let source = agent.source().await.unwrap();
        source.authorization("cold").await.unwrap();
    });
}

/// The background task on a live runtime fetches the token; the next call finds it.
#[test]
fn e08_cached_tokens_need_no_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_agent, source) = runtime.block_on(async {
        let agent = agent::start(AGENT).await;
        let source = agent.source().await.unwrap();
        (agent, source)
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while run(async { text(source.authorization("warm").await) }).is_err() {
        assert!(Instant::now() < deadline, "the token is not cached in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fails if a `pub async fn` of the library is missing from the list above.
#[test]
fn e08_every_public_async_method_is_listed() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut above = here.ancestors().map(|folder| folder.join("src"));
    let src = above
        .find(|src| src.join("token").is_dir())
        .expect("the library");
    let mut found = BTreeSet::new();
    for part in [
        "source",
        "token",
        "verify",
        "workload_api",
        "server",
        "client",
    ] {
        visit(&src.join(part), &mut found);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listed: BTreeSet<String> = calls(&runtime.block_on(world()))
        .iter()
        .map(|(name, ..)| name.rsplit("::").next().unwrap().to_owned())
        .collect();
    assert!(found.len() > 10, "{found:?}");
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn visit(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Test agents always have a runtime.
            if !path.ends_with("testing") {
                visit(&path, found);
            }
        } else if !path.ends_with("pb.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split("pub async fn ").skip(1);
            found.extend(names.map(|rest| {
                let end = rest.find(['(', '<']).unwrap();
                rest[..end].to_owned()
            }));
        }
    }
}
