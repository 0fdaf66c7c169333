//! After waits for a key and for the inner service, the token is checked again.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use serde_json::json;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::server::{
    Allow, CallerState, Rejection, RejectionReason, UnknownKeyWait, ValidateJwtSvidLayer,
};
use tower_spiffe::testing::PausedClock;
use tower_spiffe::verify::ValidateReason;

use crate::support::{Signer, WEB, World, bearer, bundle_of, with_authorization};

const WAIT: Duration = Duration::from_secs(2);

/// Becomes ready when the gate opens, and counts calls.
struct Gated {
    open: WatchStream<bool>,
    gate: watch::Receiver<bool>,
    calls: Arc<AtomicUsize>,
}

impl Clone for Gated {
    fn clone(&self) -> Self {
        Self {
            open: WatchStream::new(self.gate.clone()),
            gate: self.gate.clone(),
            calls: self.calls.clone(),
        }
    }
}

impl Service<Request<String>> for Gated {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        loop {
            match std::pin::Pin::new(&mut self.open).poll_next(cx) {
                Poll::Ready(Some(true) | None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(false)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let state = CallerState::from_extensions(request.extensions()).unwrap();
        std::future::ready(Ok(Response::new(format!(
            "{:?}",
            state.verified().is_some()
        ))))
    }
}

struct Case {
    world: World,
    clock: PausedClock,
    new: Signer,
    gate: watch::Sender<bool>,
    calls: Arc<AtomicUsize>,
    response: tokio::task::JoinHandle<Response<String>>,
}

/// A request whose key has arrived, and whose inner service is not ready.
async fn key_came(audit: bool) -> Case {
    let clock = PausedClock::new(SystemClock::shared().now());
    let world = World::with(|builder| builder.clock(clock.shared()));
    let now = clock.now().secs();
    let new = Signer::new("x", "k2");
    let token = new.token_with(WEB, json!({ "iat": now, "exp": now + 60 }));
    let (gate, receiver) = watch::channel(true);
    let calls = Arc::new(AtomicUsize::new(0));
    let inner = Gated {
        open: WatchStream::new(receiver.clone()),
        gate: receiver,
        calls: calls.clone(),
    };
    let policy = Allow::any_trust_domain();
    let layer = if audit {
        ValidateJwtSvidLayer::audit(world.validator.clone(), policy)
    } else {
        ValidateJwtSvidLayer::required(world.validator.clone(), policy)
    };
    let mut service = layer
        .wait_for_unknown_keys(UnknownKeyWait::new(WAIT))
        .layer(inner);
    let future = service
        .ready()
        .await
        .unwrap()
        .call(with_authorization(&bearer(&token)));
    gate.send_replace(false);
    let response = tokio::spawn(async move { future.await.unwrap() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    world
        .bundles
        .set([bundle_of(&new.trust_domain, &[&world.issuer, &new])]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(
        !response.is_finished(),
        "a response before the inner service is ready"
    );
    Case {
        world,
        clock,
        new,
        gate,
        calls,
        response,
    }
}

impl Case {
    async fn open(self) -> (u16, Option<RejectionReason>, usize) {
        self.gate.send_replace(true);
        let response = self.response.await.unwrap();
        let rejection = response.extensions().get::<Rejection>();
        (
            response.status().as_u16(),
            rejection.map(Rejection::reason),
            self.calls.load(Ordering::SeqCst),
        )
    }
}

#[tokio::test(start_paused = true)]
async fn e15_a_valid_token_is_allowed() {
    let case = key_came(false).await;
    assert_eq!(case.open().await, (200, None, 1));
}

#[tokio::test(start_paused = true)]
async fn e15_a_token_that_expired_is_rejected() {
    let case = key_came(false).await;
    case.clock.step_wall(120);
    let expired = RejectionReason::Token(ValidateReason::Expired);
    assert_eq!(case.open().await, (401, Some(expired), 0));
}

#[tokio::test(start_paused = true)]
async fn e15_a_removed_key_rejects() {
    let case = key_came(false).await;
    case.world.bundles.set([case.world.issuer.bundle()]);
    let unknown = RejectionReason::Token(ValidateReason::KeyUnknown);
    assert_eq!(case.open().await, (401, Some(unknown), 0));
}

#[tokio::test(start_paused = true)]
async fn e15_a_replaced_key_rejects() {
    let case = key_came(false).await;
    let other = Signer::new("x", "k2");
    case.world
        .bundles
        .set([bundle_of(&case.new.trust_domain, &[&other])]);
    let signature = RejectionReason::Token(ValidateReason::Signature);
    assert_eq!(case.open().await, (401, Some(signature), 0));
}

#[tokio::test(start_paused = true)]
async fn e15_an_unavailable_source_rejects() {
    let case = key_came(false).await;
    case.world
        .bundles
        .bundles_unavailable(BundlesUnavailable::Stale);
    let stale = RejectionReason::BundlesUnavailable(BundlesUnavailable::Stale);
    assert_eq!(case.open().await, (503, Some(stale), 0));
}

#[tokio::test(start_paused = true)]
async fn e15_audit_reports_the_last_check() {
    let case = key_came(true).await;
    case.clock.step_wall(120);
    case.gate.send_replace(true);
    let response = case.response.await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &**response.body()),
        (200, "false")
    );
}

/// A rejection by the last check releases the permit that the request holds.
#[tokio::test(start_paused = true)]
async fn e15_a_late_rejection_holds_no_permit() {
    let world = World::new();
    let inner = service_fn(|_: Request<String>| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let limited = ConcurrencyLimit::new(inner, 1);
    let guarded = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap())
        .wait_for_unknown_keys(UnknownKeyWait::new(WAIT))
        .layer(limited.clone());
    let new = Signer::new("x", "k2");
    let request = with_authorization(&bearer(&new.token(WEB)));
    let waiting = tokio::spawn(guarded.oneshot(request));
    tokio::task::yield_now().await;
    let busy = tokio::spawn(limited.clone().oneshot(Request::default()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bundles.set([new.bundle()]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The key is revoked while the request waits for its permit.
    world.bundles.set([world.issuer.bundle()]);
    busy.await.unwrap().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 401);
    let free = tokio::time::timeout(Duration::from_millis(1), limited.clone().ready_oneshot());
    assert!(free.await.is_ok());
}
