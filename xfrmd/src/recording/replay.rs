//! What was recorded, once more: to a fresh instance, which may be another kernel.
//!
//! Each happening is given to the instance with the clock and the random numbers that it had. What
//! another kernel draws beyond them comes from a seed of the happening's own, so that the next one
//! has its own numbers again.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::keep;
use dataplane::netns::Limits;
use dataplane::packet::PacketBuf;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::path::hold::Queue;
use dataplane::path::{
    Departure, Destination, Host, InputMeta, Owner, PathInfo, Received, Request, RouteQuery,
    Routes, Worker,
};
use dataplane::sad::SaHandle;
use dataplane::spd::Flow;
use dataplane::{Entropy, Netns, Now, Profile, SeededEntropy};
use xfrm_proto::uapi::Address;

use super::format::{Happened, HostSaid, Kept, Passage, Source, To, What};
use super::read::{Answer, Recording};
use super::{fate, keys};
use crate::emulator::{Emulator, Inputs, NetnsId};
use crate::tape::{Asked, Step};

/// Why a recording cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Packets went through SAs whose keys are not there.
    NoKeys,
}

/// What came of a happening this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it, nothing for what went well.
    pub fate: String,
    /// What came of it, in order.
    pub answers: Vec<Answer<'static>>,
}

/// Does everything again; what came of each happening.
///
/// # Errors
/// When packets are in the recording and keys are not.
pub fn replay(
    recording: &Recording<'_>,
    profile: &'static Profile,
) -> Result<Vec<Outcome>, Refusal> {
    if !recording.head.keys && recording.has_packets() {
        return Err(Refusal::NoKeys);
    }
    let mut player = Player {
        emulator: Emulator::new(profile, recording.head.limits),
        workers: BTreeMap::new(),
        keys: recording.head.keys,
        reads_on: recording.head.source == Source::Kernel,
    };
    let happenings = recording.happenings.iter();
    Ok(happenings.map(|it| player.play(&it.happened)).collect())
}

/// Random numbers: those that were drawn, then others.
struct Script {
    drawn: VecDeque<u64>,
    others: SeededEntropy,
}

impl Script {
    fn of(happened: &Happened<'_>) -> Self {
        Self {
            drawn: happened.drawn.iter().copied().collect(),
            others: SeededEntropy::new(happened.number),
        }
    }
}

impl Entropy for Script {
    fn u64(&mut self) -> u64 {
        let drawn = self.drawn.pop_front();
        drawn.unwrap_or_else(|| self.others.u64())
    }
}

/// The same for a worker, which has its own to keep.
#[derive(Clone)]
struct Shared(Arc<Mutex<Script>>);

impl Shared {
    fn set(&self, script: Script) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }
}

impl Entropy for Shared {
    fn u64(&mut self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).u64()
    }
}

/// A worker, and what the host said to it.
struct Played {
    worker: Worker,
    script: Shared,
    host: Said,
    /// What packets have asked for, with the packet's number.
    requests: VecDeque<(u64, Request)>,
    queues: VecDeque<Queue>,
    sas: VecDeque<SaHandle>,
}

impl Played {
    fn new(cpu: u32, script: Script) -> Self {
        let script = Shared(Arc::new(Mutex::new(script)));
        Self {
            worker: Worker::new(cpu, Box::new(script.clone())),
            script,
            host: Said::default(),
            requests: VecDeque::new(),
            queues: VecDeque::new(),
            sas: VecDeque::new(),
        }
    }
}

/// The worker that sends: it gets what has waited.
const SENDER: u32 = 0;

struct Player {
    emulator: Emulator,
    workers: BTreeMap<(NetnsId, u32), Played>,
    keys: bool,
    /// Dumps are read to their end at once: of a kernel's it is not known who read when.
    reads_on: bool,
}

impl Player {
    fn play(&mut self, happened: &Happened<'_>) -> Outcome {
        let (fate, mut answers) = match &happened.what {
            What::Step(step) => {
                let fate = self.step(step, Script::of(happened));
                (fate, self.datagrams())
            }
            What::Passage {
                netns,
                worker,
                passage,
                host,
                bytes,
            } => self.pass(happened, (*netns, *worker), passage, host, bytes),
            What::Recall { limits, kept } => (self.recall(*limits, kept), Vec::new()),
        };
        if !self.keys {
            for answer in &mut answers {
                keys::zero(answer.bytes.to_mut());
            }
        }
        Outcome { fate, answers }
    }

    fn datagrams(&mut self) -> Vec<Answer<'static>> {
        let mut answers = Vec::new();
        while let Some(datagram) = self.emulator.poll_datagram() {
            answers.push(Answer {
                to: To::Client(datagram.netns, datagram.to),
                bytes: datagram.bytes.to_vec().into(),
            });
        }
        answers
    }

    fn step(&mut self, step: &Step<'_>, mut script: Script) -> String {
        fn inputs(now: Now, entropy: &mut Script) -> Inputs<'_> {
            Inputs { now, entropy }
        }
        match step {
            // Numbers are given as they were, since all creations are in the recording.
            Step::Create { .. } => {
                self.emulator.create_netns();
            }
            Step::Destroy { netns } => {
                self.emulator.destroy_netns(*netns);
                self.workers.retain(|(of, _), _| of != netns);
            }
            Step::Limits(limits) => self.emulator.set_limits(*limits),
            Step::Request { now, peer, bytes } => {
                self.emulator
                    .handle_datagram(inputs(*now, &mut script), *peer, bytes);
                while self.reads_on && self.emulator.handle_recv(*peer) {}
            }
            Step::Pull { peer } => {
                self.emulator.handle_recv(*peer);
            }
            Step::Close { netns, port } => self.emulator.close_socket(*netns, *port),
            Step::SocketPolicy {
                now,
                netns,
                socket,
                family,
                option_family,
                value,
            } => {
                let set = self.emulator.set_socket_policy(
                    *now,
                    *netns,
                    *socket,
                    *family,
                    *option_family,
                    value.as_deref(),
                );
                return set.map_or_else(|errno| format!("errno {errno}"), |()| String::new());
            }
            Step::Listeners {
                netns,
                group,
                count,
            } => self.emulator.set_listeners(*netns, *group, *count),
            Step::Sysctls { netns, sysctls } => {
                let set = |engine: &mut Netns| engine.sysctls = *sysctls;
                self.emulator.change(*netns, set);
            }
            Step::Timers { now, netns } => {
                self.emulator
                    .handle_timeout_of(inputs(*now, &mut script), *netns);
            }
            Step::Inquiries { now, asked } => {
                let requests = self.asked(*asked);
                self.emulator
                    .handle_requests(inputs(*now, &mut script), *asked, requests);
            }
            Step::Release { netns, now } => {
                let (queues, sas) = self.emulator.release(*netns, *now);
                if let Some(played) = self.workers.get_mut(&(*netns, SENDER)) {
                    played.queues.extend(queues);
                    played.sas.extend(sas);
                }
            }
        }
        String::new()
    }

    /// The daemon was killed, and another goes on with what it had kept. Another kernel's daemon would
    /// have kept the same.
    fn recall(&mut self, limits: Limits, kept: &[Kept<'_>]) -> String {
        self.workers.clear();
        let profile = self.emulator.profile();
        let records = kept.iter().map(|it| {
            let words = it.words.iter().map(|&word| AtomicU64::new(word));
            keep::Kept {
                record: it.record,
                image: &it.image,
                // The engine keeps its words as long as the process lives.
                words: Box::leak(words.collect::<Box<[_]>>()),
            }
        });
        let records: Vec<keep::Kept<'_>> = records.collect();
        match Emulator::recall(profile, limits, &records) {
            Ok(emulator) => {
                self.emulator = emulator;
                String::new()
            }
            Err(unreadable) => unreadable.to_string(),
        }
    }

    /// What packets up to that one have asked for.
    fn asked(&mut self, asked: Asked) -> Vec<Request> {
        let played = self.workers.get_mut(&(asked.netns, asked.worker));
        let mut requests = Vec::new();
        if let Some(played) = played {
            let mine = |(number, _): &(u64, Request)| *number <= asked.upto;
            while played.requests.front().is_some_and(mine)
                && let Some((_, request)) = played.requests.pop_front()
            {
                requests.push(request);
            }
        }
        requests
    }

    fn pass(
        &mut self,
        happened: &Happened<'_>,
        id: (NetnsId, u32),
        passage: &Passage,
        host: &[HostSaid],
        bytes: &[u8],
    ) -> (String, Vec<Answer<'static>>) {
        let script = Script::of(happened);
        if let Passage::Begin { cpu } = *passage {
            let before = self.workers.insert(id, Played::new(cpu, script));
            // What the thread before has asked for may be on its way.
            if let (Some(before), Some(played)) = (before, self.workers.get_mut(&id)) {
                played.requests = before.requests;
            }
            return Default::default();
        }
        let (Some(played), Some(engine)) = (self.workers.get_mut(&id), self.emulator.netns(id.0))
        else {
            return ("there is no such worker".into(), Vec::new());
        };
        played.script.set(script);
        for said in host {
            played.host.learn(*said);
        }
        let passed = played.pass(&engine, passage, bytes);
        let number = happened.number;
        let requests = played.worker.drain_requests();
        played
            .requests
            .extend(requests.map(|request| (number, request)));
        passed
    }
}

impl Played {
    fn pass(
        &mut self,
        engine: &Netns,
        passage: &Passage,
        bytes: &[u8],
    ) -> (String, Vec<Answer<'static>>) {
        let Self {
            worker,
            host,
            queues,
            sas,
            ..
        } = self;
        let mut answers = Vec::new();
        let mut sink = |packet: &mut PacketBuf, to: &Departure| {
            answers.push(Answer {
                to: To::Wire(to.mark),
                bytes: Cow::Owned(packet.to_vec()),
            });
        };
        let mut fate = Cow::Borrowed("");
        let mut packet = PacketBuf::with_capacity(bytes.len().max(MAX_PACKET));
        packet.fill(bytes);
        match *passage {
            Passage::Begin { .. } => {}
            Passage::Output {
                now,
                meta,
                offload,
                asks_mtu,
            } => {
                if asks_mtu {
                    worker.mtu(engine, &packet, &meta, host);
                }
                let verdict = match offload {
                    Some(offload) => worker.output_offloaded(
                        engine,
                        now,
                        &mut packet,
                        &meta,
                        offload,
                        host,
                        &mut sink,
                    ),
                    None => worker.output(engine, now, &mut packet, &meta, host, &mut sink),
                };
                fate = fate::of_departure(&verdict);
            }
            Passage::Input {
                now,
                mark,
                if_id,
                ifindex,
                no_policy,
            } => {
                let mut meta = InputMeta {
                    mark,
                    if_id,
                    ifindex,
                    no_policy,
                    ..InputMeta::default()
                };
                let received = worker.receive(engine, now, &mut packet, &mut meta, host);
                fate = fate::of_arrival(&received);
                deliver(&received, &packet, &mut answers);
            }
            Passage::Inner { now } => {
                let mut meta = InputMeta::default();
                while worker.next_inner(&mut packet, &mut meta) {
                    let received = worker.receive(engine, now, &mut packet, &mut meta, host);
                    deliver(&received, &packet, &mut answers);
                }
            }
            Passage::Retry { now } => {
                if let Some(queue) = queues.pop_front() {
                    worker.retry(engine, now, queue, host, &mut sink);
                }
            }
            Passage::Iptfs { now } => {
                if let Some(sa) = sas.pop_front() {
                    worker.run_iptfs(engine, now, sa, &mut sink);
                }
            }
        }
        (fate.into_owned(), answers)
    }
}

fn deliver(received: &Received, packet: &[u8], answers: &mut Vec<Answer<'static>>) {
    if matches!(received, Received::Local | Received::Forward) {
        answers.push(Answer {
            to: To::Host,
            bytes: packet.to_vec().into(),
        });
    }
}

/// The host, as far as it is known. What another kernel asks beyond that has no answer.
#[derive(Default)]
struct Said {
    generation: u64,
    routes: HashMap<RouteQuery, Result<PathInfo, i32>>,
    sources: HashMap<RouteQuery, Result<Address, i32>>,
    destinations: HashMap<(u16, Address), Option<Destination>>,
    owners: HashMap<Flow, Option<Owner>>,
}

impl Said {
    fn learn(&mut self, said: HostSaid) {
        match said {
            HostSaid::Generation(generation) => self.generation = generation,
            HostSaid::Route(query, route) => {
                self.routes.insert(query, route);
            }
            HostSaid::Source(query, source) => {
                self.sources.insert(query, source);
            }
            HostSaid::Destination(family, address, to) => {
                self.destinations.insert((family, address), to);
            }
            HostSaid::Owner(flow, owner) => {
                self.owners.insert(flow, owner);
            }
        }
    }
}

impl Routes for Said {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn route(&self, query: &RouteQuery) -> Result<PathInfo, i32> {
        let route = self.routes.get(query).copied();
        route.unwrap_or(Err(libc::ENETUNREACH))
    }

    fn source(&self, query: &RouteQuery) -> Result<Address, i32> {
        let source = self.sources.get(query).copied();
        source.unwrap_or(Err(libc::ENETUNREACH))
    }
}

impl Host for Said {
    fn destination(&self, family: u16, address: Address) -> Option<Destination> {
        self.destinations.get(&(family, address)).copied()?
    }

    fn owner(&self, flow: &Flow) -> Option<Owner> {
        self.owners.get(flow).copied()?
    }
}
