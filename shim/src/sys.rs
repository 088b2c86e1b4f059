//! System calls as the shim makes them: directly, not through the symbols that
//! it interposes, not as cancellation points, and without touching `errno`.

use core::ffi::{c_int, c_long, c_void};
use core::mem::{size_of, zeroed};

use libc::{iovec, msghdr, sockaddr_nl, sockaddr_un, socklen_t};

/// The caller's `errno`.
pub(crate) fn errno() -> c_int {
    // SAFETY: the location is the calling thread's own and always valid.
    unsafe { *libc::__errno_location() }
}

/// Sets the caller's `errno`.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// A system call; the error is a positive errno.
macro_rules! call {
    ($number:expr $(, $arg:expr)* $(,)?) => {{
        let saved = $crate::sys::errno();
        // SAFETY: each use passes what the call documents; pointers outlive the call.
        let result = unsafe { libc::syscall($number $(, $arg as libc::c_long)*) };
        if result == -1 {
            let errno = $crate::sys::errno();
            $crate::sys::set_errno(saved);
            Err(errno)
        } else {
            Ok(result)
        }
    }};
}
pub(crate) use call;

fn to_fd(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-1)
}

pub(crate) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> Result<c_int, c_int> {
    call!(libc::SYS_socket, domain, kind, protocol).map(to_fd)
}

pub(crate) fn close(fd: c_int) {
    let _ = call!(libc::SYS_close, fd);
}

/// The lowest free descriptor from `least` on, closed on exec.
pub(crate) fn dup_above(fd: c_int, least: c_int) -> Result<c_int, c_int> {
    call!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, least).map(to_fd)
}

pub(crate) fn bind_netlink(fd: c_int, port: u32, groups: u32) -> Result<(), c_int> {
    let address = netlink_address(port, groups);
    call!(
        libc::SYS_bind,
        fd,
        &raw const address,
        size_of::<sockaddr_nl>()
    )
    .map(drop)
}

pub(crate) fn netlink_address(port: u32, groups: u32) -> sockaddr_nl {
    // SAFETY: all-zero bytes are a valid sockaddr_nl.
    let mut address: sockaddr_nl = unsafe { zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_pid = port;
    address.nl_groups = groups;
    address
}

/// The socket's own port id and native groups; `None` for what is not netlink.
pub(crate) fn netlink_name(fd: c_int) -> Option<(u32, u32)> {
    let mut address = netlink_address(0, 0);
    let mut len = size_of::<sockaddr_nl>() as socklen_t;
    call!(libc::SYS_getsockname, fd, &raw mut address, &raw mut len).ok()?;
    (c_int::from(address.nl_family) == libc::AF_NETLINK)
        .then_some((address.nl_pid, address.nl_groups))
}

/// A socket option of fixed size.
pub(crate) fn option<T: Copy + Default>(fd: c_int, level: c_int, name: c_int) -> Option<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as socklen_t;
    call!(
        libc::SYS_getsockopt,
        fd,
        level,
        name,
        &raw mut value,
        &raw mut len
    )
    .ok()?;
    Some(value)
}

pub(crate) fn set_option<T>(fd: c_int, level: c_int, name: c_int, value: &T) -> Result<(), c_int> {
    call!(
        libc::SYS_setsockopt,
        fd,
        level,
        name,
        core::ptr::from_ref(value),
        size_of::<T>()
    )
    .map(drop)
}

pub(crate) fn connect_unix(fd: c_int, address: &sockaddr_un, len: usize) -> Result<(), c_int> {
    loop {
        match call!(libc::SYS_connect, fd, core::ptr::from_ref(address), len) {
            Err(libc::EINTR) => {}
            // An interrupted connect of AF_UNIX has either not begun or is done.
            Ok(_) | Err(libc::EISCONN) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

pub(crate) fn sendmsg(fd: c_int, message: &msghdr, flags: c_int) -> Result<usize, c_int> {
    loop {
        match call!(
            libc::SYS_sendmsg,
            fd,
            core::ptr::from_ref(message),
            flags | libc::MSG_NOSIGNAL
        ) {
            Err(libc::EINTR) => {}
            other => return other.map(|len| usize::try_from(len).unwrap_or(0)),
        }
    }
}

pub(crate) fn recvmsg(fd: c_int, message: &mut msghdr, flags: c_int) -> Result<usize, c_int> {
    loop {
        match call!(libc::SYS_recvmsg, fd, core::ptr::from_mut(message), flags) {
            Err(libc::EINTR) => {}
            other => return other.map(|len| usize::try_from(len).unwrap_or(0)),
        }
    }
}

/// A plain receive of at most `buffer.len()` bytes.
pub(crate) fn recv(fd: c_int, buffer: &mut [u8], flags: c_int) -> Result<usize, c_int> {
    loop {
        match call!(
            libc::SYS_recvfrom,
            fd,
            buffer.as_mut_ptr(),
            buffer.len(),
            flags,
            0,
            0
        ) {
            Err(libc::EINTR) => {}
            other => return other.map(|len| usize::try_from(len).unwrap_or(0)),
        }
    }
}

pub(crate) fn send_to_port(fd: c_int, bytes: &[u8], port: u32) -> Result<(), c_int> {
    let address = netlink_address(port, 0);
    call!(
        libc::SYS_sendto,
        fd,
        bytes.as_ptr(),
        bytes.len(),
        libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        &raw const address,
        size_of::<sockaddr_nl>()
    )
    .map(drop)
}

pub(crate) fn memfd(name: &core::ffi::CStr, flags: libc::c_uint) -> Result<c_int, c_int> {
    call!(libc::SYS_memfd_create, name.as_ptr(), flags).map(to_fd)
}

pub(crate) fn writev(fd: c_int, parts: &[iovec]) -> Result<usize, c_int> {
    call!(libc::SYS_writev, fd, parts.as_ptr(), parts.len())
        .map(|len| usize::try_from(len).unwrap_or(0))
}

pub(crate) fn write(fd: c_int, bytes: &[u8]) -> Result<usize, c_int> {
    call!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len())
        .map(|len| usize::try_from(len).unwrap_or(0))
}

pub(crate) fn rewind(fd: c_int) {
    let _ = call!(libc::SYS_lseek, fd, 0, libc::SEEK_SET);
}

/// Opens a file by its path.
pub(crate) fn open(path: &core::ffi::CStr, flags: c_int) -> Result<c_int, c_int> {
    call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0).map(to_fd)
}

pub(crate) fn yield_now() {
    let _ = call!(libc::SYS_sched_yield);
}

pub(crate) fn effective_uid() -> u32 {
    call!(libc::SYS_geteuid).map_or(u32::MAX, |uid| uid as u32)
}

/// A number that nobody else guesses soon.
pub(crate) fn random() -> u32 {
    let mut bytes = [0_u8; 4];
    let _ = call!(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0);
    u32::from_ne_bytes(bytes)
}

/// Memory that a forked child finds zeroed.
pub(crate) fn map_wiped_on_fork(len: usize) -> Option<*mut c_void> {
    let address = call!(
        libc::SYS_mmap,
        0,
        len,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
        0
    )
    .ok()?;
    call!(libc::SYS_madvise, address, len, libc::MADV_WIPEONFORK).ok()?;
    Some(address as *mut c_void)
}

/// A whole file of that length, to be read only.
#[cfg(feature = "time")]
pub(crate) fn map_readable(fd: c_int, len: usize) -> Option<*mut c_void> {
    let address = call!(
        libc::SYS_mmap,
        0,
        len,
        libc::PROT_READ,
        libc::MAP_SHARED,
        fd,
        0
    )
    .ok()?;
    Some(address as *mut c_void)
}

/// Memory for a while.
#[cfg(feature = "time")]
pub(crate) fn map_scratch(len: usize) -> Option<*mut c_void> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let address = call!(libc::SYS_mmap, 0, len, protection, flags, -1, 0).ok()?;
    Some(address as *mut c_void)
}

/// Gives it back.
#[cfg(feature = "time")]
pub(crate) fn unmap(address: *mut c_void, len: usize) {
    let _ = call!(libc::SYS_munmap, address, len);
}

/// Time that only goes forward.
pub(crate) fn monotonic_nanos() -> i64 {
    // SAFETY: written by the call before it is read.
    unsafe {
        let mut now: libc::timespec = zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
        now.tv_sec * 1_000_000_000 + now.tv_nsec
    }
}
