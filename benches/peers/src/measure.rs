//! Timing: every entrant runs one batch in each round.

use std::time::{Duration, Instant};

use crate::names::Who;

/// The amount of work: a full measurement, or a quick test of the program.
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

/// The median of the rounds, and their lower and upper quartile.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub quartiles: Option<(f64, f64)>,
}

impl Spread {
    pub fn of(values: &[f64]) -> Self {
        let at = |q| quantile(values.to_vec(), q);
        Self {
            median: at(0.5),
            quartiles: (values.len() > 1).then(|| (at(0.25), at(0.75))),
        }
    }
}

/// Converts a figure that was not measured in rounds.
impl From<f64> for Spread {
    fn from(value: f64) -> Self {
        Self {
            median: value,
            quartiles: None,
        }
    }
}

/// Does the work this number of times and returns the elapsed time without preparation.
type Batch<'a> = Box<dyn FnMut(usize) -> Duration + 'a>;

/// A comparison of entrants that do the same job.
pub struct Contest<'a> {
    effort: Effort,
    entrants: Vec<Entrant<'a>>,
    most: usize,
    base: usize,
}

struct Entrant<'a> {
    who: Who,
    work: Batch<'a>,
    /// The most that one call may do. The entrant is called until its batch is complete.
    most: usize,
    /// The index of the baseline for its differences.
    base: usize,
}

impl Entrant<'_> {
    fn batch(&mut self, count: usize) -> Duration {
        let mut time = Duration::ZERO;
        let mut left = count;
        while left > 0 {
            let part = left.min(self.most);
            time += (self.work)(part);
            left -= part;
        }
        time
    }

    /// Returns the number that takes as long as a batch.
    fn calibrate(&mut self, batch: Duration) -> usize {
        let mut count = 1;
        loop {
            let time = self.batch(count);
            if time >= batch {
                return count;
            }
            let scale = batch.as_secs_f64() / time.as_secs_f64().max(1e-9);
            count = (count as f64 * scale.clamp(1.2, 10.0)) as usize + 1;
        }
    }
}

#[derive(Clone)]
pub struct Outcome {
    pub who: Who,
    /// Nanoseconds per operation.
    pub time: Spread,
    /// The differences to the baseline within each round.
    pub over_base: Spread,
    pub allocations: f64,
    pub bytes: f64,
}

impl<'a> Contest<'a> {
    pub fn new(effort: Effort) -> Self {
        Self {
            effort,
            entrants: Vec::new(),
            most: usize::MAX,
            base: 0,
        }
    }

    /// Limits the operations per call for the following entrants. Needed if an operation can be
    /// done only once, or if its input takes much memory.
    pub fn at_most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Makes the last entrant the baseline of the following ones. The default baseline is the
    /// first.
    pub fn against_last(mut self) -> Self {
        self.base = self.entrants.len().saturating_sub(1);
        self
    }

    /// Adds an entrant that measures its own time.
    pub fn batch(mut self, who: Who, batch: impl FnMut(usize) -> Duration + 'a) -> Self {
        self.entrants.push(Entrant {
            who,
            work: Box::new(batch),
            most: self.most,
            base: self.base,
        });
        self
    }

    /// Adds an entrant that does one operation for each number.
    pub fn each<T>(self, who: Who, mut one: impl FnMut(usize) -> T + 'a) -> Self {
        self.batch(who, move |count| time(count, &mut one))
    }

    pub fn run(self) -> Vec<Outcome> {
        let Self {
            effort,
            mut entrants,
            ..
        } = self;
        let counts: Vec<usize> = entrants
            .iter_mut()
            .map(|entrant| entrant.calibrate(effort.batch))
            .collect();
        let mut times = vec![Vec::with_capacity(effort.rounds); entrants.len()];
        for round in 0..effort.rounds {
            for at in shuffled(entrants.len(), round) {
                let time = entrants[at].batch(counts[at]);
                times[at].push(time.as_nanos() as f64 / counts[at] as f64);
            }
        }
        let mut outcomes = Vec::new();
        for (at, entrant) in entrants.iter_mut().enumerate() {
            let allocated = allocation_counter::measure(|| {
                entrant.batch(counts[at]);
            });
            let pairs = times[at].iter().zip(&times[entrant.base]);
            let differences: Vec<f64> = pairs.map(|(time, base)| time - base).collect();
            outcomes.push(Outcome {
                who: entrant.who.clone(),
                time: Spread::of(&times[at]),
                over_base: Spread::of(&differences),
                allocations: allocated.count_total as f64 / counts[at] as f64,
                bytes: allocated.bytes_total as f64 / counts[at] as f64,
            });
        }
        outcomes
    }
}

/// Returns the indexes below `places` in a different order for each round. All runs use the same
/// orders. An entrant therefore does not always find the processor's caches as the same entrant
/// left them.
pub fn shuffled(places: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..places).collect();
    let mut random = (round as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for last in (1..places).rev() {
        // xorshift64*
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        let number = random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        order.swap(last, number as usize % (last + 1));
    }
    order
}

/// Measures this number of calls, including the drop of their results.
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

/// Prepares the input of a batch. Its allocations are not counted.
pub fn prepare<T>(make: impl FnOnce() -> T) -> T {
    let mut made = None;
    allocation_counter::opt_out(|| made = Some(make()));
    made.expect("the closure ran")
}
