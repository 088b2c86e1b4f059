//! What a packet shows to policies (`struct flowi`).

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
