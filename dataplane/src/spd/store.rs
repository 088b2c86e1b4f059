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

/// A policy lies beside its place in the list, because a request that changes one changes the other.
#[derive(Debug)]
struct Slot {
    policy: Option<Policy>,
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
    slots: Vec<Slot>,
    free: Vec<u32>,
    newest: u32,
    walks: Vec<Weak<AtomicU32>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            walks: Vec::new(),
        }
    }
}

impl Store {
    pub(super) fn get(&self, slot: u32) -> Option<&Policy> {
        self.slots.get(slot as usize)?.policy.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Policy> {
        self.slots.get_mut(slot as usize)?.policy.as_mut()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a policy as the newest.
    pub(super) fn insert(&mut self, policy: Policy) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                policy: None,
                newer: NONE,
                older: NONE,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(NONE)
        });
        if let Some(place) = self.slot_mut(slot) {
            place.policy = Some(policy);
        }
        self.link(slot);
        slot
    }

    /// Slots are below this.
    pub(super) fn bound(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(NONE)
    }

    /// Adds a policy as the newest, at a slot of its own; whether that was vacant.
    pub(super) fn insert_at(&mut self, slot: u32, policy: Policy) -> bool {
        const VACANT: Slot = Slot {
            policy: None,
            newer: NONE,
            older: NONE,
        };
        if slot >= self.bound() {
            self.slots.resize_with(slot as usize + 1, || VACANT);
        }
        match self.slot_mut(slot) {
            Some(place) if place.policy.is_none() => place.policy = Some(policy),
            _ => return false,
        }
        self.link(slot);
        true
    }

    /// Notes which slots are vacant, after [`Store::insert_at`].
    pub(super) fn find_vacant(&mut self) {
        let vacant = |(slot, place): (u32, &Slot)| place.policy.is_none().then_some(slot);
        self.free = (0..).zip(&self.slots).filter_map(vacant).collect();
    }

    /// Makes a policy the newest, as replacing it does.
    pub(super) fn renew(&mut self, slot: u32) {
        self.unlink(slot);
        self.link(slot);
    }

    /// Takes a policy out.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Policy> {
        let policy = self.slots.get_mut(slot as usize)?.policy.take()?;
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

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    fn link(&mut self, slot: u32) {
        let second = std::mem::replace(&mut self.newest, slot);
        if let Some(second) = self.slot_mut(second) {
            second.newer = slot;
        }
        if let Some(own) = self.slot_mut(slot) {
            (own.newer, own.older) = (NONE, second);
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(&Slot { newer, older, .. }) = self.slots.get(slot as usize) else {
            return;
        };
        match self.slot_mut(newer) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        if let Some(older) = self.slot_mut(older) {
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
        if let Some(place) = self.slots.get(slot as usize) {
            walk.next.store(place.older, Ordering::Relaxed);
        }
    }

    /// All slots in use, newest first.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let older = |&slot: &u32| Some(self.slots.get(slot as usize)?.older);
        std::iter::successors(Some(self.newest), older).take_while(|&slot| slot != NONE)
    }

    /// Bytes in use on the heap, templates beyond a policy's first excepted.
    pub(super) fn heap_bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>() + self.free.capacity() * size_of::<u32>()
    }
}
