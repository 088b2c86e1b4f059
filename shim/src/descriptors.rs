//! Closing and copying descriptors: the table follows, and the control
//! connections stay out of reach, so that `closefrom` and close loops do not
//! cut a program off.

use core::ffi::{c_int, c_long, c_uint};

use crate::control;
use crate::options;
use crate::real;
use crate::sys;
use crate::table;

const CLOSE_RANGE_CLOEXEC: c_int = 4;

/// `close`.
pub(crate) fn close(fd: c_int) -> c_int {
    if control::owns(fd) {
        sys::set_errno(libc::EBADF);
        return -1;
    }
    if table::is_policy_holder(fd) {
        options::before_close(fd);
    }
    table::forget(fd);
    // SAFETY: a plain integer.
    unsafe { real::close(fd) }
}

/// `dup2` and `dup3`; `copy` calls the original.
pub(crate) fn copy_onto(from: c_int, to: c_int, copy: impl FnOnce() -> c_int) -> c_int {
    if control::owns(from) {
        sys::set_errno(libc::EBADF);
        return -1;
    }
    if from != to && control::owns(to) {
        control::vacate(to);
    }
    let result = copy();
    if result >= 0 && from != to {
        table::copy(from, to);
    }
    result
}

/// After `dup` and the like have made `to` (if not negative) from `from`.
pub(crate) fn copied(from: c_int, to: c_int) -> c_int {
    if to >= 0 {
        table::copy(from, to);
    }
    to
}

/// `fcntl`; `original` calls it.
pub(crate) fn control(fd: c_int, command: c_int, original: impl FnOnce() -> c_int) -> c_int {
    let result = original();
    if command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC {
        return copied(fd, result);
    }
    result
}

/// `close_range`, around the control connections.
pub(crate) fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let mut from = first;
    while let Some(ours) = control::owned_from(from).filter(|&ours| ours <= last) {
        if ours > from {
            let result = close_gap(from, ours - 1, flags);
            if result != 0 {
                return result;
            }
        }
        from = ours + 1;
    }
    // Nothing of the range is left when it ends with a connection; but an invalid one must fail.
    if from > last && from != first {
        return 0;
    }
    close_gap(from, last, flags)
}

fn close_gap(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // SAFETY: plain integers.
    let result = unsafe { real::close_range(first, last, flags) };
    if result == 0 && flags & CLOSE_RANGE_CLOEXEC == 0 {
        let bound = |fd| c_int::try_from(fd).unwrap_or(c_int::MAX);
        table::forget_range(bound(first), bound(last));
    }
    result
}

/// `closefrom`, around the control connections.
pub(crate) fn close_from(first: c_int) {
    let from = c_uint::try_from(first).unwrap_or(0);
    if close_range(from, c_uint::MAX, 0) == 0 {
        return;
    }
    // A kernel or libc without close_range: what an open descriptor's number can be is bounded.
    // SAFETY: the structure is written before it is read.
    let limit = unsafe {
        let mut limit: libc::rlimit = core::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur
    };
    for fd in first.max(0)..c_int::try_from(limit).unwrap_or(1 << 20) {
        if !control::owns(fd) {
            table::forget(fd);
            sys::close(fd);
        }
    }
}

/// The third argument of `fcntl` is a number or a pointer.
pub(crate) type FcntlArg = c_long;
