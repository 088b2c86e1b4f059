//! The netlink protocol below NETLINK_XFRM: how a datagram is walked, what is
//! acknowledged and how, how a dump is cut into chunks.
//!
//! Source: `net/netlink/af_netlink.c netlink_rcv_skb, netlink_ack,
//! netlink_dump`. What a socket does by itself (ports, groups, buffers) the
//! host's kernel does for us.

mod dump;
mod outbox;
mod receive;

use hashbrown::HashMap;

pub(crate) use dump::continue_dump;
pub(crate) use outbox::Outbox;
pub use outbox::{Batch, Datagram, Destination};
pub(crate) use receive::receive;

use crate::emulator::NetnsId;
use crate::xfrm::notify;
use dataplane::Netns;

/// What a namespace knows of its client sockets.
#[derive(Default)]
pub(crate) struct Sockets {
    dumps: HashMap<u32, dump::Running, foldhash::fast::RandomState>,
    listeners: [u32; 32],
}

impl Sockets {
    pub(crate) fn is_dumping(&self, port: u32) -> bool {
        self.dumps.contains_key(&port)
    }

    pub(crate) fn close(&mut self, port: u32) {
        self.dumps.remove(&port);
    }

    pub(crate) fn set_listeners(&mut self, group: u32, count: u32) {
        let slot = usize::try_from(group)
            .ok()
            .and_then(|g| self.listeners.get_mut(g.checked_sub(1)?));
        if let Some(slot) = slot {
            *slot = count;
        }
    }

    /// How many listen to `group`.
    pub(crate) fn listeners(&self, group: u32) -> u32 {
        let slot = usize::try_from(group)
            .ok()
            .and_then(|g| self.listeners.get(g.checked_sub(1)?));
        slot.copied().unwrap_or(0)
    }

    /// Whether anybody listens to `group` (`netlink_has_listeners`).
    pub(crate) fn has_listeners(&self, group: u32) -> bool {
        self.listeners(group) > 0
    }
}

/// Turns the engine's events into multicast messages.
pub(crate) fn deliver_events(ns: &mut Netns, out: &mut Outbox, netns: NetnsId) {
    while let Some(event) = ns.poll_event() {
        notify::event(out, ns.profile, netns, &event);
    }
}
