//! How long things take: in an hour of paused time, and in a minute of real time.

use std::ops::Range;
use std::time::Duration;

use tower_spiffe::source::JwtSourceBuilder;

/// The same test at two paces.
#[derive(Clone)]
pub(crate) struct Times {
    pub(crate) name: &'static str,
    /// For how long trouble is made.
    pub(crate) total: Duration,
    pub(crate) token_life: Duration,
    pub(crate) leeway: Duration,
    /// Between two acts of one caller.
    pub(crate) think: Range<Duration>,
    /// Between two steps of trouble.
    pub(crate) step: Range<Duration>,
    /// An answer of the agent that is late.
    pub(crate) slow: Range<Duration>,
    /// By how many seconds a clock may be off.
    pub(crate) skew: i64,
    /// Between the keys of a rotation schedule.
    pub(crate) rotation: Duration,
    /// How long the second source goes on with what was withdrawn.
    pub(crate) grace: Duration,
    pub(crate) max_staleness: Duration,
    /// How long a server waits for a key that it does not know.
    pub(crate) key_wait: Duration,
    /// The keepalive of a client that pings too often.
    pub(crate) eager: Duration,
    /// A request through the client layer is answered within this.
    pub(crate) answer: Duration,
    /// A call to the agent without the cache is answered within this.
    pub(crate) call: Duration,
    /// The first bundles of a source are here, or its start has failed, within this.
    pub(crate) start: Duration,
    /// A change is taken in over a healthy stream within this.
    pub(crate) prompt: Duration,
    /// All is well again, so long after trouble has ended ...
    pub(crate) recovery: Duration,
    /// ... and so long, where connections were left open and dead ...
    pub(crate) recovery_dead: Duration,
    /// ... and so much later for tokens, where the agent called a request wrong.
    pub(crate) recovery_invalid: Duration,
    /// How often one looks whether it is.
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
    /// Everything as it comes, in paused time: every bound is exact.
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
            // A wait of 5 s where there is no token, and a moment.
            answer: millis(5_500),
            // The deadline of a call.
            call: millis(35_500),
            start: secs(25),
            prompt: secs(1),
            // A stream that hangs is given up after 30 s, and opened anew within 10 s.
            recovery: secs(45),
            // Keepalive asks after 305 s and gives up after 20 s.
            recovery_dead: secs(325 + 45),
            recovery_invalid: secs(65),
            poll: millis(500),
            pace: |source| source,
        }
    }

    /// The same in a hurry, over a real socket. Bounds are for a machine that has more to do.
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
                    .connect_timeout(secs(2))
                    .fetch_timeout(secs(3))
                    .first_message_timeout(secs(2))
                    .svid_cache(|cache| {
                        cache
                            .fetch_deadline(secs(3))
                            .slow_after(secs(1))
                            .max_wait(secs(2))
                            .backoff_with_token(millis(200), secs(2))
                            .backoff_without_token(millis(100), secs(1))
                            .backoff_denied(millis(200), secs(1))
                            .backoff_unchanged(millis(500), secs(2))
                            .backoff_invalid(secs(2))
                            .refetch_rejected_every(secs(1))
                            .breaker_pace(millis(100), secs(1))
                    })
            },
        }
    }

    /// A time between these two, short ones as often as long ones.
    pub(crate) fn draw(rng: &mut fastrand::Rng, range: &Range<Duration>) -> Duration {
        let (low, high) = (range.start.as_secs_f64(), range.end.as_secs_f64());
        Duration::from_secs_f64(low * (high / low).powf(rng.f64()))
    }
}
