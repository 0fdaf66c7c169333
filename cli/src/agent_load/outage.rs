//! An agent that is away until every token has expired, and comes back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tower_spiffe::SvidCache;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::PausedClock;
use tower_spiffe::token::SvidRequest;

use super::agent::{Agent, Away};

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Outage {
    pub(crate) audiences: usize,
    /// Seconds that a token lives.
    pub(crate) life: u64,
    pub(crate) away: Away,
    pub(crate) seeds: u64,
}

/// What came of it, the worst of all seeds.
#[derive(Clone, Copy)]
pub(crate) struct Course {
    /// From the moment that the agent went to the first request that failed.
    pub(crate) first_failure: Duration,
    /// From the moment that it was back to the last request that failed.
    pub(crate) recovered: Duration,
    /// Calls at once, when every token had expired.
    pub(crate) most: usize,
    /// Calls per second in that time.
    pub(crate) calls: f64,
}

/// One request per second and audience.
const PERIOD: Duration = Duration::from_secs(1);
/// How long is looked for requests that fail after the agent is back.
const AFTER: Duration = Duration::from_secs(150);

pub(crate) fn simulate(outage: Outage) -> Course {
    let worst = |a: Course, b: Course| Course {
        first_failure: a.first_failure.min(b.first_failure),
        recovered: a.recovered.max(b.recovered),
        most: a.most.max(b.most),
        calls: a.calls.max(b.calls),
    };
    let all = super::for_each_seed(outage.seeds, || run(outage));
    all.into_iter().reduce(worst).unwrap()
}

async fn run(outage: Outage) -> Course {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = Agent::new(&clock, outage.life);
    let cache = SvidCache::builder(agent.caller(0)).clock(clock.shared());
    let cache = cache.max_entries(outage.audiences + 1).build();
    let life = Duration::from_secs(outage.life);

    // When requests failed: the first since the agent went, and the last.
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

    // Away at some moment in the second life.
    tokio::time::sleep(life.mul_f64(1.0 + fastrand::f64())).await;
    *failures.lock().unwrap() = None;
    let went = Instant::now();
    agent.0.lock().unwrap().away = Some(outage.away);
    // Every token expires, and then some, until every pace is at its longest.
    tokio::time::sleep(life).await;
    agent.0.lock().unwrap().forget();
    let expired = Duration::from_secs(120).mul_f64(1.0 + fastrand::f64());
    tokio::time::sleep(expired).await;
    let (most, calls) = {
        let mut desk = agent.0.lock().unwrap();
        desk.away = None;
        (desk.most, desk.seconds.len())
    };
    let back = Instant::now();
    tokio::time::sleep(AFTER).await;

    let (first, last) = failures.lock().unwrap().unwrap();
    Course {
        first_failure: first - went,
        recovered: last.saturating_duration_since(back),
        most,
        calls: calls as f64 / expired.as_secs_f64(),
    }
}
