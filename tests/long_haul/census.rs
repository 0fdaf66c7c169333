//! Counts tasks, connections and file descriptors. Faults must not leak any of them.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::driver::Driver;
use crate::world::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Census {
    pub(crate) tasks: usize,
    pub(crate) connections: u64,
    pub(crate) streams: u64,
    /// Of the whole process; `None` if the system does not report it.
    pub(crate) files: Option<usize>,
}

impl Census {
    pub(crate) fn take(world: &World) -> Self {
        let counts = world.agent.counts();
        Self {
            tasks: tasks(),
            connections: counts.open_connections,
            streams: counts.open_streams,
            files: files(),
        }
    }

    /// Whether there are no more than in `base`, except for tasks of the agent that wait for a key to
    /// expire.
    fn fits(&self, base: &Self, retiring: usize) -> bool {
        self.tasks <= base.tasks + retiring
            && self.connections == base.connections
            && self.streams == base.streams
            && self.files <= base.files
    }
}

pub(crate) fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Open file descriptors of this process.
pub(crate) fn files() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}

/// Returns the resident memory of this process, in KiB.
pub(crate) fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

impl Driver {
    /// Counts while no caller is active, and no dead connection is left at the agent. With `last`, every
    /// task must have ended.
    pub(crate) async fn census(&mut self, last: bool) {
        self.quiet().await;
        let times = self.world.times.clone();
        if last {
            // Until all keys have expired.
            sleep(times.token_life + times.step.end).await;
        }
        let retiring = self.retiring(if last {
            Duration::ZERO
        } else {
            times.token_life + times.step.end
        });
        // Cancelled calls that still run.
        let within = times.call * 2;
        let began = Instant::now();
        loop {
            let now = Census::take(&self.world);
            if now.fits(&self.base, retiring) {
                self.say(format_args!(
                    "left: {} tasks, {} connections",
                    now.tasks, now.connections
                ));
                break;
            }
            if began.elapsed() > within {
                let base = self.base;
                self.world.fail(&format!(
                    "leaked: {now:?}, started with {base:?}, \
                     and {retiring} keys wait for their end at most"
                ));
            }
            sleep(times.poll).await;
        }
        self.check();
        self.world.gate.open();
    }

    /// Waits until no caller is active, and replaces all connections.
    pub(crate) async fn quiet(&mut self) {
        self.world.gate.hold();
        if let Some(eager) = self.eager.take() {
            eager.shutdown().await;
        }
        let times = self.world.times.clone();
        let within = times.call * 8 + times.start;
        let began = Instant::now();
        while self.world.gate.inside() > 0 {
            if began.elapsed() > within {
                self.world.fail("a caller does not finish");
            }
            self.check();
            sleep(times.poll).await;
        }
        self.world.agent.cut_connections().await;
        // Only after the sources have noticed it and reconnected.
        sleep(times.poll).await;
        self.wait_until_up_to_date(times.recovery, times.poll, "connections cut")
            .await;
        let began = Instant::now();
        let sources = self.world.stations.iter().map(|station| &station.source);
        while !sources.clone().all(|source| source.state().connected) {
            if began.elapsed() > times.recovery {
                self.world.fail("a source does not reconnect");
            }
            sleep(times.poll).await;
        }
    }

    /// Returns how many keys were created within this time. Their timers may still run.
    fn retiring(&mut self, within: Duration) -> usize {
        let now = Instant::now();
        let made = self.world.known_keys().1;
        self.made.push((now, made));
        let then = self
            .made
            .iter()
            .rev()
            .find(|(at, _)| now.duration_since(*at) >= within)
            .map_or(0, |(_, made)| *made);
        usize::try_from(made - then).unwrap()
    }
}
