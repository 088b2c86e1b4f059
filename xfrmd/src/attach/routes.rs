//! What the engine asks of the host's routes, remembered until something changes.
//!
//! The host tells of changed routes, addresses and links; then all is forgotten.
//!
//! MTUs are those of routes and links. What the host learns of the way to an
//! address is about plain packets too, which we answer with errors of our own:
//! if it counted here, in transport mode each error would make the next one
//! smaller. What routers say of packets of SAs is kept here for ten minutes.

use std::cell::{Cell, RefCell};
use std::hash::Hash;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use dataplane::BootNanos;
use dataplane::path::{Destination, Host, LearnedMtu, Owner, PathInfo, RouteQuery, Routes};
use dataplane::spd::{Flow, SocketKey};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockProtocol, recv};
use xfrm_proto::consts::{AF_INET6, IPPROTO_UDP, UDP_ENCAP_ESPINUDP};
use xfrm_proto::uapi::Address;

use super::BYPASS;
use super::netlink::{Messages, Socket, attrs};
use super::sockets::{OwnSocket, OwnSockets};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLMSG_ERROR: u16 = 2;
const RTN_LOCAL: u8 = 2;

/// Links, addresses and routes of both families.
const GROUPS: [i32; 5] = [1, 5, 7, 9, 11];
/// More is forgotten.
const MOST_REMEMBERED: usize = 1 << 16;
const DEFAULT_HOP_LIMIT: u8 = 64;
/// Only the entry that matches, without what was learned.
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// `net.ipv4.route.mtu_expires`.
const LEARNED_NANOS: u64 = 600_000_000_000;
/// `net.ipv4.route.min_pmtu`.
const LEAST_MTU_V4: u32 = 552;
/// No IPv6 link takes less.
pub(crate) const LEAST_MTU_V6: u32 = 1280;

/// A UDP socket that takes ESP out of what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EncapSocket {
    /// Its local port.
    pub(crate) port: u16,
    /// Itself, as its policies know it.
    pub(crate) key: SocketKey,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    is_local: bool,
    ifindex: i32,
    source: Address,
    path: PathInfo,
}

/// Family, destination, source or none, interface or none, mark.
type Key = (u16, Address, Address, i32, u32);
type Memory<K, V> = RefCell<HashMap<K, V, RandomState>>;

/// The routes of a namespace, for one thread.
#[derive(Debug)]
pub(crate) struct HostRoutes {
    asking: Socket,
    events: Socket,
    generation: Cell<u64>,
    routes: Memory<Key, Result<Found, i32>>,
    /// What was asked last.
    last: Cell<Option<(Key, Result<Found, i32>)>>,
    mtus: Memory<i32, u32>,
    learned: Memory<(u16, Address), (u32, BootNanos)>,
    encap: RefCell<Vec<EncapSocket>>,
    own: RefCell<OwnSockets>,
}

impl HostRoutes {
    /// Of the thread's namespace.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn open() -> io::Result<Self> {
        let events = Socket::open(SockProtocol::NetlinkRoute)?;
        for group in GROUPS {
            events.join(group)?;
        }
        Ok(Self {
            asking: Socket::open(SockProtocol::NetlinkRoute)?,
            events,
            generation: Cell::new(0),
            routes: Memory::default(),
            last: Cell::default(),
            mtus: Memory::default(),
            learned: Memory::default(),
            encap: RefCell::default(),
            own: RefCell::default(),
        })
    }

    /// Becomes readable when something has changed.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd().as_fd()
    }

    /// Forgets everything, and what the host told.
    pub(crate) fn forget(&self) {
        let mut waste = [0; 8192];
        let fd = self.events.fd().as_raw_fd();
        // ENOBUFS too tells that something has changed.
        while matches!(
            recv(fd, &mut waste, MsgFlags::MSG_DONTWAIT),
            Ok(_) | Err(Errno::ENOBUFS)
        ) {}
        self.generation.set(self.generation.get() + 1);
        self.routes.borrow_mut().clear();
        self.last.set(None);
        self.mtus.borrow_mut().clear();
    }

    /// Keeps what a router has said.
    pub(crate) fn learn(&self, learned: &LearnedMtu, now: BootNanos) {
        let least = if learned.family == AF_INET6 {
            LEAST_MTU_V6
        } else {
            LEAST_MTU_V4
        };
        let until = now.plus_nanos(LEARNED_NANOS);
        let key = (learned.family, learned.destination);
        remember(&self.learned, key, (learned.mtu.max(least), until));
        self.forget();
    }

    /// Forgets what was learned too long ago.
    pub(crate) fn expire(&self, now: BootNanos) {
        let before = self.learned.borrow().len();
        self.learned
            .borrow_mut()
            .retain(|_, (_, until)| *until > now);
        if self.learned.borrow().len() != before {
            self.forget();
        }
    }

    /// When [`HostRoutes::expire`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<BootNanos> {
        self.learned
            .borrow()
            .values()
            .map(|&(_, until)| until)
            .min()
    }

    /// Sockets that take ESP in UDP from now on, one a port.
    pub(crate) fn set_encap_sockets(&self, sockets: Vec<EncapSocket>) {
        self.encap.replace(sockets);
    }

    /// Sockets that have policies of their own from now on. In the thread's namespace.
    pub(crate) fn set_own_sockets(&self, sockets: Vec<OwnSocket>) {
        if let Err(error) = self.own.borrow_mut().set(sockets) {
            tracing::error!(%error, "sockets' own policies are not asked on input");
        }
    }

    /// The socket with policies of its own that a packet with this mark comes from.
    pub(crate) fn sender(&self, mark: u32) -> Option<OwnSocket> {
        self.own.borrow().of_mark(mark)
    }

    /// Whether an address is this host's.
    pub(crate) fn is_local(&self, family: u16, address: Address) -> bool {
        self.destination(family, address)
            .is_some_and(|to| to.is_local)
    }

    /// The interface that packets to an address leave through, and their way.
    pub(crate) fn way(&self, family: u16, to: Address, mark: u32) -> Option<(i32, PathInfo)> {
        let found = self.find((family, to, Address::ANY, 0, mark)).ok()?;
        Some((found.ifindex, found.path))
    }

    /// The address that an answer to `to` comes from.
    pub(crate) fn own_address(&self, family: u16, to: Address) -> Option<Address> {
        let found = self.find((family, to, Address::ANY, 0, 0)).ok()?;
        Some(found.source).filter(|source| *source != Address::ANY)
    }

    fn find(&self, key: Key) -> Result<Found, i32> {
        // A packet mostly goes where the one before went.
        if let Some((last, found)) = self.last.get()
            && last == key
        {
            return found;
        }
        let known = self.routes.borrow().get(&key).copied();
        let found = known.unwrap_or_else(|| {
            let found = self.look_up(key);
            remember(&self.routes, key, found);
            found
        });
        self.last.set(Some((key, found)));
        found
    }

    /// The host's choice, with the MTU that routes and links say, or routers have.
    fn look_up(&self, key: Key) -> Result<Found, i32> {
        let mut found = ask(&self.asking, key, 0)?;
        let entry = ask(&self.asking, key, RTM_F_FIB_MATCH);
        let mtu = entry.map_or(0, |entry| entry.path.mtu);
        found.path.mtu = match mtu {
            0 => self.mtu_of(found.ifindex),
            mtu => mtu,
        };
        let (family, to, ..) = key;
        if let Some((learned, _)) = self.learned.borrow().get(&(family, to)) {
            found.path.mtu = found.path.mtu.min(*learned);
        }
        Ok(found)
    }

    fn mtu_of(&self, ifindex: i32) -> u32 {
        if let Some(mtu) = self.mtus.borrow().get(&ifindex) {
            return *mtu;
        }
        let mtu = link_mtu(&self.asking, ifindex);
        remember(&self.mtus, ifindex, mtu);
        mtu
    }
}

/// The address that this host would send to another one from without us, and the MTU of that way.
pub(super) fn own_way(asking: &Socket, family: u16, to: Address) -> Option<(Address, u32)> {
    let found = ask(asking, (family, to, Address::ANY, 0, 0), 0).ok()?;
    let mtu = match found.path.mtu {
        0 => link_mtu(asking, found.ifindex),
        mtu => mtu,
    };
    Some((found.source, mtu))
}

fn link_mtu(asking: &Socket, ifindex: i32) -> u32 {
    const IFLA_MTU: u16 = 4;
    let mut messages = Messages::default();
    messages.push(RTM_GETLINK, 0, |out| {
        let mut header = [0; 16];
        if let Some(slot) = header.get_mut(4..8) {
            slot.copy_from_slice(&ifindex.to_ne_bytes());
        }
        out.fixed(&header);
    });
    let mut mtu = LEAST_MTU_V6;
    let asked = asking.exchange(&messages, |kind, payload| {
        if kind == RTM_NEWLINK {
            let attrs = attrs(payload.get(16..).unwrap_or_default());
            let found = attrs.filter(|&(kind, _)| kind == IFLA_MTU).last();
            mtu = found.map_or(mtu, |(_, value)| number(value));
        }
    });
    if let Err(error) = asked {
        tracing::debug!(ifindex, %error, "no MTU");
    }
    mtu
}

fn ask(asking: &Socket, (family, to, from, ifindex, mark): Key, flags: u32) -> Result<Found, i32> {
    const RTA_DST: u16 = 1;
    const RTA_SRC: u16 = 2;
    const RTA_OIF: u16 = 4;
    const RTA_PREFSRC: u16 = 7;
    const RTA_METRICS: u16 = 8;
    const RTA_MARK: u16 = 16;
    const RTAX_MTU: u16 = 2;
    const RTAX_HOPLIMIT: u16 = 10;
    let bytes = if family == AF_INET6 { 16 } else { 4 };
    let mut messages = Messages::default();
    messages.push(RTM_GETROUTE, 0, |out| {
        let bits = if family == AF_INET6 { 128 } else { 32 };
        let from_bits = if from == Address::ANY { 0 } else { bits };
        let [family, _] = family.to_le_bytes();
        out.fixed(&[family, bits, from_bits, 0, 0, 0, 0, 0]);
        out.fixed(&flags.to_ne_bytes());
        out.attr(RTA_DST, to.0.get(..bytes).unwrap_or_default());
        if from != Address::ANY {
            out.attr(RTA_SRC, from.0.get(..bytes).unwrap_or_default());
        }
        if ifindex != 0 {
            out.attr(RTA_OIF, &ifindex.to_ne_bytes());
        }
        out.number(RTA_MARK, mark | BYPASS);
    });
    let mut result = Err(libc::EHOSTUNREACH);
    let asked = asking.exchange(&messages, |kind, payload| match kind {
        NLMSG_ERROR => {
            if let Some(code) = payload.first_chunk() {
                result = Err(-i32::from_ne_bytes(*code));
            }
        }
        RTM_NEWROUTE => {
            let mut found = Found {
                is_local: payload.get(7) == Some(&RTN_LOCAL),
                ifindex: 0,
                source: Address::ANY,
                path: PathInfo {
                    mtu: 0,
                    hop_limit: DEFAULT_HOP_LIMIT,
                },
            };
            for (kind, value) in attrs(payload.get(12..).unwrap_or_default()) {
                match kind {
                    RTA_OIF => found.ifindex = number(value).cast_signed(),
                    RTA_PREFSRC => found.source = address(value),
                    RTA_METRICS => {
                        for (metric, value) in attrs(value) {
                            match metric {
                                RTAX_MTU => found.path.mtu = number(value),
                                RTAX_HOPLIMIT => {
                                    let limit = u8::try_from(number(value));
                                    found.path.hop_limit =
                                        limit.ok().filter(|&it| it > 0).unwrap_or(64);
                                }
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
            result = Ok(found);
        }
        _ => {}
    });
    if let Err(error) = asked {
        return Err(error.raw_os_error().unwrap_or(libc::EHOSTUNREACH));
    }
    result
}

fn remember<K: Eq + Hash, V>(memory: &Memory<K, V>, key: K, value: V) {
    let mut memory = memory.borrow_mut();
    if memory.len() >= MOST_REMEMBERED {
        memory.clear();
    }
    memory.insert(key, value);
}

fn number(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |it| u32::from_ne_bytes(*it))
}

pub(super) fn address(value: &[u8]) -> Address {
    let mut address = Address::ANY;
    for (slot, byte) in address.0.iter_mut().zip(value) {
        *slot = *byte;
    }
    address
}

impl Routes for HostRoutes {
    fn generation(&self) -> u64 {
        self.generation.get()
    }

    fn route(&self, query: &RouteQuery) -> Result<PathInfo, i32> {
        let key = (
            query.family,
            query.daddr,
            query.saddr,
            query.ifindex,
            query.mark,
        );
        self.find(key).map(|found| found.path)
    }

    fn source(&self, query: &RouteQuery) -> Result<Address, i32> {
        let key = (
            query.family,
            query.daddr,
            Address::ANY,
            query.ifindex,
            query.mark,
        );
        self.find(key).map(|found| found.source)
    }
}

impl Host for HostRoutes {
    fn destination(&self, family: u16, address: Address) -> Option<Destination> {
        let found = self.find((family, address, Address::ANY, 0, 0)).ok()?;
        Some(Destination {
            is_local: found.is_local,
            ifindex: found.ifindex,
        })
    }

    fn owner(&self, flow: &Flow) -> Option<Owner> {
        if let Some(own) = self.own.borrow().of_flow(flow) {
            return Some(Owner {
                socket: own.key,
                encap: 0,
            });
        }
        let sockets = self.encap.borrow();
        let socket = sockets.iter().find(|it| it.port == flow.dport)?;
        (flow.proto == IPPROTO_UDP).then_some(Owner {
            socket: socket.key,
            encap: UDP_ENCAP_ESPINUDP,
        })
    }
}
