//! Messages that the kernel sends unasked, as bytes.

use dataplane::Event;
use xfrm_proto::consts::group;

use super::policy;
use crate::emulator::NetnsId;
use crate::netlink::{Destination, Outbox};

/// Multicasts an event of the engine.
pub(crate) fn event(out: &mut Outbox, netns: NetnsId, event: &Event) {
    match event {
        Event::SaExpire(_) => {}
        Event::PolicyExpire(expiry) => {
            out.send(netns, Destination::Group(group::EXPIRE), |bytes| {
                policy::encode::expired(bytes, &expiry.policy, expiry.hard, 0);
            });
        }
    }
}
