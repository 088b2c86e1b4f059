//! What a packet shows to policies (`struct flowi`).

use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

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

impl Flow {
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
