//! Finding the daemon and connecting to it.
//!
//! `XFRMD_CONTROL` names it; without the variable it is the system's. Three
//! ways lead there: an abstract address in the process's network namespace, a
//! pathname, and the daemon's own root directory for a process whose mount
//! namespace hides the pathname.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int};
use core::mem::{offset_of, zeroed};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::sockaddr_un;
use xfrm_proto::control::{
    ANSWER_BYTES, Address, Answer, ENV_CONTROL, EVENT_TAIL_BYTES, Request, VERSION,
};

use crate::sys;

/// Connections live up here, out of the way of select and of close loops.
const HIGH: c_int = 900;
/// What the kernel allows at most by default; more is cut to the limit.
const SEND_BUFFER: c_int = 1 << 20;

/// How the kernel shows a uid that a user namespace does not have.
const OVERFLOW_UID: u32 = 65534;

struct Environment(UnsafeCell<[u8; 512]>, AtomicUsize);

// SAFETY: written once, while the library is loaded, before the length says so.
unsafe impl Sync for Environment {}

static ENVIRONMENT: Environment = Environment(UnsafeCell::new([0; 512]), AtomicUsize::new(0));

/// The daemon is a private instance: [`event_tail`] gives one.
static IS_PRIVATE: AtomicBool = AtomicBool::new(false);

/// Keeps a copy of the variable: the program may change its environment.
pub(crate) fn read_environment() {
    let mut name = [0_u8; 32];
    for (to, from) in name.iter_mut().zip(ENV_CONTROL.bytes()) {
        *to = from;
    }
    // SAFETY: the name ends in NUL; no thread changes the environment while libraries are loaded.
    let value = unsafe {
        let value = libc::getenv(name.as_ptr().cast());
        if value.is_null() {
            return;
        }
        CStr::from_ptr(value).to_bytes()
    };
    // SAFETY: nobody reads before the length is set.
    unsafe { set_address(value) };
}

/// Says where the daemon is, in the form of the variable.
///
/// # Safety
/// No other thread makes a call of this library yet.
pub(crate) unsafe fn set_address(text: &[u8]) {
    // SAFETY: the caller's contract.
    let copy = unsafe { &mut *ENVIRONMENT.0.get() };
    if let Some(room) = copy.get_mut(..text.len()) {
        room.copy_from_slice(text);
        ENVIRONMENT.1.store(text.len(), Ordering::Release);
        IS_PRIVATE.store(address().secret.is_some(), Ordering::Relaxed);
    }
}

fn address() -> Address<'static> {
    let len = ENVIRONMENT.1.load(Ordering::Acquire);
    // SAFETY: not written any more once the length is set.
    let copy = unsafe { &*ENVIRONMENT.0.get() };
    copy.get(..len)
        .filter(|text| !text.is_empty())
        .and_then(Address::parse)
        .unwrap_or(Address::SYSTEM)
}

/// Whether [`event_tail`] gives one; to be asked at each receive, where nothing is read again.
pub(crate) fn is_private() -> bool {
    IS_PRIVATE.load(Ordering::Relaxed)
}

/// What is behind the events of our instance, if it is a private one.
pub(crate) fn event_tail() -> Option<[u8; EVENT_TAIL_BYTES]> {
    address().secret.map(|secret| secret.event_tail())
}

/// A connection that has been introduced, at a high descriptor, closed on exec.
pub(crate) fn open() -> Result<c_int, c_int> {
    let address = address();
    for way in [Way::Abstract, Way::Path, Way::RootOfDaemon] {
        let fd = high_socket()?;
        if reach(fd, &address, way) && introduce(fd, &address, way) {
            let _ = sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER);
            return Ok(fd);
        }
        sys::close(fd);
    }
    Err(libc::ECONNREFUSED)
}

fn high_socket() -> Result<c_int, c_int> {
    let low = sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0)?;
    // Where the limit on descriptors is below, the low one has to do.
    let Ok(high) = sys::dup_above(low, HIGH) else {
        return Ok(low);
    };
    sys::close(low);
    Ok(high)
}

#[derive(Clone, Copy)]
enum Way {
    Abstract,
    Path,
    RootOfDaemon,
}

fn reach(fd: c_int, address: &Address<'_>, way: Way) -> bool {
    // SAFETY: all-zero bytes are a valid sockaddr_un.
    let mut name: sockaddr_un = unsafe { zeroed() };
    name.sun_family = libc::AF_UNIX as u16;
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        for &byte in bytes {
            if let Some(slot) = name.sun_path.get_mut(at) {
                *slot = byte as core::ffi::c_char;
            }
            at += 1;
        }
    };
    match way {
        Way::Abstract if !address.abstract_name.is_empty() => {
            put(&[0]);
            put(address.abstract_name);
        }
        Way::Path => put(address.path),
        Way::RootOfDaemon if address.pid != 0 => {
            put(b"/proc/");
            let mut digits = [0_u8; 10];
            put(decimal(address.pid, &mut digits));
            put(b"/root");
            put(address.path);
        }
        _ => return false,
    }
    at < name.sun_path.len()
        && sys::connect_unix(fd, &name, offset_of!(sockaddr_un, sun_path) + at).is_ok()
}

fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        start -= 1;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

/// Shows who we are and checks who answers: a private instance by its secret, a shared daemon by
/// its uid.
///
/// In a user namespace that does not know the daemon's uid, only a pathname can be trusted: nobody
/// else could have made it.
fn introduce(fd: c_int, address: &Address<'_>, way: Way) -> bool {
    let token = address.secret.map_or([0; 16], |secret| secret.token);
    if address.secret.is_none() {
        let peer = sys::option::<[u32; 3]>(fd, libc::SOL_SOCKET, libc::SO_PEERCRED);
        let trusted = peer.is_some_and(|[_, uid, _]| {
            uid == 0
                || uid == sys::effective_uid()
                || (uid == OVERFLOW_UID && matches!(way, Way::Path))
        });
        if !trusted {
            return false;
        }
    }
    let hello = Request::Hello {
        version: VERSION,
        token,
    }
    .encode();
    let mut part = libc::iovec {
        iov_base: hello.as_ptr().cast_mut().cast(),
        iov_len: hello.len(),
    };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if sys::sendmsg(fd, &message, 0).is_err() {
        return false;
    }
    let mut frame = [0_u8; ANSWER_BYTES + 16];
    let Ok(len) = sys::recv(fd, &mut frame, 0) else {
        return false;
    };
    match frame.get(..len).and_then(Answer::decode) {
        Some((answer, proof)) => {
            answer.errno == 0 && address.secret.is_none_or(|secret| secret.proof == *proof)
        }
        None => false,
    }
}
