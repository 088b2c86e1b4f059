//! Messages that the kernel sends unasked, as bytes.

use dataplane::Event;
use xfrm_proto::consts::group;

use super::{policy, sa};
use crate::emulator::NetnsId;
use crate::netlink::{Destination, Outbox};

/// Multicasts an event of the engine.
pub(crate) fn event(out: &mut Outbox, netns: NetnsId, event: &Event) {
    out.send(
        netns,
        Destination::Group(group::EXPIRE),
        |bytes| match event {
            Event::SaExpire(expire) => sa::encode::expired(bytes, 0, expire),
            Event::PolicyExpire(expiry) => {
                policy::encode::expired(bytes, &expiry.policy, expiry.hard, 0);
            }
        },
    );
}
