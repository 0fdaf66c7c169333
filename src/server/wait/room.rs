//! The waiting room: so many seats, and a door that stays shut for a while after a wait in vain.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::UnknownKeyWait;
use crate::clock::Clock;

pub(crate) struct Room {
    config: UnknownKeyWait,
    clock: Arc<dyn Clock>,
    seated: AtomicUsize,
    // Until when no wait begins, by trust domain: those of the bundle set only.
    shut: Mutex<HashMap<Box<str>, Duration>>,
}

/// A seat in the room, free again when it is dropped.
pub(crate) struct Seat {
    room: Arc<Room>,
    trust_domain: Box<str>,
}

impl Room {
    pub(crate) fn new(config: UnknownKeyWait, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            clock,
            seated: AtomicUsize::new(0),
            shut: Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> &UnknownKeyWait {
        &self.config
    }

    /// A seat, where there is one and the last wait for this trust domain was not just in vain.
    pub(crate) fn enter(self: &Arc<Self>, trust_domain: &str) -> Option<Seat> {
        let now = self.clock.monotonic();
        {
            let shut = self.shut.lock().unwrap_or_else(PoisonError::into_inner);
            if shut.get(trust_domain).is_some_and(|until| now < *until) {
                return None;
            }
        }
        let free = |seated| (seated < self.config.max_waiting).then_some(seated + 1);
        self.seated
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free)
            .ok()?;
        Some(Seat {
            room: self.clone(),
            trust_domain: trust_domain.into(),
        })
    }
}

impl Seat {
    /// The wait is over, and the key did not come.
    pub(crate) fn in_vain(&self) {
        let now = self.room.clock.monotonic();
        let until = now.saturating_add(self.room.config.cool_down);
        let mut shut = self
            .room
            .shut
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shut.retain(|_, until| now < *until);
        shut.insert(self.trust_domain.clone(), until);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.seated.fetch_sub(1, Ordering::Relaxed);
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
    fn a23_seats_are_bounded_and_the_door_stays_shut_after_a_wait_in_vain() {
        let clock = Arc::new(Hand(Mutex::default()));
        let wait = UnknownKeyWait::new(Duration::from_secs(1)).max_waiting(2);
        let room = Arc::new(Room::new(wait, clock.clone()));

        let first = room.enter("x").unwrap();
        let second = room.enter("y").unwrap();
        assert!(room.enter("x").is_none(), "both seats are taken");
        drop(second);
        first.in_vain();
        drop(first);

        assert!(room.enter("x").is_none(), "the door is shut for x");
        assert!(room.enter("y").is_some(), "and not for y");
        *clock.0.lock().unwrap() = Duration::from_secs(10);
        assert!(room.enter("x").is_some());
        assert_eq!(room.seated.load(Ordering::Relaxed), 0);
    }
}
