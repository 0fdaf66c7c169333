//! Some token lives of processes that use their audiences steadily.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tower_spiffe::SvidCache;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::PausedClock;
use tower_spiffe::token::SvidRequest;

use super::agent::Agent;

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    pub(crate) processes: usize,
    pub(crate) audiences: usize,
    /// Seconds that a token lives.
    pub(crate) life: u64,
    /// Requests per second, for each audience of each process.
    pub(crate) rate: f64,
    /// Lives that are measured; what comes before them is not.
    pub(crate) lives: u64,
    pub(crate) seeds: u64,
    pub(crate) begin: Begin,
}

/// When the processes begin to use their audiences.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Begin {
    /// Each process with each of its audiences at a moment of its own in the first life. Of many
    /// processes the first is soon there, so that all audiences begin nearly at once.
    Apart,
    /// All processes with an audience within ten seconds, and the audiences one after the other
    /// over the first life: services that come one by one.
    Together,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Answer {
    /// Calls per life, of each audience of each process.
    calls: Vec<f64>,
    pub(crate) useless: u64,
    pub(crate) failed: u64,
    /// Tokens that the server signed, per life and audience.
    pub(crate) signed: f64,
    by_second: Vec<u64>,
}

pub(crate) fn simulate(question: Question) -> Answer {
    let mut sum = Answer::default();
    for answer in super::for_each_seed(question.seeds, || run(question)) {
        sum.add(answer);
    }
    sum.signed /= (question.audiences as u64 * question.seeds * question.lives) as f64;
    sum.calls.sort_by(f64::total_cmp);
    sum
}

async fn run(question: Question) -> Answer {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = Agent::new(&clock, question.life);
    let requests: Vec<_> = (0..question.audiences)
        .map(|n| SvidRequest::new([format!("spiffe://x/service-{n}")]).unwrap())
        .collect();
    let caches: Vec<_> = (0..question.processes)
        .map(|process| {
            let cache = SvidCache::builder(agent.caller(process)).clock(clock.shared());
            cache.max_entries(question.audiences + 1).build()
        })
        .collect();

    let life = Duration::from_secs(question.life);
    let period = Duration::from_secs_f64(1.0 / question.rate);
    let mut heap = BinaryHeap::new();
    for audience in 0..question.audiences {
        let first = life.mul_f64(fastrand::f64());
        for process in 0..question.processes {
            let at = match question.begin {
                Begin::Apart => life.mul_f64(fastrand::f64()),
                Begin::Together => first + Duration::from_secs(10).mul_f64(fastrand::f64()),
            };
            heap.push(Reverse((at, process, audience)));
        }
    }
    let settling = 1 + u64::from(question.begin == Begin::Together);
    let from = life * u32::try_from(settling).unwrap();
    let until = from + life * u32::try_from(question.lives).unwrap();
    let began = tokio::time::Instant::now();
    let mut answer = Answer::default();
    let mut measuring = false;
    while let Some(Reverse((at, process, audience))) = heap.pop() {
        if at >= until {
            break;
        }
        tokio::time::sleep_until(began + at).await;
        if !measuring && at >= from {
            measuring = true;
            agent.0.lock().unwrap().forget();
        }
        let (cache, request) = (&caches[process], &requests[audience]);
        let sent = cache.try_header(request).is_some();
        // The fetch, where one began, has its answer before the next request.
        while cache.snapshot_of(request).unwrap().fetching {
            tokio::task::yield_now().await;
        }
        let snapshot = cache.snapshot_of(request).unwrap();
        answer.failed += u64::from(measuring && !sent);
        // The first request that does anything: at or after the next refresh.
        let next_try = snapshot.next_try_in.unwrap_or_default();
        let quiet = snapshot.refresh_in.unwrap().max(next_try);
        let skipped = (quiet.as_secs_f64() / period.as_secs_f64()).ceil().max(1.0);
        heap.push(Reverse((at + period.mul_f64(skipped), process, audience)));
    }

    let desk = agent.0.lock().unwrap();
    for process in 0..question.processes {
        for request in &requests {
            let calls = desk.calls.get(&(process, request.clone()));
            let calls = calls.copied().unwrap_or(0);
            answer.calls.push(calls as f64 / question.lives as f64);
        }
    }
    answer.useless = caches.iter().map(|cache| cache.stats().unchanged).sum();
    answer.signed = desk.signed as f64;
    answer.by_second = vec![0; (question.life * question.lives) as usize];
    for second in &desk.seconds {
        let second = second.saturating_sub(from.as_secs());
        if let Some(count) = answer.by_second.get_mut(second as usize) {
            *count += 1;
        }
    }
    answer
}

impl Answer {
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

    /// The busiest second against the mean one; none where there are so few calls that it would
    /// say nothing.
    pub(crate) fn peak(&self) -> Option<f64> {
        let all: u64 = self.by_second.iter().sum();
        if all < 10 * self.by_second.len() as u64 {
            return None;
        }
        let most = self.by_second.iter().max().copied().unwrap_or(0);
        Some(most as f64 * self.by_second.len() as f64 / all as f64)
    }
}
