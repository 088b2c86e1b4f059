//! One network namespace's instance, as the driver sees it: the sockets that
//! it speaks from, and what it knows of the clients' sockets.
//!
//! A reply is queued into the client's socket from the first speaker, an event
//! into its group. Members whose membership the host refused get events one by
//! one from the second speaker, addressed to their port and the group, so that
//! they see the group they would have seen.
//!
//! A socket that has no room loses what comes, and learns it (ENOBUFS); but a
//! chunk of a dump waits for room, as it does on Linux, where it is not made
//! before.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use xfrm_proto::control::{EVENT_TAIL_BYTES, EVENTS_LOST};
use xfrmd::emulator::NetnsId;

use super::host;

/// The daemon's sockets in a namespace.
pub(crate) struct Speakers {
    reply: OwnedFd,
    event: OwnedFd,
    /// The port of the first.
    pub(crate) reply_port: u32,
    /// The port of the second.
    pub(crate) event_port: u32,
}

impl Speakers {
    /// Takes two sockets, after looking that they are what they should be.
    pub(crate) fn new(netns: u64, reply: OwnedFd, event: OwnedFd) -> io::Result<Self> {
        for fd in [&reply, &event] {
            if !host::is_usersock(fd.as_fd()) || host::netns_cookie(fd.as_fd())? != netns {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
        }
        let reply_port = host::port(reply.as_fd())?;
        let event_port = host::port(event.as_fd())?;
        if reply_port == 0 || event_port == 0 || reply_port == event_port {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Self {
            reply,
            event,
            reply_port,
            event_port,
        })
    }
}

impl Speakers {
    /// The first.
    pub(crate) fn reply(&self) -> BorrowedFd<'_> {
        self.reply.as_fd()
    }

    /// The second.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A socket that is a member of groups.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Member {
    /// Its port, 0 while it has none.
    pub(crate) port: u32,
    /// Groups that the host delivers.
    pub(crate) native: u32,
    /// Groups that we deliver.
    pub(crate) kept: u32,
    /// The connection that told us.
    pub(crate) owner: u64,
    /// It lost events and has not been told.
    overrun: bool,
}

/// A dump under way.
#[derive(Default)]
struct Reader {
    cookie: u64,
    waiting: VecDeque<Vec<u8>>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is queued, or nobody is there to get it.
    Done,
    /// The receiver has no room.
    NoRoom,
    /// There is no such socket.
    NoSocket,
}

/// An instance.
pub(crate) struct Instance {
    /// Its number in the emulator.
    pub(crate) id: NetnsId,
    /// The host's number of its namespace.
    pub(crate) netns: u64,
    /// Connections that use it.
    pub(crate) users: Vec<u64>,
    /// The namespace, while there are users, if the host let us have it.
    pub(crate) namespace: Option<OwnedFd>,
    /// Its sockets, while there are users.
    pub(crate) speakers: Option<Speakers>,
    members: HashMap<u64, Member, RandomState>,
    readers: HashMap<u32, Reader, RandomState>,
    /// The record of it that is kept.
    pub(crate) kept: Vec<u8>,
    /// What tells its events from those of other instances in the namespace.
    tail: Option<[u8; EVENT_TAIL_BYTES]>,
}

impl Instance {
    /// Without users or sockets.
    pub(crate) fn new(id: NetnsId, netns: u64, tail: Option<[u8; EVENT_TAIL_BYTES]>) -> Self {
        Self {
            tail,
            id,
            netns,
            users: Vec::new(),
            namespace: None,
            speakers: None,
            members: HashMap::default(),
            readers: HashMap::default(),
            kept: Vec::new(),
        }
    }

    /// How many sockets listen to each group.
    pub(crate) fn listeners(&self) -> [u32; 32] {
        let mut counts = [0; 32];
        for member in self.members.values() {
            for (bit, count) in counts.iter_mut().enumerate() {
                *count += (member.native | member.kept) >> bit & 1;
            }
        }
        counts
    }

    /// Groups that the host delivers to somebody here.
    pub(crate) fn native_groups(&self) -> u32 {
        self.members
            .values()
            .fold(0, |groups, member| groups | member.native)
    }

    /// Notes a socket's groups; the groups that we deliver to it.
    pub(crate) fn set_member(
        &mut self,
        cookie: u64,
        owner: u64,
        port: u32,
        native: u32,
        join: u32,
        leave: u32,
    ) -> u32 {
        let member = self.members.entry(cookie).or_default();
        member.owner = owner;
        member.native = native;
        member.kept = (member.kept | join) & !leave;
        if port != 0 {
            member.port = port;
        }
        let kept = member.kept;
        if native | kept == 0 {
            self.members.remove(&cookie);
        }
        kept
    }

    /// Notes members that nobody has told us of, by their ports.
    pub(crate) fn find_members(&mut self, found: &[(u32, u32)]) {
        for &(port, native) in found {
            if self.members.values().any(|member| member.port == port) {
                continue;
            }
            // Cookies count up from 1: those from above are free.
            let cookie = u64::MAX - u64::from(port);
            self.set_member(cookie, 0, port, native, 0, 0);
        }
    }

    /// Forgets members of a connection, but for ports that `alive` knows.
    pub(crate) fn drop_members(&mut self, owner: u64, alive: Option<&[(u32, u32)]>) -> bool {
        let before = self.members.len();
        self.members.retain(|_, member| {
            if member.owner != owner {
                return true;
            }
            member.owner = 0;
            alive.is_some_and(|alive| alive.iter().any(|&(port, _)| port == member.port))
        });
        self.members.len() != before
    }

    /// Whether the connection has members here.
    pub(crate) fn has_members_of(&self, owner: u64) -> bool {
        self.members.values().any(|member| member.owner == owner)
    }

    /// Whether anybody listens at all.
    pub(crate) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// The socket whose dump occupies a port, if that is another one than `cookie`.
    pub(crate) fn stale_reader(&mut self, port: u32, cookie: u64) -> bool {
        if self.readers.is_empty() {
            return false;
        }
        let stale = self
            .readers
            .get(&port)
            .is_some_and(|reader| reader.cookie != cookie);
        if stale {
            self.readers.remove(&port);
        }
        stale
    }

    /// Notes whether a socket reads a dump; whether it has to go on pulling.
    pub(crate) fn set_reader(&mut self, port: u32, cookie: u64, dumping: bool) -> bool {
        if dumping {
            self.readers.entry(port).or_default().cookie = cookie;
            return true;
        }
        if self.readers.is_empty() {
            return false;
        }
        let waits = self
            .readers
            .get(&port)
            .is_some_and(|reader| !reader.waiting.is_empty());
        if !waits {
            self.readers.remove(&port);
        }
        waits
    }

    /// Whether a socket reads a dump.
    pub(crate) fn is_reader(&self, port: u32) -> bool {
        self.readers.contains_key(&port)
    }

    /// Queues chunks that had to wait; whether none is left.
    pub(crate) fn flush_reader(&mut self, port: u32) -> bool {
        while let Some(chunk) = self
            .readers
            .get_mut(&port)
            .and_then(|reader| reader.waiting.pop_front())
        {
            if self.unicast(port, [&*chunk].into_iter()).1 == Delivery::NoRoom {
                if let Some(reader) = self.readers.get_mut(&port) {
                    reader.waiting.push_front(chunk);
                }
                return false;
            }
        }
        true
    }

    /// Keeps a chunk until there is room.
    pub(crate) fn hold(&mut self, port: u32, chunk: Vec<u8>) {
        self.readers
            .entry(port)
            .or_default()
            .waiting
            .push_back(chunk);
    }

    /// Whether chunks of a dump wait for room, behind which everything else must.
    pub(crate) fn holds(&self, port: u32) -> bool {
        !self.readers.is_empty()
            && self
                .readers
                .get(&port)
                .is_some_and(|reader| !reader.waiting.is_empty())
    }

    /// Queues datagrams for one socket: how many, and what became of the next.
    pub(crate) fn unicast<'a>(
        &self,
        port: u32,
        datagrams: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> (usize, Delivery) {
        let Some(speakers) = &self.speakers else {
            return (0, Delivery::Done);
        };
        let (sent, result) = host::send_netlink_all(speakers.reply.as_fd(), datagrams, port);
        (sent, outcome(result))
    }

    /// Queues an event for the members of a group; whether somebody has no room and must be told.
    ///
    /// The host delivers the groups of `native`, here and to sockets of other namespaces that want
    /// to hear this one.
    pub(crate) fn multicast(&mut self, group: u32, native: u32, bytes: &[u8]) -> bool {
        let Some(speakers) = &self.speakers else {
            return false;
        };
        let Some(mask) = group.checked_sub(1).and_then(|bit| 1_u32.checked_shl(bit)) else {
            return false;
        };
        let with_tail;
        let bytes = match &self.tail {
            None => bytes,
            Some(tail) => {
                with_tail = [bytes, tail].concat();
                &with_tail
            }
        };
        if native & mask != 0 {
            // The kernel delivers to the group, and then fails to find port 0.
            let _ = host::send_netlink(speakers.reply.as_fd(), bytes, 0, mask);
        }
        let event = speakers.event.as_fd();
        let mut lost = false;
        self.members.retain(|_, member| {
            if member.kept & mask == 0 || member.port == 0 {
                return true;
            }
            if member.overrun && !tell_overrun(event, member) {
                lost = true;
                return true;
            }
            match outcome(host::send_netlink(event, bytes, member.port, mask)) {
                Delivery::Done => true,
                Delivery::NoRoom => {
                    member.overrun = true;
                    lost = true;
                    true
                }
                Delivery::NoSocket => false,
            }
        });
        lost
    }

    /// Has every member of a group lose an event as if there were no room for it; whether somebody
    /// has yet to be told.
    pub(crate) fn lose_event(&mut self, group: u32) -> bool {
        let Some(mask) = group.checked_sub(1).and_then(|bit| 1_u32.checked_shl(bit)) else {
            return false;
        };
        let hears = |member: &&mut Member| (member.native | member.kept) & mask != 0;
        for member in self.members.values_mut().filter(hears) {
            member.overrun = member.port != 0;
        }
        self.tell_overruns()
    }

    /// Tells members that they lost events, as soon as there is room; whether some are left.
    pub(crate) fn tell_overruns(&mut self) -> bool {
        let Some(speakers) = &self.speakers else {
            return false;
        };
        let event = speakers.event.as_fd();
        let mut left = false;
        for member in self.members.values_mut().filter(|member| member.overrun) {
            left |= !tell_overrun(event, member);
        }
        left
    }
}

fn tell_overrun(event: BorrowedFd<'_>, member: &mut Member) -> bool {
    let told = host::send_netlink(event, &EVENTS_LOST, member.port, 0);
    member.overrun = outcome(told) == Delivery::NoRoom;
    !member.overrun
}

fn outcome(result: io::Result<()>) -> Delivery {
    match result.map_err(|error| error.raw_os_error()) {
        Ok(()) => Delivery::Done,
        Err(Some(libc::ECONNREFUSED)) => Delivery::NoSocket,
        Err(Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)) => Delivery::NoRoom,
        // A socket with a filter of its own that drops it, and what cannot happen.
        Err(_) => Delivery::Done,
    }
}
