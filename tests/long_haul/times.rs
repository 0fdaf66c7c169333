//! Durations, for an hour of paused time and for a minute of real time.

use std::ops::Range;
use std::time::Duration;

use tower_spiffe::source::JwtSourceBuilder;

/// The durations of one kind of run.
#[derive(Clone)]
pub(crate) struct Times {
    pub(crate) name: &'static str,
    /// The length of a run.
    pub(crate) total: Duration,
    pub(crate) token_life: Duration,
    pub(crate) leeway: Duration,
    /// Between two actions of one caller.
    pub(crate) think: Range<Duration>,
    /// Between two incidents.
    pub(crate) step: Range<Duration>,
    /// The delay of a slow response of the agent.
    pub(crate) slow: Range<Duration>,
    /// The maximum clock skew in seconds.
    pub(crate) skew: i64,
    /// The interval of scheduled rotations.
    pub(crate) rotation: Duration,
    /// The withdrawal delay of the second source.
    pub(crate) grace: Duration,
    pub(crate) max_staleness: Duration,
    /// How long a server waits for an unknown key.
    pub(crate) key_wait: Duration,
    /// The keepalive interval of a client that pings too often.
    pub(crate) eager: Duration,
    /// The limit for a request through the client layer.
    pub(crate) answer: Duration,
    /// The limit for a call to the agent without the cache.
    pub(crate) call: Duration,
    /// The limit for the start of a source, successful or not.
    pub(crate) start: Duration,
    /// The limit for a change to take effect with a healthy stream.
    pub(crate) prompt: Duration,
    /// The limit for everything to work again after the incidents ...
    pub(crate) recovery: Duration,
    /// ... if connections were left open and dead ...
    pub(crate) recovery_dead: Duration,
    /// ... and the additional time for tokens, if the agent reported a request as invalid.
    pub(crate) recovery_invalid: Duration,
    /// The interval of checks.
    pub(crate) poll: Duration,
    pub(crate) pace: fn(JwtSourceBuilder) -> JwtSourceBuilder,
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Times {
    /// Paused time: every limit is exact.
    pub(crate) fn paused(total: Duration) -> Self {
        Self {
            name: "paused",
            total,
            token_life: secs(300),
            leeway: secs(10),
            think: millis(300)..millis(2_500),
            step: millis(500)..secs(90),
            slow: millis(50)..secs(45),
            skew: 60,
            rotation: secs(45),
            grace: secs(20),
            max_staleness: secs(240),
            key_wait: secs(2),
            eager: secs(15),
            // A wait of 5 s without a token, and some tolerance.
            answer: millis(5_500),
            // The deadline of a call.
            call: millis(35_500),
            start: secs(25),
            prompt: secs(1),
            // A hanging stream times out after 30 s, and is reopened within 10 s.
            recovery: secs(45),
            // Keepalive pings after 305 s and times out after 20 s.
            recovery_dead: secs(325 + 45),
            recovery_invalid: secs(65),
            poll: millis(500),
            pace: |source| source,
        }
    }

    /// Shorter durations for real time over a socket. Limits allow for a busy machine.
    pub(crate) fn real(total: Duration) -> Self {
        Self {
            name: "real",
            total,
            token_life: secs(10),
            leeway: secs(1),
            think: millis(5)..millis(60),
            step: millis(40)..millis(1_500),
            slow: millis(5)..millis(1_500),
            skew: 3,
            rotation: millis(1_500),
            grace: secs(1),
            max_staleness: secs(8),
            key_wait: millis(300),
            eager: millis(150),
            answer: secs(20),
            call: secs(20),
            start: secs(20),
            prompt: secs(15),
            recovery: secs(30),
            recovery_dead: secs(30),
            recovery_invalid: secs(5),
            poll: millis(50),
            pace: |source| {
                source
                    .reconnect_backoff(millis(50), secs(1))
                    .fetch_timeout(secs(3))
                    .svid_cache(|cache| cache.max_wait(secs(2)).retry(millis(100), secs(1)))
            },
        }
    }

    /// Returns a random time in this range; short times are as likely as long ones.
    pub(crate) fn draw(rng: &mut fastrand::Rng, range: &Range<Duration>) -> Duration {
        let (low, high) = (range.start.as_secs_f64(), range.end.as_secs_f64());
        Duration::from_secs_f64(low * (high / low).powf(rng.f64()))
    }
}
