//! Waiting for a time: a connection to the daemon that becomes readable when it has come.
//!
//! A thread takes a free connection of the process for as long as it waits. That the time has come is
//! what the page says, not what is heard: a frame that belongs to an earlier wait of the connection, or the
//! end of a daemon that another one replaces, only makes the thread look.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::{pollfd, sigset_t};
use xfrm_proto::clock::Page;
use xfrm_proto::control::Request;

use super::real;
use crate::control::{self, Cargo};
use crate::pages::{self, EMPTY, IDLE, Waiting};
use crate::{connection, sys};

/// A wait that the daemon knows of.
pub(super) struct Wait {
    page: &'static Page,
    waiting: &'static Waiting,
    due: u64,
    told: bool,
}

/// How a wait ended.
pub(super) enum Outcome {
    /// The caller's descriptors: so many are ready.
    Ready(c_int),
    /// The time has come.
    Due,
    /// With that errno.
    Failed(c_int),
}

/// A connection that nobody uses, and the number of its word.
fn take() -> Option<&'static Waiting> {
    let all = &pages::wiped().waits;
    if let Some(waiting) = all.iter().find(|it| control::take(&it.place, IDLE)) {
        return Some(waiting);
    }
    let waiting = all.iter().find(|it| control::take(&it.place, EMPTY))?;
    let Ok(fd) = connection::open() else {
        waiting.place.state.store(EMPTY, Ordering::Release);
        return None;
    };
    waiting.place.fd.store(fd, Ordering::Relaxed);
    let asked = control::transmit(fd, &Request::Word, Cargo::default());
    let answer = asked.ok().and_then(|()| control::receive(fd, &mut []));
    let Some((answer, _)) = answer.filter(|(answer, _)| answer.errno == 0) else {
        control::release(&waiting.place, false);
        return None;
    };
    waiting.word.store(answer.first, Ordering::Relaxed);
    Some(waiting)
}

impl Wait {
    /// Begins one; none where the daemon is gone.
    pub(super) fn begin(page: &'static Page, due: u64) -> Option<Self> {
        // A connection that was idle may have died long ago.
        for _ in 0..=pages::WAITS {
            let waiting = take()?;
            let mut wait = Self {
                page,
                waiting,
                due,
                told: false,
            };
            if wait.tell() {
                return Some(wait);
            }
            control::release(&waiting.place, false);
        }
        None
    }

    pub(super) fn fd(&self) -> c_int {
        self.waiting.place.fd.load(Ordering::Relaxed)
    }

    fn tell(&mut self) -> bool {
        let request = Request::Wait { due: self.due };
        self.told = control::transmit(self.fd(), &request, Cargo::default()).is_ok();
        self.told
    }

    /// Whether the time has come.
    pub(super) fn is_due(&self) -> bool {
        self.page.boot() >= self.due
    }

    /// The word that changes when it has come, and what it is now.
    pub(super) fn word(&self) -> Option<(&'static AtomicU32, u32)> {
        let index = self.waiting.word.load(Ordering::Relaxed) as usize;
        let word = self.page.words.get(index)?;
        Some((word, word.load(Ordering::Acquire)))
    }

    /// Takes what the daemon has said, and makes sure that it knows of the wait; false if it is gone.
    pub(super) fn look(&mut self) -> bool {
        let mut frame = [0; 64];
        loop {
            match sys::recv(self.fd(), &mut frame, libc::MSG_DONTWAIT) {
                Ok(0) => break,
                Ok(_) => self.told = false,
                Err(libc::EAGAIN) => return self.told || self.is_due() || self.tell(),
                Err(_) => break,
            }
        }
        // Another daemon knows nothing of us.
        control::release(&self.waiting.place, false);
        self.told = false;
        match Self::begin(self.page, self.due) {
            Some(other) => {
                self.waiting = other.waiting;
                self.told = other.told;
                true
            }
            None => false,
        }
    }

    /// Ends it.
    pub(super) fn end(mut self) {
        let mut frame = [0; 64];
        while let Ok(1..) = sys::recv(self.fd(), &mut frame, libc::MSG_DONTWAIT) {
            self.told = false;
        }
        let alive =
            !self.told || control::transmit(self.fd(), &Request::Unwait, Cargo::default()).is_ok();
        control::release(&self.waiting.place, alive);
    }
}

/// Waits for descriptors or a time. The last place of `fds` is free, for our own.
///
/// None where the daemon is gone.
///
/// # Safety
/// `mask` is NULL or a signal mask.
pub(super) unsafe fn poll(
    page: &'static Page,
    fds: &mut [pollfd],
    due: u64,
    mask: *const sigset_t,
) -> Option<Outcome> {
    let mut wait = Wait::begin(page, due)?;
    loop {
        let own = pollfd {
            fd: if wait.is_due() { -1 } else { wait.fd() },
            events: libc::POLLIN,
            revents: 0,
        };
        if let Some(last) = fds.last_mut() {
            *last = own;
        }
        let no_time = super::to_timespec(0);
        let limit = match own.fd {
            -1 => &raw const no_time,
            _ => core::ptr::null(),
        };
        // SAFETY: descriptors and limit outlive the call; the mask is the caller's.
        let ready = unsafe { real::ppoll(fds.as_mut_ptr(), fds.len() as _, limit, mask) };
        if ready < 0 {
            let errno = sys::errno();
            wait.end();
            return Some(Outcome::Failed(errno));
        }
        let ours = fds.last().is_some_and(|own| own.revents != 0);
        let theirs = ready - c_int::from(ours);
        if theirs > 0 {
            wait.end();
            return Some(Outcome::Ready(theirs));
        }
        if own.fd < 0 {
            wait.end();
            return Some(Outcome::Due);
        }
        if !wait.look() {
            return None;
        }
    }
}
