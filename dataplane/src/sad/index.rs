//! Hash indices over the SAD: chains of SAs with equal keys, newest first.
//!
//! An index stores no keys: it holds the place of the youngest SA of each key
//! and links through all places. Linking, unlinking and finding a chain cost
//! the same however many SAs there are. Who uses an index knows the key and
//! compares it.

use crate::slots::SlotTable;

/// No SA.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    newer: u32,
    older: u32,
}

/// Chains of places by key.
#[derive(Default)]
pub(super) struct Index {
    heads: SlotTable,
    links: Vec<Link>,
}

impl Index {
    /// Puts `place` in front of the chain of its key; `same` tells whether a place has that key.
    pub(super) fn insert(&mut self, hash: u32, place: u32, same: impl Fn(u32) -> bool) {
        let slot = place as usize;
        if self.links.len() <= slot {
            let unlinked = Link {
                newer: NONE,
                older: NONE,
            };
            self.links.resize(slot + 1, unlinked);
        }
        let older = self.heads.replace(hash, place, same);
        if older.is_none() {
            self.heads.insert(hash, place);
        }
        let older = older.unwrap_or(NONE);
        self.set(place, |link| {
            *link = Link { newer: NONE, older };
        });
        self.set(older, |link| link.newer = place);
    }

    /// Takes `place` out of the chain of its key.
    pub(super) fn remove(&mut self, hash: u32, place: u32) {
        let Some(link) = self.links.get(place as usize).copied() else {
            return;
        };
        match link {
            Link {
                newer: NONE,
                older: NONE,
            } => self.heads.remove(hash, place),
            Link { newer: NONE, older } => {
                self.heads.replace(hash, older, |head| head == place);
            }
            _ => {}
        }
        self.set(link.newer, |l| l.older = link.older);
        self.set(link.older, |l| l.newer = link.newer);
    }

    /// The chain of a key, newest first.
    pub(super) fn chain(
        &self,
        hash: u32,
        same: impl Fn(u32) -> bool,
    ) -> impl Iterator<Item = u32> + '_ {
        let mut next = self.heads.find(hash, same);
        let mut last = None;
        // Most chains have one SA and most searches end with it: its link is not looked at before
        // a second one is wanted.
        std::iter::from_fn(move || {
            if let Some(last) = last {
                let older = self.links.get(last as usize).map(|link| link.older);
                next = older.filter(|&older| older != NONE);
            }
            last = next;
            next
        })
    }

    /// Whether there is no SA of that key.
    pub(super) fn is_free(&self, hash: u32, same: impl Fn(u32) -> bool) -> bool {
        self.heads.find(hash, same).is_none()
    }

    /// Sorts every chain by descending `rank`.
    pub(super) fn reorder(&mut self, rank: impl Fn(u32) -> u64) {
        let mut chain = Vec::new();
        let links = &mut self.links;
        self.heads.for_each_mut(|head| {
            chain.clear();
            let mut place = head;
            while place != NONE {
                chain.push(place);
                place = links.get(place as usize).map_or(NONE, |l| l.older);
            }
            if chain.len() < 2 {
                return head;
            }
            chain.sort_unstable_by_key(|&p| std::cmp::Reverse(rank(p)));
            let mut newer = NONE;
            for (i, &p) in chain.iter().enumerate() {
                let older = chain.get(i + 1).copied().unwrap_or(NONE);
                if let Some(link) = links.get_mut(p as usize) {
                    *link = Link { newer, older };
                }
                newer = p;
            }
            chain.first().copied().unwrap_or(head)
        });
    }

    fn set(&mut self, place: u32, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(place as usize) {
            change(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(index: &Index, keys: &[u8], key: u8) -> Vec<u32> {
        index
            .chain(u32::from(key), |p| keys[p as usize] == key)
            .collect()
    }

    #[test]
    fn chains_are_newest_first_and_survive_removal() {
        let keys = [7, 7, 8, 7];
        let mut index = Index::default();
        for place in 0..4 {
            let key = keys[place as usize];
            index.insert(u32::from(key), place, |p| keys[p as usize] == key);
        }
        assert_eq!(chain(&index, &keys, 7), [3, 1, 0]);
        index.remove(7, 1);
        assert_eq!(chain(&index, &keys, 7), [3, 0]);
        index.remove(7, 3);
        assert_eq!(chain(&index, &keys, 7), [0]);
        index.remove(7, 0);
        assert_eq!(chain(&index, &keys, 7), []);
        assert_eq!(chain(&index, &keys, 8), [2]);
    }

    #[test]
    fn reorder_sorts_by_rank() {
        let keys = [7; 5];
        let mut index = Index::default();
        for place in 0..5 {
            index.insert(7, place, |_| true);
        }
        index.reorder(|p| u64::from(10 - p));
        assert_eq!(chain(&index, &keys, 7), [0, 1, 2, 3, 4]);
        index.remove(7, 0);
        index.insert(7, 0, |_| true);
        assert_eq!(chain(&index, &keys, 7), [0, 1, 2, 3, 4]);
        index.remove(7, 2);
        assert_eq!(chain(&index, &keys, 7), [0, 1, 3, 4]);
    }
}
