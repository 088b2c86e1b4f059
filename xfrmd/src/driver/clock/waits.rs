//! What programs wait for: times that connections have been told, and timers.
//!
//! What is due at once comes in a fixed order, so that runs are alike: connections in the order in which they were
//! made, then timers by process, kind and number.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};

use dataplane::BootNanos;
use xfrm_proto::clock::{TimerKind, TimerSetting};

/// Who waits; the order of those that wait for the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    /// A connection, by its number.
    Connection(u64),
    /// A process's timer.
    Timer(TimerId),
}

/// A timer: process, kind and number.
pub(super) type TimerId = (i32, TimerKind, u64);

/// A timer that is set.
#[derive(Debug)]
struct Timer {
    setting: TimerSetting,
    /// What becomes readable.
    descriptor: Option<OwnedFd>,
}

/// Everything that programs wait for.
#[derive(Debug, Default)]
pub(super) struct Waits {
    order: BTreeSet<(u64, Waiter)>,
    connections: BTreeMap<u64, u64>,
    timers: BTreeMap<TimerId, Timer>,
}

impl Waits {
    /// A connection waits, for nothing else.
    pub(super) fn wait(&mut self, connection: u64, due: u64) {
        self.unwait(connection);
        self.connections.insert(connection, due);
        self.order.insert((due, Waiter::Connection(connection)));
    }

    /// It does not wait any more.
    pub(super) fn unwait(&mut self, connection: u64) {
        if let Some(due) = self.connections.remove(&connection) {
            self.order.remove(&(due, Waiter::Connection(connection)));
        }
    }

    /// When a timer is due and its interval; zeros while it is not set.
    pub(super) fn timer(&self, id: TimerId) -> (u64, u64) {
        let setting = self.timers.get(&id).map(|timer| timer.setting);
        setting.map_or((0, 0), |it| (it.due, it.interval))
    }

    /// Sets a timer, or takes it away; what it was.
    pub(super) fn set_timer(
        &mut self,
        process: i32,
        setting: TimerSetting,
        descriptor: Option<OwnedFd>,
    ) -> (u64, u64) {
        let id = (process, setting.kind, setting.number);
        let before = self.timer(id);
        if before.0 != 0 {
            self.order.remove(&(before.0, Waiter::Timer(id)));
        }
        self.timers.remove(&id);
        if setting.due != 0 {
            self.order.insert((setting.due, Waiter::Timer(id)));
            let timer = Timer {
                setting,
                descriptor,
            };
            self.timers.insert(id, timer);
        }
        before
    }

    /// When somebody's time comes next.
    pub(super) fn next(&self) -> Option<BootNanos> {
        self.order.first().map(|&(due, _)| BootNanos(due))
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Ends the first wait that is due. A timer that has an interval is set again.
    pub(super) fn take_due(&mut self, now: BootNanos) -> Option<Waiter> {
        let &(due, waiter) = self.order.first()?;
        if due > now.0 {
            return None;
        }
        self.order.pop_first();
        match waiter {
            Waiter::Connection(connection) => {
                self.connections.remove(&connection);
            }
            Waiter::Timer(id) => self.fire(id),
        }
        Some(waiter)
    }

    fn fire(&mut self, id: TimerId) {
        let Some(timer) = self.timers.get_mut(&id) else {
            return;
        };
        if !tell(id.0, timer) || timer.setting.interval == 0 {
            self.timers.remove(&id);
            return;
        }
        let due = timer.setting.due.saturating_add(timer.setting.interval);
        timer.setting.due = due;
        self.order.insert((due, Waiter::Timer(id)));
    }
}

/// Makes a timer's descriptor run out at once.
pub(crate) fn run_out(descriptor: &OwnedFd) {
    let at_once = libc::itimerspec {
        it_interval: NO_TIME,
        it_value: libc::timespec {
            tv_sec: 0,
            tv_nsec: 1,
        },
    };
    // SAFETY: the time is valid; on what is no timer the host fails.
    unsafe {
        libc::timerfd_settime(
            descriptor.as_raw_fd(),
            libc::TFD_TIMER_ABSTIME,
            &raw const at_once,
            std::ptr::null_mut(),
        );
    }
}

/// What the kernel's timers send; whether the process is still there.
fn tell(process: i32, timer: &Timer) -> bool {
    let setting = &timer.setting;
    if let Some(descriptor) = &timer.descriptor {
        run_out(descriptor);
        // SAFETY: plain integers.
        return unsafe { libc::kill(process, 0) } == 0;
    }
    let Ok(signal) = i32::try_from(setting.signal) else {
        return false;
    };
    if setting.kind == TimerKind::Interval || signal == 0 {
        // SAFETY: plain integers.
        return unsafe { libc::kill(process, signal) } == 0;
    }
    let information = Information {
        signal,
        errno: 0,
        code: libc::SI_TIMER,
        padding: 0,
        timer: 0,
        overrun: 0,
        value: setting.value,
        rest: [0; 12],
    };
    let thread = i32::try_from(setting.thread).unwrap_or(0);
    // SAFETY: the information is as large as the kernel's, and outlives the call.
    let result = unsafe {
        match thread {
            0 => libc::syscall(
                libc::SYS_rt_sigqueueinfo,
                process,
                signal,
                &raw const information,
            ),
            thread => libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                process,
                thread,
                signal,
                &raw const information,
            ),
        }
    };
    result == 0
}

const NO_TIME: libc::timespec = libc::timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// `siginfo_t` of a timer's signal.
#[repr(C)]
struct Information {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    timer: i32,
    overrun: i32,
    value: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<Information>() == size_of::<libc::siginfo_t>());

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(number: u64, due: u64) -> TimerSetting {
        TimerSetting {
            kind: TimerKind::Posix,
            number,
            due,
            interval: 0,
            signal: 0,
            thread: 0,
            value: 0,
        }
    }

    #[test]
    fn what_is_due_at_once_has_an_order() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut waits = Waits::default();
        waits.set_timer(me, setting(2, 5), None);
        waits.set_timer(me, setting(1, 5), None);
        waits.wait(9, 5);
        waits.wait(3, 5);
        waits.wait(4, 4);
        assert_eq!(waits.take_due(BootNanos(3)), None);
        let taken: Vec<Waiter> = std::iter::from_fn(|| waits.take_due(BootNanos(5))).collect();
        let timer = |number| Waiter::Timer((me, TimerKind::Posix, number));
        let connections = [4, 3, 9].map(Waiter::Connection);
        assert_eq!(taken, [&connections[..], &[timer(1), timer(2)]].concat());
        assert_eq!((waits.next(), waits.len()), (None, 0));
    }

    #[test]
    fn a_wait_takes_the_place_of_the_one_before() {
        let mut waits = Waits::default();
        waits.wait(1, 5);
        waits.wait(1, 9);
        assert_eq!(waits.next(), Some(BootNanos(9)));
        waits.unwait(1);
        waits.unwait(1);
        assert_eq!(waits.next(), None);
    }

    #[test]
    fn a_timer_with_an_interval_goes_on() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut waits = Waits::default();
        let periodic = TimerSetting {
            interval: 10,
            ..setting(1, 5)
        };
        assert_eq!(waits.set_timer(me, periodic, None), (0, 0));
        assert!(waits.take_due(BootNanos(5)).is_some());
        assert_eq!(waits.timer((me, TimerKind::Posix, 1)), (15, 10));
        assert_eq!(waits.set_timer(me, setting(1, 0), None), (15, 10));
        assert_eq!(waits.next(), None);
    }
}
