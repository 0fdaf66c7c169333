//! Bounds the waits for unknown keys: a number of seats for each trust domain, and a pause after a
//! failed wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::UnknownKeyWait;
use crate::clock::Clock;

pub(crate) struct Room {
    config: UnknownKeyWait,
    clock: Arc<dyn Clock>,
    // By trust domain of the bundle set, while a request waits or no wait may begin.
    corners: Mutex<HashMap<Box<str>, Corner>>,
}

/// The part of the room that is for one trust domain.
#[derive(Default)]
struct Corner {
    seated: usize,
    // The total time of the waits that were cancelled before the key came.
    in_vain: Duration,
    // Until when no wait begins.
    shut_until: Duration,
}

/// A seat in the room, free again when it is dropped.
pub(crate) struct Seat {
    room: Arc<Room>,
    trust_domain: Box<str>,
    since: Duration,
    is_satisfied: bool,
}

impl Room {
    pub(crate) fn new(config: UnknownKeyWait, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            clock,
            corners: Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> &UnknownKeyWait {
        &self.config
    }

    /// Returns a seat, if one is free and no wait for this trust domain has failed recently.
    pub(crate) fn enter(self: &Arc<Self>, trust_domain: &str) -> Option<Seat> {
        let now = self.clock.monotonic();
        let mut corners = self.corners();
        match corners.get_mut(trust_domain) {
            Some(corner) if now < corner.shut_until => return None,
            Some(corner) if corner.seated >= self.config.max_waiting => return None,
            Some(corner) => corner.seated += 1,
            None if self.config.max_waiting == 0 => return None,
            None => {
                corners.retain(|_, corner| corner.seated > 0 || now < corner.shut_until);
                let corner = Corner {
                    seated: 1,
                    ..Corner::default()
                };
                corners.insert(trust_domain.into(), corner);
            }
        }
        drop(corners);
        Some(Seat {
            room: self.clone(),
            trust_domain: trust_domain.into(),
            since: now,
            is_satisfied: false,
        })
    }

    fn corners(&self) -> MutexGuard<'_, HashMap<Box<str>, Corner>> {
        self.corners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The request has a verdict other than unknown key.
    pub(crate) fn satisfied(&mut self) {
        self.is_satisfied = true;
    }

    /// The wait is over, and the key did not come.
    pub(crate) fn in_vain(&self) {
        let now = self.room.clock.monotonic();
        if let Some(corner) = self.room.corners().get_mut(&self.trust_domain) {
            corner.shut(now, &self.room.config);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let now = self.room.clock.monotonic();
        let mut corners = self.room.corners();
        let Some(corner) = corners.get_mut(&self.trust_domain) else {
            return;
        };
        corner.seated = corner.seated.saturating_sub(1);
        if self.is_satisfied {
            corner.in_vain = Duration::ZERO;
        } else if now >= corner.shut_until {
            // A client can hang up and retry at once, so cancelled waits add up to a failed one.
            let sat = now.saturating_sub(self.since);
            corner.in_vain = corner.in_vain.saturating_add(sat);
            if corner.in_vain >= self.room.config.max_wait {
                corner.shut(now, &self.room.config);
            }
        }
    }
}

impl Corner {
    fn shut(&mut self, now: Duration, config: &UnknownKeyWait) {
        self.shut_until = now.saturating_add(config.cool_down);
        self.in_vain = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixTime;

    struct Hand(Mutex<Duration>);

    impl Clock for Hand {
        fn now(&self) -> UnixTime {
            UnixTime::from_secs(0)
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn a23_seats_are_bounded_and_a_failed_wait_pauses() {
        let clock = Arc::new(Hand(Mutex::default()));
        let wait = UnknownKeyWait::new(Duration::from_secs(1)).max_waiting(2);
        let room = Arc::new(Room::new(wait, clock.clone()));

        let first = room.enter("x").unwrap();
        let second = room.enter("x").unwrap();
        assert!(room.enter("x").is_none(), "both seats are taken");
        assert!(room.enter("y").is_some(), "and those of y are not");
        drop(second);
        first.in_vain();
        drop(first);

        assert!(room.enter("x").is_none(), "the door is shut for x");
        assert!(room.enter("y").is_some(), "and not for y");
        *clock.0.lock().unwrap() = Duration::from_secs(10);
        assert!(room.enter("x").is_some());
        // What a trust domain leaves goes when another one comes.
        assert!(room.enter("z").is_some());
        assert_eq!(room.corners().len(), 1);
    }
}
