//! A hash table of slot numbers: 32 bits of hash beside 32 bits of slot, open
//! addressing, linear probing.
//!
//! The things that the slots name (policies, SAs) live elsewhere
//! and hold the keys; the table only finds them. One cache line answers most
//! questions, which is what keeps a request's cost nearly the same at a million
//! entries: a general-purpose map needs two. Entries are placed by the upper bits of their hash, so growing
//! is one sequential pass that touches no key.

/// Finds slots by hash.
#[derive(Clone, Debug)]
pub(crate) struct SlotTable {
    /// `hash << 32 | slot + 1`, 0 for empty; the length is a power of two.
    entries: Vec<u64>,
    len: usize,
}

/// Entries of the smallest table.
const SMALLEST: usize = 8;

impl Default for SlotTable {
    fn default() -> Self {
        Self {
            entries: vec![0; SMALLEST],
            len: 0,
        }
    }
}

impl SlotTable {
    /// Where the search for `hash` starts.
    fn home(&self, hash: u32) -> usize {
        let bits = self.entries.len().trailing_zeros();
        (u64::from(hash) << bits >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    fn at(&self, at: usize) -> u64 {
        self.entries.get(at).copied().unwrap_or_default()
    }

    fn set(&mut self, at: usize, entry: u64) {
        if let Some(place) = self.entries.get_mut(at) {
            *place = entry;
        }
    }

    /// The slot of that hash for which `matches` holds.
    pub(crate) fn find(&self, hash: u32, matches: impl FnMut(u32) -> bool) -> Option<u32> {
        self.search(hash, matches).map(|(_, slot)| slot)
    }

    /// Puts `slot` in the place of the one that [`SlotTable::find`] finds, which is returned.
    pub(crate) fn replace(
        &mut self,
        hash: u32,
        slot: u32,
        matches: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let (at, replaced) = self.search(hash, matches)?;
        self.set(at, entry_of(hash, slot));
        Some(replaced)
    }

    fn search(&self, hash: u32, mut matches: impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
        let mut at = self.home(hash);
        loop {
            let entry = self.at(at);
            let slot = slot_of(entry)?;
            if hash_of(entry) == hash && matches(slot) {
                return Some((at, slot));
            }
            at = self.next(at);
        }
    }

    /// Adds a slot, which must not be in the table under that hash.
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            self.grow();
        }
        self.len += 1;
        self.place(entry_of(hash, slot));
    }

    fn place(&mut self, entry: u64) {
        let mut at = self.home(hash_of(entry));
        while self.at(at) != 0 {
            at = self.next(at);
        }
        self.set(at, entry);
    }

    fn grow(&mut self) {
        let larger = vec![0; self.entries.len() * 2];
        for entry in std::mem::replace(&mut self.entries, larger) {
            if entry != 0 {
                self.place(entry);
            }
        }
    }

    /// Removes a slot that was inserted with that hash.
    pub(crate) fn remove(&mut self, hash: u32, slot: u32) {
        let wanted = entry_of(hash, slot);
        let mut hole = self.home(hash);
        while self.at(hole) != wanted {
            if self.at(hole) == 0 {
                return;
            }
            hole = self.next(hole);
        }
        self.len -= 1;
        // Later entries move back over the hole unless they are at home behind it.
        let mut at = hole;
        loop {
            at = self.next(at);
            let entry = self.at(at);
            if entry == 0 {
                break;
            }
            let mask = self.entries.len() - 1;
            let from_home = at.wrapping_sub(self.home(hash_of(entry))) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.set(hole, entry);
                hole = at;
            }
        }
        self.set(hole, 0);
    }

    /// All slots, to change each for another of the same hash.
    pub(crate) fn for_each_mut(&mut self, mut change: impl FnMut(u32) -> u32) {
        for entry in &mut self.entries {
            if let Some(slot) = slot_of(*entry) {
                *entry = entry_of(hash_of(*entry), change(slot));
            }
        }
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<u64>()
    }
}

const fn entry_of(hash: u32, slot: u32) -> u64 {
    (hash as u64) << 32 | (slot as u64 + 1)
}

const fn hash_of(entry: u64) -> u32 {
    (entry >> 32) as u32
}

/// `None` for an empty entry.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is meant"
)]
const fn slot_of(entry: u64) -> Option<u32> {
    (entry as u32).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            ops in proptest::collection::vec((any::<bool>(), 0u32..40, 0u32..6), 0..400)
        ) {
            let mut table = SlotTable::default();
            let mut model = BTreeSet::new();
            for (add, slot, hash) in ops {
                // Few hashes, some at the end of the table: long runs that wrap.
                let hash = hash.wrapping_mul(0x3333_3333) | (slot % 2);
                if add && model.insert((hash, slot)) {
                    table.insert(hash, slot);
                } else if !add {
                    model.remove(&(hash, slot));
                    table.remove(hash, slot);
                }
                prop_assert_eq!(table.len, model.len());
            }
            for &(hash, slot) in &model {
                prop_assert_eq!(table.find(hash, |s| s == slot), Some(slot));
            }
            prop_assert_eq!(table.find(7, |_| true), None);
        }
    }
}
