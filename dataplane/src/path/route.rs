//! What the packet path has to ask about routes.

use xfrm_proto::uapi::Address;

/// A packet to find a route for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// Address family.
    pub family: u16,
    /// Destination.
    pub daddr: Address,
    /// Source, zero for whatever the route prefers.
    pub saddr: Address,
    /// Interface that the packet is bound to, 0 for none.
    pub ifindex: i32,
    /// Firewall mark.
    pub mark: u32,
}

/// What a route says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// MTU, learned ones included.
    pub mtu: u32,
    /// TTL or hop limit of packets.
    pub hop_limit: u8,
}

/// The host's routes.
pub trait Routes {
    /// Changes whenever an answer may.
    fn generation(&self) -> u64;

    /// The route of an outer packet.
    ///
    /// # Errors
    /// The errno that its sender gets.
    fn route(&self, query: &RouteQuery) -> Result<PathInfo, i32>;

    /// The source address that the host would choose (`xfrm_get_saddr`), for a template that
    /// names none.
    ///
    /// # Errors
    /// The errno that the sender gets.
    fn source(&self, query: &RouteQuery) -> Result<Address, i32>;
}
