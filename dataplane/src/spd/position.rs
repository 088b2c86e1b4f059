//! How Linux 6.1 decides between lookup lists.
//!
//! It numbers the policies of a direction that are not hashed, best first,
//! whenever one of them is inserted or replaced; a hashed policy's number is
//! 0. Between lists the lower number wins, the inexact list if both are 0.
//!
//! QUIRK: on_6_1_a_hashed_policy_beats_an_older_prefix: so among equal
//! priorities a hashed policy wins, whatever its age, unless the other was the
//! very first of its direction when the numbers were given.
//!
//! Source: Linux 6.1 `net/xfrm/xfrm_policy.c xfrm_policy_insert_inexact_list`,
//! `xfrm_policy_eval_candidates`.

use std::collections::BTreeSet;

use xfrm_proto::consts::XFRM_POLICY_MAX;

use super::order::List;
use super::policy::Policy;
use crate::profile::Profile;

/// The numbered policies of one direction.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// Priority, rank and slot.
    list: BTreeSet<(u32, u64, u32)>,
    /// The slot whose number is 0.
    first: Option<u32>,
}

const fn key(policy: &Policy, slot: u32) -> (u32, u64, u32) {
    (policy.priority, policy.place.rank, slot)
}

impl Positions {
    /// A policy is new, or has another priority and rank than `before`.
    pub(super) fn put(&mut self, policy: &Policy, slot: u32, before: Option<(u32, u64)>) {
        if policy.place.list == List::Exact {
            return;
        }
        let old = before.map(|(priority, rank)| (priority, rank, slot));
        self.list.insert(key(policy, slot));
        // The one that goes is still there when the numbers are given.
        let first = self.list.first().copied();
        if let Some(old) = old.filter(|old| *old != key(policy, slot)) {
            self.list.remove(&old);
            self.first = first.filter(|first| *first != old).map(|(_, _, slot)| slot);
        } else {
            self.first = first.map(|(_, _, slot)| slot);
        }
    }

    /// The slot whose number is 0.
    pub(super) const fn first(&self) -> Option<u32> {
        self.first
    }

    /// Sets it, as it had become.
    pub(super) const fn begin_with(&mut self, first: Option<u32>) {
        self.first = first;
    }

    pub(super) fn remove(&mut self, policy: &Policy, slot: u32) {
        self.list.remove(&key(policy, slot));
        if self.first == Some(slot) {
            self.first = None;
        }
    }

    /// The best of the winners of all lists, which have the same priority.
    pub(super) fn best(&self, winners: &[(List, u64, u32)]) -> Option<u32> {
        let slot_of = |&(_, _, slot): &(List, u64, u32)| slot;
        let inexact = || winners.iter().filter(|winner| winner.0 != List::Exact);
        let first = inexact().find(|winner| Some(winner.2) == self.first);
        let exact = winners.iter().find(|winner| winner.0 == List::Exact);
        first
            .or(exact)
            .or_else(|| inexact().min_by_key(|winner| winner.1))
            .map(slot_of)
    }
}

/// Of each direction, where a release has positions.
pub(super) fn no_positions(profile: &Profile) -> Vec<Positions> {
    let directions = 0..XFRM_POLICY_MAX;
    directions
        .filter(|_| profile.policies_have_positions)
        .map(|_| Positions::default())
        .collect()
}
