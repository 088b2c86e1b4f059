//! Sleeping.

use core::ffi::{c_int, c_uint};

use libc::{clockid_t, pollfd, timespec, useconds_t};

use super::wait::{self, Outcome};
use super::{Base, SECOND, nanos_of, page, real, to_timespec};
use crate::symbols::exported;
use crate::sys;

/// No descriptor but ours.
pub(super) const NOTHING: pollfd = pollfd {
    fd: -1,
    events: 0,
    revents: 0,
};

/// Sleeps until a boot time; an errno and what is left then. None where the daemon is gone.
fn until(page: &'static xfrm_proto::clock::Page, due: u64) -> Option<Result<(), (c_int, u64)>> {
    let mut fds = [NOTHING];
    // SAFETY: no mask.
    let outcome = unsafe { wait::poll(page, &mut fds, due, core::ptr::null()) }?;
    Some(match outcome {
        Outcome::Failed(errno) => Err((errno, due.saturating_sub(page.boot()))),
        Outcome::Due | Outcome::Ready(_) => Ok(()),
    })
}

exported! {
    fn nanosleep(wanted: *const timespec, left: *mut timespec) -> c_int {
        match clock_nanosleep(libc::CLOCK_MONOTONIC, 0, wanted, left) {
            0 => 0,
            errno => super::fail(errno),
        }
    }

    fn clock_nanosleep(clock: clockid_t, flags: c_int, wanted: *const timespec, left: *mut timespec) -> c_int {
        let (Some(page), Some(base), Some(time)) = (page(), Base::of(clock), wanted.as_ref()) else {
            return real::clock_nanosleep(clock, flags, wanted, left);
        };
        let Some(nanos) = nanos_of(time) else {
            return libc::EINVAL;
        };
        let absolute = flags & libc::TIMER_ABSTIME != 0;
        let due = match absolute {
            true => base.boot_at(page, nanos),
            false => page.boot().saturating_add(nanos),
        };
        let saved = sys::errno();
        let slept = until(page, due);
        sys::set_errno(saved);
        match slept {
            Some(Ok(())) => 0,
            Some(Err((errno, rest))) => {
                if !absolute && !left.is_null() {
                    left.write(to_timespec(rest));
                }
                errno
            }
            None => real::clock_nanosleep(clock, flags, wanted, left),
        }
    }

    fn sleep(secs: c_uint) -> c_uint {
        let mut left = to_timespec(u64::from(secs) * SECOND);
        match clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const left, &raw mut left) {
            0 => 0,
            _ => c_uint::try_from(left.tv_sec).unwrap_or(0) + c_uint::from(left.tv_nsec > 0),
        }
    }

    fn usleep(micros: useconds_t) -> c_int {
        let wanted = to_timespec(u64::from(micros) * 1000);
        nanosleep(&raw const wanted, core::ptr::null_mut())
    }
}
