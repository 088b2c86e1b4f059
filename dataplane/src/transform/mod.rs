//! What an SA does to a packet.
//!
//! A packet passes an SA in two steps, as in Linux, because lifetimes and
//! sequence numbers are accounted in between:
//!
//! * out: [`Transform::place`] (mode: `xfrm_outer_mode_output`) puts the outer
//!   IP header in front and leaves a gap for the protocol header, then
//!   [`Transform::seal`] (`type->output`) fills the gap;
//! * in: [`Transform::open`] (`type->input`) takes the protocol header off, then
//!   [`Transform::unwrap`] (`xfrm_inner_mode_input`) gives back the inner packet.
//!
//! Everything an SA does not change while it lives is worked out once, in
//! [`Transform::new`]; per packet nothing is allocated once the worker's
//! [`Scratch`] has grown to its largest packet.

pub mod ah;
pub mod esp;
pub mod ipcomp;
pub mod iptfs;
pub mod mode;
pub mod mtu;
mod outer;
pub mod route_optimization;

use xfrm_proto::consts::*;

use crate::crypto::Deflate;
use crate::drop_reason::DropReason;
use crate::packet::encap::Encap;
use crate::packet::{Family, PacketBuf, be16, be32, encap, finish, ip4, ip6, put};
use crate::sad::sa::IptfsConfig;

pub use mode::{Delivery, Mode, ModeParams, Place};

/// A sequence number: 64 bits with ESN, otherwise the low 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Both halves together.
    #[must_use]
    pub const fn new(high: u32, low: u32) -> Self {
        Self((high as u64) << 32 | low as u64)
    }

    /// What travels in the packet.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// What both ends have to know.
    #[must_use]
    pub const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What an outgoing packet's route says, and a number that only this packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// TTL or hop limit of a tunnel's outer header.
    pub hop_limit: u8,
    /// MTU of the path that the outer packet takes (`child_mtu_cached`).
    pub outer_mtu: u32,
    /// Longest inner packet that may enter a tunnel, `u32::MAX` where no limit is enforced.
    pub inner_mtu: u32,
    /// Identification of the outer IPv4 header, if it may be fragmented.
    pub ident: u16,
}

/// Packets that are sealed at once, at most.
pub const MOST_AT_ONCE: usize = 16;

/// A packet with a gap, and the number that it got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Where things are.
    pub place: Place,
    /// Its number.
    pub sequence: Sequence,
}

/// Working memory of one worker.
#[derive(Default)]
pub struct Scratch {
    /// Headers put aside while AH has zeros in their mutable fields.
    headers: Vec<u8>,
    /// The other side of a compression.
    data: Vec<u8>,
    deflate: Deflate,
}

/// Part of a [`Scratch`]: room for the other side of a compression.
struct Room<'a> {
    bytes: &'a mut [u8],
    deflate: &'a mut Deflate,
}

impl Scratch {
    fn room(&mut self, bytes: usize) -> Room<'_> {
        if self.data.len() < bytes {
            self.data.resize(bytes, 0);
        }
        Room {
            bytes: self.data.get_mut(..bytes).unwrap_or_default(),
            deflate: &mut self.deflate,
        }
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch")
            .field("headers", &self.headers.capacity())
            .field("data", &self.data.capacity())
            .finish_non_exhaustive()
    }
}

/// A packet on its way in, between its SAs.
///
/// The buffer holds IP headers, perhaps UDP, then what `protocol` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Of the IP header.
    pub family: Family,
    /// Bytes of IP header, with its options or extension headers.
    pub header_bytes: usize,
    /// Offset of the byte that names what follows the IP headers.
    pub next_header_at: usize,
    /// Offset of the protocol's own header, behind the UDP header if there is one.
    pub at: usize,
    /// The protocol.
    pub protocol: u8,
}

impl Inbound {
    /// Finds the protocol behind the IP headers of a whole packet.
    ///
    /// `encap_kind` is the encapsulation type of the socket that a UDP
    /// datagram came to, 0 for what is not to be looked into.
    ///
    /// # Errors
    /// Headers that do not parse.
    #[inline(always)]
    pub fn locate(packet: &[u8], encap_kind: u16) -> Result<Self, DropReason> {
        let family = Family::of(packet).ok_or(DropReason::InHeader)?;
        let place = match family {
            Family::V4 => ip4::Header::parse(packet).map(|header| ip6::Place {
                next_header_at: mode::V4_PROTOCOL_AT,
                at: header.header_bytes,
            }),
            Family::V6 => ip6::upper_layer(packet),
        };
        let place = place.ok_or(DropReason::InHeader)?;
        let protocol = *packet
            .get(place.next_header_at)
            .ok_or(DropReason::InHeader)?;
        let mut inbound = Self {
            family,
            header_bytes: place.at,
            next_header_at: place.next_header_at,
            at: place.at,
            protocol,
        };
        if protocol == IPPROTO_UDP && encap_kind != 0 {
            let datagram = packet.get(place.at..).ok_or(DropReason::InHeader)?;
            if let encap::Datagram::Esp { at } = encap::classify(datagram, encap_kind) {
                inbound.at += at;
                inbound.protocol = IPPROTO_ESP;
            }
        }
        Ok(inbound)
    }

    /// The protocol behind an IPv4 header that has been read.
    #[inline(always)]
    pub(crate) const fn behind(header: &ip4::Header) -> Self {
        Self {
            family: Family::V4,
            header_bytes: header.header_bytes,
            next_header_at: mode::V4_PROTOCOL_AT,
            at: header.header_bytes,
            protocol: header.protocol,
        }
    }

    /// SPI and sequence number of the protocol's header; `None` for a protocol
    /// that has no SAs (`net/xfrm/xfrm_input.c xfrm_parse_spi`).
    ///
    /// # Errors
    /// A header that is not all there.
    pub fn spi(&self, packet: &[u8]) -> Result<Option<(u32, u32)>, DropReason> {
        let header = packet.get(self.at..).unwrap_or_default();
        let short = DropReason::InHeaderShort;
        let word = |at| be32(header, at).ok_or(short);
        match self.protocol {
            IPPROTO_ESP => Ok(Some((word(0)?, word(4)?))),
            IPPROTO_AH => Ok(Some((word(4)?, word(8)?))),
            IPPROTO_COMP => {
                let cpi = be16(header, 2).ok_or(short)?;
                Ok(Some((u32::from(cpi), 0)))
            }
            _ => Ok(None),
        }
    }
}

impl Inbound {
    /// Names, in the IP headers, what is left of a packet once it has passed its last SA, and
    /// makes length and checksum right (`xfrm4_transport_finish`, `xfrm6_transport_finish`).
    ///
    /// # Errors
    /// A packet that is longer than IP allows.
    pub fn finish(&self, packet: &mut [u8]) -> Result<(), DropReason> {
        put(packet, self.next_header_at, &[self.protocol])
            .and_then(|()| finish(packet))
            .ok_or(DropReason::InHeader)
    }
}

/// What a protocol leaves when its header is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Offset of the plain payload in the buffer, which ends with it.
    pub at: usize,
    /// What the payload is.
    pub protocol: u8,
}

/// A protocol with its keys.
#[derive(Debug)]
pub enum Protocol {
    /// Encapsulating Security Payload.
    Esp(esp::Esp),
    /// Authentication Header.
    Ah(ah::Ah),
    /// IP Payload Compression.
    IpComp(ipcomp::IpComp),
    /// None: the tunnel that stands beside IPComp for packets that were not compressed
    /// (`net/ipv4/xfrm4_tunnel.c`, `net/ipv6/xfrm6_tunnel.c`).
    Tunnel,
    /// Home address option or routing header of mobile IPv6.
    RouteOptimization(route_optimization::RouteOptimization),
}

/// All that an SA does to packets.
#[derive(Debug)]
pub struct Transform {
    mode: mode::ModeTransform,
    protocol: Protocol,
    encap: Option<Encap>,
    /// Bytes between the (outer) IP headers and the payload.
    gap: usize,
}

impl Transform {
    /// Puts a mode and a protocol together. `encap` is for ESP alone.
    #[must_use]
    pub fn new(mode: &ModeParams, protocol: Protocol, encap: Option<Encap>) -> Self {
        let mut transform = Self {
            mode: mode::ModeTransform::new(mode),
            protocol,
            encap: None,
            gap: 0,
        };
        transform.set_encap(encap);
        transform
    }

    /// Changes the encapsulation.
    pub fn set_encap(&mut self, encap: Option<Encap>) {
        let own = match &self.protocol {
            Protocol::Esp(esp) => esp.header_bytes(),
            Protocol::Ah(ah) => ah.header_bytes(),
            Protocol::IpComp(_) | Protocol::Tunnel => 0,
            Protocol::RouteOptimization(header) => header.header_bytes(),
        };
        self.gap = own + encap.map_or(0, |encap| encap.header_bytes());
        self.encap = encap;
    }

    /// The protocol.
    #[must_use]
    pub const fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    /// The mode part.
    #[must_use]
    pub const fn mode(&self) -> &mode::ModeTransform {
        &self.mode
    }

    /// Whether it is ESP in tunnel mode.
    #[must_use]
    #[inline]
    pub fn is_esp_tunnel(&self) -> bool {
        matches!(self.protocol, Protocol::Esp(_)) && self.mode.params().mode == Mode::Tunnel
    }

    /// Puts the outer header of an outgoing packet in front, with a gap behind it.
    ///
    /// # Errors
    /// Whatever makes the mode refuse the packet.
    pub fn place(&self, packet: &mut PacketBuf, route: &Route) -> Result<Place, DropReason> {
        let mut place = Place::default();
        self.place_into(packet, route, &mut place)?;
        Ok(place)
    }

    /// [`Transform::place`], whose outcome is read where it was written.
    #[inline(always)]
    pub(crate) fn place_into(
        &self,
        packet: &mut PacketBuf,
        route: &Route,
        place: &mut Place,
    ) -> Result<(), DropReason> {
        match &self.protocol {
            Protocol::RouteOptimization(header) => *place = header.place(packet)?,
            _ => self.mode.place(packet, self.gap, route, place)?,
        }
        Ok(())
    }

    /// Fills the gap: encrypts, authenticates or compresses the payload, and
    /// finishes lengths and checksum of the IP header.
    ///
    /// Without ESN the high half of `sequence` is not sent and not authenticated, but it makes
    /// IVs differ, so an SA whose 32-bit number may wrap counts on in it.
    ///
    /// # Errors
    /// A packet that gets too long, or that the protocol cannot carry.
    #[inline]
    pub fn seal(
        &self,
        packet: &mut PacketBuf,
        place: &Place,
        sequence: Sequence,
        route: &Route,
        scratch: &mut Scratch,
    ) -> Result<(), DropReason> {
        match &self.protocol {
            Protocol::Esp(esp) => {
                let pad_to = self.pad_to(esp, route);
                esp.seal(packet, place, self.encap.as_ref(), sequence, pad_to)?;
            }
            Protocol::Ah(ah) => ah.seal(packet, place, sequence, scratch)?,
            Protocol::IpComp(comp) => comp.seal(packet, place, scratch)?,
            Protocol::Tunnel => {}
            Protocol::RouteOptimization(header) => header.seal(packet, place)?,
        }
        finish(packet).ok_or(DropReason::OutOversize)
    }

    /// [`Transform::seal`] of several packets, at most [`MOST_AT_ONCE`].
    ///
    /// # Errors
    /// As there, if it happens to any of them; the contents of all are then unspecified.
    pub fn seal_batch(
        &self,
        packets: &mut [PacketBuf],
        placed: &[Placed],
        route: &Route,
        scratch: &mut Scratch,
    ) -> Result<(), DropReason> {
        let Protocol::Esp(esp) = &self.protocol else {
            let mut both = packets.iter_mut().zip(placed);
            return both.try_for_each(|(packet, Placed { place, sequence })| {
                self.seal(packet, place, *sequence, route, scratch)
            });
        };
        let pad_to = self.pad_to(esp, route);
        esp.seal_batch(packets, placed, self.encap.as_ref(), pad_to)?;
        packets
            .iter_mut()
            .try_for_each(|packet| finish(packet).ok_or(DropReason::OutOversize))
    }

    /// What TFC makes of shorter payloads.
    #[inline]
    fn pad_to(&self, esp: &esp::Esp, route: &Route) -> u32 {
        match esp.tfc_pad() {
            0 => 0,
            pad => pad.min(self.mtu(route.outer_mtu)),
        }
    }

    /// Takes the protocol's header off.
    ///
    /// `sequence` is the packet's, its high half inferred by the replay window.
    ///
    /// # Errors
    /// Whatever makes the protocol refuse the packet, a failed integrity check first.
    pub fn open(
        &self,
        packet: &mut PacketBuf,
        inbound: &Inbound,
        sequence: Sequence,
        scratch: &mut Scratch,
    ) -> Result<Opened, DropReason> {
        match &self.protocol {
            Protocol::Esp(esp) => esp.open(packet, inbound, sequence),
            Protocol::Ah(ah) => ah.open(packet, inbound, sequence, scratch),
            Protocol::IpComp(comp) => comp.open(packet, inbound, scratch),
            Protocol::Tunnel => Ok(Opened {
                at: inbound.at,
                protocol: inbound.protocol,
            }),
            Protocol::RouteOptimization(_) => Err(DropReason::InMode),
        }
    }

    /// Gives the inner packet back, or in transport mode the same packet without the header.
    ///
    /// # Errors
    /// An inner packet that the mode does not carry.
    pub fn unwrap(
        &self,
        packet: &mut PacketBuf,
        inbound: &Inbound,
        opened: &Opened,
    ) -> Result<Delivery, DropReason> {
        self.mode.unwrap(packet, inbound, opened)
    }

    /// `props.header_len`: what the SA puts in front of a packet, at most.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.gap
            + self
                .mode
                .extra_header_bytes(matches!(self.protocol, Protocol::Esp(_)))
    }

    /// The longest packet that may enter the SA so that what leaves it fits a
    /// path of `mtu` (`net/xfrm/xfrm_state.c xfrm_state_mtu`).
    #[must_use]
    pub fn mtu(&self, mtu: u32) -> u32 {
        let header_bytes = u32::try_from(self.header_bytes()).unwrap_or(u32::MAX);
        match &self.protocol {
            Protocol::Esp(esp) => mtu::esp(mtu, header_bytes, &self.mode, esp),
            _ => mtu::other(mtu, header_bytes),
        }
    }

    /// What the sending side of an IPTFS SA has to know of it; `None` for other SAs.
    #[must_use]
    pub fn iptfs_send_params(&self, config: &IptfsConfig) -> Option<iptfs::SendParams> {
        let (Protocol::Esp(esp), Mode::Iptfs { .. }) = (&self.protocol, self.mode.params().mode)
        else {
            return None;
        };
        Some(iptfs::SendParams {
            config: *config,
            header_bytes: u32::try_from(self.header_bytes()).ok()?,
            icv_bytes: esp.icv_bytes(),
            block_bytes: esp.block_bytes(),
        })
    }
}
