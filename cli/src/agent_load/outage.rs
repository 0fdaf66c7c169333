//! An agent that is unavailable until every token has expired, and then recovers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_spiffe::SvidCache;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::PausedClock;
use tower_spiffe::token::SvidRequest;

use super::agent::{Agent, Failure};

/// The parameters of a simulation.
#[derive(Clone, Copy)]
pub(crate) struct Outage {
    pub(crate) audiences: usize,
    /// The lifetime of a token in seconds.
    pub(crate) life: u64,
    pub(crate) failure: Failure,
    pub(crate) seeds: u64,
}

/// The worst results of all seeds.
#[derive(Clone, Copy)]
pub(crate) struct OutageResults {
    /// The time from the start of the outage to the first failed request.
    pub(crate) first_failure: Duration,
    /// The time from the end of the outage to the last failed request.
    pub(crate) recovered: Duration,
    /// The highest number of concurrent calls after every token had expired.
    pub(crate) most: usize,
    /// Calls per second after every token had expired.
    pub(crate) calls: f64,
}

/// One request per second and audience.
const PERIOD: Duration = Duration::from_secs(1);
/// How long requests continue after the outage.
const AFTER: Duration = Duration::from_secs(150);

pub(crate) fn simulate(outage: Outage) -> OutageResults {
    let worst = |a: OutageResults, b: OutageResults| OutageResults {
        first_failure: a.first_failure.min(b.first_failure),
        recovered: a.recovered.max(b.recovered),
        most: a.most.max(b.most),
        calls: a.calls.max(b.calls),
    };
    let all = super::for_each_seed(outage.seeds, || run(outage));
    all.into_iter().reduce(worst).unwrap()
}

async fn run(outage: Outage) -> OutageResults {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = Agent::new(&clock, outage.life);
    let cache = SvidCache::builder(agent.caller(0)).clock(clock.shared());
    let cache = cache.max_entries(outage.audiences + 1).build();
    let life = Duration::from_secs(outage.life);

    // The times of the first and the last failed request of the outage.
    let failures: Arc<Mutex<Option<(Instant, Instant)>>> = Arc::default();
    let mut services = tokio::task::JoinSet::new();
    for n in 0..outage.audiences {
        let request = SvidRequest::new([format!("spiffe://x/service-{n}")]).unwrap();
        let (cache, failures) = (cache.clone(), failures.clone());
        let begin = life.mul_f64(fastrand::f64());
        services.spawn(async move {
            tokio::time::sleep(begin).await;
            loop {
                if cache.header(&request).await.is_err() {
                    let now = Instant::now();
                    let mut failures = failures.lock().unwrap();
                    let first = failures.map_or(now, |(first, _)| first);
                    *failures = Some((first, now));
                }
                tokio::time::sleep(PERIOD).await;
            }
        });
    }

    // The outage starts at a random time in the second lifetime.
    tokio::time::sleep(life.mul_f64(1.0 + fastrand::f64())).await;
    *failures.lock().unwrap() = None;
    let started = Instant::now();
    agent.0.lock().unwrap().failure = Some(outage.failure);
    // Until every token has expired and every retry delay has reached its maximum.
    tokio::time::sleep(life).await;
    agent.0.lock().unwrap().reset_counts();
    let expired = Duration::from_secs(120).mul_f64(1.0 + fastrand::f64());
    tokio::time::sleep(expired).await;
    let (most, calls) = {
        let mut state = agent.0.lock().unwrap();
        state.failure = None;
        (state.most, state.seconds.len())
    };
    let ended = Instant::now();
    tokio::time::sleep(AFTER).await;

    let (first, last) = failures.lock().unwrap().unwrap();
    OutageResults {
        first_failure: first - started,
        recovered: last.saturating_duration_since(ended),
        most,
        calls: calls as f64 / expired.as_secs_f64(),
    }
}
