//! The security policy database (`net/xfrm/xfrm_policy.c`).
//!
//! * [`policy`]: a policy and what identifies it; [`flow`]: what it is matched against.
//! * [`order`]: which of two matching policies wins.
//! * `position`: the same question, as Linux 6.1 answers it.
//! * `store`: slots and the newest-first list that dumps walk.
//! * `index`: from a flow to its policy.
//! * `lifetime`: timers.
//! * `socket`: policies that belong to one socket.
//! * `keep`: what outlives the process.
//! * `migrate`: new tunnel endpoints for a policy.
//!
//! Three tables find a policy: by identity, by index number, by flow. Every
//! operation costs the same at a thousand policies and at a million, but for
//! a change of the thresholds and a flush, which touch all.

pub mod flow;
mod index;
pub(crate) mod keep;
mod lifetime;
mod migrate;
pub mod order;
pub mod policy;
mod position;
mod socket;
mod store;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher};

use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;
use xfrm_proto::uapi::{SpdHinfo, SpdInfo, UserPolicyDefault};

use crate::netns::Limits;
use crate::profile::Profile;
use crate::slots::SlotTable;
use crate::time::{Now, WallSecs};

pub use flow::Flow;
use index::{Find, Index};
use lifetime::Timers;
pub use migrate::Migration;
pub use order::Thresholds;
pub use policy::{
    LastUse, Mismatch, Policy, PolicyKey, Templates, selector_matches, selector_mismatch,
};
use policy::{Place, hash_state};
use position::{Positions, no_positions};
pub use socket::SocketKey;
use socket::SocketPolicies;
use store::Store;
pub use store::Walk;

/// Most buckets of a hash table (`xfrm_policy_hashmax`).
const MOST_BUCKETS: u32 = 1 << 20;

/// A policy of the database, until the database next changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyId(u32);

/// A policy, whatever has happened since: it is not found once it is gone or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyHandle {
    id: PolicyId,
    age: u64,
}

impl PolicyHandle {
    /// Its place, which another policy may have by now.
    #[must_use]
    pub const fn id(self) -> PolicyId {
        self.id
    }
}

/// The policies of one namespace.
#[derive(Debug)]
pub struct Spd {
    profile: &'static Profile,
    limits: Limits,
    store: Store,
    by_key: SlotTable,
    by_index: SlotTable,
    flows: Index,
    /// By direction; empty for releases that order by age.
    positions: Vec<Positions>,
    timers: Timers,
    sockets: SocketPolicies,
    /// Counts the insertions and replacements.
    age: u64,
    /// Counts what may change the result of a lookup.
    generation: u64,
    /// `idx_generator`.
    next_index: u32,
    counts: SpdInfo,
    /// Policies of type sub, of any direction but sockets' own.
    subs: usize,
    /// Masks of Linux's hash tables, which GETSPDINFO shows: by direction, and by index.
    masks: [u32; XFRM_POLICY_MAX as usize],
    index_mask: u32,
    thresholds: Thresholds,
    defaults: UserPolicyDefault,
    /// Indices of policies that came, changed or went, once somebody wants to know.
    touched: Option<Vec<u32>>,
    /// What somebody keeps, and has not yet.
    kept: Option<keep::Touched>,
}

impl Spd {
    /// An empty database.
    #[must_use]
    pub fn new(profile: &'static Profile, limits: Limits) -> Self {
        Self {
            profile,
            limits,
            store: Store::default(),
            by_key: SlotTable::default(),
            by_index: SlotTable::default(),
            flows: Index::default(),
            positions: no_positions(profile),
            timers: Timers::new(profile),
            sockets: SocketPolicies::default(),
            age: 0,
            generation: 0,
            next_index: 0,
            counts: SpdInfo::default(),
            subs: 0,
            masks: [7; XFRM_POLICY_MAX as usize],
            index_mask: 7,
            thresholds: Thresholds::default(),
            defaults: UserPolicyDefault {
                input: XFRM_USERPOLICY_ACCEPT,
                fwd: XFRM_USERPOLICY_ACCEPT,
                out: XFRM_USERPOLICY_ACCEPT,
            },
            touched: None,
            kept: None,
        }
    }

    /// Changes how much it may hold; what it holds already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Indices of policies that came, changed or went since the last call, sockets' own excepted;
    /// the first call names all there are.
    pub fn take_touched(&mut self) -> Vec<u32> {
        match &mut self.touched {
            Some(touched) => std::mem::take(touched),
            None => {
                self.touched = Some(Vec::new());
                let policies = self.store.slots().filter_map(|slot| self.store.get(slot));
                policies
                    .filter(|policy| policy.key.dir < XFRM_POLICY_MAX)
                    .map(|policy| policy.index)
                    .collect()
            }
        }
    }

    fn touch(&mut self, index: u32) {
        if let Some(touched) = &mut self.touched {
            touched.push(index);
        }
    }

    /// The policy of that index.
    #[must_use]
    pub fn of_index(&self, index: u32) -> Option<&Policy> {
        self.store.get(self.find_index(index)?)
    }

    /// Whether there is room for one more policy.
    ///
    /// # Errors
    /// ENOMEM, as when `xfrm_policy_alloc` fails.
    pub fn reserve(&self) -> Result<(), XfrmError> {
        if self.store.len() >= self.limits.max_policies {
            return Err(XfrmError::new(errno::ENOMEM));
        }
        Ok(())
    }

    /// Adds a policy, or replaces the one of the same key (`xfrm_policy_insert`).
    ///
    /// A replaced policy's index stays, its times start again. With `exclusive` nothing is replaced.
    ///
    /// QUIRK: priority_is_not_identity.
    ///
    /// # Errors
    /// EEXIST with `exclusive` when there is one already.
    pub fn insert(
        &mut self,
        mut policy: Policy,
        exclusive: bool,
        now: Now,
    ) -> Result<PolicyId, XfrmError> {
        self.generation += 1;
        policy.key.mark.v &= policy.key.mark.m;
        policy.add_time = now.real.0;
        policy.used = LastUse::default();
        let slot = match self.find_key(&policy.key) {
            Some(_) if exclusive => return Err(XfrmError::new(errno::EEXIST)),
            Some(slot) => {
                self.replace(slot, policy);
                slot
            }
            None => self.add(policy)?,
        };
        self.change(slot);
        if self.store.get(slot).is_some_and(Policy::expires) {
            self.timers.arm(slot, now.boot, 1);
        } else {
            self.timers.disarm(slot);
        }
        Ok(PolicyId(slot))
    }

    fn add(&mut self, mut policy: Policy) -> Result<u32, XfrmError> {
        self.reserve()?;
        let dir = policy.key.dir;
        policy.index = self.free_index(dir, policy.index);
        self.age += 1;
        policy.place = Place {
            age: self.age,
            rank: self.age,
            list: self.thresholds.list(&policy.key.selector, dir),
        };
        let (key_hash, index_hash) = (policy.key.hash(), hash_index(policy.index));
        self.subs += usize::from(policy.key.kind == XFRM_POLICY_TYPE_SUB);
        let slot = self.store.insert(policy);
        self.by_key.insert(key_hash, slot);
        self.by_index.insert(index_hash, slot);
        if let Some(index) = self.store.get(slot).map(|policy| policy.index) {
            self.touch(index);
        }
        self.index_flow(slot);
        *self.count_mut(dir) += 1;
        self.grow_masks(dir);
        Ok(slot)
    }

    fn replace(&mut self, slot: u32, mut policy: Policy) {
        self.age += 1;
        let Some(old) = self.store.get_mut(slot) else {
            return;
        };
        policy.index = old.index;
        policy.place = Place {
            age: self.age,
            ..old.place
        };
        let before = (old.priority, old.place.rank);
        let index = policy.index;
        if policy.priority != old.priority {
            policy.place.rank = self.age;
        }
        *old = policy;
        self.store.renew(slot);
        self.touch(index);
        let store = &self.store;
        let Some(policy) = store.get(slot) else {
            return;
        };
        if (policy.priority, policy.place.rank) != before {
            self.flows.reorder(slot, policy, before);
        }
        if let Some(positions) = self.positions.get_mut(usize::from(policy.key.dir)) {
            positions.put(policy, slot, Some(before));
        }
    }

    fn index_flow(&mut self, slot: u32) {
        let store = &self.store;
        if let Some(policy) = store.get(slot) {
            self.flows.insert(slot, policy);
            if let Some(positions) = self.positions.get_mut(usize::from(policy.key.dir)) {
                positions.put(policy, slot, None);
            }
        }
    }

    /// Gives out an index (`xfrm_gen_index`): the wanted one if it is free, else the
    /// next of the generator.
    fn free_index(&mut self, dir: u8, wanted: u32) -> u32 {
        let mut candidate = wanted;
        loop {
            if candidate == 0 {
                candidate = self.next_index | u32::from(dir);
                self.next_index = self.next_index.wrapping_add(8);
            }
            if candidate == 0 {
                candidate = 8;
            }
            if self.find_index(candidate).is_none() {
                return candidate;
            }
            candidate = 0;
        }
    }

    fn find_key(&self, key: &PolicyKey) -> Option<u32> {
        self.by_key.find(key.hash(), |slot| {
            self.store
                .get(slot)
                .is_some_and(|policy| policy.key == *key)
        })
    }

    fn find_index(&self, index: u32) -> Option<u32> {
        self.by_index.find(hash_index(index), |slot| {
            self.store
                .get(slot)
                .is_some_and(|policy| policy.index == index)
        })
    }

    /// The policy of exactly that key (`xfrm_policy_bysel_ctx`).
    ///
    /// QUIRK: an_unmasked_mark_finds_nothing: the mark is stored masked and compared as it comes.
    #[must_use]
    pub fn by_key(&self, key: &PolicyKey) -> Option<PolicyId> {
        self.find_key(key).map(PolicyId)
    }

    /// The policy of that index (`xfrm_policy_byid`), if what `key` says of type, direction,
    /// interface id and mark is so too; its selector is not looked at.
    #[must_use]
    pub fn by_index(&self, index: u32, key: &PolicyKey) -> Option<PolicyId> {
        if index & 7 != u32::from(key.dir) {
            return None;
        }
        let slot = self.find_index(index)?;
        let found = &self.store.get(slot)?.key;
        let same = found.kind == key.kind && found.if_id == key.if_id && found.mark == key.mark;
        same.then_some(PolicyId(slot))
    }

    /// Goes up whenever a lookup may come out differently; until then ids stay what they are.
    #[must_use]
    #[inline]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The handle of a policy.
    #[must_use]
    pub fn handle(&self, id: PolicyId) -> Option<PolicyHandle> {
        let age = self.get(id)?.place.age;
        Some(PolicyHandle { id, age })
    }

    /// The policy of a handle, if it is still there.
    #[must_use]
    pub fn by_handle(&self, handle: PolicyHandle) -> Option<&Policy> {
        self.get(handle.id)
            .filter(|policy| policy.place.age == handle.age)
    }

    /// The policy of that id.
    #[must_use]
    pub fn get(&self, id: PolicyId) -> Option<&Policy> {
        self.store.get(id.0)
    }

    /// Takes a policy out (`xfrm_policy_delete`).
    pub fn remove(&mut self, id: PolicyId) -> Option<Policy> {
        let mut policy = self.store.remove(id.0)?;
        policy.used.take_back();
        self.change(id.0);
        self.generation += 1;
        self.by_key.remove(policy.key.hash(), id.0);
        self.by_index.remove(hash_index(policy.index), id.0);
        self.flows.remove(id.0, &policy);
        if let Some(positions) = self.positions.get_mut(usize::from(policy.key.dir)) {
            positions.remove(&policy, id.0);
        }
        self.timers.disarm(id.0);
        self.touch(policy.index);
        *self.count_mut(policy.key.dir) -= 1;
        self.subs -= usize::from(policy.key.kind == XFRM_POLICY_TYPE_SUB);
        Some(policy)
    }

    /// Removes all policies of a type but sockets' own; how many there were (`xfrm_policy_flush`).
    pub fn flush(&mut self, kind: u8) -> usize {
        let doomed: Vec<u32> = self
            .store
            .slots()
            .filter(|&slot| {
                self.store.get(slot).is_some_and(|policy| {
                    policy.key.kind == kind && policy.key.dir < XFRM_POLICY_MAX
                })
            })
            .collect();
        self.generation += 1;
        if doomed.len() == self.store.len() {
            if let Some(touched) = &mut self.touched {
                let policies = doomed.iter().filter_map(|&slot| self.store.get(slot));
                touched.extend(policies.map(|policy| policy.index));
            }
            self.change_each(&doomed);
            self.store.clear();
            self.by_key = SlotTable::default();
            self.by_index = SlotTable::default();
            self.flows = Index::default();
            self.positions = no_positions(self.profile);
            self.timers = Timers::new(self.profile);
            self.counts = SpdInfo::default();
            self.subs = 0;
        } else {
            for &slot in &doomed {
                self.remove(PolicyId(slot));
            }
        }
        doomed.len()
    }

    /// The policy for a flow (`xfrm_policy_lookup`): one of type sub before any of type main.
    #[must_use]
    pub fn lookup(&self, flow: &Flow, dir: u8, if_id: u32) -> Option<PolicyId> {
        (self.subs > 0)
            .then(|| self.lookup_type(flow, dir, XFRM_POLICY_TYPE_SUB, if_id))
            .flatten()
            .or_else(|| self.lookup_type(flow, dir, XFRM_POLICY_TYPE_MAIN, if_id))
    }

    /// The policy of a type for a flow (`xfrm_policy_lookup_bytype`).
    #[must_use]
    pub fn lookup_type(&self, flow: &Flow, dir: u8, kind: u8, if_id: u32) -> Option<PolicyId> {
        let find = Find { flow, kind, if_id };
        let best = self.flows.find(dir, &find);
        let slot = match self.positions.get(usize::from(dir)) {
            Some(positions) => {
                let winners: Vec<_> = best.winners().collect();
                positions.best(&winners)
            }
            None => {
                let age = |slot| Some(self.store.get(slot)?.place.age);
                let mut winners = best.winners().map(|(_, _, slot)| slot);
                // Usually one, whose age nobody has to know.
                winners
                    .next()
                    .map(|first| winners.fold(first, |a, b| if age(b) < age(a) { b } else { a }))
            }
        };
        slot.map(PolicyId)
    }

    /// The policies of a direction, in the order in which a lookup prefers them: type sub first,
    /// then by priority and age. Made for people: it costs a walk over all policies.
    #[must_use]
    pub fn in_order(&self, dir: u8) -> Vec<PolicyId> {
        let all = self.store.slots().filter_map(|slot| {
            let policy = self.store.get(slot)?;
            let is_main = policy.key.kind == XFRM_POLICY_TYPE_MAIN;
            let rank = (is_main, policy.priority, policy.place.age);
            (policy.key.dir == dir).then_some((rank, PolicyId(slot)))
        });
        let mut all: Vec<_> = all.collect();
        all.sort_unstable_by_key(|&(rank, _)| rank);
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Notes that a packet used the policy.
    pub fn mark_used(&self, id: PolicyId, now: WallSecs) {
        if let Some(policy) = self.store.get(id.0) {
            policy.used.note(now);
        }
    }

    /// A walk over all policies that exist now, newest first, sockets' own included.
    ///
    /// It sees no later insertion; a policy that is replaced or deleted before its turn is not seen.
    pub fn walk(&mut self) -> Walk {
        self.store.walk()
    }

    /// The policy that a walk has come to.
    #[must_use]
    pub fn at(&self, walk: &Walk) -> Option<&Policy> {
        self.store.at(walk)
    }

    /// Moves a walk to the next policy.
    pub fn advance(&self, walk: &Walk) {
        self.store.advance(walk);
    }

    /// Policies by direction, sockets' own apart.
    #[must_use]
    pub fn counts(&self) -> SpdInfo {
        self.counts
    }

    fn count_mut(&mut self, dir: u8) -> &mut u32 {
        match dir {
            XFRM_POLICY_IN => &mut self.counts.incnt,
            XFRM_POLICY_OUT => &mut self.counts.outcnt,
            XFRM_POLICY_FWD => &mut self.counts.fwdcnt,
            socket::DIR_IN => &mut self.counts.inscnt,
            _ => &mut self.counts.outscnt,
        }
    }

    /// What GETSPDINFO tells of the hash tables (`xfrm_spd_getinfo`).
    ///
    /// QUIRK: spd_hash_count_is_a_mask.
    #[must_use]
    pub fn hash_info(&self) -> SpdHinfo {
        SpdHinfo {
            spdhcnt: self.index_mask,
            spdhmcnt: MOST_BUCKETS,
        }
    }

    /// Doubles the masks of Linux's tables as its worker does (`xfrm_hash_resize`): only when
    /// a direction's own table is full is the table of indices looked at.
    fn grow_masks(&mut self, dir: u8) {
        let counts = [self.counts.incnt, self.counts.outcnt, self.counts.fwdcnt];
        let is_full = |mask: u32, count: u32| mask + 1 < MOST_BUCKETS && count > mask;
        let tables = || self.masks.iter().zip(counts);
        if !tables()
            .nth(usize::from(dir))
            .is_some_and(|(&mask, count)| is_full(mask, count))
        {
            return;
        }
        for (mask, count) in self.masks.iter_mut().zip(counts) {
            if is_full(*mask, count) {
                *mask = *mask * 2 + 1;
            }
        }
        if is_full(self.index_mask, counts.iter().sum()) {
            self.index_mask = self.index_mask * 2 + 1;
        }
    }

    /// From which prefix lengths on policies are hashed.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// Sets them (`xfrm_hash_rebuild`): every policy is sorted in anew, by age.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
        self.change_all();
        self.generation += 1;
        self.flows = Index::default();
        self.positions = no_positions(self.profile);
        let slots: Vec<u32> = self.store.slots().collect();
        for slot in slots {
            if let Some(policy) = self.store.get_mut(slot)
                && policy.key.dir < XFRM_POLICY_MAX
            {
                policy.place.rank = policy.place.age;
                policy.place.list = thresholds.list(&policy.key.selector, policy.key.dir);
                self.index_flow(slot);
            }
        }
    }

    /// What happens to flows without a policy: `XFRM_USERPOLICY_*` per direction.
    #[must_use]
    pub fn defaults(&self) -> UserPolicyDefault {
        self.defaults
    }

    /// Sets it; a value that is neither block nor accept leaves its direction alone.
    pub fn set_defaults(&mut self, wanted: UserPolicyDefault) {
        self.generation += 1;
        let set = |current: &mut u8, wanted| {
            if matches!(wanted, XFRM_USERPOLICY_BLOCK | XFRM_USERPOLICY_ACCEPT) {
                *current = wanted;
            }
        };
        set(&mut self.defaults.input, wanted.input);
        set(&mut self.defaults.fwd, wanted.fwd);
        set(&mut self.defaults.out, wanted.out);
    }

    /// Bytes on the heap, templates beyond a policy's first excepted.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.store.heap_bytes()
            + self.by_key.heap_bytes()
            + self.by_index.heap_bytes()
            + self.flows.heap_bytes()
    }
}

fn hash_index(index: u32) -> u32 {
    let mut hasher = hash_state().build_hasher();
    hasher.write_u32(index);
    (hasher.finish() >> 32) as u32
}
