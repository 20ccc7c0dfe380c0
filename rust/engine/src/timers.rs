//! Deadlines in a coarse wheel: 16 ms a tick, looked at once per loop turn.
//!
//! Every place of the slabs has one deadline: of whoever armed it last. Moving a deadline later, which
//! every request does, costs a store or two: the entry in the wheel stays where it is and is put back
//! when it comes up early. So there is never more than one entry that counts per place, however many
//! objects come and go in it.
//! Time is the caller's: milliseconds since any fixed moment.

use std::collections::BTreeMap;

use crate::slab::place_of;

const TICK_MS: u64 = 16;

/// Who can have a deadline: a number of one of the slabs.
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

/// `deadline_ms` 0 is "none"; `scheduled_tick` is where the entry that counts lies, 0 for none. An entry
/// may be of an earlier owner, so who is meant stands here: `owner`, who armed it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    deadline_ms: u64,
    scheduled_tick: u64,
    owner: usize,
}

impl Timers {
    /// Sets a deadline, in place of any earlier one.
    pub(crate) fn arm(&mut self, key: Key, deadline_ms: u64) {
        let place = self.place(key);
        place.owner = key.number();
        place.deadline_ms = deadline_ms.max(1);
        let tick = tick_of(deadline_ms);
        if place.scheduled_tick == 0 || tick < place.scheduled_tick {
            place.scheduled_tick = tick;
            self.ticks.entry(tick).or_default().push(key);
        }
    }

    /// Takes the deadline away.
    pub(crate) fn disarm(&mut self, key: Key) {
        let place = self.place(key);
        if place.owner == key.number() {
            place.deadline_ms = 0;
        }
    }

    #[cfg(test)]
    pub(crate) fn is_armed(&self, key: Key) -> bool {
        let places = &self.places[key.kind()];
        let place = places.get(place_of(key.number()));
        place.is_some_and(|it| it.owner == key.number() && it.deadline_ms != 0)
    }

    /// Milliseconds from `now_ms` until the wheel must be looked at again.
    pub(crate) fn next_in(&self, now_ms: u64) -> Option<u64> {
        let (tick, _) = self.ticks.first_key_value()?;
        Some((tick * TICK_MS).saturating_sub(now_ms))
    }

    /// Takes somebody whose deadline has passed; the deadline is gone then.
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
            let key = key.of(place.owner);
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
        let index = place_of(key.number());
        let places = &mut self.places[key.kind()];
        if places.len() <= index {
            places.resize(index + 1, Place::default());
        }
        &mut places[index]
    }
}

impl Key {
    fn kind(self) -> usize {
        match self {
            Self::Downstream(_) => 0,
            Self::Exchange(_) => 1,
            Self::Leg(_) => 2,
            Self::Upstream(_) => 3,
        }
    }

    fn number(self) -> usize {
        match self {
            Self::Downstream(id) | Self::Exchange(id) | Self::Leg(id) | Self::Upstream(id) => id,
        }
    }

    /// The same kind with another number.
    fn of(self, id: usize) -> Self {
        match self {
            Self::Downstream(_) => Self::Downstream(id),
            Self::Exchange(_) => Self::Exchange(id),
            Self::Leg(_) => Self::Leg(id),
            Self::Upstream(_) => Self::Upstream(id),
        }
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
    fn a_deadline_is_its_owners_and_not_the_next_ones_in_the_place() {
        let mut timers = Timers::default();
        let successor = Key::Downstream(1 << 32);
        timers.arm(A, 100);
        timers.disarm(A);
        timers.arm(successor, 200);
        timers.disarm(A);
        assert_eq!(fire(&mut timers, 150), []);
        assert_eq!(fire(&mut timers, 250), [successor]);
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
