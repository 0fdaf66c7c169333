//! Time, handed in: one clock for the wall and the monotonic time of everything in this crate.
//!
//! Nothing here reads the machine's time by itself. A test hands in a clock that it moves
//! (`testing::PausedClock` follows tokio's paused time), so every rule about time can be tested
//! without waiting.
//!
//! ```
//! use std::time::Duration;
//! use tower_spiffe::clock::{Clock, UnixTime};
//!
//! /// A clock that stands still.
//! struct Still;
//! impl Clock for Still {
//!     fn now(&self) -> UnixTime { UnixTime::from_secs(1_790_000_000) }
//!     fn monotonic(&self) -> Duration { Duration::ZERO }
//! }
//!
//! let later = Still.now().saturating_add(Duration::from_millis(1500));
//! assert_eq!((later.secs(), later.subsec_nanos()), (1_790_000_001, 500_000_000));
//! ```

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock: the wall's time, by which tokens live, and a monotonic one, by which waits end.
pub trait Clock: Send + Sync + 'static {
    /// The wall's time. It may step, backwards too.
    fn now(&self) -> UnixTime;

    /// The time since some fixed moment of this clock's own; it never goes backwards.
    fn monotonic(&self) -> Duration;

    /// Both at once: for a clock that has them cheaper together than one by one.
    fn both(&self) -> (UnixTime, Duration) {
        (self.now(), self.monotonic())
    }
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> UnixTime {
        (**self).now()
    }

    fn monotonic(&self) -> Duration {
        (**self).monotonic()
    }

    fn both(&self) -> (UnixTime, Duration) {
        (**self).both()
    }
}

/// The machine's own clock.
///
/// [`both`](Clock::both) reads the wall's time once a millisecond and thread, and counts on from
/// there by the monotonic clock in between: a wall that steps is noticed a millisecond later.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// The machine's clock, shared.
    pub fn shared() -> Arc<dyn Clock> {
        static CLOCK: OnceLock<Arc<dyn Clock>> = OnceLock::new();
        CLOCK.get_or_init(|| Arc::new(SystemClock)).clone()
    }
}

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's wall time"
    )]
    fn now(&self) -> UnixTime {
        UnixTime::from(SystemTime::now())
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's monotonic time"
    )]
    fn monotonic(&self) -> Duration {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let origin = *ORIGIN.get_or_init(Instant::now);
        Instant::now().saturating_duration_since(origin)
    }

    fn both(&self) -> (UnixTime, Duration) {
        thread_local! {
            static WALL: Cell<WallReading> = const { Cell::new(WallReading::NONE) };
        }
        let monotonic = self.monotonic();
        let wall = WALL.try_with(|reading| {
            reading.get().wall_at(monotonic).unwrap_or_else(|| {
                let wall = self.now();
                reading.set(WallReading { wall, monotonic });
                wall
            })
        });
        (wall.unwrap_or_else(|_| self.now()), monotonic)
    }
}

/// What the wall's clock said when the monotonic one said something.
#[derive(Clone, Copy)]
struct WallReading {
    wall: UnixTime,
    monotonic: Duration,
}

impl WallReading {
    /// How long one is good for.
    const SPAN: Duration = Duration::from_millis(1);

    /// One that is good for no time.
    const NONE: Self = Self {
        wall: UnixTime::MIN,
        monotonic: Duration::MAX,
    };

    /// The wall's time at `monotonic`, where this is no older than its span.
    #[inline]
    fn wall_at(self, monotonic: Duration) -> Option<UnixTime> {
        let since = monotonic.checked_sub(self.monotonic)?;
        (since < Self::SPAN).then(|| self.wall.saturating_add(since))
    }
}

/// A moment of wall time: seconds since 1970-01-01T00:00:00Z, leap seconds left out, as a
/// NumericDate counts them (RFC 7519 section 2). Saturates at both ends; may lie before 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime {
    // Floored; `nanos` counts upwards from it, before 1970 too.
    secs: i64,
    nanos: u32,
}

const NANOS: u32 = 1_000_000_000;

impl UnixTime {
    /// The earliest moment.
    pub const MIN: Self = Self {
        secs: i64::MIN,
        nanos: 0,
    };
    /// The latest moment.
    pub const MAX: Self = Self {
        secs: i64::MAX,
        nanos: NANOS - 1,
    };

    /// The moment this many whole seconds after 1970 (before it, where negative).
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }

    /// The moment `secs` + `nanos`; nanoseconds of a second or more saturate just below the next.
    pub const fn new(secs: i64, nanos: u32) -> Self {
        Self {
            secs,
            nanos: if nanos < NANOS { nanos } else { NANOS - 1 },
        }
    }

    /// The moment of a NumericDate with a fraction, uncut; beyond `i64` it saturates.
    /// `None` for what is not a finite number.
    pub fn from_secs_f64(secs: f64) -> Option<Self> {
        if !secs.is_finite() {
            return None;
        }
        let floor = secs.floor();
        // `as` saturates, which is what is wanted here.
        let whole = floor as i64;
        if floor >= i64::MAX as f64 {
            return Some(Self::MAX);
        }
        if floor < i64::MIN as f64 {
            return Some(Self::MIN);
        }
        let nanos = ((secs - floor) * f64::from(NANOS)) as u32;
        Some(Self::new(whole, nanos))
    }

    /// Whole seconds since 1970, rounded down.
    pub const fn secs(self) -> i64 {
        self.secs
    }

    /// Nanoseconds past [`secs`](Self::secs).
    pub const fn subsec_nanos(self) -> u32 {
        self.nanos
    }

    /// This moment and `duration` more.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = self.nanos + duration.subsec_nanos();
        let carry = i64::from(nanos >= NANOS);
        match i64::try_from(duration.as_secs())
            .ok()
            .and_then(|secs| self.secs.checked_add(secs))
            .and_then(|secs| secs.checked_add(carry))
        {
            Some(secs) => Self {
                secs,
                nanos: nanos % NANOS,
            },
            None => Self::MAX,
        }
    }

    /// This moment, `duration` earlier.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let borrow = i64::from(self.nanos < duration.subsec_nanos());
        let nanos = (self.nanos + NANOS - duration.subsec_nanos()) % NANOS;
        match i64::try_from(duration.as_secs())
            .ok()
            .and_then(|secs| self.secs.checked_sub(secs))
            .and_then(|secs| secs.checked_sub(borrow))
        {
            Some(secs) => Self { secs, nanos },
            None => Self::MIN,
        }
    }

    /// How long after `earlier` this is; zero where it is not after it. Saturates.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        if self <= earlier {
            return Duration::ZERO;
        }
        let secs = i128::from(self.secs) - i128::from(earlier.secs);
        let nanos = secs * i128::from(NANOS) + i128::from(self.nanos) - i128::from(earlier.nanos);
        let whole = u64::try_from(nanos / i128::from(NANOS)).unwrap_or(u64::MAX);
        let rest = u32::try_from(nanos % i128::from(NANOS)).unwrap_or(0);
        Duration::new(whole, rest)
    }
}

impl From<SystemTime> for UnixTime {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self::from_secs(0).saturating_add(since),
            Err(before) => Self::from_secs(0).saturating_sub(before.duration()),
        }
    }
}

impl fmt::Debug for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Seconds since 1970, with a fraction only where there is one.
impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            write!(f, "{}", self.secs)
        } else {
            let total = i128::from(self.secs) * i128::from(NANOS) + i128::from(self.nanos);
            let sign = if total < 0 { "-" } else { "" };
            let total = total.unsigned_abs();
            let nanos = u128::from(NANOS);
            write!(f, "{sign}{}.{:09}", total / nanos, total % nanos)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_carries_and_saturates() {
        let t = UnixTime::new(-1, 999_999_999);
        assert_eq!(
            t.saturating_add(Duration::from_nanos(1)),
            UnixTime::from_secs(0)
        );
        assert_eq!(
            UnixTime::from_secs(0).saturating_sub(Duration::from_nanos(1)),
            t
        );
        assert_eq!(t.to_string(), "-0.000000001");
        assert_eq!(UnixTime::MAX.saturating_add(Duration::MAX), UnixTime::MAX);
        assert_eq!(
            UnixTime::MIN.saturating_sub(Duration::from_secs(1)),
            UnixTime::MIN
        );
        assert_eq!(
            UnixTime::from_secs(0).saturating_sub(Duration::MAX),
            UnixTime::MIN
        );
        assert_eq!(
            UnixTime::MAX.saturating_since(UnixTime::MIN).as_secs(),
            u64::MAX
        );
        assert_eq!(
            UnixTime::MIN.saturating_since(UnixTime::MAX),
            Duration::ZERO
        );
    }

    #[test]
    fn a24_a_fraction_is_kept_and_the_far_saturates() {
        assert_eq!(
            UnixTime::from_secs_f64(1.5),
            Some(UnixTime::new(1, 500_000_000))
        );
        assert_eq!(
            UnixTime::from_secs_f64(-1.5),
            Some(UnixTime::new(-2, 500_000_000))
        );
        assert_eq!(UnixTime::from_secs_f64(1e300), Some(UnixTime::MAX));
        assert_eq!(UnixTime::from_secs_f64(-1e300), Some(UnixTime::MIN));
        assert_eq!(UnixTime::from_secs_f64(f64::INFINITY), None);
        assert_eq!(UnixTime::from_secs_f64(f64::NAN), None);
    }

    #[test]
    fn a_wall_reading_is_good_for_a_millisecond() {
        let at = Duration::from_secs(7);
        let reading = WallReading {
            wall: UnixTime::from_secs(100),
            monotonic: at,
        };
        let within = Duration::from_nanos(999_999);
        assert_eq!(reading.wall_at(at), Some(UnixTime::from_secs(100)));
        assert_eq!(
            reading.wall_at(at + within),
            Some(UnixTime::new(100, 999_999))
        );
        assert_eq!(reading.wall_at(at + Duration::from_millis(1)), None);
        assert_eq!(reading.wall_at(at - Duration::from_nanos(1)), None);
        assert_eq!(WallReading::NONE.wall_at(at), None);
        assert_eq!(WallReading::NONE.wall_at(Duration::ZERO), None);
    }

    #[test]
    fn both_clocks_of_the_machine_tell_what_each_tells() {
        for _ in 0..1000 {
            let (before, began) = (SystemClock.now(), SystemClock.monotonic());
            let (wall, monotonic) = SystemClock.both();
            assert!(began <= monotonic && monotonic <= SystemClock.monotonic());
            // The two clocks of a machine may drift apart a little within the millisecond.
            let drift = Duration::from_micros(100);
            assert!(wall.saturating_add(drift) >= before, "{wall} {before}");
            assert!(wall <= SystemClock.now().saturating_add(drift));
        }
    }

    #[test]
    fn a24_a_machine_clock_before_1970_is_told() {
        let before = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(UnixTime::from(before), UnixTime::new(-2, 500_000_000));
    }
}
