//! Packets that arrive protected: from the wire to the host.

use dataplane::Netns;
use dataplane::Now;
use dataplane::packet::PacketBuf;
use dataplane::packet::join::Joiner;
use dataplane::path::{InputMeta, Received, Worker};
use nix::poll::PollTimeout;
use std::sync::PoisonError;
use xfrmd::faults;
use xfrmd::recording::fate;
use xfrmd::recording::format::{Passage as Recorded, To};
use xfrmd::recording::packets::PacketTape;

use super::disturb::Disturbance;
use super::sockets::Receivers;
use super::{Command, HOST, Road, buffers, readable, wait_for};
use crate::attach::{HostRoutes, STATE_MASK};
use crate::capture::record::{Direction, Layer};
use crate::driver::observe::Observed;
use crate::driver::outbox::Outbox;

/// Descriptors in front of the receivers'.
const OTHERS: usize = 2;
/// Rounds with packets between two looks at anything else.
const MOST_ROUNDS: usize = 16;

/// The thread that receives.
pub(super) struct Inbound {
    road: Road,
    receivers: Receivers,
    host: ToHost,
    batch: Vec<PacketBuf>,
    disturbance: Disturbance<()>,
    /// Which receivers have packets, as far as is known.
    ready: Vec<bool>,
}

impl Inbound {
    pub(super) fn new(road: Road, receivers: Receivers) -> Self {
        Self {
            disturbance: Disturbance::new(faults::Direction::In, &road.line.faults),
            road,
            receivers,
            host: ToHost::default(),
            batch: buffers(),
            ready: Vec::new(),
        }
    }

    pub(super) fn run(&mut self) {
        while self.wait() {
            let mut rounds = MOST_ROUNDS;
            while rounds > 0 && self.receive() {
                rounds -= 1;
            }
        }
    }

    /// Waits for packets, commands or news; false when it is time to stop.
    fn wait(&mut self) -> bool {
        let fds = [self.road.wake(), self.road.routes.fd()];
        let fds = fds.map(wait_for).into_iter();
        let kept: Vec<bool> = self.receivers.sources().map(|it| it.has_more()).collect();
        let timeout = match kept.contains(&true) {
            true => Some(PollTimeout::ZERO),
            false => self.disturbance.timeout(),
        };
        readable(
            fds.chain(self.receivers.poll_fds()),
            timeout,
            &mut self.ready,
        );
        for (ready, kept) in self.ready.iter_mut().skip(OTHERS).zip(kept) {
            *ready |= kept;
        }
        let [wake, news, ..] = *self.ready else {
            return true;
        };
        if news {
            self.road.routes.forget();
        }
        if wake {
            for command in self.road.commands() {
                match command {
                    Command::Stop => return false,
                    Command::EncapSockets(sockets, bulk) => {
                        let ports: Vec<u16> = sockets.iter().map(|it| it.port).collect();
                        self.receivers.set_ports(&ports, &bulk);
                        self.road.routes.set_encap_sockets(sockets);
                    }
                    Command::OwnSockets(sockets) => self.road.routes.set_own_sockets(sockets),
                    Command::Retry(_) | Command::Iptfs(_) | Command::Drain(_) => {}
                }
            }
        }
        true
    }

    /// Takes what has come to each socket; false when that is little.
    fn receive(&mut self) -> bool {
        let Self {
            road,
            receivers,
            host,
            batch,
            disturbance,
            ready,
        } = self;
        let mut more = false;
        let sources = receivers.sources().zip(ready.iter_mut().skip(OTHERS));
        for (source, ready) in sources.filter(|(_, ready)| **ready) {
            let count = source.receive(batch).unwrap_or_else(|error| {
                tracing::debug!(%error, "receiving");
                0
            });
            // What comes later is told.
            *ready = count > batch.len() / 2 || source.has_more();
            more |= *ready;
            if count == 0 {
                continue;
            }
            let packets = batch.get_mut(..count).unwrap_or_default();
            road.observed.received.add(packets);
            if disturbance.disturbs() {
                disturbance.pass((), packets, |(), packets| host.take_in(road, packets));
            } else {
                host.take_in(road, packets);
            }
        }
        for ((), mut packet) in disturbance.due() {
            host.take_in(road, std::slice::from_mut(&mut packet));
        }
        more
    }
}

/// What a packet from the wire meets.
pub(super) struct Arrival<'a> {
    pub(super) netns: &'a Netns,
    pub(super) now: Now,
    pub(super) routes: &'a HostRoutes,
    /// Somebody captures.
    pub(super) watched: Option<&'a Observed>,
    /// It is recorded.
    pub(super) tape: Option<&'a PacketTape>,
}

impl Arrival<'_> {
    fn receive(
        &self,
        worker: &mut Worker,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
    ) -> Received {
        let Some(tape) = self.tape else {
            return worker.receive(self.netns, self.now, packet, meta, self.routes);
        };
        let host = tape.host(self.routes);
        let received = worker.receive(self.netns, self.now, packet, meta, &host);
        if matches!(received, Received::Local | Received::Forward) {
            tape.answer(To::Host, packet);
        }
        received
    }
}

/// Packets for the host.
#[derive(Default)]
pub(super) struct ToHost {
    outbox: Outbox,
    joiner: Joiner,
}

impl ToHost {
    /// Takes a packet that has nothing to do with SAs any more.
    pub(super) fn push(&mut self, packet: &mut PacketBuf) {
        self.outbox.push(packet, HOST);
    }

    /// Takes what has come together. Whoever captures or records sees each packet on its
    /// way.
    fn receive_all(
        &mut self,
        worker: &mut Worker,
        arrival: &Arrival<'_>,
        packets: &mut [PacketBuf],
    ) {
        for group in packets.chunk_by_mut(|one, other| one.origin() == other.origin()) {
            let origin = group.first().map(PacketBuf::origin).unwrap_or_default();
            let meta = InputMeta {
                mark: origin.mark & !STATE_MASK,
                ifindex: origin.ifindex,
                ..InputMeta::default()
            };
            if arrival.watched.is_none() && arrival.tape.is_none() {
                let Arrival {
                    netns, now, routes, ..
                } = *arrival;
                let mut done = |packet: &mut PacketBuf, received| self.deliver(&received, packet);
                worker.receive_batch(netns, now, group, &meta, routes, &mut done);
                continue;
            }
            for packet in group {
                let passage = arrival.watched.map(|it| it.begin(Direction::In, packet));
                if let Some(tape) = arrival.tape {
                    tape.begin(Recorded::input(arrival.now, &meta), packet);
                }
                let received = arrival.receive(worker, packet, &mut { meta });
                if let Some(tape) = arrival.tape {
                    tape.end(&fate::of_arrival(&received));
                }
                if let Some(passage) = passage {
                    passage.arrives(&received, packet);
                }
                self.deliver(&received, packet);
            }
        }
    }

    /// Takes packets through the engine to the host.
    fn take_in(&mut self, road: &mut Road, packets: &mut [PacketBuf]) {
        let netns = road.netns.read().unwrap_or_else(PoisonError::into_inner);
        let arrival = Arrival {
            netns: &netns,
            now: road.clock.now(),
            routes: &road.routes,
            watched: road.observed.watch(),
            tape: road.tape.as_ref(),
        };
        self.receive_all(&mut road.worker, &arrival, packets);
        self.receive_inner(&mut road.worker, &arrival);
        drop(netns);
        // Before anybody can answer.
        road.ask();
        self.flush(road);
    }

    /// Receives what came out of IPTFS payloads.
    pub(super) fn receive_inner(&mut self, worker: &mut Worker, arrival: &Arrival<'_>) {
        if !worker.has_inner() {
            return;
        }
        let mut packet = PacketBuf::with_capacity(dataplane::packet::buffer::MAX_PACKET);
        let mut meta = InputMeta::default();
        if let Some(tape) = arrival.tape {
            tape.begin(Recorded::Inner { now: arrival.now }, &[]);
        }
        while worker.next_inner(&mut packet, &mut meta) {
            let received = arrival.receive(worker, &mut packet, &mut meta);
            if let Some(watched) = arrival.watched {
                watched.alone(Direction::In, Layer::Inner, &packet);
            }
            self.deliver(&received, &mut packet);
        }
        if let Some(tape) = arrival.tape {
            tape.end("");
        }
    }

    fn deliver(&mut self, received: &Received, packet: &mut PacketBuf) {
        match received {
            Received::Local | Received::Forward => self.push(packet),
            Received::Kept | Received::Consumed | Received::Inner => {}
            Received::Dropped(reason) => tracing::trace!(?reason, "dropped"),
        }
    }

    /// Gives it all to the host.
    pub(super) fn flush(&mut self, road: &Road) {
        let Self { outbox, joiner } = self;
        outbox.drain(|_, packets| {
            let sent = road.tun.write(packets, joiner);
            if sent.lost > 0 {
                tracing::debug!(?sent, "writing to the device");
            }
        });
    }
}
