//! Deadlines in a coarse wheel: 16 ms a tick, looked at once per loop turn.
//!
//! Every place of the slabs has one deadline, which outlives the object in the place. Moving a
//! deadline later, which every request does, costs one store: the entry in the wheel stays where it
//! is and is put back when it comes up early. So there is never more than one entry that counts per
//! place, however many objects come and go in it.
//! Time is the caller's: milliseconds since any fixed moment.

use std::collections::BTreeMap;

const TICK_MS: u64 = 16;

/// A place that can have a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Downstream(usize),
    Exchange(usize),
    Leg(usize),
    Upstream(usize),
}

/// All deadlines of a worker.
#[derive(Default)]
pub(crate) struct Timers {
    ticks: BTreeMap<u64, Vec<Key>>,
    places: [Vec<Place>; 4],
}

/// `deadline_ms` 0 is "none"; `scheduled_tick` is where the entry that counts lies, 0 for none.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    deadline_ms: u64,
    scheduled_tick: u64,
}

impl Timers {
    /// Sets the deadline of a place, in place of any earlier one.
    pub(crate) fn arm(&mut self, key: Key, deadline_ms: u64) {
        let place = self.place(key);
        place.deadline_ms = deadline_ms.max(1);
        let tick = tick_of(deadline_ms);
        if place.scheduled_tick == 0 || tick < place.scheduled_tick {
            place.scheduled_tick = tick;
            self.ticks.entry(tick).or_default().push(key);
        }
    }

    /// Takes the deadline away.
    pub(crate) fn disarm(&mut self, key: Key) {
        self.place(key).deadline_ms = 0;
    }

    /// Milliseconds from `now_ms` until the wheel must be looked at again.
    pub(crate) fn next_in(&self, now_ms: u64) -> Option<u64> {
        let (tick, _) = self.ticks.first_key_value()?;
        Some((tick * TICK_MS).saturating_sub(now_ms))
    }

    /// Takes a place whose deadline has passed; its deadline is gone then.
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<Key> {
        while let Some((tick, key)) = self.pop_entry(now_ms) {
            let place = self.place(key);
            if place.scheduled_tick != tick {
                continue;
            }
            place.scheduled_tick = 0;
            let deadline_ms = place.deadline_ms;
            if deadline_ms == 0 {
                continue;
            }
            if tick_of(deadline_ms) * TICK_MS > now_ms {
                self.arm(key, deadline_ms);
                continue;
            }
            place.deadline_ms = 0;
            return Some(key);
        }
        None
    }

    fn pop_entry(&mut self, now_ms: u64) -> Option<(u64, Key)> {
        let mut first = self.ticks.first_entry()?;
        let tick = *first.key();
        if tick * TICK_MS > now_ms {
            return None;
        }
        let key = first
            .get_mut()
            .pop()
            .expect("no tick is kept without entries");
        if first.get().is_empty() {
            first.remove();
        }
        Some((tick, key))
    }

    fn place(&mut self, key: Key) -> &mut Place {
        let (kind, index) = match key {
            Key::Downstream(index) => (0, index),
            Key::Exchange(index) => (1, index),
            Key::Leg(index) => (2, index),
            Key::Upstream(index) => (3, index),
        };
        let places = &mut self.places[kind];
        if places.len() <= index {
            places.resize(index + 1, Place::default());
        }
        &mut places[index]
    }
}

/// The first tick that lies wholly behind `deadline_ms`; never 0, which means "none".
fn tick_of(deadline_ms: u64) -> u64 {
    deadline_ms / TICK_MS + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = Key::Downstream(0);
    const B: Key = Key::Upstream(3);

    fn fire(timers: &mut Timers, now_ms: u64) -> Vec<Key> {
        std::iter::from_fn(|| timers.pop(now_ms)).collect()
    }

    #[test]
    fn never_fires_early_and_fires_within_two_ticks() {
        let mut timers = Timers::default();
        timers.arm(A, 1_000);
        assert!(fire(&mut timers, 999).is_empty());
        assert_eq!(fire(&mut timers, 1_000 + 2 * TICK_MS), [A]);
    }

    #[test]
    fn a_deadline_moved_later_fires_once_at_the_later_time() {
        let mut timers = Timers::default();
        for deadline in [1_000, 2_000, 3_000] {
            timers.arm(A, deadline);
        }
        assert!(fire(&mut timers, 2_900).is_empty());
        assert_eq!(fire(&mut timers, 3_100), [A]);
        assert!(fire(&mut timers, 9_000).is_empty());
    }

    #[test]
    fn a_deadline_moved_earlier_fires_once_at_the_earlier_time() {
        let mut timers = Timers::default();
        timers.arm(A, 5_000);
        timers.arm(A, 100);
        assert_eq!(fire(&mut timers, 200), [A]);
        assert!(fire(&mut timers, 9_000).is_empty());
    }

    #[test]
    fn a_disarmed_place_stays_silent_and_can_be_armed_again() {
        let mut timers = Timers::default();
        timers.arm(A, 100);
        timers.arm(B, 100);
        timers.disarm(A);
        assert_eq!(fire(&mut timers, 200), [B]);
        timers.arm(A, 300);
        assert_eq!(fire(&mut timers, 400), [A]);
    }

    #[test]
    fn a_place_never_has_more_than_one_entry_that_counts() {
        let mut timers = Timers::default();
        for request in 0..10_000 {
            timers.arm(A, 300_000 + request);
            timers.disarm(A);
        }
        assert_eq!(timers.ticks.values().map(Vec::len).sum::<usize>(), 1);
    }
}
