//! A simulated agent that caches tokens as SPIRE's agent does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tower_spiffe::JwtSvid;
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::testing::PausedClock;
use tower_spiffe::token::{FetchSvid, FetchSvidFuture};
use tower_spiffe::token::{FetchSvidError, FetchSvidReason, SvidRequest};

/// How an unavailable agent fails.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Failure {
    /// Connections fail after 50 ms. A call that fails in the same instant would not count as concurrent.
    Unreachable,
    /// Calls never return, also after the agent has recovered.
    Hangs,
}

#[derive(Clone)]
pub(crate) struct Agent(pub(crate) Arc<Mutex<State>>);

pub(crate) struct State {
    clock: PausedClock,
    life: u64,
    tokens: HashMap<SvidRequest, (i64, String)>,
    serial: u64,
    pub(crate) failure: Option<Failure>,
    pub(crate) calls: HashMap<(usize, SvidRequest), u64>,
    pub(crate) signed: u64,
    /// The time of each call, in seconds since the start.
    pub(crate) seconds: Vec<u64>,
    running: Arc<AtomicUsize>,
    /// The highest number of concurrent calls.
    pub(crate) most: usize,
}

impl Agent {
    pub(crate) fn new(clock: &PausedClock, life: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock: clock.clone(),
            life,
            tokens: HashMap::new(),
            serial: 0,
            failure: None,
            calls: HashMap::new(),
            signed: 0,
            seconds: Vec::new(),
            running: Arc::default(),
            most: 0,
        })))
    }

    /// Returns the agent as the issuer of one process.
    pub(crate) fn caller(&self, process: usize) -> Caller {
        Caller {
            agent: self.clone(),
            process,
        }
    }
}

impl State {
    /// Resets the counts.
    pub(crate) fn reset_counts(&mut self) {
        self.calls.clear();
        self.signed = 0;
        self.seconds.clear();
        self.most = self.running.load(Ordering::Relaxed);
    }

    fn begin(&mut self, process: usize, request: &SvidRequest) -> RunningCall {
        *self.calls.entry((process, request.clone())).or_default() += 1;
        self.seconds.push(self.clock.monotonic().as_secs());
        let others = self.running.fetch_add(1, Ordering::Relaxed);
        self.most = self.most.max(others + 1);
        RunningCall(self.running.clone())
    }

    fn token(&mut self, request: &SvidRequest) -> String {
        let now = self.clock.now();
        let life = Duration::from_secs(self.life);
        if let Some((exp, token)) = self.tokens.get(request) {
            let left = UnixTime::from_secs(*exp).saturating_since(now);
            if left > life.mul_f64(0.45 + 0.10 * fastrand::f64()) {
                return token.clone();
            }
        }
        self.signed += 1;
        self.serial += 1;
        let (iat, exp) = (now.secs(), now.secs() + self.life as i64);
        let claims = format!(
            r#"{{"sub":"spiffe://x/web","aud":["{}"],"iat":{iat},"exp":{exp},"jti":"{}"}}"#,
            request.audiences().next().unwrap_or_default(),
            self.serial,
        );
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"1","typ":"JWT"}"#);
        let token = format!("{header}.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        self.tokens.insert(request.clone(), (exp, token.clone()));
        token
    }
}

/// A running call. It ends when its caller drops it.
struct RunningCall(Arc<AtomicUsize>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One process that uses the agent.
pub(crate) struct Caller {
    agent: Agent,
    process: usize,
}

impl FetchSvid for Caller {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let mut state = self.agent.0.lock().unwrap();
        let running = state.begin(self.process, request);
        let result = match state.failure {
            None => Ok(state.token(request)),
            Some(failure) => Err(failure),
        };
        Box::pin(async move {
            let _running = running;
            match result {
                Ok(token) => Ok(JwtSvid::parse_unverified(&token, "").unwrap()),
                Err(Failure::Unreachable) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let reason = FetchSvidReason::Unavailable;
                    Err(FetchSvidError::new(reason, "connection refused"))
                }
                Err(Failure::Hangs) => std::future::pending().await,
            }
        })
    }
}
