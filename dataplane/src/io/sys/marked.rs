//! Packet sockets that tell the mark of what they see.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, socklen_t};

use super::{Ancillary, checked, origin, set_option, set_room};

const PACKET_VNET_HDR: c_int = 15;
/// Since Linux 5.19.
const SO_RCVMARK: c_int = 75;
const ON: c_int = 1;

/// Has the socket tell the mark of what it receives.
pub(in crate::io) fn tell_mark(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, SO_RCVMARK, &ON)
}

/// A socket that sees what comes and goes through a device without link layer headers, with the
/// header of a TUN device in front of it.
pub(in crate::io) fn packet_socket(device: &str, room_bytes: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain integers; the descriptor is new and ours. Without a protocol it sees nothing
    // before it is bound.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, 0);
        checked(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    let fd = socket.as_fd();
    tell_mark(fd)?;
    set_option(fd, libc::SOL_PACKET, PACKET_VNET_HDR, &ON)?;
    set_room(fd, room_bytes);
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name ends with a NUL and is only read.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is valid for its size, and only read.
    checked(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as socklen_t,
        )
    })?;
    Ok(socket)
}

/// Receives one packet: what is in front of it into `header`, the rest into `room`. How many bytes
/// both are, and the mark.
pub(in crate::io) fn receive(
    fd: BorrowedFd<'_>,
    header: &mut [u8],
    room: &mut [u8],
) -> io::Result<(usize, u32)> {
    let mut parts = [header, room].map(|part| libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    });
    let mut ancillary = Ancillary([0; 192]);
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    message.msg_controllen = ancillary.0.len();
    // SAFETY: the message names rooms that are valid for writing and outlive the call.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Ok((0, 0));
    }
    // SAFETY: the kernel has filled this message.
    let origin = unsafe { origin(&message) };
    Ok((len, origin.mark))
}
