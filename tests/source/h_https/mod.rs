//! H01 to H11: bundles over https, against a TLS server on loopback in paused time.

mod attacks;
mod content;
mod oidc;
mod polling;
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

/// An issuer whose keys a server publishes, everything on one paused clock. The time moves only
/// where a test moves it: a task that never rests keeps the runtime from moving it while it waits
/// for the network.
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
            .add_root_der(self.ca.der())
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

/// Waits in real time until this is so; the paused time stands still.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = real_now();
    while !so() {
        assert!(real_now() - began < secs(20), "{what}: not within 20 s");
        tokio::task::yield_now().await;
    }
}

async fn polls(bundles: &HttpsBundles, count: u64) -> HttpsBundlesState {
    until(&format!("poll {count}"), || {
        let state = bundles.state();
        assert!(state.polls() <= count, "{state:?}");
        state.polls() == count && state.next_poll().is_some()
    })
    .await;
    bundles.state()
}

/// Lets the next poll begin and end.
async fn next_poll(bundles: &HttpsBundles) -> HttpsBundlesState {
    let state = bundles.state();
    advance(state.next_poll().unwrap()).await;
    polls(bundles, state.polls() + 1).await
}

/// Lets everything run that may run now, the network too.
async fn rest() {
    let began = real_now();
    while real_now() - began < Duration::from_millis(50) {
        tokio::task::yield_now().await;
    }
}

fn error_of(state: &HttpsBundlesState) -> (&'static str, String) {
    let error = state.last_error().expect("an error");
    (error.kind(), error.text().to_owned())
}

/// The machine's time, which a paused runtime does not stop.
fn real_now() -> Duration {
    SystemClock::default().monotonic()
}

/// Moves the time by this much, and by what a timer may be late.
async fn advance(by: Duration) {
    tokio::time::advance(by + Duration::from_millis(2)).await;
}
