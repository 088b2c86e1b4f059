//! Packets that a thread has made in one round, until they are sent together.

use dataplane::packet::PacketBuf;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::path::Departure;

/// Packets to be sent together.
#[derive(Default)]
pub(super) struct Outbox {
    packets: Vec<PacketBuf>,
    to: Vec<Departure>,
    used: usize,
}

impl Outbox {
    /// Takes the packet; the buffer holds leftovers of another one then, or itself.
    ///
    /// Buffers change hands, but for those that would not take every packet.
    pub(super) fn push(&mut self, packet: &mut PacketBuf, to: Departure) {
        if self.used == self.packets.len() {
            self.packets.push(PacketBuf::with_capacity(MAX_PACKET));
            self.to.push(to);
        }
        if let (Some(slot), Some(slot_to)) =
            (self.packets.get_mut(self.used), self.to.get_mut(self.used))
        {
            let takes_all = packet.room() >= slot.room();
            if takes_all {
                std::mem::swap(slot, packet);
            }
            if takes_all || slot.fill(packet) {
                *slot_to = to;
                self.used += 1;
            }
        }
    }

    /// How many it holds.
    pub(super) const fn len(&self) -> usize {
        self.used
    }

    /// Empties it: runs of packets that go the same way.
    pub(super) fn drain(&mut self, mut send: impl FnMut(Departure, &mut [PacketBuf])) {
        let used = std::mem::take(&mut self.used);
        let packets = self.packets.get_mut(..used).unwrap_or_default();
        let mut rest = packets;
        for run in self
            .to
            .get(..used)
            .unwrap_or_default()
            .chunk_by(|a, b| a == b)
        {
            let (these, others) = rest.split_at_mut(run.len());
            rest = others;
            if let Some(to) = run.first() {
                send(*to, these);
            }
        }
    }
}
