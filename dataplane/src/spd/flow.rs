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
    pub fn of_packet(packet: &[u8], mark: u32, ifindex: i32, mobility: bool) -> Option<Self> {
        match Family::of(packet)? {
            Family::V4 => {
                let header = ip4::Header::parse(packet)?;
                let [a, b, c, d] = header.dst;
                let [e, f, g, h] = header.src;
                let flow = Self {
                    family: AF_INET,
                    daddr: Address::v4(a, b, c, d),
                    saddr: Address::v4(e, f, g, h),
                    proto: header.protocol,
                    mark,
                    ifindex,
                    ..Self::default()
                };
                if header.is_fragment() {
                    return Some(flow);
                }
                Some(flow.with_transport(packet, header.header_bytes, mobility))
            }
            Family::V6 => {
                let header = ip6::Header::parse(packet)?;
                let flow = Self {
                    family: AF_INET6,
                    daddr: Address(header.dst),
                    saddr: Address(header.src),
                    mark,
                    ifindex,
                    ..Self::default()
                };
                Some(flow.behind_extensions(packet, header.next_header, mobility))
            }
        }
    }

    fn behind_extensions(self, packet: &[u8], first: u8, mobility: bool) -> Self {
        let (mut proto, mut at) = (first, ip6::HEADER_BYTES);
        loop {
            let flow = Self { proto, ..self };
            match proto {
                ip6::HOP_BY_HOP | ip6::ROUTING | ip6::DESTINATION => {
                    let Some(extension) = ip6::extension(packet, at) else {
                        return flow;
                    };
                    proto = extension.first().copied().unwrap_or(ip6::NONE);
                    at += extension.len();
                }
                ip6::FRAGMENT => {
                    let proto = packet.get(at).copied().unwrap_or(ip6::FRAGMENT);
                    return Self { proto, ..self };
                }
                _ => return flow.with_transport(packet, at, mobility),
            }
        }
    }

    fn with_transport(self, packet: &[u8], at: usize, mobility: bool) -> Self {
        let word = |offset| be16(packet, at + offset);
        let ports = match self.proto {
            IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP => word(2).zip(word(0)),
            IPPROTO_ICMP | IPPROTO_ICMPV6 => word(0).map(|kind_and_code| (kind_and_code, 0)),
            IPPROTO_MH if mobility => word(2).map(|kind_and_reserved| (kind_and_reserved, 0)),
            IPPROTO_GRE => word(0).and_then(|flags| {
                let key_at = if flags & GRE_CHECKSUM == 0 { 4 } else { 8 };
                let key = word(key_at).zip(word(key_at + 2));
                key.filter(|_| flags & GRE_KEY != 0)
            }),
            _ => None,
        };
        match ports {
            Some((dport, sport)) => self.with_ports(dport, sport),
            None => self,
        }
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
        let [kind, code] = dport.to_be_bytes();
        let (sport, dport) = match self.proto {
            IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP => (sport, dport),
            IPPROTO_ICMP | IPPROTO_ICMPV6 => (u16::from(kind), u16::from(code)),
            IPPROTO_MH => (u16::from(kind), 0),
            IPPROTO_GRE => (dport, sport),
            _ => (0, 0),
        };
        Self {
            dport,
            sport,
            ..self
        }
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
