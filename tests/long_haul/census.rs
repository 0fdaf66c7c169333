//! What is there: tasks, connections, file descriptors. Nothing of a trouble stays behind.

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
    /// Of the whole process; `None` where the machine does not tell.
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

    /// No more than there was, but for so many tasks of the agent's own that wait for the end of a
    /// key.
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

/// What this process has of the machine's memory, in KiB.
pub(crate) fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

impl Driver {
    /// Counts; with nobody at work, and no dead connection left at the agent's side. Where `last`,
    /// to the last task.
    pub(crate) async fn census(&mut self, last: bool) {
        self.quiet().await;
        let times = self.world.times.clone();
        if last {
            // Until every key's end has come.
            sleep(times.token_life + times.step.end).await;
        }
        let retiring = self.retiring(if last {
            Duration::ZERO
        } else {
            times.token_life + times.step.end
        });
        // Calls under way that nobody waits for any more.
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
                    "something stayed behind: {now:?}, where there was {base:?}, \
                     and {retiring} keys wait for their end at most"
                ));
            }
            sleep(times.poll).await;
        }
        self.check();
        self.world.gate.open();
    }

    /// Nobody is at work any more, and the connections are new.
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
                self.world.fail("a caller does not come to an end");
            }
            self.check();
            sleep(times.poll).await;
        }
        self.world.agent.cut_connections().await;
        // Not before the sources have learnt of it, and are back.
        sleep(times.poll).await;
        self.taken_in_within(times.recovery, times.poll, "connections cut")
            .await;
        let began = Instant::now();
        let sources = self.world.stations.iter().map(|station| &station.source);
        while !sources.clone().all(|source| source.state().is_connected()) {
            if began.elapsed() > times.recovery {
                self.world.fail("a source does not connect again");
            }
            sleep(times.poll).await;
        }
    }

    /// How many keys were made within this time: their timers may still run.
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
