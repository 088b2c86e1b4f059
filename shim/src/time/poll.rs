//! Waiting for descriptors with a time limit.
//!
//! Each call first looks without waiting; only if nothing is there the daemon hears of it.

use core::ffi::c_int;
use core::mem::size_of;

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};
use xfrm_proto::clock::Page;

use super::sleep::NOTHING;
use super::wait::{self, Outcome, Wait};
use super::{nanos_of, page, real, to_timespec};
use crate::symbols::exported;
use crate::sys;

/// Descriptors for which there is room on the stack.
const FEW: usize = 64;
/// Words of the largest sets of descriptors.
const SET_WORDS: usize = 128;
const MILLISECOND: u64 = 1_000_000;
const MICROSECOND: u64 = 1_000;

/// A time limit of milliseconds as the kernel has it, which waits for ever if it is negative.
fn of_millis(timeout: c_int) -> Option<u64> {
    u64::try_from(timeout).ok().map(|it| it * MILLISECOND)
}

unsafe fn poll_until(
    page: &'static Page,
    fds: *mut pollfd,
    count: usize,
    due: u64,
    mask: *const sigset_t,
) -> Option<c_int> {
    let mut few = [NOTHING; FEW + 1];
    let bytes = (count + 1) * size_of::<pollfd>();
    let many = if count > FEW {
        Some(sys::map_scratch(bytes)?)
    } else {
        None
    };
    // SAFETY: as many as are mapped or on the stack; the caller's descriptors are `count`.
    let room = unsafe {
        let start = many.map_or(few.as_mut_ptr(), |it| it.cast());
        if count > 0 {
            core::ptr::copy_nonoverlapping(fds, start, count);
        }
        core::slice::from_raw_parts_mut(start, count + 1)
    };
    // SAFETY: the caller's mask.
    let outcome = unsafe { wait::poll(page, room, due, mask) };
    let result = match outcome {
        Some(Outcome::Ready(ready)) => Some(ready),
        Some(Outcome::Due) => Some(0),
        Some(Outcome::Failed(errno)) => Some(super::fail(errno)),
        None => None,
    };
    for (index, polled) in room.iter().take(count).enumerate() {
        // SAFETY: the caller's descriptors are `count`.
        unsafe { (*fds.add(index)).revents = polled.revents };
    }
    if let Some(address) = many {
        sys::unmap(address, bytes);
    }
    result
}

/// The sets of `select`, with room for a descriptor of ours.
struct Sets([[u64; SET_WORDS]; 3]);

impl Sets {
    /// Copies; none if there is no room.
    unsafe fn of(count: usize, sets: [*mut fd_set; 3]) -> Option<Self> {
        let words = count.div_ceil(64);
        if words > SET_WORDS {
            return None;
        }
        let mut copy = Self([[0; SET_WORDS]; 3]);
        for (to, from) in copy.0.iter_mut().zip(sets) {
            if !from.is_null() {
                // SAFETY: the kernel would read as many words of the caller's.
                unsafe { core::ptr::copy_nonoverlapping(from.cast(), to.as_mut_ptr(), words) };
            }
        }
        Some(copy)
    }

    unsafe fn give_back(&self, count: usize, sets: [*mut fd_set; 3]) {
        let words = count.div_ceil(64);
        for (from, to) in self.0.iter().zip(sets) {
            if !to.is_null() {
                // SAFETY: the kernel would write as many words of the caller's.
                unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.cast(), words) };
            }
        }
    }

    unsafe fn select(
        &mut self,
        count: usize,
        given: [*mut fd_set; 3],
        limit: *const timespec,
        mask: *const sigset_t,
    ) -> c_int {
        let [read, write, except] = &mut self.0;
        let or_null = |set: &mut [u64; SET_WORDS], given: *mut fd_set| match given.is_null() {
            true => core::ptr::null_mut(),
            false => set.as_mut_ptr().cast(),
        };
        let [_, to_write, to_except] = given;
        // SAFETY: the sets are larger than the count; limit and mask are the caller's.
        unsafe {
            real::pselect(
                count as c_int,
                read.as_mut_ptr().cast(),
                or_null(write, to_write),
                or_null(except, to_except),
                limit,
                mask,
            )
        }
    }
}

unsafe fn select_until(
    page: &'static Page,
    count: c_int,
    sets: [*mut fd_set; 3],
    due: u64,
    mask: *const sigset_t,
) -> Option<c_int> {
    let count = usize::try_from(count).unwrap_or(0);
    let mut wait = Wait::begin(page, due)?;
    loop {
        // SAFETY: the caller's sets.
        let mut copy = match unsafe { Sets::of(count, sets) } {
            Some(copy) => copy,
            None => {
                wait.end();
                return None;
            }
        };
        let ours = usize::try_from(wait.fd()).unwrap_or(0);
        let due = wait.is_due();
        let own = ours / 64;
        let bit = 1_u64 << (ours % 64);
        let [read, ..] = &mut copy.0;
        if !due {
            match read.get_mut(own) {
                Some(word) => *word |= bit,
                None => {
                    wait.end();
                    return None;
                }
            }
        }
        let now = to_timespec(0);
        let limit = if due {
            &raw const now
        } else {
            core::ptr::null()
        };
        let all = if due { count } else { count.max(ours + 1) };
        // SAFETY: the copies; the caller's mask.
        let ready = unsafe { copy.select(all, sets, limit, mask) };
        if ready < 0 {
            let errno = sys::errno();
            wait.end();
            return Some(super::fail(errno));
        }
        let [read, ..] = &mut copy.0;
        let heard = !due && read.get(own).is_some_and(|word| word & bit != 0);
        if heard && let Some(word) = read.get_mut(own) {
            *word &= !bit;
        }
        let theirs = ready - c_int::from(heard);
        if theirs > 0 || due {
            // SAFETY: the caller's sets.
            unsafe { copy.give_back(count, sets) };
            wait.end();
            return Some(theirs);
        }
        if !wait.look() {
            return None;
        }
    }
}

unsafe fn epoll_until(
    page: &'static Page,
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    due: u64,
    mask: *const sigset_t,
) -> Option<c_int> {
    loop {
        let ours = pollfd {
            fd: epoll,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [ours, NOTHING];
        // SAFETY: the caller's mask.
        let outcome = unsafe { wait::poll(page, &mut fds, due, mask) }?;
        if let Outcome::Failed(errno) = outcome {
            return Some(super::fail(errno));
        }
        // SAFETY: the caller's events.
        let ready = unsafe { real::epoll_pwait(epoll, events, most, 0, core::ptr::null()) };
        // Another thread may have taken what there was.
        if ready != 0 || matches!(outcome, Outcome::Due) {
            return Some(ready);
        }
    }
}

exported! {
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
        if timeout > 0 && let (Some(page), Some(limit)) = (page(), of_millis(timeout)) {
            let due = page.boot().saturating_add(limit);
            let ready = real::poll(fds, count, 0);
            if ready != 0 {
                return ready;
            }
            let polled = poll_until(page, fds, count as usize, due, core::ptr::null());
            if let Some(result) = polled {
                return result;
            }
        }
        real::poll(fds, count, timeout)
    }

    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let limit = timeout.as_ref().and_then(nanos_of).filter(|&limit| limit > 0);
        if let (Some(page), Some(limit)) = (page(), limit) {
            let due = page.boot().saturating_add(limit);
            let ready = real::ppoll(fds, count, &raw const NOW, mask);
            if ready != 0 {
                return ready;
            }
            if let Some(result) = poll_until(page, fds, count as usize, due, mask) {
                return result;
            }
        }
        real::ppoll(fds, count, timeout, mask)
    }

    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: size_t) -> c_int {
        check(count, room);
        poll(fds, count, timeout)
    }

    fn __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int {
        check(count, room);
        ppoll(fds, count, timeout, mask)
    }

    fn select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int {
        if let (Some(page), Some(given)) = (page(), timeout.as_mut())
            && let Some(limit) = micros_of(given).filter(|&limit| limit > 0)
        {
            let due = page.boot().saturating_add(limit);
            let sets = [read, write, except];
            if let Some(result) = select_until(page, count, sets, due, core::ptr::null()) {
                // As on Linux, the caller learns what is left.
                let left = due.saturating_sub(page.boot());
                let time = to_timespec(left);
                given.tv_sec = time.tv_sec;
                given.tv_usec = time.tv_nsec / MICROSECOND.cast_signed();
                return result;
            }
        }
        real::select(count, read, write, except, timeout)
    }

    fn pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let limit = timeout.as_ref().and_then(nanos_of).filter(|&limit| limit > 0);
        if let (Some(page), Some(limit)) = (page(), limit) {
            let due = page.boot().saturating_add(limit);
            let sets = [read, write, except];
            if let Some(result) = select_until(page, count, sets, due, mask) {
                return result;
            }
        }
        real::pselect(count, read, write, except, timeout, mask)
    }

    fn epoll_wait(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: c_int) -> c_int {
        epoll_pwait(epoll, events, most, timeout, core::ptr::null())
    }

    fn epoll_pwait(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: c_int, mask: *const sigset_t) -> c_int {
        if timeout > 0 && let (Some(page), Some(limit)) = (page(), of_millis(timeout)) {
            let due = page.boot().saturating_add(limit);
            let ready = real::epoll_pwait(epoll, events, most, 0, mask);
            if ready != 0 {
                return ready;
            }
            if let Some(result) = epoll_until(page, epoll, events, most, due, mask) {
                return result;
            }
        }
        real::epoll_pwait(epoll, events, most, timeout, mask)
    }

    fn epoll_pwait2(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        let limit = timeout.as_ref().and_then(nanos_of).filter(|&limit| limit > 0);
        if let (Some(page), Some(limit)) = (page(), limit) {
            let due = page.boot().saturating_add(limit);
            let ready = real::epoll_pwait(epoll, events, most, 0, mask);
            if ready != 0 {
                return ready;
            }
            if let Some(result) = epoll_until(page, epoll, events, most, due, mask) {
                return result;
            }
        }
        real::epoll_pwait2(epoll, events, most, timeout, mask)
    }
}

static NOW: timespec = timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// As libc's fortified functions, which end a program that says it has more than there is.
fn check(count: nfds_t, room: size_t) {
    if room / size_of::<pollfd>() < count as usize {
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
}

/// Nanoseconds, unless the kernel would say that this is no time. It takes more microseconds than a second has.
fn micros_of(time: &timeval) -> Option<u64> {
    let secs = u64::try_from(time.tv_sec).ok()?;
    let micros = u64::try_from(time.tv_usec).ok()?;
    let nanos = secs.saturating_mul(super::SECOND);
    Some(nanos.saturating_add(micros.saturating_mul(MICROSECOND)))
}
