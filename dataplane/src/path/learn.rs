//! What routers say of packets that left SAs: the MTU that would have been right.
//!
//! An error counts only if the packet that it is about has an SA. Whoever
//! keeps the host's routes remembers what was learned, and answers
//! [`Routes::route`](super::Routes::route) accordingly.
//!
//! Source: `esp4_err`, `ah4_err`, `ipcomp4_err` in `net/ipv4` and their IPv6 twins.
//!
//! An error about ESP in UDP counts if the socket is there that has sent it, as for any datagram
//! (`net/ipv4/udp.c udp_err`).

use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use crate::netns::Netns;
use crate::packet::{be16, be32, icmp};
use crate::path::input::destination;
use crate::path::receive::Host;
use crate::spd::Flow;
use crate::transform::Inbound;

/// An MTU on the way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedMtu {
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The other end of the SA.
    pub destination: Address,
    /// What a router on the way takes; 0 from one that does not know.
    pub mtu: u32,
}

impl Netns {
    /// Understands an ICMP error that has passed its policies; `None` for anything but a
    /// packet of one of our SAs that was too big.
    #[must_use]
    pub fn learn_mtu(&self, packet: &[u8], mark: u32, host: &dyn Host) -> Option<LearnedMtu> {
        let error = icmp::parse_too_big(packet)?;
        let about = packet.get(error.about_at..)?;
        let (address, family) = destination(about)?;
        let inbound = Inbound::locate(about, 0).ok()?;
        let header = about.get(inbound.at..)?;
        let learned = LearnedMtu {
            family,
            destination: address,
            mtu: error.mtu,
        };
        let spi = match inbound.protocol {
            IPPROTO_ESP => be32(header, 0)?,
            IPPROTO_AH => be32(header, 4)?,
            IPPROTO_COMP => u32::from(be16(header, 2)?),
            IPPROTO_UDP => {
                let flow = Flow::of_packet(about, mark, 0, false)?.reversed();
                let owner = host.owner(&flow)?;
                return (owner.encap != 0).then_some(learned);
            }
            _ => return None,
        };
        self.sad
            .lookup(mark, address, spi, inbound.protocol, family)?;
        Some(learned)
    }
}
