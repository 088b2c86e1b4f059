//! Packets that leave.
//!
//! Source: `net/xfrm/xfrm_output.c xfrm_output_one, xfrm_output_resume`,
//! `net/ipv4/ip_forward.c`, `net/ipv6/ip6_output.c ip6_forward`,
//! `net/ipv6/xfrm6_output.c`.

use xfrm_proto::consts::*;

use crate::drop_reason::DropReason;
use crate::netns::{Context, Netns};
use crate::packet::fragment::Fragmenter;
use crate::packet::{Family, PacketBuf, ip4};
use crate::path::bundle::{Bundle, Step, set_mark};
use crate::path::flows::FlowKey;
use crate::path::hold::{Held, HeldPacket, Queue};
use crate::path::lookup::{Decision, Looked, Lookup};
use crate::path::request::Request;
use crate::path::route::Routes;
use crate::path::worker::{Tools, Worker};
use crate::sad::Sa;
use crate::sad::traffic::Limit;
use crate::spd::{Flow, SocketKey};
use crate::time::Now;
use crate::transform::{Route, Sequence};

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
        let Some(flow) = Flow::of_packet(packet, meta.mark, meta.ifindex, mobility) else {
            return drop(netns, header_reason(meta), errno::EINVAL);
        };
        self.look_up(netns, &flow, meta, routes, |tools, looked| {
            tools.carry_out(netns, now, packet, meta, looked, sink)
        })
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
        let key = FlowKey::new(flow, meta);
        if let Some(looked) = flows.find(netns, routes, &key) {
            return act(tools, looked);
        }
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
            flows.remember(netns, routes, &key, sad, &looked);
        }
        act(tools, &looked)
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
            for &policy in looked.policies.iter().flatten() {
                netns.spd.mark_used(policy, now.real);
            }
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
        for &policy in looked.policies.iter().flatten() {
            netns.spd.mark_used(policy, now.real);
        }
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

    fn transform(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        if packet.len() > bytes(bundle.mtu)
            && let Some(mtu) = too_big(packet, meta, bundle)
        {
            return Verdict::TooBig { mtu };
        }
        self.pass_from(netns, now, packet, (bundle, 0), meta, sink)
    }

    /// Takes a packet through a bundle, from one of its steps on.
    #[inline]
    pub(super) fn pass_from(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        way: (&Bundle, usize),
        meta: &OutputMeta,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let (bundle, first) = way;
        let mut mark = meta.mark;
        for (at, step) in bundle.steps().enumerate().skip(first) {
            if step.aggregates {
                return self.enqueue(netns, now, packet, meta, (bundle, at, mark), sink);
            }
            if let Err((reason, errno)) = self.pass(netns, now, packet, step, &mut mark) {
                let verdict = drop(netns, reason, errno);
                return match reason {
                    DropReason::OutTooBig => Verdict::TooBig {
                        mtu: step.inner_mtu,
                    },
                    _ => verdict,
                };
            }
        }
        self.send(netns, packet, mark, bundle, sink)
    }

    /// Takes a packet through one SA (`xfrm_output_one`).
    #[inline]
    pub(super) fn pass(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        step: &Step,
        mark: &mut u32,
    ) -> Result<(), (DropReason, i32)> {
        let gone = (DropReason::OutInvalid, errno::EINVAL);
        let sa = netns.sad.by_handle(step.sa).ok_or(gone)?;
        let transform = sa
            .transform(netns.profile, &mut *self.entropy)
            .ok_or((DropReason::OutUnsupported, errno::EOPNOTSUPP))?;
        *mark = set_mark(*mark, sa);
        self.ident = self.ident.wrapping_add(1);
        let route = Route {
            hop_limit: step.hop_limit,
            outer_mtu: step.outer_mtu,
            inner_mtu: step.inner_mtu,
            ident: self.ident,
        };
        let place = transform
            .place(packet, &route)
            .map_err(|reason| (reason, errno_of(reason)))?;
        let sequence = self.account(netns, now, sa, step, place.payload_bytes(packet))?;
        transform
            .seal(packet, &place, sequence, &route, &mut self.scratch)
            .map_err(|reason| (reason, errno_of(reason)))
    }

    /// What Linux does under the SA's lock: state, limits, sequence number, counters.
    #[inline]
    fn account(
        &mut self,
        netns: &Netns,
        now: Now,
        sa: &Sa,
        step: &Step,
        payload_bytes: usize,
    ) -> Result<Sequence, (DropReason, i32)> {
        if !sa.is_valid() {
            return Err((DropReason::OutInvalid, errno::EINVAL));
        }
        match sa.traffic.check(&sa.lft, now.real) {
            Limit::Within => {}
            limit => self.reach(netns, sa, step.sa, limit, DropReason::OutExpired)?,
        }
        let mut sequence = Sequence(0);
        if matches!(sa.id.proto, IPPROTO_ESP | IPPROTO_AH) {
            let next = sa.traffic.numbers.take(1);
            sequence = next.ok_or((DropReason::OutSequence, errno::EOVERFLOW))?;
            if netns.listeners.aevents {
                self.notify_replay(netns, now, sa, step.sa);
            }
        }
        sa.traffic
            .count(1, u64::try_from(payload_bytes).unwrap_or(0), now.real);
        Ok(sequence)
    }

    /// Hands a finished packet to the sink, in fragments if it is too long (`ip_finish_output`).
    fn send(
        &mut self,
        netns: &Netns,
        packet: &mut PacketBuf,
        mark: u32,
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let to = departure(packet, mark);
        let mtu = bytes(bundle.path_mtu);
        if packet.len() <= mtu {
            sink(packet, &to);
            return Verdict::Sent(1);
        }
        if !bundle.ignores_df && !may_be_cut(packet) {
            return Verdict::TooBig {
                mtu: bundle.path_mtu,
            };
        }
        let ident = self.entropy.u32();
        let part = self.part.get_or_insert_with(|| {
            Box::new(PacketBuf::with_capacity(crate::packet::buffer::MAX_PACKET))
        });
        let Some(mut cutter) = Fragmenter::new(packet, mtu, ident) else {
            return drop(netns, DropReason::OutNoRoom, errno::EMSGSIZE);
        };
        let mut count = 0;
        while cutter.next_into(part) == Some(true) {
            sink(part, &to);
            count += 1;
        }
        Verdict::Sent(count)
    }
}

/// Counts a packet's end.
fn drop(netns: &Netns, reason: DropReason, errno: i32) -> Verdict {
    if let Some(counter) = reason.counter() {
        netns.mib.count(counter);
    }
    Verdict::Dropped { reason, errno }
}

/// Whether a packet may not enter a bundle, and what would have been right.
///
/// QUIRK: ipv4_without_df_enters_whole. It is the outer packet that is cut.
pub(super) fn too_big(packet: &[u8], meta: &OutputMeta, bundle: &Bundle) -> Option<u32> {
    const LEAST_V6: u32 = 1280;
    let mtu = match Family::of(packet)? {
        Family::V4 if meta.forwarded && !may_be_cut(packet) => bundle.mtu,
        Family::V4 => return None,
        Family::V6 => bundle.mtu.max(LEAST_V6),
    };
    (packet.len() > bytes(mtu)).then_some(mtu)
}

fn may_be_cut(packet: &[u8]) -> bool {
    match Family::of(packet) {
        Some(Family::V4) => {
            ip4::Header::parse(packet).is_some_and(|header| header.fragment & ip4::DF == 0)
        }
        _ => false,
    }
}

fn departure(packet: &[u8], mark: u32) -> Departure {
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

/// What the sender hears of a packet that a transform refused.
const fn errno_of(reason: DropReason) -> i32 {
    match reason {
        DropReason::OutTooBig | DropReason::OutOversize => errno::EMSGSIZE,
        DropReason::OutFragment | DropReason::OutFamily => errno::EAFNOSUPPORT,
        DropReason::OutNoRoom => errno::ENOMEM,
        _ => errno::EINVAL,
    }
}

fn bytes(mtu: u32) -> usize {
    usize::try_from(mtu).unwrap_or(usize::MAX)
}
