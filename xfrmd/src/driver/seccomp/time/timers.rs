//! Timers of programs without the shim: `alarm` and `setitimer(ITIMER_REAL)`, which send a signal, and `timerfd`.
//!
//! A timer's descriptor is the host's own. The host never sees it set: when its time has come, it is made to run out.

use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, itimerspec, itimerval};
use xfrm_proto::clock::Base;

use super::super::supervisor::{Call, Outcome};
use super::super::target::same_file;
use super::{SECOND, Source, Time, nanos_of, nanos_of_micros, to_timespec, to_timeval};
use crate::driver::client::Alarm;
use crate::driver::clock::waits::run_out;

/// A timer that is set.
pub(super) struct Timer {
    pub(super) process: u32,
    /// As boot time in nanoseconds.
    due: u64,
    /// Nanoseconds to the next time; 0 for none.
    interval: u64,
    #[expect(dead_code, reason = "open for as long as the timer is set")]
    alarm: Alarm,
    /// What runs out, ours for the same file; none for a signal.
    descriptor: Option<OwnedFd>,
}

impl Timer {
    /// Whether that is its descriptor, or it has none either.
    fn has(&self, descriptor: Option<&OwnedFd>) -> bool {
        match (&self.descriptor, descriptor) {
            (None, None) => true,
            (Some(own), Some(other)) => same_file(own.as_raw_fd(), other.as_raw_fd()),
            _ => false,
        }
    }
}

impl Time {
    /// `alarm`.
    pub(super) fn set_alarm(&mut self, call: &Call, process: u32) -> Outcome {
        let secs = u64::from(call.int(0).cast_unsigned());
        let due = match secs {
            0 => 0,
            secs => self.page.boot().saturating_add(secs * SECOND),
        };
        let (left, _) = self.set_timer(process, None, due, 0);
        // To the next second, but never to none.
        let shown = (left + SECOND / 2) / SECOND;
        let shown = if left == 0 { 0 } else { shown.max(1) };
        Outcome::Value(shown.cast_signed())
    }

    /// `setitimer`, `getitimer`.
    pub(super) fn interval(
        &mut self,
        call: &Call,
        process: u32,
        sets: bool,
    ) -> Result<Outcome, c_int> {
        if call.int(0) != libc::ITIMER_REAL {
            return Ok(Outcome::Pass);
        }
        let (before, place) = if sets {
            let (mut due, mut interval) = (0, 0);
            if call.long(1) != 0 {
                let new: itimerval = call.thread.structure(call.long(1))?;
                interval = nanos_of_micros(&new.it_interval)?;
                if let value @ 1.. = nanos_of_micros(&new.it_value)? {
                    due = self.page.boot().saturating_add(value);
                }
            }
            (self.set_timer(process, None, due, interval), call.long(2))
        } else {
            (self.timer(process, None), call.long(1))
        };
        if place != 0 {
            let (left, interval) = before;
            let shown = itimerval {
                it_interval: to_timeval(interval),
                it_value: to_timeval(left),
            };
            call.thread.put(place, &shown)?;
        }
        Ok(Outcome::Value(0))
    }

    /// `timerfd_settime`, `timerfd_gettime`.
    pub(super) fn descriptor(
        &mut self,
        call: &Call,
        process: u32,
        sets: bool,
    ) -> Result<Outcome, c_int> {
        let opened = self
            .programs
            .get(&process)
            .map(|it| it.process.descriptor(call.int(0)));
        // The host says what is wrong with it, or has the timer where it does not let us.
        let Some(Ok(descriptor)) = opened else {
            return Ok(Outcome::Pass);
        };
        let Some(base) = base_of(call) else {
            return Ok(Outcome::Pass);
        };
        let (before, place) = if sets {
            let new: itimerspec = call.thread.structure(call.long(2))?;
            let interval = nanos_of(&new.it_interval)?;
            let due = match nanos_of(&new.it_value)? {
                0 => 0,
                value if call.int(1) & libc::TFD_TIMER_ABSTIME != 0 => {
                    base.boot_at(self.page, value).max(1)
                }
                value => self.page.boot().saturating_add(value),
            };
            forget_expirations(&descriptor);
            (
                self.set_timer(process, Some(descriptor), due, interval),
                call.long(3),
            )
        } else {
            (self.timer(process, Some(&descriptor)), call.long(1))
        };
        if place != 0 {
            let (left, interval) = before;
            let shown = itimerspec {
                it_interval: to_timespec(interval),
                it_value: to_timespec(left),
            };
            call.thread.put(place, &shown)?;
        }
        Ok(Outcome::Value(0))
    }

    fn find(&self, process: u32, descriptor: Option<&OwnedFd>) -> Option<u32> {
        // A descriptor's timer is that of all who have it; a signal's is its process's.
        let is = |it: &Timer| (descriptor.is_some() || it.process == process) && it.has(descriptor);
        let found = self.timers.iter().find(|(_, timer)| is(timer));
        found.map(|(&number, _)| number)
    }

    /// What is left of a timer, and its interval; zeros if it is not set.
    fn timer(&self, process: u32, descriptor: Option<&OwnedFd>) -> (u64, u64) {
        let number = self.find(process, descriptor);
        let timer = number.and_then(|number| self.timers.get(&number));
        timer.map_or((0, 0), |timer| self.left(timer))
    }

    fn left(&self, timer: &Timer) -> (u64, u64) {
        let left = timer.due.saturating_sub(self.page.boot());
        (left.max(1), timer.interval)
    }

    /// Sets a timer, or takes it away; what it was.
    fn set_timer(
        &mut self,
        process: u32,
        descriptor: Option<OwnedFd>,
        due: u64,
        interval: u64,
    ) -> (u64, u64) {
        let before = self.timer(process, descriptor.as_ref());
        if let Some(number) = self.find(process, descriptor.as_ref()) {
            self.timers.remove(&number);
        }
        if due == 0 {
            return before;
        }
        let Some(alarm) = self.alarm(due) else {
            return before;
        };
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        if self
            .epoll
            .add(alarm.fd(), Source::Alarm(number).event())
            .is_ok()
        {
            let timer = Timer {
                process,
                due,
                interval,
                alarm,
                descriptor,
            };
            self.timers.insert(number, timer);
        }
        before
    }

    /// A timer's alarm has told something: its time has come, or the daemon is another.
    pub(super) fn run_timer(&mut self, number: u32) {
        let Some(mut timer) = self.timers.remove(&number) else {
            return;
        };
        if timer.due <= self.page.boot() {
            match (&timer.descriptor, c_int::try_from(timer.process)) {
                (Some(descriptor), _) => run_out(descriptor),
                (None, Ok(process)) => {
                    // SAFETY: plain integers.
                    let _ = unsafe { libc::kill(process, libc::SIGALRM) };
                }
                (None, Err(_)) => {}
            }
            if timer.interval == 0 {
                return;
            }
            timer.due = timer.due.saturating_add(timer.interval);
        }
        self.set_timer(timer.process, timer.descriptor, timer.due, timer.interval);
    }
}

/// A timer that is set anew has not run out.
fn forget_expirations(descriptor: &OwnedFd) {
    let never = itimerspec {
        it_interval: to_timespec(0),
        it_value: to_timespec(0),
    };
    // SAFETY: the time is valid; on what is no timer the host fails.
    let _ = unsafe {
        libc::timerfd_settime(
            descriptor.as_raw_fd(),
            0,
            &raw const never,
            std::ptr::null_mut(),
        )
    };
}

/// What a timer's descriptor counts from; none for what is no timer.
fn base_of(call: &Call) -> Option<Base> {
    let mut text = String::new();
    let name = format!("fdinfo/{}", call.int(0));
    call.thread
        .file(&name, false)
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    let clock = text
        .lines()
        .find_map(|line| line.strip_prefix("clockid:"))?;
    Base::of(clock.trim().parse().ok()?)
}
