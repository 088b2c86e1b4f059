//! Modes: transport, tunnel, BEET (draft-nikander-esp-beet-mode), IPTFS's outer header.
//!
//! Source: `net/xfrm/xfrm_output.c xfrm_outer_mode_output`,
//! `net/xfrm/xfrm_input.c xfrm_inner_mode_input`, `net/xfrm/xfrm_inout.h`,
//! `net/xfrm/xfrm_iptfs.c iptfs_encap_add_ipv4` and its twin.
//! Headers that depend on nothing but the SA are laid out in advance.
//!
//! Not as Linux has it: AH in BEET mode over IPv4, which `ip` refuses to set up. Linux leaves eight
//! bytes too few for the header there and writes it over the payload; here there is room.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use super::outer::{header_template, lay_out, next_header_at};
use super::{Inbound, Opened, Route, iptfs};
use crate::drop_reason::DropReason;
use crate::packet::{Family, PacketBuf, finish, ip4, ip6, put};

/// Offset of the protocol field in an IPv4 header.
pub const V4_PROTOCOL_AT: usize = 9;
/// The protocol number of BEET's pseudo header, which carries IPv4 options.
const IPPROTO_BEETPH: u8 = 94;
/// The longest that the pseudo header gets, without the options themselves.
const BEET_PSEUDO_BYTES: usize = 8;
/// An IPv4 option that does nothing.
const OPTION_NOP: u8 = 1;
const ECN_MASK: u8 = 3;
const ECN_CE: u8 = 3;
const ECN_ECT0: u8 = 2;

/// How an SA wraps packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The packet's own IP header stays outside.
    Transport,
    /// The whole packet goes into another.
    Tunnel,
    /// Bound end-to-end tunnel: inner addresses are the SA's, not the packet's.
    Beet,
    /// Mobile IPv6.
    RouteOptimization,
    /// As a tunnel; what is inside, [`super::iptfs`] makes and takes apart.
    Iptfs {
        /// Inner packets may be split.
        splits: bool,
    },
}

impl Mode {
    /// The mode of an `XFRM_MODE_*` value that has a packet path. IPTFS has none without its
    /// configuration, and is not known by its value alone.
    #[must_use]
    pub const fn from_xfrm(mode: u8) -> Option<Self> {
        match mode {
            XFRM_MODE_TRANSPORT => Some(Self::Transport),
            XFRM_MODE_TUNNEL => Some(Self::Tunnel),
            XFRM_MODE_BEET => Some(Self::Beet),
            XFRM_MODE_ROUTEOPTIMIZATION => Some(Self::RouteOptimization),
            _ => None,
        }
    }
}

/// What of an SA concerns its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeParams {
    /// The mode.
    pub mode: Mode,
    /// Family of the SA's addresses.
    pub family: Family,
    /// Family of its selector, `None` for `AF_UNSPEC`.
    pub selector_family: Option<Family>,
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The selector's source: in BEET mode the inner one.
    pub selector_src: Address,
    /// The selector's destination.
    pub selector_dst: Address,
    /// `XFRM_STATE_*`.
    pub flags: u8,
    /// `XFRM_SA_XFLAG_*`.
    pub extra_flags: u32,
}

/// An outgoing packet with a gap: `..header_at` are the IP headers,
/// `header_at..payload_at` is the gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Offset of the byte that names what follows the IP headers; it names the payload still.
    pub next_header_at: usize,
    /// Where the gap begins.
    pub header_at: usize,
    /// Where the payload begins.
    pub payload_at: usize,
}

impl Place {
    /// Bytes of payload: what the SA's lifetime counts.
    #[must_use]
    #[inline]
    pub fn payload_bytes(&self, packet: &[u8]) -> usize {
        packet.len().saturating_sub(self.payload_at)
    }
}

/// What became of an incoming packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Transport: the next protocol of the same packet is to be looked at; when no SA is for
    /// that, [`Inbound::finish`] ends it.
    Next(Inbound),
    /// The buffer holds another packet, which enters as if it came from a
    /// device: `ip4::receive` or `ip6::receive` judges it.
    Packet(Family),
    /// The buffer holds an AGGFRAG payload: [`super::iptfs::Receive::take`] is for it.
    Aggfrag,
}

/// A mode, ready for packets.
#[derive(Debug)]
pub struct ModeTransform {
    params: ModeParams,
    /// Outer header in tunnel and BEET mode, with zeros where a packet decides.
    outer: [u8; ip6::HEADER_BYTES],
}

/// Fields that pass from one header to the other (`XFRM_MODE_SKB_CB`).
#[derive(Clone, Copy)]
struct Fields {
    family: Family,
    /// Bytes of the header without options.
    fixed_bytes: usize,
    option_bytes: usize,
    tos: u8,
    ident: u16,
    fragment: u16,
    hop_limit: u8,
    flow_label: u32,
    protocol: u8,
}

impl Fields {
    /// `xfrm4_extract_header`, `xfrm6_extract_header`.
    #[inline]
    fn extract(packet: &[u8]) -> Option<Self> {
        match Family::of(packet)? {
            Family::V4 => {
                let header = ip4::Header::parse(packet)?;
                Some(Self {
                    family: Family::V4,
                    fixed_bytes: ip4::HEADER_BYTES,
                    option_bytes: header.header_bytes - ip4::HEADER_BYTES,
                    tos: header.tos,
                    ident: header.ident,
                    fragment: header.fragment,
                    hop_limit: header.ttl,
                    flow_label: 0,
                    protocol: header.protocol,
                })
            }
            Family::V6 => {
                let header = ip6::Header::parse(packet)?;
                Some(Self {
                    family: Family::V6,
                    fixed_bytes: ip6::HEADER_BYTES,
                    option_bytes: 0,
                    tos: header.traffic_class,
                    ident: 0,
                    fragment: ip4::DF,
                    hop_limit: header.hop_limit,
                    flow_label: header.flow_label,
                    protocol: header.next_header,
                })
            }
        }
    }

    /// Writes them over the header at the front of `packet`, where addresses
    /// (and for IPv4 version and header length) are already; `protocol` is what follows.
    #[inline(always)]
    fn write(&self, packet: &mut [u8], family: Family, protocol: u8) -> Option<()> {
        match family {
            Family::V4 => {
                let header: &mut [u8; ip4::HEADER_BYTES] = packet.first_chunk_mut()?;
                let ([first, second, third, ..], _) = header.as_chunks_mut::<4>() else {
                    return None;
                };
                // Length and checksum are filled in at the end.
                let version = u32::from(first[0]) << 24;
                *first = (version | u32::from(self.tos) << 16).to_be_bytes();
                *second = (u32::from(self.ident) << 16 | u32::from(self.fragment)).to_be_bytes();
                let protocol = u32::from(protocol) << 16;
                *third = (u32::from(self.hop_limit) << 24 | protocol).to_be_bytes();
            }
            Family::V6 => {
                let header: &mut [u8; ip6::HEADER_BYTES] = packet.first_chunk_mut()?;
                let ([first, second, ..], _) = header.as_chunks_mut::<4>() else {
                    return None;
                };
                *first = (6 << 28 | u32::from(self.tos) << 20 | self.flow_label).to_be_bytes();
                *second = [0, 0, protocol, self.hop_limit];
            }
        }
        Some(())
    }
}

impl ModeTransform {
    /// Lays out what packets will need.
    #[must_use]
    pub fn new(params: &ModeParams) -> Self {
        let outer = header_template(params.family, &params.src, &params.dst);
        Self {
            params: *params,
            outer,
        }
    }

    /// What of the SA it was made from.
    #[must_use]
    pub const fn params(&self) -> &ModeParams {
        &self.params
    }

    /// Bytes that `props.header_len` has for the mode. Only ESP counts BEET's.
    pub(super) fn extra_header_bytes(&self, esp: bool) -> usize {
        let params = &self.params;
        let beet_v4 = esp && params.selector_family != Some(Family::V6);
        match (params.mode, params.family) {
            (Mode::Tunnel, family) => family.header_bytes(),
            (Mode::Iptfs { .. }, family) => family.header_bytes() + iptfs::HEADER_BYTES,
            (Mode::Beet, Family::V4) if beet_v4 => BEET_PSEUDO_BYTES,
            (Mode::Beet, Family::V6) if beet_v4 => {
                BEET_PSEUDO_BYTES + ip6::HEADER_BYTES - ip4::HEADER_BYTES
            }
            _ => 0,
        }
    }

    /// Puts the outer header in front of `packet`, and `gap` bytes behind it.
    #[inline(always)]
    pub(super) fn place(
        &self,
        packet: &mut PacketBuf,
        gap: usize,
        route: &Route,
        place: &mut Place,
    ) -> Result<(), DropReason> {
        *place = match self.params.mode {
            Mode::Tunnel => return self.place_tunnel(packet, gap, route, place),
            Mode::Transport | Mode::RouteOptimization => self.place_transport(packet, gap)?,
            Mode::Beet => self.place_beet(packet, gap, route)?,
            Mode::Iptfs { .. } => self.place_iptfs(packet, gap, route)?,
        };
        Ok(())
    }

    #[inline(never)]
    fn place_transport(&self, packet: &mut PacketBuf, gap: usize) -> Result<Place, DropReason> {
        if Family::of(packet) != Some(self.params.family) {
            return Err(DropReason::OutFamily);
        }
        let at = match self.params.family {
            Family::V4 => ip4::Header::parse(packet).map(|header| ip6::Place {
                next_header_at: V4_PROTOCOL_AT,
                at: header.header_bytes,
            }),
            Family::V6 => ip6::fragmentable_at(packet),
        };
        open_gap(packet, at.ok_or(DropReason::OutHeader)?, gap)
    }

    #[inline(always)]
    fn place_tunnel(
        &self,
        packet: &mut PacketBuf,
        gap: usize,
        route: &Route,
        place: &mut Place,
    ) -> Result<(), DropReason> {
        let params = &self.params;
        let inner = Fields::extract(packet).ok_or(DropReason::OutHeader)?;
        check_size(packet, &inner, route)?;

        let hidden = params.extra_flags & XFRM_SA_XFLAG_DONT_ENCAP_DSCP != 0;
        let dscp = if hidden { 0 } else { inner.tos & !ECN_MASK };
        let ecn = match inner.tos & ECN_MASK {
            _ if params.flags & XFRM_STATE_NOECN != 0 => 0,
            ECN_CE => ECN_ECT0,
            other => other,
        };
        let fragment = match params.flags & XFRM_STATE_NOPMTUDISC {
            0 => inner.fragment & ip4::DF,
            _ => 0,
        };
        let outer = Fields {
            tos: dscp | ecn,
            // What nobody fragments needs no identification (`ip_select_ident`).
            ident: if fragment == 0 { route.ident } else { 0 },
            fragment,
            hop_limit: route.hop_limit,
            ..inner
        };
        let header_bytes = params.family.header_bytes();
        packet
            .push_front(header_bytes + gap)
            .ok_or(DropReason::OutNoRoom)?;
        self.write_outer(packet, &outer, inner.family.protocol())?;
        *place = Place {
            next_header_at: next_header_at(params.family),
            header_at: header_bytes,
            payload_at: header_bytes + gap,
        };
        Ok(())
    }

    /// Nothing of the inner packets shows (RFC 9347 3.1).
    #[inline(never)]
    fn place_iptfs(
        &self,
        packet: &mut PacketBuf,
        gap: usize,
        route: &Route,
    ) -> Result<Place, DropReason> {
        let family = self.params.family;
        let outer = Fields {
            family,
            fixed_bytes: family.header_bytes(),
            option_bytes: 0,
            tos: 0,
            ident: 0,
            fragment: ip4::DF,
            hop_limit: route.hop_limit,
            flow_label: 0,
            protocol: iptfs::IPPROTO_AGGFRAG,
        };
        let header_bytes = family.header_bytes();
        packet
            .push_front(header_bytes + gap)
            .ok_or(DropReason::OutNoRoom)?;
        self.write_outer(packet, &outer, outer.protocol)?;
        Ok(Place {
            next_header_at: next_header_at(family),
            header_at: header_bytes,
            payload_at: header_bytes + gap,
        })
    }

    #[inline(never)]
    fn place_beet(
        &self,
        packet: &mut PacketBuf,
        gap: usize,
        route: &Route,
    ) -> Result<Place, DropReason> {
        let inner = Fields::extract(packet).ok_or(DropReason::OutHeader)?;
        check_size(packet, &inner, route)?;
        let is_fragment = inner.fragment & (ip4::MF | ip4::OFFSET_MASK) != 0;
        if inner.family == Family::V4 && is_fragment {
            return Err(DropReason::OutFragment);
        }
        packet
            .pull_front(inner.fixed_bytes)
            .ok_or(DropReason::OutHeader)?;
        let mut protocol = inner.protocol;
        if inner.option_bytes != 0 {
            let pad = 4 - (inner.option_bytes & 4);
            packet.push_front(4 + pad).ok_or(DropReason::OutNoRoom)?;
            let [.., units] = (inner.option_bytes / 8).to_be_bytes();
            let [.., pad_byte] = pad.to_be_bytes();
            // QUIRK: beet_reserved_byte_is_a_leftover. The fourth byte keeps what the inner header
            // has there, part of an address.
            put(packet, 0, &[protocol, units, pad_byte]).ok_or(DropReason::OutHeader)?;
            if let Some(padding) = packet.get_mut(4..4 + pad) {
                padding.fill(OPTION_NOP);
            }
            protocol = IPPROTO_BEETPH;
        }
        let header_bytes = self.params.family.header_bytes();
        packet
            .push_front(header_bytes + gap)
            .ok_or(DropReason::OutNoRoom)?;
        self.write_outer(packet, &inner, protocol)?;
        Ok(Place {
            next_header_at: next_header_at(self.params.family),
            header_at: header_bytes,
            payload_at: header_bytes + gap,
        })
    }

    #[inline(always)]
    fn write_outer(
        &self,
        packet: &mut [u8],
        fields: &Fields,
        protocol: u8,
    ) -> Result<(), DropReason> {
        let family = self.params.family;
        lay_out(packet, family, &self.outer)
            .and_then(|()| fields.write(packet, family, protocol))
            .ok_or(DropReason::OutNoRoom)
    }

    /// Takes the outer header off, or in transport mode closes the gap.
    #[inline]
    pub(super) fn unwrap(
        &self,
        packet: &mut PacketBuf,
        inbound: &Inbound,
        opened: &Opened,
    ) -> Result<Delivery, DropReason> {
        match self.params.mode {
            Mode::Transport => close_gap(packet, inbound, opened),
            Mode::Tunnel => self.unwrap_tunnel(packet, opened),
            Mode::Beet => self.unwrap_beet(packet, opened),
            Mode::Iptfs { .. } => packet
                .pull_front(opened.at)
                .map(|()| Delivery::Aggfrag)
                .ok_or(DropReason::IptfsShort),
            Mode::RouteOptimization => Err(DropReason::InMode),
        }
    }

    #[inline]
    fn unwrap_tunnel(
        &self,
        packet: &mut PacketBuf,
        opened: &Opened,
    ) -> Result<Delivery, DropReason> {
        let family = match opened.protocol {
            IPPROTO_IPIP => Family::V4,
            IPPROTO_IPV6 => Family::V6,
            _ => return Err(DropReason::InnerProtocol),
        };
        let outer = Family::of(packet).and_then(|outer| class(packet, outer));
        let outer = outer.ok_or(DropReason::InHeader)?;
        packet
            .pull_front(opened.at)
            .filter(|()| packet.len() >= family.header_bytes())
            .ok_or(DropReason::InnerShort)?;
        let flags = self.params.flags;
        let old = class(packet, family).ok_or(DropReason::InnerShort)?;
        let mut tos = old;
        if flags & XFRM_STATE_DECAP_DSCP != 0 {
            tos = tos & ECN_MASK | outer & !ECN_MASK;
        }
        let congested = outer & ECN_MASK == ECN_CE && tos & ECN_MASK != 0;
        if flags & XFRM_STATE_NOECN == 0 && congested {
            tos |= ECN_CE;
        }
        if tos != old {
            match family {
                Family::V4 => ip4::set_tos(packet, tos),
                Family::V6 => ip6::set_traffic_class(packet, tos),
            };
        }
        Ok(Delivery::Packet(family))
    }

    fn unwrap_beet(&self, packet: &mut PacketBuf, opened: &Opened) -> Result<Delivery, DropReason> {
        let params = &self.params;
        let family = params.selector_family.ok_or(DropReason::InMode)?;
        let outer = Fields::extract(packet).ok_or(DropReason::InHeader)?;
        packet
            .pull_front(opened.at)
            .ok_or(DropReason::InHeaderShort)?;
        let mut protocol = opened.protocol;
        let mut option_bytes = 0;
        if family == Family::V4 && protocol == IPPROTO_BEETPH {
            let &[next, units, pad, _] = packet.first_chunk().ok_or(DropReason::BeetHeader)?;
            let header = 4 + usize::from(pad);
            option_bytes = (usize::from(units) * 8 + BEET_PSEUDO_BYTES)
                .checked_sub(header)
                .filter(|bytes| bytes % 4 == 0 && *bytes <= 250)
                .ok_or(DropReason::BeetHeader)?;
            packet.pull_front(header).ok_or(DropReason::BeetHeader)?;
            protocol = next;
        }
        packet
            .push_front(family.header_bytes())
            .ok_or(DropReason::InNoRoom)?;
        let template = header_template(family, &params.selector_src, &params.selector_dst);
        let laid_out = lay_out(packet, family, &template);
        laid_out
            .and_then(|()| outer.write(packet, family, protocol))
            .ok_or(DropReason::InNoRoom)?;
        if family == Family::V4 {
            // QUIRK: beet_option_length_wraps. Four bits take the sum, so that 60 bytes of
            // options and more make a header that the next check refuses.
            let [.., words] = (5 + option_bytes / 4).to_be_bytes();
            put(packet, 0, &[0x40 | words & 15]).ok_or(DropReason::InNoRoom)?;
        }
        finish(packet).ok_or(DropReason::InnerHeader)?;
        Ok(Delivery::Packet(family))
    }
}

/// Type of service, or traffic class.
#[inline]
fn class(packet: &[u8], family: Family) -> Option<u8> {
    let word = crate::packet::be16(packet, 0)?;
    let [_, class] = match family {
        Family::V4 => word,
        Family::V6 => word >> 4,
    }
    .to_be_bytes();
    Some(class)
}

/// Refuses what is longer than the tunnel takes (`xfrm4_tunnel_check_size`,
/// `xfrm6_tunnel_check_size`).
#[inline]
fn check_size(packet: &PacketBuf, fields: &Fields, route: &Route) -> Result<(), DropReason> {
    const V6_MIN_MTU: u32 = 1280;
    let mtu = match fields.family {
        Family::V4 if fields.fragment & ip4::DF == 0 => return Ok(()),
        Family::V4 => route.inner_mtu,
        Family::V6 => route.inner_mtu.max(V6_MIN_MTU),
    };
    if u32::try_from(packet.len()).is_ok_and(|bytes| bytes <= mtu) {
        Ok(())
    } else {
        Err(DropReason::OutTooBig)
    }
}

/// Moves the headers in front of `at` forward, to leave `gap` bytes behind them.
pub(super) fn open_gap(
    packet: &mut PacketBuf,
    at: ip6::Place,
    gap: usize,
) -> Result<Place, DropReason> {
    packet.push_front(gap).ok_or(DropReason::OutNoRoom)?;
    if packet.len() < gap + at.at {
        return Err(DropReason::OutHeader);
    }
    packet.copy_within(gap..gap + at.at, 0);
    Ok(Place {
        next_header_at: at.next_header_at,
        header_at: at.at,
        payload_at: at.at + gap,
    })
}

/// Moves the IP headers back to the payload (`xfrm4_transport_input`, `xfrm6_transport_input`).
///
/// QUIRK: ah_inside_esp_fails. They name the outermost protocol still, until the packet has
/// passed its last SA. An AH that was inside is verified with that, and fails.
fn close_gap(
    packet: &mut PacketBuf,
    inbound: &Inbound,
    opened: &Opened,
) -> Result<Delivery, DropReason> {
    let header_bytes = inbound.header_bytes;
    let shift = opened
        .at
        .checked_sub(header_bytes)
        .ok_or(DropReason::InHeader)?;
    if packet.len() < opened.at {
        return Err(DropReason::InHeader);
    }
    packet.copy_within(..header_bytes, shift);
    packet.pull_front(shift).ok_or(DropReason::InHeader)?;
    finish(packet).ok_or(DropReason::InHeader)?;
    Ok(Delivery::Next(Inbound {
        at: header_bytes,
        protocol: opened.protocol,
        ..*inbound
    }))
}
