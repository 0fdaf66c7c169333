//! The cost of verification during updates of 200 trust domains with ten P-256 keys each, ten times
//! per second. Exits with 1 if a limit is missed, and with 2 if the results vary too much.
//!
//! Any update takes processor time from other threads on the same cores. The control is a job: a
//! thread that only computes, and uses as much processor time in each 100 ms as an update takes in all
//! threads together (measured during verification). The limits: with updates, the p50 is at most 10 %
//! above the p50 without load, and the p99 is not above the p99 with the job.
//!
//! Each case is measured in rounds of four periods: no load, the job, updates, the job again. Their
//! order changes from round to round. Each round gives a ratio, so that a machine that becomes slower
//! affects both sides. The result is the median of the ratios with its 95 % confidence interval. A
//! limit is missed if the whole interval is above it. The ratio of the two job periods shows the noise
//! of the method. If the interval contains the limit and is wider than 0.1, the result is inconclusive.
//!
//! `blocked` measures the longest time in which the worker of the source's runtime runs nothing else
//! during an update. The limit is 5 ms in 95 of 100 updates. It is inconclusive if the machine exceeds
//! the limit without updates.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

use std::fmt;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tower_spiffe::bundle::Algorithm;
use tower_spiffe::testing::{FakeAgent, Issuer};
use tower_spiffe::{JwtSource, Validator};

const TD: &str = "example.org";
const AUDIENCE: &str = "spiffe://example.org/db";
const DOMAINS: usize = 200;
const KEYS: usize = 10;
const PERIOD: Duration = Duration::from_millis(100);
/// Three updates.
const MEASURED: Duration = Duration::from_millis(300);
const ROUNDS: usize = 31;

type Set = Vec<(String, Vec<u8>)>;

fn entry(issuer: &Issuer) -> (String, Vec<u8>) {
    let name = issuer.trust_domain().to_spiffe_id().to_string();
    (name, issuer.jwks())
}

fn keys(domain: usize) -> (String, Vec<u8>) {
    let issuer = Issuer::new(&format!("td{domain}.test")).unwrap();
    for _ in 1..KEYS {
        issuer.prepare(Algorithm::ES256);
    }
    entry(&issuer)
}

/// An agent and a source, each with its own runtime of one worker thread.
struct Bench {
    agents: tokio::runtime::Runtime,
    _sources: tokio::runtime::Runtime,
    agent: FakeAgent,
    source: JwtSource,
    token: String,
    /// Pairs of sets: with one trust domain's keys replaced, all keys except our own replaced, and
    /// nothing replaced.
    one_changes: [Set; 2],
    all_change: [Set; 2],
    none_changes: [Set; 2],
}

fn one_worker() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

impl Bench {
    fn start() -> Self {
        let (agents, sources) = (one_worker(), one_worker());
        let agent = agents.block_on(FakeAgent::start(TD)).unwrap();
        let source = sources.block_on(agent.source()).unwrap();
        let token = agent.issuer().token("spiffe://example.org/web", AUDIENCE);
        let token = token.expires_in(Duration::from_secs(6 * 3600)).sign();
        let own = entry(agent.issuer());
        let set = || -> Set { (1..DOMAINS).map(keys).chain([own.clone()]).collect() };
        let one = set();
        let mut other = one.clone();
        other[7] = keys(8);
        let mut reordered = one.clone();
        reordered.reverse();
        Self {
            one_changes: [one.clone(), other],
            none_changes: [one.clone(), reordered],
            all_change: [one, set()],
            agents,
            _sources: sources,
            agent,
            source,
            token,
        }
    }

    /// Sends updates in each period for updates. Uses one replay: at its end the agent sends its own
    /// set again, and with another replay all keys would be new.
    fn updates(&self, sets: &[Set; 2], loads: &Loads) {
        self.agents.block_on(async {
            let replay = self.agent.replay();
            let mut ticks = tokio::time::interval(PERIOD);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut sets = sets.iter().cycle();
            while loads.is_running() {
                ticks.tick().await;
                if loads.now() == Load::Updates {
                    let set = sets.next().unwrap();
                    replay.send(set.iter().cloned()).await;
                }
            }
        });
    }
}

/// The load during verification.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    Quiet,
    Job,
    Updates,
    Over,
}

/// The current load, and the number of steps that the job computes in a period.
struct Loads {
    load: Mutex<Load>,
    work: AtomicU64,
}

impl Loads {
    fn now(&self) -> Load {
        *self.load.lock().unwrap()
    }

    fn is_running(&self) -> bool {
        self.now() != Load::Over
    }

    fn set(&self, load: Load) {
        *self.load.lock().unwrap() = load;
    }
}

/// Returns the processor time of all other threads of this process, from the kernel's scheduler.
fn processor_time_of_others() -> Duration {
    let me = std::fs::read_link("/proc/thread-self").unwrap();
    let me = me.file_name().unwrap().to_owned();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.filter_map(|task| {
        let task = task.ok()?;
        if task.file_name() == me {
            return None;
        }
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Computes a fixed number of steps in each period of the job. A fixed time would not work, because
/// other threads may use the processor in that time.
fn job(loads: &Loads) {
    let mut next = Instant::now();
    while loads.is_running() {
        if loads.now() == Load::Job {
            let mut state = 1_u64;
            for _ in 0..loads.work.load(Ordering::Relaxed) {
                state = black_box(
                    state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1),
                );
            }
        }
        next = (next + PERIOD).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// The results of a period: percentiles in nanoseconds, and the processor time of other threads.
#[derive(Clone, Copy)]
struct Sample {
    p50: f64,
    p99: f64,
    others: Duration,
}

/// Measures verification under a load. Starts one period after the load, and waits for its end.
fn sample(loads: &Loads, load: Load, times: &mut Vec<u64>, verify: &dyn Fn()) -> Sample {
    loads.set(load);
    std::thread::sleep(PERIOD);
    times.clear();
    let before = processor_time_of_others();
    let start = Instant::now();
    let mut last = start;
    while last - start < MEASURED {
        verify();
        let now = Instant::now();
        times.push((now - last).as_nanos() as u64);
        last = now;
    }
    let others = processor_time_of_others() - before;
    let took = last - start;
    loads.set(Load::Quiet);
    std::thread::sleep(PERIOD);
    times.sort_unstable();
    let quantile = |q: f64| quantile(times, q);
    Sample {
        p50: quantile(0.5),
        p99: quantile(0.99),
        others: others.mul_f64(PERIOD.as_secs_f64() / took.as_secs_f64()),
    }
}

/// Returns a quantile. The clock is coarse, so many times are equal. The quantile is interpolated
/// within the interval around a time.
fn quantile(sorted: &[u64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q) as usize;
    let time = sorted[rank];
    let first = sorted.partition_point(|other| *other < time);
    let beyond = sorted.partition_point(|other| *other <= time);
    let middle = |other: Option<&u64>| (*other.unwrap_or(&time) + time) as f64 / 2.0;
    let low = middle(first.checked_sub(1).map(|before| &sorted[before]));
    let high = middle(sorted.get(beyond));
    low + (high - low) * (rank - first) as f64 / (beyond - first) as f64
}

/// The median of ratios with its 95 % confidence interval, for any distribution.
struct Median {
    low: f64,
    middle: f64,
    high: f64,
}

impl Median {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let count = values.len() as f64;
        let distance = 0.98 * count.sqrt();
        let at = |rank: f64| values[(rank.max(0.0) as usize).min(values.len() - 1)];
        Self {
            low: at((count / 2.0 - distance).floor()),
            middle: at((count / 2.0).floor()),
            high: at((count / 2.0 + distance).floor()),
        }
    }

    /// Compares the interval with a limit.
    fn compare(&self, limit: f64) -> Verdict {
        if self.low > limit {
            Verdict::Missed
        } else if self.high > limit && self.high - self.low > 0.1 {
            Verdict::Inconclusive
        } else {
            Verdict::Held
        }
    }
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { low, middle, high } = self;
        write!(f, "{middle:.3} ({low:.3} to {high:.3})")
    }
}

/// From best to worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Held,
    Inconclusive,
    Missed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Missed => "MISSED",
        })
    }
}

/// Adjusts the job to the processor time of an update. Both are measured by the kernel.
#[derive(Default)]
struct Meter {
    updates: Vec<f64>,
    steps: Vec<f64>,
}

impl Meter {
    fn note(&mut self, load: Load, sample: &Sample, work: &AtomicU64) {
        let took = sample.others.as_secs_f64();
        match load {
            Load::Updates => self.updates.push(took),
            Load::Job => self.steps.push(took / work.load(Ordering::Relaxed) as f64),
            Load::Quiet | Load::Over => {}
        }
        if !self.updates.is_empty() && !self.steps.is_empty() {
            let middle = |of: &[f64]| Median::of(of.iter().copied()).middle;
            let steps = middle(&self.updates) / middle(&self.steps);
            work.store((steps as u64).max(1), Ordering::Relaxed);
        }
    }
}

/// The samples of a round.
struct Round {
    quiet: Sample,
    jobs: [Sample; 2],
    updates: Sample,
}

impl Round {
    fn measure(nth: usize, mut sample: impl FnMut(Load) -> Sample) -> Self {
        const ORDER: [Load; 4] = [Load::Quiet, Load::Job, Load::Updates, Load::Job];
        let mut of: [Option<Sample>; 4] = [None; 4];
        for step in 0..4 {
            // Start at another sample each time, and reverse every second round.
            let at = if nth.is_multiple_of(2) {
                nth / 2 + step
            } else {
                nth / 2 + 4 - step
            } % 4;
            of[at] = Some(sample(ORDER[at]));
        }
        let [quiet, job, updates, again] = of.map(Option::unwrap);
        Self {
            quiet,
            jobs: [job, again],
            updates,
        }
    }

    /// Returns the geometric mean of both jobs.
    fn job(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        (figure(&self.jobs[0]) * figure(&self.jobs[1])).sqrt()
    }
}

fn measure(bench: &Bench, name: &str, sets: &[Set; 2], verify: &dyn Fn()) -> Verdict {
    let loads = Loads {
        load: Mutex::new(Load::Quiet),
        work: AtomicU64::new(1 << 20),
    };
    let mut times = Vec::with_capacity(1 << 22);
    let rounds: Vec<Round> = std::thread::scope(|scope| {
        scope.spawn(|| bench.updates(sets, &loads));
        scope.spawn(|| job(&loads));
        // The first one loads the keys. The others measure the cost of an update and of a step.
        sample(&loads, Load::Updates, &mut times, verify);
        let mut meter = Meter::default();
        for load in [Load::Updates, Load::Job] {
            let sample = sample(&loads, load, &mut times, verify);
            meter.note(load, &sample, &loads.work);
        }
        let rounds = (0..ROUNDS).map(|nth| {
            Round::measure(nth, |load| {
                let sample = sample(&loads, load, &mut times, verify);
                meter.note(load, &sample, &loads.work);
                sample
            })
        });
        let rounds = rounds.collect();
        loads.set(Load::Over);
        rounds
    });

    let of = |figure: &dyn Fn(&Round) -> f64| Median::of(rounds.iter().map(figure));
    let millis = |sample: &Sample| sample.others.as_secs_f64() * 1e3;
    let p50 = of(&|round| round.updates.p50 / round.quiet.p50);
    let p99 = of(&|round| round.updates.p99 / round.job(|sample| sample.p99));
    let cost = of(&|round| millis(&round.updates) / round.job(millis));
    let noise = of(&|round| round.jobs[0].p99 / round.jobs[1].p99);
    // The comparison needs a job with the same cost as an update.
    let relative_to_job = match cost.low <= 1.1 && cost.high >= 0.9 {
        true => p99.compare(1.0),
        false => Verdict::Inconclusive,
    };
    println!(
        "{name}: {:.1} ms of processor time per update, ratio to the job {cost}\n    \
         p50: no load {:.0} ns, job {:.0} ns, updates {:.0} ns, ratio to no load {p50}: {}\n    \
         p99: no load {:.0} ns, job {:.0} ns, updates {:.0} ns, ratio to the job {p99}: {}\n    \
         p99 of the job, ratio of both periods {noise}",
        of(&|round| millis(&round.updates)).middle,
        of(&|round| round.quiet.p50).middle,
        of(&|round| round.job(|sample| sample.p50)).middle,
        of(&|round| round.updates.p50).middle,
        p50.compare(1.1),
        of(&|round| round.quiet.p99).middle,
        of(&|round| round.job(|sample| sample.p99)).middle,
        of(&|round| round.updates.p99).middle,
        relative_to_job,
    );
    p50.compare(1.1).max(relative_to_job)
}

fn verification() -> Verdict {
    let bench = Bench::start();
    let validator = Validator::builder(bench.source.clone());
    let validator = validator.audience(AUDIENCE).build().unwrap();
    let fresh = Validator::builder(bench.source.clone()).audience(AUDIENCE);
    let fresh = fresh.no_cache().build().unwrap();
    let hit = || drop(black_box(validator.validate(&bench.token).unwrap()));
    let cold = || drop(black_box(fresh.validate(&bench.token).unwrap()));
    let mut worst = Verdict::Held;
    for (what, sets) in [
        ("no key changes", &bench.none_changes),
        ("one of 200 trust domains changes", &bench.one_changes),
        ("all other keys change", &bench.all_change),
    ] {
        let hit = measure(&bench, &format!("known token, {what}"), sets, &hit);
        let cold = measure(&bench, &format!("no cache, {what}"), sets, &cold);
        worst = worst.max(hit).max(cold);
    }
    worst
}

/// Measures the longest time in each update in which the runtime's only worker runs nothing else.
fn blocked() -> Verdict {
    let bench = Bench::start();
    let (sender, ready) = mpsc::channel();
    let longest = Arc::new(AtomicU64::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let source = bench.agent.source().await.unwrap();
                sender.send(source.clone()).unwrap();
                let mut last = Instant::now();
                while !done.load(Ordering::Relaxed) {
                    tokio::task::yield_now().await;
                    let now = Instant::now();
                    let gap = u64::try_from((now - last).as_nanos()).unwrap();
                    longest.fetch_max(gap, Ordering::Relaxed);
                    last = now;
                }
            });
        });
        let watched = ready.recv().unwrap();
        // The other source must not use the cores.
        bench._sources.block_on(bench.source.shutdown());
        let measure = |sets: Option<&[Set; 2]>| -> Vec<f64> {
            let replay = bench.agent.replay();
            let mut worst = Vec::new();
            for n in 0..60 {
                let revision = watched.state().revision;
                longest.store(0, Ordering::Relaxed);
                if let Some(sets) = sets {
                    bench
                        .agents
                        .block_on(replay.send(sets[n % 2].iter().cloned()));
                    while watched.state().revision == revision {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                std::thread::sleep(Duration::from_millis(30));
                worst.push(longest.load(Ordering::Relaxed) as f64 / 1e6);
            }
            worst
        };
        let mut verdicts = Vec::new();
        for (what, sets) in [
            ("no update", None),
            ("one trust domain changes", Some(&bench.one_changes)),
            ("all other keys change", Some(&bench.all_change)),
        ] {
            let mut worst = measure(sets);
            worst.sort_by(f64::total_cmp);
            // The worst 5 % may come from other processes.
            let most = worst[worst.len() * 95 / 100];
            verdicts.push(match most <= 5.0 {
                true => Verdict::Held,
                false if sets.is_none() || verdicts[0] != Verdict::Held => Verdict::Inconclusive,
                false => Verdict::Missed,
            });
            println!(
                "blocked, {what}: longest time per update: median {:.2} ms, p95 {most:.2} ms, \
                 maximum {:.2} ms: {}",
                worst[worst.len() / 2],
                worst[worst.len() - 1],
                verdicts[verdicts.len() - 1],
            );
        }
        done.store(true, Ordering::Relaxed);
        verdicts.into_iter().max().unwrap()
    })
}

/// Runs both benches, or the one that is named.
fn main() -> ExitCode {
    let is_selected = |name: &str| {
        let mut filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
        filters.next().is_none_or(|filter| filter == name)
    };
    let mut verdict = Verdict::Held;
    if is_selected("blocked") {
        verdict = verdict.max(blocked());
    }
    if is_selected("verification") {
        verdict = verdict.max(verification());
    }
    ExitCode::from(match verdict {
        Verdict::Held => 0,
        Verdict::Missed => 1,
        Verdict::Inconclusive => 2,
    })
}
