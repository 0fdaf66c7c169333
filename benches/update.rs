//! What verification costs while bundles are exchanged: 200 trust domains with ten P-256 keys each,
//! ten times a second. Ends with 1 where a bar is missed, with 2 where the machine is too restless
//! to tell.
//!
//! An update takes processor time from whoever shares the cores, whatever it does. So beside the
//! quiet there is a job: a thread that only computes, for as long in every tenth of a second as an
//! update takes all threads together (as measured in the spells with updates, verification going
//! on). The bars: with updates the p50 is within 10 % of the quiet one's, and the p99 no worse than
//! beside the job.
//!
//! Each case is measured in rounds of four spells: quiet, the job, updates, the job again, in an
//! order that changes from round to round. A round gives a ratio: what came later on a machine that
//! grew slower is held against what came later too. The figure is the median of the rounds' ratios,
//! the span beside it is where the true median is with 95 % confidence, and a bar is missed where the
//! whole span is beyond it. The job held against itself shows what the method makes of nothing. A span
//! that is wider than a tenth tells nothing.
//!
//! `held` measures for how long, at a stretch, the worker of the source's runtime does nothing else:
//! not for more than 5 ms in 95 of 100 updates, where it does not without any update too.
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
/// Three updates long.
const SPELL: Duration = Duration::from_millis(300);
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

/// An agent on a thread of its own, and a source on another, as an application has it.
struct Bench {
    agents: tokio::runtime::Runtime,
    _sources: tokio::runtime::Runtime,
    agent: FakeAgent,
    source: JwtSource,
    token: String,
    /// The set and the same with one trust domain's keys, or all but our own, exchanged.
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

    /// Updates whenever it is their turn, until it is over. One replay for all of it: at its end the
    /// agent says its own set again, and the next one would begin with every key new.
    fn updates(&self, sets: &[Set; 2], turns: &Turns) {
        self.agents.block_on(async {
            let replay = self.agent.replay();
            let mut ticks = tokio::time::interval(PERIOD);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut sets = sets.iter().cycle();
            while turns.go_on() {
                ticks.tick().await;
                if turns.now() == Turn::Updates {
                    let set = sets.next().unwrap();
                    replay.send(set.iter().cloned()).await;
                }
            }
        });
    }
}

/// What goes on beside verification.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Quiet,
    Job,
    Updates,
    Over,
}

/// Whose turn it is, and how many steps the job computes in a period.
struct Turns {
    turn: Mutex<Turn>,
    work: AtomicU64,
}

impl Turns {
    fn now(&self) -> Turn {
        *self.turn.lock().unwrap()
    }

    fn go_on(&self) -> bool {
        self.now() != Turn::Over
    }

    fn set(&self, turn: Turn) {
        *self.turn.lock().unwrap() = turn;
    }
}

/// The processor time of this process's threads but this one, as the kernel's scheduler has it.
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

/// Computes in every period of its turn, as much as it is told: not for so long, since others may have
/// the processor meanwhile.
fn job(turns: &Turns) {
    let mut next = Instant::now();
    while turns.go_on() {
        if turns.now() == Turn::Job {
            let mut state = 1_u64;
            for _ in 0..turns.work.load(Ordering::Relaxed) {
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

/// What a spell gave: nanoseconds, and the others' processor time for each period.
#[derive(Clone, Copy)]
struct Spell {
    p50: f64,
    p99: f64,
    others: Duration,
}

/// A spell of verification beside this, begun when it is under way and let run out.
fn spell(turns: &Turns, turn: Turn, times: &mut Vec<u64>, verify: &dyn Fn()) -> Spell {
    turns.set(turn);
    std::thread::sleep(PERIOD);
    times.clear();
    let before = processor_time_of_others();
    let start = Instant::now();
    let mut last = start;
    while last - start < SPELL {
        verify();
        let now = Instant::now();
        times.push((now - last).as_nanos() as u64);
        last = now;
    }
    let others = processor_time_of_others() - before;
    let took = last - start;
    turns.set(Turn::Quiet);
    std::thread::sleep(PERIOD);
    times.sort_unstable();
    let quantile = |q: f64| quantile(times, q);
    Spell {
        p50: quantile(0.5),
        p99: quantile(0.99),
        others: others.mul_f64(PERIOD.as_secs_f64() / took.as_secs_f64()),
    }
}

/// The clock ticks coarsely, so that many times are the same one: each stands for the span around
/// it, and the quantile is where in its span the rank falls.
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

/// The median of some ratios, and between which of them the true one is with 95 % confidence: so
/// many of them from the middle, whatever they are distributed like.
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
        let away = 0.98 * count.sqrt();
        let at = |rank: f64| values[(rank.max(0.0) as usize).min(values.len() - 1)];
        Self {
            low: at((count / 2.0 - away).floor()),
            middle: at((count / 2.0).floor()),
            high: at((count / 2.0 + away).floor()),
        }
    }

    /// What is to be said of a bar.
    fn held_to(&self, bar: f64) -> Verdict {
        if self.low > bar {
            Verdict::Missed
        } else if self.high > bar && self.high - self.low > 0.1 {
            Verdict::TooRestless
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

/// The better ones first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Held,
    TooRestless,
    Missed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::TooRestless => "TOO RESTLESS TO TELL",
            Self::Missed => "MISSED",
        })
    }
}

/// Keeps the job at what an update costs, both by the same clock: the kernel's.
#[derive(Default)]
struct Meter {
    updates: Vec<f64>,
    steps: Vec<f64>,
}

impl Meter {
    fn note(&mut self, turn: Turn, spell: &Spell, work: &AtomicU64) {
        let took = spell.others.as_secs_f64();
        match turn {
            Turn::Updates => self.updates.push(took),
            Turn::Job => self.steps.push(took / work.load(Ordering::Relaxed) as f64),
            Turn::Quiet | Turn::Over => {}
        }
        if !self.updates.is_empty() && !self.steps.is_empty() {
            let middle = |of: &[f64]| Median::of(of.iter().copied()).middle;
            let steps = middle(&self.updates) / middle(&self.steps);
            work.store((steps as u64).max(1), Ordering::Relaxed);
        }
    }
}

/// The spells of a round.
struct Round {
    quiet: Spell,
    jobs: [Spell; 2],
    updates: Spell,
}

impl Round {
    fn measure(nth: usize, mut spell: impl FnMut(Turn) -> Spell) -> Self {
        const ORDER: [Turn; 4] = [Turn::Quiet, Turn::Job, Turn::Updates, Turn::Job];
        let mut of: [Option<Spell>; 4] = [None; 4];
        for step in 0..4 {
            // Round about, and every other time backwards.
            let at = if nth.is_multiple_of(2) {
                nth / 2 + step
            } else {
                nth / 2 + 4 - step
            } % 4;
            of[at] = Some(spell(ORDER[at]));
        }
        let [quiet, job, updates, again] = of.map(Option::unwrap);
        Self {
            quiet,
            jobs: [job, again],
            updates,
        }
    }

    /// Of the two jobs' figures the one in the middle.
    fn job(&self, figure: impl Fn(&Spell) -> f64) -> f64 {
        (figure(&self.jobs[0]) * figure(&self.jobs[1])).sqrt()
    }
}

fn measure(bench: &Bench, name: &str, sets: &[Set; 2], verify: &dyn Fn()) -> Verdict {
    let turns = Turns {
        turn: Mutex::new(Turn::Quiet),
        work: AtomicU64::new(1 << 20),
    };
    let mut times = Vec::with_capacity(1 << 22);
    let rounds: Vec<Round> = std::thread::scope(|scope| {
        scope.spawn(|| bench.updates(sets, &turns));
        scope.spawn(|| job(&turns));
        // The first one brings the keys in; the others show what an update costs, and what a step.
        spell(&turns, Turn::Updates, &mut times, verify);
        let mut meter = Meter::default();
        for turn in [Turn::Updates, Turn::Job] {
            let spell = spell(&turns, turn, &mut times, verify);
            meter.note(turn, &spell, &turns.work);
        }
        let rounds = (0..ROUNDS).map(|nth| {
            Round::measure(nth, |turn| {
                let spell = spell(&turns, turn, &mut times, verify);
                meter.note(turn, &spell, &turns.work);
                spell
            })
        });
        let rounds = rounds.collect();
        turns.set(Turn::Over);
        rounds
    });

    let of = |figure: &dyn Fn(&Round) -> f64| Median::of(rounds.iter().map(figure));
    let millis = |spell: &Spell| spell.others.as_secs_f64() * 1e3;
    let p50 = of(&|round| round.updates.p50 / round.quiet.p50);
    let p99 = of(&|round| round.updates.p99 / round.job(|spell| spell.p99));
    let cost = of(&|round| millis(&round.updates) / round.job(millis));
    let of_itself = of(&|round| round.jobs[0].p99 / round.jobs[1].p99);
    // Beside a job that took less or more, nothing would be shown.
    let beside_the_job = match cost.low <= 1.1 && cost.high >= 0.9 {
        true => p99.held_to(1.0),
        false => Verdict::TooRestless,
    };
    println!(
        "{name}: {:.1} ms of processor time for an update, {cost} of the job's\n    \
         p50 {:.0} ns quiet, {:.0} beside the job, {:.0} with updates; of quiet {p50}: {}\n    \
         p99 {:.0} ns quiet, {:.0} beside the job, {:.0} with updates; of the job {p99}: {}\n    \
         the job's p99 of its own in the same round {of_itself}",
        of(&|round| millis(&round.updates)).middle,
        of(&|round| round.quiet.p50).middle,
        of(&|round| round.job(|spell| spell.p50)).middle,
        of(&|round| round.updates.p50).middle,
        p50.held_to(1.1),
        of(&|round| round.quiet.p99).middle,
        of(&|round| round.job(|spell| spell.p99)).middle,
        of(&|round| round.updates.p99).middle,
        beside_the_job,
    );
    p50.held_to(1.1).max(beside_the_job)
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
        ("nothing changes", &bench.none_changes),
        ("one of 200 trust domains changes", &bench.one_changes),
        ("every key but ours changes", &bench.all_change),
    ] {
        let hit = measure(&bench, &format!("seen before, {what}"), sets, &hit);
        let cold = measure(&bench, &format!("verified anew, {what}"), sets, &cold);
        worst = worst.max(hit).max(cold);
    }
    worst
}

/// For how long nothing else runs on the runtime's only worker, at the most in each update.
fn held() -> Verdict {
    let bench = Bench::start();
    let (told, ready) = mpsc::channel();
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
                told.send(source.clone()).unwrap();
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
        // The other source must not share the cores.
        bench._sources.block_on(bench.source.shutdown());
        let spell = |sets: Option<&[Set; 2]>| -> Vec<f64> {
            let replay = bench.agent.replay();
            let mut worst = Vec::new();
            for n in 0..60 {
                let revision = watched.state().revision();
                longest.store(0, Ordering::Relaxed);
                if let Some(sets) = sets {
                    bench
                        .agents
                        .block_on(replay.send(sets[n % 2].iter().cloned()));
                    while watched.state().revision() == revision {
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
            ("every key but ours changes", Some(&bench.all_change)),
        ] {
            let mut worst = spell(sets);
            worst.sort_by(f64::total_cmp);
            // What takes the processor away from all of us now and then is not ours.
            let most = worst[worst.len() * 95 / 100];
            verdicts.push(match most <= 5.0 {
                true => Verdict::Held,
                false if sets.is_none() || verdicts[0] != Verdict::Held => Verdict::TooRestless,
                false => Verdict::Missed,
            });
            println!(
                "held, {what}: the longest stretch of an update is {:.2} ms in the median, \
                 {most:.2} ms in 95 of 100, {:.2} ms at the worst: {}",
                worst[worst.len() / 2],
                worst[worst.len() - 1],
                verdicts[verdicts.len() - 1],
            );
        }
        done.store(true, Ordering::Relaxed);
        verdicts.into_iter().max().unwrap()
    })
}

/// All of it, or what is asked for by name.
fn main() -> ExitCode {
    let asked_for = |name: &str| {
        let mut filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
        filters.next().is_none_or(|filter| filter == name)
    };
    let mut verdict = Verdict::Held;
    if asked_for("held") {
        verdict = verdict.max(held());
    }
    if asked_for("verification") {
        verdict = verdict.max(verification());
    }
    ExitCode::from(match verdict {
        Verdict::Held => 0,
        Verdict::Missed => 1,
        Verdict::TooRestless => 2,
    })
}
