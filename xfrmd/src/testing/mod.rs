//! An instance in this process: NETLINK_XFRM for tests of programs that speak it, without root,
//! network namespaces, sockets or waiting.
//!
//! An [`Instance`] is a machine: it has network namespaces, in them netlink sockets that are queues,
//! a clock that stands until it is told to go on, and packets that are byte vectors. Same calls, same
//! seed: same answers, on any machine.
//!
//! ```
//! use std::time::Duration;
//! use dataplane::profile::V6_12;
//! use xfrm_proto::consts::*;
//! use xfrm_proto::reply::Writer;
//! use xfrm_proto::uapi::{Address, LifetimeCfg, UserSaInfo, XfrmId};
//! use xfrmd::testing::{Instance, Open};
//!
//! let mut linux = Instance::new(&V6_12).seed(1);
//! let netns = linux.create_netns();
//! let monitor = linux.open(netns, &Open::groups(1 << (group::EXPIRE - 1)))?;
//! let client = linux.open(netns, &Open::default())?;
//!
//! // An SA that lives for an hour, as the program under test would ask for it.
//! let sa = UserSaInfo {
//!     id: XfrmId { daddr: Address::v4(10, 0, 0, 2), spi: 0x100.into(), proto: IPPROTO_AH, ..Default::default() },
//!     saddr: Address::v4(10, 0, 0, 1),
//!     family: AF_INET,
//!     lft: LifetimeCfg { hard_add_expires_seconds: 3600, ..LifetimeCfg::UNLIMITED },
//!     ..Default::default()
//! };
//! let mut request = Vec::new();
//! let mut message = Writer::begin(&mut request, XFRM_MSG_NEWSA, NLM_F_REQUEST | NLM_F_ACK, 1, 0);
//! message.body(&sa);
//! let mut algorithm = b"hmac(sha1)".to_vec();
//! algorithm.resize(64, 0);
//! message.attr_parts(XFRMA_ALG_AUTH, &[&algorithm, &160_u32.to_ne_bytes(), &[7; 20]]);
//! message.end();
//!
//! assert_eq!(linux.send(client, &request)?.errno(), Some(0));
//! assert!(linux.recv(monitor, 65536).is_err());
//! linux.advance(Duration::from_secs(3600));
//! let event = linux.recv(monitor, 65536)?;
//! assert_eq!(event.groups, 1 << (group::EXPIRE - 1));
//! # Ok::<(), i32>(())
//! ```
//!
//! What an SA does to packets: see [`Station`]. What the machine does is what the release does that it
//! is made of ([`dataplane::Profile`]).

mod packets;
mod time;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use dataplane::netns::{Context, Limits};
use dataplane::spd::SocketKey;
use dataplane::{Netns, Profile, SeededEntropy};
use xfrm_proto::consts::*;
use xfrm_proto::extack::AckOptions;
use xfrm_proto::reply::messages;

use crate::emulator::{Destination, Emulator, Inputs, NetnsId, Peer};
use crate::recording::format::{Head, Source};
use crate::recording::reel::{ControlTape, Memory, Reel};

use packets::Road;
use time::now;

pub use packets::{Arrived, Departed, Station};

/// A positive errno.
pub type Errno = i32;

/// When every instance's machine was booted.
const EPOCH: u64 = 1_700_000_000;
/// How long ago that was at first.
const UPTIME: Duration = Duration::from_millis(100);
/// The first port id that is given to a socket that asks for none.
const FIRST_PORT: u32 = 1001;
/// A buffer that everything fits.
const LARGE_BUFFER: usize = 65536;

/// A netlink socket of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket(usize);

/// How a netlink socket is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its port id; 0 for one that nobody has.
    pub port: u32,
    /// `nl_groups` of its bind: bit 0 is group 1.
    pub groups: u32,
    /// `NETLINK_CAP_ACK`.
    pub cap_ack: bool,
    /// `NETLINK_EXT_ACK`.
    pub ext_ack: bool,
    /// Opened and used with `CAP_NET_ADMIN`.
    pub privileged: bool,
}

impl Default for Open {
    /// Privileged, with both acknowledgement options, in no group.
    fn default() -> Self {
        Self {
            port: 0,
            groups: 0,
            cap_ack: true,
            ext_ack: true,
            privileged: true,
        }
    }
}

impl Open {
    /// The default, in groups.
    #[must_use]
    pub fn groups(groups: u32) -> Self {
        Self {
            groups,
            ..Self::default()
        }
    }
}

/// What a receive call gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// As much of the datagram as fits the buffer.
    pub bytes: Vec<u8>,
    /// Length of the datagram.
    pub full_len: usize,
    /// `nl_groups` of the sender: 0 for a reply.
    pub groups: u32,
}

/// Messages that answer a request, whole dumps included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies(Vec<Vec<u8>>);

impl Replies {
    /// The errno of the acknowledgement (0 for success) or of a dump's end, if there was one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        self.0.iter().find_map(|message| {
            let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
            let errno = i32::from_ne_bytes(*message.get(NLMSG_HDRLEN..)?.first_chunk()?);
            matches!(kind, NLMSG_ERROR | NLMSG_DONE).then(|| errno.saturating_neg())
        })
    }
}

impl Deref for Replies {
    type Target = [Vec<u8>];

    fn deref(&self) -> &[Vec<u8>] {
        &self.0
    }
}

struct Queue {
    netns: NetnsId,
    options: Open,
    groups: u32,
    recv_bytes: usize,
    open: bool,
    datagrams: VecDeque<(Vec<u8>, u32)>,
}

impl Queue {
    fn peer(&self) -> Peer {
        Peer {
            netns: self.netns,
            port: self.options.port,
            options: AckOptions {
                cap_ack: self.options.cap_ack,
                ext_ack: self.options.ext_ack,
            },
            privileged: self.options.privileged,
            recv_bytes: self.recv_bytes,
        }
    }

    fn is_member(&self, group: u32) -> bool {
        self.open && self.groups & bit(group) != 0
    }
}

/// The bit of a group in a mask, 0 for one that there is not.
fn bit(group: u32) -> u32 {
    let shift = group.checked_sub(1);
    shift.and_then(|by| 1_u32.checked_shl(by)).unwrap_or(0)
}

/// A machine in this process. [The module](self) shows what it is for.
pub struct Instance {
    profile: &'static Profile,
    limits: Limits,
    emulator: Emulator,
    seed: u64,
    entropy: SeededEntropy,
    /// Since boot.
    clock: Duration,
    sockets: Vec<Queue>,
    roads: BTreeMap<NetnsId, Road>,
    recorder: Option<Recorder>,
}

/// A recording, and what it writes.
struct Recorder {
    reel: Arc<Reel>,
    bytes: Memory,
}

impl Instance {
    /// A machine that behaves as `profile` says, with nothing on it.
    #[must_use]
    pub fn new(profile: &'static Profile) -> Self {
        Self {
            profile,
            limits: Limits::default(),
            emulator: Emulator::new(profile, Limits::default()),
            seed: 1,
            entropy: SeededEntropy::new(1),
            clock: UPTIME,
            sockets: Vec::new(),
            roads: BTreeMap::new(),
            recorder: None,
        }
    }

    /// Draws its random numbers (SPIs, IVs) from another seed than 1. Before anything is done.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.entropy = SeededEntropy::new(seed);
        self
    }

    /// How much each namespace may hold; beyond it requests fail as without memory.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self.emulator.set_limits(limits);
        self
    }

    /// Records what it does, as `xfrmd run --record` would. Before anything is done, and after
    /// everything else that is said of it at its beginning.
    ///
    /// ```
    /// # use dataplane::profile::{V6_1, V7_2};
    /// use xfrmd::recording::{compare, read::Recording, replay::replay};
    /// use xfrmd::testing::{Instance, Open};
    ///
    /// let mut linux = Instance::new(&V7_2).recorded(true);
    /// let netns = linux.create_netns();
    /// let client = linux.open(netns, &Open::default())?;
    /// linux.send(client, &[16, 0, 0, 0, 0x1d, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
    ///
    /// // A file, which Wireshark opens.
    /// let file = linux.end_recording();
    /// let recording = Recording::read(&file).unwrap();
    /// assert!(recording.cut.is_none());
    /// let again = replay(&recording, &V7_2).unwrap();
    /// assert!(compare::with_replay(&recording, &again).is_empty());
    /// # Ok::<(), i32>(())
    /// ```
    #[must_use]
    pub fn recorded(mut self, keys: bool) -> Self {
        let head = Head {
            source: Source::Instance,
            kernel: self.profile.name.into(),
            keys,
            program: env!("CARGO_PKG_VERSION").into(),
            limits: self.limits,
            seed: Some(self.seed),
        };
        let bytes = Memory::default();
        let nanos = u64::try_from(self.wall().as_nanos()).unwrap_or(0);
        let reel = Reel::begin(&head, self.now().boot, nanos, Box::new(bytes.clone()));
        self.emulator
            .record(Box::new(ControlTape::new(Arc::clone(&reel))));
        self.recorder = Some(Recorder { reel, bytes });
        self
    }

    /// Ends the recording; the file, empty if nothing was recorded.
    pub fn end_recording(&mut self) -> Vec<u8> {
        self.emulator.stop_recording();
        self.stop_tapes();
        let Some(Recorder { reel, bytes }) = self.recorder.take() else {
            return Vec::new();
        };
        reel.end();
        bytes.take_bytes()
    }

    /// The release that it is.
    #[must_use]
    pub fn profile(&self) -> &'static Profile {
        self.profile
    }

    /// A fresh namespace, as after `unshare --net`.
    pub fn create_netns(&mut self) -> NetnsId {
        let id = self.emulator.create_netns();
        self.tell_listeners();
        id
    }

    /// Ends a namespace and all that is in it.
    pub fn destroy_netns(&mut self, netns: NetnsId) {
        for queue in self.sockets.iter_mut().filter(|it| it.netns == netns) {
            queue.open = false;
        }
        self.roads.remove(&netns);
        self.emulator.destroy_netns(netns);
        self.tell_listeners();
    }

    /// What is below all this, for what is not offered here.
    pub fn emulator(&mut self) -> &mut Emulator {
        &mut self.emulator
    }
}

/// Sockets.
impl Instance {
    /// Opens, binds and configures a netlink socket.
    ///
    /// # Errors
    /// EPERM for groups without `CAP_NET_ADMIN`, EADDRINUSE.
    pub fn open(&mut self, netns: NetnsId, options: &Open) -> Result<Socket, Errno> {
        if options.groups != 0 && !options.privileged {
            return Err(errno::EPERM);
        }
        let mut options = options.clone();
        let taken = |port| {
            let mut others = self.sockets.iter();
            others.any(|it| it.open && it.netns == netns && it.options.port == port)
        };
        if options.port == 0 {
            options.port = (FIRST_PORT..).find(|&port| !taken(port)).unwrap_or(0);
        } else if taken(options.port) {
            return Err(libc::EADDRINUSE);
        }
        self.sockets.push(Queue {
            netns,
            groups: options.groups,
            options,
            recv_bytes: 0,
            open: true,
            datagrams: VecDeque::new(),
        });
        self.tell_listeners();
        Ok(Socket(self.sockets.len() - 1))
    }

    /// Closes a socket.
    pub fn close(&mut self, socket: Socket) {
        let Some(queue) = self.sockets.get_mut(socket.0) else {
            return;
        };
        queue.open = false;
        let (netns, port) = (queue.netns, queue.options.port);
        self.emulator.close_socket(netns, port);
        self.tell_listeners();
    }

    /// A socket's port id.
    #[must_use]
    pub fn port(&self, socket: Socket) -> u32 {
        let queue = self.sockets.get(socket.0);
        queue.map_or(0, |queue| queue.options.port)
    }

    /// Joins a group, 1 to 32 (`NETLINK_ADD_MEMBERSHIP`), or leaves it.
    ///
    /// # Errors
    /// EPERM, EINVAL, EBADF.
    pub fn set_member(&mut self, socket: Socket, group: u32, member: bool) -> Result<(), Errno> {
        let queue = self.queue(socket)?;
        if !queue.options.privileged {
            return Err(errno::EPERM);
        }
        let bit = bit(group);
        if bit == 0 {
            return Err(errno::EINVAL);
        }
        queue.groups = if member {
            queue.groups | bit
        } else {
            queue.groups & !bit
        };
        self.tell_listeners();
        Ok(())
    }

    /// Sends a datagram; the replies, all of a dump's included. Events wait in their sockets, and
    /// in this one what it is a member for.
    ///
    /// # Errors
    /// EBADF; ENODATA for nothing.
    pub fn send(&mut self, socket: Socket, datagram: &[u8]) -> Result<Replies, Errno> {
        self.post(socket, datagram)?;
        let mut events = VecDeque::new();
        let mut replies = Replies::default();
        while let Ok(received) = self.recv(socket, LARGE_BUFFER) {
            if received.groups == 0 {
                let whole = messages(&received.bytes).map(|(_, message)| message.to_vec());
                replies.0.extend(whole);
            } else {
                events.push_back((received.bytes, received.groups));
            }
        }
        self.queue(socket)?.datagrams = events;
        Ok(replies)
    }

    /// Sends a datagram; what comes waits in the sockets.
    ///
    /// # Errors
    /// EBADF; ENODATA for nothing.
    pub fn post(&mut self, socket: Socket, datagram: &[u8]) -> Result<(), Errno> {
        let peer = self.queue(socket)?.peer();
        if datagram.is_empty() {
            return Err(errno::ENODATA);
        }
        let inputs = Inputs {
            now: now(self.clock),
            entropy: &mut self.entropy,
        };
        self.emulator.handle_datagram(inputs, peer, datagram);
        self.deliver();
        Ok(())
    }

    /// Receives a datagram into a buffer of `buffer_bytes` without waiting; the next chunk of a
    /// dump is made by that, as on Linux.
    ///
    /// # Errors
    /// EBADF; EAGAIN when there is nothing.
    pub fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Result<Received, Errno> {
        let queue = self.queue(socket)?;
        let (mut bytes, groups) = queue.datagrams.pop_front().ok_or(errno::EAGAIN)?;
        queue.recv_bytes = queue.recv_bytes.max(buffer_bytes);
        let full_len = bytes.len();
        bytes.truncate(buffer_bytes);
        let peer = queue.peer();
        self.emulator.handle_recv(peer);
        self.deliver();
        Ok(Received {
            bytes,
            full_len,
            groups,
        })
    }

    /// Whether a dump of that socket is under way.
    #[must_use]
    pub fn is_dumping(&self, socket: Socket) -> bool {
        let queue = self.sockets.get(socket.0);
        queue.is_some_and(|queue| self.emulator.is_dumping(queue.netns, queue.options.port))
    }

    /// `setsockopt` of `IP_XFRM_POLICY` (`option_family` AF_INET) or `IPV6_XFRM_POLICY` (AF_INET6)
    /// on another socket, of `family`; `None` takes its policies away, as does closing it.
    ///
    /// # Errors
    /// What `setsockopt` says.
    pub fn set_socket_policy(
        &mut self,
        netns: NetnsId,
        socket: SocketKey,
        [family, option_family]: [u16; 2],
        value: Option<&[u8]>,
    ) -> Result<(), Errno> {
        let now = now(self.clock);
        self.emulator
            .set_socket_policy(now, netns, socket, family, option_family, value)
    }

    fn queue(&mut self, socket: Socket) -> Result<&mut Queue, Errno> {
        let queue = self.sockets.get_mut(socket.0);
        queue.filter(|queue| queue.open).ok_or(libc::EBADF)
    }

    /// Tells the emulator who listens; after it was replaced by another, too.
    pub fn tell_listeners(&mut self) {
        let namespaces = self.emulator.namespaces();
        for group in 1..=32 {
            let members = self.sockets.iter().filter(|queue| queue.is_member(group));
            let count = u32::try_from(members.count()).unwrap_or(u32::MAX);
            for &netns in &namespaces {
                self.emulator.set_listeners(netns, group, count);
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(datagram) = self.emulator.poll_datagram() {
            let netns = datagram.netns;
            let here = self.sockets.iter_mut();
            for queue in here.filter(|queue| queue.open && queue.netns == netns) {
                let groups = match datagram.to {
                    Destination::Port(port) if port == queue.options.port => 0,
                    Destination::Group(group) if queue.is_member(group) => bit(group),
                    _ => continue,
                };
                queue.datagrams.push_back((datagram.bytes.to_vec(), groups));
            }
        }
    }
}

/// Settings, counters and the engine.
impl Instance {
    /// Sets `net.core.NAME`.
    ///
    /// # Errors
    /// ENOENT.
    pub fn set_sysctl(&mut self, netns: NetnsId, name: &str, value: u32) -> Result<(), Errno> {
        let set = |netns: &mut Netns| {
            let sysctls = &mut netns.sysctls;
            match name {
                "xfrm_aevent_etime" => sysctls.aevent_etime = value,
                "xfrm_aevent_rseqth" => sysctls.aevent_rseqth = value,
                "xfrm_larval_drop" => sysctls.larval_drop = value.cast_signed(),
                "xfrm_acq_expires" => sysctls.acq_expires = value,
                _ => return Err(errno::ENOENT),
            }
            Ok(())
        };
        let changed = self.emulator.change(netns, set);
        changed.unwrap_or(Err(errno::ENOENT))
    }

    /// `/proc/net/xfrm_stat`: names and values.
    #[must_use]
    pub fn xfrm_stat(&self, netns: NetnsId) -> Vec<(String, u64)> {
        let netns = self.emulator.netns(netns);
        netns.map_or_else(Vec::new, |it| it.mib.rows(it.profile).collect())
    }

    /// One counter of it, 0 for one that this release has not.
    #[must_use]
    pub fn counter(&self, netns: NetnsId, name: &str) -> u64 {
        let rows = self.xfrm_stat(netns);
        let row = rows.iter().find(|row| row.0 == name);
        row.map_or(0, |row| row.1)
    }

    /// Does something with a namespace's engine, as packets do, and delivers what that causes.
    ///
    /// # Errors
    /// ENOENT without such a namespace.
    pub fn with_packets<T>(
        &mut self,
        netns: NetnsId,
        act: impl FnOnce(&mut Netns, &mut Context<'_>) -> T,
    ) -> Result<T, Errno> {
        let inputs = Inputs {
            now: now(self.clock),
            entropy: &mut self.entropy,
        };
        let done = self.emulator.with_packets(inputs, netns, act);
        self.deliver();
        done.ok_or(errno::ENOENT)
    }
}

#[cfg(test)]
pub(crate) mod tests;
