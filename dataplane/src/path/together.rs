//! Packets of one SA that arrive together: the SA is looked up once, its window locked twice, its
//! counters changed once.
//!
//! A *run* is packets in a row of one ESP SA of tunnel mode, far from its limits, whose numbers go up
//! and are newer than all that its window has seen. What becomes of one of them changes nothing that is
//! looked at before the crypto of the next one, so all of it comes to the same as one after the
//! other, which is how everything else goes.

use xfrm_proto::consts::{IPPROTO_ESP, XFRM_SA_DIR_IN};
use xfrm_proto::uapi::Address;

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::packet::PacketBuf;
use crate::path::arrivals::Wanted;
use crate::path::bundle::set_mark;
use crate::path::input::{Approach, Arrived, destination, refuse};
use crate::path::receive::{Host, InputMeta, Received, Step, dropped};
use crate::path::witness::Nobody;
use crate::path::worker::Worker;
use crate::sad::{Sa, SaHandle};
use crate::time::Now;
use crate::transform::{MOST_AT_ONCE, Opened, Sequence, Transform};

/// Packets of one SA; what they have in common.
struct Run<'a> {
    sa: &'a Sa,
    handle: SaHandle,
    transform: &'a Transform,
    name: Name,
    /// The high half of all numbers.
    high: u32,
}

/// What of a packet names its SA.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    daddr: Address,
    family: u16,
    encap: u16,
    spi: u32,
}

/// One of several packets: where its SA's header is, and the low half of its number.
#[derive(Clone, Copy)]
struct Member {
    approach: Approach,
    low: u32,
}

impl Member {
    const NONE: Self = Self {
        approach: Approach::NOWHERE,
        low: 0,
    };

    /// Notes the number; the name of the SA.
    #[inline]
    fn name(&mut self, packet: &[u8]) -> Option<Name> {
        let Approach {
            inbound,
            spi: None,
            encap,
        } = &self.approach
        else {
            return None;
        };
        if inbound.protocol != IPPROTO_ESP {
            return None;
        }
        let (daddr, family) = destination(packet)?;
        let (spi, low) = inbound.spi(packet).ok()??;
        self.low = low;
        Some(Name {
            daddr,
            family,
            encap: *encap,
            spi,
        })
    }
}

impl Worker {
    /// [`Worker::receive`] of packets that have come together, all with the same `meta`; `done` hears
    /// of each, in order.
    pub fn receive_batch(
        &mut self,
        netns: &Netns,
        now: Now,
        packets: &mut [PacketBuf],
        meta: &InputMeta,
        host: &dyn Host,
        done: &mut dyn FnMut(&mut PacketBuf, Received),
    ) {
        let mut rest = packets;
        let mut members = [Member::NONE; MOST_AT_ONCE];
        // Of the first of them: what was found out about it when the packets before it were looked at.
        let mut known = None;
        while let [first, others @ ..] = rest {
            let mut own = *meta;
            let [member, ..] = &mut members;
            let approached = known.take().unwrap_or_else(|| {
                let to = (&mut member.approach, &mut Nobody);
                self.approach(netns, now, first, &mut own, host, to)
            });
            let run = match approached {
                Ok(None) => self.begin(netns, first, member, meta).ok_or_else(|| {
                    self.receive_from(netns, now, first, &member.approach, own, host)
                }),
                Ok(Some(received)) => Err(received),
                Err(reason) => Err(dropped(netns, reason)),
            };
            let run = match run {
                Ok(run) => run,
                Err(received) => {
                    done(first, received);
                    rest = rest.get_mut(1..).unwrap_or_default();
                    continue;
                }
            };
            let mut count = 1;
            let mut last = member.low;
            let [_, places @ ..] = &mut members;
            for (packet, place) in others.iter_mut().zip(places) {
                let to = (&mut place.approach, &mut Nobody);
                let approached = self.approach(netns, now, packet, &mut own, host, to);
                let is_next = matches!(approached, Ok(None))
                    && place.name(packet) == Some(run.name)
                    && place.low > last;
                if !is_next {
                    known = Some(approached);
                    break;
                }
                last = place.low;
                count += 1;
            }
            let group = rest.get_mut(..count).unwrap_or_default();
            self.pass_run(netns, now, group, (&run, &members), meta, host, done);
            rest = rest.get_mut(count..).unwrap_or_default();
            if known.is_some()
                && let Some(next) = members.get(count).copied()
            {
                let [first, ..] = &mut members;
                *first = next;
            }
        }
    }

    /// Goes on with a packet that has come to its SAs.
    fn receive_from(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        approach: &Approach,
        meta: InputMeta,
        host: &dyn Host,
    ) -> Received {
        let mut meta = meta;
        match self.enter(netns, now, packet, approach, &mut meta, &mut Nobody) {
            Ok(Step::Again) => self.receive(netns, now, packet, &mut meta, host),
            Ok(Step::Done(received)) => received,
            Err(reason) => dropped(netns, reason),
        }
    }

    /// A run that begins with a packet.
    fn begin<'a>(
        &mut self,
        netns: &'a Netns,
        packet: &[u8],
        member: &mut Member,
        meta: &InputMeta,
    ) -> Option<Run<'a>> {
        let name = member.name(packet)?;
        let Name {
            daddr,
            family,
            encap,
            spi,
        } = name;
        let sad = &netns.sad;
        let wanted = Wanted {
            mark: meta.mark,
            daddr,
            spi,
            proto: IPPROTO_ESP,
            family,
        };
        let id = self.arrivals.lookup(sad, &wanted)?;
        let sa = sad.get(id)?;
        let fits = matches!(sa.dir, 0 | XFRM_SA_DIR_IN)
            && sa.is_valid()
            && sa.encap().map_or(0, |encap| encap.kind) == encap
            && !netns.listeners.aevents
            && meta.path.is_empty();
        let first = sa.newer_from(member.low).filter(|_| fits)?;
        let transform = sa.transform(netns.profile, &mut *self.tools.entropy)?;
        transform.is_esp_tunnel().then(|| Run {
            sa,
            handle: sa.handle(id),
            transform,
            name,
            high: first.high(),
        })
    }

    /// Takes a run through its SA, and each packet on from there.
    #[expect(
        clippy::too_many_arguments,
        reason = "packets and what comes with them"
    )]
    fn pass_run(
        &mut self,
        netns: &Netns,
        now: Now,
        packets: &mut [PacketBuf],
        (run, members): (&Run<'_>, &[Member]),
        meta: &InputMeta,
        host: &dyn Host,
        done: &mut dyn FnMut(&mut PacketBuf, Received),
    ) {
        let sa = run.sa;
        let total = packets.iter().map(|packet| packet.len()).sum();
        let [count, total] = [packets.len(), total].map(|it| u64::try_from(it).unwrap_or(u64::MAX));
        if !sa.traffic.admits_all(&sa.lft, count, total, now.real) {
            for (packet, Member { approach, .. }) in packets.iter_mut().zip(members) {
                let received = self.receive_from(netns, now, packet, approach, *meta, host);
                done(packet, received);
            }
            return;
        }

        let tells = sa.encap().is_some();
        let mut outcomes = [const { Err(DropReason::InReplay) }; MOST_AT_ONCE];
        for ((packet, outcome), member) in packets.iter_mut().zip(&mut outcomes).zip(members) {
            let Member { approach, low } = member;
            let sequence = Sequence::new(run.high, *low);
            let inbound = &approach.inbound;
            let scratch = &mut self.tools.scratch;
            *outcome = run.transform.open(packet, inbound, sequence, scratch);
            match outcome {
                Ok(_) | Err(DropReason::EspDummy) if tells => {
                    let arrived = Arrived {
                        sa,
                        handle: run.handle,
                        inbound,
                        low: *low,
                        encap: approach.encap,
                    };
                    self.tell_mapping(now, packet, &arrived);
                }
                Err(DropReason::EspIcv) => sa.traffic.count_integrity_failure(),
                Ok(_) | Err(_) => {}
            }
        }
        accept(now, packets, (run, members), &mut outcomes);

        let mut inner = *meta;
        inner.mark = set_mark(meta.mark, sa);
        let pushed = inner.path.push(run.handle);
        self.admitted.expect_alike(true);
        for ((packet, outcome), member) in packets.iter_mut().zip(&outcomes).zip(members) {
            let inbound = &member.approach.inbound;
            let unwrapped = match (outcome, pushed) {
                (Ok(opened), Some(())) => run.transform.unwrap(packet, inbound, opened),
                (Ok(_), None) => Err(DropReason::InDepth),
                (Err(reason), _) => Err(*reason),
            };
            let received = match unwrapped {
                Ok(_) => self.receive(netns, now, packet, &mut { inner }, host),
                Err(reason) => dropped(netns, reason),
            };
            done(packet, received);
        }
        self.admitted.expect_alike(false);
    }
}

/// What is done once it is known which packets are genuine: they count, and their numbers are
/// used up.
fn accept(
    now: Now,
    packets: &[PacketBuf],
    (run, members): (&Run<'_>, &[Member]),
    outcomes: &mut [Result<Opened, DropReason>],
) {
    let sa = run.sa;
    let (mut accepted, mut bytes) = (0, 0);
    {
        let mut window = sa.window();
        for ((packet, outcome), member) in packets.iter().zip(&mut *outcomes).zip(members) {
            let Ok(opened) = outcome else { continue };
            // Another worker may have been faster.
            match window.recheck(Sequence::new(run.high, member.low)) {
                Ok(()) => {
                    window.advance(member.low);
                    accepted += 1;
                    bytes += packet.len().saturating_sub(opened.at);
                }
                Err(refusal) => *outcome = Err(refuse(sa, refusal)),
            }
        }
        sa.traffic.keep_window(&window);
    }
    if accepted > 0 {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        sa.traffic.count(accepted, bytes, now.real);
    }
}
