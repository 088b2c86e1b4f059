//! The interposed symbols. Each asks the table what the descriptor is, or the
//! path, and passes on what is not ours.

use core::ffi::{c_char, c_int, c_uint, c_void};

use libc::{
    FILE, iovec, mmsghdr, mode_t, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec, uid_t,
};

use crate::calls::{
    note_passed, part, receive_message, receive_one, receive_parts, send_message, send_parts,
    vector, write_parts,
};
use crate::descriptors::{self, FcntlArg};
use crate::table::{self, Kind};
use crate::{control, netlink, options, ports, procfs, real, sys};

/// Low bits of a socket's type.
const TYPE_MASK: c_int = 0xf;

macro_rules! exported {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? { $($body:tt)* })*) => {
        $(
        /// # Safety
        /// As libc's.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $type),*) $(-> $ret)? {
            // SAFETY: the arguments are the caller's, with the contract of libc's function.
            #[allow(unused_unsafe, reason = "some bodies need none")]
            unsafe { $($body)* }
        }
        )*
    };
}

#[cfg(feature = "time")]
pub(crate) use exported;

/// The host's `setsockopt`.
unsafe fn host_option(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the caller's.
    unsafe {
        let result = real::setsockopt(fd, level, name, value, len);
        note_option(result, fd, level, name, value, len);
        result
    }
}

/// Remembers what has to do with time of an option that was set.
#[cfg(feature = "time")]
unsafe fn note_option(
    result: c_int,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) {
    if result == 0 {
        // SAFETY: the host has taken it.
        unsafe { crate::time::note_option(fd, level, name, value, len) };
    }
}

#[cfg(not(feature = "time"))]
const unsafe fn note_option(
    _: c_int,
    _: c_int,
    _: c_int,
    _: c_int,
    _: *const c_void,
    _: socklen_t,
) {
}

/// Waits as long as a socket's time limit says; ends the call where that is over.
#[cfg(feature = "time")]
macro_rules! wait_first {
    ($fd:expr, $flags:expr) => {
        if let Err(errno) = crate::time::before_receiving($fd, $flags) {
            sys::set_errno(errno);
            return -1;
        }
    };
}

#[cfg(not(feature = "time"))]
macro_rules! wait_first {
    ($fd:expr, $flags:expr) => {};
}

exported! {
    // These two are for a program that loads this library itself, to make calls for others.
    fn xfrm_shim_set_address(text: *const c_char) {
        crate::connection::set_address(core::ffi::CStr::from_ptr(text).to_bytes());
    }

    fn xfrm_shim_set_process(process: c_uint) {
        netlink::set_process(process);
    }

    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        if domain == libc::AF_NETLINK
            && protocol == netlink::NETLINK_XFRM
            && matches!(kind & TYPE_MASK, libc::SOCK_RAW | libc::SOCK_DGRAM)
        {
            return netlink::open(kind);
        }
        real::socket(domain, kind, protocol)
    }

    fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
        match table::socket(fd) {
            Some(entry) => netlink::bind(entry, fd, address, len),
            None => ports::bind(fd, address, len),
        }
    }

    fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
        match table::socket(fd) {
            Some(entry) => netlink::connect(entry, fd, address, len),
            None => real::connect(fd, address, len),
        }
    }

    fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
        match table::socket(fd) {
            Some(entry) => netlink::name(entry, fd, address, len),
            None => real::getsockname(fd, address, len),
        }
    }

    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
        match table::socket(fd) {
            Some(entry) => options::get(entry, fd, level, name, value, len),
            None => real::getsockopt(fd, level, name, value, len),
        }
    }

    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        match table::socket(fd) {
            Some(entry) => {
                let result = options::set(entry, fd, level, name, value, len);
                note_option(result, fd, level, name, value, len);
                result
            }
            None => match options::set_foreign(fd, level, name, value, len) {
                Some(result) => result,
                None => host_option(fd, level, name, value, len),
            },
        }
    }

    fn send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        match send_parts(fd, &[part(bytes, len)], core::ptr::null(), 0, flags) {
            Some(result) => result,
            None => real::send(fd, bytes, len, flags),
        }
    }

    fn sendto(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t) -> ssize_t {
        match send_parts(fd, &[part(bytes, len)], to.cast(), to_len as usize, flags) {
            Some(result) => result,
            None => real::sendto(fd, bytes, len, flags, to, to_len),
        }
    }

    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        match send_message(fd, message, flags) {
            Some(result) => result,
            None => real::sendmsg(fd, message, flags),
        }
    }

    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if table::socket(fd).is_none() {
            return real::sendmmsg(fd, messages, count, flags);
        }
        let mut sent = 0;
        for index in 0..count.min(libc::UIO_MAXIOV as c_uint) {
            let one = messages.add(index as usize);
            let len = sendmsg(fd, &raw const (*one).msg_hdr, flags);
            if len < 0 {
                return if sent == 0 { -1 } else { sent };
            }
            (*one).msg_len = len as c_uint;
            sent += 1;
        }
        sent
    }

    fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        match write_parts(fd, &[part(bytes, len)]) {
            Some(result) => result,
            None => real::write(fd, bytes, len),
        }
    }

    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        if !matches!(table::kind(fd), Kind::Foreign)
            && let Ok(count) = usize::try_from(count)
            && let Some(parts) = vector(parts, count)
            && let Some(result) = write_parts(fd, parts)
        {
            return result;
        }
        real::writev(fd, parts, count)
    }

    fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        wait_first!(fd, flags);
        let nobody = core::ptr::null_mut();
        match receive_one(fd, buffer, len, nobody, core::ptr::null_mut(), flags) {
            Some(result) => result,
            None => real::recv(fd, buffer, len, flags),
        }
    }

    fn recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t) -> ssize_t {
        wait_first!(fd, flags);
        match receive_one(fd, buffer, len, from, from_len, flags) {
            Some(result) => result,
            None => real::recvfrom(fd, buffer, len, flags, from, from_len),
        }
    }

    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
        wait_first!(fd, flags);
        if let Some(result) = receive_message(fd, message, flags) {
            return result;
        }
        let result = real::recvmsg(fd, message, flags);
        if result >= 0 && (*message).msg_controllen > 0 {
            note_passed(message);
        }
        result
    }

    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        if table::socket(fd).is_none() {
            let received = real::recvmmsg(fd, messages, count, flags, timeout);
            for index in 0..received.max(0) {
                let message = &raw const (*messages.add(index as usize)).msg_hdr;
                if (*message).msg_controllen > 0 {
                    note_passed(message);
                }
            }
            return received;
        }
        let started = sys::monotonic_nanos();
        let mut flags = flags;
        let one_waits = flags & libc::MSG_WAITFORONE != 0;
        flags &= !libc::MSG_WAITFORONE;
        let mut received = 0;
        for index in 0..count.min(libc::UIO_MAXIOV as c_uint) {
            let one = messages.add(index as usize);
            let len = recvmsg(fd, &raw mut (*one).msg_hdr, flags);
            if len < 0 {
                return if received == 0 { -1 } else { received };
            }
            (*one).msg_len = len as c_uint;
            received += 1;
            if one_waits {
                flags |= libc::MSG_DONTWAIT;
            }
            if let Some(limit) = timeout.as_ref() {
                let nanos = (limit.tv_sec as i128) * 1_000_000_000 + i128::from(limit.tv_nsec);
                if i128::from(sys::monotonic_nanos() - started) >= nanos {
                    break;
                }
            }
        }
        received
    }

    fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t {
        wait_first!(fd, 0);
        // A socket's read of nothing takes nothing.
        if len > 0
            && let Some(result) =
                receive_one(fd, buffer, len, core::ptr::null_mut(), core::ptr::null_mut(), 0)
        {
            return result;
        }
        real::read(fd, buffer, len)
    }

    fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        if table::socket(fd).is_some()
            && let Ok(len) = usize::try_from(count)
            && let Some(room) = vector(parts, len)
            && room.iter().any(|part| part.iov_len > 0)
            && let Some(result) = receive_parts(fd, parts, len)
        {
            return result;
        }
        real::readv(fd, parts, count)
    }

    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
        if len > room || table::socket(fd).is_none() {
            return real::__recv_chk(fd, buffer, len, room, flags);
        }
        recv(fd, buffer, len, flags)
    }

    fn __recvfrom_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t) -> ssize_t {
        if len > room || table::socket(fd).is_none() {
            return real::__recvfrom_chk(fd, buffer, len, room, flags, from, from_len);
        }
        recvfrom(fd, buffer, len, flags, from, from_len)
    }

    fn __read_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        if len > room || table::socket(fd).is_none() {
            return real::__read_chk(fd, buffer, len, room);
        }
        read(fd, buffer, len)
    }

    fn close(fd: c_int) -> c_int {
        descriptors::close(fd)
    }

    fn closefrom(first: c_int) {
        descriptors::close_from(first);
    }

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        descriptors::close_range(first, last, flags)
    }

    fn dup(fd: c_int) -> c_int {
        descriptors::copied(fd, real::dup(fd))
    }

    fn dup2(fd: c_int, to: c_int) -> c_int {
        descriptors::copy_onto(fd, to, || real::dup2(fd, to))
    }

    fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
        descriptors::copy_onto(fd, to, || real::dup3(fd, to, flags))
    }

    fn fcntl(fd: c_int, command: c_int, arg: FcntlArg) -> c_int {
        descriptors::control(fd, command, || real::fcntl(fd, command, arg))
    }

    fn fcntl64(fd: c_int, command: c_int, arg: FcntlArg) -> c_int {
        descriptors::control(fd, command, || real::fcntl64(fd, command, arg))
    }

    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::open(path, flags, mode),
        }
    }

    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::open64(path, flags, mode),
        }
    }

    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::openat(dir, path, flags, mode),
        }
    }

    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::openat64(dir, path, flags, mode),
        }
    }

    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::__open_2(path, flags),
        }
    }

    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::__open64_2(path, flags),
        }
    }

    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::__openat_2(dir, path, flags),
        }
    }

    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, flags),
            None => real::__openat64_2(dir, path, flags),
        }
    }

    fn creat(path: *const c_char, mode: mode_t) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, libc::O_WRONLY),
            None => real::creat(path, mode),
        }
    }

    fn creat64(path: *const c_char, mode: mode_t) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::open(file, libc::O_WRONLY),
            None => real::creat64(path, mode),
        }
    }

    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
        match procfs::file(path) {
            Some(file) => procfs::open_stream(file, mode),
            None => real::fopen(path, mode),
        }
    }

    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
        match procfs::file(path) {
            Some(file) => procfs::open_stream(file, mode),
            None => real::fopen64(path, mode),
        }
    }

    fn access(path: *const c_char, mode: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::access(file, mode),
            None => real::access(path, mode),
        }
    }

    fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => procfs::access(file, mode),
            None => real::faccessat(dir, path, mode, flags),
        }
    }

    fn stat(path: *const c_char, out: *mut libc::stat) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.write(procfs::status(file)); 0 }
            None => real::stat(path, out),
        }
    }

    fn stat64(path: *const c_char, out: *mut libc::stat64) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.cast::<libc::stat>().write(procfs::status(file)); 0 }
            None => real::stat64(path, out),
        }
    }

    fn lstat(path: *const c_char, out: *mut libc::stat) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.write(procfs::status(file)); 0 }
            None => real::lstat(path, out),
        }
    }

    fn lstat64(path: *const c_char, out: *mut libc::stat64) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.cast::<libc::stat>().write(procfs::status(file)); 0 }
            None => real::lstat64(path, out),
        }
    }

    fn fstatat(dir: c_int, path: *const c_char, out: *mut libc::stat, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.write(procfs::status(file)); 0 }
            None => real::fstatat(dir, path, out, flags),
        }
    }

    fn fstatat64(dir: c_int, path: *const c_char, out: *mut libc::stat64, flags: c_int) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.cast::<libc::stat>().write(procfs::status(file)); 0 }
            None => real::fstatat64(dir, path, out, flags),
        }
    }

    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut libc::statx) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.write(procfs::extended_status(file)); 0 }
            None => real::statx(dir, path, flags, mask, out),
        }
    }

    fn __xstat(version: c_int, path: *const c_char, out: *mut libc::stat) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.write(procfs::status(file)); 0 }
            None => real::__xstat(version, path, out),
        }
    }

    fn __xstat64(version: c_int, path: *const c_char, out: *mut libc::stat64) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.cast::<libc::stat>().write(procfs::status(file)); 0 }
            None => real::__xstat64(version, path, out),
        }
    }

    fn __lxstat(version: c_int, path: *const c_char, out: *mut libc::stat) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.write(procfs::status(file)); 0 }
            None => real::__lxstat(version, path, out),
        }
    }

    fn __lxstat64(version: c_int, path: *const c_char, out: *mut libc::stat64) -> c_int {
        match procfs::file(path) {
            Some(file) => { out.cast::<libc::stat>().write(procfs::status(file)); 0 }
            None => real::__lxstat64(version, path, out),
        }
    }

    fn setuid(uid: uid_t) -> c_int {
        became(real::setuid(uid))
    }

    fn seteuid(uid: uid_t) -> c_int {
        became(real::seteuid(uid))
    }

    fn setreuid(real_uid: uid_t, effective: uid_t) -> c_int {
        became(real::setreuid(real_uid, effective))
    }

    fn setresuid(real_uid: uid_t, effective: uid_t, saved: uid_t) -> c_int {
        became(real::setresuid(real_uid, effective, saved))
    }

    fn capset(header: *mut c_void, data: *const c_void) -> c_int {
        became(real::capset(header, data))
    }
}

/// After a change of credentials: the daemon judges a process by what it was when it connected.
fn became(result: c_int) -> c_int {
    if result == 0 {
        control::reintroduce();
    }
    result
}
