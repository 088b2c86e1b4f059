//! What a packet shows to policies (`struct flowi`).

use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use crate::packet::{Family, be16, ip4, ip6};

/// A flow: the key of a policy lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Address family.
    pub family: u16,
    /// Destination.
    pub daddr: Address,
    /// Source.
    pub saddr: Address,
    /// IP protocol.
    pub proto: u8,
    /// Destination port, or ICMP code, or the lower half of a GRE key; host order.
    pub dport: u16,
    /// Source port, or ICMP type, or the upper half of a GRE key; host order.
    pub sport: u16,
    /// Interface, 0 for none.
    pub ifindex: i32,
    /// Firewall mark.
    pub mark: u32,
}

/// Key present, checksum present: flags in the first word of a GRE header.
const GRE_KEY: u16 = 0x2000;
const GRE_CHECKSUM: u16 = 0x8000;

impl Flow {
    /// The flow of an IP packet (`__xfrm_decode_session`); `None` for what is no IP packet.
    ///
    /// Fragments show no ports, not even the first one does. `mobility` says whether the type
    /// of a mobility header is looked at.
    #[must_use]
    #[inline(always)]
    pub fn of_packet(packet: &[u8], mark: u32, ifindex: i32, mobility: bool) -> Option<Self> {
        let mut flow = Self::default();
        flow.read(packet, mark, ifindex, mobility)?;
        Some(flow)
    }

    /// [`Flow::of_packet`], whose outcome is not moved from one place to another.
    #[inline(always)]
    pub(crate) fn read(
        &mut self,
        packet: &[u8],
        mark: u32,
        ifindex: i32,
        mobility: bool,
    ) -> Option<()> {
        match Family::of(packet)? {
            Family::V4 => {
                let header = ip4::Header::parse(packet)?;
                self.read_behind(&header, packet, mark, ifindex, mobility);
            }
            Family::V6 => *self = Self::of_v6(packet, mark, ifindex, mobility)?,
        }
        Some(())
    }

    /// The same of an IPv4 packet whose header has been read.
    #[inline(always)]
    pub(crate) fn read_behind(
        &mut self,
        header: &ip4::Header,
        packet: &[u8],
        mark: u32,
        ifindex: i32,
        mobility: bool,
    ) {
        let [a, b, c, d] = header.dst;
        let [e, f, g, h] = header.src;
        let proto = header.protocol;
        let (dport, sport) = match header.is_fragment() {
            true => (0, 0),
            false => ports_at(packet, header.header_bytes, proto, mobility),
        };
        *self = Self {
            family: AF_INET,
            daddr: Address::v4(a, b, c, d),
            saddr: Address::v4(e, f, g, h),
            proto,
            dport,
            sport,
            ifindex,
            mark,
        };
    }

    #[inline(never)]
    fn of_v6(packet: &[u8], mark: u32, ifindex: i32, mobility: bool) -> Option<Self> {
        let header = ip6::Header::parse(packet)?;
        let (proto, transport_at) = behind_extensions(packet, header.next_header);
        let (dport, sport) = match transport_at {
            None => (0, 0),
            Some(at) => ports_at(packet, at, proto, mobility),
        };
        Some(Self {
            family: AF_INET6,
            daddr: Address(header.dst),
            saddr: Address(header.src),
            proto,
            dport,
            sport,
            ifindex,
            mark,
        })
    }

    /// All of it, for comparing and hashing: fields that were written one by one are not read
    /// together, for which the processor would wait.
    #[inline(always)]
    pub(crate) fn words(&self) -> [u64; 6] {
        let &Self {
            family,
            daddr,
            saddr,
            proto,
            dport,
            sport,
            ifindex,
            mark,
        } = self;
        let [[d0, d1], [s0, s1]] = [daddr.halves(), saddr.halves()];
        // Not in the order of memory: the compiler would read neighbours together again.
        let upper = u64::from(dport) << 48 | u64::from(family) << 32;
        let lower = u64::from(proto) << 16 | u64::from(sport);
        let came_with = u64::from(ifindex.cast_unsigned()) << 32 | u64::from(mark);
        [d0, d1, s0, s1, upper | lower, came_with]
    }

    /// The flow, as seen from here, of the packet that an ICMP error of this flow is about
    /// (`xfrm_icmp_flow_decode`); `None` for anything but such an error.
    #[must_use]
    pub fn of_quoted(&self, packet: &[u8], mobility: bool) -> Option<Self> {
        let (header_bytes, is_error) = match (self.family, self.proto) {
            (AF_INET, IPPROTO_ICMP) => (28, matches!(self.sport, 3 | 11)),
            (AF_INET6, IPPROTO_ICMPV6) => (48, matches!(self.sport, 1..=3)),
            _ => return None,
        };
        let quoted = packet.get(header_bytes..).filter(|_| is_error)?;
        let flow = Self::of_packet(quoted, self.mark, self.ifindex, mobility)?;
        Some(flow.reversed())
    }

    /// The flow of what is sent in the other direction. Types of ICMP and keys of GRE stay.
    #[must_use]
    pub fn reversed(self) -> Self {
        let has_ports = matches!(
            self.proto,
            IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP
        );
        let (dport, sport) = if has_ports {
            (self.sport, self.dport)
        } else {
            (self.dport, self.sport)
        };
        Self {
            daddr: self.saddr,
            saddr: self.daddr,
            dport,
            sport,
            ..self
        }
    }

    /// What policies see as ports of a flow whose protocol header begins with these two
    /// (`xfrm_flowi_sport`, `xfrm_flowi_dport`, over `union flowi_uli`).
    ///
    /// QUIRK: migrate_selector_ports_count_by_protocol: protocols without ports show 0,
    /// ICMP its type and code from where the destination port lies, GRE its key swapped.
    #[must_use]
    pub fn with_ports(self, dport: u16, sport: u16) -> Self {
        let (dport, sport) = shown_ports(self.proto, dport, sport);
        Self {
            dport,
            sport,
            ..self
        }
    }
}

/// Equality, word by word.
#[inline(always)]
pub(crate) fn equal_words<const N: usize>(one: &[u64; N], other: &[u64; N]) -> bool {
    let both = one.iter().zip(other);
    both.fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

/// The upper protocol of an IPv6 packet, and where it begins, if that is there.
#[inline]
fn behind_extensions(packet: &[u8], first: u8) -> (u8, Option<usize>) {
    let (mut proto, mut at) = (first, ip6::HEADER_BYTES);
    loop {
        match proto {
            ip6::HOP_BY_HOP | ip6::ROUTING | ip6::DESTINATION => {
                let Some(extension) = ip6::extension(packet, at) else {
                    return (proto, None);
                };
                proto = extension.first().copied().unwrap_or(ip6::NONE);
                at += extension.len();
            }
            ip6::FRAGMENT => {
                let proto = packet.get(at).copied().unwrap_or(ip6::FRAGMENT);
                return (proto, None);
            }
            _ => return (proto, Some(at)),
        }
    }
}

/// Destination and source port, as policies see them, of the transport header at `at`.
#[inline]
fn ports_at(packet: &[u8], at: usize, proto: u8, mobility: bool) -> (u16, u16) {
    match proto {
        IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP => {
            let ports = packet.get(at..).and_then(|header| header.first_chunk());
            let &[a, b, c, d] = ports.unwrap_or(&[0; 4]);
            (u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b]))
        }
        IPPROTO_ICMP | IPPROTO_ICMPV6 | IPPROTO_MH | IPPROTO_GRE => {
            what_stands_for_ports(packet, at, proto, mobility)
        }
        _ => (0, 0),
    }
}

/// The same, of protocols that have none.
#[inline(never)]
fn what_stands_for_ports(packet: &[u8], at: usize, proto: u8, mobility: bool) -> (u16, u16) {
    let word = |offset| be16(packet, at + offset);
    let words = match proto {
        IPPROTO_ICMP | IPPROTO_ICMPV6 => word(0).map(|kind_and_code| (kind_and_code, 0)),
        IPPROTO_MH if mobility => word(2).map(|kind_and_reserved| (kind_and_reserved, 0)),
        IPPROTO_GRE => word(0).and_then(|flags| {
            let key_at = if flags & GRE_CHECKSUM == 0 { 4 } else { 8 };
            let key = word(key_at).zip(word(key_at + 2));
            key.filter(|_| flags & GRE_KEY != 0)
        }),
        _ => None,
    };
    words.map_or((0, 0), |(dport, sport)| shown_ports(proto, dport, sport))
}

/// [`Flow::with_ports`]: destination and source.
fn shown_ports(proto: u8, dport: u16, sport: u16) -> (u16, u16) {
    let [kind, code] = dport.to_be_bytes();
    match proto {
        IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP => (dport, sport),
        IPPROTO_ICMP | IPPROTO_ICMPV6 => (u16::from(code), u16::from(kind)),
        IPPROTO_MH => (0, u16::from(kind)),
        IPPROTO_GRE => (sport, dport),
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(proto: u8, fragment: u16, transport: &[u8]) -> Flow {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(transport);
        Flow::of_packet(&packet, 7, 3, true).unwrap()
    }

    fn v6(next: u8, rest: &[u8]) -> Flow {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend([0xfd; 32]);
        packet.extend(rest);
        Flow::of_packet(&packet, 0, 0, false).unwrap()
    }

    #[test]
    fn packets_show_their_ports() {
        let udp = v4(IPPROTO_UDP, 0, &[0x12, 0x34, 0, 53]);
        assert_eq!((udp.sport, udp.dport), (0x1234, 53));
        assert_eq!((udp.mark, udp.ifindex), (7, 3));
        assert_eq!(udp.daddr, Address::v4(10, 0, 0, 2));
        let echo = v4(IPPROTO_ICMP, 0, &[8, 1, 0, 0]);
        assert_eq!((echo.sport, echo.dport), (8, 1));
        let gre = v4(IPPROTO_GRE, 0, &[0x20, 0, 8, 0, 0, 1, 0, 2]);
        assert_eq!((gre.sport, gre.dport), (1, 2));
        let gre = v4(IPPROTO_GRE, 0, &[0xa0, 0, 8, 0, 9, 9, 0, 0, 0, 1, 0, 2]);
        assert_eq!((gre.sport, gre.dport), (1, 2));
        let bare = v4(IPPROTO_GRE, 0, &[0, 0, 8, 0]);
        assert_eq!((bare.sport, bare.dport), (0, 0));
        assert_eq!(v4(IPPROTO_UDP, 0, &[1]).sport, 0);
    }

    #[test]
    fn fragments_show_no_ports() {
        assert_eq!(v4(IPPROTO_UDP, 0x2000, &[1, 2, 3, 4]).sport, 0);
        let flow = v6(
            ip6::FRAGMENT,
            &[IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4],
        );
        assert_eq!((flow.proto, flow.sport), (IPPROTO_UDP, 0));
    }

    #[test]
    fn extension_headers_are_passed() {
        let options = [IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4];
        let flow = v6(ip6::DESTINATION, &options);
        assert_eq!(
            (flow.proto, flow.sport, flow.dport),
            (IPPROTO_UDP, 0x102, 0x304)
        );
        assert_eq!(v6(ip6::DESTINATION, &[17]).proto, ip6::DESTINATION);
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(packet: Vec<u8>) {
            let _ = Flow::of_packet(&packet, 0, 0, true);
        }
    }

    #[test]
    fn migrate_selector_ports_count_by_protocol() {
        let ports = |proto| {
            let flow = Flow {
                proto,
                ..Flow::default()
            };
            let flow = flow.with_ports(0x0802, 0x1234);
            (flow.sport, flow.dport)
        };
        assert_eq!(ports(0), (0, 0));
        assert_eq!(ports(IPPROTO_UDP), (0x1234, 0x0802));
        assert_eq!(ports(IPPROTO_ICMP), (8, 2));
        assert_eq!(ports(IPPROTO_MH), (8, 0));
        assert_eq!(ports(IPPROTO_GRE), (0x0802, 0x1234));
    }
}
