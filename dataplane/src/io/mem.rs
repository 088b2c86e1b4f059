//! Two ends in memory: what one sends the other receives, in order.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{PacketIo, Sent};
use crate::packet::PacketBuf;

type Queue = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// One end.
#[derive(Debug)]
pub struct Mem {
    incoming: Queue,
    outgoing: Queue,
    mtu: usize,
}

/// Both ends of a link that takes packets of up to `mtu` bytes.
#[must_use]
pub fn link(mtu: usize) -> (Mem, Mem) {
    let (there, back) = (Queue::default(), Queue::default());
    let first = Mem {
        incoming: Arc::clone(&back),
        outgoing: Arc::clone(&there),
        mtu,
    };
    let second = Mem {
        incoming: there,
        outgoing: back,
        mtu,
    };
    (first, second)
}

impl PacketIo for Mem {
    fn receive(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize> {
        let mut queue = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for packet in packets {
            let Some(bytes) = queue.pop_front() else {
                break;
            };
            if packet.fill(&bytes) {
                count += 1;
            }
        }
        Ok(count)
    }

    fn send(&mut self, packets: &[PacketBuf]) -> Sent {
        let mut queue = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = Sent::default();
        for packet in packets {
            if packet.len() > self.mtu {
                sent.too_long += 1;
            } else {
                queue.push_back(packet.to_vec());
                sent.packets += 1;
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_sends_the_other_receives() {
        let (mut here, mut there) = link(4);
        let packets = [&b"one"[..], b"three", b"two"].map(PacketBuf::copy_of);
        let sent = here.send(&packets);
        assert_eq!((sent.packets, sent.too_long, sent.lost), (2, 1, 0));
        let mut room = [(); 3].map(|()| PacketBuf::with_capacity(10));
        assert_eq!(there.receive(&mut room).unwrap(), 2);
        assert_eq!((&*room[0], &*room[1]), (&b"one"[..], &b"two"[..]));
        assert_eq!(there.receive(&mut room).unwrap(), 0);
        assert_eq!(here.receive(&mut room).unwrap(), 0);
    }
}
