//! Packets that arrive: the part of an IP stack that IPsec needs.
//!
//! A packet for this host is put together from its fragments, and if it is
//! protected it passes its SAs; what a tunnel gives back enters anew. In the end
//! input policies are asked for what is delivered here, forward policies for
//! what goes on; what is done with it then is the caller's.
//!
//! Source: `net/ipv4/ip_input.c ip_local_deliver`, `net/ipv4/ip_forward.c`,
//! `net/ipv4/xfrm4_input.c`, `net/ipv4/udp.c udp_queue_rcv_one_skb`,
//! `net/ipv4/icmp.c icmp_rcv`, `net/ipv4/tunnel4.c`, and their IPv6 twins.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use crate::drop_reason::DropReason;
use crate::netns::{Context, Netns};
use crate::packet::encap::{self, Datagram};
use crate::packet::reassembly::Outcome;
use crate::packet::{Family, PacketBuf, ip4, ip6};
use crate::path::admitted::Admitted;
use crate::path::check::Question;
use crate::path::input::{Approach, Arrival, source};
use crate::path::sec_path::SecPath;
use crate::path::witness::{Nobody, Witness};
use crate::path::worker::Worker;
use crate::spd::{Flow, SocketKey};
use crate::time::Now;
use crate::transform::Inbound;

/// What comes with a packet, and changes on its way through SAs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputMeta {
    /// Firewall mark.
    pub mark: u32,
    /// Interface id, 0 but for packets of an XFRM interface.
    pub if_id: u32,
    /// Interface that it arrived at.
    pub ifindex: i32,
    /// That interface asks no policies (`disable_policy`).
    pub no_policy: bool,
    /// The SAs that brought it, outermost first.
    pub path: SecPath,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// It ends here.
    pub is_local: bool,
    /// The interface that it leaves through, the loopback's if it ends here.
    pub ifindex: i32,
}

/// A socket that a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// It.
    pub socket: SocketKey,
    /// Its encapsulation type (`UDP_ENCAP`), 0 for none.
    pub encap: u16,
}

/// What has to be known of the host that packets arrive at.
pub trait Host {
    /// Where packets to an address go; `None` for nowhere.
    fn destination(&self, family: u16, address: Address) -> Option<Destination>;

    /// The socket that a packet is for, if it is one that may have policies or take ESP.
    fn owner(&self, flow: &Flow) -> Option<Owner>;
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The buffer holds a packet that is to be delivered on this host.
    Local,
    /// The buffer holds a packet that may go on its way.
    Forward,
    /// A fragment, kept until the rest is there.
    Kept,
    /// It was a keepalive: done with.
    Consumed,
    /// It was an IPTFS payload: what came out of it is in [`Worker::next_inner`].
    Inner,
    /// It is gone.
    Dropped(DropReason),
}

impl Worker {
    /// Takes a packet that has arrived.
    pub fn receive(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
        host: &dyn Host,
    ) -> Received {
        // Each round but the last passes an SA, of which there are no more than a sec path holds.
        loop {
            match self.step(netns, now, packet, meta, host, &mut Nobody) {
                Ok(Step::Again) => {}
                Ok(Step::Done(received)) => return received,
                Err(reason) => return dropped(netns, reason),
            }
        }
    }

    /// [`Worker::receive`] where there is one thread: what the packet asks for is done at once.
    pub fn receive_alone(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
        host: &dyn Host,
    ) -> Received {
        let received = self.receive(netns, cx.now, packet, meta, host);
        netns.handle_requests(cx, self.drain_requests());
        received
    }

    /// Takes a packet one SA further, or to its policies.
    pub(super) fn step<W: Witness>(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
        host: &dyn Host,
        witness: &mut W,
    ) -> Result<Step, DropReason> {
        let mut to = Approach::NOWHERE;
        match self.approach(netns, now, packet, meta, host, (&mut to, witness))? {
            None => self.enter(netns, now, packet, &to, meta, witness),
            Some(received) => Ok(Step::Done(received)),
        }
    }

    /// Takes a packet to its first SA, which `to` then says, or to its policies.
    #[inline]
    pub(super) fn approach<W: Witness>(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
        host: &dyn Host,
        (to, witness): (&mut Approach, &mut W),
    ) -> Result<Option<Received>, DropReason> {
        let family = Family::of(packet).ok_or(DropReason::InnerHeader)?;
        // Of what may not be a fragment, so that it stays as it is, the header is read once.
        let (address, header) = match family {
            Family::V4 => {
                let header = ip4::receive(packet)?;
                let [a, b, c, d] = header.dst;
                let whole = (!header.is_fragment()).then_some(header);
                (Address::v4(a, b, c, d), whole)
            }
            Family::V6 => (Address(ip6::receive(packet)?.dst), None),
        };
        let destination = host
            .destination(family.af(), address)
            .ok_or(DropReason::InNoRoute)?;
        let ask = Ask {
            netns,
            now,
            to: destination,
            counts: W::COUNTS,
        };
        let mut flow = Flow::default();
        if !destination.is_local {
            let judge = &mut (&mut self.admitted, witness);
            ask.read(&mut flow, packet, header.as_ref(), meta)?;
            ask.policies((packet, &flow), meta, XFRM_POLICY_FWD, None, judge)?;
            return Ok(Some(Received::Forward));
        }
        self.tools.reassembler.handle_timeout(now.boot);
        // Not moved to where it is needed: it is read as it was written.
        to.inbound = match &header {
            Some(header) => Inbound::behind(header),
            None if self.put_together(now, packet, meta)? == Outcome::Kept => {
                return Ok(Some(Received::Kept));
            }
            None => Inbound::locate(packet, 0)?,
        };
        (to.spi, to.encap) = (None, 0);
        if is_protected(netns, packet, to)? {
            return Ok(None);
        }
        let judge = &mut (&mut self.admitted, witness);
        ask.read(&mut flow, packet, header.as_ref(), meta)?;
        ask.deliver((packet, &flow), meta, to, host, judge)
    }

    /// Takes a packet through the SAs that it has come to.
    #[inline]
    pub(super) fn enter<W: Witness>(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        approach: &Approach,
        meta: &mut InputMeta,
        witness: &mut W,
    ) -> Result<Step, DropReason> {
        let arrival = self.open(netns, now, packet, approach, meta, witness)?;
        if let Arrival::Aggfrag(sa, sequence) = arrival {
            if !W::COUNTS {
                return Ok(Step::Done(Received::Inner));
            }
            self.take_payload(netns, now, packet, (sa, sequence), meta);
            return Ok(Step::Done(Received::Inner));
        }
        Ok(Step::Again)
    }

    fn put_together(
        &mut self,
        now: Now,
        packet: &mut PacketBuf,
        meta: &InputMeta,
    ) -> Result<Outcome, DropReason> {
        self.tools
            .reassembler
            .receive_from(now.boot, packet, meta.path.tag())
    }
}

/// The SAs' protocols; the hidden tunnel beside IPCOMP is one of them.
#[inline(always)]
fn is_protected(netns: &Netns, packet: &[u8], to: &mut Approach) -> Result<bool, DropReason> {
    match to.inbound.protocol {
        IPPROTO_ESP | IPPROTO_AH | IPPROTO_COMP => Ok(true),
        // QUIRK: ip_in_ip_counts_as_ipsec: with IPCOMP loaded, a tunnel that nobody set up.
        IPPROTO_IPIP | IPPROTO_IPV6 => {
            let source = source(packet).ok_or(DropReason::InHeader)?;
            let spi = netns.sad.tunnel_spi(to.inbound.family, source);
            to.spi = Some(spi.ok_or(DropReason::InHeaderShort)?);
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// What one round of the loop came to.
pub(super) enum Step {
    Again,
    Done(Received),
}

/// Counts a packet's end.
#[cold]
pub(super) fn dropped(netns: &Netns, reason: DropReason) -> Received {
    if let Some(counter) = reason.counter() {
        netns.mib.count(counter);
    }
    Received::Dropped(reason)
}

/// Policies that a packet is held against.
struct Ask<'a> {
    netns: &'a Netns,
    now: Now,
    to: Destination,
    /// Whether what is found is counted.
    counts: bool,
}

impl Ask<'_> {
    fn policies(
        &self,
        (packet, flow): (&[u8], &Flow),
        meta: &mut InputMeta,
        dir: u8,
        owner: Option<Owner>,
        (admitted, witness): &mut (&mut Admitted, &mut impl Witness),
    ) -> Result<(), DropReason> {
        let own = |owner: Owner| self.netns.spd.has_socket_policy(owner.socket, dir);
        if meta.no_policy && !owner.is_some_and(own) {
            return Ok(());
        }
        let question = Question {
            netns: self.netns,
            used: self.counts.then_some(self.now.real),
            packet,
            flow,
            dir,
            socket: owner.map(|owner| owner.socket),
            if_id: meta.if_id,
        };
        witness.check(&question, &meta.path);
        admitted.check(&question, &mut meta.path)
    }

    #[inline(always)]
    fn read(
        &self,
        flow: &mut Flow,
        packet: &[u8],
        header: Option<&ip4::Header>,
        meta: &InputMeta,
    ) -> Result<(), DropReason> {
        let (mark, ifindex) = (meta.mark, self.to.ifindex);
        let mobility = self.netns.profile.decodes_mobility;
        match header {
            Some(header) => flow.read_behind(header, packet, mark, ifindex, mobility),
            None => flow
                .read(packet, mark, ifindex, mobility)
                .ok_or(DropReason::InHeader)?,
        }
        Ok(())
    }

    /// Input policies, and what kind of datagram it is: `None` for ESP in UDP, to which `to` leads.
    fn deliver(
        &self,
        (packet, flow): (&[u8], &Flow),
        meta: &mut InputMeta,
        to: &mut Approach,
        host: &dyn Host,
        judge: &mut (&mut Admitted, &mut impl Witness),
    ) -> Result<Option<Received>, DropReason> {
        let inbound = &mut to.inbound;
        let owner = host.owner(flow);
        let checked = self.policies((packet, flow), meta, XFRM_POLICY_IN, owner, judge);
        if let Err(reason) = checked {
            self.icmp(packet, meta, inbound, reason, judge.1)?;
        }
        let kind = owner.map_or(0, |owner| owner.encap);
        if kind == 0 || inbound.protocol != IPPROTO_UDP {
            return Ok(Some(Received::Local));
        }
        let datagram = packet.get(inbound.at..).unwrap_or_default();
        match encap::classify(datagram, kind) {
            Datagram::Keepalive => Ok(Some(Received::Consumed)),
            Datagram::Ike => Ok(Some(Received::Local)),
            // QUIRK: short_esp_in_udp_vanishes. Linux compares the datagram's length with what
            // the IP header should have in front of it.
            Datagram::Esp { at } if datagram.len() < inbound.family.header_bytes() + at => {
                Err(DropReason::InEncapShort)
            }
            Datagram::Esp { at } => {
                inbound.at += at;
                inbound.protocol = IPPROTO_ESP;
                to.encap = kind;
                Ok(None)
            }
        }
    }

    /// An ICMP error that its own policies refuse may pass by those of the packet that it is about,
    /// if the SA that brought it says so (`XFRM_STATE_ICMP`).
    fn icmp(
        &self,
        packet: &[u8],
        meta: &mut InputMeta,
        inbound: &Inbound,
        reason: DropReason,
        witness: &mut impl Witness,
    ) -> Result<(), DropReason> {
        let is_icmp = matches!(inbound.protocol, IPPROTO_ICMP | IPPROTO_ICMPV6);
        let sa = meta.path.last(&self.netns.sad).filter(|_| is_icmp);
        if sa.is_none_or(|sa| sa.flags & XFRM_STATE_ICMP == 0) {
            return Err(reason);
        }
        // Linux has counted the first refusal by now.
        if let Some(counter) = reason.counter().filter(|_| self.counts) {
            self.netns.mib.count(counter);
        }
        let quoted = packet.get(inbound.at + 8..).unwrap_or_default();
        let mobility = self.netns.profile.decodes_mobility;
        let flow = Flow::of_packet(quoted, meta.mark, meta.ifindex, mobility)
            .ok_or(DropReason::InHeader)?
            .reversed();
        let question = Question {
            netns: self.netns,
            used: self.counts.then_some(self.now.real),
            packet: quoted,
            flow: &flow,
            dir: XFRM_POLICY_IN,
            socket: None,
            if_id: meta.if_id,
        };
        witness.check(&question, &meta.path);
        question.check(&mut meta.path).map(drop)
    }
}
