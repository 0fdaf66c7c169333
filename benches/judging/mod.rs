//! Bars, beside criterion's figures: each row measures in rounds that criterion shows as they come,
//! and when all rows are through, the median round of each is held against its bar.
//!
//! A row whose figure is a difference or a ratio measures both sides of it in the same round, in
//! turns, so that whatever else the machine does hits them alike.

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

/// What one round found.
#[derive(Clone, Copy)]
pub struct Round {
    /// What criterion shows.
    pub nanos: f64,
    /// What is judged.
    pub figure: f64,
}

/// What a figure must keep to.
#[derive(Clone, Copy)]
pub enum Bar {
    /// Nanoseconds, at most.
    Nanos(f64),
    /// A ratio, at most.
    AtMost(f64),
    /// A ratio, at least.
    AtLeast(f64),
}

/// Collects figures, and judges them in the end.
pub struct Judge {
    judged: Vec<(String, f64, Bar)>,
}

impl Round {
    /// Where the time itself is judged.
    pub fn of_nanos(nanos: f64) -> Self {
        let figure = nanos;
        Self { nanos, figure }
    }
}

impl Bar {
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

impl Judge {
    pub fn new() -> Self {
        Self { judged: Vec::new() }
    }

    /// Lets criterion run `round` so often, as `group/name`.
    pub fn row(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        (of, name): (&str, &str),
        bar: Bar,
        mut round: impl FnMut() -> Round,
    ) {
        let mut figures = Vec::new();
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let round = round();
                figures.push(round.figure);
                // Criterion knows no difference below nothing.
                Duration::from_secs_f64(round.nanos.max(0.01) * 1e-9 * times as f64)
            });
        });
        // None where criterion was asked for other rows.
        if !figures.is_empty() {
            let figure = median(&mut figures);
            self.judged.push((format!("{of}/{name}"), figure, bar));
        }
    }

    /// One line for each bar; fails where one is missed. Says nothing where criterion only looked
    /// whether the benches work.
    pub fn verdict(&self) -> ExitCode {
        if !is_measured() {
            return ExitCode::SUCCESS;
        }
        let mut missed = false;
        println!();
        for (name, figure, bar) in &self.judged {
            let (is, should) = bar.texts(*figure);
            let held = bar.holds(*figure);
            missed |= !held;
            let held = if held { "held" } else { "MISSED" };
            println!("{name:<64} {is:>10}, {should:<16} {held}");
        }
        ExitCode::from(u8::from(missed))
    }
}

/// Whether this is a `cargo bench`, and not a look at whether the benches work or what there are.
pub fn is_measured() -> bool {
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    has("--bench") && !has("--test") && !has("--list")
}

/// A group whose rows take a fixed number of rounds, whatever they find.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(15);
    group.sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(50));
    group
}

/// The middle one.
pub fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// How long it takes, in nanoseconds.
pub fn nanos(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64
}

/// Nanoseconds for each of so many times.
pub fn each(times: usize, mut work: impl FnMut()) -> f64 {
    let all = nanos(|| {
        for _ in 0..times {
            work();
        }
    });
    all / times as f64
}

/// Takes each of the works so often, in turns; what each gave, turn by turn. Who begins changes from
/// turn to turn, and so does the direction: each follows each of the others as often.
pub fn in_turns<const N: usize>(
    turns: usize,
    works: [&mut dyn FnMut(usize) -> f64; N],
) -> [Vec<f64>; N] {
    let mut gave = [const { Vec::new() }; N];
    for turn in 0..turns {
        for at in 0..N {
            let at = match turn / N % 2 {
                0 => (turn + at) % N,
                _ => (turn + N - at) % N,
            };
            gave[at].push(works[at](turn));
        }
    }
    gave
}

/// The same, with the median of what each gave.
pub fn medians_in_turns<const N: usize>(
    turns: usize,
    works: [&mut dyn FnMut(usize) -> f64; N],
) -> [f64; N] {
    in_turns(turns, works).map(|mut gave| median(&mut gave))
}

/// The median of what `b` took longer than `a`, turn by turn.
pub fn difference(a: &[f64], b: &[f64]) -> f64 {
    let mut differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    median(&mut differences)
}

/// What a thread does until then, and how often it did it.
pub type Work<'a> = dyn Fn(usize, Instant) -> u64 + Sync + 'a;

/// Does it again and again until then; how often.
pub fn repeat(end: Instant, mut work: impl FnMut(usize)) -> u64 {
    let mut done = 0;
    while Instant::now() < end {
        (0..1000).for_each(&mut work);
        done += 1000;
    }
    done
}

/// How much more two threads do than one, against what two threads do more that only compute.
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

/// The control: only computes.
fn compute(seed: usize, end: Instant) -> u64 {
    let mut state = seed as u64;
    repeat(end, |_| {
        for _ in 0..100 {
            let next = state.wrapping_mul(6_364_136_223_846_793_005);
            state = black_box(next.wrapping_add(1));
        }
    })
}

/// How often in a second so many threads together do this.
fn rate(threads: usize, work: &Work<'_>) -> f64 {
    let spell = Duration::from_millis(50);
    let done: u64 = std::thread::scope(|scope| {
        let end = Instant::now() + spell;
        let threads: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || work(n, end)))
            .collect();
        let done = threads.into_iter().map(|thread| thread.join().unwrap());
        done.sum()
    });
    done as f64 / spell.as_secs_f64()
}
