//! Packets that arrive protected: from the wire to the host.

use dataplane::Netns;
use dataplane::Now;
use dataplane::packet::PacketBuf;
use dataplane::packet::join::{Joiner, may_grow};
use dataplane::path::{InputMeta, Received, Worker};
use nix::poll::PollTimeout;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;
use xfrmd::faults;
use xfrmd::recording::fate;
use xfrmd::recording::format::{Passage as Recorded, To};
use xfrmd::recording::packets::PacketTape;

use super::disturb::Disturbance;
use super::sockets::Receivers;
use super::watch::Watch;
use super::{BATCH, Command, HOST, Road, buffers};
use crate::attach::{HostRoutes, STATE_MASK};
use crate::capture::record::{Direction, Layer};
use crate::driver::observe::Observed;
use crate::driver::outbox::Outbox;

/// Descriptors in front of the receivers'.
const OTHERS: usize = 2;
/// Rounds with packets between two looks at anything else.
const MOST_ROUNDS: usize = 16;
/// Packets that the host gets at once, and possibly those of one round more.
const ENOUGH: usize = BATCH / 2;
/// So few may be joined with others that come a moment later.
const FEW: usize = 32;
/// That moment, and how many of them at most. Whoever has no more to say ends with a packet that is
/// not waited for.
const LINGER: Duration = Duration::from_micros(50);
const MOST_LINGERS: usize = 2;
/// By how much a moment may be longer, in nanoseconds; the host's default is as long as it is.
const TIMER_SLACK: u64 = 5_000;

/// What the thread waits for: [`OTHERS`], then the receivers.
fn watch(road: &Road, receivers: &Receivers) -> io::Result<Watch> {
    let others = [road.wake(), road.routes.fd()].into_iter();
    Watch::of(others.chain(receivers.fds()))
}

/// The thread that receives.
pub(super) struct Inbound {
    road: Road,
    receivers: Receivers,
    watch: Watch,
    host: ToHost,
    batch: Vec<PacketBuf>,
    disturbance: Disturbance<()>,
    /// Which receivers have packets, as far as is known.
    ready: Vec<bool>,
    /// Which one has had some last.
    last: usize,
    /// Moments that were waited for since the host got packets.
    lingers: usize,
}

impl Inbound {
    pub(super) fn new(road: Road, receivers: Receivers) -> io::Result<Self> {
        Ok(Self {
            watch: watch(&road, &receivers)?,
            disturbance: Disturbance::new(faults::Direction::In, &road.line.faults),
            road,
            receivers,
            host: ToHost::default(),
            batch: buffers(),
            ready: Vec::new(),
            last: 0,
            lingers: 0,
        })
    }

    pub(super) fn run(&mut self) {
        if let Err(error) = nix::sys::prctl::set_timerslack(TIMER_SLACK) {
            tracing::debug!(%error, "moments are longer");
        }
        while self.wait() {
            let mut rounds = MOST_ROUNDS;
            while rounds > 0 && (self.receive() || self.linger()) {
                rounds -= 1;
            }
            self.host.flush(&self.road);
            self.lingers = 0;
        }
    }

    /// Waits a moment for what a TCP stream goes on with; false when that is not worth it.
    ///
    /// Packets of raw sockets come one by one, and each would wake us, and be a frame of its own to
    /// the host, which acknowledges every other one.
    fn linger(&mut self) -> bool {
        let Some(ready) = self.ready.get_mut(OTHERS + self.last) else {
            return false;
        };
        if self.lingers >= MOST_LINGERS || !self.host.may_grow() {
            return false;
        }
        self.lingers += 1;
        *ready = true;
        std::thread::sleep(LINGER);
        true
    }

    /// Waits for packets, commands or news; false when it is time to stop.
    fn wait(&mut self) -> bool {
        let kept: Vec<bool> = self.receivers.sources().map(|it| it.has_more()).collect();
        let timeout = match kept.contains(&true) {
            true => Some(PollTimeout::ZERO),
            false => self.disturbance.timeout(),
        };
        self.watch.wait(timeout, &mut self.ready);
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
                        match watch(&self.road, &self.receivers) {
                            Ok(watch) => self.watch = watch,
                            Err(error) => {
                                tracing::error!(%error, "new sockets are not waited for");
                            }
                        }
                        // Those that were ready are not in their places any more.
                        self.ready.clear();
                    }
                    Command::OwnSockets(sockets) => self.road.routes.set_own_sockets(sockets),
                    Command::Retry(_) | Command::Iptfs(_) | Command::Drain(_) => {}
                }
            }
        }
        true
    }

    /// Takes what has come to each socket; false when nothing has.
    ///
    /// The host gets it when there is enough, or when nothing more has come meanwhile: what comes
    /// one by one is joined all the same.
    fn receive(&mut self) -> bool {
        let Self {
            road,
            receivers,
            host,
            batch,
            disturbance,
            ready,
            last,
            lingers,
            ..
        } = self;
        let mut more = false;
        let sources = receivers.sources().zip(ready.iter_mut().skip(OTHERS));
        let sources = sources.enumerate().filter(|(_, (_, ready))| **ready);
        for (at, (source, ready)) in sources {
            let count = source.receive(batch).unwrap_or_else(|error| {
                tracing::debug!(%error, "receiving");
                0
            });
            *ready = count > 0;
            if count == 0 {
                continue;
            }
            let before = host.outbox.len();
            let packets = batch.get_mut(..count).unwrap_or_default();
            road.observed.received.add(packets);
            if disturbance.disturbs() {
                disturbance.pass((), packets, |(), packets| host.take_in(road, packets));
            } else {
                host.take_in(road, packets);
            }
            // Strangers' packets are not waited for one by one: the next ones are told.
            if host.outbox.len() > before {
                *last = at;
            } else {
                *ready = source.has_more();
            }
            more |= *ready;
        }
        for ((), mut packet) in disturbance.due() {
            host.take_in(road, std::slice::from_mut(&mut packet));
        }
        // Before anybody can answer.
        road.ask();
        if host.outbox.len() >= ENOUGH {
            host.flush(road);
            *lingers = 0;
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

    /// Whether a frame of what it has so far would be small and could be longer.
    fn may_grow(&self) -> bool {
        self.outbox.len() < FEW && self.outbox.last().is_some_and(|last| may_grow(last))
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

    /// Takes packets through the engine.
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
