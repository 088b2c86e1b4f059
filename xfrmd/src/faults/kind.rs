//! The kinds of faults, and what can be said of each.
//!
//! [`KINDS`] and [`KEYS`] are the only lists: the parser is made of them, and so are the tables of
//! `docs/faults.md` ([`vocabulary`]).

use std::fmt::Write as _;

use dataplane::Profile;
use nix::errno::Errno;
use xfrm_proto::consts::*;
use xfrm_proto::extack::XfrmError;

use super::subject::{Direction, message};
use super::{Matching, Share};

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
/// QUIRK: an ALLOCSPI for which no larval SA can be made fails with ENOENT, as if there were none of
/// that number (`net/xfrm/xfrm_user.c xfrm_alloc_userspi`; test
/// `an_spi_without_memory_is_not_found`).
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

/// What has been said of a fault so far.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) matching: Matching,
    pub(super) share: Share,
    errno: i32,
    extack: Option<String>,
    after: bool,
    nanos: u64,
    chunk: u32,
}

/// Something that can be said of a fault.
pub struct Key {
    /// What it is called.
    pub name: &'static str,
    /// What its value is.
    pub value: &'static str,
    /// What it means.
    pub about: &'static str,
    set: fn(&mut Draft, &str) -> Option<()>,
}

impl Key {
    /// One by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Takes up what was said; `None` if it is no such value.
    pub(super) fn set(&self, draft: &mut Draft, value: &str) -> Option<()> {
        (self.set)(draft, value)
    }
}

/// Every key.
pub const KEYS: &[Key] = &[
    Key {
        name: "name",
        value: "a word",
        about: "how the fault is called in logs and for `xfrmd fault remove`; by default as its kind",
        set: |draft, text| {
            let is_word = !text.is_empty() && text.bytes().all(|it| it.is_ascii_graphic());
            draft.name = is_word.then(|| text.to_owned())?;
            Some(())
        },
    },
    Key {
        name: "message",
        value: "a message type such as NEWSA, or several with commas",
        about: "only messages of these types",
        set: |draft, text| {
            let types = text.split(',').map(|name| message(name.trim()));
            draft.matching.messages = types.collect::<Option<_>>()?;
            Some(())
        },
    },
    Key {
        name: "spi",
        value: "an SPI",
        about: "only what is about an SA of this SPI",
        set: |draft, text| {
            draft.matching.spi = Some(u32::try_from(number(text)?).ok()?);
            Some(())
        },
    },
    Key {
        name: "dst",
        value: "an address or prefix",
        about: "only what is about an SA or a policy for this destination",
        set: |draft, text| {
            draft.matching.dst = Some(text.parse().ok()?);
            Some(())
        },
    },
    Key {
        name: "reqid",
        value: "a number",
        about: "only what is about an SA or a policy of this request id",
        set: |draft, text| {
            draft.matching.reqid = Some(u32::try_from(number(text)?).ok()?);
            Some(())
        },
    },
    Key {
        name: "direction",
        value: "\"in\" or \"out\"",
        about: "only packets that have come, or only those that are sent",
        set: |draft, text| {
            draft.matching.direction = Some(match text {
                "in" => Direction::In,
                "out" => Direction::Out,
                _ => return None,
            });
            Some(())
        },
    },
    Key {
        name: "nth",
        value: "a number, 1 or more",
        about: "only the nth of what fits, and with `times` those behind it",
        set: |draft, text| {
            draft.share.nth = Some(positive(text)?);
            Some(())
        },
    },
    Key {
        name: "every",
        value: "a number, 1 or more",
        about: "each that many of what fits",
        set: |draft, text| {
            draft.share.every = Some(positive(text)?);
            Some(())
        },
    },
    Key {
        name: "probability",
        value: "a number from 0 to 1",
        about: "each of what fits with this probability, which the seed decides",
        set: |draft, text| {
            let probability = text.parse::<f64>().ok()?;
            draft.share.probability = (0.0..=1.0)
                .contains(&probability)
                .then_some(Some(probability))?;
            Some(())
        },
    },
    Key {
        name: "times",
        value: "a number, 1 or more",
        about: "at most so often",
        set: |draft, text| {
            draft.share.times = Some(positive(text)?);
            Some(())
        },
    },
    Key {
        name: "errno",
        value: "an errno such as ENOMEM",
        about: "what the error is",
        set: |draft, text| {
            let mut all = 1..=MOST_ERRNO;
            draft.errno = match text.parse() {
                Ok(errno) => all.contains(&errno).then_some(errno)?,
                Err(_) => all.find(|&errno| format!("{:?}", Errno::from_raw(errno)) == text)?,
            };
            Some(())
        },
    },
    Key {
        name: "extack",
        value: "a text",
        about: "what the error says to clients that want to know (NETLINK_EXT_ACK)",
        set: |draft, text| {
            draft.extack = Some(text.to_owned()).filter(|text| !text.contains('\0'));
            draft.extack.is_some().then_some(())
        },
    },
    Key {
        name: "when",
        value: "\"before\" or \"after\"",
        about: "whether the request has been done; by default before",
        set: |draft, text| {
            draft.after = match text {
                "before" => false,
                "after" => true,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "delay",
        value: "a time such as \"200ms\" or \"2s\"",
        about: "for how long",
        set: |draft, text| {
            draft.nanos = nanos(text)?;
            Some(())
        },
    },
    Key {
        name: "chunk",
        value: "a number, 1 or more",
        about: "which datagram of the dump, by default the first",
        set: |draft, text| {
            draft.chunk = u32::try_from(positive(text)?).ok()?;
            Some(())
        },
    },
    Key {
        name: "mtu",
        value: "a number of bytes",
        about: "with all headers",
        set: |draft, text| {
            draft.matching.longer_than = Some(usize::try_from(positive(text)?).ok()?);
            Some(())
        },
    },
];

/// `MAX_ERRNO` of what a client's libc knows by name.
const MOST_ERRNO: i32 = 133;

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn positive(text: &str) -> Option<u64> {
    number(text).filter(|&number| number > 0)
}

fn nanos(text: &str) -> Option<u64> {
    let unit = text.find(|it: char| it.is_ascii_alphabetic())?;
    let (count, unit) = text.split_at_checked(unit)?;
    let each = match unit {
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        _ => return None,
    };
    let nanos = count.trim().parse::<f64>().ok()? * each;
    // A day is more than any test waits.
    (0.0..=86400e9).contains(&nanos).then(|| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is within bounds"
        )]
        let nanos = nanos as u64;
        nanos
    })
}

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
