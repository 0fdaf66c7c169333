//! Token lifetimes of processes that send requests at a steady rate.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tower_spiffe::SvidCache;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::PausedClock;
use tower_spiffe::token::SvidRequest;

use super::agent::Agent;

/// The parameters of a simulation.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) processes: usize,
    pub(crate) audiences: usize,
    /// The lifetime of a token in seconds.
    pub(crate) life: u64,
    /// Requests per second, for each audience of each process.
    pub(crate) rate: f64,
    /// The number of token lifetimes that are measured, after a warm-up.
    pub(crate) lives: u64,
    pub(crate) seeds: u64,
    pub(crate) begin: Begin,
}

/// When the processes begin to use their audiences.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Begin {
    /// Each process with each of its audiences at a random time in the first lifetime. With many
    /// processes some start early, so that all audiences start at nearly the same time.
    Apart,
    /// All processes use an audience within ten seconds. The audiences start one after another in
    /// the first lifetime, as services that are deployed one by one.
    Together,
}

/// The results of a simulation.
#[derive(Default)]
pub(crate) struct Results {
    /// Calls per lifetime, for each audience of each process.
    calls: Vec<f64>,
    pub(crate) useless: u64,
    pub(crate) failed: u64,
    /// Tokens that the server signed, per lifetime and audience.
    pub(crate) signed: f64,
    by_second: Vec<u64>,
}

pub(crate) fn simulate(scenario: Scenario) -> Results {
    let mut sum = Results::default();
    for results in super::for_each_seed(scenario.seeds, || run(scenario)) {
        sum.add(results);
    }
    sum.signed /= (scenario.audiences as u64 * scenario.seeds * scenario.lives) as f64;
    sum.calls.sort_by(f64::total_cmp);
    sum
}

async fn run(scenario: Scenario) -> Results {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = Agent::new(&clock, scenario.life);
    let requests: Vec<_> = (0..scenario.audiences)
        .map(|n| SvidRequest::new([format!("spiffe://x/service-{n}")]).unwrap())
        .collect();
    let caches: Vec<_> = (0..scenario.processes)
        .map(|process| {
            let cache = SvidCache::builder(agent.caller(process)).clock(clock.shared());
            cache.max_entries(scenario.audiences + 1).build()
        })
        .collect();

    let life = Duration::from_secs(scenario.life);
    let period = Duration::from_secs_f64(1.0 / scenario.rate);
    let mut heap = BinaryHeap::new();
    for audience in 0..scenario.audiences {
        let first = life.mul_f64(fastrand::f64());
        for process in 0..scenario.processes {
            let at = match scenario.begin {
                Begin::Apart => life.mul_f64(fastrand::f64()),
                Begin::Together => first + Duration::from_secs(10).mul_f64(fastrand::f64()),
            };
            heap.push(Reverse((at, process, audience)));
        }
    }
    let settling = 1 + u64::from(scenario.begin == Begin::Together);
    let from = life * u32::try_from(settling).unwrap();
    let until = from + life * u32::try_from(scenario.lives).unwrap();
    let began = tokio::time::Instant::now();
    let mut results = Results::default();
    let mut measuring = false;
    while let Some(Reverse((at, process, audience))) = heap.pop() {
        if at >= until {
            break;
        }
        tokio::time::sleep_until(began + at).await;
        if !measuring && at >= from {
            measuring = true;
            agent.0.lock().unwrap().reset_counts();
        }
        let (cache, request) = (&caches[process], &requests[audience]);
        let sent = cache.try_header(request).is_some();
        // A fetch ends before the next request.
        while cache.snapshot_of(request).unwrap().fetching {
            tokio::task::yield_now().await;
        }
        let snapshot = cache.snapshot_of(request).unwrap();
        results.failed += u64::from(measuring && !sent);
        // Skip to the first request at or after the next refresh; the others change nothing.
        let next_try = snapshot.next_try_in.unwrap_or_default();
        let quiet = snapshot.refresh_in.unwrap().max(next_try);
        let skipped = (quiet.as_secs_f64() / period.as_secs_f64()).ceil().max(1.0);
        heap.push(Reverse((at + period.mul_f64(skipped), process, audience)));
    }

    let state = agent.0.lock().unwrap();
    for process in 0..scenario.processes {
        for request in &requests {
            let calls = state.calls.get(&(process, request.clone()));
            let calls = calls.copied().unwrap_or(0);
            results.calls.push(calls as f64 / scenario.lives as f64);
        }
    }
    results.useless = caches.iter().map(|cache| cache.stats().unchanged).sum();
    results.signed = state.signed as f64;
    results.by_second = vec![0; (scenario.life * scenario.lives) as usize];
    for second in &state.seconds {
        let second = second.saturating_sub(from.as_secs());
        if let Some(count) = results.by_second.get_mut(second as usize) {
            *count += 1;
        }
    }
    results
}

impl Results {
    fn add(&mut self, other: Self) {
        self.calls.extend(other.calls);
        self.useless += other.useless;
        self.failed += other.failed;
        self.signed += other.signed;
        self.by_second.resize(other.by_second.len(), 0);
        for (sum, count) in self.by_second.iter_mut().zip(other.by_second) {
            *sum += count;
        }
    }

    pub(crate) fn mean(&self) -> f64 {
        self.calls.iter().sum::<f64>() / self.calls.len() as f64
    }

    pub(crate) fn share(&self, share: f64) -> f64 {
        self.calls[((self.calls.len() - 1) as f64 * share).round() as usize]
    }

    /// The calls in the busiest second, divided by the mean. `None` if there are too few calls for a
    /// useful value.
    pub(crate) fn peak(&self) -> Option<f64> {
        let all: u64 = self.by_second.iter().sum();
        if all < 10 * self.by_second.len() as u64 {
            return None;
        }
        let most = self.by_second.iter().max().copied().unwrap_or(0);
        Some(most as f64 * self.by_second.len() as f64 / all as f64)
    }
}
