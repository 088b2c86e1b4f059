//! Cutting what a TUN device hands over in one piece, up to 64 KiB of TCP or
//! UDP, into packets, and finishing checksums that it left to be done.
//!
//! The kernel describes such a packet by a `virtio_net_hdr`; the fields that
//! matter are in [`Offload`]. Linux does the same in `xfrm_output_gso` before
//! any SA sees the packets: `net/ipv4/tcp_offload.c tcp_gso_segment`,
//! `net/ipv4/udp_offload.c __udp_gso_segment`, `net/ipv4/af_inet.c inet_gso_segment`.

use xfrm_proto::consts::{IPPROTO_TCP, IPPROTO_UDP};

use super::checksum::{Sum, addresses, pseudo_header};
use super::{Family, PacketBuf, be16, be32, ip4, ip6, put};

const TCP_FIN: u8 = 1;
const TCP_PSH: u8 = 8;
const TCP_CWR: u8 = 0x80;
const UDP_HEADER_BYTES: usize = 8;

/// What a device left to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Payload of each packet but the last; 0 when the packet is one.
    pub segment_bytes: u16,
    /// Where the checksum begins and, from there, where it goes, if it is missing.
    pub checksum: Option<(u16, u16)>,
}

/// Fills in the checksum that a device left out (`skb_checksum_help`): the
/// field holds the sum of the pseudo header. `None` when the offsets lie.
pub fn complete_checksum(packet: &mut [u8], start: u16, offset: u16) -> Option<()> {
    let start = usize::from(start);
    let at = start + usize::from(offset);
    be16(packet, at)?;
    let check = match Sum::new().bytes(packet.get(start..)?).finish() {
        0 => 0xffff,
        check => check,
    };
    put(packet, at, &check.to_be_bytes())
}

/// A packet being cut.
#[derive(Debug)]
pub struct Segmenter<'a> {
    packet: &'a [u8],
    family: Family,
    protocol: u8,
    transport_at: usize,
    payload_at: usize,
    segment_bytes: usize,
    done: usize,
    count: u16,
}

impl<'a> Segmenter<'a> {
    /// Prepares to cut `packet`; `None` when it is neither TCP nor UDP in one
    /// piece, or when its headers do not parse.
    #[must_use]
    pub fn new(packet: &'a [u8], segment_bytes: u16) -> Option<Self> {
        let family = Family::of(packet)?;
        let (protocol, transport_at) = match family {
            Family::V4 => {
                let header = ip4::Header::parse(packet)?;
                if header.is_fragment() {
                    return None;
                }
                (header.protocol, header.header_bytes)
            }
            Family::V6 => {
                let place = ip6::upper_layer(packet)?;
                (*packet.get(place.next_header_at)?, place.at)
            }
        };
        let transport_bytes = match protocol {
            IPPROTO_TCP => usize::from(*packet.get(transport_at + 12)? >> 4) * 4,
            IPPROTO_UDP => UDP_HEADER_BYTES,
            _ => return None,
        };
        let least = if protocol == IPPROTO_TCP {
            20
        } else {
            UDP_HEADER_BYTES
        };
        let payload_at = transport_at + transport_bytes;
        let sane = segment_bytes > 0 && transport_bytes >= least && payload_at < packet.len();
        sane.then_some(Self {
            packet,
            family,
            protocol,
            transport_at,
            payload_at,
            segment_bytes: usize::from(segment_bytes),
            done: 0,
            count: 0,
        })
    }

    /// Writes the next packet, checksums included; false when there is none
    /// left, `None` when it does not fit the buffer.
    pub fn next_into(&mut self, buffer: &mut PacketBuf) -> Option<bool> {
        let payload = self.packet.get(self.payload_at..)?;
        let rest = payload.get(self.done..)?;
        if rest.is_empty() {
            return Some(false);
        }
        let part = rest.get(..self.segment_bytes).unwrap_or(rest);
        let last = part.len() == rest.len();
        buffer.fill(&[]);
        let headers = self.packet.get(..self.payload_at)?;
        buffer.push_back(headers.len())?.copy_from_slice(headers);
        buffer.push_back(part.len())?.copy_from_slice(part);
        match self.family {
            Family::V4 => {
                let ident = be16(headers, 4)?.wrapping_add(self.count);
                put(buffer, 4, &ident.to_be_bytes())?;
                ip4::finish(buffer)?;
            }
            Family::V6 => ip6::finish(buffer)?,
        }
        let check_at = match self.protocol {
            IPPROTO_TCP => self.patch_tcp(buffer, last)?,
            _ => self.patch_udp(buffer)?,
        };
        put(buffer, check_at, &[0, 0])?;
        let transport = buffer.get(self.transport_at..)?;
        let sum = pseudo_header(addresses(buffer)?, self.protocol, transport.len());
        let check = match sum.bytes(transport).finish() {
            0 if self.protocol == IPPROTO_UDP => 0xffff,
            check => check,
        };
        put(buffer, check_at, &check.to_be_bytes())?;
        self.done += part.len();
        self.count = self.count.wrapping_add(1);
        Some(true)
    }

    /// Sequence number and flags of a segment: congestion was reduced once,
    /// and only the last segment ends anything.
    fn patch_tcp(&self, buffer: &mut [u8], last: bool) -> Option<usize> {
        let at = self.transport_at;
        let done = u32::try_from(self.done).ok()?;
        let number = be32(buffer, at + 4)?.wrapping_add(done);
        put(buffer, at + 4, &number.to_be_bytes())?;
        let flags = buffer.get_mut(at + 13)?;
        if self.done != 0 {
            *flags &= !TCP_CWR;
        }
        if !last {
            *flags &= !(TCP_FIN | TCP_PSH);
        }
        Some(at + 16)
    }

    fn patch_udp(&self, buffer: &mut [u8]) -> Option<usize> {
        let at = self.transport_at;
        let bytes = u16::try_from(buffer.len() - at).ok()?;
        put(buffer, at + 4, &bytes.to_be_bytes())?;
        Some(at + 6)
    }
}

#[cfg(test)]
mod tests {
    use super::super::checksum::checksum;
    use super::*;
    use proptest::prelude::*;

    fn packet(family: Family, protocol: u8, payload: usize) -> Vec<u8> {
        let mut packet = match family {
            Family::V4 => vec![0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0],
            Family::V6 => vec![0x60, 0, 0, 0, 0, 0, protocol, 64],
        };
        packet.extend(match family {
            Family::V4 => [10; 8].to_vec(),
            Family::V6 => [0xfd; 32].to_vec(),
        });
        match protocol {
            IPPROTO_TCP => {
                packet.extend([0, 1, 0, 2, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0]);
                packet.extend([0x50, TCP_CWR | TCP_PSH | TCP_FIN | 0x10, 1, 0, 0, 0, 0, 0]);
            }
            _ => packet.extend([0, 1, 0, 2, 0, 0, 0, 0]),
        }
        packet.extend((0..payload).map(|i| (i % 253).to_be_bytes()[7]));
        packet
    }

    fn all(packet: &[u8], segment_bytes: u16) -> Vec<Vec<u8>> {
        let mut cutter = Segmenter::new(packet, segment_bytes).unwrap();
        let mut buffer = PacketBuf::with_capacity(2000);
        let mut out = Vec::new();
        while cutter.next_into(&mut buffer).unwrap() {
            out.push(buffer.to_vec());
        }
        out
    }

    fn transport_sum(packet: &[u8], at: usize, protocol: u8) -> u16 {
        let transport = &packet[at..];
        pseudo_header(addresses(packet).unwrap(), protocol, transport.len())
            .bytes(transport)
            .finish()
    }

    #[test]
    fn tcp_segments() {
        let segments = all(&packet(Family::V4, IPPROTO_TCP, 250), 100);
        let seen: Vec<_> = segments
            .iter()
            .map(|s| (s.len(), s[4..6].to_vec(), s[24..28].to_vec(), s[33]))
            .collect();
        assert_eq!(
            seen,
            [
                (140, vec![0xff, 0xff], vec![0xff, 0xff, 0xff, 0xf0], 0x90),
                (140, vec![0, 0], vec![0, 0, 0, 0x54], 0x10),
                (90, vec![0, 1], vec![0, 0, 0, 0xb8], 0x19),
            ]
        );
    }

    #[test]
    fn a_missing_checksum() {
        let mut one = packet(Family::V6, IPPROTO_UDP, 11);
        let partial = !pseudo_header(addresses(&one).unwrap(), IPPROTO_UDP, 19).finish();
        put(&mut one, 44, &[0, 19]).unwrap();
        put(&mut one, 46, &partial.to_be_bytes()).unwrap();
        complete_checksum(&mut one, 40, 6).unwrap();
        assert_eq!(transport_sum(&one, 40, IPPROTO_UDP), 0);
        assert!(complete_checksum(&mut one, 40, 0xffff).is_none());
        assert!(complete_checksum(&mut one, 0xffff, 0).is_none());
    }

    proptest! {
        #[test]
        fn segments_cover_the_payload(v6: bool, tcp: bool, payload in 1usize..20_000, segment_bytes in 1u16..1400) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let protocol = if tcp { IPPROTO_TCP } else { IPPROTO_UDP };
            let whole = packet(family, protocol, payload.min(usize::from(segment_bytes) * 50));
            let at = family.header_bytes();
            let payload_at = at + if tcp { 20 } else { 8 };
            let mut bytes: Vec<u8> = Vec::new();
            for segment in all(&whole, segment_bytes) {
                prop_assert_eq!(transport_sum(&segment, at, protocol), 0);
                if family == Family::V4 {
                    prop_assert_eq!(checksum(&segment[..20]), 0);
                }
                bytes.extend(&segment[payload_at..]);
            }
            prop_assert_eq!(&bytes[..], &whole[payload_at..]);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool, segment_bytes: u16) {
            if let [first, ..] = &mut bytes[..] {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(mut cutter) = Segmenter::new(&bytes, segment_bytes) {
                let mut buffer = PacketBuf::with_capacity(300);
                for _ in 0..300 {
                    if cutter.next_into(&mut buffer) != Some(true) {
                        break;
                    }
                }
            }
        }
    }
}
