//! Where policies live, and the order in which dumps show them.
//!
//! A policy has a slot for as long as it exists. All policies, sockets' own
//! included, form a list, newest insertion first (`net->xfrm.policy_all`).
//! A [`Walk`] is a place in that list that survives whatever is inserted,
//! replaced or deleted meanwhile: like Linux's walk entries it stands before a
//! policy, and moves on when that policy goes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use super::policy::Policy;

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Neighbours {
    newer: u32,
    older: u32,
}

/// A place in the list of all policies.
#[derive(Debug)]
pub struct Walk {
    next: Arc<AtomicU32>,
}

/// All policies.
#[derive(Debug)]
pub(super) struct Store {
    policies: Vec<Option<Policy>>,
    neighbours: Vec<Neighbours>,
    free: Vec<u32>,
    newest: u32,
    walks: Vec<Weak<AtomicU32>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            policies: Vec::new(),
            neighbours: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            walks: Vec::new(),
        }
    }
}

impl Store {
    pub(super) fn get(&self, slot: u32) -> Option<&Policy> {
        self.policies.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Policy> {
        self.policies.get_mut(slot as usize)?.as_mut()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.policies.len() - self.free.len()
    }

    /// Adds a policy as the newest.
    pub(super) fn insert(&mut self, policy: Policy) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.policies.push(None);
            self.neighbours.push(Neighbours {
                newer: NONE,
                older: NONE,
            });
            u32::try_from(self.policies.len() - 1).unwrap_or(NONE)
        });
        if let Some(place) = self.policies.get_mut(slot as usize) {
            *place = Some(policy);
        }
        self.link(slot);
        slot
    }

    /// Makes a policy the newest, as replacing it does.
    pub(super) fn renew(&mut self, slot: u32) {
        self.unlink(slot);
        self.link(slot);
    }

    /// Takes a policy out.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Policy> {
        let policy = self.policies.get_mut(slot as usize)?.take()?;
        self.unlink(slot);
        self.free.push(slot);
        Some(policy)
    }

    /// Forgets everything at once; walks are at their end.
    pub(super) fn clear(&mut self) {
        for walk in self.walks.drain(..).filter_map(|walk| walk.upgrade()) {
            walk.store(NONE, Ordering::Relaxed);
        }
        *self = Self::default();
    }

    fn neighbours_mut(&mut self, slot: u32) -> Option<&mut Neighbours> {
        self.neighbours.get_mut(slot as usize)
    }

    fn link(&mut self, slot: u32) {
        let second = std::mem::replace(&mut self.newest, slot);
        if let Some(second) = self.neighbours_mut(second) {
            second.newer = slot;
        }
        if let Some(own) = self.neighbours_mut(slot) {
            *own = Neighbours {
                newer: NONE,
                older: second,
            };
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(&Neighbours { newer, older }) = self.neighbours.get(slot as usize) else {
            return;
        };
        match self.neighbours_mut(newer) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        if let Some(older) = self.neighbours_mut(older) {
            older.newer = newer;
        }
        if !self.walks.is_empty() {
            self.walks.retain(|walk| {
                let walk = walk.upgrade();
                if let Some(next) = &walk
                    && next.load(Ordering::Relaxed) == slot
                {
                    next.store(older, Ordering::Relaxed);
                }
                walk.is_some()
            });
        }
    }

    /// A walk over all policies that exist now, newest first.
    pub(super) fn walk(&mut self) -> Walk {
        let next = Arc::new(AtomicU32::new(self.newest));
        self.walks.retain(|walk| walk.strong_count() > 0);
        self.walks.push(Arc::downgrade(&next));
        Walk { next }
    }

    /// The policy that a walk stands before.
    pub(super) fn at(&self, walk: &Walk) -> Option<&Policy> {
        self.get(walk.next.load(Ordering::Relaxed))
    }

    /// Moves a walk past the policy that it stands before.
    pub(super) fn advance(&self, walk: &Walk) {
        let slot = walk.next.load(Ordering::Relaxed);
        if let Some(neighbours) = self.neighbours.get(slot as usize) {
            walk.next.store(neighbours.older, Ordering::Relaxed);
        }
    }

    /// All slots in use, newest first.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let older = |&slot: &u32| Some(self.neighbours.get(slot as usize)?.older);
        std::iter::successors(Some(self.newest), older).take_while(|&slot| slot != NONE)
    }

    /// Bytes in use on the heap, templates beyond a policy's first excepted.
    pub(super) fn heap_bytes(&self) -> usize {
        self.policies.len() * size_of::<Option<Policy>>()
            + self.neighbours.len() * size_of::<Neighbours>()
            + self.free.capacity() * size_of::<u32>()
    }
}
