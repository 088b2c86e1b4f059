//! Policies that belong to one socket (`IP_XFRM_POLICY`, `IPV6_XFRM_POLICY`).
//!
//! A socket has at most one per direction. They are in dumps and counts, with
//! direction 3 (in) and 4 (out), and take indices from the generator; nothing
//! else of the control plane reaches them: no flush, no deletion by selector
//! or index, no timer, no event.
//!
//! Source: `net/xfrm/xfrm_policy.c xfrm_sk_policy_insert`, `clone_policy`,
//! `xfrm_sk_policy_lookup`.

use hashbrown::HashMap;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

use super::flow::Flow;
use super::policy::{Policy, hash_state};
use super::{PolicyId, Spd};
use crate::time::WallSecs;

/// Direction of a socket's input policy.
pub(super) const DIR_IN: u8 = XFRM_POLICY_MAX + XFRM_POLICY_IN;

/// A socket, as its owner numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey(pub u64);

/// Slots of sockets' policies, by direction.
#[derive(Debug)]
pub(super) struct SocketPolicies {
    slots: HashMap<(SocketKey, u8), u32, foldhash::fast::FixedState>,
}

impl Default for SocketPolicies {
    fn default() -> Self {
        Self {
            slots: HashMap::with_hasher(hash_state()),
        }
    }
}

impl SocketPolicies {
    /// Whose the policy at a slot is.
    pub(super) fn owner(&self, slot: u32) -> Option<(SocketKey, u8)> {
        let found = self.slots.iter().find(|&(_, &other)| other == slot);
        found.map(|(&owner, _)| owner)
    }

    /// Notes whose the policy at a slot is.
    pub(super) fn own(&mut self, owner: (SocketKey, u8), slot: u32) {
        self.slots.insert(owner, slot);
    }
}

impl Spd {
    /// Gives a socket a policy, in place of the one that it has for that direction.
    ///
    /// `policy.key.dir` is `XFRM_POLICY_IN` or `_OUT`; the index it asks for is not honoured.
    ///
    /// # Errors
    /// ENOBUFS when the database is full, EINVAL for another type than main.
    pub fn insert_socket_policy(
        &mut self,
        socket: SocketKey,
        mut policy: Policy,
        now: WallSecs,
    ) -> Result<PolicyId, XfrmError> {
        self.reserve().map_err(|_| XfrmError::new(errno::ENOBUFS))?;
        if policy.key.kind != XFRM_POLICY_TYPE_MAIN {
            return Err(XfrmError::new(errno::EINVAL));
        }
        let dir = policy.key.dir;
        policy.key.dir = XFRM_POLICY_MAX + dir;
        policy.add_time = now.0;
        policy.index = self.free_index(policy.key.dir, 0);
        Ok(PolicyId(self.link_socket_policy(socket, dir, policy)))
    }

    fn link_socket_policy(&mut self, socket: SocketKey, dir: u8, mut policy: Policy) -> u32 {
        self.generation += 1;
        self.age += 1;
        policy.place.age = self.age;
        *self.count_mut(policy.key.dir) += 1;
        let slot = self.store.insert(policy);
        self.change(slot);
        if let Some(old) = self.sockets.slots.insert((socket, dir), slot) {
            self.unlink_socket_policy(old);
        }
        slot
    }

    fn unlink_socket_policy(&mut self, slot: u32) {
        self.generation += 1;
        self.change(slot);
        if let Some(policy) = self.store.remove(slot) {
            *self.count_mut(policy.key.dir) -= 1;
        }
    }

    /// Takes a socket's policies away, as closing it or setting an empty option does.
    pub fn remove_socket_policies(&mut self, socket: SocketKey) {
        for dir in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
            if let Some(slot) = self.sockets.slots.remove(&(socket, dir)) {
                self.unlink_socket_policy(slot);
            }
        }
    }

    /// Gives a socket copies of another's policies, as accepting a connection does.
    ///
    /// QUIRK: an_accepted_socket_repeats_the_index_of_its_listener.
    pub fn clone_socket_policies(&mut self, from: SocketKey, to: SocketKey) {
        for dir in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
            let slot = self.sockets.slots.get(&(from, dir)).copied();
            if let Some(policy) = slot.and_then(|slot| self.store.get(slot)).cloned() {
                self.link_socket_policy(to, dir, policy);
            }
        }
    }

    /// A socket's policies, for input and for output.
    #[must_use]
    pub fn socket_policies(&self, socket: SocketKey) -> [Option<&Policy>; 2] {
        [XFRM_POLICY_IN, XFRM_POLICY_OUT].map(|dir| {
            let slot = self.sockets.slots.get(&(socket, dir));
            slot.and_then(|&slot| self.store.get(slot))
        })
    }

    /// Whether a socket has a policy for a direction, whatever it is for.
    #[must_use]
    pub fn has_socket_policy(&self, socket: SocketKey, dir: u8) -> bool {
        self.sockets.slots.contains_key(&(socket, dir))
    }

    /// A socket's own policy for a flow, if it has one that matches.
    #[must_use]
    pub fn lookup_socket(
        &self,
        socket: SocketKey,
        dir: u8,
        flow: &Flow,
        if_id: u32,
    ) -> Option<PolicyId> {
        let slot = *self.sockets.slots.get(&(socket, dir))?;
        let policy = self.store.get(slot)?;
        policy
            .matches(flow, XFRM_POLICY_TYPE_MAIN, if_id)
            .then_some(PolicyId(slot))
    }
}
