//! How everything is timed: batches, in rounds, everybody in each round.

use std::time::{Duration, Instant};

use crate::names::Who;

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

/// What rounds gave: the median, and what a quarter of them were below and above.
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

/// A figure that was not measured in rounds.
impl From<f64> for Spread {
    fn from(value: f64) -> Self {
        Self {
            median: value,
            quartiles: None,
        }
    }
}

/// Does a thing so many times and says how long that took; what it prepares is not in the time.
type Batch<'a> = Box<dyn FnMut(usize) -> Duration + 'a>;

/// Those who do the same thing, each in its way.
pub struct Contest<'a> {
    effort: Effort,
    entrants: Vec<Entrant<'a>>,
    most: usize,
    base: usize,
}

struct Entrant<'a> {
    who: Who,
    work: Batch<'a>,
    /// It is asked for no more than this at a time, and again until its batch is full.
    most: usize,
    /// The entrant that its differences are to.
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

    /// As many as fill a batch's time.
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
    /// Nanoseconds for one.
    pub time: Spread,
    /// The differences to the base, each within one round.
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

    /// Who comes after this is asked for so many at a time: where each thing can be done only
    /// once, or what it needs takes room.
    pub fn at_most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Who comes after this is compared with the one who came last; all before, with the first.
    pub fn against_last(mut self) -> Self {
        self.base = self.entrants.len().saturating_sub(1);
        self
    }

    /// An entrant that takes its own time.
    pub fn batch(mut self, who: Who, batch: impl FnMut(usize) -> Duration + 'a) -> Self {
        self.entrants.push(Entrant {
            who,
            work: Box::new(batch),
            most: self.most,
            base: self.base,
        });
        self
    }

    /// An entrant that does one thing for each number.
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

/// So many places in another order each round, the same for each run: nobody always comes after
/// the same one, whose leavings in the processor's caches he would pay for.
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
