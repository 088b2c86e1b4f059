//! Packets of an instance: through the engine's own worker, one for each namespace.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::packet::PacketBuf;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::path::output::Sink;
use dataplane::path::{
    Departure, Destination, Host, InputMeta, OutputMeta, Owner, PathInfo, Received, RouteQuery,
    Routes, Verdict, Worker,
};
use dataplane::spd::Flow;
use dataplane::{Entropy, Netns, Now, SeededEntropy};
use xfrm_proto::consts::{AF_INET, AF_INET6, errno};
use xfrm_proto::uapi::Address;

use super::{Errno, Instance};
use crate::emulator::{Inputs, NetnsId};
use crate::recording::fate;
use crate::recording::format::{Passage, To};
use crate::recording::packets::{Heard, PacketTape};
use crate::tape::Asked;

/// The only interface there is.
const INTERFACE: i32 = 2;
const LOOPBACK: i32 = 1;

/// What the packets of a namespace have to know of it: its addresses, and what its only way out takes.
/// Everything that is not its own goes there.
///
/// ```
/// use dataplane::profile::V7_2;
/// use dataplane::path::Verdict;
/// use xfrmd::testing::{Instance, Station};
///
/// let mut linux = Instance::new(&V7_2);
/// let netns = linux.create_netns();
/// linux.set_station(netns, Station::at(["10.0.0.1".parse().unwrap()]));
/// let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
/// # let sum: u32 = packet.chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1])).sum();
/// # let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
/// # packet[10..12].copy_from_slice(&sum.to_be_bytes());
/// // There are no policies: it may go as it is.
/// let departed = linux.output(netns, &packet)?;
/// assert_eq!(departed.verdict, Verdict::Plain);
/// assert_eq!(departed.packets, [packet]);
/// assert_eq!(linux.counter(netns, "XfrmOutNoStates"), 0);
/// # Ok::<(), i32>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What the way takes.
    pub mtu: u32,
    /// TTL of packets that it makes.
    pub hop_limit: u8,
}

impl Station {
    /// With these addresses, an MTU of 1500 and a TTL of 64.
    pub fn at(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            addresses: addresses.into_iter().collect(),
            mtu: 1500,
            hop_limit: 64,
        }
    }
}

fn ip(family: u16, Address(bytes): Address) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        AF_INET6 => Some(IpAddr::from(bytes)),
        _ => None,
    }
}

impl Routes for Station {
    fn generation(&self) -> u64 {
        0
    }

    fn route(&self, _query: &RouteQuery) -> Result<PathInfo, i32> {
        Ok(PathInfo {
            mtu: self.mtu,
            hop_limit: self.hop_limit,
        })
    }

    fn source(&self, query: &RouteQuery) -> Result<Address, i32> {
        let of_family = |it: &&IpAddr| it.is_ipv4() == (query.family == AF_INET);
        let first = self.addresses.iter().find(of_family);
        first.map(|&it| it.into()).ok_or(libc::EADDRNOTAVAIL)
    }
}

impl Host for Station {
    fn destination(&self, family: u16, address: Address) -> Option<Destination> {
        let is_local = self.addresses.contains(&ip(family, address)?);
        Some(Destination {
            is_local,
            ifindex: if is_local { LOOPBACK } else { INTERFACE },
        })
    }

    fn owner(&self, _flow: &Flow) -> Option<Owner> {
        None
    }
}

/// What became of a packet that was to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departed {
    /// In a word.
    pub verdict: Verdict,
    /// What is on the wire now: the packet itself where no policy is for it.
    pub packets: Vec<Vec<u8>>,
}

/// What became of a packet that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// In a word.
    pub received: Received,
    /// What is to be delivered or forwarded: one, or as many as were in an IPTFS payload.
    pub packets: Vec<Vec<u8>>,
}

/// The way of a namespace's packets.
pub(super) struct Road {
    station: Station,
    worker: Worker,
    tape: Option<PacketTape>,
    /// What has left after it had waited.
    late: VecDeque<Vec<u8>>,
}

impl Instance {
    /// Says what a namespace's packets have to know. Without it there are none.
    pub fn set_station(&mut self, netns: NetnsId, station: Station) {
        match self.roads.get_mut(&netns) {
            Some(road) => road.station = station,
            None => {
                let number = u64::from(netns.0) + 1;
                let seed = self.seed.rotate_left(32) ^ number;
                let mut entropy: Box<dyn Entropy + Send> = Box::new(SeededEntropy::new(seed));
                let recorder = self.recorder.as_ref();
                let tape = recorder.map(|it| PacketTape::new(Arc::clone(&it.reel), netns, 0));
                if let Some(tape) = &tape {
                    entropy = tape.entropy(entropy);
                }
                let worker = Worker::new(0, entropy);
                if let Some(tape) = &tape {
                    tape.note(Passage::Begin { cpu: 0 });
                }
                let road = Road {
                    station,
                    worker,
                    tape,
                    late: VecDeque::new(),
                };
                self.roads.insert(netns, road);
            }
        }
    }

    /// Sends a packet of a namespace's own, or another's that it forwards.
    ///
    /// # Errors
    /// ENOENT for a namespace without [`Station`].
    pub fn output(&mut self, netns: NetnsId, packet: &[u8]) -> Result<Departed, Errno> {
        let station = &self.roads.get(&netns).ok_or(errno::ENOENT)?.station;
        let meta = OutputMeta {
            mark: 0,
            if_id: 0,
            ifindex: INTERFACE,
            socket: None,
            forwarded: false,
            bypasses: false,
            loopback: false,
            mtu: station.mtu,
            hop_limit: station.hop_limit,
        };
        self.output_with(netns, packet, &meta)
    }

    /// The same, and says what comes with the packet.
    ///
    /// # Errors
    /// ENOENT for a namespace without [`Station`].
    pub fn output_with(
        &mut self,
        netns: NetnsId,
        packet: &[u8],
        meta: &OutputMeta,
    ) -> Result<Departed, Errno> {
        let now = self.now();
        let mut packet = PacketBuf::copy_of(packet);
        let mut packets = Vec::new();
        let passage = Passage::Output {
            now,
            meta: *meta,
            offload: None,
            asks_mtu: false,
        };
        let mut verdict = self.pass(netns, |road, engine| {
            road.begin(passage, &packet);
            let tape = road.tape.as_ref();
            let mut sink = |packet: &mut PacketBuf, to: &Departure| {
                tell(tape, To::Wire(to.mark), packet);
                packets.push(packet.to_vec());
            };
            let told = told(&road.station, tape);
            let (worker, routes) = (&mut road.worker, told.routes());
            let verdict = worker.output(engine, now, &mut packet, meta, routes, &mut sink);
            road.end(&fate::of_departure(&verdict));
            verdict
        })?;
        if verdict == Verdict::Plain {
            packets.push(packet.to_vec());
        }
        if let Verdict::Sent(count) = &mut verdict {
            *count = packets.len();
        }
        Ok(Departed { verdict, packets })
    }

    /// Takes a packet that comes to a namespace from the wire.
    ///
    /// # Errors
    /// ENOENT for a namespace without [`Station`].
    pub fn input(&mut self, netns: NetnsId, packet: &[u8]) -> Result<Arrived, Errno> {
        let meta = InputMeta {
            ifindex: INTERFACE,
            ..InputMeta::default()
        };
        self.input_with(netns, packet, meta)
    }

    /// The same, and says what comes with the packet.
    ///
    /// # Errors
    /// ENOENT for a namespace without [`Station`].
    pub fn input_with(
        &mut self,
        netns: NetnsId,
        packet: &[u8],
        mut meta: InputMeta,
    ) -> Result<Arrived, Errno> {
        let now = self.now();
        let mut buffer = PacketBuf::with_capacity(MAX_PACKET);
        buffer.fill(packet);
        let mut packets = Vec::new();
        let passage = Passage::input(now, &meta);
        let received = self.pass(netns, |road, engine| {
            road.begin(passage, &buffer);
            let received = road.receive(engine, now, &mut buffer, &mut meta);
            road.end(&fate::of_arrival(&received));
            if matches!(received, Received::Local | Received::Forward) {
                packets.push(buffer.to_vec());
            }
            if road.worker.has_inner() {
                road.begin(Passage::Inner { now }, &[]);
                while road.worker.next_inner(&mut buffer, &mut meta) {
                    let inner = road.receive(engine, now, &mut buffer, &mut meta);
                    if matches!(inner, Received::Local | Received::Forward) {
                        packets.push(buffer.to_vec());
                    }
                }
                road.end("");
            }
            received
        })?;
        Ok(Arrived { received, packets })
    }

    /// Sends a packet from one namespace to another, through the SAs of both; what is delivered there.
    ///
    /// # Errors
    /// ENOENT for a namespace without [`Station`].
    pub fn carry(
        &mut self,
        from: NetnsId,
        to: NetnsId,
        packet: &[u8],
    ) -> Result<Vec<Vec<u8>>, Errno> {
        let mut delivered = Vec::new();
        for packet in self.output(from, packet)?.packets {
            delivered.extend(self.input(to, &packet)?.packets);
        }
        Ok(delivered)
    }

    /// Packets that have left while time passed, because they had waited for SAs or in them.
    pub fn take_late(&mut self, netns: NetnsId) -> Vec<Vec<u8>> {
        let road = self.roads.get_mut(&netns);
        road.map_or_else(Vec::new, |road| road.late.drain(..).collect())
    }

    /// Has a packet pass, and does what it asks for.
    fn pass<T>(
        &mut self,
        netns: NetnsId,
        act: impl FnOnce(&mut Road, &Netns) -> T,
    ) -> Result<T, Errno> {
        let road = self.roads.get_mut(&netns).ok_or(errno::ENOENT)?;
        let done = {
            let engine = self.emulator.netns(netns).ok_or(errno::ENOENT)?;
            act(road, &engine)
        };
        self.ask(netns);
        Ok(done)
    }

    fn ask(&mut self, netns: NetnsId) {
        let now = self.now();
        if let Some(tape) = self.roads.get(&netns).and_then(|road| road.tape.as_ref()) {
            tape.flush();
        }
        if let Some(road) = self.roads.get_mut(&netns)
            && road.worker.has_requests()
        {
            let inputs = Inputs {
                now,
                entropy: &mut self.entropy,
            };
            let asked = Asked {
                netns,
                worker: 0,
                upto: road.tape.as_ref().map_or(u64::MAX, PacketTape::last),
            };
            let requests = road.worker.drain_requests();
            self.emulator.handle_requests(inputs, asked, requests);
        }
        self.deliver();
    }

    /// Looks after packets that wait, once timers have run.
    pub(super) fn run_roads(&mut self) {
        let now = self.now();
        let ids: Vec<NetnsId> = self.roads.keys().copied().collect();
        for netns in ids {
            let (queues, sas) = self.emulator.release(netns, now.boot);
            if queues.is_empty() && sas.is_empty() {
                continue;
            }
            let _ = self.pass(netns, |road, engine| {
                for queue in queues {
                    road.late(Passage::Retry { now }, |worker, host, sink| {
                        worker.retry(engine, now, queue, host, sink);
                    });
                }
                for sa in sas {
                    road.late(Passage::Iptfs { now }, |worker, _, sink| {
                        worker.run_iptfs(engine, now, sa, sink);
                    });
                }
            });
        }
    }

    /// Ends the packets' part of a recording.
    pub(super) fn stop_tapes(&mut self) {
        for road in self.roads.values_mut() {
            road.tape = None;
        }
    }
}

fn tell(tape: Option<&PacketTape>, to: To, packet: &[u8]) {
    if let Some(tape) = tape {
        tape.answer(to, packet);
    }
}

/// A host that may be listened to.
enum Told<'a> {
    Alone(&'a Station),
    Recorded(Heard<'a, Station>),
}

impl<'a> Told<'a> {
    fn routes(&self) -> &(dyn Routes + 'a) {
        match self {
            Self::Alone(station) => *station,
            Self::Recorded(heard) => heard,
        }
    }

    fn host(&self) -> &(dyn Host + 'a) {
        match self {
            Self::Alone(station) => *station,
            Self::Recorded(heard) => heard,
        }
    }
}

impl Road {
    fn begin(&self, passage: Passage, packet: &[u8]) {
        if let Some(tape) = &self.tape {
            tape.begin(passage, packet);
        }
    }

    fn end(&self, fate: &str) {
        if let Some(tape) = &self.tape {
            tape.end(fate);
        }
    }

    fn receive(
        &mut self,
        engine: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
    ) -> Received {
        let told = told(&self.station, self.tape.as_ref());
        let received = self.worker.receive(engine, now, packet, meta, told.host());
        if matches!(received, Received::Local | Received::Forward) {
            tell(self.tape.as_ref(), To::Host, packet);
        }
        received
    }

    /// Has packets leave that have waited.
    fn late(
        &mut self,
        passage: Passage,
        act: impl FnOnce(&mut Worker, &dyn Routes, &mut Sink<'_>),
    ) {
        self.begin(passage, &[]);
        let (late, tape) = (&mut self.late, self.tape.as_ref());
        let told = told(&self.station, tape);
        let mut sink = |packet: &mut PacketBuf, to: &Departure| {
            tell(tape, To::Wire(to.mark), packet);
            late.push_back(packet.to_vec());
        };
        act(&mut self.worker, told.routes(), &mut sink);
        self.end("");
    }
}

fn told<'a>(station: &'a Station, tape: Option<&'a PacketTape>) -> Told<'a> {
    match tape {
        None => Told::Alone(station),
        Some(tape) => Told::Recorded(tape.host(station)),
    }
}
