//! Ports of key managers.
//!
//! A daemon that carries packets has a socket of its own beside the one that takes ESP in UDP
//! (`dataplane::io::bulk`). It lets go when the key manager's process ends, which may be a moment
//! after another one wants the port. That one must not be refused because of us: so it shares its
//! address while it binds, with those that share theirs. A key manager that lives on does not.

use core::ffi::c_int;
use core::mem::size_of;

use libc::{sockaddr, socklen_t};

use crate::real;
use crate::sys;

/// Where ESP in UDP comes to (RFC 3948); the daemon has no socket beside others that do not share
/// their address.
const NAT_PORT: u16 = 4500;

/// `bind` on a socket that is not ours.
///
/// # Safety
/// As `bind`.
pub(crate) unsafe fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real::bind(fd, address, len) };
    if result == 0 || sys::errno() != libc::EADDRINUSE {
        return result;
    }
    // SAFETY: the host has read an address of this length.
    let port = unsafe { port(address, len) };
    let option = |name| sys::option::<c_int>(fd, libc::SOL_SOCKET, name).unwrap_or(-1);
    if port != Some(NAT_PORT)
        || option(libc::SO_TYPE) != libc::SOCK_DGRAM
        || option(libc::SO_REUSEADDR) != 0
    {
        sys::set_errno(libc::EADDRINUSE);
        return result;
    }
    let share = |on: c_int| {
        // SAFETY: the value is valid for its size.
        unsafe {
            real::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_REUSEADDR,
                (&raw const on).cast(),
                size_of::<c_int>() as socklen_t,
            )
        }
    };
    share(1);
    // SAFETY: the caller's arguments, passed on.
    let result = unsafe { real::bind(fd, address, len) };
    share(0);
    if result != 0 {
        sys::set_errno(libc::EADDRINUSE);
    }
    result
}

/// The port of an address of IPv4 or IPv6.
///
/// # Safety
/// The address is valid for its length.
unsafe fn port(address: *const sockaddr, len: socklen_t) -> Option<u16> {
    const PORT_END: usize = 4;
    if address.is_null() || (len as usize) < PORT_END {
        return None;
    }
    // SAFETY: the caller's word; family and port are the first four bytes of both.
    let (family, port) = unsafe {
        let [_, _, high, low] = address.cast::<[u8; PORT_END]>().read_unaligned();
        let family = address.cast::<libc::sa_family_t>().read_unaligned();
        (c_int::from(family), u16::from_be_bytes([high, low]))
    };
    matches!(family, libc::AF_INET | libc::AF_INET6).then_some(port)
}
