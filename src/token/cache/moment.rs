//! A point in time on both clocks. It is reached as soon as either clock reaches it.

use std::time::Duration;

use crate::clock::{Clock, UnixTime};

/// A moment on both clocks, in nanoseconds; saturates.
///
/// The wall clock may step, and the monotonic clock may stop while the machine sleeps. So a
/// deadline is kept on both, and is [`reached`](Self::reached) as soon as either clock reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    wall: i64,
    mono: u64,
}

impl Moment {
    pub(crate) fn now(clock: &dyn Clock) -> Self {
        let (wall, monotonic) = clock.both();
        Self {
            wall: wall_nanos(wall),
            mono: nanos(monotonic),
        }
    }

    pub(crate) fn mono(self) -> u64 {
        self.mono
    }

    pub(crate) fn plus(self, more: Duration) -> Self {
        let more = nanos(more);
        Self {
            wall: self.wall.saturating_add_unsigned(more),
            mono: self.mono.saturating_add(more),
        }
    }

    pub(crate) fn minus(self, less: Duration) -> Self {
        let less = nanos(less);
        Self {
            wall: self.wall.saturating_sub_unsigned(less),
            mono: self.mono.saturating_sub(less),
        }
    }

    /// Returns this moment with the earlier of both monotonic times.
    pub(crate) fn no_later_than(self, mono: u64) -> Self {
        Self {
            mono: self.mono.min(mono),
            ..self
        }
    }

    #[inline]
    pub(crate) fn reached(self, now: Self) -> bool {
        now.wall >= self.wall || now.mono >= self.mono
    }

    /// Whether either clock is within this many nanoseconds of it.
    #[inline]
    pub(crate) fn reached_within(self, nanos: u64, now: Self) -> bool {
        let before = Self {
            wall: self.wall.saturating_sub_unsigned(nanos),
            mono: self.mono.saturating_sub(nanos),
        };
        before.reached(now)
    }

    /// The time until either clock reaches it.
    pub(crate) fn until(self, now: Self) -> Duration {
        let wall = u64::try_from(self.wall.saturating_sub(now.wall)).unwrap_or(0);
        Duration::from_nanos(wall.min(self.mono.saturating_sub(now.mono)))
    }

    /// The time since `wall` on the wall clock.
    pub(crate) fn since_wall(self, wall: UnixTime) -> Duration {
        let since = self.wall.saturating_sub(wall_nanos(wall));
        Duration::from_nanos(u64::try_from(since).unwrap_or(0))
    }

    /// Returns the moment at which the wall clock shows `wall`.
    pub(crate) fn at_wall(self, wall: UnixTime) -> Self {
        let wall = wall_nanos(wall);
        let ahead = wall.saturating_sub(self.wall);
        Self {
            wall,
            mono: self.mono.saturating_add_signed(ahead),
        }
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn wall_nanos(time: UnixTime) -> i64 {
    time.secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(time.subsec_nanos()))
}
