//! Packets that arrive protected: through their SAs, one after the other.
//!
//! For each SA: lookup, direction, state, encapsulation, replay window, limits,
//! then the transform, the window again, counters, mode. A tunnel gives back
//! another packet, which enters anew with its [`SecPath`]; after a transport SA
//! the next header is looked at, which may be another SA's.
//!
//! Source: `net/xfrm/xfrm_input.c xfrm_input`; the end of `net/ipv4/esp4.c
//! esp_input_done2` and of its IPv6 twin; `net/xfrm/xfrm_state.c km_new_mapping`.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, BeU16, UserMapping};

use crate::drop_reason::DropReason;
use crate::event::Event;
use crate::netns::Netns;
use crate::packet::checksum::renew_transport;
use crate::packet::{Family, PacketBuf, be16};
use crate::path::arrivals::Wanted;
use crate::path::bundle::set_mark;
use crate::path::receive::InputMeta;
use crate::path::request::Request;
use crate::path::witness::Witness;
use crate::path::worker::Worker;
use crate::replay::Refusal;
use crate::sad::traffic::Limit;
use crate::sad::{Lifecycle, Sa, SaHandle};
use crate::time::Now;
use crate::transform::{Delivery, Inbound, Opened, Sequence};

/// How a packet came to its first SA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Approach {
    /// Where the protocol is in the packet.
    pub(super) inbound: Inbound,
    /// The SPI, where the packet itself has none.
    pub(super) spi: Option<u32>,
    /// Encapsulation type of the UDP socket that it came through, 0 for none.
    pub(super) encap: u16,
}

impl Approach {
    /// To be filled in.
    pub(super) const NOWHERE: Self = Self {
        inbound: Inbound {
            family: Family::V4,
            header_bytes: 0,
            next_header_at: 0,
            at: 0,
            protocol: 0,
        },
        spi: None,
        encap: 0,
    };
}

/// What came out of the last SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The buffer holds a packet that was in a tunnel.
    Inner,
    /// The buffer holds the packet without the headers of its SAs.
    Bare,
    /// The buffer holds a payload of an IPTFS SA.
    Aggfrag(SaHandle, Sequence),
}

impl Worker {
    /// Takes a packet through its SAs.
    pub(super) fn open<W: Witness>(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        approach: &Approach,
        meta: &mut InputMeta,
        witness: &mut W,
    ) -> Result<Arrival, DropReason> {
        let looked_up_by = meta.mark;
        let mut next;
        let mut inbound = &approach.inbound;
        let (mut spi, mut low) = match approach.spi {
            Some(spi) => (spi, 0),
            None => inbound.spi(packet)?.ok_or(DropReason::InHeaderShort)?,
        };
        let mut encap = approach.encap;
        let mut readdressed = false;
        let (mut daddr, mut family) = destination(packet).ok_or(DropReason::InHeader)?;
        loop {
            if meta.path.len() == XFRM_MAX_DEPTH {
                return Err(DropReason::InDepth);
            }
            let wanted = Wanted {
                mark: looked_up_by,
                daddr,
                spi,
                proto: protocol_of_sa(inbound),
                family,
            };
            let id = self.arrivals.lookup(&netns.sad, &wanted);
            let id = id.ok_or(DropReason::InNoStates)?;
            let sa = netns.sad.get(id).ok_or(DropReason::InNoStates)?;
            let stand_in = witness.meet(sa);
            let sa = stand_in.as_deref().unwrap_or(sa);
            if sa.dir != 0 && sa.dir != XFRM_SA_DIR_IN {
                return Err(DropReason::InDirection);
            }
            meta.mark = set_mark(meta.mark, sa);
            let handle = sa.handle(id);
            meta.path.push(handle).ok_or(DropReason::InDepth)?;
            let arrived = Arrived {
                sa,
                handle,
                inbound,
                low,
                encap,
            };
            let (delivery, sequence) = self.pass_in(netns, now, packet, &arrived)?;
            readdressed |= encap != 0 && sa.mode == XFRM_MODE_TRANSPORT;
            encap = 0;
            match delivery {
                Delivery::Packet(_) => return Ok(Arrival::Inner),
                Delivery::Aggfrag => return Ok(Arrival::Aggfrag(handle, sequence)),
                Delivery::Next(rest) => {
                    next = rest;
                    inbound = &next;
                }
            }
            // Transport mode: the addresses are still the outer ones.
            (daddr, family) = (sa.id.daddr, sa.family);
            match inbound.spi(packet)? {
                Some(found) => (spi, low) = found,
                None => {
                    inbound.finish(packet)?;
                    // The sender summed addresses that a NAT may have changed since. Linux takes such
                    // packets without looking at the sum; whoever gets ours may look.
                    if readdressed {
                        renew_transport(packet, inbound.protocol, inbound.header_bytes);
                    }
                    return Ok(Arrival::Bare);
                }
            }
        }
    }

    /// Takes a packet through one SA.
    fn pass_in(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        arrived: &Arrived<'_>,
    ) -> Result<(Delivery, Sequence), DropReason> {
        let sa = arrived.sa;
        let sequence = self.admit(netns, now, arrived)?;
        let transform = sa
            .transform(netns.profile, &mut *self.tools.entropy)
            .ok_or(DropReason::InUnsupported)?;
        let opened = transform.open(packet, arrived.inbound, sequence, &mut self.tools.scratch);
        if let Err(DropReason::EspIcv | DropReason::AhIcv) = opened {
            sa.traffic.count_integrity_failure();
        }
        if matches!(opened, Ok(_) | Err(DropReason::EspDummy)) {
            self.tell_mapping(now, packet, arrived);
        }
        let opened = opened?;
        self.accept(netns, now, packet, arrived, sequence, &opened)?;
        let delivery = transform.unwrap(packet, arrived.inbound, &opened)?;
        Ok((delivery, sequence))
    }

    /// What is checked before any crypto.
    fn admit(
        &mut self,
        netns: &Netns,
        now: Now,
        arrived: &Arrived<'_>,
    ) -> Result<Sequence, DropReason> {
        let sa = arrived.sa;
        if sa.state == Lifecycle::Larval {
            return Err(DropReason::InLarval);
        }
        if !sa.is_valid() {
            return Err(DropReason::InInvalid);
        }
        if sa.encap().map_or(0, |encap| encap.kind) != arrived.encap {
            return Err(DropReason::InEncap);
        }
        let sequence = sa
            .first_look(arrived.low)
            .map_err(|refusal| refuse(sa, refusal))?;
        match sa.traffic.check(&sa.lft, now.real) {
            Limit::Within => {}
            limit => self
                .tools
                .reach(netns, sa, arrived.handle, limit, DropReason::InExpired)
                .map_err(|(reason, _)| reason)?,
        }
        Ok(sequence)
    }

    /// What is done once the packet has proved to be genuine: it counts, and its number is used up.
    fn accept(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &PacketBuf,
        arrived: &Arrived<'_>,
        sequence: Sequence,
        opened: &Opened,
    ) -> Result<(), DropReason> {
        let sa = arrived.sa;
        let follows = {
            let mut window = sa.window();
            window
                .recheck(sequence)
                .map_err(|refusal| refuse(sa, refusal))?;
            window.advance(arrived.low);
            sa.traffic.keep_window(&window);
            window.is_open()
        };
        if follows && netns.listeners.aevents {
            self.tools
                .notify_replay(netns, now, sa, arrived.handle, None);
        }
        let bytes = packet.len().saturating_sub(opened.at);
        let bytes = u64::try_from(bytes).unwrap_or(0);
        sa.traffic.count(1, bytes, now.real);
        Ok(())
    }

    /// Tells key managers that the other end's address or port is not the SA's.
    ///
    /// QUIRK: a_mapping_is_told_with_every_packet. Nothing is learned from it; key managers
    /// update the SA. Even a dummy packet moves Linux to tell.
    pub(super) fn tell_mapping(&mut self, now: Now, packet: &[u8], arrived: &Arrived<'_>) {
        let sa = arrived.sa;
        let (Some(encap), true) = (sa.encap(), sa.id.proto == IPPROTO_ESP) else {
            return;
        };
        let source = source(packet).zip(be16(packet, arrived.inbound.header_bytes));
        let Some((saddr, port)) = source else { return };
        if saddr.equal(sa.saddr, sa.family) && port == encap.sport {
            return;
        }
        let rate = sa.options().mapping_maxage_secs;
        if rate != 0 && !sa.traffic.mapping_is_due(now.boot, port, rate) {
            return;
        }
        let mapping = UserMapping {
            id: sa.user_id(),
            reqid: sa.reqid,
            old_saddr: sa.saddr,
            new_saddr: saddr,
            old_sport: BeU16::new(encap.sport),
            new_sport: BeU16::new(port),
        };
        let event = Event::Mapping(Box::new(mapping));
        self.tools.requests.push(Request::Tell(event));
    }
}

/// A packet at one SA.
pub(super) struct Arrived<'a> {
    pub(super) sa: &'a Sa,
    pub(super) handle: SaHandle,
    pub(super) inbound: &'a Inbound,
    /// The low half of its sequence number.
    pub(super) low: u32,
    pub(super) encap: u16,
}

/// The protocol of the SA for what comes next. A hidden tunnel's is that of its own addresses,
/// whichever packet is inside.
const fn protocol_of_sa(inbound: &Inbound) -> u8 {
    match (inbound.protocol, inbound.family) {
        (IPPROTO_IPIP | IPPROTO_IPV6, Family::V4) => IPPROTO_IPIP,
        (IPPROTO_IPIP | IPPROTO_IPV6, Family::V6) => IPPROTO_IPV6,
        (protocol, _) => protocol,
    }
}

pub(super) fn refuse(sa: &Sa, refusal: Refusal) -> DropReason {
    sa.traffic.count_refusal(refusal);
    DropReason::InReplay
}

/// The destination of an IP packet, and its family.
#[inline]
pub(super) fn destination(packet: &[u8]) -> Option<(Address, u16)> {
    let family = Family::of(packet)?;
    let address = match family {
        Family::V4 => v4_address(packet, 16)?,
        Family::V6 => Address(*packet.get(24..)?.first_chunk()?),
    };
    Some((address, family.af()))
}

/// The source of an IP packet.
pub(super) fn source(packet: &[u8]) -> Option<Address> {
    match Family::of(packet)? {
        Family::V4 => v4_address(packet, 12),
        Family::V6 => Some(Address(*packet.get(8..)?.first_chunk()?)),
    }
}

fn v4_address(packet: &[u8], at: usize) -> Option<Address> {
    let &[a, b, c, d] = packet.get(at..)?.first_chunk()?;
    Some(Address::v4(a, b, c, d))
}
