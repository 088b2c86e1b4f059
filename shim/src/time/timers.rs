//! Timers: `setitimer` and `alarm`, `timer_create`, `timerfd_create`.
//!
//! The daemon has them, and sends their signals as the kernel would. A timer's descriptor is the host's own, never armed by
//! us: the daemon, which is passed it, lets it run out when its time has come.
//! Timers of `timer_create` that start threads (`SIGEV_THREAD`) are left to the host.

use core::ffi::{c_int, c_uint};
use core::mem::zeroed;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use libc::{clockid_t, iovec, itimerspec, itimerval, sigevent, timer_t, timeval};
use xfrm_proto::clock::{Page, TimerKind, TimerSetting, decode_remaining};
use xfrm_proto::control::Request;

use super::{Base, SECOND, nanos_of, page, real, to_timespec};
use crate::control::{self, Cargo};
use crate::symbols::exported;
use crate::sys;

/// Timers that a process can create.
const MOST: usize = 256;
/// `timer_t` of the first: far from those of the host's kernel.
const FIRST: usize = 0x7866_0000;

/// A timer of `timer_create`.
struct Timer {
    /// Its clock and 1, 0 for a free place.
    clock: AtomicI32,
    signal: AtomicU32,
    thread: AtomicU32,
    value: AtomicU64,
}

static TIMERS: [Timer; MOST] = [const {
    Timer {
        clock: AtomicI32::new(0),
        signal: AtomicU32::new(0),
        thread: AtomicU32::new(0),
        value: AtomicU64::new(0),
    }
}; MOST];

/// A time and an interval.
type Times = (u64, u64);

/// Sets a timer or asks for it; what it was. An errno otherwise.
fn exchange(setting: &TimerSetting, set: bool, fd: Option<c_int>) -> Result<Times, c_int> {
    let bytes = setting.encode();
    let part = iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let request = Request::Timer { set };
    let parts = [part];
    let mut content = [0; 16];
    let mut cargo = Cargo {
        parts: &parts,
        fds: &[],
    };
    let (mut answer, mut received) = control::exchange(&request, cargo, &mut content)?;
    let fds = fd.map(|fd| [fd]);
    if answer.wants_file
        && let Some(fds) = &fds
    {
        cargo.fds = fds;
        (answer, received) = control::exchange(&request, cargo, &mut content)?;
    }
    if answer.errno != 0 {
        return Err(answer.errno.cast_signed());
    }
    let content = content.get(..received.len).unwrap_or_default();
    decode_remaining(content).ok_or(libc::ECONNREFUSED)
}

/// What is left of a time.
fn left(page: &Page, due: u64) -> u64 {
    match due {
        0 => 0,
        // A timer that is due has not run out before it has told.
        due => due.saturating_sub(page.boot()).max(1),
    }
}

fn to_value(nanos: u64) -> timeval {
    timeval {
        tv_sec: (nanos / SECOND).cast_signed(),
        tv_usec: (nanos % SECOND).div_ceil(1000).cast_signed(),
    }
}

fn micros_of(time: &timeval) -> Option<u64> {
    let secs = u64::try_from(time.tv_sec).ok()?;
    let micros = u64::try_from(time.tv_usec)
        .ok()
        .filter(|&it| it < 1_000_000)?;
    Some(secs.saturating_mul(SECOND).saturating_add(micros * 1000))
}

const INTERVAL: TimerSetting = TimerSetting {
    kind: TimerKind::Interval,
    number: 0,
    due: 0,
    interval: 0,
    signal: libc::SIGALRM as u32,
    thread: 0,
    value: 0,
};

/// When a new setting is due, and its interval.
fn times(page: &Page, base: Base, absolute: bool, new: &itimerspec) -> Option<Times> {
    let value = nanos_of(&new.it_value)?;
    let interval = nanos_of(&new.it_interval)?;
    let due = match (value, absolute) {
        (0, _) => 0,
        // A time that is past is due at once.
        (value, true) => base.boot_at(page, value).max(1),
        (value, false) => page.boot().saturating_add(value),
    };
    Some((due, interval))
}

unsafe fn give(page: &Page, (due, interval): Times, to: *mut itimerspec) {
    if !to.is_null() {
        let shown = itimerspec {
            it_interval: to_timespec(interval),
            it_value: to_timespec(left(page, due)),
        };
        // SAFETY: the caller's.
        unsafe { to.write(shown) };
    }
}

fn place(timer: timer_t) -> Option<(usize, &'static Timer)> {
    let index = (timer as usize).checked_sub(FIRST)?;
    let place = TIMERS.get(index)?;
    (place.clock.load(Ordering::Acquire) != 0).then_some((index, place))
}

fn setting_of(index: usize, timer: &Timer, (due, interval): Times) -> TimerSetting {
    TimerSetting {
        kind: TimerKind::Posix,
        number: index as u64,
        due,
        interval,
        signal: timer.signal.load(Ordering::Relaxed),
        thread: timer.thread.load(Ordering::Relaxed),
        value: timer.value.load(Ordering::Relaxed),
    }
}

fn base_of(timer: &Timer) -> Base {
    let clock = timer.clock.load(Ordering::Relaxed) - 1;
    Base::of(clock).unwrap_or(Base::Boot)
}

/// The clock of a timer's descriptor, and whether it is one.
fn base_of_descriptor(fd: c_int) -> Option<Base> {
    let mut path = [0_u8; 40];
    let mut digits = [0_u8; 12];
    let mut number = u32::try_from(fd).ok()?;
    let mut start = digits.len();
    loop {
        start -= 1;
        *digits.get_mut(start)? = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    let words = [&b"/proc/self/fdinfo/"[..], digits.get(start..)?, b"\0"];
    let mut at = 0;
    for word in words {
        path.get_mut(at..at + word.len())?.copy_from_slice(word);
        at += word.len();
    }
    let path = core::ffi::CStr::from_bytes_until_nul(&path).ok()?;
    let file = sys::open(path, libc::O_RDONLY | libc::O_CLOEXEC).ok()?;
    let mut text = [0_u8; 512];
    // SAFETY: a file of our own, and as many bytes as there are.
    let len = unsafe { crate::real::read(file, text.as_mut_ptr().cast(), text.len()) };
    sys::close(file);
    let text = text.get(..usize::try_from(len).ok()?)?;
    let mut lines = text.split(|&byte| byte == b'\n');
    let clock = lines.find_map(|line| line.strip_prefix(b"clockid: "))?;
    let clock = core::str::from_utf8(clock).ok()?.trim().parse().ok()?;
    Base::of(clock)
}

const fn descriptor(fd: c_int, (due, interval): Times) -> TimerSetting {
    TimerSetting {
        kind: TimerKind::Descriptor,
        number: fd as u64,
        due,
        interval,
        signal: 0,
        thread: 0,
        value: 0,
    }
}

exported! {
    fn alarm(secs: c_uint) -> c_uint {
        let Some(page) = page() else {
            return real::alarm(secs);
        };
        let due = match secs {
            0 => 0,
            secs => page.boot().saturating_add(u64::from(secs) * SECOND),
        };
        match exchange(&TimerSetting { due, ..INTERVAL }, true, None) {
            Ok((due, _)) => left(page, due).div_ceil(SECOND) as c_uint,
            Err(_) => real::alarm(secs),
        }
    }

    fn setitimer(which: c_int, new: *const itimerval, old: *mut itimerval) -> c_int {
        let (Some(page), Some(value)) = (page(), new.as_ref()) else {
            return real::setitimer(which, new, old);
        };
        if which != libc::ITIMER_REAL {
            return real::setitimer(which, new, old);
        }
        let (Some(first), Some(interval)) = (micros_of(&value.it_value), micros_of(&value.it_interval))
        else {
            return super::fail(libc::EINVAL);
        };
        let due = match first {
            0 => 0,
            first => page.boot().saturating_add(first),
        };
        match exchange(&TimerSetting { due, interval, ..INTERVAL }, true, None) {
            Ok((due, interval)) => {
                if !old.is_null() {
                    old.write(itimerval {
                        it_interval: to_value(interval),
                        it_value: to_value(left(page, due)),
                    });
                }
                0
            }
            Err(_) => real::setitimer(which, new, old),
        }
    }

    fn getitimer(which: c_int, now: *mut itimerval) -> c_int {
        let Some(page) = page() else {
            return real::getitimer(which, now);
        };
        if which != libc::ITIMER_REAL {
            return real::getitimer(which, now);
        }
        match exchange(&INTERVAL, false, None) {
            Ok((due, interval)) => {
                now.write(itimerval {
                    it_interval: to_value(interval),
                    it_value: to_value(left(page, due)),
                });
                0
            }
            Err(_) => real::getitimer(which, now),
        }
    }

    fn timer_create(clock: clockid_t, event: *mut sigevent, timer: *mut timer_t) -> c_int {
        let threaded = event.as_ref().is_some_and(|it| it.sigev_notify == libc::SIGEV_THREAD);
        if page().is_none() || Base::of(clock).is_none() || threaded {
            return real::timer_create(clock, event, timer);
        }
        let free = TIMERS.iter().enumerate().find(|(_, it)| {
            it.clock.compare_exchange(0, clock + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        let Some((index, place)) = free else {
            return super::fail(libc::EAGAIN);
        };
        let id = FIRST + index;
        let default: sigevent = zeroed();
        let (signal, value, thread) = match event.as_ref() {
            None => (libc::SIGALRM, id as u64, 0),
            Some(event) => match event.sigev_notify {
                libc::SIGEV_NONE => (0, 0, 0),
                libc::SIGEV_THREAD_ID => {
                    (event.sigev_signo, event.sigev_value.sival_ptr as u64, event.sigev_notify_thread_id)
                }
                _ => (event.sigev_signo, event.sigev_value.sival_ptr as u64, default.sigev_notify_thread_id),
            },
        };
        place.signal.store(signal as u32, Ordering::Relaxed);
        place.value.store(value, Ordering::Relaxed);
        place.thread.store(thread as u32, Ordering::Relaxed);
        timer.write(id as timer_t);
        0
    }

    fn timer_settime(timer: timer_t, flags: c_int, new: *const itimerspec, old: *mut itimerspec) -> c_int {
        let (Some(page), Some((index, place))) = (page(), place(timer)) else {
            return real::timer_settime(timer, flags, new, old);
        };
        let absolute = flags & libc::TIMER_ABSTIME != 0;
        let Some(times) = new.as_ref().and_then(|new| times(page, base_of(place), absolute, new)) else {
            return super::fail(libc::EINVAL);
        };
        match exchange(&setting_of(index, place, times), true, None) {
            Ok(before) => {
                give(page, before, old);
                0
            }
            Err(errno) => super::fail(errno),
        }
    }

    fn timer_gettime(timer: timer_t, now: *mut itimerspec) -> c_int {
        let (Some(page), Some((index, place))) = (page(), place(timer)) else {
            return real::timer_gettime(timer, now);
        };
        match exchange(&setting_of(index, place, (0, 0)), false, None) {
            Ok(times) => {
                give(page, times, now);
                0
            }
            Err(errno) => super::fail(errno),
        }
    }

    fn timer_delete(timer: timer_t) -> c_int {
        let Some((index, place)) = place(timer) else {
            return real::timer_delete(timer);
        };
        let _ = exchange(&setting_of(index, place, (0, 0)), true, None);
        place.clock.store(0, Ordering::Release);
        0
    }

    fn timer_getoverrun(timer: timer_t) -> c_int {
        match place(timer) {
            // Every time is told before the next one comes.
            Some(_) => 0,
            None => real::timer_getoverrun(timer),
        }
    }

    fn timerfd_settime(fd: c_int, flags: c_int, new: *const itimerspec, old: *mut itimerspec) -> c_int {
        let (Some(page), Some(base), Some(wanted)) = (page(), base_of_descriptor(fd), new.as_ref()) else {
            return real::timerfd_settime(fd, flags, new, old);
        };
        let absolute = flags & libc::TFD_TIMER_ABSTIME != 0;
        let Some(times) = times(page, base, absolute, wanted) else {
            return super::fail(libc::EINVAL);
        };
        // What has run out and was not read is forgotten.
        let never: itimerspec = zeroed();
        if real::timerfd_settime(fd, 0, &raw const never, core::ptr::null_mut()) != 0 {
            return -1;
        }
        match exchange(&descriptor(fd, times), true, Some(fd)) {
            Ok(before) => {
                give(page, before, old);
                0
            }
            Err(_) => real::timerfd_settime(fd, flags, new, old),
        }
    }

    fn timerfd_gettime(fd: c_int, now: *mut itimerspec) -> c_int {
        let (Some(page), Some(_)) = (page(), base_of_descriptor(fd)) else {
            return real::timerfd_gettime(fd, now);
        };
        match exchange(&descriptor(fd, (0, 0)), false, None) {
            Ok(times) => {
                give(page, times, now);
                0
            }
            Err(_) => real::timerfd_gettime(fd, now),
        }
    }
}
