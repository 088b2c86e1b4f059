//! The host kernel's calls that the driver makes often, or that nix lacks.
#![allow(
    clippy::cast_possible_truncation,
    reason = "C's types: constants and sizes of structures fit by their definition"
)]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_int, c_void, sockaddr_nl, socklen_t};

const SO_COOKIE: c_int = 57;
const SO_NETNS_COOKIE: c_int = 71;
/// The protocol whose sockets stand for NETLINK_XFRM ones.
const NETLINK_USERSOCK: c_int = 2;
/// Our ports are up here, where autobinding does not go: the first socket of a process has its pid
/// for a port, as on Linux.
const HIGH_PORTS: u32 = 0xe000_0000;
/// Room for the descriptors of one frame.
const FRAME_FDS: usize = 2;

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn option<T: Default + Copy>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as socklen_t;
    // SAFETY: value and length are valid for writing, and T is plain data.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    checked(result as isize).map(|_| value)
}

/// A number for the network namespace of a socket, never used again.
pub(crate) fn netns_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// A number for a socket, never used again.
pub(crate) fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    option(fd, libc::SOL_SOCKET, SO_COOKIE)
}

/// Whether it is a socket of the kind that clients hold.
pub(crate) fn is_usersock(fd: BorrowedFd<'_>) -> bool {
    option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN).is_ok_and(|it| it == libc::AF_NETLINK)
        && option::<c_int>(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)
            .is_ok_and(|it| it == NETLINK_USERSOCK)
}

fn netlink_address(port: u32, groups: u32) -> sockaddr_nl {
    // SAFETY: all-zero bytes are a valid sockaddr_nl.
    let mut address: sockaddr_nl = unsafe { zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_pid = port;
    address.nl_groups = groups;
    address
}

/// The port id of a netlink socket.
pub(crate) fn port(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut address = netlink_address(0, 0);
    let mut len = size_of::<sockaddr_nl>() as socklen_t;
    // SAFETY: address and length are valid for writing.
    let result =
        unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    checked(result as isize)?;
    Ok(address.nl_pid)
}

/// A socket of the kind that clients hold, in the thread's network namespace, not bound.
pub(crate) fn usersock() -> io::Result<OwnedFd> {
    netlink_socket(NETLINK_USERSOCK)
}

/// A netlink socket in the thread's network namespace, not bound.
pub(crate) fn netlink_socket(protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; the descriptor is new and ours.
    unsafe {
        let fd = libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            protocol,
        );
        checked(fd as isize)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The same with a high port; `random` proposes ports.
pub(crate) fn speaker(mut random: impl FnMut() -> u32) -> io::Result<OwnedFd> {
    let fd = usersock()?;
    loop {
        let address = netlink_address(HIGH_PORTS | random() >> 8, 0);
        // SAFETY: the address is valid for its size.
        let result = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<sockaddr_nl>() as socklen_t,
            )
        };
        match checked(result as isize) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            other => return other.map(|_| fd),
        }
    }
}

/// Joins a netlink group.
pub(crate) fn join(fd: BorrowedFd<'_>, group: c_int) -> io::Result<()> {
    // SAFETY: the value is valid for its size.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    checked(result as isize).map(drop)
}

/// Queues a datagram for a port, or for a port and the members of groups; never waits.
pub(crate) fn send_netlink(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    port: u32,
    groups: u32,
) -> io::Result<()> {
    let address = netlink_address(port, groups);
    // SAFETY: bytes and address are valid for their sizes.
    let result = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            size_of::<sockaddr_nl>() as socklen_t,
        )
    };
    checked(result).map(drop)
}

/// Datagrams that one system call queues.
const BATCH: usize = 64;

/// Queues datagrams for a port; never waits. How many were, and why the next was not.
pub(crate) fn send_netlink_all<'a>(
    fd: BorrowedFd<'_>,
    mut datagrams: impl ExactSizeIterator<Item = &'a [u8]>,
    port: u32,
) -> (usize, io::Result<()>) {
    if datagrams.len() == 1 {
        let result = datagrams
            .next()
            .map_or(Ok(()), |bytes| send_netlink(fd, bytes, port, 0));
        return (usize::from(result.is_ok()), result);
    }
    let mut address = netlink_address(port, 0);
    // SAFETY: all-zero bytes are a valid mmsghdr and a valid iovec.
    let (mut messages, mut parts): ([libc::mmsghdr; BATCH], [libc::iovec; BATCH]) =
        unsafe { (zeroed(), zeroed()) };
    let mut sent = 0;
    loop {
        let mut count = 0;
        for ((message, part), bytes) in messages.iter_mut().zip(&mut parts).zip(&mut datagrams) {
            part.iov_base = bytes.as_ptr().cast_mut().cast();
            part.iov_len = bytes.len();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = (&raw mut address).cast();
            message.msg_hdr.msg_namelen = size_of::<sockaddr_nl>() as socklen_t;
            count += 1;
        }
        if count == 0 {
            return (sent, Ok(()));
        }
        let mut start = 0;
        while start < count {
            let rest = messages.get_mut(start..count).unwrap_or_default();
            // SAFETY: every message of the rest names an address and bytes that are valid.
            let result = unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            // After a part of them the error comes with the next call.
            match checked(result as isize) {
                Ok(some) => {
                    start += some;
                    sent += some;
                }
                Err(error) => return (sent, Err(error)),
            }
        }
    }
}

#[repr(C, align(8))]
struct Ancillary([u8; 64]);

/// A frame without descriptors: its length, 0 at the connection's end.
pub(crate) fn receive_plain(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its size.
    let result = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
        )
    };
    match checked(result)? {
        len if len > buffer.len() => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
        len => Ok(len),
    }
}

/// A frame: how many bytes of `buffer` it has, and its descriptors.
pub(crate) fn receive_frame(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, [Option<OwnedFd>; FRAME_FDS])> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut ancillary = Ancillary([0; 64]);
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    message.msg_controllen = ancillary.0.len();
    // SAFETY: the message's parts are valid for writing.
    let result = unsafe {
        libc::recvmsg(
            fd.as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    };
    let len = checked(result)?;
    let mut fds = [None, None];
    if message.msg_controllen > 0 {
        // SAFETY: the kernel has filled the control buffer up to msg_controllen; each descriptor
        // in it is new and ours, and is taken once.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET
                    && (*header).cmsg_type == libc::SCM_RIGHTS
                {
                    let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                    let data = libc::CMSG_DATA(header).cast::<c_int>();
                    for index in 0..bytes / size_of::<c_int>() {
                        let fd = OwnedFd::from_raw_fd(data.add(index).read_unaligned());
                        // One more than a frame may carry is closed here.
                        if let Some(slot) = fds.get_mut(index) {
                            *slot = Some(fd);
                        }
                    }
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
    }
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((len, fds))
}

/// Sends an answer's header, payload and descriptor; never waits.
pub(crate) fn send_frame(
    fd: BorrowedFd<'_>,
    header: &[u8],
    payload: &[u8],
    passed: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if payload.is_empty() && passed.is_none() {
        // SAFETY: the header is valid for its size.
        let result =
            unsafe { libc::send(fd.as_raw_fd(), header.as_ptr().cast(), header.len(), flags) };
        return checked(result).map(drop);
    }
    let mut parts = [header, payload].map(|bytes| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(),
        iov_len: bytes.len(),
    });
    let mut ancillary = Ancillary([0; 64]);
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    if let Some(passed) = passed {
        let bytes = size_of::<c_int>() as u32;
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        // SAFETY: the buffer has room for a descriptor, is aligned, and outlives the call.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            libc::CMSG_DATA(first)
                .cast::<c_int>()
                .write_unaligned(passed.as_raw_fd());
        }
    }
    // SAFETY: the message's parts are valid for reading.
    let result = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    checked(result).map(drop)
}

/// Random bytes from the host.
pub(crate) fn random(buffer: &mut [u8]) {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the rest of the buffer is valid for writing.
        let result = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        filled += usize::try_from(result).unwrap_or(0);
    }
}

/// Whether a program's file gives it capabilities.
pub(crate) fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: both strings end in NUL; a length of 0 only asks for the size.
    let size = unsafe {
        libc::getxattr(
            path.as_ptr(),
            c"security.capability".as_ptr(),
            std::ptr::null_mut(),
            0,
        )
    };
    size > 0
}
