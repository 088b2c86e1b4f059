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
use crate::packet::{Family, PacketBuf, ip4, ip6};
use crate::path::bundle::{Bundle, Step, set_mark};
use crate::path::output::{Departure, OutputMeta, Sink, Verdict, departure, drop};
use crate::path::worker::Tools;
use crate::sad::Sa;
use crate::sad::traffic::Limit;
use crate::time::Now;
use crate::transform::{MOST_AT_ONCE, Place, Placed, Route, Sequence};

/// `IPV6_MIN_MTU`.
const LEAST_V6: u32 = 1280;

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
            return Verdict::TooBig { mtu };
        }
        if packet.len() > bytes(bundle.mtu.max(LEAST_V6)) && bundle.is_cut_before(packet) {
            return self.cut_before(netns, now, packet, meta, bundle, sink);
        }
        self.pass_from(netns, now, packet, (bundle, 0), meta, sink)
    }

    /// Takes a packet through a bundle in fragments (`__xfrm6_output`).
    #[cold]
    fn cut_before(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &PacketBuf,
        meta: &OutputMeta,
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let (mtu, ident) = (bytes(bundle.mtu.max(LEAST_V6)), self.entropy.u32());
        let Some(mut cutter) = Fragmenter::new(packet, mtu, ident) else {
            return drop(netns, DropReason::OutNoRoom, errno::EMSGSIZE);
        };
        let mut part = PacketBuf::with_capacity(MAX_PACKET);
        let mut sent = 0;
        while cutter.next_into(&mut part) == Some(true) {
            match self.pass_from(netns, now, &mut part, (bundle, 0), meta, sink) {
                Verdict::Sent(pieces) => sent += pieces,
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
        for (at, step) in bundle.steps().iter().enumerate().skip(first) {
            if step.aggregates {
                return self.enqueue(netns, now, packet, meta, (bundle, at, mark), sink);
            }
            if let Err((reason, errno)) = self.pass(netns, now, packet, step, &mut mark) {
                return refuse(netns, step, reason, errno);
            }
        }
        self.send(netns, packet, (mark, meta), bundle, sink)
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
        let alike = packets.len() > 1 && packets.iter().all(fits);
        let (
            [
                step @ Step {
                    aggregates: false, ..
                },
            ],
            true,
        ) = (bundle.steps(), alike)
        else {
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
            done(self.send(netns, packet, (mark, meta), bundle, sink));
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
        // One look at the limits and one step of each counter, if that comes to the same.
        let together = admits_all(netns, now, sa, packets);
        let mut payload_bytes_together = 0;
        for (packet, placed) in packets.iter_mut().zip(&mut placed) {
            route = self.route(step);
            if let Err(reason) = transform.place_into(packet, &route, &mut placed.place) {
                stopped = Some((reason, errno_of(reason)));
                break;
            }
            let payload_bytes = packet.len().saturating_sub(placed.place.payload_at);
            if together {
                payload_bytes_together += payload_bytes;
            } else {
                match self.account(netns, now, sa, step, payload_bytes) {
                    Ok(sequence) => placed.sequence = sequence,
                    Err(error) => {
                        stopped = Some(error);
                        break;
                    }
                }
            }
            count += 1;
        }
        let (Some(packets), Some(placed)) = (packets.get_mut(..count), placed.get_mut(..count))
        else {
            return (0, stopped);
        };
        if together {
            let bytes = number(payload_bytes_together);
            let Some(first) = sa.traffic.number(number(count), bytes, now.real) else {
                return (0, Some((DropReason::OutSequence, errno::EOVERFLOW)));
            };
            for (placed, sequence) in placed.iter_mut().zip(first.0..) {
                placed.sequence = Sequence(sequence);
            }
        }
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
        let mut place = Place::default();
        transform
            .place_into(packet, &route, &mut place)
            .map_err(|reason| (reason, errno_of(reason)))?;
        let payload_bytes = packet.len().saturating_sub(place.payload_at);
        let sequence = self.account(netns, now, sa, step, payload_bytes)?;
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
    #[inline]
    fn send(
        &mut self,
        netns: &Netns,
        packet: &mut PacketBuf,
        (mark, meta): (u32, &OutputMeta),
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let to = departure(packet, mark);
        if packet.len() <= bytes(bundle.path_mtu) {
            sink(packet, &to);
            return Verdict::Sent(1);
        }
        self.send_in_pieces(netns, packet, (&to, meta), bundle, sink)
    }

    #[cold]
    fn send_in_pieces(
        &mut self,
        netns: &Netns,
        packet: &mut PacketBuf,
        (to, meta): (&Departure, &OutputMeta),
        bundle: &Bundle,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let mtu = bytes(bundle.path_mtu);
        // A local packet that was let in is one that may be cut.
        let own_v6 = to.family == Family::V6 && !meta.forwarded;
        if !bundle.ignores_df && !own_v6 && !may_be_cut(packet) {
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
            sink(part, to);
            count += 1;
        }
        Verdict::Sent(count)
    }
}

/// Whether packets that leave together meet no limit of an SA, nor anybody who listens.
#[inline]
fn admits_all(netns: &Netns, now: Now, sa: &Sa, packets: &[PacketBuf]) -> bool {
    let most_bytes = packets.iter().map(PacketBuf::room).sum();
    matches!(sa.id.proto, IPPROTO_ESP | IPPROTO_AH)
        && !netns.listeners.aevents
        && sa.is_valid()
        && sa
            .traffic
            .admits_all(&sa.lft, number(packets.len()), number(most_bytes), now.real)
}

/// Counts the end of a packet that a step refused.
#[cold]
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
///
/// Of this host's own packets those of IPv4 without DF may be cut, and of IPv6 all but TCP's, whose
/// segments Linux makes to fit. A socket that never wants to be cut asks for the MTU itself.
pub(super) fn too_big(packet: &[u8], meta: &OutputMeta, bundle: &Bundle) -> Option<u32> {
    let mtu = match Family::of(packet)? {
        Family::V4 if may_be_cut(packet) => return None,
        // What a tunnel makes of it is the tunnel's matter.
        Family::V4 if !meta.forwarded && bundle.ignores_df => return None,
        Family::V4 => bundle.mtu,
        Family::V6 if !meta.forwarded && !is_tcp(packet) => return None,
        Family::V6 => bundle.mtu.max(LEAST_V6),
    };
    (packet.len() > bytes(mtu)).then_some(mtu)
}

fn is_tcp(packet: &[u8]) -> bool {
    let place = ip6::upper_layer(packet);
    place.and_then(|place| packet.get(place.next_header_at)) == Some(&IPPROTO_TCP)
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

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn bytes(mtu: u32) -> usize {
    usize::try_from(mtu).unwrap_or(usize::MAX)
}
