//! Socket options: of our sockets, and those of other sockets that would reach
//! the host's XFRM.
//!
//! On our sockets everything is native but the protocol number, the groups that
//! the daemon keeps, and the mark. On other sockets, `UDP_ENCAP` would make the
//! host take ESP out of the stream that the program reads: it does not get there; a
//! daemon that carries packets does the same with a filter.
//! `IP_XFRM_POLICY` would fill the host's SPD: it goes to the daemon's, which
//! forgets a socket's policies when the socket is closed or its process ends.

use core::ffi::{c_int, c_void};
use core::mem::size_of;
use core::sync::atomic::Ordering;

use libc::{iovec, socklen_t};
use xfrm_proto::control::{Answer, Request, Socket};

use crate::control::{self, Cargo};
use crate::netlink;
use crate::pages;
use crate::real;
use crate::sys;
use crate::table::{self, Entry};

const UDP_ENCAP: c_int = 100;
const UDP_ENCAP_ESPINUDP: c_int = 2;
const IP_XFRM_POLICY: c_int = 17;
const IPV6_XFRM_POLICY: c_int = 35;
/// A longer value is too long, however long it is.
const LARGEST_POLICY: usize = 4096;

fn flag(value: *const c_void, len: socklen_t) -> Option<bool> {
    (len as usize >= size_of::<c_int>())
        // SAFETY: the host has accepted the same value of that length.
        .then(|| unsafe { value.cast::<c_int>().read_unaligned() } != 0)
}

/// `setsockopt` on a socket of ours.
///
/// # Safety
/// As `setsockopt`.
pub(crate) unsafe fn set(
    entry: &Entry,
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    if level == libc::SOL_SOCKET && option == libc::SO_MAX_PACING_RATE {
        return 0;
    }
    if level == libc::SOL_NETLINK
        && (option == libc::NETLINK_ADD_MEMBERSHIP || option == libc::NETLINK_DROP_MEMBERSHIP)
    {
        // SAFETY: the caller's arguments, passed on.
        return unsafe { netlink::member(entry, fd, option, value, len) };
    }
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real::setsockopt(fd, level, option, value, len) };
    if result == 0 && level == libc::SOL_NETLINK {
        // The host takes a short value for 0.
        let on = flag(value, len).unwrap_or(false);
        if option == libc::NETLINK_CAP_ACK {
            entry.cap_ack.store(on, Ordering::Relaxed);
        } else if option == netlink::NETLINK_EXT_ACK {
            entry.ext_ack.store(on, Ordering::Relaxed);
        } else if option == libc::NETLINK_LISTEN_ALL_NSID {
            entry.all_nsid.store(on, Ordering::Relaxed);
        }
    }
    result
}

/// Whether a socket wants to hear nothing of what it lost.
pub(crate) fn ignores_overruns(fd: c_int) -> bool {
    sys::option::<c_int>(fd, libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS).unwrap_or(0) != 0
}

/// `getsockopt` on a socket of ours.
///
/// # Safety
/// As `getsockopt`.
pub(crate) unsafe fn get(
    entry: &Entry,
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's arguments, passed on; what the host has filled in can be changed.
    unsafe {
        let room = if len.is_null() { 0 } else { *len as usize };
        let result = real::getsockopt(fd, level, option, value, len);
        if result != 0 || len.is_null() {
            return result;
        }
        let filled = *len as usize;
        let patch_int = |new: c_int| {
            let bytes = new.to_ne_bytes();
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), value.cast(), filled.min(bytes.len()));
        };
        match (level, option) {
            (libc::SOL_SOCKET, libc::SO_PROTOCOL) => patch_int(netlink::NETLINK_XFRM),
            (libc::SOL_SOCKET, libc::SO_ERROR) => {
                let pending = entry.pending.swap(0, Ordering::Relaxed);
                if pending != 0 {
                    patch_int(pending);
                }
            }
            (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE) => {
                core::ptr::write_bytes(value.cast::<u8>(), 0xff, filled);
            }
            (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS) if room >= 4 => {
                let groups = value.cast::<u32>();
                // A socket that the host never let join anything lists nothing.
                let native = if filled >= 4 {
                    groups.read_unaligned()
                } else {
                    0
                };
                groups.write_unaligned(native | entry.kept.load(Ordering::Relaxed));
                *len = 4;
            }
            _ => {}
        }
        result
    }
}

/// `setsockopt` on a socket of somebody else: the result, if the host must not have it.
///
/// # Safety
/// As `setsockopt`.
pub(crate) unsafe fn set_foreign(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Option<c_int> {
    let result = match (level, option) {
        (libc::IPPROTO_UDP, UDP_ENCAP) => {
            if len as usize >= size_of::<c_int>() && !value.is_null() {
                // SAFETY: the length covers it.
                let kind = unsafe { value.cast::<c_int>().read_unaligned() };
                // Other encapsulations (L2TP, GTP) have nothing to do with XFRM.
                if kind != UDP_ENCAP_ESPINUDP {
                    return None;
                }
            }
            let protocol = sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL);
            if protocol != Some(libc::IPPROTO_UDP) {
                return None;
            }
            show(fd, true)
        }
        (libc::SOL_SOCKET, libc::SO_MARK) if table::is_policy_holder(fd) => {
            // SAFETY: the caller's arguments, passed on.
            if unsafe { real::setsockopt(fd, level, option, value, len) } != 0 {
                return Some(-1);
            }
            // The mark says too what policies the socket has.
            show(fd, false)
        }
        // SAFETY: the caller's value and its length.
        (libc::IPPROTO_IP, IP_XFRM_POLICY) => unsafe {
            socket_policy(fd, libc::AF_INET, value, len)?
        },
        // SAFETY: as above.
        (libc::IPPROTO_IPV6, IPV6_XFRM_POLICY) => unsafe {
            socket_policy(fd, libc::AF_INET6, value, len)?
        },
        _ => return None,
    };
    Some(match result {
        Ok(()) => 0,
        Err(errno) => {
            sys::set_errno(errno);
            -1
        }
    })
}

unsafe fn socket_policy(
    fd: c_int,
    option_family: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Option<Result<(), c_int>> {
    let family = sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let has_option = family == libc::AF_INET6 || family == option_family;
    if !has_option || !matches!(family, libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let socket = foreign_socket(fd)?;
    let len = len as usize;
    let set = !(value.is_null() && len == 0);
    let part = iovec {
        iov_base: value.cast_mut(),
        iov_len: if value.is_null() {
            0
        } else {
            len.min(LARGEST_POLICY + 1)
        },
    };
    let request = Request::SocketPolicy {
        socket,
        family: family as u32,
        option_family: option_family as u32,
        set,
    };
    let result = ask_policy(fd, &request, core::slice::from_ref(&part));
    if result.is_ok() && set {
        table::set_policy_holder(fd);
        pages::wiped().holds_policies.store(1, Ordering::Relaxed);
    }
    Some(result.and_then(|()| show(fd, false)))
}

fn foreign_socket(fd: c_int) -> Option<Socket> {
    Some(Socket {
        netns: sys::option(fd, libc::SOL_SOCKET, netlink::SO_NETNS_COOKIE)?,
        cookie: sys::option(fd, libc::SOL_SOCKET, netlink::SO_COOKIE)?,
        ..Socket::default()
    })
}

/// Lets a daemon that carries packets do to a socket what the host's XFRM would do by itself.
///
/// Without one the option has had its effect all the same.
fn show(fd: c_int, encap: bool) -> Result<(), c_int> {
    let Some(socket) = foreign_socket(fd) else {
        return Ok(());
    };
    let request = Request::Show { socket, encap };
    let Ok(mut answer) = ask_about(fd, &request, socket.netns, Cargo::default()) else {
        return Ok(());
    };
    if answer.wants_proof {
        let fds = &[fd];
        answer = control::ask(&request, Cargo { parts: &[], fds }).unwrap_or_default();
    }
    match answer.errno {
        0 => Ok(()),
        errno => Err(errno as c_int),
    }
}

/// Asks something about a socket in a namespace that the daemon may not know yet.
fn ask_about(fd: c_int, request: &Request, netns: u64, cargo: Cargo<'_>) -> Result<Answer, c_int> {
    let answer = control::ask(request, cargo)?;
    if !answer.unknown_netns {
        return Ok(answer);
    }
    netlink::introduce(netns, fd)?;
    control::ask(request, cargo)
}

fn ask_policy(fd: c_int, request: &Request, parts: &[iovec]) -> Result<(), c_int> {
    let cargo = Cargo { parts, fds: &[] };
    let answer = match request {
        Request::SocketPolicy { socket, .. } => ask_about(fd, request, socket.netns, cargo)?,
        _ => control::ask(request, cargo)?,
    };
    match answer.errno {
        0 => Ok(()),
        errno => Err(errno as c_int),
    }
}

/// Before a socket with policies is closed: they go with its last descriptor.
///
/// A child that closes what it inherited does not count: it has set no policies itself.
pub(crate) fn before_close(fd: c_int) {
    if pages::wiped().holds_policies.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(socket) = foreign_socket(fd) else {
        return;
    };
    let lives_on = table::policy_holders()
        .filter(|&other| other != fd)
        .any(|other| foreign_socket(other).is_some_and(|it| it.cookie == socket.cookie));
    if !lives_on {
        let request = Request::SocketPolicy {
            socket,
            family: 0,
            option_family: 0,
            set: false,
        };
        let _ = ask_policy(fd, &request, &[]);
    }
}
