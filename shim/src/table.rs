//! Which descriptors are ours, and what is known of the sockets behind them.
//!
//! A descriptor is unknown, foreign, a socket of ours or an open sysctl. An
//! unknown one is looked at once: ours carry a mark that survives dup, fork,
//! exec and `SCM_RIGHTS`. Foreign ones then cost one load a call. Calls that
//! make or close descriptors keep the table true; what bypasses them (system
//! calls made directly) is noticed where it would matter: a receive shows
//! where its datagram came from, and a send that does not follow a receive
//! compares the socket's cookie.
//!
//! A child of `vfork` shares the table with its parent but not the
//! descriptors; the same checks repair what it leaves behind.

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU16, AtomicU32, AtomicU64, Ordering};

use xfrm_proto::control::{File, SOCKET_MARK, Socket};

use crate::netlink;
use crate::sys;

/// Descriptors that are remembered; higher ones are looked at each time.
const DESCRIPTORS: usize = 1 << 16;
/// Sockets that are remembered.
const SOCKETS: usize = 1024;
/// Descriptors that are looked at when a program starts.
const INHERITED: c_int = 64;

const UNKNOWN: u16 = 0;
const FOREIGN: u16 = 1;
const FIRST_SOCKET: u16 = 2;
const POLICY_HOLDER: u16 = 0xfe00;
const FIRST_FILE: u16 = 0xff00;

static KINDS: [AtomicU16; DESCRIPTORS] = [const { AtomicU16::new(UNKNOWN) }; DESCRIPTORS];
static ENTRIES: [Entry; SOCKETS] = [const { Entry::new() }; SOCKETS];

/// What the process knows of one socket of ours, however many descriptors it has.
pub(crate) struct Entry {
    /// Descriptors that are this socket.
    references: AtomicU32,
    /// `SO_COOKIE`, 0 when the entry is free.
    pub(crate) cookie: AtomicU64,
    /// `SO_NETNS_COOKIE`.
    pub(crate) netns: AtomicU64,
    /// The port id, 0 while unbound.
    pub(crate) port: AtomicU32,
    /// The largest receive so far.
    pub(crate) recv_bytes: AtomicU32,
    /// Where the daemon's replies come from, 0 when not known.
    pub(crate) reply_port: AtomicU32,
    /// Where the daemon's events for refused memberships come from.
    pub(crate) event_port: AtomicU32,
    /// Groups whose membership the host refused and the daemon keeps.
    pub(crate) kept: AtomicU32,
    /// Groups that the host delivers.
    pub(crate) native: AtomicU32,
    /// Errno that the next receive fails with.
    pub(crate) pending: AtomicI32,
    /// `NETLINK_CAP_ACK`.
    pub(crate) cap_ack: AtomicBool,
    /// `NETLINK_EXT_ACK`.
    pub(crate) ext_ack: AtomicBool,
    /// `NETLINK_LISTEN_ALL_NSID`.
    pub(crate) all_nsid: AtomicBool,
    /// A dump may be under way.
    pub(crate) dumping: AtomicBool,
    /// A receive has shown since the last send that the descriptor is the socket.
    pub(crate) seen: AtomicBool,
}

impl Entry {
    const fn new() -> Self {
        Self {
            references: AtomicU32::new(0),
            cookie: AtomicU64::new(0),
            netns: AtomicU64::new(0),
            port: AtomicU32::new(0),
            recv_bytes: AtomicU32::new(0),
            reply_port: AtomicU32::new(0),
            event_port: AtomicU32::new(0),
            kept: AtomicU32::new(0),
            native: AtomicU32::new(0),
            pending: AtomicI32::new(0),
            cap_ack: AtomicBool::new(false),
            ext_ack: AtomicBool::new(false),
            all_nsid: AtomicBool::new(false),
            dumping: AtomicBool::new(false),
            seen: AtomicBool::new(false),
        }
    }

    /// As the daemon is told of it.
    pub(crate) fn socket(&self) -> Socket {
        Socket {
            netns: self.netns.load(Ordering::Relaxed),
            cookie: self.cookie.load(Ordering::Relaxed),
            port: self.port.load(Ordering::Relaxed),
            recv_bytes: self.recv_bytes.load(Ordering::Relaxed),
            cap_ack: self.cap_ack.load(Ordering::Relaxed),
            ext_ack: self.ext_ack.load(Ordering::Relaxed),
        }
    }
}

/// What a descriptor is to us.
pub(crate) enum Kind {
    Foreign,
    Socket(&'static Entry),
    Sysctl(File),
}

fn slot(fd: c_int) -> Option<&'static AtomicU16> {
    usize::try_from(fd).ok().and_then(|fd| KINDS.get(fd))
}

/// What `fd` is; the price that every call of the program pays.
#[inline]
pub(crate) fn kind(fd: c_int) -> Kind {
    let known = slot(fd).map_or(UNKNOWN, |slot| slot.load(Ordering::Relaxed));
    if known == FOREIGN {
        return Kind::Foreign;
    }
    kind_slow(fd, known)
}

#[cold]
fn kind_slow(fd: c_int, known: u16) -> Kind {
    if known == UNKNOWN {
        return look(fd);
    }
    if known >= FIRST_FILE {
        return File::ALL
            .get(usize::from(known - FIRST_FILE))
            .map_or(Kind::Foreign, |&file| Kind::Sysctl(file));
    }
    entry_of(known).map_or(Kind::Foreign, Kind::Socket)
}

/// The socket behind `fd`, if it is ours.
#[inline]
pub(crate) fn socket(fd: c_int) -> Option<&'static Entry> {
    match kind(fd) {
        Kind::Socket(entry) => Some(entry),
        Kind::Foreign | Kind::Sysctl(_) => None,
    }
}

/// Looks whether an unknown descriptor carries the mark.
fn look(fd: c_int) -> Kind {
    if fd < 0 {
        return Kind::Foreign;
    }
    let mut mark = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let result = sys::call!(
        libc::SYS_getsockopt,
        fd,
        libc::SOL_SOCKET,
        libc::SO_MAX_PACING_RATE,
        &raw mut mark,
        &raw mut len
    );
    match result {
        Err(libc::EBADF) => Kind::Foreign,
        Ok(_) if mark == SOCKET_MARK && sys::netlink_name(fd).is_some() => adopt(fd),
        _ => {
            if let Some(slot) = slot(fd) {
                slot.store(FOREIGN, Ordering::Relaxed);
            }
            Kind::Foreign
        }
    }
}

/// Takes up a socket that this process did not make: after exec or `SCM_RIGHTS`.
fn adopt(fd: c_int) -> Kind {
    let Some(entry) = remember(fd) else {
        return Kind::Foreign;
    };
    // Whether it dumps, only the daemon knows; the first receive asks.
    entry.dumping.store(true, Ordering::Relaxed);
    entry.seen.store(false, Ordering::Relaxed);
    if netlink::enter(entry, fd).is_ok() {
        netlink::announce(entry);
    }
    Kind::Socket(entry)
}

/// Adopts what the program that ran before exec left us.
///
/// A program may only wait for such a socket and never pass a call through us; its events depend on
/// the daemon's knowing it.
pub(crate) fn adopt_inherited() {
    for fd in 0..INHERITED {
        let _ = kind(fd);
    }
}

/// Enters a socket of ours into the table, with what the host knows of it.
pub(crate) fn remember(fd: c_int) -> Option<&'static Entry> {
    let cookie = sys::option::<u64>(fd, libc::SOL_SOCKET, netlink::SO_COOKIE)?;
    let netns = sys::option::<u64>(fd, libc::SOL_SOCKET, netlink::SO_NETNS_COOKIE)?;
    let (index, entry) = find_or_take(cookie)?;
    let (port, native) = sys::netlink_name(fd).unwrap_or_default();
    let flag = |name| sys::option::<c_int>(fd, libc::SOL_NETLINK, name).unwrap_or(0) != 0;
    entry.netns.store(netns, Ordering::Relaxed);
    entry.port.store(port, Ordering::Relaxed);
    entry.native.store(native, Ordering::Relaxed);
    entry
        .cap_ack
        .store(flag(libc::NETLINK_CAP_ACK), Ordering::Relaxed);
    entry
        .ext_ack
        .store(flag(netlink::NETLINK_EXT_ACK), Ordering::Relaxed);
    if let Some(slot) = slot(fd) {
        set(slot, FIRST_SOCKET + index);
    }
    Some(entry)
}

fn find_or_take(cookie: u64) -> Option<(u16, &'static Entry)> {
    let known = |(_, entry): &(u16, &'static Entry)| entry.cookie.load(Ordering::Relaxed) == cookie;
    if let Some(found) = (0_u16..).zip(&ENTRIES).find(known) {
        return Some(found);
    }
    let (index, entry) = (0_u16..).zip(&ENTRIES).find(|(_, entry)| {
        entry
            .cookie
            .compare_exchange(0, cookie, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    })?;
    entry.recv_bytes.store(0, Ordering::Relaxed);
    entry.reply_port.store(0, Ordering::Relaxed);
    entry.event_port.store(0, Ordering::Relaxed);
    entry.kept.store(0, Ordering::Relaxed);
    entry.pending.store(0, Ordering::Relaxed);
    entry.all_nsid.store(false, Ordering::Relaxed);
    entry.dumping.store(false, Ordering::Relaxed);
    entry.seen.store(true, Ordering::Relaxed);
    Some((index, entry))
}

/// Ports of the daemon in a namespace, if another socket of the process knows them.
pub(crate) fn known_ports(netns: u64) -> Option<(u32, u32)> {
    ENTRIES
        .iter()
        .filter(|entry| entry.netns.load(Ordering::Relaxed) == netns)
        .map(|entry| {
            (
                entry.reply_port.load(Ordering::Relaxed),
                entry.event_port.load(Ordering::Relaxed),
            )
        })
        .find(|&(reply, _)| reply != 0)
}

/// Every socket of ours.
pub(crate) fn sockets() -> impl Iterator<Item = &'static Entry> {
    ENTRIES
        .iter()
        .filter(|entry| entry.cookie.load(Ordering::Relaxed) != 0)
}

/// Says that `fd` is a socket of another kind to which policies were given.
pub(crate) fn set_policy_holder(fd: c_int) {
    if let Some(slot) = slot(fd) {
        set(slot, POLICY_HOLDER);
    }
}

/// Whether it is one.
pub(crate) fn is_policy_holder(fd: c_int) -> bool {
    slot(fd).is_some_and(|slot| slot.load(Ordering::Relaxed) == POLICY_HOLDER)
}

/// All of them.
pub(crate) fn policy_holders() -> impl Iterator<Item = c_int> {
    (0..)
        .zip(&KINDS)
        .filter(|(_, slot)| slot.load(Ordering::Relaxed) == POLICY_HOLDER)
        .map(|(fd, _)| fd)
}

/// Says that `fd` is an open sysctl.
pub(crate) fn set_file(fd: c_int, file: File) {
    if let Some(slot) = slot(fd) {
        slot.store(FIRST_FILE + file as u16, Ordering::Relaxed);
    }
}

/// `to` is now what `from` is.
pub(crate) fn copy(from: c_int, to: c_int) {
    let kind = slot(from).map_or(UNKNOWN, |slot| slot.load(Ordering::Relaxed));
    if let Some(slot) = slot(to) {
        set(slot, kind);
    }
}

/// `fd` is closed, or may have become anything.
#[inline]
pub(crate) fn forget(fd: c_int) {
    if let Some(slot) = slot(fd)
        && slot.load(Ordering::Relaxed) != UNKNOWN
    {
        set(slot, UNKNOWN);
    }
}

fn entry_of(kind: u16) -> Option<&'static Entry> {
    (FIRST_SOCKET..POLICY_HOLDER)
        .contains(&kind)
        .then(|| ENTRIES.get(usize::from(kind - FIRST_SOCKET)))
        .flatten()
}

fn set(slot: &AtomicU16, kind: u16) {
    if let Some(entry) = entry_of(kind) {
        entry.references.fetch_add(1, Ordering::Relaxed);
    }
    let was = slot.swap(kind, Ordering::Relaxed);
    if let Some(entry) = entry_of(was)
        && entry.references.fetch_sub(1, Ordering::Relaxed) == 1
    {
        entry.reply_port.store(0, Ordering::Relaxed);
        entry.cookie.store(0, Ordering::Release);
    }
}

/// The same for a range, its end included.
pub(crate) fn forget_range(first: c_int, last: c_int) {
    let end = DESCRIPTORS as c_int - 1;
    for fd in first.max(0)..=last.min(end) {
        forget(fd);
    }
}

/// Whether `fd` still is the socket of `entry`.
pub(crate) fn is_still(fd: c_int, entry: &Entry) -> bool {
    sys::option::<u64>(fd, libc::SOL_SOCKET, netlink::SO_COOKIE)
        == Some(entry.cookie.load(Ordering::Relaxed))
}
