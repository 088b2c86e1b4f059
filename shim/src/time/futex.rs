//! Waiting for a futex or a time: `futex_waitv` on the futex and on our word in the page. Where the kernel
//! does not have it (before 5.16), a wait looks at the time every millisecond.
//!
//! `syscall(2)` too: what programs call by number because libc has no name for it, which are futexes above
//! all, and clocks.

use core::ffi::{c_int, c_long};
use core::sync::atomic::{AtomicU32, Ordering};

use libc::timespec;
use xfrm_proto::clock::Page;

use super::wait::Wait;
use super::{Base, clocks, nanos_of, page, real, sleep, to_timespec};
use crate::symbols::exported;
use crate::sys;

const FUTEX2_SIZE_U32: u32 = 2;
const FUTEX2_PRIVATE: u32 = 128;
const FUTEX_ANY: u32 = u32::MAX;
const TICK: u64 = 1_000_000;

/// `struct futex_waitv`.
#[repr(C)]
struct WaitOne {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// A futex that is waited for.
#[derive(Clone, Copy)]
pub(super) struct Futex {
    /// Where.
    pub(super) address: *const AtomicU32,
    /// What is there as long as nothing has happened.
    pub(super) value: u32,
    /// Other processes may change it.
    pub(super) shared: bool,
}

fn result(returned: c_long) -> Result<c_long, c_int> {
    match returned {
        -1 => Err(sys::errno()),
        returned => Ok(returned),
    }
}

impl Futex {
    const fn operation(self, operation: c_int) -> c_int {
        match self.shared {
            true => operation,
            false => operation | libc::FUTEX_PRIVATE_FLAG,
        }
    }

    /// Waits until somebody wakes it; an errno otherwise.
    pub(super) fn wait(self) -> Result<(), c_int> {
        self.wait_for(None)
    }

    /// The same, at most so many nanoseconds of the host's.
    pub(super) fn wait_for(self, limit: Option<u64>) -> Result<(), c_int> {
        let limit = limit.map(to_timespec);
        let at: *const timespec = limit.as_ref().map_or(core::ptr::null(), |it| it);
        // SAFETY: the kernel checks the address; the time outlives the call.
        let returned = unsafe {
            real::syscall(
                libc::SYS_futex,
                self.address as c_long,
                self.operation(libc::FUTEX_WAIT).into(),
                self.value.into(),
                at as c_long,
                0,
                0,
            )
        };
        result(returned).map(drop)
    }

    /// Wakes so many who wait for it.
    pub(super) fn wake(self, most: c_int) {
        // SAFETY: the kernel checks the address.
        unsafe {
            real::syscall(
                libc::SYS_futex,
                self.address as c_long,
                self.operation(libc::FUTEX_WAKE).into(),
                most.into(),
                0,
                0,
                0,
            );
        }
    }

    /// Waits once, until somebody wakes it or our word: `word` and what it was. Whether it was the
    /// futex.
    fn wait_with(self, word: &AtomicU32, seen: u32) -> Result<bool, c_int> {
        let private = if self.shared { 0 } else { FUTEX2_PRIVATE };
        let one = |address: *const AtomicU32, value: u32, flags| WaitOne {
            value: value.into(),
            address: address as u64,
            flags: FUTEX2_SIZE_U32 | flags,
            reserved: 0,
        };
        let both = [one(self.address, self.value, private), one(word, seen, 0)];
        // SAFETY: the kernel checks the addresses; the description outlives the call.
        let returned = unsafe {
            real::syscall(
                libc::SYS_futex_waitv,
                both.as_ptr() as c_long,
                2,
                0,
                0,
                0,
                0,
            )
        };
        match result(returned) {
            Err(libc::ENOSYS | libc::EPERM) => match self.wait_for(Some(TICK)) {
                Err(libc::ETIMEDOUT) => Ok(false),
                other => other.map(|()| true),
            },
            other => other.map(|index| index == 0),
        }
    }

    /// Waits once, until somebody wakes it, or until a boot time: ETIMEDOUT. Without reason, too.
    ///
    /// `around` makes the wait itself.
    pub(super) fn wait_until(
        self,
        page: &'static Page,
        due: u64,
        around: impl Fn(&mut dyn FnMut()),
    ) -> Result<(), c_int> {
        if page.boot() >= due {
            return Err(libc::ETIMEDOUT);
        }
        let Some(mut wait) = Wait::begin(page, due) else {
            // Time stands for good.
            let mut waited = Ok(());
            around(&mut || waited = self.wait());
            return waited;
        };
        while let Some((word, seen)) = wait.word() {
            if wait.is_due() || !wait.look() {
                break;
            }
            // Another connection has another word.
            if !wait
                .word()
                .is_some_and(|(other, _)| core::ptr::eq(word, other))
            {
                continue;
            }
            // SAFETY: the caller's futex.
            if unsafe { &*self.address }.load(Ordering::Acquire) != self.value {
                wait.end();
                return Err(libc::EAGAIN);
            }
            let mut waited = Ok(false);
            around(&mut || waited = self.wait_with(word, seen));
            match waited {
                Ok(true) => {
                    wait.end();
                    return Ok(());
                }
                Ok(false) | Err(libc::EAGAIN) => {}
                Err(errno) => {
                    wait.end();
                    return Err(errno);
                }
            }
        }
        wait.end();
        if page.boot() >= due {
            return Err(libc::ETIMEDOUT);
        }
        Ok(())
    }
}

/// `futex` by number, with a time limit.
unsafe fn futex(
    page: &'static Page,
    address: c_long,
    operation: c_int,
    value: c_long,
    limit: &timespec,
) -> Option<c_long> {
    let nanos = nanos_of(limit)?;
    let due = match operation & libc::FUTEX_CMD_MASK {
        libc::FUTEX_WAIT => page.boot().saturating_add(nanos),
        libc::FUTEX_WAIT_BITSET if operation & libc::FUTEX_CLOCK_REALTIME != 0 => {
            Base::Real.boot_at(page, nanos)
        }
        libc::FUTEX_WAIT_BITSET => Base::Monotonic.boot_at(page, nanos),
        _ => return None,
    };
    let futex = Futex {
        address: address as *const AtomicU32,
        value: value as u32,
        shared: operation & libc::FUTEX_PRIVATE_FLAG == 0,
    };
    let waited = futex.wait_until(page, due, |wait| wait());
    Some(match waited {
        Ok(()) => 0,
        Err(errno) => super::fail(errno).into(),
    })
}

exported! {
    fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long {
        if let Some(page) = page() {
            match number {
                libc::SYS_futex if (f as u32 == FUTEX_ANY || b as c_int & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT)
                    && matches!(b as c_int & libc::FUTEX_CMD_MASK, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) =>
                {
                    if let Some(limit) = (d as *const timespec).as_ref()
                        && let Some(result) = futex(page, a, b as c_int, c, limit)
                    {
                        return result;
                    }
                }
                libc::SYS_clock_gettime => {
                    return clocks::clock_gettime(a as c_int, b as *mut timespec).into();
                }
                libc::SYS_nanosleep => {
                    return sleep::nanosleep(a as *const timespec, b as *mut timespec).into();
                }
                libc::SYS_clock_nanosleep => {
                    let slept = sleep::clock_nanosleep(
                        a as c_int,
                        b as c_int,
                        c as *const timespec,
                        d as *mut timespec,
                    );
                    return match slept {
                        0 => 0,
                        errno => super::fail(errno).into(),
                    };
                }
                _ => {}
            }
        }
        real::syscall(number, a, b, c, d, e, f)
    }
}
