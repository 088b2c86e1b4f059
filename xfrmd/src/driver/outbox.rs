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

    /// What came last.
    pub(super) fn last(&self) -> Option<&PacketBuf> {
        self.packets.get(self.used.checked_sub(1)?)
    }

    /// Empties it: runs of packets that go the same way.
    pub(super) fn drain(&mut self, mut send: impl FnMut(Departure, &mut [PacketBuf])) {
        self.drain_but_tail(|to, packets, _| {
            send(to, packets);
            packets.len()
        });
    }

    /// The same; of the last run, for which `send` is told so, what it does not take is kept.
    pub(super) fn drain_but_tail(
        &mut self,
        mut send: impl FnMut(Departure, &mut [PacketBuf], bool) -> usize,
    ) {
        let used = std::mem::take(&mut self.used);
        let mut done = 0;
        while let Some(rest @ [to, ..]) = self.to.get(done..used) {
            let (to, count) = (*to, rest.iter().take_while(|it| *it == to).count());
            let end = done + count;
            let run = self.packets.get_mut(done..end).unwrap_or_default();
            let taken = send(to, run, end == used).min(count);
            if end == used {
                self.used = count - taken;
                done += taken;
                break;
            }
            done = end;
        }
        if self.used > 0 {
            let (packets, to) = (self.packets.get_mut(..used), self.to.get_mut(..used));
            if let (Some(packets), Some(to)) = (packets, to) {
                packets.rotate_left(done);
                to.rotate_left(done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::packet::Family;

    fn departure(mark: u32) -> Departure {
        Departure {
            family: Family::V4,
            mark,
        }
    }

    #[test]
    fn what_is_not_taken_comes_first_the_next_time() {
        let mut outbox = Outbox::default();
        let push = |outbox: &mut Outbox, mark: u32, bytes: &[u8]| {
            outbox.push(&mut PacketBuf::copy_of(bytes), departure(mark));
        };
        push(&mut outbox, 1, b"a");
        push(&mut outbox, 2, b"b");
        push(&mut outbox, 2, b"c");
        push(&mut outbox, 2, b"d");
        let mut seen: Vec<(u32, Vec<u8>)> = Vec::new();
        let send = |take: usize| {
            move |seen: &mut Vec<(u32, Vec<u8>)>,
                  to: Departure,
                  packets: &mut [PacketBuf],
                  last: bool| {
                let count = if last { take } else { packets.len() };
                let taken = packets.iter().take(count).map(|it| it.to_vec());
                seen.extend(taken.map(|it| (to.mark, it)));
                count
            }
        };
        let some = send(1);
        outbox.drain_but_tail(|to, packets, last| some(&mut seen, to, packets, last));
        assert_eq!(seen, [(1, b"a".to_vec()), (2, b"b".to_vec())]);
        assert_eq!(outbox.len(), 2);
        push(&mut outbox, 3, b"e");
        seen.clear();
        let none = send(0);
        outbox.drain_but_tail(|to, packets, last| none(&mut seen, to, packets, last));
        assert_eq!(seen, [(2, b"c".to_vec()), (2, b"d".to_vec())]);
        assert_eq!(outbox.last().map(|it| it.to_vec()), Some(b"e".to_vec()));
        outbox.drain(|to, packets| seen.push((to.mark, packets[0].to_vec())));
        assert_eq!(seen.last(), Some(&(3, b"e".to_vec())));
        assert_eq!(outbox.len(), 0);
    }
}
