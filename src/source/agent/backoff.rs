//! How long to wait before the next attempt.

use std::time::Duration;

/// Exponential backoff with full jitter: each wait is drawn from the whole span between the
/// shortest wait and a ceiling that doubles with every attempt, up to the longest.
///
/// All workloads of a node lose their agent at the same moment. Full jitter spreads their
/// reconnections; nearly equal waits would make them all reconnect together.
#[derive(Debug)]
pub(crate) struct Backoff {
    shortest: Duration,
    longest: Duration,
    ceiling: Duration,
    draw: fastrand::Rng,
}

impl Backoff {
    pub(crate) fn new(shortest: Duration, longest: Duration, draw: fastrand::Rng) -> Self {
        // Without a wait, retries would be a storm.
        let shortest = shortest.max(Duration::from_millis(1));
        let longest = longest.max(shortest);
        Self {
            shortest,
            longest,
            ceiling: shortest,
            draw,
        }
    }

    /// Returns another backoff, whose waits begin at half of `first` to `first` and grow to `most`. If
    /// the shortest wait of this one is longer than `first`, that is the shortest there too.
    pub(crate) fn quicker(&mut self, first: Duration, most: Duration) -> Self {
        let shortest = if self.shortest > first {
            self.shortest
        } else {
            first / 2
        };
        let draw = self.draw.fork();
        Self::new(shortest, most, draw)
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        self.ceiling = self.ceiling.saturating_mul(2).min(self.longest);
        self.between(self.shortest)
    }

    /// A long wait, for an error that a retry is unlikely to fix.
    pub(crate) fn next_longest(&mut self) -> Duration {
        self.ceiling = self.longest;
        self.between(self.longest / 2)
    }

    /// Begins from the shortest again.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.shortest;
    }

    /// The longest wait that [`next`](Self::next) may return.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    fn between(&mut self, low: Duration) -> Duration {
        let span = self.ceiling.saturating_sub(low);
        low.saturating_add(span.mul_f64(self.draw.f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(MS(200), MS(10_000), fastrand::Rng::with_seed(seed))
    }

    #[test]
    fn jitter_is_full_and_ceiling_doubles() {
        let mut lowest = [Duration::MAX; 8];
        let mut highest = [Duration::ZERO; 8];
        for seed in 0..2000 {
            let mut backoff = backoff(seed);
            for (low, high) in lowest.iter_mut().zip(&mut highest) {
                let wait = backoff.next();
                *low = wait.min(*low);
                *high = wait.max(*high);
            }
        }
        let ceilings = [400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000].map(MS);
        for ((low, high), ceiling) in lowest.iter().zip(&highest).zip(ceilings) {
            assert!(
                *low >= MS(200) && *high <= ceiling,
                "{low:?} {high:?} {ceiling:?}"
            );
            let span = ceiling - MS(200);
            assert!(
                *low < MS(200) + span / 20,
                "reaches down: {low:?} of {ceiling:?}"
            );
            assert!(
                *high > ceiling - span / 20,
                "reaches up: {high:?} of {ceiling:?}"
            );
        }
    }

    #[test]
    fn same_seed_draws_same_waits() {
        let draw = |seed| {
            let mut backoff = backoff(seed);
            (0..20).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn reset_begins_with_the_shortest_wait() {
        let mut backoff = backoff(1);
        for _ in 0..10 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next() <= MS(400));
        let longest = backoff.next_longest();
        assert!((MS(5000)..=MS(10_000)).contains(&longest), "{longest:?}");
    }

    #[test]
    fn invalid_limits_still_wait() {
        for (shortest, longest) in [(0, 0), (500, 10)] {
            let mut backoff = Backoff::new(MS(shortest), MS(longest), fastrand::Rng::with_seed(1));
            for _ in 0..5 {
                let wait = backoff.next();
                assert!(wait >= MS(1) && wait <= MS(500), "{wait:?}");
            }
        }
    }
}
