//! Costs of the layer for allowed requests: allocations, and clones of the inner service.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use allocation_counter::measure;
use http::{Request, Response, Uri};
use tower::{Layer, Service};
use tower_spiffe::server::{Allow, GrpcPolicy, UnknownKeyWait, ValidateJwtSvidLayer};

use crate::support::{WEB, World};

/// The path of all calls.
const METHOD: &str = "/r.R/Get";

/// Counts its clones, and does nothing else.
struct CountClones {
    clones: Arc<AtomicUsize>,
}

impl Clone for CountClones {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, Ordering::Relaxed);
        Self {
            clones: self.clones.clone(),
        }
    }
}

impl Service<Request<String>> for CountClones {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        // Servers keep the extensions. Dropping them here does not hide their allocations.
        drop(request);
        ready(Ok(Response::new(String::new())))
    }
}

/// Returns the number of allocations of a call with a cached token.
fn allocations(
    service: &mut impl Service<Request<String>, Response = Response<String>, Error = Infallible>,
    world: &World,
    with_room: bool,
) -> u64 {
    let bearer = world.bearer(WEB);
    let request = || {
        let mut request = Request::new(String::new());
        *request.uri_mut() = Uri::from_static(METHOD);
        request
            .headers_mut()
            .insert("authorization", bearer.clone());
        if with_room {
            request.extensions_mut().insert(1_u8);
        }
        request
    };
    let mut call = |request| {
        let future = std::pin::pin!(service.call(request));
        let mut context = Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            Poll::Ready(Ok(response)) => assert_eq!(response.status(), 200),
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => panic!("the call is pending"),
        }
    };
    // Twice: the second call finds the token in the per-thread level of the cache.
    call(request());
    call(request());
    let request = request();
    measure(|| call(request)).count_total
}

#[test]
fn calls_allocate_only_for_the_extensions() {
    assert_eq!(
        measure(|| drop(std::hint::black_box(Box::new(1)))).count_total,
        1
    );
    let world = World::new();
    let clones = Arc::new(AtomicUsize::new(0));
    let inner = CountClones {
        clones: clones.clone(),
    };
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());

    let mut service = layer.clone().layer(inner.clone());
    let before = clones.load(Ordering::Relaxed);
    let empty = allocations(&mut service, &world, false);
    let room = allocations(&mut service, &world, true);
    assert!(empty <= 3, "{empty} into empty extensions");
    assert!(room <= 1, "{room} into extensions with room");

    let mut waiting = layer.wait_for_unknown_keys(UnknownKeyWait::new(std::time::Duration::MAX));
    let mut waiting_service = waiting.layer(inner);
    let cloned = clones.load(Ordering::Relaxed);
    let room = allocations(&mut waiting_service, &world, true);
    assert!(room <= 1, "{room} in the async layer");
    assert_eq!(
        (before, cloned),
        (1, clones.load(Ordering::Relaxed)),
        "with a cached token"
    );
    waiting = waiting.clone();
    drop(waiting);
}

#[test]
fn a_grpc_policy_allocates_nothing_per_call() {
    let world = World::new();
    let policy = GrpcPolicy::deny_by_default()
        .method("/r.R/List", Allow::id("spiffe://x/ops").unwrap())
        .method(METHOD, Allow::id(WEB).unwrap())
        .public("/grpc.health.v1.Health/Check")
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy);
    let inner = CountClones {
        clones: Arc::default(),
    };
    assert!(allocations(&mut layer.layer(inner), &world, true) <= 1);
}

#[test]
fn service_clones_and_futures_are_small() {
    type Plain = tower_spiffe::server::ValidateJwtSvid<CountClones>;
    type Answer = <Plain as Service<Request<String>>>::Future;
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    assert_eq!(size_of_val(&layer), size_of::<usize>());
    assert_eq!(measure(|| drop(layer.clone())).count_total, 0);
    let inner = size_of::<Ready<Result<Response<String>, Infallible>>>();
    assert!(
        size_of::<Answer>() <= inner + 64,
        "{} over {inner}",
        size_of::<Answer>()
    );
}
