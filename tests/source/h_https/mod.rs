//! H01 to H11: bundles over https, against a TLS server on loopback in paused time.

mod attacks;
mod content;
mod oidc;
mod polling;
mod records;
mod spiffe;
mod start;
mod unknown_keys;

use std::time::Duration;

use serde_json::{Value, json};
use tower_spiffe::Validator;
use tower_spiffe::clock::{Clock, SystemClock, UnixTime};
use tower_spiffe::source::HttpsBundles;
use tower_spiffe::source::https::{HttpsBundlesBuilder, HttpsBundlesState};
use tower_spiffe::testing::{Issuer, PausedClock};
use tower_spiffe_test_support::tls_server::{Ca, Reply, Server};

use crate::support::{AUD, TD, WEB, secs, td};

/// A server that publishes the keys of an issuer, on one paused clock. Only tests advance the time:
/// a task that never rests stops the runtime from advancing it during network waits.
struct World {
    clock: PausedClock,
    issuer: Issuer,
    ca: Ca,
    server: Server,
}

impl World {
    async fn new() -> Self {
        tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
        let issuer = Issuer::with_clock(TD, clock.shared()).unwrap();
        let ca = Ca::new();
        let server = Server::start(ca.for_host("localhost")).await;
        server.answer(Reply::json(issuer.jwks()));
        Self {
            clock,
            issuer,
            ca,
            server,
        }
    }

    fn set_up(&self, builder: HttpsBundlesBuilder) -> HttpsBundlesBuilder {
        builder
            .add_root_der(self.ca.der().to_vec())
            .without_system_roots()
            .clock(self.clock.shared())
            .poll_seed(7)
    }

    fn jwks_builder(&self) -> HttpsBundlesBuilder {
        self.set_up(HttpsBundles::jwks_url(td(TD), self.server.url("/keys")))
    }

    fn web_builder(&self) -> HttpsBundlesBuilder {
        self.set_up(HttpsBundles::https_web(td(TD), self.server.url("/bundle")))
    }

    async fn jwks(&self) -> HttpsBundles {
        self.jwks_builder().build().await.unwrap()
    }

    async fn web(&self) -> HttpsBundles {
        self.web_builder().build().await.unwrap()
    }

    fn validator(&self, bundles: &HttpsBundles) -> Validator {
        Validator::builder(bundles.clone())
            .audience(AUD)
            .clock(self.clock.shared())
            .build()
            .unwrap()
    }

    fn token(&self) -> String {
        self.issuer.token(WEB, AUD).sign()
    }

    /// The issuer's keys as a SPIFFE bundle, with this sequence and refresh hint.
    fn bundle(&self, sequence: Option<u64>, hint: Option<u64>) -> Value {
        let mut bundle: Value = serde_json::from_slice(&self.issuer.spiffe_bundle()).unwrap();
        bundle["spiffe_sequence"] = json!(sequence);
        bundle["spiffe_refresh_hint"] = json!(hint);
        bundle
    }

    fn serve_bundle(&self, sequence: Option<u64>, hint: Option<u64>) {
        self.server
            .answer(Reply::json(self.bundle(sequence, hint).to_string()));
    }
}

/// Waits in real time for the condition; the paused time does not advance.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = real_now();
    while !condition() {
        assert!(
            real_now() - began < secs(20),
            "{what}: not true within 20 s"
        );
        tokio::task::yield_now().await;
    }
}

async fn polls(bundles: &HttpsBundles, count: u64) -> HttpsBundlesState {
    until(&format!("poll {count}"), || {
        let state = bundles.state();
        assert!(state.polls <= count, "{state:?}");
        state.polls == count && state.next_poll.is_some()
    })
    .await;
    bundles.state()
}

/// Waits for the next poll to begin and end.
async fn next_poll(bundles: &HttpsBundles) -> HttpsBundlesState {
    let state = bundles.state();
    advance(state.next_poll.unwrap()).await;
    polls(bundles, state.polls + 1).await
}

/// Waits until all tasks are idle, including network I/O.
async fn rest() {
    let began = real_now();
    while real_now() - began < Duration::from_millis(50) {
        tokio::task::yield_now().await;
    }
}

fn error_of(state: &HttpsBundlesState) -> (&'static str, String) {
    let error = state.last_error.as_ref().expect("an error");
    (error.kind(), error.text().to_owned())
}

/// The time of the machine, which advances when the runtime is paused.
fn real_now() -> Duration {
    SystemClock::default().monotonic()
}

/// Advances the time by this duration and by the tolerance of timers.
async fn advance(by: Duration) {
    tokio::time::advance(by + Duration::from_millis(2)).await;
}
