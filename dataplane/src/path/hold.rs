//! Packets that wait for an SA (`net.core.xfrm_larval_drop` = 0).
//!
//! Each policy has a queue. A tenth of a second after its first packet, and
//! then after twice as long each time, the first packet is looked up again: if
//! there are SAs now, all leave; if a minute's wait was not enough, all are
//! dropped. A policy that is replaced hands its queue on, one that goes takes it along.
//!
//! Source: `net/xfrm/xfrm_policy.c xdst_queue_output, xfrm_policy_queue_process,
//! xfrm_policy_requeue`.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::netns::{Context, Netns};
use crate::path::output::OutputMeta;
use crate::spd::{PolicyHandle, PolicyId, Spd};
use crate::time::BootNanos;

/// A queue that has more takes no more (`XFRM_MAX_QUEUE_LEN`).
const MOST_PACKETS: usize = 100;
/// `XFRM_QUEUE_TMO_MIN`, `XFRM_QUEUE_TMO_MAX`.
const FIRST_WAIT_NANOS: u64 = 100_000_000;
const LONGEST_WAIT_NANOS: u64 = 60_000_000_000;

/// A packet that is to wait.
#[derive(Debug)]
pub struct Held {
    pub(super) policy: PolicyHandle,
    pub(super) packet: HeldPacket,
}

impl Held {
    pub(super) fn is_for(&self, policy: PolicyHandle) -> bool {
        self.policy == policy
    }
}

/// A packet that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldPacket {
    /// It.
    pub bytes: Box<[u8]>,
    /// What came with it.
    pub meta: OutputMeta,
}

/// The packets that wait for the SAs of one policy.
#[derive(Debug)]
pub struct Queue {
    pub(super) policy: PolicyHandle,
    /// Tells a replaced policy from another one in its place.
    index: u32,
    pub(super) packets: VecDeque<HeldPacket>,
    wait_nanos: u64,
    due: BootNanos,
}

/// All queues of a namespace.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    queues: HashMap<PolicyId, Queue, foldhash::fast::FixedState>,
    /// The SPD's generation when policies were last looked at.
    seen: u64,
}

impl Holds {
    /// Whether a policy's queue, with `more` on their way to it, takes one more.
    pub(super) fn has_room(&self, policy: PolicyHandle, more: usize) -> bool {
        let queue = self.queues.get(&policy.id());
        queue.map_or(0, |queue| queue.packets.len()) + more <= MOST_PACKETS
    }

    fn push(&mut self, spd: &Spd, now: BootNanos, held: Held) {
        let Some(policy) = spd.by_handle(held.policy) else {
            return;
        };
        let queue = self
            .queues
            .entry(held.policy.id())
            .or_insert_with(|| Queue {
                policy: held.policy,
                index: policy.index,
                packets: VecDeque::new(),
                wait_nanos: FIRST_WAIT_NANOS,
                due: now.plus_nanos(FIRST_WAIT_NANOS),
            });
        queue.due = queue.due.min(now.plus_nanos(queue.wait_nanos));
        queue.packets.push_back(held.packet);
    }

    /// Follows policies that were replaced; their queues are due at once.
    pub(crate) fn follow(&mut self, spd: &Spd) {
        if self.queues.is_empty() || self.seen == spd.generation() {
            return;
        }
        self.seen = spd.generation();
        self.queues.retain(|&id, queue| {
            if spd.by_handle(queue.policy).is_some() {
                return true;
            }
            let Some((handle, policy)) = spd.handle(id).zip(spd.get(id)) else {
                return false;
            };
            queue.policy = handle;
            queue.due = BootNanos(0);
            policy.index == queue.index
        });
    }

    pub(crate) fn poll_timeout(&self) -> Option<BootNanos> {
        self.queues.values().map(|queue| queue.due).min()
    }
}

impl Netns {
    pub(super) fn hold(&mut self, cx: &Context<'_>, held: Held) {
        self.holds.follow(&self.spd);
        self.holds.push(&self.spd, cx.now.boot, held);
    }

    /// Queues of held packets that are due; a worker's `retry` looks them up again, and gives
    /// back as a request what has to wait on.
    pub fn take_held(&mut self, now: BootNanos) -> Vec<Queue> {
        self.holds.follow(&self.spd);
        let due = self.holds.queues.extract_if(|_, queue| queue.due <= now);
        let mut due: Vec<Queue> = due.map(|(_, queue)| queue).collect();
        due.sort_by_key(|queue| (queue.due, queue.index));
        due
    }

    /// Takes a queue back whose packets still have no SA.
    pub(super) fn hold_on(&mut self, now: BootNanos, mut queue: Queue) {
        if queue.wait_nanos >= LONGEST_WAIT_NANOS {
            return;
        }
        let id = queue.policy.id();
        queue.wait_nanos *= 2;
        queue.due = now.plus_nanos(queue.wait_nanos);
        if let Some(newer) = self.holds.queues.remove(&id) {
            queue.packets.extend(newer.packets);
        }
        self.holds.queues.insert(id, queue);
    }
}
