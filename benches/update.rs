//! What verification costs while bundles are exchanged: 200 trust domains with ten P-256 keys each,
//! ten times a second.
//!
//! Each case is measured in rounds of three spells: quiet; beside a thread that only computes, for
//! as long in every tenth of a second as an update takes all threads together; and with updates.
//! The figures are medians over the rounds of a spell's p50 and p99. An update takes processor time
//! from whoever shares the cores, whatever it does; what it does to verification beyond that is
//! the second ratio.
//!
//! `held` measures for how long, at a stretch, the worker of the source's runtime does nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tower_spiffe::testing::{Issuer, WorkloadApi};
use tower_spiffe::{Algorithm, JwtSource, Validator};

const TD: &str = "example.org";
const AUDIENCE: &str = "spiffe://example.org/db";
const DOMAINS: usize = 200;
const KEYS: usize = 10;
const PERIOD: Duration = Duration::from_millis(100);
const SPELL: Duration = Duration::from_millis(500);
const ROUNDS: usize = 15;

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
    agent: WorkloadApi,
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
        let agent = agents.block_on(WorkloadApi::start(TD)).unwrap();
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

    /// Updates until `done`; how many.
    fn updates(&self, sets: &[Set; 2], done: &AtomicBool) -> u64 {
        self.agents.block_on(async {
            let replay = self.agent.replay();
            let mut ticks = tokio::time::interval(PERIOD);
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                ticks.tick().await;
                let set = &sets[usize::try_from(sent % 2).unwrap()];
                replay.send(set.iter().cloned()).await;
                sent += 1;
            }
            sent
        })
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

/// Computes for so long in every period, until `done`.
fn job(share: Duration, done: &AtomicBool) {
    let mut next = Instant::now();
    while !done.load(Ordering::Relaxed) {
        let end = Instant::now() + share;
        let mut state = 1_u64;
        while Instant::now() < end {
            for _ in 0..1000 {
                state = black_box(state.wrapping_mul(6_364_136_223_846_793_005) + 1);
            }
        }
        next += PERIOD;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// The p50 and p99 of a spell, in nanoseconds.
fn spell(verify: &dyn Fn()) -> [f64; 2] {
    let mut times = Vec::with_capacity(1 << 22);
    let start = Instant::now();
    let mut last = start;
    while last - start < SPELL {
        verify();
        let now = Instant::now();
        times.push((now - last).as_nanos() as u64);
        last = now;
    }
    times.sort_unstable();
    [0.5, 0.99].map(|q| times[(times.len() as f64 * q) as usize] as f64)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn measure(bench: &Bench, name: &str, sets: &[Set; 2], verify: &dyn Fn()) {
    // What an update costs all threads together, with nobody verifying.
    let done = AtomicBool::new(false);
    let cost = std::thread::scope(|scope| {
        let updates = scope.spawn(|| bench.updates(sets, &done));
        std::thread::sleep(SPELL);
        let before = processor_time_of_others();
        std::thread::sleep(4 * SPELL);
        let took = processor_time_of_others() - before;
        done.store(true, Ordering::Relaxed);
        updates.join().unwrap();
        took.mul_f64(PERIOD.as_secs_f64() / (4 * SPELL).as_secs_f64())
    });
    let mut rounds: [Vec<[f64; 2]>; 3] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(spell(verify));
        for (at, updating) in [(1, false), (2, true)] {
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| match updating {
                    true => drop(bench.updates(sets, &done)),
                    false => job(cost, &done),
                });
                std::thread::sleep(PERIOD);
                rounds[at].push(spell(verify));
                done.store(true, Ordering::Relaxed);
            });
        }
    }
    let figure = |at: usize, q: usize| median(rounds[at].iter().map(|spell| spell[q]).collect());
    let ratio = |at: usize, to: usize, q: usize| {
        let pairs = rounds[at].iter().zip(&rounds[to]);
        median(pairs.map(|(a, b)| a[q] / b[q]).collect())
    };
    println!(
        "{name}: an update costs {:.1} ms of processor time\n    \
         p50 {:.0} ns quiet, {:.0} beside the job, {:.0} with updates: {:.3} of quiet, {:.3} of the job\n    \
         p99 {:.0} ns quiet, {:.0} beside the job, {:.0} with updates: {:.3} of quiet, {:.3} of the job",
        cost.as_secs_f64() * 1e3,
        figure(0, 0),
        figure(1, 0),
        figure(2, 0),
        ratio(2, 0, 0),
        ratio(2, 1, 0),
        figure(0, 1),
        figure(1, 1),
        figure(2, 1),
        ratio(2, 0, 1),
        ratio(2, 1, 1),
    );
}

fn verification(_: &mut Criterion) {
    if !asked_for("verification") {
        return;
    }
    let bench = Bench::start();
    let validator = Validator::builder(bench.source.clone());
    let validator = validator.audience(AUDIENCE).build().unwrap();
    let fresh = Validator::builder(bench.source.clone()).audience(AUDIENCE);
    let fresh = fresh.no_cache().build().unwrap();
    let hit = || drop(black_box(validator.validate(&bench.token).unwrap()));
    let cold = || drop(black_box(fresh.validate(&bench.token).unwrap()));
    for (what, sets) in [
        ("nothing changes", &bench.none_changes),
        ("one of 200 trust domains changes", &bench.one_changes),
        ("every key but ours changes", &bench.all_change),
    ] {
        measure(&bench, &format!("seen before, {what}"), sets, &hit);
        measure(&bench, &format!("verified anew, {what}"), sets, &cold);
    }
}

/// For how long nothing else runs on the runtime's only worker, at the most in each spell.
fn held(_: &mut Criterion) {
    if !asked_for("held") {
        return;
    }
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
        for (what, sets) in [
            ("no update", None),
            ("one trust domain changes", Some(&bench.one_changes)),
            ("every key but ours changes", Some(&bench.all_change)),
        ] {
            let mut worst = spell(sets);
            worst.sort_by(f64::total_cmp);
            println!(
                "held, {what}: the longest stretch of an update is {:.2} ms in the median, \
                 {:.2} ms at the worst",
                worst[worst.len() / 2],
                worst[worst.len() - 1],
            );
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Not criterion's figures: run when all are, or when asked for by name.
fn asked_for(name: &str) -> bool {
    let mut filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    filters.next().is_none_or(|filter| filter == name)
}

criterion_group!(benches, verification, held);
criterion_main!(benches);
