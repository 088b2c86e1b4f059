//! The originals of the calls that have to do with time.

use core::ffi::{CStr, c_int, c_long, c_uint, c_void};
use core::sync::atomic::AtomicPtr;

use libc::{
    clockid_t, epoll_event, fd_set, itimerspec, itimerval, nfds_t, pollfd, sem_t, sigevent,
    sigset_t, time_t, timer_t, timespec, timeval,
};

use crate::real::{find, originals};

originals! {
    fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int = -1;
    fn gettimeofday(now: *mut timeval, zone: *mut c_void) -> c_int = -1;
    fn time(now: *mut time_t) -> time_t = -1;
    fn timespec_get(now: *mut timespec, base: c_int) -> c_int = 0;
    fn clock_nanosleep(clock: clockid_t, flags: c_int, wanted: *const timespec, left: *mut timespec) -> c_int = libc::ENOSYS;
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int = -1;
    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int = -1;
    fn select(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int = -1;
    fn pselect(count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int = -1;
    fn epoll_pwait(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: c_int, mask: *const sigset_t) -> c_int = -1;
    fn epoll_pwait2(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int = -1;
    fn timer_create(clock: clockid_t, event: *mut sigevent, timer: *mut timer_t) -> c_int = -1;
    fn timer_settime(timer: timer_t, flags: c_int, new: *const itimerspec, old: *mut itimerspec) -> c_int = -1;
    fn timer_gettime(timer: timer_t, now: *mut itimerspec) -> c_int = -1;
    fn timer_delete(timer: timer_t) -> c_int = -1;
    fn timer_getoverrun(timer: timer_t) -> c_int = -1;
    fn timerfd_settime(fd: c_int, flags: c_int, new: *const itimerspec, old: *mut itimerspec) -> c_int = -1;
    fn timerfd_gettime(fd: c_int, now: *mut itimerspec) -> c_int = -1;
    fn setitimer(which: c_int, new: *const itimerval, old: *mut itimerval) -> c_int = -1;
    fn getitimer(which: c_int, now: *mut itimerval) -> c_int = -1;
    fn alarm(secs: c_uint) -> c_uint = 0;
    fn pthread_setcanceltype(new: c_int, old: *mut c_int) -> c_int = libc::ENOSYS;
    fn _pthread_cleanup_push(buffer: *mut c_void, routine: *mut c_void, argument: *mut c_void) -> c_int = 0;
    fn _pthread_cleanup_pop(buffer: *mut c_void, run: c_int) -> c_int = 0;
    fn sem_trywait(semaphore: *mut sem_t) -> c_int = -1;
    fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, limit: *const timespec) -> c_int = -1;
    fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long = -1;
}
