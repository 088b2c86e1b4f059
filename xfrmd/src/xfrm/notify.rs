//! Messages that the kernel sends unasked, as bytes.

use dataplane::{Event, Profile};
use xfrm_proto::consts::group;

use super::{policy, sa};
use crate::emulator::NetnsId;
use crate::netlink::{Destination, Outbox};

/// Multicasts an event of the engine.
pub(crate) fn event(out: &mut Outbox, profile: &Profile, netns: NetnsId, event: &Event) {
    let to = match event {
        Event::SaExpire(_) | Event::PolicyExpire(_) => group::EXPIRE,
        Event::Acquire(_) => group::ACQUIRE,
        Event::Aevent(_) => group::AEVENTS,
        Event::Mapping(_) => group::MAPPING,
    };
    out.send(netns, Destination::Group(to), |bytes| match event {
        Event::SaExpire(expire) => sa::encode::expired(bytes, 0, expire),
        Event::PolicyExpire(expiry) => {
            policy::encode::expired(bytes, &expiry.policy, expiry.hard, 0);
        }
        Event::Acquire(acquire) => policy::encode::acquire(bytes, acquire),
        Event::Aevent(aevent) => {
            // Linux leaves the sequence number and port id of this message to chance.
            let origin = sa::encode::Origin { seq: 0, pid: 0 };
            sa::encode::aevent(bytes, profile, origin, aevent);
        }
        Event::Mapping(mapping) => sa::encode::mapping(bytes, mapping),
    });
}
