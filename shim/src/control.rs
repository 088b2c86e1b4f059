//! Requests to the daemon: one record out, one record back.
//!
//! A thread or signal handler that asks takes a free connection of the
//! process, or opens one; nothing waits for a lock that an interrupted thread
//! may hold. A connection whose answer nobody read (a handler that jumped out)
//! is never used again. When the daemon is gone the call fails at once with
//! ECONNREFUSED, and the next one looks for the daemon anew.

use core::ffi::{c_int, c_uint};
use core::mem::{size_of, zeroed};
use core::sync::atomic::Ordering;

use libc::iovec;
use xfrm_proto::control::{ANSWER_BYTES, Answer, LARGEST_FRAME, REQUEST_BYTES, Request};

use crate::connection;
use crate::pages::{self, BUSY, EMPTY, IDLE, Place};
use crate::sys;

/// Parts of a datagram that fit beside the header; more go through a file.
const PARTS: usize = 64;
/// How often a connection is looked for before those in use are taken for lost.
const PATIENCE: u32 = 1 << 20;
/// Descriptors in one frame, either way.
const DESCRIPTORS: usize = 2;

/// What goes with a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cargo<'a> {
    /// The payload.
    pub(crate) parts: &'a [iovec],
    /// Descriptors to pass.
    pub(crate) fds: &'a [c_int],
}

/// What comes with an answer.
#[derive(Default)]
pub(crate) struct Received {
    /// Bytes of the payload in the caller's buffer.
    pub(crate) len: usize,
    /// A descriptor.
    pub(crate) fd: Option<c_int>,
}

/// Whether `fd` is one of this process's connections.
pub(crate) fn owns(fd: c_int) -> bool {
    fd > 0 && descriptors().any(|own| own == fd)
}

fn descriptors() -> impl Iterator<Item = c_int> {
    let wiped = pages::wiped();
    let places = wiped.places.iter();
    #[cfg(feature = "time")]
    let places = places.chain(wiped.waits.iter().map(|wait| &wait.place));
    let used = places.filter(|place| place.state.load(Ordering::Relaxed) != EMPTY);
    used.map(|place| &place.fd)
        .chain(&wiped.leases)
        .map(|fd| fd.load(Ordering::Relaxed))
}

/// The lowest connection that is `first` or higher.
pub(crate) fn owned_from(first: c_uint) -> Option<c_uint> {
    descriptors()
        .filter_map(|fd| c_uint::try_from(fd).ok())
        .filter(|&fd| fd > 0 && fd >= first)
        .min()
}

/// Moves a connection out of the way of a `dup2` onto its descriptor.
pub(crate) fn vacate(fd: c_int) {
    let wiped = pages::wiped();
    let places = wiped.places.iter();
    #[cfg(feature = "time")]
    let places = places.chain(wiped.waits.iter().map(|wait| &wait.place));
    let all = places.map(|place| &place.fd);
    for slot in all.chain(&wiped.leases) {
        if slot.load(Ordering::Relaxed) == fd
            && let Ok(moved) = sys::dup_above(fd, fd + 1).or_else(|_| sys::dup_above(fd, 3))
        {
            slot.store(moved, Ordering::Relaxed);
        }
    }
}

/// Uses the idle connections no more: who we are has changed, and the daemon must see it.
///
/// The first few stay open: memberships and policies that were asked for over them last as long.
pub(crate) fn reintroduce() {
    for place in &pages::wiped().places {
        if !take(place, IDLE) {
            continue;
        }
        let fd = place.fd.load(Ordering::Relaxed);
        let kept = pages::wiped().leases.iter().any(|lease| {
            lease
                .compare_exchange(0, fd, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        if kept {
            place.fd.store(0, Ordering::Relaxed);
        }
        release(place, false);
    }
}

/// Asks for an errno and flags.
pub(crate) fn ask(request: &Request, cargo: Cargo<'_>) -> Result<Answer, c_int> {
    exchange(request, cargo, &mut []).map(|(answer, _)| answer)
}

/// Asks for content or a descriptor too.
pub(crate) fn exchange(
    request: &Request,
    cargo: Cargo<'_>,
    buffer: &mut [u8],
) -> Result<(Answer, Received), c_int> {
    // A connection that was idle may have died long ago; a fresh one shows whether the daemon has.
    for _ in 0..=pages::CONNECTIONS {
        let (place, fresh) = connect()?;
        let fd = place.fd.load(Ordering::Relaxed);
        match transmit(fd, request, cargo) {
            Ok(()) => {}
            Err(errno @ (libc::EMSGSIZE | libc::EFAULT | libc::ENOBUFS | libc::ENOMEM)) => {
                release(place, true);
                return Err(errno);
            }
            Err(_) if !fresh => {
                release(place, false);
                continue;
            }
            Err(_) => {
                release(place, false);
                return Err(libc::ECONNREFUSED);
            }
        }
        let answer = receive(fd, buffer);
        release(place, answer.is_some());
        return answer.ok_or(libc::ECONNREFUSED);
    }
    Err(libc::ECONNREFUSED)
}

pub(crate) fn take(place: &Place, from: u32) -> bool {
    place
        .state
        .compare_exchange(from, BUSY, Ordering::Acquire, Ordering::Relaxed)
        .is_ok()
}

pub(crate) fn release(place: &Place, alive: bool) {
    if !alive {
        let fd = place.fd.swap(0, Ordering::Relaxed);
        if fd > 0 {
            sys::close(fd);
        }
    }
    place
        .state
        .store(if alive { IDLE } else { EMPTY }, Ordering::Release);
}

/// A connection of our own for one exchange, and whether it is new.
fn connect() -> Result<(&'static Place, bool), c_int> {
    let places = &pages::wiped().places;
    for _ in 0..PATIENCE {
        if let Some(place) = places.iter().find(|place| take(place, IDLE)) {
            return Ok((place, false));
        }
        if let Some(place) = places.iter().find(|place| take(place, EMPTY)) {
            return match connection::open() {
                Ok(fd) => {
                    place.fd.store(fd, Ordering::Relaxed);
                    Ok((place, true))
                }
                Err(errno) => {
                    place.state.store(EMPTY, Ordering::Release);
                    Err(errno)
                }
            };
        }
        sys::yield_now();
    }
    Err(libc::ECONNREFUSED)
}

/// Room for `DESCRIPTORS` in a control message, aligned as its header must be.
#[repr(C, align(8))]
struct Ancillary([u8; 64]);

pub(crate) fn transmit(fd: c_int, request: &Request, cargo: Cargo<'_>) -> Result<(), c_int> {
    let header: [u8; REQUEST_BYTES] = request.encode();
    let mut parts = [iovec {
        iov_base: core::ptr::null_mut(),
        iov_len: 0,
    }; PARTS + 1];
    let own = iovec {
        iov_base: header.as_ptr().cast_mut().cast(),
        iov_len: header.len(),
    };
    let count = cargo.parts.len() + 1;
    let Some(used) = parts.get_mut(..count) else {
        return Err(libc::EMSGSIZE);
    };
    for (slot, part) in used
        .iter_mut()
        .zip(core::iter::once(&own).chain(cargo.parts))
    {
        *slot = *part;
    }
    let bytes = used.iter().map(|part| part.iov_len);
    if bytes.fold(0, usize::saturating_add) > LARGEST_FRAME {
        return Err(libc::EMSGSIZE);
    }
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = used.as_mut_ptr();
    message.msg_iovlen = count;
    let mut ancillary = Ancillary([0; 64]);
    if !cargo.fds.is_empty() {
        let bytes = size_of::<c_int>() * cargo.fds.len().min(DESCRIPTORS);
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        // SAFETY: the buffer has room for DESCRIPTORS, is aligned, and outlives the call.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes as c_uint) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const message);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes as c_uint) as usize;
            core::ptr::copy_nonoverlapping(
                cargo.fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(first),
                bytes,
            );
        }
    }
    sys::sendmsg(fd, &message, 0).map(drop)
}

/// The answer; `None` when the daemon is gone.
pub(crate) fn receive(fd: c_int, buffer: &mut [u8]) -> Option<(Answer, Received)> {
    let mut header = [0_u8; ANSWER_BYTES];
    if buffer.is_empty() {
        let len = sys::recv(fd, &mut header, 0).ok()?;
        let (answer, _) = Answer::decode(header.get(..len)?)?;
        return Some((answer, Received::default()));
    }
    let mut parts = [
        iovec {
            iov_base: header.as_mut_ptr().cast(),
            iov_len: header.len(),
        },
        iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        },
    ];
    let mut ancillary = Ancillary([0; 64]);
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    message.msg_controllen = ancillary.0.len();
    let len = sys::recvmsg(fd, &mut message, libc::MSG_CMSG_CLOEXEC).ok()?;
    let (answer, _) = Answer::decode(header.get(..len.min(ANSWER_BYTES))?)?;
    let mut received = Received {
        len: len.saturating_sub(ANSWER_BYTES),
        fd: None,
    };
    // SAFETY: the kernel has filled the control buffer up to msg_controllen.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        if !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_RIGHTS
            && (*first).cmsg_len >= libc::CMSG_LEN(size_of::<c_int>() as c_uint) as usize
        {
            received.fd = Some(libc::CMSG_DATA(first).cast::<c_int>().read_unaligned());
        }
    }
    Some((answer, received))
}
