//! An agent by SPIRE's rule, on the simulation's clock.

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

/// How an agent is away.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Away {
    /// Connections are refused, after a moment: a call in the same instant could not be counted as
    /// one beside others.
    Refuses,
    /// Calls are taken and never answered, not even when it is back.
    Hangs,
}

#[derive(Clone)]
pub(crate) struct Agent(pub(crate) Arc<Mutex<State>>);

pub(crate) struct State {
    clock: PausedClock,
    life: u64,
    tokens: HashMap<SvidRequest, (i64, String)>,
    serial: u64,
    pub(crate) away: Option<Away>,
    pub(crate) calls: HashMap<(usize, SvidRequest), u64>,
    pub(crate) signed: u64,
    /// When each call came, in seconds since the beginning.
    pub(crate) seconds: Vec<u64>,
    under_way: Arc<AtomicUsize>,
    /// The most that were under way at once.
    pub(crate) most: usize,
}

impl Agent {
    pub(crate) fn new(clock: &PausedClock, life: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock: clock.clone(),
            life,
            tokens: HashMap::new(),
            serial: 0,
            away: None,
            calls: HashMap::new(),
            signed: 0,
            seconds: Vec::new(),
            under_way: Arc::default(),
            most: 0,
        })))
    }

    /// As the issuer of one process.
    pub(crate) fn caller(&self, process: usize) -> Caller {
        Caller {
            agent: self.clone(),
            process,
        }
    }
}

impl State {
    /// Begins to count anew.
    pub(crate) fn forget(&mut self) {
        self.calls.clear();
        self.signed = 0;
        self.seconds.clear();
        self.most = self.under_way.load(Ordering::Relaxed);
    }

    fn begin(&mut self, process: usize, request: &SvidRequest) -> UnderWay {
        *self.calls.entry((process, request.clone())).or_default() += 1;
        self.seconds.push(self.clock.monotonic().as_secs());
        let others = self.under_way.fetch_add(1, Ordering::Relaxed);
        self.most = self.most.max(others + 1);
        UnderWay(self.under_way.clone())
    }

    fn answer(&mut self, request: &SvidRequest) -> String {
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

/// A call, until its caller drops it.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One process on the agent.
pub(crate) struct Caller {
    agent: Agent,
    process: usize,
}

impl FetchSvid for Caller {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let mut desk = self.agent.0.lock().unwrap();
        let under_way = desk.begin(self.process, request);
        let answer = match desk.away {
            None => Ok(desk.answer(request)),
            Some(away) => Err(away),
        };
        Box::pin(async move {
            let _under_way = under_way;
            match answer {
                Ok(token) => Ok(JwtSvid::parse_unverified(&token, "").unwrap()),
                Err(Away::Refuses) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let reason = FetchSvidReason::Unavailable;
                    Err(FetchSvidError::new(reason, "connection refused"))
                }
                Err(Away::Hangs) => std::future::pending().await,
            }
        })
    }
}
