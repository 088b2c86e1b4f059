//! The virtual clock of programs that the shim is not in.
//!
//! Every C library makes the call `set_tid_address` once in a program, before it asks for the time. That is when we
//! look at the program: unless the shim is in it, its vDSO is replaced by system calls ([`vdso`]), which tells from then
//! on that its clocks and its waits are ours. The filter brings to us:
//!
//! * clocks that are read: answered from the page;
//! * sleeps, and waits for descriptors with a time limit: put aside until the daemon says that the
//!   time has come, or until a descriptor is ready ([`held`]).
//!
//! A signal ends a call that is put aside, as it ends the host's, but the host does not say so, and makes the call again where a handler
//! was installed with `SA_RESTART`. A call that comes again while it is put aside has been interrupted: it fails with
//! EINTR, and with what is left of its time.
//!
//! Left alone are programs of Go: their timers are waits for a futex, in which nobody but the program itself can wake them. So are
//! waits for a futex of others, and timers.

mod held;
mod vdso;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;

use libc::{c_int, c_long, timespec, timeval};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::geteuid;
use xfrm_proto::clock::{Base, Page};
use xfrm_proto::control::Address;

use super::supervisor::{Call, Outcome};
use super::target::{Process, Thread};
use crate::driver::client::Alarm;
use crate::driver::program;
use held::{Descriptors, Held, Left, What};
use vdso::Patch;

const SECOND: u64 = 1_000_000_000;
/// Descriptors that are looked at in one call.
const MOST_DESCRIPTORS: u64 = 1024;

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Begin,
    Clock,
    TimeOfDay,
    Seconds,
    Sleep,
    ClockSleep,
    Poll,
    Ppoll,
    Select,
    Pselect,
    Epoll,
    Epoll2,
}

/// Which calls of a number the filter brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// With such a clock in the first argument.
    VirtualClock,
    /// With an `int` in that argument that is more than zero.
    Positive(usize),
    /// With a pointer in that argument.
    Given(usize),
}

const CALLS: &[(c_long, Kind, When)] = &[
    (libc::SYS_set_tid_address, Kind::Begin, When::Always),
    (libc::SYS_clock_gettime, Kind::Clock, When::VirtualClock),
    (libc::SYS_gettimeofday, Kind::TimeOfDay, When::Given(0)),
    (libc::SYS_nanosleep, Kind::Sleep, When::Always),
    (
        libc::SYS_clock_nanosleep,
        Kind::ClockSleep,
        When::VirtualClock,
    ),
    (libc::SYS_ppoll, Kind::Ppoll, When::Given(2)),
    (libc::SYS_pselect6, Kind::Pselect, When::Given(4)),
    (libc::SYS_epoll_pwait, Kind::Epoll, When::Positive(3)),
    (libc::SYS_epoll_pwait2, Kind::Epoll2, When::Given(3)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_time, Kind::Seconds, When::Always),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Kind::Poll, When::Positive(2)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, Kind::Select, When::Given(4)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, Kind::Epoll, When::Positive(3)),
];

/// What the filter brings.
pub(super) fn calls() -> impl Iterator<Item = (c_long, When)> {
    CALLS.iter().map(|&(number, _, when)| (number, when))
}

/// A program that the filter is around.
struct Program {
    /// For its end, and its descriptors.
    process: Process,
    /// The vDSO is replaced.
    is_timed: bool,
}

/// What has become readable.
enum Source {
    Process(u32),
    Alarm(u32),
    Descriptors(u32),
}

impl Source {
    fn data(&self) -> u64 {
        let (kind, number) = match *self {
            Self::Process(process) => (0, process),
            Self::Alarm(number) => (1, number),
            Self::Descriptors(number) => (2, number),
        };
        kind << 32 | u64::from(number)
    }

    fn of(data: u64) -> Self {
        let number = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        match data >> 32 {
            0 => Self::Process(number),
            1 => Self::Alarm(number),
            _ => Self::Descriptors(number),
        }
    }

    fn event(&self) -> EpollEvent {
        EpollEvent::new(EpollFlags::EPOLLIN, self.data())
    }
}

/// The programs and what they wait for.
pub(crate) struct Time {
    page: &'static Page,
    /// The daemon's.
    address: String,
    patch: Patch,
    epoll: Epoll,
    programs: HashMap<u32, Program>,
    process_of: HashMap<Thread, u32>,
    held: BTreeMap<u32, Held>,
    last: u32,
    /// Connections that nothing waits on.
    idle: Vec<Alarm>,
}

impl Time {
    /// Of the clock in a page; none where programs cannot have it.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn new(page: &'static Page, address: &Address<'_>) -> io::Result<Option<Self>> {
        let Some(patch) = Patch::new() else {
            return Ok(None);
        };
        Ok(Some(Self {
            page,
            address: address.to_string(),
            patch,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            programs: HashMap::new(),
            process_of: HashMap::new(),
            held: BTreeMap::new(),
            last: 0,
            idle: Vec::new(),
        }))
    }

    /// Becomes readable when [`Time::answers`] has something to do.
    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// What becomes of a call; none if it is not about time.
    pub(super) fn call(&mut self, call: &Call) -> Option<Outcome> {
        let (_, kind, _) = CALLS.iter().find(|it| it.0 == call.number)?;
        if *kind == Kind::Begin {
            self.begin(call.thread);
            return Some(Outcome::Pass);
        }
        let Some(process) = self.timed_process(call.thread) else {
            return Some(Outcome::Pass);
        };
        if let Some(outcome) = self.again(call) {
            return Some(outcome);
        }
        let outcome = self.timed(call, *kind, process);
        Some(outcome.unwrap_or_else(Outcome::Errno))
    }

    /// A program begins.
    fn begin(&mut self, thread: Thread) {
        let Some(status) = thread.status() else {
            return;
        };
        self.forget(status.process);
        // Which makes the call for its threads.
        if status.process != thread.0 || status.euid != geteuid().as_raw() {
            return;
        }
        let is_go = thread
            .file("exe", false)
            .is_ok_and(|file| program::is_of_go(&file));
        let is_timed = !is_go
            && self.patch.put_into(thread).unwrap_or_else(|error| {
                eprintln!(
                    "xfrmd: {} (process {}) has the host's clock: its memory cannot be written to: {error}",
                    thread.name(),
                    thread.0
                );
                false
            });
        self.remember(status.process, is_timed);
    }

    fn remember(&mut self, process: u32, is_timed: bool) {
        let Ok(opened) = Process::open(process) else {
            return;
        };
        let event = Source::Process(process).event();
        if self.epoll.add(opened.fd(), event).is_ok() {
            let program = Program {
                process: opened,
                is_timed,
            };
            self.programs.insert(process, program);
        }
    }

    fn forget(&mut self, process: u32) {
        self.programs.remove(&process);
        self.process_of.retain(|_, of| *of != process);
        self.held.retain(|_, held| held.process != process);
    }

    /// The process of a thread, if it has the virtual clock.
    fn timed_process(&mut self, thread: Thread) -> Option<u32> {
        let process = match self.process_of.get(&thread) {
            Some(&process) => process,
            None => {
                let status = thread.status()?;
                if status.euid != geteuid().as_raw() {
                    return None;
                }
                if !self.programs.contains_key(&status.process) {
                    // Forked.
                    let is_timed = self.patch.is_in(thread);
                    self.remember(status.process, is_timed);
                }
                self.process_of.insert(thread, status.process);
                status.process
            }
        };
        let program = self.programs.get(&process)?;
        program.is_timed.then_some(process)
    }

    /// A call of a thread whose last one is still put aside: a signal has ended that.
    fn again(&mut self, call: &Call) -> Option<Outcome> {
        let same = |held: &Held| held.call.thread == call.thread;
        let number = *self.held.iter().find(|(_, held)| same(held))?.0;
        let held = self.held.remove(&number)?;
        let is_again = held.call.number == call.number && held.call.args == call.args;
        let left = held.due.saturating_sub(self.page.boot());
        if !is_again || left == 0 {
            return None;
        }
        if let What::Sleep { left: place @ 1.. } = held.what {
            let _ = call.thread.put(place, &to_timespec(left));
        }
        Some(Outcome::Errno(libc::EINTR))
    }

    fn timed(&mut self, call: &Call, kind: Kind, process: u32) -> Result<Outcome, c_int> {
        let thread = call.thread;
        match kind {
            Kind::Begin => Ok(Outcome::Pass),
            Kind::Clock => {
                let Some(base) = Base::of(call.int(0)) else {
                    return Ok(Outcome::Pass);
                };
                thread.put(call.long(1), &to_timespec(base.now(self.page)))?;
                Ok(Outcome::Value(0))
            }
            Kind::TimeOfDay => {
                let now = Base::Real.now(self.page);
                thread.put(call.long(0), &to_timeval(now))?;
                if call.long(1) != 0 {
                    // Minutes west of Greenwich, and a kind of summer time.
                    thread.put(call.long(1), &0_u64)?;
                }
                Ok(Outcome::Value(0))
            }
            Kind::Seconds => {
                let now = (Base::Real.now(self.page) / SECOND).cast_signed();
                if call.long(0) != 0 {
                    thread.put(call.long(0), &now)?;
                }
                Ok(Outcome::Value(now))
            }
            Kind::Sleep => {
                let nanos = time_at(thread, call.long(0))?;
                let due = self.page.boot().saturating_add(nanos);
                let what = What::Sleep { left: call.long(1) };
                self.wait(call, process, due, what)
            }
            Kind::ClockSleep => {
                let Some(base) = Base::of(call.int(0)) else {
                    return Ok(Outcome::Pass);
                };
                let nanos = time_at(thread, call.long(2))?;
                let (due, left) = match call.int(1) & libc::TIMER_ABSTIME {
                    0 => (self.page.boot().saturating_add(nanos), call.long(3)),
                    _ => (base.boot_at(self.page, nanos), 0),
                };
                self.wait(call, process, due, What::Sleep { left })
            }
            Kind::Poll
            | Kind::Ppoll
            | Kind::Select
            | Kind::Pselect
            | Kind::Epoll
            | Kind::Epoll2 => self.wait_for_descriptors(call, kind, process),
        }
    }

    fn wait_for_descriptors(
        &mut self,
        call: &Call,
        kind: Kind,
        process: u32,
    ) -> Result<Outcome, c_int> {
        let thread = call.thread;
        let millis = |index| u64::try_from(call.int(index)).map(|ms| ms * 1_000_000);
        let limit = match kind {
            Kind::Poll => millis(2).map_err(|_| libc::EINVAL)?,
            Kind::Epoll => millis(3).map_err(|_| libc::EINVAL)?,
            Kind::Ppoll => time_at(thread, call.long(2))?,
            Kind::Epoll2 => time_at(thread, call.long(3))?,
            Kind::Select => {
                let given: timeval = thread.structure(call.long(4))?;
                let secs = u64::try_from(given.tv_sec).map_err(|_| libc::EINVAL)?;
                let micros = u64::try_from(given.tv_usec).map_err(|_| libc::EINVAL)?;
                secs.saturating_mul(SECOND)
                    .saturating_add(micros.saturating_mul(1000))
            }
            _ => time_at(thread, call.long(4))?,
        };
        let Some(program) = self.programs.get(&process) else {
            return Ok(Outcome::Pass);
        };
        if limit == 0 {
            return Ok(Outcome::Pass);
        }
        let due = self.page.boot().saturating_add(limit);
        let read = match kind {
            Kind::Poll | Kind::Ppoll => Descriptors::polled(call, &program.process),
            Kind::Epoll | Kind::Epoll2 => Descriptors::of_epoll(call, &program.process),
            Kind::Select => {
                Descriptors::selected(call, &program.process, Left::Micros(call.long(4)))
            }
            _ => Descriptors::selected(call, &program.process, Left::Nanos(call.long(4))),
        };
        // Where the host does not let us have them, it waits itself.
        let Some(descriptors) = read? else {
            return Ok(Outcome::Pass);
        };
        if let Some(count) = descriptors.look(call, due.saturating_sub(self.page.boot()))? {
            return Ok(Outcome::Value(count));
        }
        self.wait(call, process, due, What::Descriptors(descriptors))
    }

    /// Puts a call aside until a boot time.
    fn wait(&mut self, call: &Call, process: u32, due: u64, what: What) -> Result<Outcome, c_int> {
        if due <= self.page.boot() {
            return Ok(Outcome::Value(0));
        }
        let Some(alarm) = self.alarm(due) else {
            // No daemon, no time but the host's.
            return Ok(Outcome::Pass);
        };
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        let added = self
            .epoll
            .add(alarm.fd(), Source::Alarm(number).event())
            .and_then(|()| match &what {
                What::Sleep { .. } => Ok(()),
                What::Descriptors(it) => {
                    self.epoll.add(it.fd(), Source::Descriptors(number).event())
                }
            });
        if added.is_err() {
            return Ok(Outcome::Pass);
        }
        let held = Held {
            call: *call,
            process,
            due,
            alarm,
            what,
        };
        self.held.insert(number, held);
        Ok(Outcome::Wait)
    }

    /// A connection that tells of a time.
    fn alarm(&mut self, due: u64) -> Option<Alarm> {
        while let Some(alarm) = self.idle.pop() {
            if alarm.hear() && alarm.set(due).is_ok() {
                return Some(alarm);
            }
        }
        let address = Address::parse(self.address.as_bytes())?;
        let alarm = Alarm::new(&address).ok()?;
        alarm.set(due).is_ok().then_some(alarm)
    }

    /// Calls that need not wait any longer, if they still do.
    pub(super) fn answers(&mut self, still_waits: impl Fn(&Call) -> bool) -> Vec<(Call, Outcome)> {
        let mut answers = Vec::new();
        let mut events = [EpollEvent::empty(); 16];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        for event in events.iter().take(ready.unwrap_or(0)) {
            let (number, is_alarm) = match Source::of(event.data()) {
                Source::Process(process) => {
                    self.forget(process);
                    continue;
                }
                Source::Alarm(number) => (number, true),
                Source::Descriptors(number) => (number, false),
            };
            let Some(held) = self.held.remove(&number) else {
                continue;
            };
            let _ = self.epoll.delete(held.alarm.fd().as_fd());
            if !still_waits(&held.call) {
                continue;
            }
            let call = held.call;
            match self.look_again(held, is_alarm) {
                Ok(Outcome::Wait) => {}
                Ok(outcome) => answers.push((call, outcome)),
                Err(errno) => answers.push((call, Outcome::Errno(errno))),
            }
        }
        answers
    }

    fn look_again(&mut self, held: Held, is_alarm: bool) -> Result<Outcome, c_int> {
        let left = held.due.saturating_sub(self.page.boot());
        let found = match &held.what {
            What::Sleep { .. } => None,
            What::Descriptors(descriptors) => {
                let found = descriptors.look(&held.call, left)?;
                let _ = self.epoll.delete(descriptors.fd());
                found
            }
        };
        if let Some(count) = found {
            // Its connection still tells of a time that nobody waits for: the daemon forgets that with it.
            return Ok(Outcome::Value(count));
        }
        if left == 0 {
            if let What::Descriptors(descriptors) = &held.what {
                descriptors.give_up(&held.call)?;
            }
            if is_alarm {
                self.idle.push(held.alarm);
            }
            return Ok(Outcome::Value(0));
        }
        // The daemon is another, or the descriptors are as they were.
        self.wait(&held.call, held.process, held.due, held.what)
    }
}

/// A time in a program's memory, in nanoseconds.
fn time_at(thread: Thread, address: u64) -> Result<u64, c_int> {
    let time: timespec = thread.structure(address)?;
    let secs = u64::try_from(time.tv_sec).map_err(|_| libc::EINVAL)?;
    let nanos = u64::try_from(time.tv_nsec).map_err(|_| libc::EINVAL)?;
    match nanos < SECOND {
        true => Ok(secs.saturating_mul(SECOND).saturating_add(nanos)),
        false => Err(libc::EINVAL),
    }
}

fn to_timespec(nanos: u64) -> timespec {
    timespec {
        tv_sec: (nanos / SECOND).cast_signed(),
        tv_nsec: (nanos % SECOND).cast_signed(),
    }
}

fn to_timeval(nanos: u64) -> timeval {
    timeval {
        tv_sec: (nanos / SECOND).cast_signed(),
        tv_usec: (nanos % SECOND / 1000).cast_signed(),
    }
}
