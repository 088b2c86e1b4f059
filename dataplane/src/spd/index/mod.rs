//! Finding the policy for a flow.
//!
//! Per direction and family, [`Pairs`] finds the prefix pairs that cover the
//! flow's addresses; each has a [`Cell`](cell::Cell) of policies that differ in
//! everything else. A change touches one cell, whatever the number of policies.
//!
//! The result is Linux's (`xfrm_policy_lookup_bytype`): the lowest priority
//! number, and among equals what `super::order` says.

mod cell;
mod pairs;

use xfrm_proto::consts::*;

use super::flow::Flow;
use super::order::List;
use super::policy::Policy;
use pairs::Pairs;

/// What a lookup is after.
pub(super) struct Find<'a> {
    pub(super) flow: &'a Flow,
    pub(super) kind: u8,
    pub(super) if_id: u32,
}

/// The best policy of each lookup list so far.
pub(super) struct Best {
    /// The lowest priority number so far; higher ones need not be considered.
    priority: u32,
    lists: [Option<(u32, u64, u32)>; List::COUNT],
}

impl Best {
    const fn new() -> Self {
        Self {
            priority: u32::MAX,
            lists: [None; List::COUNT],
        }
    }

    /// Lists, ranks and slots of those that have the lowest priority number.
    pub(super) fn winners(&self) -> impl Iterator<Item = (List, u64, u32)> + '_ {
        let lists = List::ALL.into_iter().zip(&self.lists);
        lists.filter_map(|(list, best)| {
            let (priority, rank, slot) = (*best)?;
            (priority == self.priority).then_some((list, rank, slot))
        })
    }

    fn offer(&mut self, list: List, priority: u32, rank: u64, slot: u32) {
        if priority > self.priority {
            return;
        }
        self.priority = priority;
        if let Some(best) = self.lists.get_mut(list as usize)
            && best.is_none_or(|(p, r, _)| (priority, rank) < (p, r))
        {
            *best = Some((priority, rank, slot));
        }
    }
}

/// The index over all policies but sockets' own, by direction.
#[derive(Debug, Default)]
pub(super) struct Index {
    v4: [Pairs<u32>; XFRM_POLICY_MAX as usize],
    v6: [Pairs<u128>; XFRM_POLICY_MAX as usize],
}

impl Index {
    /// Adds the policy in `slot`.
    pub(super) fn insert(&mut self, slot: u32, policy: &Policy) {
        let dir = usize::from(policy.key.dir);
        if policy.key.selector.family == AF_INET {
            if let Some(pairs) = self.v4.get_mut(dir) {
                pairs.insert(slot, policy);
            }
        } else if let Some(pairs) = self.v6.get_mut(dir) {
            pairs.insert(slot, policy);
        }
    }

    /// Removes the policy in `slot`.
    pub(super) fn remove(&mut self, slot: u32, policy: &Policy) {
        let dir = usize::from(policy.key.dir);
        if policy.key.selector.family == AF_INET {
            if let Some(pairs) = self.v4.get_mut(dir) {
                pairs.remove(slot, policy);
            }
        } else if let Some(pairs) = self.v6.get_mut(dir) {
            pairs.remove(slot, policy);
        }
    }

    /// Tells that the policy in `slot` had another priority and rank before.
    pub(super) fn reorder(&mut self, slot: u32, policy: &Policy, before: (u32, u64)) {
        let dir = usize::from(policy.key.dir);
        if policy.key.selector.family == AF_INET {
            if let Some(pairs) = self.v4.get_mut(dir) {
                pairs.reorder(slot, policy, before);
            }
        } else if let Some(pairs) = self.v6.get_mut(dir) {
            pairs.reorder(slot, policy, before);
        }
    }

    /// The best policy of each lookup list for a flow in a direction.
    pub(super) fn find(&self, dir: u8, find: &Find<'_>) -> Best {
        let mut best = Best::new();
        let dir = usize::from(dir);
        if find.flow.family == AF_INET {
            if let Some(pairs) = self.v4.get(dir) {
                pairs.find(find, &mut best);
            }
        } else if find.flow.family == AF_INET6
            && let Some(pairs) = self.v6.get(dir)
        {
            pairs.find(find, &mut best);
        }
        best
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let v4 = self.v4.iter().map(Pairs::heap_bytes);
        v4.chain(self.v6.iter().map(Pairs::heap_bytes)).sum()
    }
}
