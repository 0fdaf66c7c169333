//! The long haul: all faults of an agent in random order, under load. It runs for an hour of paused
//! time in memory, and for a minute of real time over a Unix socket.
//!
//! # What it runs
//!
//! One agent; two sources (one with defaults, one with a delayed withdrawal and `max_staleness`); and
//! about twenty concurrent callers: clients that sign requests with every kind of audience, servers
//! that validate them, callers that send tokens of every kind (valid, stolen, forged, short-lived),
//! tokens fetched without layers and without the cache, cancelled calls, Workload API clients, and
//! sources that start and stop. Meanwhile `incidents.rs` causes incidents: every fault of
//! `testing::FakeAgent` for one call or for all, with every status; dead and cut connections; an agent
//! that stops, starts, restarts; withdrawals; rotations of every kind; keys tainted and revoked,
//! including the signing key; federation; invalid messages on the stream; clock skew and clock steps;
//! clients that ping too often.
//!
//! A run has rounds: incidents; their end; everything must work again within the documented time; a
//! count of resources; a calm phase in which each change must take effect in time.
//!
//! # What must hold
//!
//! - **No revoked key is accepted** once the source has a set without it: `invariants.rs`, for each
//!   validation, with a cache that has the token and without. With a healthy stream the source has
//!   that set in time: `calm.rs` compares it with the agent.
//! - **No valid token is rejected** while its key is published: the same two files.
//! - **No request is lost**: each gets its response or a `TokenError` in time, succeeds if a token was
//!   cached, and sends no expired token: `load.rs`.
//! - **Nothing leaks**: tasks, connections and file descriptors in `census.rs`, memory here.
//!
//! # Repeating a failure
//!
//! The seed is printed first, and again if an invariant is broken, with the last lines of the log:
//!
//! ```text
//! TOWER_SPIFFE_SEED=7 cargo test --test long_haul -- --nocapture
//! ```
//!
//! In paused time the same seed gives the same log, to the last line (tested here). With
//! `TOWER_SPIFFE_LOG=FILE` the whole log is appended to a file. In real time the seed decides the
//! actions, but not their timing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests"
)]

mod calm;
mod census;
mod driver;
mod gate;
mod incidents;
mod invariants;
mod load;
mod log;
mod others;
mod present;
mod tally;
mod times;
mod world;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

use crate::driver::Driver;
use crate::log::Digest;
use crate::times::Times;
use crate::world::World;

const SEED: u64 = 5;

/// Returns the seed from the environment, or the default, and prints it.
fn seed(what: &str) -> u64 {
    let seed = match std::env::var("TOWER_SPIFFE_SEED") {
        Ok(seed) => seed.parse().expect("TOWER_SPIFFE_SEED is a number"),
        Err(_) => SEED,
    };
    eprintln!("long haul, {what}: TOWER_SPIFFE_SEED={seed}");
    seed
}

/// Runs one test at a time, because file descriptors are counted per process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn paused() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        // Large messages are parsed there, in their order.
        .max_blocking_threads(1)
        .start_paused(true)
        .build()
        .unwrap()
}

/// Runs for this long in paused time. Returns the digest of the log.
fn run_paused(seed: u64, total: Duration) -> Digest {
    // The crate's random numbers come from this thread's generator.
    fastrand::seed(seed);
    let runtime = paused();
    let times = Times::paused(total);
    let mut driver = runtime.block_on(async {
        let world = World::build(times, seed, false).await;
        Driver::begin(world).await
    });
    let mut growth = Vec::new();
    let mut done = false;
    while !done {
        let round = allocation_counter::measure(|| done = runtime.block_on(driver.round()));
        growth.push(round.bytes_current);
    }
    runtime.block_on(async {
        let rounds = driver.rounds;
        let world = driver.finish().await;
        let digest = world.log.digest();
        eprintln!("{rounds} rounds, {} lines: {}", digest.lines, world.tally);
        stays_small(&growth, world.known_keys().1);
        nothing_is_left(world).await;
        digest
    })
}

/// Checks that heap growth per round fits caches and old keys of issuers. A leak of some bytes per
/// request would exceed this.
fn stays_small(growth: &[i64], keys: u64) {
    const CACHES: i64 = 256 << 10;
    const KEY: i64 = 3 << 10;
    let grown: i64 = growth.iter().sum();
    let allowed = CACHES + KEY * i64::try_from(keys).unwrap();
    eprintln!("the heap grew by {grown} bytes, {allowed} allowed");
    assert!(grown <= allowed, "grown by {grown} bytes: {growth:?}");
}

/// Drops the sources, then the agent. Tasks, connections and files must end with them.
async fn nothing_is_left(mut world: World) {
    let within = world.times.recovery;
    let last = world.stations.pop().unwrap();
    for station in world.stations.drain(..) {
        station.source.shutdown().await;
    }
    drop(last);
    let began = Instant::now();
    while world.agent.counts().open_connections > 0 || world.agent.counts().open_streams > 0 {
        if began.elapsed() > within {
            let counts = world.agent.counts();
            world.fail(&format!("connections outlive the sources: {counts:?}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
    drop(world);
    let began = Instant::now();
    while census::tasks() > 0 {
        assert!(began.elapsed() < within, "tasks are left");
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn invariants_hold_for_an_hour_of_paused_time() {
    let _alone = alone();
    let seed = seed("an hour of paused time");
    run_paused(seed, Duration::from_secs(3_600));
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let _alone = alone();
    let seed = seed("the same log twice");
    let run = || run_paused(seed, Duration::from_secs(600));
    let first = run();
    let mut second = None;
    let heap = allocation_counter::measure(|| second = Some(run()));
    assert_eq!(Some(first), second, "seed {seed}");
    // The first run allocates per thread and per process.
    let left = heap.bytes_current;
    assert!(left < 64 << 10, "{left} bytes are left");
}

#[test]
fn invariants_hold_for_a_minute() {
    let _alone = alone();
    let seed = seed("a minute of real time");
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let files = census::files();
        let times = Times::real(Duration::from_secs(60));
        let world = World::build(times, seed, true).await;
        let mut driver = Driver::begin(world).await;
        let mut memory = Vec::new();
        let mut done = false;
        while !done {
            done = driver.round().await;
            memory.push(census::memory());
        }
        // All threads have run by the end of the first round.
        if let [Some(first), .., Some(last)] = memory[..] {
            eprintln!("{first} KiB resident after a round, {last} KiB at the end");
            assert!(last < first + (16 << 10), "grown, in KiB: {memory:?}");
        }
        let rounds = driver.rounds;
        let world = driver.finish().await;
        eprintln!("{rounds} rounds: {}", world.tally);
        nothing_is_left(world).await;
        assert_eq!(census::files(), files, "files are left");
    });
}
