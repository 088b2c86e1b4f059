//! The life of a socket: making it, naming it, its groups, and the daemon's
//! place in its network namespace.
//!
//! Where the host's kernel refuses a group membership (no CAP_NET_ADMIN) the
//! daemon is asked: it keeps the membership if the process is the owner of a
//! private instance, and delivers such events one by one from a second port.

use core::ffi::{c_int, c_void};
use core::mem::size_of;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::{sockaddr, sockaddr_nl, socklen_t};
use xfrm_proto::control::{Answer, Request, SOCKET_MARK};

use crate::control::{self, Cargo};
use crate::pages;
use crate::real;
use crate::sys;
use crate::table::{self, Entry};
use crate::tails;

/// The protocol that programs ask for.
pub(crate) const NETLINK_XFRM: c_int = 6;
/// The protocol that they get.
pub(crate) const NETLINK_USERSOCK: c_int = 2;
pub(crate) const NETLINK_EXT_ACK: c_int = 11;
pub(crate) const SO_COOKIE: c_int = 57;
pub(crate) const SO_NETNS_COOKIE: c_int = 71;
const SIOCGSKNS: u64 = 0x894C;
/// The daemon's ports are up here, where autobinding does not go.
const HIGH_PORTS: u32 = 0xe000_0000;

/// `socket(AF_NETLINK, kind, NETLINK_XFRM)`.
pub(crate) fn open(kind: c_int) -> c_int {
    // SAFETY: plain integers.
    let fd = unsafe { real::socket(libc::AF_NETLINK, kind, NETLINK_USERSOCK) };
    if fd < 0 {
        return fd;
    }
    table::forget(fd);
    let marked = sys::set_option(fd, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &SOCKET_MARK);
    let entry = marked.ok().and_then(|()| table::remember(fd));
    let Some(entry) = entry else {
        sys::close(fd);
        sys::set_errno(libc::EMFILE);
        return -1;
    };
    // Without a daemon the socket can still be had, as one whose kernel does not answer.
    let _ = enter(entry, fd);
    fd
}

/// Learns the daemon's ports in the socket's namespace, from a socket that knows them or from it.
pub(crate) fn enter(entry: &Entry, fd: c_int) -> Result<(), c_int> {
    let netns = entry.netns.load(Ordering::Relaxed);
    if let Some((reply, event)) = table::known_ports(netns) {
        entry.reply_port.store(reply, Ordering::Relaxed);
        entry.event_port.store(event, Ordering::Relaxed);
        return Ok(());
    }
    introduce(netns, fd)
}

/// Asks the daemon for its ports in a namespace, and tells all sockets of it.
pub(crate) fn introduce(netns: u64, fd: c_int) -> Result<(), c_int> {
    let request = Request::Netns { netns };
    let mut answer = control::ask(&request, Cargo::default())?;
    if answer.wants_netns {
        let namespace = namespace_of(fd)?;
        let cargo = Cargo {
            fds: &[namespace],
            ..Cargo::default()
        };
        let second = control::ask(&request, cargo);
        sys::close(namespace);
        answer = second?;
    }
    if answer.wants_sockets {
        answer = offer_sockets(&request)?;
    }
    if answer.errno != 0 || answer.first == 0 {
        return Err(libc::ECONNREFUSED);
    }
    for entry in table::sockets() {
        if entry.netns.load(Ordering::Relaxed) == netns {
            entry.reply_port.store(answer.first, Ordering::Relaxed);
            entry.event_port.store(answer.second, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// The namespace of a socket, or the thread's own where the kernel does not tell.
fn namespace_of(fd: c_int) -> Result<c_int, c_int> {
    match sys::call!(libc::SYS_ioctl, fd, SIOCGSKNS, 0) {
        Ok(namespace) => Ok(namespace as c_int),
        Err(_) => sys::open(
            c"/proc/thread-self/ns/net",
            libc::O_RDONLY | libc::O_CLOEXEC,
        ),
    }
}

/// Makes the sockets that the daemon cannot make for itself, in the thread's namespace.
fn offer_sockets(request: &Request) -> Result<Answer, c_int> {
    let reply = daemon_socket()?;
    let event = daemon_socket().inspect_err(|_| sys::close(reply))?;
    let cargo = Cargo {
        fds: &[reply, event],
        ..Cargo::default()
    };
    let answer = control::ask(request, cargo);
    sys::close(reply);
    sys::close(event);
    answer
}

fn daemon_socket() -> Result<c_int, c_int> {
    let fd = sys::socket(
        libc::AF_NETLINK,
        libc::SOCK_RAW | libc::SOCK_CLOEXEC,
        NETLINK_USERSOCK,
    )?;
    for _ in 0..16 {
        if sys::bind_netlink(fd, HIGH_PORTS | sys::random() >> 8, 0).is_ok() {
            return Ok(fd);
        }
    }
    sys::close(fd);
    Err(libc::EADDRINUSE)
}

/// Asks on behalf of a socket; first introduces its namespace, and shows the socket itself, if the
/// daemon wants that.
pub(crate) fn ask(
    entry: &Entry,
    fd: c_int,
    request: &Request,
    cargo: Cargo<'_>,
) -> Result<Answer, c_int> {
    // More rounds than wishes: another connection of the process may be asked each time, and each
    // wants to know the namespace and to see the socket once.
    for _ in 0..4 * pages::CONNECTIONS {
        let answer = control::ask(request, cargo)?;
        if answer.unknown_netns {
            let netns = entry.netns.load(Ordering::Relaxed);
            introduce(netns, fd)?;
            for other in table::sockets() {
                if other.netns.load(Ordering::Relaxed) == netns {
                    announce(other);
                }
            }
        } else if answer.wants_proof {
            let proof = Request::Prove {
                socket: entry.socket(),
            };
            let cargo = Cargo {
                fds: &[fd],
                ..Cargo::default()
            };
            control::ask(&proof, cargo)?;
        } else {
            return Ok(answer);
        }
    }
    Err(libc::ECONNREFUSED)
}

/// Tells the daemon of a socket's groups.
pub(crate) fn announce(entry: &Entry) {
    let kept = entry.kept.load(Ordering::Relaxed);
    let request = Request::Members {
        socket: entry.socket(),
        native: entry.native.load(Ordering::Relaxed),
        join: kept,
        leave: 0,
    };
    if let Ok(answer) = control::ask(&request, Cargo::default())
        && !answer.unknown_netns
        && answer.errno == 0
    {
        entry.kept.store(answer.first, Ordering::Relaxed);
    }
}

/// Asks the daemon to keep memberships; `Err(EPERM)` if it will not.
fn keep(entry: &Entry, fd: c_int, join: u32, leave: u32) -> Result<(), c_int> {
    let request = Request::Members {
        socket: entry.socket(),
        native: entry.native.load(Ordering::Relaxed),
        join,
        leave,
    };
    let answer = ask(entry, fd, &request, Cargo::default())?;
    if answer.errno != 0 {
        return Err(answer.errno as c_int);
    }
    entry.kept.store(answer.first, Ordering::Relaxed);
    Ok(())
}

/// Notes the groups that the host delivers, and tells the daemon if they changed.
fn native_changed(entry: &Entry, fd: c_int, left: u32) {
    let Some((port, native)) = sys::netlink_name(fd) else {
        return;
    };
    let changed = entry.native.swap(native, Ordering::Relaxed) != native;
    let bound = entry.port.swap(port, Ordering::Relaxed) != port;
    let kept = entry.kept.load(Ordering::Relaxed);
    if changed || (kept != 0 && (bound || kept & left != 0)) {
        let _ = keep(entry, fd, 0, left);
    }
}

/// The process that calls are made for, 0 for this one.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Says for which process the next calls are made: unbound sockets get its id for a port, as the
/// host gives them ours.
pub(crate) fn set_process(process: u32) {
    PROCESS.store(process, Ordering::Relaxed);
}

/// Gives an unbound socket a port, as sending does.
pub(crate) fn autobind(entry: &Entry, fd: c_int) -> Result<(), c_int> {
    if entry.port.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    if sys::netlink_name(fd).is_none_or(|(port, _)| port == 0) {
        let native = entry.native.load(Ordering::Relaxed);
        let process = PROCESS.load(Ordering::Relaxed);
        if process != 0 && sys::bind_netlink(fd, process, native).is_ok() {
            native_changed(entry, fd, 0);
            return Ok(());
        }
        match sys::bind_netlink(fd, 0, native) {
            // EPERM: memberships of a socket that was passed to us unprivileged stay as they are.
            Err(libc::EPERM) => sys::bind_netlink(fd, 0, 0)?,
            other => other?,
        }
    }
    native_changed(entry, fd, 0);
    Ok(())
}

/// `bind` on a socket of ours; `None` where only the host can say what is wrong.
pub(crate) unsafe fn bind(
    entry: &Entry,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    if len as usize >= size_of::<sockaddr_nl>() && !address.is_null() {
        // SAFETY: the length covers the structure, which the host reads too.
        let wanted = unsafe { address.cast::<sockaddr_nl>().read_unaligned() };
        if wanted.nl_groups != 0 && !tails::is_member(entry) {
            tails::attach_filter(fd);
        }
    }
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real::bind(fd, address, len) };
    if result == 0 {
        native_changed(entry, fd, u32::MAX);
        return 0;
    }
    if sys::errno() != libc::EPERM {
        return result;
    }
    // SAFETY: the host has read a whole sockaddr_nl there to find groups in it.
    let wanted = unsafe { address.cast::<sockaddr_nl>().read_unaligned() };
    // The permission comes before the port, as on Linux: a refused socket stays unbound.
    let kept = keep(entry, fd, wanted.nl_groups, !wanted.nl_groups);
    let bound = kept.and_then(|()| sys::bind_netlink(fd, wanted.nl_pid, 0));
    match bound {
        Ok(()) => {
            native_changed(entry, fd, 0);
            0
        }
        Err(errno) => {
            sys::set_errno(errno);
            -1
        }
    }
}

/// `connect` on a socket of ours: to the kernel, which every socket talks to anyway.
///
/// The host must not hear of it: a connected socket refuses datagrams from any port but one.
pub(crate) unsafe fn connect(
    entry: &Entry,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    let errno = if (len as usize) < size_of::<libc::sa_family_t>() {
        libc::EINVAL
    } else {
        // SAFETY: the length covers the family.
        let family = c_int::from(unsafe { address.cast::<u16>().read_unaligned() });
        match family {
            libc::AF_UNSPEC => return 0,
            libc::AF_NETLINK if len as usize >= size_of::<sockaddr_nl>() => {
                // SAFETY: the length covers the structure.
                let to = unsafe { address.cast::<sockaddr_nl>().read_unaligned() };
                if to.nl_pid != 0 || to.nl_groups != 0 {
                    libc::EPERM
                } else {
                    match autobind(entry, fd) {
                        Ok(()) => return 0,
                        Err(errno) => errno,
                    }
                }
            }
            _ => libc::EINVAL,
        }
    };
    sys::set_errno(errno);
    -1
}

/// `getsockname` on a socket of ours: the groups include those that the daemon keeps.
pub(crate) unsafe fn name(
    entry: &Entry,
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    let kept = entry.kept.load(Ordering::Relaxed);
    // SAFETY: the caller's arguments, passed on; what the host has accepted can be read.
    unsafe {
        let room = if len.is_null() { 0 } else { *len };
        let result = real::getsockname(fd, address, len);
        let end = core::mem::offset_of!(sockaddr_nl, nl_groups) + 4;
        if result == 0 && kept != 0 && room as usize >= end {
            let groups = &raw mut (*address.cast::<sockaddr_nl>()).nl_groups;
            groups.write_unaligned(groups.read_unaligned() | kept);
        }
        result
    }
}

/// `NETLINK_ADD_MEMBERSHIP` and `NETLINK_DROP_MEMBERSHIP`.
pub(crate) unsafe fn member(
    entry: &Entry,
    fd: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let joins = option == libc::NETLINK_ADD_MEMBERSHIP;
    if joins && !tails::is_member(entry) {
        tails::attach_filter(fd);
    }
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real::setsockopt(fd, libc::SOL_NETLINK, option, value, len) };
    let group = if len as usize >= size_of::<u32>() && (result == 0 || !value.is_null()) {
        // SAFETY: the length covers it; the host reads it too before it looks at the group.
        unsafe { value.cast::<u32>().read_unaligned() }
    } else {
        0
    };
    let bit = group
        .checked_sub(1)
        .and_then(|shift| 1_u32.checked_shl(shift))
        .unwrap_or(0);
    if result == 0 {
        native_changed(entry, fd, if joins { 0 } else { bit });
        return 0;
    }
    if sys::errno() != libc::EPERM {
        return result;
    }
    let kept = if bit == 0 {
        // Whether EPERM or EINVAL comes first depends on the right to join at all.
        keep(entry, fd, 1, 1).and(Err(libc::EINVAL))
    } else if joins {
        keep(entry, fd, bit, 0)
    } else {
        keep(entry, fd, bit, bit)
    };
    match kept {
        Ok(()) => 0,
        Err(errno) => {
            sys::set_errno(errno);
            -1
        }
    }
}
