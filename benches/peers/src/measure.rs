//! How everything is timed: batches, in rounds, everybody in each round.

use std::time::{Duration, Instant};

/// How much is done: the whole of it, or just enough to see that everything works.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub batch: Duration,
    pub quick: bool,
}

impl Effort {
    pub const FULL: Self = Self {
        rounds: 41,
        batch: Duration::from_millis(10),
        quick: false,
    };
    pub const QUICK: Self = Self {
        rounds: 3,
        batch: Duration::from_millis(1),
        quick: true,
    };
}

/// Does a thing so many times and says how long that took; what it prepares is not in the time.
type Batch<'a> = Box<dyn FnMut(usize) -> Duration + 'a>;

/// Those who do the same thing, each in its way.
pub struct Contest<'a> {
    effort: Effort,
    entrants: Vec<(String, Batch<'a>)>,
    most: usize,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// The median round, in nanoseconds for one.
    pub nanos: f64,
    /// A quarter of the rounds were faster than the first, a quarter slower than the second.
    pub quartiles: (f64, f64),
    /// The median of the differences to the first entrant, each within one round.
    pub over_first: f64,
    pub allocations: f64,
    pub bytes: f64,
}

impl<'a> Contest<'a> {
    pub fn new(effort: Effort) -> Self {
        Self {
            effort,
            entrants: Vec::new(),
            most: usize::MAX,
        }
    }

    /// No batch is longer than this: where each thing can be done only once.
    pub fn at_most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// An entrant that takes its own time.
    pub fn batch(
        mut self,
        name: impl Into<String>,
        batch: impl FnMut(usize) -> Duration + 'a,
    ) -> Self {
        self.entrants.push((name.into(), Box::new(batch)));
        self
    }

    /// An entrant that does one thing for each number.
    pub fn each<T>(self, name: impl Into<String>, mut one: impl FnMut(usize) -> T + 'a) -> Self {
        self.batch(name, move |count| time(count, &mut one))
    }

    pub fn run(self) -> Vec<(String, Outcome)> {
        let Self {
            effort,
            mut entrants,
            most,
        } = self;
        // As many as fill a batch's time.
        let counts: Vec<usize> = entrants
            .iter_mut()
            .map(|(_, batch)| {
                let mut count = 1;
                loop {
                    let time = batch(count);
                    if time >= effort.batch || count >= most {
                        break count.min(most);
                    }
                    let scale = effort.batch.as_secs_f64() / time.as_secs_f64().max(1e-9);
                    count = ((count as f64 * scale.clamp(1.2, 10.0)) as usize + 1).min(most);
                }
            })
            .collect();
        let mut times = vec![Vec::with_capacity(effort.rounds); entrants.len()];
        for round in 0..effort.rounds {
            // Another one begins each round.
            for place in 0..entrants.len() {
                let at = (place + round) % entrants.len();
                let time = (entrants[at].1)(counts[at]);
                times[at].push(time.as_nanos() as f64 / counts[at] as f64);
            }
        }
        let first = times.first().cloned().unwrap_or_default();
        entrants
            .iter_mut()
            .zip(&counts)
            .zip(times)
            .map(|(((name, batch), count), times)| {
                let allocated = allocation_counter::measure(|| {
                    batch(*count);
                });
                let differences = times.iter().zip(&first).map(|(time, first)| time - first);
                let outcome = Outcome {
                    over_first: quantile(differences.collect(), 0.5),
                    quartiles: (quantile(times.clone(), 0.25), quantile(times.clone(), 0.75)),
                    nanos: quantile(times, 0.5),
                    allocations: allocated.count_total as f64 / *count as f64,
                    bytes: allocated.bytes_total as f64 / *count as f64,
                };
                (std::mem::take(name), outcome)
            })
            .collect()
    }
}

/// How long it takes to do this so many times. What it gives is dropped in the time.
pub fn time<T>(count: usize, mut one: impl FnMut(usize) -> T) -> Duration {
    let start = Instant::now();
    for n in 0..count {
        std::hint::black_box(one(std::hint::black_box(n)));
    }
    start.elapsed()
}

pub fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// Makes what a batch needs; its allocations are not counted.
pub fn prepare<T>(make: impl FnOnce() -> T) -> T {
    let mut made = None;
    allocation_counter::opt_out(|| made = Some(make()));
    made.expect("it was made")
}
