//! What the packet path has to ask about routes.

use xfrm_proto::uapi::Address;

use crate::path::receive::{Destination, Host, Owner};
use crate::spd::Flow;

/// A packet to find a route for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// A host with one address, whose packets all go the same way: for programs that know no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneRoute {
    /// The address.
    pub local: Address,
    /// What the way takes.
    pub path: PathInfo,
}

impl Routes for OneRoute {
    fn generation(&self) -> u64 {
        0
    }

    fn route(&self, _query: &RouteQuery) -> Result<PathInfo, i32> {
        Ok(self.path)
    }

    fn source(&self, _query: &RouteQuery) -> Result<Address, i32> {
        Ok(self.local)
    }
}

impl Host for OneRoute {
    fn destination(&self, family: u16, address: Address) -> Option<Destination> {
        Some(Destination {
            is_local: address.equal(self.local, family),
            ifindex: 1,
        })
    }

    fn owner(&self, _flow: &Flow) -> Option<Owner> {
        None
    }
}
