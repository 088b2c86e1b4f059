//! Messages that the kernel sends unasked, as bytes.

use dataplane::Event;

use crate::emulator::NetnsId;
use crate::netlink::Outbox;

/// Multicasts an event of the engine.
pub(crate) fn event(_out: &mut Outbox, _netns: NetnsId, _event: &Event) {}
