//! Packets of one SA that arrive together: the SA is looked up once, its window locked twice, its
//! counters changed once.
//!
//! A *run* is packets in a row of one ESP SA of tunnel mode, far from its limits, whose numbers go up
//! and are newer than all that its window has seen. What becomes of one of them changes nothing that is
//! looked at before the crypto of the next one, so all of it comes to the same as one after the
//! other, which is how everything else goes.

use xfrm_proto::consts::{IPPROTO_ESP, XFRM_SA_DIR_IN};

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::packet::PacketBuf;
use crate::path::bundle::set_mark;
use crate::path::input::{Approach, Arrived, destination, refuse};
use crate::path::receive::{Before, Host, InputMeta, Received, Step, dropped};
use crate::path::witness::Nobody;
use crate::path::worker::Worker;
use crate::sad::{Sa, SaHandle};
use crate::time::Now;
use crate::transform::{MOST_AT_ONCE, Opened, Sequence, Transform};

/// Packets that came through one SA; what they have in common.
struct Run<'a> {
    sa: &'a Sa,
    handle: SaHandle,
    transform: &'a Transform,
    /// What names the SA, from packet and approach.
    name: Name,
    /// The high half of all numbers.
    high: u32,
    /// Of each packet, where it has its header, and the low half of its number.
    members: [Option<(Approach, u32)>; MOST_AT_ONCE],
    count: usize,
}

/// What an SA is looked up by, beside what all packets have in common.
type Name = (xfrm_proto::uapi::Address, u16, u32, u16);

/// What names a packet's SA, and the low half of its number.
#[inline]
fn name_of(packet: &[u8], approach: &Approach) -> Option<(Name, u32)> {
    let Approach {
        inbound,
        spi: None,
        encap,
    } = approach
    else {
        return None;
    };
    if inbound.protocol != IPPROTO_ESP {
        return None;
    }
    let (daddr, family) = destination(packet)?;
    let (spi, low) = inbound.spi(packet).ok()??;
    Some(((daddr, family, spi, *encap), low))
}

impl<'a> Run<'a> {
    /// Takes another packet, if it is one of these.
    #[inline]
    fn take(&mut self, packet: &[u8], approach: &Approach) -> bool {
        let last = self.count.checked_sub(1);
        let last = last.and_then(|at| *self.members.get(at)?);
        let (Some((name, low)), Some((_, before))) = (name_of(packet, approach), last) else {
            return false;
        };
        let Some(place) = self.members.get_mut(self.count) else {
            return false;
        };
        let is_next = name == self.name && low > before;
        if is_next {
            *place = Some((*approach, low));
            self.count += 1;
        }
        is_next
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
        let mut looked_at = None;
        while let [first, others @ ..] = rest {
            let mut own = *meta;
            let before = looked_at
                .take()
                .unwrap_or_else(|| self.approach(netns, now, first, &mut own, host, &mut Nobody));
            let approach = match before {
                Ok(Before::Sas(approach)) => Ok(approach),
                Ok(Before::Nothing(received)) => Err(received),
                Err(reason) => Err(dropped(netns, reason)),
            };
            let begun = approach.and_then(|approach| {
                let run = self.begin(netns, first, &approach, meta);
                run.ok_or_else(|| self.receive_from(netns, now, first, &approach, &mut own, host))
            });
            let mut run = match begun {
                Ok(run) => run,
                Err(received) => {
                    done(first, received);
                    rest = rest.get_mut(1..).unwrap_or_default();
                    continue;
                }
            };
            for packet in others {
                if run.count == MOST_AT_ONCE {
                    break;
                }
                match self.approach(netns, now, packet, &mut own, host, &mut Nobody) {
                    Ok(Before::Sas(approach)) if run.take(packet, &approach) => {}
                    other => {
                        looked_at = Some(other);
                        break;
                    }
                }
            }
            let group = rest.get_mut(..run.count).unwrap_or_default();
            self.pass_run(netns, now, group, &run, meta, host, done);
            rest = rest.get_mut(run.count..).unwrap_or_default();
        }
    }

    /// Goes on with a packet that has come to its SAs.
    fn receive_from(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        approach: &Approach,
        meta: &mut InputMeta,
        host: &dyn Host,
    ) -> Received {
        match self.enter(netns, now, packet, approach, meta, &mut Nobody) {
            Ok(Step::Again) => self.receive(netns, now, packet, meta, host),
            Ok(Step::Done(received)) => received,
            Err(reason) => dropped(netns, reason),
        }
    }

    /// A run that begins with a packet.
    fn begin<'a>(
        &mut self,
        netns: &'a Netns,
        packet: &[u8],
        approach: &Approach,
        meta: &InputMeta,
    ) -> Option<Run<'a>> {
        let (name, low) = name_of(packet, approach)?;
        let (daddr, family, spi, encap) = name;
        let id = netns
            .sad
            .lookup(meta.mark, daddr, spi, IPPROTO_ESP, family)?;
        let sa = netns.sad.get(id)?;
        let fits = matches!(sa.dir, 0 | XFRM_SA_DIR_IN)
            && sa.is_valid()
            && sa.encap().map_or(0, |encap| encap.kind) == encap
            && !netns.listeners.aevents
            && meta.path.is_empty();
        let high = sa.window().newer_from(low).filter(|_| fits)?;
        let transform = sa.transform(netns.profile, &mut *self.tools.entropy)?;
        if !transform.is_esp_tunnel() {
            return None;
        }
        let mut members = [None; MOST_AT_ONCE];
        if let Some(first) = members.first_mut() {
            *first = Some((*approach, low));
        }
        Some(Run {
            sa,
            handle: sa.handle(id),
            transform,
            name,
            high,
            members,
            count: 1,
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
        run: &Run<'_>,
        meta: &InputMeta,
        host: &dyn Host,
        done: &mut dyn FnMut(&mut PacketBuf, Received),
    ) {
        let sa = run.sa;
        let members = run.members.iter().flatten();
        let total = packets.iter().map(|packet| packet.len()).sum();
        let [count, total] = [packets.len(), total].map(|it| u64::try_from(it).unwrap_or(u64::MAX));
        if !sa.traffic.admits_all(&sa.lft, count, total, now.real) {
            for (packet, (approach, _)) in packets.iter_mut().zip(members) {
                let received =
                    self.receive_from(netns, now, packet, approach, &mut { *meta }, host);
                done(packet, received);
            }
            return;
        }

        let mut outcomes = [const { Err(DropReason::InReplay) }; MOST_AT_ONCE];
        for ((packet, outcome), (approach, low)) in
            packets.iter_mut().zip(&mut outcomes).zip(members.clone())
        {
            let sequence = Sequence::new(run.high, *low);
            let inbound = &approach.inbound;
            let scratch = &mut self.tools.scratch;
            *outcome = run.transform.open(packet, inbound, sequence, scratch);
            match outcome {
                Ok(_) | Err(DropReason::EspDummy) => {
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
                Err(_) => {}
            }
        }
        self.accept_run(now, packets, run, &mut outcomes);

        let mut inner = *meta;
        inner.mark = set_mark(meta.mark, sa);
        let pushed = inner.path.push(run.handle);
        for ((packet, outcome), (approach, _)) in packets.iter_mut().zip(outcomes).zip(members) {
            let unwrapped = pushed
                .ok_or(DropReason::InDepth)
                .and(outcome)
                .and_then(|opened| run.transform.unwrap(packet, &approach.inbound, &opened));
            let received = match unwrapped {
                Ok(_) => self.receive(netns, now, packet, &mut { inner }, host),
                Err(reason) => dropped(netns, reason),
            };
            done(packet, received);
        }
    }

    /// What is done once it is known which packets are genuine: they count, and their numbers are
    /// used up.
    fn accept_run(
        &mut self,
        now: Now,
        packets: &[PacketBuf],
        run: &Run<'_>,
        outcomes: &mut [Result<Opened, DropReason>],
    ) {
        let sa = run.sa;
        let (mut accepted, mut bytes) = (0, 0);
        {
            let mut window = sa.window();
            let members = run.members.iter().flatten();
            for ((packet, outcome), (_, low)) in packets.iter().zip(&mut *outcomes).zip(members) {
                let Ok(opened) = *outcome else { continue };
                // Another worker may have been faster.
                match window.recheck(Sequence::new(run.high, *low)) {
                    Ok(()) => {
                        window.advance(*low);
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
}
