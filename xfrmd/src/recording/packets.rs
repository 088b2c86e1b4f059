//! A packet thread's part of a recording.
//!
//! Everything goes to a buffer of the thread's own, once, and that goes to the writer as a whole
//! ([`PacketTape::flush`]). Numbers are drawn while the thread has the engine, so that a request comes
//! wholly before a packet or after it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataplane::Entropy;
use dataplane::keep::Writer;
use dataplane::path::{Destination, Host, Owner, PathInfo, RouteQuery, Routes};
use dataplane::spd::Flow;
use xfrm_proto::uapi::Address;

use super::format::{
    ANSWER, HAPPENED, HostSaid, INNER, OUTER, OWN, Passage, To, host_said, write_answer,
    write_passage,
};
use super::pcapng::{Block, COOKED_BYTES, EPB_FLAGS, EPB_PACKETID, OPT_COMMENT, packet_header};
use super::reel::Reel;
use crate::emulator::NetnsId;

/// Of a packet, where its payload is not wanted.
const HEADERS_BYTES: usize = 128;
/// Of `epb_flags`.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// What the host said is remembered up to here, so that it is written once.
const MOST_REMEMBERED: usize = 1 << 16;
/// A buffer that is larger is handed over before it is time.
const ENOUGH_BYTES: usize = 256 << 10;

/// What a thread's packets are told to.
pub struct PacketTape {
    reel: Arc<Reel>,
    netns: NetnsId,
    worker: u32,
    drawn: Drawn,
    state: RefCell<State>,
}

type Drawn = Arc<Mutex<Vec<u64>>>;

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// Blocks of answers to what is open.
    answers: Vec<u8>,
    option: Vec<u8>,
    open: Option<Open>,
    remembered: HashMap<Question, HostSaid, foldhash::fast::RandomState>,
    /// What the host has said since the last passage.
    said: Vec<u8>,
    said_count: u64,
    last: u64,
}

/// A passage under way.
struct Open {
    number: u64,
    passage: Passage,
    nanos: u64,
    /// Where its block begins.
    start: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    Generation,
    Route(RouteQuery),
    Source(RouteQuery),
    Destination(u16, Address),
    Owner(Flow),
}

/// The random numbers of a worker, noted.
struct Noted {
    source: Box<dyn Entropy + Send>,
    drawn: Drawn,
}

fn lock(drawn: &Drawn) -> MutexGuard<'_, Vec<u64>> {
    drawn.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entropy for Noted {
    fn u64(&mut self) -> u64 {
        let number = self.source.u64();
        lock(&self.drawn).push(number);
        number
    }
}

impl PacketTape {
    /// For the worker of that number of a namespace.
    #[must_use]
    pub fn new(reel: Arc<Reel>, netns: NetnsId, worker: u32) -> Self {
        Self {
            reel,
            netns,
            worker,
            drawn: Drawn::default(),
            state: RefCell::default(),
        }
    }

    /// A source of random numbers for the worker, of which is noted what is drawn.
    #[must_use]
    pub fn entropy(&self, source: Box<dyn Entropy + Send>) -> Box<dyn Entropy + Send> {
        Box::new(Noted {
            source,
            drawn: Arc::clone(&self.drawn),
        })
    }

    /// The number of the last passage.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.state.borrow().last
    }

    /// Something begins, with a packet or without.
    pub fn begin(&self, passage: Passage, packet: &[u8]) {
        let number = self.reel.number();
        let nanos = passage.now().map_or(0, |now| self.reel.nanos(now.boot));
        let state = &mut *self.state.borrow_mut();
        let start = state.buffer.len();
        let interface = match passage {
            Passage::Output { .. } => Some((INNER, true)),
            Passage::Input { .. } => Some((OUTER, false)),
            _ => None,
        };
        match interface {
            Some((interface, leaves)) => {
                self.packet(&mut state.buffer, (interface, leaves), nanos, packet);
            }
            None => {
                Block::begin(&mut state.buffer, OWN);
            }
        }
        state.last = number;
        state.open = Some(Open {
            number,
            passage,
            nanos,
            start,
        });
    }

    /// It has become this, among others.
    pub fn answer(&self, to: To, packet: &[u8]) {
        let state = &mut *self.state.borrow_mut();
        let Some(open) = &state.open else { return };
        state.option.clear();
        write_answer(&mut state.option, open.number, to);
        let (interface, leaves) = match to {
            To::Wire(_) => (OUTER, true),
            To::Host | To::Client(..) => (INNER, false),
        };
        let way = (interface, leaves);
        let mut block = self.packet(&mut state.answers, way, open.nanos, packet);
        let direction = if leaves { OUTBOUND } else { INBOUND };
        block.option(EPB_FLAGS, &direction.to_ne_bytes());
        block.option(EPB_PACKETID, &open.number.to_ne_bytes());
        block.option(ANSWER, &state.option);
        block.end();
    }

    /// Begins a packet's block. Without keys it cannot be replayed: only its headers are wanted then.
    fn packet<'a>(
        &self,
        out: &'a mut Vec<u8>,
        (interface, leaves): (u32, bool),
        nanos: u64,
        packet: &[u8],
    ) -> Block<'a> {
        let most = if self.reel.has_keys() {
            packet.len()
        } else {
            HEADERS_BYTES.min(packet.len())
        };
        let lens = [most, packet.len()].map(|len| COOKED_BYTES + len);
        let mut block = Block::packet(out, interface, nanos, lens);
        block.put(&packet_header(leaves, packet));
        block.put(packet.get(..most).unwrap_or_default());
        block.pad();
        block
    }

    /// It ends so; nothing for what went well.
    pub fn end(&self, fate: &str) {
        let state = &mut *self.state.borrow_mut();
        let Some(open) = state.open.take() else {
            return;
        };
        state.option.clear();
        let mut drawn = lock(&self.drawn);
        write_passage(
            &mut state.option,
            (open.number, self.netns, self.worker),
            &open.passage,
            (state.said_count, &state.said),
            &drawn,
            fate,
        );
        drawn.clear();
        drop(drawn);
        state.said.clear();
        state.said_count = 0;
        let mut block = Block::resume(&mut state.buffer, open.start);
        let direction = match open.passage {
            Passage::Output { .. } => Some(OUTBOUND),
            Passage::Input { .. } => Some(INBOUND),
            _ => None,
        };
        if !fate.is_empty() {
            block.option(OPT_COMMENT, fate.as_bytes());
        }
        if let Some(direction) = direction {
            block.option(EPB_FLAGS, &direction.to_ne_bytes());
            block.option(EPB_PACKETID, &open.number.to_ne_bytes());
        }
        block.option(HAPPENED, &state.option);
        block.end();
        state.buffer.append(&mut state.answers);
        if state.buffer.len() > ENOUGH_BYTES {
            self.hand_over(state);
        }
    }

    /// Something that is over as soon as it has begun.
    pub fn note(&self, passage: Passage) {
        self.begin(passage, &[]);
        self.end("");
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        self.hand_over(&mut self.state.borrow_mut());
    }

    fn hand_over(&self, state: &mut State) {
        if !state.buffer.is_empty() {
            // What is lost is missing by its numbers.
            self.reel.sink().take(&state.buffer, false);
            state.buffer.clear();
        }
    }

    /// The host, of which is noted what it says.
    pub const fn host<'a, H>(&'a self, host: &'a H) -> Heard<'a, H> {
        Heard { tape: self, host }
    }

    fn hear(&self, question: Question, said: HostSaid) {
        let state = &mut *self.state.borrow_mut();
        if state.remembered.get(&question) == Some(&said) {
            return;
        }
        if state.remembered.len() >= MOST_REMEMBERED {
            state.remembered.clear();
        }
        state.remembered.insert(question, said);
        host_said(&mut Writer::behind(&mut state.said), &said);
        state.said_count += 1;
    }
}

impl Drop for PacketTape {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A host that is listened to.
pub struct Heard<'a, H> {
    tape: &'a PacketTape,
    host: &'a H,
}

impl<H: Routes> Routes for Heard<'_, H> {
    fn generation(&self) -> u64 {
        let generation = self.host.generation();
        let said = HostSaid::Generation(generation);
        self.tape.hear(Question::Generation, said);
        generation
    }

    fn route(&self, query: &RouteQuery) -> Result<PathInfo, i32> {
        let route = self.host.route(query);
        let said = HostSaid::Route(*query, route);
        self.tape.hear(Question::Route(*query), said);
        route
    }

    fn source(&self, query: &RouteQuery) -> Result<Address, i32> {
        let source = self.host.source(query);
        let said = HostSaid::Source(*query, source);
        self.tape.hear(Question::Source(*query), said);
        source
    }
}

impl<H: Host> Host for Heard<'_, H> {
    fn destination(&self, family: u16, address: Address) -> Option<Destination> {
        let to = self.host.destination(family, address);
        let said = HostSaid::Destination(family, address, to);
        self.tape.hear(Question::Destination(family, address), said);
        to
    }

    fn owner(&self, flow: &Flow) -> Option<Owner> {
        let owner = self.host.owner(flow);
        self.tape
            .hear(Question::Owner(*flow), HostSaid::Owner(*flow, owner));
        owner
    }
}
