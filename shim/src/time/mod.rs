//! The virtual clock of a run, as a program sees it.
//!
//! The daemon owns a page in which the present is ([`xfrm_proto::clock::Page`]). Clocks are read from there
//! ([`clocks`]). A wait with a time limit ([`poll`], [`sleep`], [`threads`], [`futex`], [`receive`]) tells the daemon what
//! it waits for and then waits, without a limit, for whatever else it waits for and for the daemon ([`wait`]).
//! Timers live in the daemon, which sends their signals ([`timers`]).
//!
//! Where there is no page (the daemon's clock is the host's, or it is gone) every call is the host's own.
//! What is not covered is in docs/virtual-time.md.

mod clocks;
mod futex;
mod poll;
mod real;
mod receive;
mod sleep;
mod threads;
mod timers;
mod wait;

use core::ffi::c_int;
use core::mem::size_of;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::timespec;
use xfrm_proto::clock::{Base, LAYOUT, Page};
use xfrm_proto::control::Request;

use crate::control::{self, Cargo};
use crate::sys;

pub(crate) use receive::{before_receiving, note_option, stamp};

const SECOND: u64 = 1_000_000_000;

static PAGE: AtomicPtr<Page> = AtomicPtr::new(core::ptr::null_mut());

/// Finds the page, when the library is loaded.
pub(crate) fn set_up() {
    real::resolve_all();
    let mut content = [0; 8];
    let asked = control::exchange(&Request::Clock, Cargo::default(), &mut content);
    let Ok((_, received)) = asked else { return };
    let Some(fd) = received.fd else { return };
    if let Some(address) = sys::map_readable(fd, size_of::<Page>()) {
        let page = address.cast::<Page>();
        // SAFETY: mapped, as large as a page is, and never unmapped.
        if unsafe { &*page }.layout.load(Ordering::Acquire) == LAYOUT {
            PAGE.store(page, Ordering::Release);
        }
    }
    sys::close(fd);
}

/// The page, if there is one.
#[inline]
fn page() -> Option<&'static Page> {
    let page = PAGE.load(Ordering::Acquire);
    // SAFETY: null or mapped for the life of the process.
    unsafe { page.as_ref() }
}

/// Nanoseconds, unless the kernel would say that this is no time.
fn nanos_of(time: &timespec) -> Option<u64> {
    let secs = u64::try_from(time.tv_sec).ok()?;
    let nanos = u64::try_from(time.tv_nsec).ok()?;
    (nanos < SECOND).then(|| secs.saturating_mul(SECOND).saturating_add(nanos))
}

fn to_timespec(nanos: u64) -> timespec {
    timespec {
        tv_sec: (nanos / SECOND).cast_signed(),
        tv_nsec: (nanos % SECOND).cast_signed(),
    }
}

/// Fails as libc's functions do.
fn fail(errno: c_int) -> c_int {
    sys::set_errno(errno);
    -1
}
