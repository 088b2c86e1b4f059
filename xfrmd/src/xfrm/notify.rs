//! Messages that the kernel sends unasked, as bytes.

use dataplane::Event;
use xfrm_proto::consts::group;

use super::sa::encode;
use crate::emulator::NetnsId;
use crate::netlink::{Destination, Outbox};

/// Multicasts an event of the engine.
pub(crate) fn event(out: &mut Outbox, netns: NetnsId, event: &Event) {
    match event {
        Event::SaExpire(expire) => out.send(netns, Destination::Group(group::EXPIRE), |bytes| {
            encode::expired(bytes, 0, expire);
        }),
        Event::PolicyExpire(_) => {}
    }
}
