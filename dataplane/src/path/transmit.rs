//! Packets on their way through the SAs of a bundle, and onto the wire.
//!
//! Source: `net/xfrm/xfrm_output.c xfrm_output_one, xfrm_output_resume,
//! xfrm_output_gso`, `net/ipv4/ip_forward.c`, `net/ipv6/ip6_output.c
//! ip6_forward`, `net/ipv6/xfrm6_output.c`.

use xfrm_proto::consts::*;

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::packet::buffer::MAX_PACKET;
use crate::packet::fragment::Fragmenter;
use crate::packet::segment::Segmenter;
use crate::packet::{Family, PacketBuf, ip4};
use crate::path::bundle::{Bundle, Step, set_mark};
use crate::path::output::{OutputMeta, Sink, Verdict, departure, drop};
use crate::path::worker::Tools;
use crate::sad::Sa;
use crate::sad::traffic::Limit;
use crate::time::Now;
use crate::transform::{MOST_AT_ONCE, Placed, Route, Sequence};

/// Where and when packets pass, and what came with them.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) netns: &'a Netns,
    pub(super) now: Now,
    pub(super) meta: &'a OutputMeta,
}

impl Tools {
    pub(super) fn transform(
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
            if !meta.in_parts {
                return Verdict::TooBig { mtu };
            }
            if tunnels(netns, bundle) {
                return self.transform_parts(
                    Moment { netns, now, meta },
                    packet,
                    mtu,
                    bundle,
                    sink,
                );
            }
        }
        self.pass_from(netns, now, packet, (bundle, 0), meta, sink)
    }

    /// Cuts a packet that is too long for a tunnel, and takes the pieces through it
    /// (`__xfrm6_output`). In other modes what comes out of the SAs is cut.
    fn transform_parts(
        &mut self,
        at: Moment<'_>,
        packet: &PacketBuf,
        mtu: u32,
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let Moment { netns, now, meta } = at;
        let ident = self.entropy.u32();
        let Some(mut cutter) = Fragmenter::new(packet, bytes(mtu), ident) else {
            return drop(netns, DropReason::OutNoRoom, errno::EMSGSIZE);
        };
        let mut part = PacketBuf::with_capacity(MAX_PACKET);
        let mut sent = 0;
        while cutter.next_into(&mut part) == Some(true) {
            match self.pass_from(netns, now, &mut part, (bundle, 0), meta, sink) {
                Verdict::Sent(pieces) => sent += pieces,
                Verdict::Queued => {}
                other => return other,
            }
        }
        Verdict::Sent(sent)
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
                return refuse(netns, step, reason, errno);
            }
        }
        self.send(netns, packet, (mark, meta.in_parts), bundle, sink)
    }

    /// Cuts a large packet, and takes the pieces through the SAs until one is refused.
    pub(super) fn segment(
        &mut self,
        at: Moment<'_>,
        packet: &PacketBuf,
        segment_bytes: u16,
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let unfit = || drop(at.netns, DropReason::OutSegments, errno::EINVAL);
        let Some(mut cutter) = Segmenter::new(packet, segment_bytes) else {
            return unfit();
        };
        let mut segments = std::mem::take(&mut self.segments);
        segments.resize_with(MOST_AT_ONCE, || PacketBuf::with_capacity(MAX_PACKET));
        let mut sent = 0;
        let mut failed = None;
        while failed.is_none() {
            let mut count = 0;
            for segment in &mut segments {
                match cutter.next_into(segment) {
                    Some(true) => count += 1,
                    Some(false) => break,
                    None => {
                        failed = Some(unfit());
                        break;
                    }
                }
            }
            if count == 0 {
                break;
            }
            let group = segments.get_mut(..count).unwrap_or_default();
            let mut done = |verdict| match verdict {
                Verdict::Sent(pieces) => sent += pieces,
                Verdict::Queued => {}
                other => failed = failed.or(Some(other)),
            };
            self.transform_group(at, group, bundle, sink, &mut done);
        }
        self.segments = segments;
        failed.unwrap_or(Verdict::Sent(sent))
    }

    /// Takes packets of one flow through the SAs, at most [`MOST_AT_ONCE`], until one is refused.
    /// How many it has dealt with.
    pub(super) fn transform_group(
        &mut self,
        at: Moment<'_>,
        packets: &mut [PacketBuf],
        bundle: &Bundle,
        sink: &mut Sink<'_>,
        done: &mut dyn FnMut(Verdict),
    ) -> usize {
        let Moment { netns, now, meta } = at;
        let fits = |packet: &PacketBuf| {
            packet.len() <= bytes(bundle.mtu) || too_big(packet, meta, bundle).is_none()
        };
        let mut steps = bundle.steps();
        let alike = packets.len() > 1 && packets.iter().all(fits);
        let step = steps.next().filter(|step| !step.aggregates);
        let (Some(step), None, true) = (step, steps.next(), alike) else {
            // One packet, several SAs, one that aggregates, or packets that do not fit: one after the other.
            for (number, packet) in packets.iter_mut().enumerate() {
                let verdict = self.transform(netns, now, packet, meta, bundle, sink);
                done(verdict);
                if !matches!(verdict, Verdict::Sent(_) | Verdict::Queued) {
                    return number + 1;
                }
            }
            return packets.len();
        };
        let mut mark = meta.mark;
        let (passed, stopped) = self.pass_group(netns, now, packets, step, &mut mark);
        for packet in packets.iter_mut().take(passed) {
            done(self.send(netns, packet, (mark, meta.in_parts), bundle, sink));
        }
        let Some((reason, errno)) = stopped else {
            return passed;
        };
        done(refuse(netns, step, reason, errno));
        passed + 1
    }

    /// Takes packets through one SA; how many came through, and what stopped the others.
    fn pass_group(
        &mut self,
        netns: &Netns,
        now: Now,
        packets: &mut [PacketBuf],
        step: &Step,
        mark: &mut u32,
    ) -> (usize, Option<(DropReason, i32)>) {
        let Some(sa) = netns.sad.by_handle(step.sa) else {
            return (0, Some((DropReason::OutInvalid, errno::EINVAL)));
        };
        let Some(transform) = sa.transform(netns.profile, &mut *self.entropy) else {
            return (0, Some((DropReason::OutUnsupported, errno::EOPNOTSUPP)));
        };
        *mark = set_mark(*mark, sa);
        let mut placed = [Placed::default(); MOST_AT_ONCE];
        let mut route = self.route(step);
        let mut stopped = None;
        let mut count = 0;
        for (packet, placed) in packets.iter_mut().zip(&mut placed) {
            route = self.route(step);
            let numbered = transform
                .place(packet, &route)
                .map_err(|reason| (reason, errno_of(reason)))
                .and_then(|place| {
                    let payload_bytes = place.payload_bytes(packet);
                    let sequence = self.account(netns, now, sa, step, payload_bytes)?;
                    Ok(Placed { place, sequence })
                });
            match numbered {
                Ok(numbered) => *placed = numbered,
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            }
            count += 1;
        }
        let (Some(packets), Some(placed)) = (packets.get_mut(..count), placed.get(..count)) else {
            return (0, stopped);
        };
        match transform.seal_batch(packets, placed, &route, &mut self.scratch) {
            Ok(()) => (count, stopped),
            Err(reason) => (0, Some((reason, errno_of(reason)))),
        }
    }

    /// What a step's SA needs to know for one packet.
    #[inline]
    const fn route(&mut self, step: &Step) -> Route {
        self.ident = self.ident.wrapping_add(1);
        Route {
            hop_limit: step.hop_limit,
            outer_mtu: step.outer_mtu,
            inner_mtu: step.inner_mtu,
            ident: self.ident,
        }
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
        let route = self.route(step);
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
        let payload_bytes = u64::try_from(payload_bytes).unwrap_or(0);
        if !matches!(sa.id.proto, IPPROTO_ESP | IPPROTO_AH) {
            sa.traffic.count(1, payload_bytes, now.real);
            return Ok(Sequence(0));
        }
        let number = sa.traffic.number(1, payload_bytes, now.real);
        let number = number.ok_or((DropReason::OutSequence, errno::EOVERFLOW))?;
        if netns.listeners.aevents {
            self.notify_replay(netns, now, sa, step.sa, Some(payload_bytes));
        }
        Ok(number)
    }

    /// Hands a finished packet to the sink, in fragments if it is too long (`ip_finish_output`).
    fn send(
        &mut self,
        netns: &Netns,
        packet: &mut PacketBuf,
        (mark, in_parts): (u32, bool),
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let to = departure(packet, mark);
        let mtu = bytes(bundle.path_mtu);
        if packet.len() <= mtu {
            sink(packet, &to);
            return Verdict::Sent(1);
        }
        if !(bundle.ignores_df || in_parts || may_be_cut(packet)) {
            return Verdict::TooBig {
                mtu: bundle.path_mtu,
            };
        }
        let ident = self.entropy.u32();
        let part = self
            .part
            .get_or_insert_with(|| Box::new(PacketBuf::with_capacity(MAX_PACKET)));
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

/// Whether a bundle begins with a tunnel.
fn tunnels(netns: &Netns, bundle: &Bundle) -> bool {
    bundle.steps().next().is_some_and(|step| {
        let sa = netns.sad.by_handle(step.sa);
        sa.is_some_and(|sa| sa.mode == XFRM_MODE_TUNNEL)
    })
}

/// Counts the end of a packet that a step refused.
fn refuse(netns: &Netns, step: &Step, reason: DropReason, errno: i32) -> Verdict {
    match (drop(netns, reason, errno), reason) {
        (_, DropReason::OutTooBig) => Verdict::TooBig {
            mtu: step.inner_mtu,
        },
        (verdict, _) => verdict,
    }
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
