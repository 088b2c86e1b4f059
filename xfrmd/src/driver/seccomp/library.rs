//! The shim, loaded by us to make calls on behalf of programs that it is not in.
//!
//! It is loaded for itself: its symbols take the place of nobody's, and only what is called through
//! [`Shim`] passes through it. Its control connections lead to our own main thread.

use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_char, c_int, msghdr, sockaddr, socklen_t, ssize_t};
use xfrm_proto::control::Address;

/// Declares the functions and finds them by their names.
macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {
        /// The library's functions, each with the contract of libc's of that name.
        pub(super) struct Shim {
            set_process: unsafe extern "C" fn(u32),
            $($name: unsafe extern "C" fn($($type),*) -> $ret,)*
        }

        impl Shim {
            fn resolve(handle: *mut c_void) -> io::Result<Self> {
                Ok(Self {
                    set_process: {
                        let found = symbol(handle, "xfrm_shim_set_process\0")?;
                        // SAFETY: the library defines the symbol with this signature.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32)>(found)
                        }
                    },
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        let found = symbol(handle, name)?;
                        // SAFETY: the library defines the symbol with this signature.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($type),*) -> $ret,
                            >(found)
                        }
                    },)*
                })
            }

            $($(#[$doc])*
            ///
            /// # Safety
            /// As libc's.
            pub(super) unsafe fn $name(&self, $($arg: $type),*) -> $ret {
                // SAFETY: the caller's contract.
                unsafe { (self.$name)($($arg),*) }
            })*
        }
    };
}

functions! {
    /// `socket(2)`.
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    /// `bind(2)`.
    fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    /// `connect(2)`.
    fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    /// `getsockname(2)`.
    fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    /// `getsockopt(2)`.
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    /// `setsockopt(2)`.
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    /// `sendmsg(2)`.
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    /// `recvmsg(2)`.
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    /// `close(2)`.
    fn close(fd: c_int) -> c_int;
}

impl Shim {
    /// Whose calls follow: an unbound socket gets its process's id for a port.
    pub(super) fn call_for(&self, process: Option<u32>) {
        // SAFETY: it stores a number.
        unsafe { (self.set_process)(process.unwrap_or(0)) };
    }

    /// Loads it from `path`, for the daemon at `address`.
    pub(super) fn load(path: &Path, address: &Address<'_>) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let text = CString::new(address.to_string())?;
        // SAFETY: the path ends in NUL. What runs when the library is loaded is ours.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(failure());
        }
        let set_address = symbol(handle, "xfrm_shim_set_address\0")?;
        // SAFETY: the library defines it so; no thread uses the library yet.
        unsafe {
            let set_address = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char)>(
                set_address,
            );
            set_address(text.as_ptr());
        }
        Self::resolve(handle)
    }
}

fn symbol(handle: *mut c_void, name: &'static str) -> io::Result<*mut c_void> {
    let name = CStr::from_bytes_with_nul(name.as_bytes()).map_err(io::Error::other)?;
    // SAFETY: the library stays loaded; the name ends in NUL.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if found.is_null() {
        return Err(failure());
    }
    Ok(found)
}

/// What the dynamic linker says.
fn failure() -> io::Error {
    // SAFETY: the text lives until the next failure of this thread.
    let text = unsafe {
        let text = libc::dlerror();
        if text.is_null() {
            return io::Error::other("the dynamic linker does not say why");
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    io::Error::other(text)
}
