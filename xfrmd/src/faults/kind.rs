//! The kinds of faults.
//!
//! [`KINDS`] and [`KEYS`] are the only lists: the parser is made of them, and so are the tables of
//! `docs/faults.md` ([`vocabulary`]).

use std::fmt::Write as _;

use dataplane::Profile;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

use super::key::{Draft, KEYS};

/// Where something can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A client's request, and what answers it.
    Request,
    /// A request that begins a dump.
    Dump,
    /// An event.
    Event,
    /// A protected packet, on the wire's side of its SAs.
    Packet,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The request fails.
    Error {
        /// Positive.
        errno: i32,
        /// What an extended acknowledgement says.
        extack: Option<String>,
        /// It has been done all the same.
        after: bool,
    },
    /// The request fails as where the kernel finds no memory for it.
    NoMemory,
    /// Nothing of the answer arrives.
    ReplyLost,
    /// The answer arrives so many nanoseconds later.
    ReplyLate(u64),
    /// The answer found no room: it is lost, and the next receive fails with ENOBUFS.
    Overrun,
    /// Nobody is served for so many nanoseconds.
    Pause(u64),
    /// The daemon is killed.
    Crash {
        /// What was asked for has been done.
        after: bool,
    },
    /// Messages say that what is dumped has changed meanwhile.
    DumpInterrupted {
        /// From this chunk on.
        chunk: u32,
    },
    /// The rest never comes, nor an end.
    DumpCut {
        /// From this chunk on.
        chunk: u32,
    },
    /// The dump ends early, with an error.
    DumpError {
        /// In place of this chunk.
        chunk: u32,
        /// Positive.
        errno: i32,
        /// What an extended acknowledgement says.
        extack: Option<String>,
    },
    /// Nobody hears it.
    EventLost,
    /// It is heard twice.
    EventTwice,
    /// It is heard so many nanoseconds later.
    EventLate(u64),
    /// It is heard after the next one.
    EventSwapped,
    /// It found no room at any listener: each has ENOBUFS from its next receive.
    EventOverrun,
    /// It does not arrive.
    PacketLost,
    /// It arrives twice.
    PacketTwice,
    /// It arrives behind the next one.
    PacketSwapped,
    /// One bit behind the sequence number is another.
    PacketCorrupt,
    /// It arrives so many nanoseconds later.
    PacketLate(u64),
    /// It is too long, and nobody says so.
    PacketTooBig,
}

impl Effect {
    /// Its kind's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Error { .. } => "netlink.error",
            Self::NoMemory => "netlink.no-memory",
            Self::ReplyLost => "netlink.reply-lost",
            Self::ReplyLate(_) => "netlink.reply-late",
            Self::Overrun => "netlink.overrun",
            Self::DumpInterrupted { .. } => "netlink.dump-interrupted",
            Self::DumpCut { .. } => "netlink.dump-cut",
            Self::DumpError { .. } => "netlink.dump-error",
            Self::EventLost => "netlink.event-lost",
            Self::EventTwice => "netlink.event-twice",
            Self::EventLate(_) => "netlink.event-late",
            Self::EventSwapped => "netlink.event-swapped",
            Self::EventOverrun => "netlink.event-overrun",
            Self::PacketLost => "packet.lost",
            Self::PacketTwice => "packet.twice",
            Self::PacketSwapped => "packet.swapped",
            Self::PacketCorrupt => "packet.corrupt",
            Self::PacketLate(_) => "packet.late",
            Self::PacketTooBig => "packet.too-big",
            Self::Pause(_) => "daemon.pause",
            Self::Crash { .. } => "daemon.crash",
        }
    }

    /// Where it happens.
    #[must_use]
    pub const fn place(&self) -> Place {
        match self {
            Self::Error { .. }
            | Self::NoMemory
            | Self::ReplyLost
            | Self::ReplyLate(_)
            | Self::Overrun
            | Self::Pause(_)
            | Self::Crash { .. } => Place::Request,
            Self::DumpInterrupted { .. } | Self::DumpCut { .. } | Self::DumpError { .. } => {
                Place::Dump
            }
            Self::EventLost
            | Self::EventTwice
            | Self::EventLate(_)
            | Self::EventSwapped
            | Self::EventOverrun => Place::Event,
            Self::PacketLost
            | Self::PacketTwice
            | Self::PacketSwapped
            | Self::PacketCorrupt
            | Self::PacketLate(_)
            | Self::PacketTooBig => Place::Packet,
        }
    }

    /// Whether it can happen to a request of that type.
    pub(super) fn concerns(&self, message: u16) -> bool {
        *self != Self::NoMemory || needs_memory(message)
    }
}

/// Requests that can fail for want of memory.
fn needs_memory(message: u16) -> bool {
    matches!(
        message,
        XFRM_MSG_NEWSA
            | XFRM_MSG_UPDSA
            | XFRM_MSG_GETSA
            | XFRM_MSG_NEWPOLICY
            | XFRM_MSG_UPDPOLICY
            | XFRM_MSG_GETPOLICY
            | XFRM_MSG_ALLOCSPI
            | XFRM_MSG_ACQUIRE
            | XFRM_MSG_GETAE
            | XFRM_MSG_GETSADINFO
            | XFRM_MSG_GETSPDINFO
    )
}

/// What Linux answers when it finds no memory for such a request.
///
/// QUIRK: an_spi_without_memory_is_not_found. An ALLOCSPI for which no larval SA can be made fails
/// with ENOENT, as if there were none of that number (`net/xfrm/xfrm_user.c xfrm_alloc_userspi`).
#[must_use]
pub fn no_memory(message: u16, profile: &Profile) -> XfrmError {
    match message {
        XFRM_MSG_ALLOCSPI => profile.late_error(errno::ENOENT, "Target ACQUIRE not found"),
        _ => XfrmError::new(errno::ENOMEM),
    }
}

/// A kind of fault.
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// Where.
    pub place: Place,
    /// Keys of its own; those with ! must be there.
    keys: &'static [&'static str],
    effect: fn(&Draft) -> Effect,
}

impl Kind {
    /// One by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// Keys that it can have.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        let common: &[&str] = match self.place {
            Place::Packet => &["direction", "spi"],
            Place::Dump => &["message"],
            Place::Request | Place::Event => &["message", "spi", "dst", "reqid"],
        };
        let own = self.keys.iter().map(|key| key.trim_start_matches('!'));
        own.chain(common.iter().copied())
            .chain(["name", "nth", "every", "probability", "times"])
    }

    /// Keys that it must have.
    pub fn needs(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().filter_map(|key| key.strip_prefix('!'))
    }

    /// What happens, as it was said.
    pub(super) fn effect(&self, draft: &Draft) -> Effect {
        (self.effect)(draft)
    }
}

/// Every kind.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "netlink.error",
        about: "the request is not done, and its acknowledgement has this errno; with `when = \"after\"` \
                it has been done all the same",
        place: Place::Request,
        keys: &["!errno", "extack", "when"],
        effect: |draft| Effect::Error {
            errno: draft.errno,
            extack: draft.extack.clone(),
            after: draft.after,
        },
    },
    Kind {
        name: "netlink.no-memory",
        about: "the request fails as on Linux where an allocation does: ENOMEM, but ENOENT for ALLOCSPI",
        place: Place::Request,
        keys: &[],
        effect: |_| Effect::NoMemory,
    },
    Kind {
        name: "netlink.reply-lost",
        about: "the request is done, and nothing that answers it arrives",
        place: Place::Request,
        keys: &[],
        effect: |_| Effect::ReplyLost,
    },
    Kind {
        name: "netlink.reply-late",
        about: "the request is done at once, and its answer arrives later",
        place: Place::Request,
        keys: &["!delay"],
        effect: |draft| Effect::ReplyLate(draft.nanos),
    },
    Kind {
        name: "netlink.overrun",
        about: "the request is done, its answer finds no room: the next receive fails with ENOBUFS",
        place: Place::Request,
        keys: &[],
        effect: |_| Effect::Overrun,
    },
    Kind {
        name: "netlink.dump-interrupted",
        about: "messages of the dump have NLM_F_DUMP_INTR, from this chunk on (Linux's XFRM never sets it)",
        place: Place::Dump,
        keys: &["chunk"],
        effect: |draft| Effect::DumpInterrupted {
            chunk: draft.chunk.max(1),
        },
    },
    Kind {
        name: "netlink.dump-cut",
        about: "from this chunk on nothing more comes, not even NLMSG_DONE",
        place: Place::Dump,
        keys: &["chunk"],
        effect: |draft| Effect::DumpCut {
            chunk: draft.chunk.max(1),
        },
    },
    Kind {
        name: "netlink.dump-error",
        about: "in place of this chunk comes an NLMSG_DONE with an errno",
        place: Place::Dump,
        keys: &["!errno", "extack", "chunk"],
        effect: |draft| Effect::DumpError {
            chunk: draft.chunk.max(1),
            errno: draft.errno,
            extack: draft.extack.clone(),
        },
    },
    Kind {
        name: "netlink.event-lost",
        about: "no listener hears the event",
        place: Place::Event,
        keys: &[],
        effect: |_| Effect::EventLost,
    },
    Kind {
        name: "netlink.event-twice",
        about: "every listener hears the event twice",
        place: Place::Event,
        keys: &[],
        effect: |_| Effect::EventTwice,
    },
    Kind {
        name: "netlink.event-late",
        about: "the event is heard later, behind others",
        place: Place::Event,
        keys: &["!delay"],
        effect: |draft| Effect::EventLate(draft.nanos),
    },
    Kind {
        name: "netlink.event-swapped",
        about: "the event is heard behind the next one, or after a second without one",
        place: Place::Event,
        keys: &[],
        effect: |_| Effect::EventSwapped,
    },
    Kind {
        name: "netlink.event-overrun",
        about: "the event finds no room: each listener's next receive fails with ENOBUFS",
        place: Place::Event,
        keys: &[],
        effect: |_| Effect::EventOverrun,
    },
    Kind {
        name: "packet.lost",
        about: "the packet is lost on the wire",
        place: Place::Packet,
        keys: &[],
        effect: |_| Effect::PacketLost,
    },
    Kind {
        name: "packet.twice",
        about: "the packet arrives twice",
        place: Place::Packet,
        keys: &[],
        effect: |_| Effect::PacketTwice,
    },
    Kind {
        name: "packet.swapped",
        about: "the packet arrives behind the next one, or after 100 ms without one",
        place: Place::Packet,
        keys: &[],
        effect: |_| Effect::PacketSwapped,
    },
    Kind {
        name: "packet.corrupt",
        about: "one bit of the packet, behind its sequence number, arrives as another",
        place: Place::Packet,
        keys: &[],
        effect: |_| Effect::PacketCorrupt,
    },
    Kind {
        name: "packet.late",
        about: "the packet arrives later, behind others",
        place: Place::Packet,
        keys: &["!delay"],
        effect: |draft| Effect::PacketLate(draft.nanos),
    },
    Kind {
        name: "packet.too-big",
        about: "packets that are longer than this are lost, and nobody says so",
        place: Place::Packet,
        keys: &["!mtu"],
        effect: |_| Effect::PacketTooBig,
    },
    Kind {
        name: "daemon.pause",
        about: "no request is served for that long, from this one on; packets go on",
        place: Place::Request,
        keys: &["!delay"],
        effect: |draft| Effect::Pause(draft.nanos),
    },
    Kind {
        name: "daemon.crash",
        about: "the daemon is killed, and another takes its place: before the request is done, or with \
                `when = \"after\"` when it is done and nobody has been told",
        place: Place::Request,
        keys: &["when"],
        effect: |draft| Effect::Crash { after: draft.after },
    },
];

/// The two tables, as `docs/faults.md` has them.
#[must_use]
pub fn vocabulary() -> String {
    let mut out = String::from("| kind | what happens | keys of its own |\n|---|---|---|\n");
    for kind in KINDS {
        let own: Vec<String> = kind
            .keys
            .iter()
            .map(|key| match key.strip_prefix('!') {
                Some(key) => format!("`{key}`"),
                None => format!("[`{key}`]"),
            })
            .collect();
        let _ = writeln!(
            out,
            "| `{}` | {} | {} |",
            kind.name,
            kind.about,
            own.join(", ")
        );
    }
    out += "\n| key | value | what it means |\n|---|---|---|\n";
    for key in KEYS {
        let _ = writeln!(out, "| `{}` | {} | {} |", key.name, key.value, key.about);
    }
    out
}
