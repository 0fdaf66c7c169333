//! The clock of this crate: wall time and monotonic time.
//!
//! Everything in this crate reads the time from a [`Clock`]. A test can pass its own
//! (`testing::PausedClock` follows tokio's paused time), so every rule about time can be tested
//! without waiting.
//!
//! ```
//! use std::time::Duration;
//! use tower_spiffe::clock::{Clock, UnixTime};
//!
//! /// A clock that never advances.
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

/// A clock. Wall time is used for the times of tokens, monotonic time for waits.
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall time. It may step forwards or backwards.
    fn now(&self) -> UnixTime;

    /// Returns the time since a fixed moment of this clock. It never decreases.
    fn monotonic(&self) -> Duration;

    /// Returns both. Override it if reading them together is cheaper.
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

/// The clock of the system.
///
/// [`both`](Clock::both) reads the wall time once per millisecond and thread. In between it adds the
/// monotonic time, so a step of the wall clock is noticed within a millisecond.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// Returns the system clock as a shared handle.
    pub fn shared() -> Arc<dyn Clock> {
        static CLOCK: OnceLock<Arc<dyn Clock>> = OnceLock::new();
        CLOCK.get_or_init(|| Arc::new(SystemClock)).clone()
    }
}

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the system's wall time"
    )]
    fn now(&self) -> UnixTime {
        UnixTime::from(SystemTime::now())
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the system's monotonic time"
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

/// The wall time at a moment of the monotonic clock.
#[derive(Clone, Copy)]
struct WallReading {
    wall: UnixTime,
    monotonic: Duration,
}

impl WallReading {
    /// How long a reading is used.
    const SPAN: Duration = Duration::from_millis(1);

    /// A reading that is never used.
    const NONE: Self = Self {
        wall: UnixTime::MIN,
        monotonic: Duration::MAX,
    };

    /// The wall time at `monotonic`, if this reading is not older than its span.
    #[inline]
    fn wall_at(self, monotonic: Duration) -> Option<UnixTime> {
        let since = monotonic.checked_sub(self.monotonic)?;
        (since < Self::SPAN).then(|| self.wall.saturating_add(since))
    }
}

/// A moment of wall time: seconds since 1970-01-01T00:00:00Z without leap seconds, as a NumericDate
/// (RFC 7519 section 2). It may be before 1970. Arithmetic saturates at both ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime {
    // Rounded down; `nanos` is added, also before 1970.
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

    /// Returns the current wall time of this machine, as [`SystemClock`] reads it.
    ///
    /// Code that takes a [`Clock`] calls [`Clock::now`] instead, so that tests can set the time.
    pub fn now() -> Self {
        SystemClock.now()
    }

    /// Returns this moment as a `SystemTime`, or `None` if the platform's `SystemTime` cannot
    /// represent it. `UnixTime::from` is the other direction.
    ///
    /// ```
    /// use std::time::{Duration, UNIX_EPOCH};
    /// use tower_spiffe::clock::UnixTime;
    ///
    /// let before = UnixTime::new(-2, 500_000_000).to_system_time();
    /// assert_eq!(before, Some(UNIX_EPOCH - Duration::from_millis(1500)));
    /// assert_eq!(before.map(UnixTime::from), Some(UnixTime::new(-2, 500_000_000)));
    /// ```
    pub fn to_system_time(self) -> Option<SystemTime> {
        let whole = Duration::from_secs(self.secs.unsigned_abs());
        let floor = if self.secs < 0 {
            UNIX_EPOCH.checked_sub(whole)
        } else {
            UNIX_EPOCH.checked_add(whole)
        };
        floor?.checked_add(Duration::from_nanos(self.nanos.into()))
    }

    /// Creates the moment this many whole seconds after 1970, or before it if negative.
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }

    /// Creates the moment `secs` + `nanos`. Nanoseconds of a second or more saturate just below the next
    /// second.
    pub const fn new(secs: i64, nanos: u32) -> Self {
        Self {
            secs,
            nanos: if nanos < NANOS { nanos } else { NANOS - 1 },
        }
    }

    /// Creates the moment of a NumericDate with a fraction; beyond `i64` it saturates. `None` if the
    /// number is not finite.
    pub fn from_secs_f64(secs: f64) -> Option<Self> {
        if !secs.is_finite() {
            return None;
        }
        let floor = secs.floor();
        // `as` saturates, as intended.
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

    /// Returns the whole seconds since 1970, rounded down.
    pub const fn secs(self) -> i64 {
        self.secs
    }

    /// Returns the nanoseconds after [`secs`](Self::secs).
    pub const fn subsec_nanos(self) -> u32 {
        self.nanos
    }

    /// Returns the moment `duration` later.
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

    /// Returns the moment `duration` earlier.
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

    /// Returns how long this is after `earlier`; zero if it is not later. Saturates.
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

/// Writes the seconds since 1970, with a fraction only if there is one.
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
    fn a24_fractions_are_kept_and_extremes_saturate() {
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
    fn wall_reading_is_used_for_a_millisecond() {
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
    fn both_matches_the_separate_clocks() {
        for _ in 0..1000 {
            let (before, began) = (SystemClock.now(), SystemClock.monotonic());
            let (wall, monotonic) = SystemClock.both();
            assert!(began <= monotonic && monotonic <= SystemClock.monotonic());
            // The two clocks of a system may drift apart a little within the millisecond.
            let drift = Duration::from_micros(100);
            assert!(wall.saturating_add(drift) >= before, "{wall} {before}");
            assert!(wall <= SystemClock.now().saturating_add(drift));
        }
    }

    #[test]
    fn a24_system_time_before_1970_is_converted() {
        let before = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(UnixTime::from(before), UnixTime::new(-2, 500_000_000));
    }
}
