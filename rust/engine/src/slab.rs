//! Slabs whose numbers do not come again.
//!
//! A session and its exchange know each other by number. The number of a plain slab is the next
//! comer's as soon as its owner is gone, so that one forgotten number sends the bytes of one caller to
//! another. Here a number is a place and a serial: whoever asks with the number of somebody who has
//! gone gets nobody, and who indexes with it panics, which ends one connection (`Worker::guarded`).
//!
//! It costs a comparison where the place is looked at anyway. A serial comes again after half a
//! billion insertions; a stale number would have to live that long, and meet its place again.
//!
//! The first number is 0.

use std::ops::{Index, IndexMut};

/// The lower half of a number is its place.
const PLACE_BITS: u32 = 32;

/// The epoll set's tokens have three bits of their own beside a number (`worker.rs`).
const SERIAL_MAX: u32 = (1 << 29) - 1;

const _: () = assert!(usize::BITS == 64, "a place and a serial are one number");

/// See the module's text.
pub(crate) struct Slab<T> {
    /// With the number of each, whole: one comparison tells.
    slots: slab::Slab<(usize, T)>,
    /// The next one's.
    serial: u32,
}

/// The place of a number: small, and another number's later.
#[inline]
pub(crate) fn place_of(number: usize) -> usize {
    number & ((1 << PLACE_BITS) - 1)
}

fn serial_of(number: usize) -> u32 {
    (number >> PLACE_BITS) as u32
}

fn number(place: usize, serial: u32) -> usize {
    (serial as usize) << PLACE_BITS | place
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            slots: slab::Slab::new(),
            serial: 0,
        }
    }

    #[inline]
    pub(crate) fn get(&self, number: usize) -> Option<&T> {
        match self.slots.get(place_of(number)) {
            Some((owner, value)) if *owner == number => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        match self.slots.get_mut(place_of(number)) {
            Some((owner, value)) if *owner == number => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn contains(&self, number: usize) -> bool {
        self.get(number).is_some()
    }

    pub(crate) fn insert(&mut self, value: T) -> usize {
        let entry = self.vacant_entry();
        let number = entry.key();
        entry.insert(value);
        number
    }

    /// A number for somebody who has to know it before the insertion.
    pub(crate) fn vacant_entry(&mut self) -> VacantEntry<'_, T> {
        VacantEntry {
            entry: self.slots.vacant_entry(),
            serial: &mut self.serial,
        }
    }

    /// Panics when nobody has this number.
    pub(crate) fn remove(&mut self, number: usize) -> T {
        match self.slots.try_remove(place_of(number)) {
            Some((owner, value)) if owner == number => value,
            _ => gone(number),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots
            .iter()
            .map(|(_, (number, value))| (*number, value))
    }
}

/// A number that nobody has yet.
pub(crate) struct VacantEntry<'a, T> {
    entry: slab::VacantEntry<'a, (usize, T)>,
    serial: &'a mut u32,
}

impl<T> VacantEntry<'_, T> {
    pub(crate) fn key(&self) -> usize {
        number(self.entry.key(), *self.serial)
    }

    pub(crate) fn insert(self, value: T) {
        let number = self.key();
        self.entry.insert((number, value));
        *self.serial = if *self.serial == SERIAL_MAX {
            0
        } else {
            *self.serial + 1
        };
    }
}

impl<T> Index<usize> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: usize) -> &T {
        match self.get(number) {
            Some(value) => value,
            None => gone(number),
        }
    }
}

impl<T> IndexMut<usize> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, number: usize) -> &mut T {
        match self.get_mut(number) {
            Some(value) => value,
            None => gone(number),
        }
    }
}

#[cold]
#[inline(never)]
fn gone(number: usize) -> ! {
    let (place, serial) = (place_of(number), serial_of(number));
    panic!("number {serial} of place {place} has gone")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_number_of_somebody_who_has_gone_is_nobodys() {
        let mut all = Slab::new();
        let (first, second) = (all.insert("a"), all.insert("b"));
        assert_eq!((first, all[second]), (0, "b"));
        assert_eq!(all.remove(first), "a");
        let third = all.insert("c");
        assert_eq!(place_of(third), place_of(first), "the place is used again");
        assert_ne!(third, first);
        assert!(!all.contains(first) && all.get_mut(first).is_none());
        assert_eq!(all.get(third), Some(&"c"));
        let told: Vec<usize> = all.iter().map(|(number, _)| number).collect();
        assert_eq!(told, [third, second]);
        assert_eq!(all.len(), 2);
        let stale = std::panic::catch_unwind(move || all.remove(first));
        let told = stale.unwrap_err().downcast::<String>().unwrap();
        assert_eq!(*told, "number 0 of place 0 has gone");
    }

    #[test]
    fn an_entry_knows_its_number_and_one_that_is_left_vacant_takes_none() {
        let mut all = Slab::new();
        let left = all.vacant_entry().key();
        let entry = all.vacant_entry();
        let number = entry.key();
        entry.insert('a');
        assert_eq!((left, all[number]), (number, 'a'));
    }

    #[test]
    fn serials_begin_again_and_leave_room_for_a_token() {
        let mut all = Slab::new();
        all.serial = SERIAL_MAX;
        let last = all.insert('a');
        assert_eq!(last << 3 >> 3, last, "three bits are free");
        assert_eq!(all[last], 'a');
        assert_eq!(serial_of(all.insert('b')), 0);
    }
}
