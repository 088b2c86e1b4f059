//! Clocks that are read.

use core::ffi::{c_int, c_void};

use libc::{clockid_t, time_t, timespec, timeval};

use super::{Base, SECOND, page, real, to_timespec};
use crate::symbols::exported;

/// `TIME_UTC` of `timespec_get`.
const TIME_UTC: c_int = 1;

exported! {
    fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int {
        if let (Some(page), Some(base)) = (page(), Base::of(clock)) && !now.is_null() {
            now.write(to_timespec(base.now(page)));
            return 0;
        }
        real::clock_gettime(clock, now)
    }

    fn gettimeofday(now: *mut timeval, zone: *mut c_void) -> c_int {
        if let Some(page) = page() && !now.is_null() {
            let nanos = Base::Real.now(page);
            now.write(timeval {
                tv_sec: (nanos / SECOND).cast_signed(),
                tv_usec: (nanos % SECOND / 1000).cast_signed(),
            });
            return match zone.is_null() {
                true => 0,
                // The time zone, which nobody has used for long.
                false => real::gettimeofday(core::ptr::null_mut(), zone),
            };
        }
        real::gettimeofday(now, zone)
    }

    fn time(now: *mut time_t) -> time_t {
        let Some(page) = page() else {
            return real::time(now);
        };
        let secs = (Base::Real.now(page) / SECOND).cast_signed();
        if !now.is_null() {
            now.write(secs);
        }
        secs
    }

    fn timespec_get(now: *mut timespec, base: c_int) -> c_int {
        match page() {
            Some(page) if base == TIME_UTC => {
                now.write(to_timespec(Base::Real.now(page)));
                base
            }
            _ => real::timespec_get(now, base),
        }
    }
}
