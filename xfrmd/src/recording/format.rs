//! What our options and blocks hold.
//!
//! A *happening* is a step of the control plane ([`Step`]) or of a packet ([`Passage`]). It is numbered;
//! the numbers say in which order things happened, blocks of several threads may be in another.
//! What has bytes of its own (a request, a packet) is a packet block with option [`HAPPENED`], anything
//! else a block [`OWN`] with that option. Answers follow as packet blocks with option [`ANSWER`].
//!
//! Numbers are written seven bits a byte (`dataplane::keep::Writer`). A change of anything here is a new
//! [`VERSION`].

mod code;
mod kept;
mod passage;

use std::borrow::Cow;

use dataplane::Now;
use dataplane::netns::Limits;
use dataplane::packet::segment::Offload;
use dataplane::path::{Destination, InputMeta, OutputMeta, Owner, PathInfo, RouteQuery};
use dataplane::spd::Flow;
use xfrm_proto::uapi::Address;

pub use code::decode_answer;
pub use kept::Kept;

pub(super) use code::{write_answer, write_passage, write_recall, write_step};
pub(super) use kept::KeptReader;
pub(super) use passage::host_said;

use crate::emulator::{self, NetnsId};
use crate::tape::Step;

/// Of this format.
pub const VERSION: u64 = 1;
/// Type of a block that only we know: "xfr", and the bit that leaves it to everybody.
pub const OWN: u32 = 0x8078_6672;
/// Option: what happened.
pub const HAPPENED: u16 = 0x8001;
/// Option: to which happening this is an answer.
pub const ANSWER: u16 = 0x8002;
/// Option, first of a file: what was recorded, and how.
pub const HEAD: u16 = 0x8003;
/// Option, last of a file: the number of the last happening.
pub const END: u16 = 0x8004;
/// Option: a record of the state that a daemon has found that goes on, or a part of one.
pub const KEPT: u16 = 0x8005;

/// By so many, numbers begin higher whenever a daemon goes on where another was killed.
pub const NUMBERS_EACH: u64 = 1_000_000_000;

/// Interfaces, by number.
pub const NETLINK: u32 = 0;
/// Packets as they are on the wire.
pub const OUTER: u32 = 1;
/// Packets as the host has them.
pub const INNER: u32 = 2;

/// Whose conversation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An instance of ours: all that it needs to happen again is there.
    Instance,
    /// A Linux kernel's: what could be seen.
    Kernel,
}

/// What a file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose conversation it is.
    pub source: Source,
    /// The release, as `--kernel` has it.
    pub kernel: String,
    /// Whether keys are in it.
    pub keys: bool,
    /// The version of xfrmd that wrote it.
    pub program: String,
    /// Table sizes.
    pub limits: Limits,
    /// Random numbers came from this seed, if from any.
    pub seed: Option<u64>,
}

impl Head {
    /// For people.
    #[must_use]
    pub fn comment(&self) -> String {
        let keys = if self.keys {
            "with keys"
        } else {
            "keys left out"
        };
        let seed = self
            .seed
            .map_or_else(String::new, |seed| format!(", seed {seed}"));
        let whose = match self.source {
            Source::Instance => "as Linux",
            Source::Kernel => "of Linux",
        };
        format!(
            "recording {whose} {}, {keys}{seed}, format {VERSION}",
            self.kernel
        )
    }
}

/// What a packet thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It begins, with a worker that knows nothing, for this CPU.
    Begin {
        /// As SA_PCPU numbers them.
        cpu: u32,
    },
    /// A packet is to leave.
    Output {
        /// When.
        now: Now,
        /// What comes with it.
        meta: OutputMeta,
        /// What the device left to be done.
        offload: Option<Offload>,
        /// The worker was asked for its MTU first.
        asks_mtu: bool,
    },
    /// A packet has come.
    Input {
        /// When.
        now: Now,
        /// Firewall mark.
        mark: u32,
        /// Interface id.
        if_id: u32,
        /// Interface.
        ifindex: i32,
        /// It asks no policies.
        no_policy: bool,
    },
    /// What has come out of IPTFS SAs goes on.
    Inner {
        /// When.
        now: Now,
    },
    /// The oldest queue that was released is looked up again.
    Retry {
        /// When.
        now: Now,
    },
    /// The oldest IPTFS SA that was released does what its timer is for.
    Iptfs {
        /// When.
        now: Now,
    },
}

impl Passage {
    /// A packet has come, with what comes with it.
    #[must_use]
    pub const fn input(now: Now, meta: &InputMeta) -> Self {
        Self::Input {
            now,
            mark: meta.mark,
            if_id: meta.if_id,
            ifindex: meta.ifindex,
            no_policy: meta.no_policy,
        }
    }

    /// When, if that matters.
    #[must_use]
    pub const fn now(&self) -> Option<Now> {
        match *self {
            Self::Begin { .. } => None,
            Self::Output { now, .. }
            | Self::Input { now, .. }
            | Self::Inner { now }
            | Self::Retry { now }
            | Self::Iptfs { now } => Some(now),
        }
    }
}

/// Something that the host said to a packet thread, until it says something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostSaid {
    /// [`Routes::generation`](dataplane::path::Routes::generation).
    Generation(u64),
    /// A route.
    Route(RouteQuery, Result<PathInfo, i32>),
    /// A source address.
    Source(RouteQuery, Result<Address, i32>),
    /// Where an address is.
    Destination(u16, Address, Option<Destination>),
    /// Whose packet it is.
    Owner(Flow, Option<Owner>),
}

/// One of a recording.
#[derive(Clone, Debug)]
pub enum What<'a> {
    /// The control plane's.
    Step(Step<'a>),
    /// A packet's.
    Passage {
        /// Where it passes.
        netns: NetnsId,
        /// Which worker.
        worker: u32,
        /// How.
        passage: Passage,
        /// What the host said meanwhile.
        host: Vec<HostSaid>,
        /// The packet.
        bytes: Cow<'a, [u8]>,
    },
    /// The daemon was killed, and another went on with what that had kept.
    Recall {
        /// Table sizes.
        limits: Limits,
        /// What it found.
        kept: Vec<Kept<'a>>,
    },
}

/// What follows the number in [`HAPPENED`].
#[derive(Clone, Debug)]
pub struct Happened<'a> {
    /// The place in the order, from 1.
    pub number: u64,
    /// What.
    pub what: What<'a>,
    /// Random numbers that were drawn.
    pub drawn: Cow<'a, [u64]>,
    /// What became of it, nothing for what went well; an errno as `errno 22`.
    pub fate: Cow<'a, str>,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// A netlink socket or group.
    Client(NetnsId, emulator::Destination),
    /// The wire, with a mark.
    Wire(u32),
    /// The host.
    Host,
}
