//! What calls and the supervisor wait for: sockets, ends of processes, time. A thread of its own does that.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Mutex;
use std::time::Duration;

use dataplane::BootNanos;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};

use super::super::calls::receive_limit;
use super::super::filter::NUMBERS;
use super::{Call, Outcome, Supervisor, locked};
use crate::driver::clock;

/// A receive that waits.
pub(super) struct Waiting {
    pub(super) call: Call,
    pub(super) fd: RawFd,
    until: Option<BootNanos>,
}

/// How often sockets with policies are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What an epoll event is about.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// There is something to wait for that there was not before.
    Poke,
    Process(u32),
    Socket(RawFd),
    /// A call's time has come, or what it waited for.
    Time,
}

impl Source {
    /// The kind above, the number below.
    pub(super) fn data(self) -> u64 {
        let (kind, number) = match self {
            Self::Poke => (0, 0),
            Self::Process(process) => (1, process),
            Self::Socket(fd) => (2, fd.unsigned_abs()),
            Self::Time => (3, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn of(data: u64) -> Self {
        let number = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        match data >> 32 {
            0 => Self::Poke,
            1 => Self::Process(number),
            3 => Self::Time,
            _ => Self::Socket(RawFd::try_from(number).unwrap_or(-1)),
        }
    }
}

impl Supervisor {
    /// Until a receive has waited long enough, or sockets have to be looked at.
    fn patience(&self) -> EpollTimeout {
        let limits = self.waiting.iter().filter_map(|waiting| waiting.until);
        let left = limits.min().map(|next| {
            let left = next.0.saturating_sub(clock::uptime().0);
            Duration::from_nanos(left) + Duration::from_millis(1)
        });
        let look = self.holds_others().then_some(LOOK_AGAIN);
        let patience = left.into_iter().chain(look).min();
        patience.map_or(EpollTimeout::NONE, |patience| {
            EpollTimeout::try_from(patience).unwrap_or(EpollTimeout::MAX)
        })
    }

    /// Whether we hold sockets that are none of NETLINK_XFRM.
    fn holds_others(&self) -> bool {
        self.held
            .keys()
            .any(|(_, number)| !NUMBERS.contains(number))
    }

    /// Has the other thread look at what it waits for.
    pub(super) fn wake_watch(&self) {
        let _ = self.poke.write(1);
    }

    /// Makes a call, or puts it aside: a receive that finds nothing.
    pub(super) fn begin(&mut self, call: &Call, fd: RawFd) -> Outcome {
        let outcome = self.handle(call, fd);
        if matches!(outcome, Outcome::Wait) {
            self.set_aside(call, fd);
        }
        outcome
    }

    /// Puts a receive aside until its socket has something.
    fn set_aside(&mut self, call: &Call, fd: RawFd) {
        if !self.is_awaited(fd) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Socket(fd).data());
            // SAFETY: ours, and not closed before it is taken out again.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) };
            if let Err(error) = self.epoll.add(socket, event) {
                tracing::error!(%error, "a receive cannot wait");
            }
        }
        let limit = receive_limit(fd);
        if limit.is_some() {
            self.wake_watch();
        }
        self.waiting.push(Waiting {
            call: *call,
            fd,
            until: limit.map(|limit| clock::uptime().plus_nanos(nanos(limit))),
        });
    }

    /// Answers calls whose time has come.
    fn go_on(&mut self) {
        let Some(mut time) = self.time.take() else {
            return;
        };
        for (call, outcome) in time.answers(|call| self.still_waits(call)) {
            self.answer(&call, &outcome);
        }
        self.time = Some(time);
    }

    fn is_awaited(&self, fd: RawFd) -> bool {
        self.waiting.iter().any(|waiting| waiting.fd == fd)
    }

    /// Nobody waits for the socket any more.
    pub(super) fn let_be(&self, fd: RawFd) {
        // SAFETY: ours, and open.
        let _ = self.epoll.delete(unsafe { BorrowedFd::borrow_raw(fd) });
    }

    /// Tries the receives that wait for a socket which has something, or that have waited long enough.
    fn resume(&mut self, ready: Option<RawFd>) {
        let now = clock::uptime();
        let mut resumed = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let late = waiting.until.is_some_and(|until| until <= now);
            let has_something = ready == Some(waiting.fd);
            if !late && !has_something {
                self.waiting.push(waiting);
                continue;
            }
            if !self.still_waits(&waiting.call) {
                resumed.push(waiting.fd);
                continue;
            }
            let outcome = if has_something {
                self.handle(&waiting.call, waiting.fd)
            } else {
                Outcome::Wait
            };
            match outcome {
                Outcome::Wait if !late => self.waiting.push(waiting),
                outcome => {
                    resumed.push(waiting.fd);
                    let outcome = match outcome {
                        Outcome::Wait => Outcome::Errno(libc::EAGAIN),
                        other => other,
                    };
                    self.answer(&waiting.call, &outcome);
                }
            }
        }
        for fd in resumed {
            if !self.is_awaited(fd) {
                self.let_be(fd);
            }
        }
    }
}

/// Waits for what calls wait for, and for ends of processes.
pub(super) fn watch(epoll: &Epoll, all: &Mutex<Supervisor>) {
    let mut events = [EpollEvent::empty(); 16];
    loop {
        let patience = locked(all).patience();
        let ready = match epoll.wait(&mut events, patience) {
            Err(Errno::EINTR) => continue,
            Err(error) => return tracing::error!(%error, "the supervisor cannot wait"),
            Ok(ready) => ready,
        };
        let mut all = locked(all);
        for event in events.iter().take(ready) {
            match Source::of(event.data()) {
                Source::Poke => drop(all.poke.read()),
                Source::Process(process) => all.forget(process),
                Source::Socket(fd) => all.resume(Some(fd)),
                Source::Time => all.go_on(),
            }
        }
        if all.waiting.iter().any(|waiting| waiting.until.is_some()) {
            all.resume(None);
        }
        all.let_go(|_, number| !NUMBERS.contains(&number));
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
