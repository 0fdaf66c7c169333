//! Limits for criterion benches. Each row is measured in rounds, which criterion shows. At the end the
//! median round of each row is compared with its limit.
//!
//! If the result of a row is a difference or a ratio, each round measures both sides alternately, so
//! that other load on the machine affects both.

#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::new_without_default,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "benches"
)]

pub mod callgrind;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};

/// The result of one round.
#[derive(Clone, Copy)]
pub struct Round {
    /// The time that criterion shows.
    pub nanos: f64,
    /// The value that is compared with the limit.
    pub figure: f64,
}

/// The limit of a figure.
#[derive(Clone, Copy)]
pub enum Limit {
    /// Nanoseconds, at most.
    Nanos(f64),
    /// A ratio, at most.
    AtMost(f64),
    /// A ratio, at least.
    AtLeast(f64),
}

/// Collects figures, and compares them with their limits at the end.
pub struct Limits {
    rows: Vec<(String, f64, Limit)>,
}

impl Round {
    /// Creates a round whose figure is its time.
    pub fn of_nanos(nanos: f64) -> Self {
        let figure = nanos;
        Self { nanos, figure }
    }
}

impl Limit {
    pub fn holds(self, figure: f64) -> bool {
        match self {
            Self::Nanos(most) | Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }

    fn texts(self, figure: f64) -> (String, String) {
        match self {
            Self::Nanos(most) => (format!("{figure:.0} ns"), format!("at most {most:.0} ns")),
            Self::AtMost(most) => (format!("{figure:.2} ×"), format!("at most {most:.2} ×")),
            Self::AtLeast(least) => (format!("{figure:.2} ×"), format!("at least {least:.2} ×")),
        }
    }
}

impl Limits {
    pub fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Runs `round` with criterion as `group/name`, and records the median figure.
    pub fn row(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        (of, name): (&str, &str),
        limit: Limit,
        mut round: impl FnMut() -> Round,
    ) {
        let mut figures = Vec::new();
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let round = round();
                figures.push(round.figure);
                // Criterion does not accept times below 0.
                Duration::from_secs_f64(round.nanos.max(0.01) * 1e-9 * times as f64)
            });
        });
        // Empty if the command line selects other rows.
        if !figures.is_empty() {
            let figure = median(&mut figures);
            self.rows.push((format!("{of}/{name}"), figure, limit));
        }
    }

    /// Prints one line for each limit; fails if one is missed. Prints nothing if the benches were only
    /// tested.
    pub fn finish(&self) -> ExitCode {
        if !is_measured() {
            return ExitCode::SUCCESS;
        }
        let mut missed = false;
        println!();
        for (name, figure, limit) in &self.rows {
            let (is, should) = limit.texts(*figure);
            let holds = limit.holds(*figure);
            missed |= !holds;
            let outcome = if holds { "held" } else { "MISSED" };
            println!("{name:<64} {is:>10}, {should:<16} {outcome}");
        }
        ExitCode::from(u8::from(missed))
    }
}

/// Whether this is a measurement, not a test or a list of the benches.
pub fn is_measured() -> bool {
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    has("--bench") && !has("--test") && !has("--list")
}

/// Creates a group with a fixed number of rounds for each row.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(15);
    group.sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(50));
    group
}

/// Returns the median.
pub fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Returns the time of `work` in nanoseconds.
pub fn nanos(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64
}

/// Runs `work` repeatedly; returns the nanoseconds of one run.
pub fn each(times: usize, mut work: impl FnMut()) -> f64 {
    let all = nanos(|| {
        for _ in 0..times {
            work();
        }
    });
    all / times as f64
}

/// Runs all `works` in each turn; returns the results of each. The first one and the direction change
/// from turn to turn, so that each runs after each other one equally often.
pub fn in_turns<const N: usize>(
    turns: usize,
    works: [&mut dyn FnMut(usize) -> f64; N],
) -> [Vec<f64>; N] {
    let mut results = [const { Vec::new() }; N];
    for turn in 0..turns {
        for at in 0..N {
            let at = match turn / N % 2 {
                0 => (turn + at) % N,
                _ => (turn + N - at) % N,
            };
            results[at].push(works[at](turn));
        }
    }
    results
}

/// Like [`in_turns`], with the median result of each.
pub fn medians_in_turns<const N: usize>(
    turns: usize,
    works: [&mut dyn FnMut(usize) -> f64; N],
) -> [f64; N] {
    in_turns(turns, works).map(|mut results| median(&mut results))
}

/// Returns the median of `b` minus `a` over all turns.
pub fn difference(a: &[f64], b: &[f64]) -> f64 {
    let mut differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    median(&mut differences)
}

/// The work of a thread until a deadline; returns the number of repetitions.
pub type Work<'a> = dyn Fn(usize, Instant) -> u64 + Sync + 'a;

/// Repeats `work` until `end`; returns the number of repetitions.
pub fn repeat(end: Instant, mut work: impl FnMut(usize)) -> u64 {
    let mut done = 0;
    while Instant::now() < end {
        (0..1000).for_each(&mut work);
        done += 1000;
    }
    done
}

/// Returns the speed-up of two threads over one, relative to the speed-up of threads that only
/// compute.
pub fn two_threads(work: &Work<'_>) -> Round {
    let [control, controls, one, both] = medians_in_turns(
        2,
        [
            &mut |_| rate(1, &compute),
            &mut |_| rate(2, &compute),
            &mut |_| rate(1, work),
            &mut |_| rate(2, work),
        ],
    );
    Round {
        nanos: 1e9 / both,
        figure: (both / one) / (controls / control),
    }
}

/// The control: a pure computation.
fn compute(seed: usize, end: Instant) -> u64 {
    let mut state = seed as u64;
    repeat(end, |_| {
        for _ in 0..100 {
            let next = state.wrapping_mul(6_364_136_223_846_793_005);
            state = black_box(next.wrapping_add(1));
        }
    })
}

/// Returns the repetitions per second of all threads together.
fn rate(threads: usize, work: &Work<'_>) -> f64 {
    let period = Duration::from_millis(50);
    let done: u64 = std::thread::scope(|scope| {
        let end = Instant::now() + period;
        let threads: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || work(n, end)))
            .collect();
        let done = threads.into_iter().map(|thread| thread.join().unwrap());
        done.sum()
    });
    done as f64 / period.as_secs_f64()
}
