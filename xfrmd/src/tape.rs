//! What an emulator is asked, as data.
//!
//! A [`Tape`] hears each [`Step`] with the random numbers drawn for it and what was answered, while the
//! step's namespace is still held: whoever numbers steps here and packets under the engine's read
//! guard has both in the order in which they happened. The same steps with the same draws, given to a
//! fresh emulator, give the same answers.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use dataplane::netns::Limits;
use dataplane::spd::SocketKey;
use dataplane::sysctl::Sysctls;
use dataplane::{BootNanos, Entropy, Now};

use crate::emulator::{Datagram, NetnsId, Peer};
use crate::netlink::Outbox;

/// Hears what an emulator is asked.
pub trait Tape: Send {
    /// It was asked this. No packet passes that namespace meanwhile.
    fn hear(&mut self, step: &Step<'_>, heard: Heard<'_>);
}

/// Something that changes an emulator.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// [`create_netns`](crate::emulator::Emulator::create_netns).
    Create {
        /// What it was called.
        netns: NetnsId,
    },
    /// [`destroy_netns`](crate::emulator::Emulator::destroy_netns).
    Destroy {
        /// Which.
        netns: NetnsId,
    },
    /// [`set_limits`](crate::emulator::Emulator::set_limits).
    Limits(Limits),
    /// A datagram from a client.
    Request {
        /// When.
        now: Now,
        /// Who.
        peer: Peer,
        /// Its messages.
        bytes: Cow<'a, [u8]>,
    },
    /// A client that dumps has received a datagram.
    Pull {
        /// Who.
        peer: Peer,
    },
    /// A socket that dumps was closed.
    Close {
        /// Its namespace.
        netns: NetnsId,
        /// Its port.
        port: u32,
    },
    /// [`set_socket_policy`](crate::emulator::Emulator::set_socket_policy).
    SocketPolicy {
        /// When.
        now: Now,
        /// The socket's namespace.
        netns: NetnsId,
        /// It.
        socket: SocketKey,
        /// Its family.
        family: u16,
        /// The option's family.
        option_family: u16,
        /// The option's value.
        value: Option<Cow<'a, [u8]>>,
    },
    /// So many listen to a group.
    Listeners {
        /// Where the emulator was told so.
        netns: NetnsId,
        /// 1 to 32.
        group: u32,
        /// Of all namespaces.
        count: u32,
    },
    /// Settings have changed.
    Sysctls {
        /// Whose.
        netns: NetnsId,
        /// All of them.
        sysctls: Sysctls,
    },
    /// Timers that were due have run.
    Timers {
        /// When.
        now: Now,
        /// Whose.
        netns: NetnsId,
    },
    /// What packets had asked for was done.
    Inquiries {
        /// When.
        now: Now,
        /// What.
        asked: Asked,
    },
    /// What had waited long enough was given to a packet thread.
    Release {
        /// Whose.
        netns: NetnsId,
        /// When.
        now: BootNanos,
    },
}

/// What a worker's packets have asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where they pass.
    pub netns: NetnsId,
    /// Which of its workers.
    pub worker: u32,
    /// The number of the last packet that could ask, if packets are numbered.
    pub upto: u64,
}

/// What came of a step.
pub struct Heard<'a> {
    /// The random numbers that were drawn for it.
    pub drawn: &'a [u64],
    /// Why it failed, where a step can.
    pub errno: i32,
    answers: Option<(&'a Outbox, usize)>,
}

impl<'a> Heard<'a> {
    pub(crate) const fn nothing() -> Self {
        Self {
            drawn: &[],
            errno: 0,
            answers: None,
        }
    }

    pub(crate) fn errno(errno: Option<i32>) -> Self {
        Self {
            errno: errno.unwrap_or(0),
            ..Self::nothing()
        }
    }

    pub(crate) const fn answers(outbox: &'a Outbox, before: usize) -> Self {
        Self {
            answers: Some((outbox, before)),
            ..Self::nothing()
        }
    }

    /// The datagrams that it caused, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'a>> + use<'a> {
        let answers = self.answers.into_iter();
        answers.flat_map(|(outbox, before)| outbox.since(before))
    }
}

/// Random numbers of another source, noted if somebody wants to know.
pub(crate) struct Draws<'a> {
    source: &'a mut dyn Entropy,
    wanted: bool,
    drawn: Vec<u64>,
}

impl<'a> Draws<'a> {
    pub(crate) const fn new(source: &'a mut dyn Entropy, wanted: bool) -> Self {
        Self {
            source,
            wanted,
            drawn: Vec::new(),
        }
    }

    /// What came of a step, with what was drawn for it.
    pub(crate) fn heard<'o>(&'o self, outbox: &'o Outbox, before: usize) -> Heard<'o> {
        Heard {
            drawn: &self.drawn,
            ..Heard::answers(outbox, before)
        }
    }
}

impl Entropy for Draws<'_> {
    fn u64(&mut self) -> u64 {
        let number = self.source.u64();
        if self.wanted {
            self.drawn.push(number);
        }
        number
    }
}
