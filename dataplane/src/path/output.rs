//! Packets that leave: what comes with them, what becomes of them.
//!
//! `lookup` decides, `transmit` carries out, `hold` keeps what has to wait.

use xfrm_proto::consts::*;

use crate::drop_reason::DropReason;
use crate::netns::{Context, Netns};
use crate::packet::segment::{Offload, Segmenter, complete_checksum};
use crate::packet::{Family, PacketBuf};
use crate::path::flows::Flows;
use crate::path::hold::{Held, HeldPacket, Queue};
use crate::path::lookup::{Decision, Looked, Lookup};
use crate::path::request::Request;
use crate::path::route::Routes;
use crate::path::transmit::Moment;
use crate::path::worker::{Tools, Worker};
use crate::spd::flow::equal_words;
use crate::spd::{Flow, SocketKey};
use crate::time::Now;
use crate::transform::MOST_AT_ONCE;

/// What comes with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputMeta {
    /// Firewall mark.
    pub mark: u32,
    /// Interface id, 0 but for packets of an XFRM interface.
    pub if_id: u32,
    /// Interface that the packet's own route leads to.
    pub ifindex: i32,
    /// The socket that it comes from, if that may have a policy.
    pub socket: Option<SocketKey>,
    /// The packet is another host's, on its way through.
    pub forwarded: bool,
    /// Its route knows no policies (`DST_NOXFRM`: the interface's `disable_xfrm`).
    pub bypasses: bool,
    /// Its route ends on this host; a default that blocks does not.
    pub loopback: bool,
    /// MTU of its route.
    pub mtu: u32,
    /// TTL or hop limit that its route gives to packets.
    pub hop_limit: u8,
}

impl OutputMeta {
    /// Of a packet that the engine itself has made.
    pub(super) const fn of_own(mark: u32) -> Self {
        Self {
            mark,
            if_id: 0,
            ifindex: 0,
            socket: None,
            forwarded: false,
            bypasses: false,
            loopback: false,
            mtu: u32::MAX,
            hop_limit: 0,
        }
    }
}

/// A packet on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Of the outermost header.
    pub family: Family,
    /// Firewall mark, as SAs have set it.
    pub mark: u32,
}

/// Takes packets that are ready for the wire.
pub type Sink<'a> = dyn FnMut(&mut PacketBuf, &Departure) + 'a;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No SA is for it: the buffer holds it as it was, and it may go.
    Plain,
    /// It went to the sink, in this many pieces.
    Sent(usize),
    /// It waits for SAs, and will come out of [`Worker::retry`].
    Held,
    /// It waits in the queue of an IPTFS SA, and will come out of [`Worker::run_iptfs`].
    Queued,
    /// It is gone.
    Dropped {
        /// Why.
        reason: DropReason,
        /// What its sender hears on this host, 0 for success.
        errno: i32,
    },
    /// It is larger than what may enter the SAs.
    TooBig {
        /// What would have been right.
        mtu: u32,
    },
}

impl Worker {
    /// Takes a packet that leaves: looks up what is to be done to it, and does it
    /// (`xfrm_lookup`, `xfrm_output`).
    pub fn output(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let mobility = netns.profile.decodes_mobility || !meta.forwarded;
        let mut flow = Flow::default();
        if flow
            .read(packet, meta.mark, meta.ifindex, mobility)
            .is_none()
        {
            return drop(netns, header_reason(meta), errno::EINVAL);
        }
        let verdict = self.look_up(netns, &flow, meta, routes, |tools, looked| {
            tools.carry_out(netns, now, packet, meta, looked, sink)
        });
        if verdict == Verdict::Plain
            && let Some(quoted) = quoted_flow(netns, &flow, packet, meta)
        {
            return self.follow(netns, now, packet, &quoted, meta, routes, sink);
        }
        verdict
    }

    /// Has an ICMP error that no policy protects pass the SAs of the packet that it is about, if
    /// the policy of that one says so (`xfrm_out_fwd_icmp`). It goes whatever that policy is.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "a packet and what comes with it")]
    fn follow(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        quoted: &Flow,
        meta: &OutputMeta,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let lookup = Lookup {
            netns,
            flow: quoted,
            meta,
            routes,
            may_hold: true,
            witness: None,
        };
        let takes_errors = lookup.takes_errors();
        let looked = lookup.decide(&mut self.tools);
        match looked.decision {
            // QUIRK: errors_that_go_plain_are_counted. What would have stopped the packet that an
            // error is about is counted, and acquires are sent for it.
            Decision::Drop(reason, errno)
                if takes_errors || reason != DropReason::OutPolicyBlock =>
            {
                looked.mark_used(netns, now);
                drop(netns, reason, errno);
            }
            _ if !takes_errors => {}
            Decision::Transform(bundle) => {
                looked.mark_used(netns, now);
                return self
                    .tools
                    .transform(netns, now, packet, meta, &bundle, sink);
            }
            _ => looked.mark_used(netns, now),
        }
        Verdict::Plain
    }

    /// [`Worker::output`] of a packet that the device left unfinished: up to 64 KiB of TCP or
    /// UDP in one piece, or a checksum to be filled in (`xfrm_output_gso`, `skb_checksum_help`).
    /// A packet that is [`Verdict::Plain`] is left as it is.
    #[expect(clippy::too_many_arguments, reason = "a packet and what comes with it")]
    pub fn output_offloaded(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
        offload: Offload,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let mobility = netns.profile.decodes_mobility || !meta.forwarded;
        let Some(flow) = Flow::of_packet(packet, meta.mark, meta.ifindex, mobility) else {
            return drop(netns, header_reason(meta), errno::EINVAL);
        };
        self.look_up(netns, &flow, meta, routes, |tools, looked| {
            let bundle = match &looked.decision {
                Decision::Transform(bundle) => Some(bundle),
                Decision::Hold => None,
                Decision::Plain | Decision::Drop(..) => {
                    return tools.carry_out(netns, now, packet, meta, looked, sink);
                }
            };
            if offload.segment_bytes == 0 {
                let done = offload.checksum.map_or(Some(()), |(start, offset)| {
                    complete_checksum(packet, start, offset)
                });
                return match done {
                    Some(()) => tools.carry_out(netns, now, packet, meta, looked, sink),
                    None => drop(netns, DropReason::OutChecksum, errno::EINVAL),
                };
            }
            let Some(bundle) = bundle else {
                return tools.hold_segments(netns, packet, meta, offload.segment_bytes, looked);
            };
            looked.mark_used(netns, now);
            let at = Moment { netns, now, meta };
            tools.segment(at, packet, offload.segment_bytes, bundle, sink)
        })
    }

    /// [`Worker::output`] of packets that have come together. Where neighbours are of one flow
    /// they are sealed at once, which makes CBC several times as fast. `done` hears of each.
    #[expect(
        clippy::too_many_arguments,
        reason = "packets and what comes with them"
    )]
    pub fn output_batch(
        &mut self,
        netns: &Netns,
        now: Now,
        packets: &mut [PacketBuf],
        meta: &OutputMeta,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
        done: &mut dyn FnMut(Verdict),
    ) {
        let mobility = netns.profile.decodes_mobility || !meta.forwarded;
        let flow_of =
            |packet: &PacketBuf| Flow::of_packet(packet, meta.mark, meta.ifindex, mobility);
        let mut rest = packets;
        while let [first, others @ ..] = rest {
            let Some(flow) = flow_of(first) else {
                done(drop(netns, header_reason(meta), errno::EINVAL));
                rest = rest.get_mut(1..).unwrap_or_default();
                continue;
            };
            if quoted_flow(netns, &flow, first, meta).is_some() {
                done(self.output(netns, now, first, meta, routes, sink));
                rest = rest.get_mut(1..).unwrap_or_default();
                continue;
            }
            let words = flow.words();
            let same = |packet: &&PacketBuf| {
                flow_of(packet).is_some_and(|other| equal_words(&other.words(), &words))
            };
            let alike = others.iter().take(MOST_AT_ONCE - 1).take_while(same);
            let count = 1 + alike.count();
            let group = rest.get_mut(..count).unwrap_or_default();
            let dealt = self.look_up(netns, &flow, meta, routes, |tools, looked| {
                let Decision::Transform(bundle) = &looked.decision else {
                    let first = group.iter_mut().take(1);
                    first.for_each(|packet| {
                        done(tools.carry_out(netns, now, packet, meta, looked, sink));
                    });
                    return 1;
                };
                looked.mark_used(netns, now);
                let at = Moment { netns, now, meta };
                tools.transform_group(at, group, bundle, sink, done)
            });
            rest = rest.get_mut(dealt..).unwrap_or_default();
        }
    }

    /// The most bytes of a packet like this that may leave in one piece (`dst_mtu`).
    pub fn mtu(
        &mut self,
        netns: &Netns,
        packet: &[u8],
        meta: &OutputMeta,
        routes: &dyn Routes,
    ) -> u32 {
        let mobility = netns.profile.decodes_mobility || !meta.forwarded;
        let flow = Flow::of_packet(packet, meta.mark, meta.ifindex, mobility);
        let looked = flow.map(|flow| {
            self.look_up(netns, &flow, meta, routes, |_, looked| {
                match &looked.decision {
                    Decision::Transform(bundle) => bundle.mtu,
                    _ => meta.mtu,
                }
            })
        });
        looked.unwrap_or(meta.mtu)
    }

    /// Has `act` done with what is decided about a flow.
    #[inline]
    fn look_up<T>(
        &mut self,
        netns: &Netns,
        flow: &Flow,
        meta: &OutputMeta,
        routes: &dyn Routes,
        act: impl FnOnce(&mut Tools, &Looked) -> T,
    ) -> T {
        let Self { flows, tools, .. } = self;
        let fresh;
        let looked = match flows.find(netns, routes, flow, meta) {
            Some(looked) => looked,
            None => {
                fresh = look_up_anew(flows, tools, netns, flow, meta, routes);
                &fresh
            }
        };
        act(tools, looked)
    }

    /// [`Worker::output`] where there is one thread: what the packet asks for is done at once.
    pub fn output_alone(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let verdict = self.output(netns, cx.now, packet, meta, routes, sink);
        netns.handle_requests(cx, self.drain_requests());
        verdict
    }

    /// [`Netns::handle_timeout`], [`Worker::retry`] and [`Worker::run_iptfs`] where there is one
    /// thread.
    pub fn timeout_alone(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
    ) {
        netns.handle_timeout(cx);
        for queue in netns.take_held(cx.now.boot) {
            self.retry(netns, cx.now, queue, routes, sink);
            netns.handle_requests(cx, self.drain_requests());
        }
        for sa in netns.take_iptfs(cx.now.boot) {
            self.run_iptfs(netns, cx.now, sa, sink);
            netns.handle_requests(cx, self.drain_requests());
        }
    }

    /// Looks packets up again that wait for SAs, once their queue is due
    /// (`xfrm_policy_queue_process`).
    pub fn retry(
        &mut self,
        netns: &Netns,
        now: Now,
        queue: Queue,
        routes: &dyn Routes,
        sink: &mut Sink<'_>,
    ) {
        let Some(first) = queue.packets.front() else {
            return;
        };
        let looked = self
            .tools
            .decide_held(netns, queue.policy, first, routes, true);
        match looked.map(|looked| looked.decision) {
            None | Some(Decision::Drop(..)) => return,
            Some(Decision::Hold) => {
                self.tools.requests.push(Request::HoldOn(Box::new(queue)));
                return;
            }
            Some(Decision::Plain | Decision::Transform(_)) => {}
        }
        for held in &queue.packets {
            let Some(looked) = self
                .tools
                .decide_held(netns, queue.policy, held, routes, false)
            else {
                continue;
            };
            looked.mark_used(netns, now);
            let mut packet = PacketBuf::copy_of(&held.bytes);
            match looked.decision {
                Decision::Transform(bundle) => {
                    self.tools
                        .transform(netns, now, &mut packet, &held.meta, &bundle, sink);
                }
                Decision::Plain => {
                    let to = departure(&packet, held.meta.mark);
                    sink(&mut packet, &to);
                }
                Decision::Drop(reason, errno) => {
                    drop(netns, reason, errno);
                }
                Decision::Hold => {}
            }
        }
    }
}

impl Tools {
    /// Does what was decided about a packet's flow.
    #[inline]
    fn carry_out(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
        looked: &Looked,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        looked.mark_used(netns, now);
        match &looked.decision {
            Decision::Plain => Verdict::Plain,
            Decision::Transform(bundle) => self.transform(netns, now, packet, meta, bundle, sink),
            &Decision::Drop(reason, errno) => drop(netns, reason, errno),
            Decision::Hold => self.hold(netns, packet, meta, looked),
        }
    }

    /// Decides about a packet that has waited.
    fn decide_held(
        &mut self,
        netns: &Netns,
        policy: crate::spd::PolicyHandle,
        held: &HeldPacket,
        routes: &dyn Routes,
        may_hold: bool,
    ) -> Option<Looked> {
        // QUIRK: held_packets_have_the_mark_of_their_policy.
        let mark = netns.spd.get(policy.id())?.key.mark.v;
        let meta = OutputMeta { mark, ..held.meta };
        let mobility = netns.profile.decodes_mobility;
        let flow = Flow::of_packet(&held.bytes, mark, meta.ifindex, mobility)?;
        let lookup = Lookup {
            netns,
            flow: &flow,
            meta: &meta,
            routes,
            may_hold,
            witness: None,
        };
        Some(lookup.decide(self))
    }

    /// Holds each of the packets that a large one is.
    fn hold_segments(
        &mut self,
        netns: &Netns,
        packet: &PacketBuf,
        meta: &OutputMeta,
        segment_bytes: u16,
        looked: &Looked,
    ) -> Verdict {
        let unfit = || drop(netns, DropReason::OutSegments, errno::EINVAL);
        let Some(mut cutter) = Segmenter::new(packet, segment_bytes) else {
            return unfit();
        };
        let mut segment = PacketBuf::with_capacity(packet.len());
        loop {
            match cutter.next_into(&mut segment) {
                Some(true) => {}
                Some(false) => return Verdict::Held,
                None => return unfit(),
            }
            let verdict = self.hold(netns, &segment, meta, looked);
            if verdict != Verdict::Held {
                return verdict;
            }
        }
    }

    fn hold(
        &mut self,
        netns: &Netns,
        packet: &PacketBuf,
        meta: &OutputMeta,
        looked: &Looked,
    ) -> Verdict {
        let first = looked.policies.first().copied().flatten();
        let policy = first.and_then(|id| netns.spd.handle(id));
        let Some(policy) = policy else {
            return drop(netns, DropReason::OutNoStates, errno::EAGAIN);
        };
        let on_their_way = self.requests.iter().filter(|request| match request {
            Request::Hold(held) => held.is_for(policy),
            _ => false,
        });
        if !netns.holds.has_room(policy, on_their_way.count()) {
            return drop(netns, DropReason::OutHoldFull, errno::EAGAIN);
        }
        let packet = HeldPacket {
            bytes: (**packet).into(),
            meta: *meta,
        };
        self.requests
            .push(Request::Hold(Box::new(Held { policy, packet })));
        Verdict::Held
    }
}

/// The flow that a forwarded ICMP error is about.
#[inline]
pub(super) fn quoted_flow(
    netns: &Netns,
    flow: &Flow,
    packet: &[u8],
    meta: &OutputMeta,
) -> Option<Flow> {
    let follows = meta.forwarded && netns.profile.icmp_errors_follow_their_flow;
    let is_icmp = matches!(flow.proto, IPPROTO_ICMP | IPPROTO_ICMPV6);
    if !follows || !is_icmp {
        return None;
    }
    flow.of_quoted(packet, netns.profile.decodes_mobility)
}

/// What is decided about a flow that is not remembered.
#[cold]
fn look_up_anew(
    flows: &mut Flows,
    tools: &mut Tools,
    netns: &Netns,
    flow: &Flow,
    meta: &OutputMeta,
    routes: &dyn Routes,
) -> Looked {
    let sad = netns.sad.choices.all();
    let lookup = Lookup {
        netns,
        flow,
        meta,
        routes,
        may_hold: true,
        witness: None,
    };
    let looked = lookup.decide(tools);
    if looked.lasts {
        flows.remember(netns, routes, (flow, meta), sad, &looked);
    }
    looked
}

/// Counts a packet's end.
#[cold]
pub(super) fn drop(netns: &Netns, reason: DropReason, errno: i32) -> Verdict {
    if let Some(counter) = reason.counter() {
        netns.mib.count(counter);
    }
    Verdict::Dropped { reason, errno }
}

pub(super) fn departure(packet: &[u8], mark: u32) -> Departure {
    Departure {
        family: Family::of(packet).unwrap_or(Family::V4),
        mark,
    }
}

const fn header_reason(meta: &OutputMeta) -> DropReason {
    if meta.forwarded {
        DropReason::ForwardHeader
    } else {
        DropReason::OutHeader
    }
}
