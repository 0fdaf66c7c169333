//! The long haul: everything that an agent can do wrong, in random order, under load; for an hour
//! of paused time over memory, and for a minute of real time over a Unix socket.
//!
//! # What it drives
//!
//! One agent, two sources on it (one with the defaults, one with a grace after a withdrawal and a
//! limit of staleness), and on them some twenty callers at once: clients that sign their requests
//! by every kind of audience, servers that judge them, callers that present tokens of every kind
//! (good, stolen, forged, short-lived), tokens taken past the layers and past the cache, calls that
//! are abandoned, Workload API clients by hand, sources that come and go. Meanwhile `cards.rs` makes
//! trouble: every fault of `testing::FakeAgent` for one call or for all, with every status; dead
//! and cut connections; an agent that goes, comes, restarts; withdrawals; rotations of every kind;
//! keys tainted and revoked, the signing one too; federation; rubbish on the stream; clocks that
//! differ and clocks that step; clients that ping too often.
//!
//! A run is a row of rounds: trouble; its end; all must be well again within the documented time;
//! a count of what is left; a calm stretch in which each change must be taken in promptly.
//!
//! # What must hold
//!
//! - **No revoked key is accepted** once the source has a set without it: `invariants.rs`, at each
//!   verdict, with a cache that knows the token and without. And over a healthy stream the source
//!   has that set promptly: `calm.rs`, by the agent's own books.
//! - **No good token is refused** while its key is served: the same two.
//! - **No request is lost**: each gets its response or a `TokenError` in time, succeeds where a token
//!   was at hand, and carries no expired token: `load.rs`.
//! - **Nothing is left behind**: tasks, connections, file descriptors in `census.rs`, memory here.
//!
//! # To repeat a failure
//!
//! The seed is printed first, and again where an invariant is broken, with the last lines of the log:
//!
//! ```text
//! TOWER_SPIFFE_SEED=7 cargo test --test long_haul -- --nocapture
//! ```
//!
//! In paused time the same seed gives the same log to the last line (a test here); with
//! `TOWER_SPIFFE_LOG=FILE` all of it is appended to a file. In real time the seed decides what is
//! done, and the machine when.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests"
)]

mod calm;
mod cards;
mod census;
mod driver;
mod gate;
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

/// The seed that the environment asks for, or the usual one; said aloud.
fn seed(what: &str) -> u64 {
    let seed = match std::env::var("TOWER_SPIFFE_SEED") {
        Ok(seed) => seed.parse().expect("TOWER_SPIFFE_SEED is a number"),
        Err(_) => SEED,
    };
    eprintln!("long haul, {what}: TOWER_SPIFFE_SEED={seed}");
    seed
}

/// One at a time: file descriptors are the whole process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn paused() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        // Large messages are read there: in the order in which they came.
        .max_blocking_threads(1)
        .start_paused(true)
        .build()
        .unwrap()
}

/// Runs for so long in paused time. Gives what was logged.
fn run_paused(seed: u64, total: Duration) -> Digest {
    // What the crate leaves to chance, it draws from this thread's generator.
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

/// What lives on this thread's heap from round to round stays within what caches may fill and what
/// the issuers keep of their old keys: a leak of some bytes per request is more.
fn stays_small(growth: &[i64], keys: u64) {
    const CACHES: i64 = 256 << 10;
    const KEY: i64 = 3 << 10;
    let grown: i64 = growth.iter().sum();
    let allowed = CACHES + KEY * i64::try_from(keys).unwrap();
    eprintln!("{grown} bytes more on the heap, {allowed} allowed");
    assert!(grown <= allowed, "grown by {grown} bytes: {growth:?}");
}

/// The sources go, then the agent; tasks, connections and files with them.
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
        assert!(began.elapsed() < within, "tasks outlive everything");
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn an_hour_of_paused_time() {
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
    // The first run has filled what is kept per thread and process.
    let left = heap.bytes_current;
    assert!(left < 64 << 10, "{left} bytes outlive everything");
}

#[test]
fn a_minute_of_real_time() {
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
        // It has run on all threads by the end of the first round.
        if let [Some(first), .., Some(last)] = memory[..] {
            eprintln!("{first} KiB in the process after a round, {last} KiB in the end");
            assert!(last < first + (16 << 10), "grown, in KiB: {memory:?}");
        }
        let rounds = driver.rounds;
        let world = driver.finish().await;
        eprintln!("{rounds} rounds: {}", world.tally);
        nothing_is_left(world).await;
        assert_eq!(census::files(), files, "files outlive everything");
    });
}
