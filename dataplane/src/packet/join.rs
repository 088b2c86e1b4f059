//! Joining packets for a device that takes up to 64 KiB of TCP or UDP in one
//! piece: the reverse of [`super::segment`].
//!
//! Linux does this to what a network card receives (GRO): `net/ipv4/tcp_offload.c
//! tcp_gro_receive`, `net/ipv4/udp_offload.c udp_gro_receive_segment`,
//! `net/ipv4/af_inet.c inet_gro_receive`. The rule here is stricter where that
//! costs nothing: whoever cuts the frame again gets the packets that came, but for the
//! identification where DF is set.
//!
//! * Neighbours of one flow, in order, with the same headers, are joined: sequence numbers follow
//!   each other (TCP), all but the last are equally long, and each checksum is right. PSH ends a frame.
//! * Flags that matter one by one (SYN, FIN, RST, URG, CWR), fragments, options and extension headers
//!   of IP, and UDP without a checksum stay alone.
//! * Packets of a flow stay in order. What is of no flow that can be told ends all frames before it.
//!
//! Payloads are not copied: a [`Frame`] is the first packet and the payloads of the others.

use xfrm_proto::consts::{IPPROTO_TCP, IPPROTO_UDP};

use super::checksum::{Sum, addresses, pseudo_header};
use super::segment::Offload;
use super::{Family, PacketBuf, be16, be32, ip4, ip6, put};

const TCP_PSH: u8 = 8;
const TCP_ACK: u8 = 0x10;
const TCP_ECE: u8 = 0x40;
const UDP_HEADER_BYTES: usize = 8;
/// `UDP_MAX_SEGMENTS`, and a bound for the pieces of one write.
pub const MOST_PACKETS: usize = 64;
/// The longest frame that both families' length fields take.
const MOST_BYTES: usize = 65_535;
/// Flows with an unfinished frame.
const MOST_OPEN: usize = 16;

/// A frame: one packet, or several that were joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    first: usize,
    /// Packets in it.
    pub count: usize,
    /// Protocol above IP, if there is something to be done.
    pub protocol: u8,
    /// Where the payload is, in each of its packets.
    pub header_bytes: u16,
    /// What the receiver has to do, nothing for a single packet.
    pub offload: Offload,
}

/// Where things are in a packet that could be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    family: Family,
    protocol: u8,
    transport_at: usize,
    payload_at: usize,
}

/// A frame that may grow.
#[derive(Clone, Copy, Debug)]
struct Open {
    frame: usize,
    last: usize,
    layout: Layout,
    /// Of the frame, headers included.
    bytes: usize,
    /// Payload of each packet but the last.
    segment_bytes: usize,
    /// Its last packet has come.
    full: bool,
    next_number: u32,
    next_ident: u16,
    /// The first packet's checksum has been looked at, and is right.
    checked: bool,
    pushed: bool,
}

/// Joins packets; keeps its buffers.
#[derive(Debug, Default)]
pub struct Joiner {
    frames: Vec<Frame>,
    /// Of each packet the next one of its frame.
    next: Vec<Option<usize>>,
    open: Vec<Open>,
}

/// Whether a packet is of a TCP stream that goes on: its sender marks the last one of what he has
/// to say so far (PSH).
#[must_use]
pub fn may_grow(packet: &[u8]) -> bool {
    Layout::of(packet).is_some_and(|layout| {
        layout.protocol == IPPROTO_TCP && layout.opens(packet, 0, 0).is_some()
    })
}

impl Joiner {
    /// Joins what can be, with the headers of each frame's first packet changed accordingly.
    /// UDP is joined for receivers that know how to cut it.
    pub fn join(&mut self, packets: &mut [PacketBuf], udp: bool) {
        self.frames.clear();
        self.next.clear();
        self.open.clear();
        for at in 0..packets.len() {
            self.next.push(None);
            self.add(packets, at, udp);
        }
        while let Some(open) = self.open.pop() {
            self.close(packets, &open);
        }
    }

    /// The frames, in order.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// What a frame consists of, in order.
    pub fn parts<'a>(
        &'a self,
        frame: &Frame,
        packets: &'a [PacketBuf],
    ) -> impl Iterator<Item = &'a [u8]> {
        let payload_at = usize::from(frame.header_bytes);
        let first = packets.get(frame.first).map(|packet| &**packet);
        let mut at = frame.first;
        let others = std::iter::from_fn(move || {
            at = (*self.next.get(at)?)?;
            packets.get(at)?.get(payload_at..)
        });
        first.into_iter().chain(others)
    }

    fn add(&mut self, packets: &mut [PacketBuf], at: usize, udp: bool) {
        let alone = Frame {
            first: at,
            count: 1,
            protocol: 0,
            header_bytes: 0,
            offload: Offload::default(),
        };
        let packet = packets.get(at).map_or(&[][..], |packet| packet);
        let layout = Layout::of(packet).filter(|it| udp || it.protocol != IPPROTO_UDP);
        let Some(layout) = layout else {
            while let Some(open) = self.open.pop() {
                self.close(packets, &open);
            }
            self.frames.push(alone);
            return;
        };
        let mate = self.open.iter().position(|open| {
            let first = self.frames.get(open.frame);
            let first = first.and_then(|frame| packets.get(frame.first));
            first.is_some_and(|first| layout.same_flow(first, packet))
        });
        if let Some(mate) = mate {
            if self.append(packets, at, layout, mate) {
                return;
            }
            let open = self.open.swap_remove(mate);
            self.close(packets, &open);
        }
        let packet = packets.get(at).map_or(&[][..], |packet| packet);
        if let Some(open) = layout.opens(packet, at, self.frames.len()) {
            if self.open.len() == MOST_OPEN {
                let oldest = self.open.remove(0);
                self.close(packets, &oldest);
            }
            self.open.push(open);
        }
        self.frames.push(alone);
    }

    /// Appends a packet to a frame of its flow; false when it does not belong there.
    fn append(&mut self, packets: &[PacketBuf], at: usize, layout: Layout, mate: usize) -> bool {
        let Some(open) = self.open.get_mut(mate) else {
            return false;
        };
        let Some(frame) = self.frames.get_mut(open.frame) else {
            return false;
        };
        let (Some(first), Some(packet)) = (packets.get(frame.first), packets.get(at)) else {
            return false;
        };
        let payload_bytes = packet.len() - layout.payload_at;
        let fits = open.layout == layout
            && !open.full
            && payload_bytes > 0
            && payload_bytes <= open.segment_bytes
            && open.bytes + payload_bytes <= MOST_BYTES;
        if !fits || layout.follows(open, first, packet).is_none() {
            return false;
        }
        if !open.checked && !layout.checksum_is_right(first) || !layout.checksum_is_right(packet) {
            return false;
        }
        open.checked = true;
        open.bytes += payload_bytes;
        let payload = u32::try_from(payload_bytes).unwrap_or(0);
        open.next_number = open.next_number.wrapping_add(payload);
        open.next_ident = open.next_ident.wrapping_add(1);
        open.pushed = layout.is_pushed(packet);
        if let Some(slot) = self.next.get_mut(open.last) {
            *slot = Some(at);
        }
        open.last = at;
        frame.count += 1;
        open.full =
            open.pushed || payload_bytes < open.segment_bytes || frame.count == MOST_PACKETS;
        true
    }

    /// Writes the headers of a frame that is done.
    fn close(&mut self, packets: &mut [PacketBuf], open: &Open) {
        let Some(frame) = self.frames.get_mut(open.frame) else {
            return;
        };
        if frame.count == 1 {
            return;
        }
        let Some(first) = packets.get_mut(frame.first) else {
            return;
        };
        if let Some((start, offset)) = open.layout.patch(first, open.bytes, open.pushed) {
            frame.protocol = open.layout.protocol;
            frame.header_bytes = u16::try_from(open.layout.payload_at).unwrap_or(0);
            frame.offload = Offload {
                segment_bytes: u16::try_from(open.segment_bytes).unwrap_or(0),
                checksum: Some((start, offset)),
            };
        }
    }
}

impl Layout {
    /// Of TCP or UDP right behind a plain IP header.
    fn of(packet: &[u8]) -> Option<Self> {
        const PLAIN_V4: u8 = 0x45;
        const PARTS: u16 = !ip4::DF;
        let family = Family::of(packet)?;
        let (protocol, transport_at, bytes) = match family {
            Family::V4 => {
                if *packet.first()? != PLAIN_V4 || be16(packet, 6)? & PARTS != 0 {
                    return None;
                }
                (*packet.get(9)?, 20, usize::from(be16(packet, 2)?))
            }
            Family::V6 => {
                let payload_bytes = usize::from(be16(packet, 4)?);
                (*packet.get(6)?, 40, ip6::HEADER_BYTES + payload_bytes)
            }
        };
        let transport_bytes = match protocol {
            IPPROTO_TCP => usize::from(*packet.get(transport_at + 12)? >> 4) * 4,
            IPPROTO_UDP => UDP_HEADER_BYTES,
            _ => return None,
        };
        let least = if protocol == IPPROTO_TCP { 20 } else { 8 };
        let payload_at = transport_at + transport_bytes;
        let sane = bytes == packet.len() && transport_bytes >= least && payload_at <= bytes;
        sane.then_some(Self {
            family,
            protocol,
            transport_at,
            payload_at,
        })
    }

    fn same_flow(self, one: &[u8], other: &[u8]) -> bool {
        let ports = self.transport_at..self.transport_at + 4;
        let next_header = match self.family {
            Family::V4 => 9,
            Family::V6 => 6,
        };
        one.get(next_header) == Some(&self.protocol)
            && one.get(ports.clone()) == other.get(ports)
            && addresses(one) == addresses(other)
    }

    /// The frame that begins with a packet; `None` if that stays alone.
    fn opens(self, packet: &[u8], at: usize, frame: usize) -> Option<Open> {
        let payload_bytes = packet.len() - self.payload_at;
        if payload_bytes == 0 || !self.may_be_joined(packet)? || self.is_pushed(packet) {
            return None;
        }
        let payload = u32::try_from(payload_bytes).ok()?;
        Some(Open {
            frame,
            last: at,
            layout: self,
            bytes: packet.len(),
            segment_bytes: payload_bytes,
            full: false,
            next_number: match self.protocol {
                IPPROTO_TCP => be32(packet, self.transport_at + 4)?.wrapping_add(payload),
                _ => 0,
            },
            next_ident: be16(packet, 4)?.wrapping_add(1),
            checked: false,
            pushed: false,
        })
    }

    fn may_be_joined(self, packet: &[u8]) -> Option<bool> {
        let at = self.transport_at;
        Some(match self.protocol {
            IPPROTO_TCP => {
                let flags = *packet.get(at + 13)?;
                flags & !(TCP_PSH | TCP_ECE) == TCP_ACK
            }
            _ => {
                let bytes = usize::from(be16(packet, at + 4)?);
                bytes == packet.len() - at && be16(packet, at + 6)? != 0
            }
        })
    }

    fn is_pushed(self, packet: &[u8]) -> bool {
        let flags = packet.get(self.transport_at + 13);
        self.protocol == IPPROTO_TCP && flags.is_some_and(|flags| flags & TCP_PSH != 0)
    }

    /// Whether a packet's headers are those that would come out of cutting the frame.
    fn follows(self, open: &Open, first: &[u8], packet: &[u8]) -> Option<()> {
        let same =
            |from: usize, to: usize| (first.get(from..to)? == packet.get(from..to)?).then_some(());
        match self.family {
            Family::V4 => {
                same(0, 2)?;
                same(6, 9)?;
                let keeps_ident = be16(packet, 6)? & ip4::DF == 0;
                if keeps_ident && be16(packet, 4)? != open.next_ident {
                    return None;
                }
            }
            Family::V6 => {
                same(0, 4)?;
                same(7, 8)?;
            }
        }
        if !self.may_be_joined(packet)? {
            return None;
        }
        if self.protocol == IPPROTO_UDP {
            return Some(());
        }
        let at = self.transport_at;
        if be32(packet, at + 4)? != open.next_number {
            return None;
        }
        // Acknowledgement, header length; flags but PSH; window; options.
        same(at + 8, at + 13)?;
        if (first.get(at + 13)? ^ packet.get(at + 13)?) & !TCP_PSH != 0 {
            return None;
        }
        same(at + 14, at + 16)?;
        same(at + 18, self.payload_at)
    }

    fn checksum_is_right(self, packet: &[u8]) -> bool {
        let Some(transport) = packet.get(self.transport_at..) else {
            return false;
        };
        addresses(packet).is_some_and(|addresses| {
            let sum = pseudo_header(addresses, self.protocol, transport.len());
            sum.bytes(transport).finish() == 0
        })
    }

    /// Makes a packet the first one of a frame; where its checksum begins and, from there, goes.
    fn patch(self, packet: &mut PacketBuf, bytes: usize, pushed: bool) -> Option<(u16, u16)> {
        let at = self.transport_at;
        let transport_bytes = bytes - at;
        match self.family {
            Family::V4 => {
                put(packet, 2, &u16::try_from(bytes).ok()?.to_be_bytes())?;
                put(packet, 10, &[0, 0])?;
                let check = Sum::new().bytes(packet.get(..at)?).finish();
                put(packet, 10, &check.to_be_bytes())?;
            }
            Family::V6 => {
                let payload_bytes = u16::try_from(transport_bytes).ok()?;
                put(packet, 4, &payload_bytes.to_be_bytes())?;
            }
        }
        let offset = if self.protocol == IPPROTO_TCP {
            if pushed {
                *packet.get_mut(at + 13)? |= TCP_PSH;
            }
            16
        } else {
            let bytes = u16::try_from(transport_bytes).ok()?;
            put(packet, at + 4, &bytes.to_be_bytes())?;
            6
        };
        let partial = pseudo_header(addresses(packet)?, self.protocol, transport_bytes);
        put(packet, at + offset, &(!partial.finish()).to_be_bytes())?;
        Some((u16::try_from(at).ok()?, u16::try_from(offset).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::Segmenter;
    use super::*;
    use proptest::prelude::*;

    const CWR: u8 = 0x80;
    const FIN: u8 = 1;

    /// A large packet as a device gives it.
    fn whole(family: Family, protocol: u8, flags: u8, port: u8, payload: usize) -> Vec<u8> {
        let mut packet = match family {
            Family::V4 => vec![0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, protocol, 0, 0],
            Family::V6 => vec![0x60, 0, 0, 0, 0, 0, protocol, 64],
        };
        packet.extend(match family {
            Family::V4 => [10; 8].to_vec(),
            Family::V6 => [0xfd; 32].to_vec(),
        });
        match protocol {
            IPPROTO_TCP => {
                packet.extend([0, port, 0, 2, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 7]);
                packet.extend([0x80, flags, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10]);
                packet.extend([1, 2, 3, 4, 5, 6, 7, 8]);
            }
            _ => packet.extend([0, port, 0, 2, 0, 0, 0, 0]),
        }
        packet.extend((0..payload).map(|i| (i % 251).to_be_bytes()[7]));
        packet
    }

    fn cut(packet: &[u8], segment_bytes: u16) -> Vec<PacketBuf> {
        let mut cutter = Segmenter::new(packet, segment_bytes).unwrap();
        let mut out = Vec::new();
        let mut buffer = PacketBuf::with_capacity(2000);
        while cutter.next_into(&mut buffer).unwrap() {
            out.push(buffer.clone());
        }
        out
    }

    fn tcp(port: u8, flags: u8, payload: usize) -> Vec<PacketBuf> {
        cut(&whole(Family::V4, IPPROTO_TCP, flags, port, payload), 100)
    }

    /// Packets of each frame, by their destination ports and lengths.
    fn joined(packets: &[PacketBuf]) -> Vec<usize> {
        let mut packets = packets.to_vec();
        let before = packets.clone();
        let mut joiner = Joiner::default();
        joiner.join(&mut packets, true);
        let frames = joiner.frames();
        for frame in frames.iter().filter(|frame| frame.count == 1) {
            assert_eq!(*packets[frame.first], *before[frame.first]);
            assert_eq!(frame.offload, Offload::default());
        }
        assert_eq!(
            frames.iter().map(|frame| frame.count).sum::<usize>(),
            packets.len()
        );
        frames.iter().map(|frame| frame.count).collect()
    }

    const ACK: u8 = TCP_ACK;

    #[test]
    fn a_flow_is_one_frame_and_ends_with_psh() {
        let mut packets = tcp(1, ACK | TCP_PSH, 450);
        assert_eq!(joined(&packets), [5]);
        packets.extend(tcp(1, ACK, 300));
        assert_eq!(joined(&packets), [5, 3]);
    }

    #[test]
    fn only_a_stream_that_goes_on_may_grow() {
        let grows = |packets: Vec<PacketBuf>| packets.last().is_some_and(|last| may_grow(last));
        assert!(grows(tcp(1, ACK, 300)));
        assert!(!grows(tcp(1, ACK | TCP_PSH, 300)), "nothing more to say");
        assert!(!grows(tcp(1, ACK | FIN, 300)));
        let udp = whole(Family::V4, IPPROTO_UDP, 0, 1, 300);
        assert!(!grows(cut(&udp, 100)));
        let mut answer = whole(Family::V4, IPPROTO_TCP, ACK, 1, 0);
        ip4::finish(&mut answer).unwrap();
        assert!(!may_grow(&answer), "an acknowledgement");
    }

    #[test]
    fn flows_side_by_side() {
        let (one, other) = (tcp(1, ACK, 300), tcp(2, ACK, 300));
        let mixed: Vec<_> = one
            .into_iter()
            .zip(other)
            .flat_map(|(a, b)| [a, b])
            .collect();
        assert_eq!(joined(&mixed), [3, 3]);
    }

    #[test]
    fn what_is_lost_or_late_is_not_covered_up() {
        let mut packets = tcp(1, ACK, 600);
        packets.swap(2, 3);
        assert_eq!(joined(&packets), [2, 1, 1, 2]);
        let mut packets = tcp(1, ACK, 600);
        packets.remove(2);
        assert_eq!(joined(&packets), [2, 3]);
        let mut packets = tcp(1, ACK, 300);
        packets.push(packets[2].clone());
        assert_eq!(joined(&packets), [3, 1]);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_and_alone() {
        for bad in 0..3 {
            let mut packets = tcp(1, ACK, 300);
            packets[bad][60] ^= 1;
            assert_eq!(
                joined(&packets),
                [[1, 2].as_slice(), &[1, 1, 1], &[2, 1]][bad]
            );
        }
    }

    #[test]
    fn what_differs_stays_apart() {
        let change = |at: usize, by: u8| {
            let mut packets = tcp(1, ACK, 200);
            let second = &mut packets[1];
            second[at] ^= by;
            ip4::set_checksum(second).unwrap();
            put(second, 36, &[0, 0]).unwrap();
            let sum = pseudo_header(addresses(second).unwrap(), IPPROTO_TCP, second.len() - 20);
            let check = sum.bytes(&second[20..]).finish();
            put(second, 36, &check.to_be_bytes()).unwrap();
            joined(&packets)
        };
        // TOS, TTL, acknowledgement, window, urgent pointer, time stamp, ECE.
        for (at, by) in [
            (1, 3),
            (8, 1),
            (31, 1),
            (34, 1),
            (39, 1),
            (48, 1),
            (33, TCP_ECE),
        ] {
            assert_eq!(change(at, by), [1, 1], "{at}");
        }
        for flag in [FIN, 2, 4, 0x20, CWR] {
            assert_eq!(change(33, flag), [1, 1], "{flag}");
        }
        assert_eq!(change(5, 0), [2]);
        // With DF the identification means nothing, without it must count.
        assert_eq!(change(5, 0x40), [2]);
        let mut packets = tcp(1, ACK, 300);
        for packet in &mut packets {
            packet[6] = 0;
            ip4::set_checksum(packet).unwrap();
        }
        assert_eq!(joined(&packets), [3]);
        packets[1][5] ^= 0x40;
        assert_eq!(joined(&packets), [1, 1, 1]);
    }

    #[test]
    fn fragments_and_others_end_everything_before_them() {
        let mut packets = tcp(1, ACK, 400);
        let mut fragment = packets[0].clone();
        fragment[6] = 0x20;
        packets.insert(2, fragment);
        assert_eq!(joined(&packets), [2, 1, 2]);
        packets[2] = PacketBuf::copy_of(&[0x45, 0]);
        assert_eq!(joined(&packets), [2, 1, 2]);
    }

    #[test]
    fn udp_is_joined_for_those_who_know_it() {
        let mut packets = cut(&whole(Family::V6, IPPROTO_UDP, 0, 1, 450), 100);
        assert_eq!(joined(&packets), [5]);
        let mut joiner = Joiner::default();
        joiner.join(&mut packets, false);
        assert_eq!(joiner.frames().len(), 5);
        // Without a checksum none is made up.
        let mut packets = cut(&whole(Family::V4, IPPROTO_UDP, 0, 1, 200), 100);
        packets[1][26..28].fill(0);
        assert_eq!(joined(&packets), [1, 1]);
    }

    #[test]
    fn a_frame_has_bounds() {
        let packets = cut(&whole(Family::V4, IPPROTO_UDP, 0, 1, 7000), 100);
        assert_eq!(joined(&packets), [64, 6]);
        let one = whole(Family::V4, IPPROTO_TCP, ACK, 1, 65_000);
        let mut packets = cut(&one, 1300);
        let mut more = packets.split_off(49);
        packets.append(&mut more);
        let mut next = whole(Family::V4, IPPROTO_TCP, ACK, 1, 1300);
        let number = 0xffff_fff0_u32.wrapping_add(65_000);
        put(&mut next, 24, &number.to_be_bytes()).unwrap();
        packets.append(&mut cut(&next, 1300));
        assert_eq!(joined(&packets), [50, 1]);
    }

    proptest! {
        #[test]
        fn whoever_cuts_a_frame_gets_the_packets(v6: bool, is_tcp: bool, psh: bool, segment_bytes in 1u16..1400, packets in 2usize..30) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let protocol = if is_tcp { IPPROTO_TCP } else { IPPROTO_UDP };
            let flags = if psh { ACK | TCP_PSH } else { ACK };
            let payload = usize::from(segment_bytes) * packets - usize::from(segment_bytes) / 2;
            let segments = cut(&whole(family, protocol, flags, 1, payload), segment_bytes);
            let mut packets = segments.clone();
            let mut joiner = Joiner::default();
            joiner.join(&mut packets, true);
            let [frame] = joiner.frames() else {
                return Err(TestCaseError::fail("one frame"));
            };
            prop_assert_eq!(frame.offload.segment_bytes, segment_bytes);
            let frame_bytes: Vec<u8> = joiner.parts(frame, &packets).flatten().copied().collect();
            // The checksum that is missing is that of the frame as one packet.
            let (start, offset) = frame.offload.checksum.unwrap();
            let mut summed = frame_bytes.clone();
            super::super::segment::complete_checksum(&mut summed, start, offset).unwrap();
            let transport = &summed[usize::from(start)..];
            let sum = pseudo_header(addresses(&summed).unwrap(), protocol, transport.len());
            prop_assert_eq!(sum.bytes(transport).finish(), 0);
            if !v6 {
                prop_assert_eq!(super::super::checksum::checksum(&summed[..20]), 0);
            }
            let again = cut(&frame_bytes, segment_bytes);
            prop_assert_eq!(again.len(), segments.len());
            for (again, segment) in again.iter().zip(&segments) {
                prop_assert_eq!(&**again, &**segment);
            }
        }

        #[test]
        fn any_bytes_are_survived(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..6)) {
            let packets: Vec<_> = packets.iter().map(|it| PacketBuf::copy_of(it)).collect();
            joined(&packets);
        }
    }
}
