//! The interposed symbols' originals: the next definition after ours.
//!
//! All are looked up when the library is loaded, because `dlsym` takes locks
//! that a child between fork and exec must not need.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    FILE, iovec, mmsghdr, mode_t, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec, uid_t,
};

pub(crate) fn find(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = slot.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name ends in NUL; RTLD_NEXT looks behind this library.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    slot.store(found, Ordering::Relaxed);
    found
}

macro_rules! originals {
    ($($(#[$attr:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty = $missing:expr;)*) => {
        mod pointers {
            use super::*;
            $(#[allow(non_upper_case_globals, reason = "the symbol's name")]
            pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());)*
        }

        $(
        /// libc's own; fails with ENOSYS where libc has none.
        ///
        /// # Safety
        /// As the C function of that name.
        pub(crate) unsafe fn $name($($arg: $type),*) -> $ret {
            let name = concat!(stringify!($name), "\0");
            let name = CStr::from_bytes_with_nul(name.as_bytes()).unwrap_or_default();
            let pointer = find(&pointers::$name, name);
            if pointer.is_null() {
                crate::sys::set_errno(libc::ENOSYS);
                return $missing;
            }
            // SAFETY: the symbol of that name has this signature; the caller keeps its contract.
            unsafe {
                let function = core::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn($($type),*) -> $ret,
                >(pointer);
                function($($arg),*)
            }
        }
        )*

        /// Looks up every original.
        pub(crate) fn resolve_all() {
            $(
            let name = concat!(stringify!($name), "\0");
            find(
                &pointers::$name,
                CStr::from_bytes_with_nul(name.as_bytes()).unwrap_or_default(),
            );
            )*
        }
    };
}

#[cfg(feature = "time")]
pub(crate) use originals;

originals! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int = -1;
    fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int = -1;
    fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int = -1;
    fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int = -1;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int = -1;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int = -1;
    fn send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t = -1;
    fn sendto(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, to_len: socklen_t) -> ssize_t = -1;
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t = -1;
    fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int = -1;
    fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t = -1;
    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = -1;
    fn recv(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int) -> ssize_t = -1;
    fn recvfrom(fd: c_int, buffer: *mut c_void, len: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t) -> ssize_t = -1;
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t = -1;
    fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int = -1;
    fn read(fd: c_int, buffer: *mut c_void, len: size_t) -> ssize_t = -1;
    fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = -1;
    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t = -1;
    fn __recvfrom_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t, flags: c_int, from: *mut sockaddr, from_len: *mut socklen_t) -> ssize_t = -1;
    fn __read_chk(fd: c_int, buffer: *mut c_void, len: size_t, room: size_t) -> ssize_t = -1;
    fn close(fd: c_int) -> c_int = -1;
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int = -1;
    fn dup(fd: c_int) -> c_int = -1;
    fn dup2(fd: c_int, to: c_int) -> c_int = -1;
    fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int = -1;
    fn fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int = -1;
    fn fcntl64(fd: c_int, command: c_int, arg: c_long) -> c_int = -1;
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = -1;
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = -1;
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = -1;
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = -1;
    fn __open_2(path: *const c_char, flags: c_int) -> c_int = -1;
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int = -1;
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int = -1;
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int = -1;
    fn creat(path: *const c_char, mode: mode_t) -> c_int = -1;
    fn creat64(path: *const c_char, mode: mode_t) -> c_int = -1;
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE = core::ptr::null_mut();
    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE = core::ptr::null_mut();
    fn access(path: *const c_char, mode: c_int) -> c_int = -1;
    fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int = -1;
    fn stat(path: *const c_char, out: *mut libc::stat) -> c_int = -1;
    fn stat64(path: *const c_char, out: *mut libc::stat64) -> c_int = -1;
    fn lstat(path: *const c_char, out: *mut libc::stat) -> c_int = -1;
    fn lstat64(path: *const c_char, out: *mut libc::stat64) -> c_int = -1;
    fn fstatat(dir: c_int, path: *const c_char, out: *mut libc::stat, flags: c_int) -> c_int = -1;
    fn fstatat64(dir: c_int, path: *const c_char, out: *mut libc::stat64, flags: c_int) -> c_int = -1;
    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut libc::statx) -> c_int = -1;
    fn __xstat(version: c_int, path: *const c_char, out: *mut libc::stat) -> c_int = -1;
    fn __xstat64(version: c_int, path: *const c_char, out: *mut libc::stat64) -> c_int = -1;
    fn __lxstat(version: c_int, path: *const c_char, out: *mut libc::stat) -> c_int = -1;
    fn __lxstat64(version: c_int, path: *const c_char, out: *mut libc::stat64) -> c_int = -1;
    fn setuid(uid: uid_t) -> c_int = -1;
    fn seteuid(uid: uid_t) -> c_int = -1;
    fn setreuid(real: uid_t, effective: uid_t) -> c_int = -1;
    fn setresuid(real: uid_t, effective: uid_t, saved: uid_t) -> c_int = -1;
    fn capset(header: *mut c_void, data: *const c_void) -> c_int = -1;
}
