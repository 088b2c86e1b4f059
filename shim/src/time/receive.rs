//! Sockets with `SO_RCVTIMEO`: a receive first waits for something to come, or for its time.

use core::ffi::{c_int, c_void};
use core::mem::size_of;
use core::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use libc::{cmsghdr, pollfd, socklen_t, timeval};

use super::sleep::NOTHING;
use super::wait::{self, Outcome};
use super::{Base, SECOND, page, to_timespec};
use crate::sys;

/// Sockets of a process that can have one.
const MOST: usize = 64;

/// A socket's limit; a descriptor of 0 is no socket.
struct Limited {
    fd: AtomicI32,
    nanos: AtomicU64,
}

static LIMITED: [Limited; MOST] = [const {
    Limited {
        fd: AtomicI32::new(0),
        nanos: AtomicU64::new(0),
    }
}; MOST];
/// How many there have been, which spares the rest of a search.
static USED: AtomicUsize = AtomicUsize::new(0);

fn limit_of(fd: c_int) -> Option<&'static Limited> {
    let used = USED.load(Ordering::Acquire);
    let mut known = LIMITED.iter().take(used);
    known.find(|it| it.fd.load(Ordering::Relaxed) == fd)
}

/// Remembers an option that the host has set.
///
/// # Safety
/// `value` has `len` bytes.
pub(crate) unsafe fn note_option(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) {
    if level != libc::SOL_SOCKET
        || name != libc::SO_RCVTIMEO
        || (len as usize) < size_of::<timeval>()
        || page().is_none()
    {
        return;
    }
    // SAFETY: long enough.
    let time = unsafe { value.cast::<timeval>().read_unaligned() };
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    let nanos = secs
        .saturating_mul(SECOND)
        .saturating_add(micros.saturating_mul(1000));
    if let Some(known) = limit_of(fd) {
        known.nanos.store(nanos, Ordering::Relaxed);
        return;
    }
    if nanos == 0 {
        return;
    }
    let index = USED.fetch_add(1, Ordering::AcqRel);
    match LIMITED.get(index) {
        Some(free) => {
            free.nanos.store(nanos, Ordering::Relaxed);
            free.fd.store(fd, Ordering::Relaxed);
        }
        None => USED.store(MOST, Ordering::Release),
    }
}

/// Waits for what a receive would wait for; an errno if its time comes first.
pub(crate) fn before_receiving(fd: c_int, flags: c_int) -> Result<(), c_int> {
    let Some(page) = page() else { return Ok(()) };
    if USED.load(Ordering::Relaxed) == 0 || flags & libc::MSG_DONTWAIT != 0 {
        return Ok(());
    }
    let Some(nanos) = limit_of(fd).map(|it| it.nanos.load(Ordering::Relaxed)) else {
        return Ok(());
    };
    // The option may be that of another socket, which had the descriptor before.
    let Some(now) = sys::option::<[i64; 2]>(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO) else {
        return Ok(());
    };
    if nanos == 0 || now == [0, 0] || is_non_blocking(fd) {
        return Ok(());
    }
    let mut fds = [
        pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        },
        NOTHING,
    ];
    // SAFETY: no mask.
    match unsafe {
        wait::poll(
            page,
            &mut fds,
            page.boot().saturating_add(nanos),
            core::ptr::null(),
        )
    } {
        Some(Outcome::Due) => Err(libc::EAGAIN),
        Some(Outcome::Failed(errno)) => Err(errno),
        Some(Outcome::Ready(_)) | None => Ok(()),
    }
}

fn is_non_blocking(fd: c_int) -> bool {
    // SAFETY: plain integers.
    let flags = unsafe { crate::real::fcntl(fd, libc::F_GETFL, 0) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// Gives the present to what tells when a packet came, which the host's kernel has said by its clock.
///
/// # Safety
/// The header is one that the host has filled in.
pub(crate) unsafe fn stamp(header: *mut cmsghdr) {
    let Some(page) = page() else { return };
    // SAFETY: the caller's; a time is as long as the kind of its message says.
    unsafe {
        let nanos = match ((*header).cmsg_level, (*header).cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMP | libc::SCM_TIMESTAMPNS) => Base::Real.now(page),
            _ => return,
        };
        let mut time = to_timespec(nanos);
        if (*header).cmsg_type == libc::SCM_TIMESTAMP {
            time.tv_nsec /= 1000;
        }
        libc::CMSG_DATA(header)
            .cast::<libc::timespec>()
            .write_unaligned(time);
    }
}
