//! Packets that the host wants protected: from the device to the wire.

use std::io;
use std::sync::PoisonError;

use dataplane::io::marked::Marked;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::packet::fragment::Fragmenter;
use dataplane::packet::segment::{Offload, Segmenter, complete_checksum};
use dataplane::packet::{Family, PacketBuf, icmp};
use dataplane::path::hold::Queue;
use dataplane::path::{Departure, OutputMeta, Routes, Verdict, Worker};
use dataplane::sad::SaHandle;
use dataplane::{Netns, Now};
use nix::poll::PollTimeout;
use xfrm_proto::consts::{AF_INET, AF_INET6};
use xfrm_proto::uapi::Address;
use xfrmd::faults;
use xfrmd::recording::fate;
use xfrmd::recording::format::{Passage as Recorded, To};
use xfrmd::recording::packets::PacketTape;

use super::disturb::Disturbance;
use super::inbound::{Arrival, ToHost};
use super::sockets::Senders;
use super::watch::Watch;
use super::{Command, Road, buffers};
use crate::attach::{HostRoutes, LEAST_MTU_V6, OWN, OWN_MASK, STATE_MASK};
use crate::capture::record::{Direction, Layer};
use crate::driver::clock;
use crate::driver::observe::Observed;
use crate::driver::outbox::Outbox;

/// Descriptors in front of those of errors.
const OTHERS: usize = 4;
/// Packets that are sent together, and possibly those of one frame more.
const ENOUGH: usize = 32;
/// Rounds with packets between two looks at anything else.
const MOST_ROUNDS: usize = 16;
/// Rounds that may empty what the devices hold.
const MOST_DRAINED: usize = 4096;

/// The thread that sends.
pub(super) struct Outbound {
    road: Road,
    /// Packets that have a mark.
    marked: Option<Marked>,
    senders: Senders,
    watch: Watch,
    /// What no policy is for goes on as it is, and is not dropped.
    lets_pass: bool,
    wire: Outbox,
    host: ToHost,
    /// What the device gave.
    frame: PacketBuf,
    ident: u16,
    ready: Vec<bool>,
    /// Packets that have a mark may be there.
    marked_waits: bool,
    disturbance: Disturbance<Departure>,
}

impl Outbound {
    pub(super) fn new(
        road: Road,
        marked: Option<Marked>,
        senders: Senders,
        lets_pass: bool,
    ) -> io::Result<Self> {
        // A descriptor twice, where there is no other, keeps the order.
        let tun = road.tun.fd();
        let second = marked.as_ref().map_or(tun, Marked::fd);
        let others = [road.wake(), road.routes.fd(), tun, second].into_iter();
        Ok(Self {
            watch: Watch::of(others.chain(senders.fds()))?,
            disturbance: Disturbance::new(faults::Direction::Out, &road.line.faults),
            road,
            marked,
            senders,
            lets_pass,
            wire: Outbox::default(),
            host: ToHost::default(),
            frame: PacketBuf::with_capacity(MAX_PACKET),
            ident: 0,
            ready: Vec::new(),
            marked_waits: false,
        })
    }

    pub(super) fn run(&mut self) {
        while self.wait() {
            let mut rounds = MOST_ROUNDS;
            while rounds > 0 && self.take() {
                rounds -= 1;
            }
            self.flush(false);
        }
    }

    /// Waits for packets, commands or news; false when it is time to stop.
    fn wait(&mut self) -> bool {
        let timeout = self.road.routes.poll_timeout().map(|at| {
            let nanos = at.0.saturating_sub(clock::uptime().0);
            let ms = i32::try_from(nanos / 1_000_000 + 1).unwrap_or(i32::MAX);
            PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
        });
        let timeout = timeout.into_iter().chain(self.disturbance.timeout()).min();
        self.watch.wait(timeout, &mut self.ready);
        let [wake, news, _, marked, ..] = *self.ready else {
            return true;
        };
        self.marked_waits |= marked;
        if timeout.is_some() {
            self.road.routes.expire(clock::uptime());
        }
        if news {
            self.road.routes.forget();
        }
        self.learn();
        if wake {
            for command in self.road.commands() {
                match command {
                    Command::Stop => return false,
                    Command::EncapSockets(sockets, bulk) => {
                        self.senders.set_bulk(bulk);
                        self.road.routes.set_encap_sockets(sockets);
                    }
                    Command::OwnSockets(sockets) => self.road.routes.set_own_sockets(sockets),
                    Command::Drain(done) => {
                        self.marked_waits = true;
                        let mut rounds = MOST_DRAINED;
                        while rounds > 0 && self.take() {
                            rounds -= 1;
                        }
                        self.flush(false);
                        // Whoever asked may have given up.
                        let _ = done.try_send(());
                    }
                    Command::Retry(queues) => self.retry(queues),
                    Command::Iptfs(sas) => self.run_iptfs(&sas),
                }
            }
            self.flush(false);
        }
        true
    }

    fn retry(&mut self, queues: Vec<Queue>) {
        let Self { road, wire, .. } = self;
        let netns = road.netns.read().unwrap_or_else(PoisonError::into_inner);
        let watched = road.observed.watch();
        let tape = road.tape.as_ref();
        for queue in queues {
            let now = road.clock.now();
            let late = |packet: &mut PacketBuf, to: &Departure| {
                push_late(wire, (watched, tape), packet, *to);
            };
            match tape {
                None => {
                    let (worker, routes) = (&mut road.worker, &road.routes);
                    worker.retry(&netns, now, queue, routes, &mut { late });
                }
                Some(tape) => {
                    tape.begin(Recorded::Retry { now }, &[]);
                    let routes = tape.host(&road.routes);
                    road.worker
                        .retry(&netns, now, queue, &routes, &mut { late });
                    tape.end("");
                }
            }
        }
    }

    fn run_iptfs(&mut self, sas: &[SaHandle]) {
        let Self {
            road, wire, host, ..
        } = self;
        let netns = road.netns.read().unwrap_or_else(PoisonError::into_inner);
        let arrival = Arrival {
            netns: &netns,
            now: road.clock.now(),
            routes: &road.routes,
            watched: road.observed.watch(),
            tape: road.tape.as_ref(),
        };
        for &sa in sas {
            let now = arrival.now;
            if let Some(tape) = arrival.tape {
                tape.begin(Recorded::Iptfs { now }, &[]);
            }
            road.worker.run_iptfs(&netns, now, sa, &mut |packet, to| {
                push_late(wire, (arrival.watched, arrival.tape), packet, *to);
            });
            if let Some(tape) = arrival.tape {
                tape.end("");
            }
        }
        host.receive_inner(&mut road.worker, &arrival);
    }

    /// What routers say of packets of SAs.
    fn learn(&mut self) {
        let ready = self.ready.iter().skip(OTHERS);
        let sockets = self.senders.too_big().zip(ready);
        let mut batch = Vec::new();
        for (socket, _) in sockets.filter(|(_, ready)| **ready) {
            if batch.is_empty() {
                batch = buffers();
            }
            let Ok(count @ 1..) = dataplane::io::PacketIo::receive(socket, &mut batch) else {
                continue;
            };
            let netns = self
                .road
                .netns
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            for packet in batch.iter().take(count) {
                if let Some(learned) = netns.learn_mtu(packet, 0, &self.road.routes) {
                    self.road.routes.learn(&learned, clock::uptime());
                }
            }
        }
    }

    /// Takes what the device has, and sends it; false when nothing is left.
    fn take(&mut self) -> bool {
        let Self {
            road,
            marked,
            wire,
            host,
            frame,
            ident,
            lets_pass,
            marked_waits,
            ..
        } = self;
        let netns = road.netns.read().unwrap_or_else(PoisonError::into_inner);
        let mut passage = Passage {
            netns: &netns,
            lets_pass: *lets_pass,
            now: road.clock.now(),
            wire,
            host,
            ident,
            watched: road.observed.watch(),
            tape: road.tape.as_ref(),
        };
        let mut more = true;
        // What was kept does not count: something has to be new each time.
        let mut first = true;
        while more && (std::mem::take(&mut first) || passage.wire.len() < ENOUGH) {
            // First what has no mark, then what has one.
            let plain = road
                .tun
                .read(frame)
                .map(|read| read.map(|offload| (offload, 0)));
            let read = match (plain, marked.as_ref().filter(|_| *marked_waits)) {
                (Ok(None), Some(marked)) => {
                    let read = marked.read(frame);
                    *marked_waits = matches!(read, Ok(Some(_)));
                    read
                }
                (plain, _) => plain,
            };
            match read {
                Ok(Some((offload, mark))) => {
                    passage.output(&mut road.worker, &road.routes, frame, (offload, mark));
                }
                Ok(None) => more = false,
                Err(error) => {
                    tracing::debug!(%error, "reading the device");
                    more = false;
                }
            }
        }
        drop(netns);
        self.flush(more);
        more
    }

    /// Asks what there is to ask, and sends what is ready. In this order: what a packet is followed by, the other
    /// thread asks. With `more` to come, what can go along with that waits for it.
    fn flush(&mut self, more: bool) {
        let Self {
            road,
            senders,
            wire,
            host,
            disturbance,
            ..
        } = self;
        road.ask();
        host.flush(road);
        let mut send = |to, packets: &mut [PacketBuf], more| {
            let kept = match senders.send(to, packets, more) {
                Ok((sent, kept)) => {
                    if sent.too_long > 0 {
                        road.routes.forget();
                    }
                    kept
                }
                Err(error) => {
                    tracing::warn!(%error, "a socket for outgoing packets");
                    0
                }
            };
            let count = packets.len() - kept;
            road.observed
                .sent
                .add(packets.get(..count).unwrap_or_default());
            count
        };
        if disturbance.disturbs() {
            let mut send = |to, packets: &mut [PacketBuf]| {
                send(to, packets, false);
            };
            wire.drain(|to, packets| disturbance.pass(to, packets, &mut send));
            for (to, mut packet) in disturbance.due() {
                send(to, std::slice::from_mut(&mut packet));
            }
        } else {
            wire.drain_but_tail(|to, packets, last| send(to, packets, more && last));
        }
    }
}

/// What a packet from the host meets.
struct Passage<'a> {
    netns: &'a Netns,
    lets_pass: bool,
    now: Now,
    wire: &'a mut Outbox,
    host: &'a mut ToHost,
    ident: &'a mut u16,
    /// Somebody captures.
    watched: Option<&'a Observed>,
    /// It is recorded.
    tape: Option<&'a PacketTape>,
}

/// Puts a packet with others that has waited for its SA, or in it.
fn push_late(
    wire: &mut Outbox,
    (watched, tape): (Option<&Observed>, Option<&PacketTape>),
    packet: &mut PacketBuf,
    to: Departure,
) {
    if let Some(watched) = watched {
        watched.alone(Direction::Out, Layer::Outer, packet);
    }
    if let Some(tape) = tape {
        tape.answer(To::Wire(to.mark), packet);
    }
    wire.push(packet, to);
}

impl Passage<'_> {
    fn output(
        &mut self,
        worker: &mut Worker,
        routes: &HostRoutes,
        packet: &mut PacketBuf,
        (offload, mark): (Offload, u32),
    ) {
        let Some((family, source, destination)) = ends(packet) else {
            return;
        };
        let sender = routes.sender(mark);
        if sender.is_none() && mark & OWN != 0 && mark & OWN_MASK != OWN {
            tracing::debug!(mark, "a packet of a socket that has gone");
            return;
        }
        let mark = sender.map_or(mark & !STATE_MASK, |own| own.user_mark);
        // The way that it would have gone without us. Without one there is none with us.
        let Some((ifindex, way)) = routes.way(family, destination, mark) else {
            return;
        };
        // IPv6 has no DF: whether a socket lets its datagrams be cut does not show. They are, and
        // it hears of it.
        let in_parts = family == AF_INET6 && routes.is_local(family, source);
        let meta = OutputMeta {
            mark,
            if_id: 0,
            ifindex,
            socket: sender.map(|own| own.key),
            // A sender on this host too learns the SAs' MTU from an error, not from its route.
            forwarded: !in_parts,
            bypasses: false,
            loopback: false,
            mtu: way.mtu,
            hop_limit: way.hop_limit,
        };
        let host = self.tape.map(|tape| {
            let passage = Recorded::Output {
                now: self.now,
                meta,
                offload: Some(offload),
                asks_mtu: in_parts,
            };
            tape.begin(passage, packet);
            tape.host(routes)
        });
        let asked: &dyn Routes = host.as_ref().map_or(routes, |host| host);
        if in_parts {
            let mtu = worker.mtu(self.netns, packet, &meta, asked);
            self.tell_mtu(packet, destination, mtu.max(LEAST_MTU_V6), offload);
        }
        let Self {
            netns,
            now,
            wire,
            tape,
            ..
        } = self;
        let mut passage = self.watched.map(|it| it.begin(Direction::Out, packet));
        let mut sink = |packet: &mut PacketBuf, to: &Departure| {
            if let Some(passage) = &mut passage {
                passage.see(Layer::Outer, packet);
            }
            if let Some(tape) = tape {
                tape.answer(To::Wire(to.mark), packet);
            }
            wire.push(packet, *to);
        };
        let verdict =
            worker.output_offloaded(netns, *now, packet, &meta, offload, asked, &mut sink);
        if let Some(tape) = tape {
            tape.end(&fate::of_departure(&verdict));
        }
        if let Some(passage) = passage {
            passage.leaves(&verdict);
        }
        let verdict = match verdict {
            Verdict::Plain if self.lets_pass => self.pass(packet, &meta, offload),
            other => other,
        };
        match verdict {
            Verdict::TooBig { mtu } => {
                // To ourselves we cannot be the sender.
                let from = if routes.is_local(family, source) {
                    Some(destination)
                } else {
                    routes.own_address(family, source)
                };
                *self.ident = self.ident.wrapping_add(1);
                let bytes = if family == AF_INET6 { 16 } else { 4 };
                let answered = from.and_then(|from| {
                    icmp::answer_too_big(packet, from.0.get(..bytes)?, mtu, *self.ident)
                });
                if answered.is_some() {
                    self.host.push(packet);
                }
            }
            // The host's packet filter sends us what policies select, as long as they do.
            Verdict::Plain => tracing::trace!("a packet without a policy"),
            Verdict::Sent(_) | Verdict::Held | Verdict::Queued | Verdict::Dropped { .. } => {}
        }
    }
}

impl Passage<'_> {
    /// Sends a packet on that no policy is for, as the host would have; [`Verdict::TooBig`] if that
    /// would have refused it.
    fn pass(&mut self, packet: &mut PacketBuf, meta: &OutputMeta, offload: Offload) -> Verdict {
        let (Some(family), Ok(mtu)) = (Family::of(packet), usize::try_from(meta.mtu)) else {
            return Verdict::Plain;
        };
        let to = Departure {
            family,
            mark: meta.mark,
        };
        let fits = longest(packet, offload) <= mtu;
        let may_cut = match family {
            Family::V4 => packet.get(6).is_some_and(|flags| flags & 0x40 == 0),
            Family::V6 => !meta.forwarded,
        };
        if !fits && (!may_cut || offload.segment_bytes > 0) {
            return Verdict::TooBig { mtu: meta.mtu };
        }
        let mut piece = PacketBuf::with_capacity(MAX_PACKET);
        if offload.segment_bytes > 0 {
            let Some(mut segments) = Segmenter::new(packet, offload.segment_bytes) else {
                return Verdict::Plain;
            };
            while segments.next_into(&mut piece) == Some(true) {
                self.wire.push(&mut piece, to);
            }
            return Verdict::Plain;
        }
        if let Some((start, offset)) = offload.checksum
            && complete_checksum(packet, start, offset).is_none()
        {
            return Verdict::Plain;
        }
        if fits {
            self.wire.push(packet, to);
            return Verdict::Plain;
        }
        *self.ident = self.ident.wrapping_add(1);
        if let Some(mut pieces) = Fragmenter::new(packet, mtu, (*self.ident).into()) {
            while pieces.next_into(&mut piece) == Some(true) {
                self.wire.push(&mut piece, to);
            }
        }
        Verdict::Plain
    }

    /// Tells a sender on this host what would have been right, if its packets are longer.
    fn tell_mtu(&mut self, packet: &PacketBuf, to: Address, mtu: u32, offload: Offload) {
        if packet.len() <= usize::try_from(mtu).unwrap_or(usize::MAX)
            || longest(packet, offload) <= usize::try_from(mtu).unwrap_or(usize::MAX)
        {
            return;
        }
        let mut error = PacketBuf::copy_of(packet);
        if icmp::answer_too_big(&mut error, &to.0, mtu, 0).is_some() {
            self.host.push(&mut error);
        }
    }
}

/// Bytes of the longest of the packets that a frame is.
fn longest(frame: &[u8], offload: Offload) -> usize {
    const TCP: usize = 16;
    let Some((start, offset)) = offload.checksum.filter(|_| offload.segment_bytes > 0) else {
        return frame.len();
    };
    let start = usize::from(start);
    let header_bytes = if usize::from(offset) == TCP {
        frame
            .get(start + 12)
            .map_or(20, |it| usize::from(it >> 4) * 4)
    } else {
        8
    };
    start + header_bytes + usize::from(offload.segment_bytes)
}

/// Family, source and destination of a packet.
fn ends(packet: &[u8]) -> Option<(u16, Address, Address)> {
    let (family, at, bytes) = match Family::of(packet)? {
        Family::V4 => (AF_INET, 12, 4),
        Family::V6 => (AF_INET6, 8, 16),
    };
    let address = |at: usize| {
        let mut address = Address::ANY;
        let source = packet.get(at..)?.get(..bytes)?;
        address.0.get_mut(..bytes)?.copy_from_slice(source);
        Some(address)
    };
    Some((family, address(at)?, address(at + bytes)?))
}
