//! What sends and receives become, in whichever form they are called: `None`
//! where the descriptor is not ours and the host must have the call.

use core::ffi::{c_int, c_void};
use core::mem::zeroed;

use libc::{iovec, msghdr, size_t, sockaddr, sockaddr_nl, socklen_t, ssize_t};

use crate::receive::Received;
use crate::send::Refusal;
use crate::table::{self, Kind};
use crate::{procfs, real, receive, send, sys};

/// Parts of a vector that read and write accept.
const MOST_PARTS: usize = libc::UIO_MAXIOV as usize;

pub(crate) fn part(bytes: *const c_void, len: size_t) -> iovec {
    iovec {
        iov_base: bytes.cast_mut(),
        iov_len: len,
    }
}

/// A vector, unless the host has to say what is wrong with it.
pub(crate) unsafe fn vector<'a>(parts: *const iovec, count: usize) -> Option<&'a [iovec]> {
    if count == 0 {
        return Some(&[]);
    }
    if parts.is_null() || count > MOST_PARTS {
        return None;
    }
    // SAFETY: the caller's vector of that many parts.
    Some(unsafe { core::slice::from_raw_parts(parts, count) })
}

fn finish(result: Result<usize, c_int>) -> ssize_t {
    match result {
        Ok(len) => len as ssize_t,
        Err(errno) => {
            sys::set_errno(errno);
            -1
        }
    }
}

pub(crate) unsafe fn send_parts(
    fd: c_int,
    parts: &[iovec],
    name: *const c_void,
    name_len: usize,
    flags: c_int,
) -> Option<ssize_t> {
    let entry = table::socket(fd)?;
    // SAFETY: the caller's name and its length.
    match unsafe { send::send(entry, fd, parts, name, name_len, flags) } {
        Ok(len) => Some(finish(Ok(len))),
        Err(Refusal::Errno(errno)) => Some(finish(Err(errno))),
        Err(Refusal::Foreign) => None,
    }
}

/// `write` and `writev`: to a socket, or to an open sysctl.
pub(crate) unsafe fn write_parts(fd: c_int, parts: &[iovec]) -> Option<ssize_t> {
    match table::kind(fd) {
        Kind::Foreign => None,
        Kind::Sysctl(file) => Some(finish(procfs::write(file, parts))),
        // SAFETY: no name.
        Kind::Socket(_) => unsafe { send_parts(fd, parts, core::ptr::null(), 0, 0) },
    }
}

/// A receive into one buffer: by `recvfrom`, which costs less than `recvmsg`.
pub(crate) unsafe fn receive_one(
    fd: c_int,
    buffer: *mut c_void,
    len: size_t,
    name: *mut sockaddr,
    name_len: *mut socklen_t,
    flags: c_int,
) -> Option<ssize_t> {
    let entry = table::socket(fd)?;
    let received = receive::receive(entry, fd, flags, len, |flags, from| {
        let mut from_len = size_of::<sockaddr_nl>() as socklen_t;
        let from = core::ptr::from_mut(from).cast();
        // SAFETY: the caller's buffer, and a name of our own.
        unsafe { real::recvfrom(fd, buffer, len, flags, from, &raw mut from_len) }
    });
    match received {
        Received::Datagram(len, from, _) => {
            if !name.is_null() && !name_len.is_null() {
                // SAFETY: the caller's name and its length.
                unsafe { *name_len = receive::show_name(name.cast(), *name_len as usize, &from) };
            }
            Some(len)
        }
        Received::Failed => Some(-1),
        Received::Foreign => None,
    }
}

/// A receive into a vector.
pub(crate) unsafe fn receive_parts(
    fd: c_int,
    parts: *const iovec,
    count: usize,
) -> Option<ssize_t> {
    let entry = table::socket(fd)?;
    // SAFETY: a message made of the caller's vector.
    unsafe {
        let mut message: msghdr = zeroed();
        message.msg_iov = parts.cast_mut();
        message.msg_iovlen = count;
        receive::receive_message(entry, fd, &raw mut message, 0)
    }
}

/// Descriptors that came with a message may be sockets of ours, under numbers that were not.
pub(crate) unsafe fn note_passed(message: *const msghdr) {
    // SAFETY: the host has filled in the message.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let fds = libc::CMSG_DATA(header).cast::<c_int>();
                for index in 0..bytes / size_of::<c_int>() {
                    table::forget(fds.add(index).read_unaligned());
                }
            }
            #[cfg(feature = "time")]
            crate::time::stamp(header);
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

pub(crate) unsafe fn receive_message(
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> Option<ssize_t> {
    let entry = table::socket(fd)?;
    if message.is_null() {
        return None;
    }
    // SAFETY: the caller's message.
    unsafe { receive::receive_message(entry, fd, message, flags) }
}

pub(crate) unsafe fn send_message(
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> Option<ssize_t> {
    table::socket(fd)?;
    // SAFETY: the caller's message.
    unsafe {
        let message = message.as_ref()?;
        let parts = vector(message.msg_iov, message.msg_iovlen)?;
        send_parts(
            fd,
            parts,
            message.msg_name,
            message.msg_namelen as usize,
            flags,
        )
    }
}
