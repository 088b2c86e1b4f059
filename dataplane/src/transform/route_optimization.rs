//! Route optimization of mobile IPv6 (RFC 6275): the home address option and
//! the type 2 routing header, which Linux treats as SAs without keys.
//!
//! Source: `net/ipv6/mip6.c`, `net/xfrm/xfrm_output.c mip6_rthdr_offset`.

use xfrm_proto::consts::{IPPROTO_DSTOPTS, IPPROTO_ROUTING};
use xfrm_proto::uapi::Address;

use super::{Place, mode};
use crate::drop_reason::DropReason;
use crate::packet::{Family, PacketBuf, ip6, put};

/// Bytes of either header.
const HEADER_BYTES: usize = 24;
/// Its length field: units of 8 bytes behind the first.
const UNITS: u8 = 2;
/// Where either has its address.
const ADDRESS_AT: usize = 8;
const SRC_AT: usize = 8;
const DST_AT: usize = 24;

/// Which header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Destination options with a home address (`IPPROTO_DSTOPTS`).
    HomeAddress,
    /// Routing header of type 2 (`IPPROTO_ROUTING`).
    Routing,
}

/// A header of this kind in a packet that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which header.
    pub kind: Kind,
    /// The home address in it. The SA is the one of the packet's destination and this source
    /// (home address option), or of this destination and the packet's source (routing header).
    pub home: [u8; 16],
    /// Where it stands.
    home_at: usize,
    /// Where a routing header counts its segments.
    left_at: Option<usize>,
}

impl Arrived {
    /// Finds the first home address option, or the first routing header of type 2 that has its
    /// one segment left (`net/ipv6/exthdrs.c ipv6_dest_hao, ipv6_rthdr_rcv`).
    #[must_use]
    pub fn find(packet: &[u8]) -> Option<Self> {
        let mut at = ip6::HEADER_BYTES;
        let mut header = *packet.get(ip6::NEXT_HEADER_AT)?;
        loop {
            let extension = match header {
                ip6::HOP_BY_HOP | ip6::DESTINATION | ip6::ROUTING => ip6::extension(packet, at)?,
                _ => return None,
            };
            let found = match (header, extension) {
                (ip6::ROUTING, [_, UNITS, 2, 1, ..]) => {
                    Some((Kind::Routing, ADDRESS_AT, Some(at + 3)))
                }
                (ip6::DESTINATION, options) => ip6::find_option(options, ip6::OPTION_HOME_ADDRESS)
                    .filter(|option| options.get(option + 1) == Some(&16))
                    .map(|option| (Kind::HomeAddress, option + 2, None)),
                _ => None,
            };
            if let Some((kind, offset, left_at)) = found {
                let home_at = at + offset;
                return Some(Self {
                    kind,
                    home: *packet.get(home_at..)?.first_chunk()?,
                    home_at,
                    left_at,
                });
            }
            header = *extension.first()?;
            at += extension.len();
        }
    }

    /// Puts the home address into the IP header, once the SA has passed [`RouteOptimization::check`];
    /// the care-of address takes its place.
    pub fn exchange(&self, packet: &mut [u8]) -> Option<()> {
        let at = match self.kind {
            Kind::HomeAddress => SRC_AT,
            Kind::Routing => DST_AT,
        };
        let care_of: [u8; 16] = *packet.get(at..)?.first_chunk()?;
        put(packet, at, &self.home)?;
        put(packet, self.home_at, &care_of)?;
        if let Some(left_at) = self.left_at {
            put(packet, left_at, &[0])?;
        }
        Some(())
    }
}

/// One header and the care-of address that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteOptimization {
    /// Which header.
    pub kind: Kind,
    /// `XFRMA_COADDR`.
    pub care_of: Address,
}

impl RouteOptimization {
    #[expect(clippy::unused_self, reason = "the same for both kinds, as it happens")]
    pub(super) const fn header_bytes(&self) -> usize {
        HEADER_BYTES
    }

    /// Makes room where the header belongs.
    pub(super) fn place(&self, packet: &mut PacketBuf) -> Result<Place, DropReason> {
        if Family::of(packet) != Some(Family::V6) {
            return Err(DropReason::OutFamily);
        }
        let at = self.header_at(packet).ok_or(DropReason::OutHeader)?;
        mode::open_gap(packet, at, HEADER_BYTES)
    }

    /// Behind hop-by-hop options and the headers that stay in front; in front
    /// of a routing header or home address that is there already.
    fn header_at(&self, packet: &[u8]) -> Option<ip6::Place> {
        let mut place = ip6::Place {
            next_header_at: ip6::NEXT_HEADER_AT,
            at: ip6::HEADER_BYTES,
        };
        let mut routing_seen = false;
        while place.at <= packet.len() {
            match *packet.get(place.next_header_at)? {
                ip6::HOP_BY_HOP => {}
                ip6::ROUTING => {
                    let typed = packet.get(place.at + 2).is_some_and(|kind| *kind != 0);
                    if self.kind == Kind::Routing && typed {
                        return Some(place);
                    }
                    routing_seen = true;
                }
                ip6::DESTINATION => {
                    let home = ip6::extension(packet, place.at)
                        .and_then(|options| ip6::find_option(options, ip6::OPTION_HOME_ADDRESS));
                    if home.is_some() || routing_seen {
                        return Some(place);
                    }
                }
                _ => return Some(place),
            }
            let units = usize::from(*packet.get(place.at + 1)?);
            place = ip6::Place {
                next_header_at: place.at,
                at: place.at + (units + 1) * 8,
            };
        }
        None
    }

    /// Writes the header, and the care-of address into the IP header.
    pub(super) fn seal(&self, packet: &mut PacketBuf, place: &Place) -> Result<(), DropReason> {
        self.write(packet, place).ok_or(DropReason::OutNoRoom)
    }

    fn write(&self, packet: &mut [u8], place: &Place) -> Option<()> {
        const PAD4: [u8; 4] = [1, 2, 0, 0];
        const HOME_ADDRESS: [u8; 2] = [ip6::OPTION_HOME_ADDRESS, 16];
        const TYPE_2_ONE_LEFT: [u8; 6] = [2, 1, 0, 0, 0, 0];
        let next_header = *packet.get(place.next_header_at)?;
        let (protocol, address_at) = match self.kind {
            Kind::HomeAddress => (IPPROTO_DSTOPTS, SRC_AT),
            Kind::Routing => (IPPROTO_ROUTING, DST_AT),
        };
        put(packet, place.next_header_at, &[protocol])?;
        let address: [u8; 16] = *packet.get(address_at..)?.first_chunk()?;
        put(packet, address_at, &self.care_of.0)?;

        let at = place.header_at;
        put(packet, at, &[next_header, UNITS])?;
        match self.kind {
            Kind::HomeAddress => {
                put(packet, at + 2, &PAD4)?;
                put(packet, at + 6, &HOME_ADDRESS)?;
            }
            Kind::Routing => put(packet, at + 2, &TYPE_2_ONE_LEFT)?,
        }
        put(packet, at + ADDRESS_AT, &address)
    }

    /// Whether an incoming packet's address is the care-of address, or that is
    /// any (`mip6_destopt_input`, `mip6_rthdr_input`).
    ///
    /// # Errors
    /// [`DropReason::RouteAddress`].
    pub fn check(&self, packet: &[u8]) -> Result<(), DropReason> {
        let header = ip6::Header::parse(packet).ok_or(DropReason::InHeader)?;
        let address = match self.kind {
            Kind::HomeAddress => header.src,
            Kind::Routing => header.dst,
        };
        if self.care_of == Address::ANY || self.care_of.0 == address {
            Ok(())
        } else {
            Err(DropReason::RouteAddress)
        }
    }
}
