//! Sending: a datagram becomes a request, and the call returns when it has been
//! handled and what it causes is queued.
//!
//! Source: `net/netlink/af_netlink.c netlink_sendmsg`, whose checks come first,
//! in its order.

use core::ffi::c_int;
use core::mem::size_of;
use core::sync::atomic::Ordering;

use libc::{iovec, sockaddr_nl};
use xfrm_proto::control::Request;

use crate::control::Cargo;
use crate::netlink;
use crate::options;
use crate::sys;
use crate::table::{self, Entry};

/// No send buffer is smaller (`SOCK_MIN_SNDBUF`), so shorter datagrams always fit.
const FITS_ALWAYS: usize = 2048;

/// Why a send did not happen.
pub(crate) enum Refusal {
    /// The errno of the call.
    Errno(c_int),
    /// The descriptor is no longer the socket that it was: the host must have the call.
    Foreign,
}

impl From<c_int> for Refusal {
    fn from(errno: c_int) -> Self {
        Self::Errno(errno)
    }
}

/// Sends `parts` as one datagram; the number of bytes.
///
/// # Safety
/// `name` is readable for `name_len` bytes unless that is 0.
pub(crate) unsafe fn send(
    entry: &Entry,
    fd: c_int,
    parts: &[iovec],
    name: *const core::ffi::c_void,
    name_len: usize,
    flags: c_int,
) -> Result<usize, Refusal> {
    if !entry.seen.swap(false, Ordering::Relaxed) && !table::is_still(fd, entry) {
        table::forget(fd);
        return Err(Refusal::Foreign);
    }
    if flags & libc::MSG_OOB != 0 {
        return Err(libc::EOPNOTSUPP.into());
    }
    let len = parts
        .iter()
        .map(|part| part.iov_len)
        .fold(0, usize::saturating_add);
    if len == 0 {
        return Err(libc::ENODATA.into());
    }
    let (to_port, to_groups) = if name_len == 0 || name.is_null() {
        (0, 0)
    } else if name_len < size_of::<sockaddr_nl>() {
        return Err(libc::EINVAL.into());
    } else {
        // SAFETY: the length covers it.
        let to = unsafe { name.cast::<sockaddr_nl>().read_unaligned() };
        if c_int::from(to.nl_family) != libc::AF_NETLINK {
            return Err(libc::EINVAL.into());
        }
        (to.nl_pid, to.nl_groups)
    };
    netlink::autobind(entry, fd)?;
    if len > FITS_ALWAYS {
        let room = sys::option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
        if len.saturating_add(32) > usize::try_from(room).unwrap_or(0) {
            return Err(libc::EMSGSIZE.into());
        }
    }
    let request = Request::Send {
        socket: entry.socket(),
        to_port,
        to_groups,
    };
    let cargo = Cargo { parts, fds: &[] };
    let answer = match netlink::ask(entry, fd, &request, cargo) {
        Err(libc::EMSGSIZE) => send_as_file(entry, fd, &request, parts)?,
        other => other?,
    };
    if answer.overrun && !options::ignores_overruns(fd) {
        entry.pending.store(libc::ENOBUFS, Ordering::Relaxed);
    }
    entry.dumping.store(answer.dumping, Ordering::Relaxed);
    if answer.errno != 0 {
        return Err((answer.errno as c_int).into());
    }
    Ok(len)
}

/// For datagrams larger than a frame can be, or in more parts.
fn send_as_file(
    entry: &Entry,
    fd: c_int,
    request: &Request,
    parts: &[iovec],
) -> Result<xfrm_proto::control::Answer, c_int> {
    let file = sys::memfd(c"xfrm-datagram", libc::MFD_CLOEXEC)?;
    let mut written = Ok(0);
    for some in parts.chunks(libc::UIO_MAXIOV as usize) {
        let want: usize = some.iter().map(|part| part.iov_len).sum();
        if written.is_ok() {
            written = sys::writev(file, some).and_then(|len| {
                if len == want {
                    Ok(len)
                } else {
                    Err(libc::ENOBUFS)
                }
            });
        }
    }
    // A frame without payload asks for leave to bring a descriptor.
    let mut answer = written.and_then(|_| netlink::ask(entry, fd, request, Cargo::default()));
    if answer.as_ref().is_ok_and(|answer| answer.wants_file) {
        let cargo = Cargo {
            parts: &[],
            fds: &[file],
        };
        answer = netlink::ask(entry, fd, request, cargo);
    }
    sys::close(file);
    answer
}
