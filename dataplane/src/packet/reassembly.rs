//! Putting fragments together, in bounded memory and time.
//!
//! Source: `net/ipv4/ip_fragment.c`, `net/ipv6/reassembly.c`,
//! `net/ipv4/inet_fragment.c`. As there, a fragment that lies wholly within
//! what has come is ignored, one that overlaps it otherwise ends the packet
//! (RFC 5722), and packets that are not complete in time are forgotten.
//!
//! Bounds: [`Limits`] for packets under way and for their bytes; the runs of
//! one packet are at most 8,192, found by binary search.

use std::collections::{HashMap, VecDeque};

use super::{Family, PacketBuf, be16, be32, ip4, ip6, put};
use crate::drop_reason::DropReason;
use crate::time::BootNanos;

/// Fixed cost that a packet under way is charged.
const QUEUE_BYTES: usize = 256;
const V4_TIMEOUT_SECS: u64 = 30;
const V6_TIMEOUT_SECS: u64 = 60;

/// How much may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all packets under way (`ipfrag_high_thresh`).
    pub bytes: usize,
    /// Packets under way.
    pub packets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            packets: 4096,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    family: Family,
    src: [u8; 16],
    dst: [u8; 16],
    ident: u32,
    protocol: u8,
    /// Which way it came: fragments of one packet come the same way.
    path: u64,
}

/// A fragment's place in its packet.
struct Piece {
    key: Key,
    /// Bytes of headers in front of the part that is cut.
    header_bytes: usize,
    /// Where the payload begins in the fragment, behind a fragment header.
    payload_at: usize,
    offset: usize,
    more: bool,
    dont_fragment: bool,
    ecn: u8,
    /// IPv6: where the headers name the fragment header, and what that names.
    next_header_at: usize,
    protocol: u8,
}

#[derive(Debug, Default)]
struct Queue {
    /// Headers of the first fragment, once it is there.
    header: Vec<u8>,
    payload: Vec<u8>,
    /// Runs of payload that came, in order, never touching each other.
    runs: Vec<(usize, usize)>,
    /// Length of the payload, once the last fragment is there.
    total: Option<usize>,
    /// One bit for each ECN codepoint seen.
    ecn: u8,
    longest: usize,
    longest_df: usize,
    next_header_at: usize,
    protocol: u8,
}

/// Packets under way.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    queues: HashMap<Key, Queue, foldhash::fast::RandomState>,
    /// Deadlines in the order they come, per family.
    deadlines: [VecDeque<(BootNanos, Key)>; 2],
    bytes: usize,
}

/// What a fragment brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The packet in the buffer is whole: it was no fragment, or the last that was missing.
    Whole,
    /// The fragment is kept; the buffer is free for another packet.
    Kept,
}

impl Reassembler {
    /// Nothing under way.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queues: HashMap::default(),
            deadlines: [VecDeque::new(), VecDeque::new()],
            bytes: 0,
        }
    }

    /// Bytes held.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest packet under way is given up.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootNanos> {
        let first = |queue: &VecDeque<(BootNanos, Key)>| queue.front().map(|(at, _)| *at);
        self.deadlines.iter().filter_map(first).min()
    }

    /// Gives up what took too long.
    #[inline]
    pub fn handle_timeout(&mut self, now: BootNanos) {
        if !self.queues.is_empty() {
            self.forget_late(now);
        }
    }

    fn forget_late(&mut self, now: BootNanos) {
        for index in 0..self.deadlines.len() {
            while let Some(key) = self.next_due(index, now) {
                self.forget(&key);
            }
        }
    }

    fn next_due(&mut self, index: usize, now: BootNanos) -> Option<Key> {
        let deadlines = self.deadlines.get_mut(index)?;
        let (at, _) = deadlines.front()?;
        if *at > now {
            return None;
        }
        deadlines.pop_front().map(|(_, key)| key)
    }

    /// Takes a packet, whole or a fragment, that a header check has passed.
    ///
    /// # Errors
    /// [`DropReason::Reassembly`] for a fragment that cannot belong to a packet, or for which there is no room.
    pub fn receive(
        &mut self,
        now: BootNanos,
        packet: &mut PacketBuf,
    ) -> Result<Outcome, DropReason> {
        self.receive_from(now, packet, 0)
    }

    /// The same, where fragments that came by different ways are never put together.
    ///
    /// # Errors
    /// As [`Reassembler::receive`].
    pub fn receive_from(
        &mut self,
        now: BootNanos,
        packet: &mut PacketBuf,
        path: u64,
    ) -> Result<Outcome, DropReason> {
        let Some(mut piece) = Piece::of(packet)? else {
            return Ok(Outcome::Whole);
        };
        piece.key.path = path;
        let key = piece.key;
        if !self.queues.contains_key(&key) {
            self.open(now, key)?;
        }
        let Some(queue) = self.queues.get_mut(&key) else {
            return Err(DropReason::Reassembly);
        };
        let before = queue.bytes();
        let outcome = queue.add(packet, &piece);
        self.bytes = self.bytes + queue.bytes() - before;
        match outcome {
            Ok(None) if self.bytes > self.limits.bytes => {
                self.close(&key);
                Err(DropReason::Reassembly)
            }
            Ok(None) => Ok(Outcome::Kept),
            Ok(Some(Outcome::Kept)) => Err(DropReason::Reassembly),
            Ok(Some(Outcome::Whole)) => {
                let built = queue.build(packet, key.family);
                self.close(&key);
                built.map(|()| Outcome::Whole)
            }
            Err(reason) => {
                self.close(&key);
                Err(reason)
            }
        }
    }

    fn open(&mut self, now: BootNanos, key: Key) -> Result<(), DropReason> {
        let full = self.bytes + QUEUE_BYTES > self.limits.bytes;
        if full || self.queues.len() >= self.limits.packets {
            return Err(DropReason::Reassembly);
        }
        let (index, secs) = match key.family {
            Family::V4 => (0, V4_TIMEOUT_SECS),
            Family::V6 => (1, V6_TIMEOUT_SECS),
        };
        if let Some(deadlines) = self.deadlines.get_mut(index) {
            deadlines.push_back((now.plus_secs(secs), key));
        }
        self.queues.insert(key, Queue::default());
        self.bytes += QUEUE_BYTES;
        Ok(())
    }

    /// Drops a packet under way before its time.
    fn close(&mut self, key: &Key) {
        self.forget(key);
        for deadlines in &mut self.deadlines {
            // Most packets are complete before the next begins: the entry is at the end.
            if let Some(at) = deadlines.iter().rposition(|(_, other)| other == key) {
                deadlines.remove(at);
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(queue) = self.queues.remove(key) {
            self.bytes = self.bytes.saturating_sub(queue.bytes() + QUEUE_BYTES);
        }
    }
}

impl Piece {
    /// Where a packet belongs; `None` for one that is no fragment.
    fn of(packet: &[u8]) -> Result<Option<Self>, DropReason> {
        let refuse = DropReason::Reassembly;
        match Family::of(packet).ok_or(refuse)? {
            Family::V4 => {
                let header = ip4::Header::parse(packet).ok_or(refuse)?;
                if !header.is_fragment() {
                    return Ok(None);
                }
                let mut key = Key {
                    family: Family::V4,
                    src: [0; 16],
                    dst: [0; 16],
                    ident: u32::from(header.ident),
                    protocol: header.protocol,
                    path: 0,
                };
                put(&mut key.src, 0, &header.src);
                put(&mut key.dst, 0, &header.dst);
                Ok(Some(Self {
                    key,
                    header_bytes: header.header_bytes,
                    payload_at: header.header_bytes,
                    offset: usize::from(header.fragment & ip4::OFFSET_MASK) * 8,
                    more: header.fragment & ip4::MF != 0,
                    dont_fragment: header.fragment & ip4::DF != 0,
                    ecn: header.tos & 3,
                    next_header_at: 0,
                    protocol: header.protocol,
                }))
            }
            Family::V6 => {
                let header = ip6::Header::parse(packet).ok_or(refuse)?;
                let Some(place) = ip6::upper_layer(packet) else {
                    return Ok(None);
                };
                if packet.get(place.next_header_at) != Some(&ip6::FRAGMENT) {
                    return Ok(None);
                }
                let protocol = *packet.get(place.at).ok_or(refuse)?;
                let word = be16(packet, place.at + 2).ok_or(refuse)?;
                let ident = be32(packet, place.at + 4).ok_or(refuse)?;
                Ok(Some(Self {
                    key: Key {
                        family: Family::V6,
                        src: header.src,
                        dst: header.dst,
                        ident,
                        protocol: 0,
                        path: 0,
                    },
                    header_bytes: place.at,
                    payload_at: place.at + 8,
                    offset: usize::from(word & !7),
                    more: word & 1 != 0,
                    dont_fragment: false,
                    ecn: header.traffic_class & 3,
                    next_header_at: place.next_header_at,
                    protocol,
                }))
            }
        }
    }
}

impl Queue {
    fn bytes(&self) -> usize {
        self.header.capacity() + self.payload.capacity() + self.runs.capacity() * 16
    }

    /// Keeps a fragment: `Some(Whole)` when it was the last one missing,
    /// `Some(Kept)` for a duplicate.
    fn add(&mut self, packet: &[u8], piece: &Piece) -> Result<Option<Outcome>, DropReason> {
        let refuse = DropReason::Reassembly;
        let mut payload = packet.get(piece.payload_at..).ok_or(refuse)?;
        if piece.more && payload.len() % 8 != 0 {
            match piece.key.family {
                Family::V4 => payload = payload.get(..payload.len() & !7).ok_or(refuse)?,
                Family::V6 => return Err(refuse),
            }
        }
        let (start, end) = (piece.offset, piece.offset + payload.len());
        let longest = 65_535
            - if piece.key.family == Family::V4 {
                20
            } else {
                0
            };
        if end > longest || payload.is_empty() {
            return Err(refuse);
        }
        let furthest = self.runs.last().map_or(0, |run| run.1);
        match self.total {
            Some(total) if end > total || (!piece.more && end != total) => return Err(refuse),
            None if !piece.more && end < furthest => return Err(refuse),
            _ => {}
        }

        // The runs before `at` end at or before the fragment's start.
        let at = self.runs.partition_point(|run| run.1 <= start);
        if let Some(run) = self.runs.get(at).filter(|run| run.0 < end) {
            let duplicate = run.0 <= start && end <= run.1;
            return if duplicate {
                Ok(Some(Outcome::Kept))
            } else {
                Err(refuse)
            };
        }
        if !piece.more {
            self.total = Some(end);
        }
        let touches_next = self.runs.get(at).is_some_and(|run| run.0 == end);
        let touches_previous = at > 0 && self.runs.get(at - 1).is_some_and(|run| run.1 == start);
        match (touches_previous, touches_next) {
            (true, true) => {
                let next = self.runs.remove(at);
                if let Some(run) = self.runs.get_mut(at - 1) {
                    run.1 = next.1;
                }
            }
            (true, false) => {
                if let Some(run) = self.runs.get_mut(at - 1) {
                    run.1 = end;
                }
            }
            (false, true) => {
                if let Some(run) = self.runs.get_mut(at) {
                    run.0 = start;
                }
            }
            (false, false) => self.runs.insert(at, (start, end)),
        }

        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        put(&mut self.payload, start, payload).ok_or(refuse)?;
        if start == 0 {
            self.header = packet.get(..piece.header_bytes).ok_or(refuse)?.to_vec();
            self.next_header_at = piece.next_header_at;
            self.protocol = piece.protocol;
        }
        self.ecn |= 1 << piece.ecn;
        let whole_bytes = piece.header_bytes + payload.len();
        self.longest = self.longest.max(whole_bytes);
        if piece.dont_fragment {
            self.longest_df = self.longest_df.max(whole_bytes);
        }
        let complete =
            matches!((&self.runs[..], self.total), ([(0, end)], Some(total)) if *end == total);
        Ok(complete.then_some(Outcome::Whole))
    }

    /// Writes the whole packet into `packet`.
    fn build(&self, packet: &mut PacketBuf, family: Family) -> Result<(), DropReason> {
        let refuse = DropReason::Reassembly;
        let ecn = merge_ecn(self.ecn).ok_or(refuse)?;
        let fits = packet.fill(&self.header);
        let room = packet.push_back(self.payload.len()).filter(|_| fits);
        room.ok_or(DropReason::InNoRoom)?
            .copy_from_slice(&self.payload);
        let built = match family {
            Family::V4 => {
                // Fragments of a sender who set DF on the longest: the whole was meant so.
                let fragment = if self.longest_df == self.longest {
                    ip4::DF
                } else {
                    0
                };
                put(packet, 6, &fragment.to_be_bytes())
                    .and_then(|()| packet.get_mut(1))
                    .map(|tos| *tos |= ecn)
                    .and_then(|()| ip4::finish(packet))
            }
            Family::V6 => {
                let class = ip6::Header::parse(packet).map(|header| header.traffic_class | ecn);
                put(packet, self.next_header_at, &[self.protocol])
                    .and(class)
                    .and_then(|class| ip6::set_traffic_class(packet, class))
                    .and_then(|()| ip6::finish(packet))
            }
        };
        built.ok_or(refuse)
    }
}

/// The ECN codepoint to add to the first fragment's; `None` for combinations
/// that no sender makes (RFC 3168 5.3, `ip_frag_ecn_table`).
const fn merge_ecn(seen: u8) -> Option<u8> {
    const NOT_ECT: u8 = 1;
    const CE: u8 = 1 << 3;
    if seen & NOT_ECT != 0 && seen != NOT_ECT {
        None
    } else if seen & CE != 0 {
        Some(3)
    } else {
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fragment::Fragmenter;
    use super::*;
    use proptest::prelude::*;

    const NOW: BootNanos = BootNanos(1);

    fn packet(family: Family, payload: usize) -> Vec<u8> {
        let mut packet = match family {
            Family::V4 => vec![0x45, 2, 0, 0, 9, 9, 0, 0, 64, 50, 0, 0],
            Family::V6 => vec![0x60, 0x20, 0, 0, 0, 0, 50, 64],
        };
        packet.extend(match family {
            Family::V4 => vec![10; 8],
            Family::V6 => vec![0xfd; 32],
        });
        packet.extend((0..payload).map(|i| (i * 7 % 251).to_be_bytes()[7]));
        super::super::finish(&mut packet).unwrap();
        packet
    }

    fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let mut cutter = Fragmenter::new(packet, mtu, 77).unwrap();
        let mut buffer = PacketBuf::with_capacity(2000);
        let mut out = Vec::new();
        while cutter.next_into(&mut buffer).unwrap() {
            out.push(buffer.to_vec());
        }
        out
    }

    fn give(
        reassembler: &mut Reassembler,
        fragment: &[u8],
    ) -> (Result<Outcome, DropReason>, Vec<u8>) {
        let mut buffer = PacketBuf::with_capacity(66_000);
        buffer.fill(fragment);
        let outcome = reassembler.receive(NOW, &mut buffer);
        (outcome, buffer.to_vec())
    }

    #[test]
    fn overlaps_end_the_packet() {
        let parts = cut(&packet(Family::V4, 100), 60);
        let mut overlapping = parts[1].clone();
        overlapping[7] -= 1;
        let mut reassembler = Reassembler::new(Limits::default());
        assert_eq!(give(&mut reassembler, &parts[0]).0, Ok(Outcome::Kept));
        assert_eq!(
            give(&mut reassembler, &overlapping).0,
            Err(DropReason::Reassembly)
        );
        assert_eq!(reassembler.bytes(), 0);
        assert!(reassembler.poll_timeout().is_none());
    }

    /// What waits is a copy: decryption in place of what comes later in the same buffer cannot
    /// reach it.
    #[test]
    fn what_waits_shares_no_memory() {
        let whole = packet(Family::V4, 100);
        let parts = cut(&whole, 60);
        let mut reassembler = Reassembler::new(Limits::default());
        let mut buffer = PacketBuf::with_capacity(66_000);
        let mut outcome = None;
        for part in &parts {
            buffer.fill(part);
            outcome = Some(reassembler.receive(NOW, &mut buffer));
            if outcome == Some(Ok(Outcome::Kept)) {
                buffer.fill(&[0xee; 66_000]);
                buffer.iter_mut().for_each(|byte| *byte = 0xee);
            }
        }
        assert_eq!(outcome, Some(Ok(Outcome::Whole)));
        assert_eq!(buffer[20..], whole[20..]);
    }

    #[test]
    fn duplicates_are_ignored() {
        let whole = packet(Family::V6, 200);
        let parts = cut(&whole, 120);
        let mut reassembler = Reassembler::new(Limits::default());
        assert_eq!(give(&mut reassembler, &parts[0]).0, Ok(Outcome::Kept));
        assert_eq!(
            give(&mut reassembler, &parts[0]).0,
            Err(DropReason::Reassembly)
        );
        assert_eq!(give(&mut reassembler, &parts[1]).0, Ok(Outcome::Kept));
        let (outcome, built) = give(&mut reassembler, &parts[2]);
        assert_eq!(outcome, Ok(Outcome::Whole));
        assert_eq!(built, whole);
    }

    /// A last fragment at the highest offset makes more than 64 KiB (the ping of death).
    #[test]
    fn oversize_by_fragments() {
        let mut far = packet(Family::V4, 16);
        far[6..8].copy_from_slice(&0x1fffu16.to_be_bytes());
        let mut reassembler = Reassembler::new(Limits::default());
        assert_eq!(give(&mut reassembler, &far).0, Err(DropReason::Reassembly));
        assert_eq!(reassembler.bytes(), 0);
    }

    #[test]
    fn congestion_in_one_fragment_is_the_packets() {
        let whole = packet(Family::V4, 100);
        let mut parts = cut(&whole, 60);
        ip4::set_tos(&mut parts[1], 3).unwrap();
        let mut reassembler = Reassembler::new(Limits::default());
        let built = parts
            .iter()
            .map(|part| give(&mut reassembler, part))
            .last()
            .unwrap();
        assert_eq!((built.0, built.1[1]), (Ok(Outcome::Whole), 3));
        for part in &mut parts {
            ip4::set_tos(part, 0).unwrap();
        }
        ip4::set_tos(&mut parts[1], 2).unwrap();
        let built = parts
            .iter()
            .map(|part| give(&mut reassembler, part))
            .last()
            .unwrap();
        assert_eq!(built.0, Err(DropReason::Reassembly));
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let mut reassembler = Reassembler::new(Limits {
            bytes: 20_000,
            packets: 10,
        });
        for ident in 0..100u8 {
            let mut part = cut(&packet(Family::V4, 2000), 1500).remove(0);
            part[4] = ident;
            let _ = give(&mut reassembler, &part);
            assert!(reassembler.bytes() <= 20_000);
        }
        assert!(reassembler.queues.len() <= 10);
        let deadline = reassembler.poll_timeout().unwrap();
        assert_eq!(deadline, NOW.plus_secs(30));
        reassembler.handle_timeout(deadline);
        assert_eq!((reassembler.bytes(), reassembler.poll_timeout()), (0, None));
    }

    proptest! {
        #[test]
        fn any_order_gives_the_packet(v6: bool, payload in 1usize..6000, mtu in 100usize..1500, order in proptest::collection::vec(any::<u32>(), 100)) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let whole = packet(family, payload);
            let mut parts = cut(&whole, mtu);
            if parts.len() == 1 {
                return Ok(());
            }
            for (at, pick) in order.iter().enumerate().take(parts.len()) {
                let with = usize::try_from(*pick).unwrap() % parts.len();
                parts.swap(at, with);
            }
            let mut reassembler = Reassembler::new(Limits::default());
            let last = parts.pop().unwrap();
            for part in &parts {
                prop_assert_eq!(give(&mut reassembler, part).0, Ok(Outcome::Kept));
            }
            let (outcome, built) = give(&mut reassembler, &last);
            prop_assert_eq!(outcome, Ok(Outcome::Whole));
            prop_assert_eq!(built, whole);
            prop_assert_eq!(reassembler.bytes(), 0);
        }

        #[test]
        fn any_fragments_are_survived(parts in proptest::collection::vec((any::<u16>(), 0usize..100, 0u8..3), 0..60)) {
            let mut reassembler = Reassembler::new(Limits { bytes: 100_000, packets: 4 });
            for (word, payload, ident) in parts {
                let mut part = packet(Family::V4, payload);
                part[4] = ident;
                part[6..8].copy_from_slice(&word.to_be_bytes());
                let _ = give(&mut reassembler, &part);
                prop_assert!(reassembler.bytes() <= 100_000);
            }
        }
    }
}
