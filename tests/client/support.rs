//! A scripted issuer, and a cache that uses it on tokio's paused time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::testing::PausedClock;
use tower_spiffe::token::{FetchSvid, FetchSvidFuture};
use tower_spiffe::token::{FetchSvidError, FetchSvidReason, SvidCacheBuilder, SvidRequest};
use tower_spiffe::{JwtSvid, SvidCache};
use tower_spiffe_test_support::signer::base64;
pub use tower_spiffe_test_support::wait::{millis, secs, settle};

pub const START: i64 = 1_790_000_000;

pub fn request(audience: &str) -> SvidRequest {
    SvidRequest::new([audience]).unwrap()
}

/// A token as text, with an invalid signature.
#[derive(Clone, Debug)]
pub struct Token {
    pub sub: String,
    pub aud: Vec<String>,
    pub iat: Option<i64>,
    pub exp: Option<i64>,
    pub kid: &'static str,
    pub serial: u64,
}

impl Token {
    /// Creates a unique token for `request` that is valid from `from` for `life` seconds.
    pub fn new(request: &SvidRequest, from: i64, life: i64) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let id = request
            .spiffe_id()
            .map_or("spiffe://x/web", |id| id.as_str());
        Self {
            sub: id.to_owned(),
            aud: request.audiences().map(str::to_owned).collect(),
            iat: Some(from),
            exp: Some(from + life),
            kid: "key-1",
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub fn text(&self) -> String {
        let header = serde_json::json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" });
        let mut claims =
            serde_json::json!({ "sub": self.sub, "aud": self.aud, "jti": self.serial });
        if let Some(iat) = self.iat {
            claims["iat"] = iat.into();
        }
        if let Some(exp) = self.exp {
            claims["exp"] = exp.into();
        }
        let part = |json: serde_json::Value| base64(json.to_string());
        format!("{}.{}.c2lnbmF0dXJl", part(header), part(claims))
    }
}

/// The result of a call to the issuer.
#[derive(Clone, Debug)]
pub enum Answer {
    Token(Token),
    /// This text as the token.
    Text(String),
    Fail(FetchSvidReason),
    Hang,
    Panic,
    /// The answer after a delay.
    After(Duration, Box<Answer>),
}

impl Answer {
    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }
}

/// A call to the issuer.
pub struct Call<'a> {
    /// Counted from 1.
    pub number: u64,
    pub request: &'a SvidRequest,
    /// Seconds since 1970.
    pub now: i64,
}

impl Call<'_> {
    /// Returns a new token with this lifetime.
    pub fn fresh(&self, life: i64) -> Answer {
        Answer::Token(Token::new(self.request, self.now, life))
    }
}

type Script = Box<dyn FnMut(&Call<'_>) -> Answer + Send>;

/// An issuer that runs a script.
#[derive(Clone)]
pub struct ScriptedIssuer {
    script: Arc<Mutex<Script>>,
    clock: PausedClock,
    calls: Arc<AtomicU64>,
    under_way: Arc<Mutex<UnderWay>>,
    given: Arc<Mutex<HashMap<String, Given>>>,
}

/// The times at which a token was issued, and its lifetime.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    wall: UnixTime,
    mono: Duration,
    exp: UnixTime,
    life: Duration,
}

impl Given {
    /// Its expiry on the monotonic clock: the time it was issued plus its remaining lifetime.
    fn end(&self) -> Duration {
        let had = self.exp.saturating_since(self.wall).min(self.life);
        self.mono.saturating_add(had)
    }

    /// Returns how long it may be sent: until it expires by the wall or the monotonic clock, whichever
    /// is earlier, less the hard margin.
    fn left(&self, clock: &PausedClock) -> Option<Duration> {
        let margin = secs(2).min(self.life.mul_f64(0.02));
        let by_wall = self.exp.saturating_since(clock.now());
        let by_mono = self.end().checked_sub(clock.monotonic())?;
        by_wall.min(by_mono).checked_sub(margin)
    }
}

#[derive(Default)]
pub struct UnderWay {
    pub now: usize,
    pub most: usize,
    pub by_request: HashMap<String, usize>,
    /// Whether there were two concurrent calls for one request.
    pub doubled: bool,
    /// The start times of all calls, since the start of the test.
    pub began: Vec<Duration>,
}

impl ScriptedIssuer {
    pub fn new(
        clock: &PausedClock,
        script: impl FnMut(&Call<'_>) -> Answer + Send + 'static,
    ) -> Self {
        Self {
            script: Arc::new(Mutex::new(Box::new(script))),
            clock: clock.clone(),
            calls: Arc::default(),
            under_way: Arc::default(),
            given: Arc::default(),
        }
    }

    /// Asserts that this header may be sent now, from the times the issuer recorded.
    pub fn assert_alive(&self, header: &http::HeaderValue) {
        let token = header.to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let given = self.given.lock().unwrap()[token];
        let left = given.left(&self.clock);
        assert!(
            left.is_some_and(|left| left > Duration::ZERO),
            "sent at {} after its expiry: {given:?}",
            self.clock.now()
        );
    }

    pub fn then(&self, script: impl FnMut(&Call<'_>) -> Answer + Send + 'static) {
        *self.script.lock().unwrap() = Box::new(script);
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn under_way<T>(&self, look: impl FnOnce(&UnderWay) -> T) -> T {
        look(&self.under_way.lock().unwrap())
    }
}

/// Counts a call while its future exists.
struct Counted(Arc<Mutex<UnderWay>>, String);

impl Counted {
    fn new(under_way: &Arc<Mutex<UnderWay>>, key: String, began: Duration) -> Self {
        let mut state = under_way.lock().unwrap();
        state.now += 1;
        state.most = state.most.max(state.now);
        let same = state.by_request.entry(key.clone()).or_default();
        *same += 1;
        let doubled = *same > 1;
        state.doubled |= doubled;
        state.began.push(began);
        drop(state);
        Self(under_way.clone(), key)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        state.now -= 1;
        *state.by_request.get_mut(&self.1).unwrap() -= 1;
    }
}

impl FetchSvid for ScriptedIssuer {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let now = self.clock.now().secs();
        let answer = (self.script.lock().unwrap())(&Call {
            number,
            request,
            now,
        });
        let counted = Counted::new(
            &self.under_way,
            format!("{request:?}"),
            self.clock.monotonic(),
        );
        let hint = request.hint().unwrap_or_default().to_owned();
        let (given, clock) = (self.given.clone(), self.clock.clone());
        Box::pin(async move {
            let _counted = counted;
            let svid = give(answer, &hint).await?;
            let exp = svid.expires_at();
            let now = Given {
                wall: clock.now(),
                mono: clock.monotonic(),
                exp,
                life: svid
                    .issued_at()
                    .map_or(Duration::MAX, |iat| exp.saturating_since(iat)),
            };
            // If it was issued more than once, keep the longest lifetime.
            let mut given = given.lock().unwrap();
            let known = given.entry(svid.token().to_owned()).or_insert(now);
            if known.end() < now.end() {
                *known = now;
            }
            Ok(svid)
        })
    }
}

/// Returns a token with the requested hint; a text has no hint.
async fn give(mut answer: Answer, hint: &str) -> Result<JwtSvid, FetchSvidError> {
    loop {
        match answer {
            Answer::Token(token) => return read(&token.text(), hint),
            Answer::Text(text) => return read(&text, ""),
            Answer::Fail(reason) => return Err(FetchSvidError::new(reason, "as scripted")),
            Answer::Hang => std::future::pending().await,
            // `resume_unwind` does not call the panic hook.
            Answer::Panic => std::panic::resume_unwind(Box::new("as scripted")),
            Answer::After(delay, then) => {
                tokio::time::sleep(delay).await;
                answer = *then;
            }
        }
    }
}

/// Parses like the client of a real issuer.
fn read(text: &str, hint: &str) -> Result<JwtSvid, FetchSvidError> {
    JwtSvid::parse_unverified(text, hint)
        .map_err(|error| FetchSvidError::new(FetchSvidReason::Unacceptable, error.to_string()))
}

/// A clock, an issuer and a cache.
pub struct Bench {
    pub clock: PausedClock,
    pub issuer: ScriptedIssuer,
    pub cache: SvidCache,
    began: tokio::time::Instant,
}

impl Bench {
    /// Creates a bench whose issuer returns a new 300 s token for each call.
    pub fn new() -> Self {
        Self::with(|call| call.fresh(300))
    }

    pub fn with(script: impl FnMut(&Call<'_>) -> Answer + Send + 'static) -> Self {
        Self::built(script, |builder| builder)
    }

    pub fn built(
        script: impl FnMut(&Call<'_>) -> Answer + Send + 'static,
        set_up: impl FnOnce(SvidCacheBuilder) -> SvidCacheBuilder,
    ) -> Self {
        let clock = PausedClock::new(UnixTime::from_secs(START));
        let issuer = ScriptedIssuer::new(&clock, script);
        let builder = SvidCache::builder(issuer.clone()).clock(clock.shared());
        let cache = set_up(builder).build();
        Self {
            clock,
            issuer,
            cache,
            began: tokio::time::Instant::now(),
        }
    }

    /// Sleeps until this time since the start.
    pub async fn at(&self, since: Duration) {
        tokio::time::sleep_until(self.began + since).await;
        settle().await;
    }
}

/// Returns the result and the elapsed time.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = tokio::time::Instant::now();
    let value = work.await;
    (value, began.elapsed())
}
