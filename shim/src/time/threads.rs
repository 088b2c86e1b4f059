//! Threads that wait for each other: condition variables and semaphores.
//!
//! A wait for a condition variable cannot be libc's own, because nothing would end it when the time
//! comes. So all that is done with one is done here, on memory of libc's layout, of which we use what an
//! initialization zeroes and libc's functions that we leave alone do not need: a word that changes with each signal, and how many
//! wait. libc's own flags (clock, shared between processes) are read. As with libc, waits end
//! without reason now and then, and one that is cancelled has the mutex again before the thread's clean-up.
//!
//! Waits for a semaphore count themselves where libc does, so that its `sem_post` wakes them.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::{clockid_t, pthread_cond_t, pthread_mutex_t, sem_t, timespec};
use xfrm_proto::clock::Page;

use super::futex::Futex;
use super::{Base, nanos_of, page, real};
use crate::symbols::exported;
use crate::sys;

/// Where libc keeps flags of a condition variable, and which.
const FLAGS_AT: usize = 36;
const SHARED: u32 = 1;
const MONOTONIC: u32 = 2;
const PTHREAD_CANCEL_ASYNCHRONOUS: c_int = 1;

/// What we use of a condition variable.
#[repr(C)]
struct Cond {
    turn: AtomicU32,
    waiting: AtomicU32,
}

/// `struct _pthread_cleanup_buffer`.
#[repr(C)]
struct Cleanup {
    routine: *mut c_void,
    argument: *mut c_void,
    kind: c_int,
    before: *mut c_void,
}

/// What ends a wait besides a signal.
enum Limit {
    /// A boot time of the page.
    Virtual(&'static Page, u64),
    /// So many nanoseconds of the host's, or nothing.
    Host(Option<u64>),
}

unsafe fn of(cond: *mut pthread_cond_t) -> (&'static Cond, u32) {
    // SAFETY: the caller's condition variable, which is larger and aligned as a word.
    unsafe {
        let flags = cond.byte_add(FLAGS_AT).cast::<u32>().read();
        (&*cond.cast::<Cond>(), flags)
    }
}

unsafe extern "C" fn lock_again(mutex: *mut c_void) {
    // SAFETY: the mutex that the thread had.
    unsafe { libc::pthread_mutex_lock(mutex.cast()) };
}

/// A wait that cancelling the thread ends.
fn cancellable(wait: &mut dyn FnMut()) {
    let mut before = 0;
    // SAFETY: nothing of ours is in hand during the wait, which is one system call.
    unsafe { real::pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &raw mut before) };
    wait();
    // SAFETY: as above.
    unsafe { real::pthread_setcanceltype(before, core::ptr::null_mut()) };
}

unsafe fn wait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, limit: &Limit) -> c_int {
    // SAFETY: the caller's.
    let (state, flags) = unsafe { of(cond) };
    state.waiting.fetch_add(1, Ordering::AcqRel);
    let futex = Futex {
        address: &raw const state.turn,
        value: state.turn.load(Ordering::Acquire),
        shared: flags & SHARED != 0,
    };
    // SAFETY: the caller's, which has it.
    let unlocked = unsafe { libc::pthread_mutex_unlock(mutex) };
    if unlocked != 0 {
        state.waiting.fetch_sub(1, Ordering::AcqRel);
        return unlocked;
    }
    let saved = sys::errno();
    let mut cleanup = Cleanup {
        routine: core::ptr::null_mut(),
        argument: core::ptr::null_mut(),
        kind: 0,
        before: core::ptr::null_mut(),
    };
    let buffer = (&raw mut cleanup).cast::<c_void>();
    let routine = lock_again as unsafe extern "C" fn(*mut c_void) as *mut c_void;
    // SAFETY: popped below, in this very frame.
    unsafe { real::_pthread_cleanup_push(buffer, routine, mutex.cast()) };
    let waited = match *limit {
        Limit::Virtual(page, due) => futex.wait_until(page, due, cancellable),
        Limit::Host(nanos) => {
            let mut waited = Ok(());
            cancellable(&mut || waited = futex.wait_for(nanos));
            waited
        }
    };
    // SAFETY: pushed above.
    unsafe { real::_pthread_cleanup_pop(buffer, 0) };
    state.waiting.fetch_sub(1, Ordering::AcqRel);
    // SAFETY: the caller's.
    let locked = unsafe { libc::pthread_mutex_lock(mutex) };
    sys::set_errno(saved);
    match (locked, waited) {
        (0, Err(libc::ETIMEDOUT)) => libc::ETIMEDOUT,
        (locked, _) => locked,
    }
}

/// What a clock of the host shows.
fn host_now(base: Base) -> u64 {
    let clock = match base {
        Base::Boot => libc::CLOCK_BOOTTIME,
        Base::Monotonic => libc::CLOCK_MONOTONIC,
        Base::Real => libc::CLOCK_REALTIME,
    };
    let mut now = super::to_timespec(0);
    // SAFETY: written before it is read.
    unsafe { real::clock_gettime(clock, &raw mut now) };
    nanos_of(&now).unwrap_or(0)
}

/// A wait with a limit on some clock.
unsafe fn wait_until(
    cond: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    base: Base,
    limit: *const timespec,
) -> c_int {
    // SAFETY: the caller's.
    let Some(nanos) = (unsafe { nanos_of(&*limit) }) else {
        return libc::EINVAL;
    };
    let limit = match page() {
        Some(page) => Limit::Virtual(page, base.boot_at(page, nanos)),
        None => Limit::Host(Some(nanos.saturating_sub(host_now(base)))),
    };
    // SAFETY: the caller's.
    unsafe { wait(cond, mutex, &limit) }
}

unsafe fn signal(cond: *mut pthread_cond_t, most: c_int) -> c_int {
    // SAFETY: the caller's.
    let (state, flags) = unsafe { of(cond) };
    state.turn.fetch_add(1, Ordering::AcqRel);
    if state.waiting.load(Ordering::Acquire) != 0 {
        let futex = Futex {
            address: &raw const state.turn,
            value: 0,
            shared: flags & SHARED != 0,
        };
        futex.wake(most);
    }
    0
}

/// libc's `struct new_sem`: the value, and above it how many wait.
#[repr(C)]
struct Semaphore {
    data: AtomicU64,
    /// 0 if no other process has it.
    shared: c_int,
}

const ONE_WAITS: u64 = 1 << 32;

unsafe fn take_until(semaphore: *mut sem_t, page: &'static Page, due: u64) -> c_int {
    // SAFETY: the caller's semaphore, of libc's layout.
    let state = unsafe { &*semaphore.cast::<Semaphore>() };
    let futex = Futex {
        address: (&raw const state.data).cast(),
        value: 0,
        shared: state.shared != 0,
    };
    state.data.fetch_add(ONE_WAITS, Ordering::AcqRel);
    let taken = loop {
        // SAFETY: the caller's semaphore.
        if unsafe { real::sem_trywait(semaphore) } == 0 {
            break Ok(());
        }
        match futex.wait_until(page, due, cancellable) {
            Ok(()) | Err(libc::EAGAIN) => {}
            Err(errno) => break Err(errno),
        }
    };
    state.data.fetch_sub(ONE_WAITS, Ordering::AcqRel);
    match taken {
        Ok(()) => 0,
        Err(errno) => super::fail(errno),
    }
}

exported! {
    fn pthread_cond_wait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int {
        wait(cond, mutex, &Limit::Host(None))
    }

    fn pthread_cond_timedwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, limit: *const timespec) -> c_int {
        let base = match of(cond).1 & MONOTONIC {
            0 => Base::Real,
            _ => Base::Monotonic,
        };
        wait_until(cond, mutex, base, limit)
    }

    fn pthread_cond_clockwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, clock: clockid_t, limit: *const timespec) -> c_int {
        match Base::of(clock) {
            Some(base) => wait_until(cond, mutex, base, limit),
            None => libc::EINVAL,
        }
    }

    fn pthread_cond_signal(cond: *mut pthread_cond_t) -> c_int {
        signal(cond, 1)
    }

    fn pthread_cond_broadcast(cond: *mut pthread_cond_t) -> c_int {
        signal(cond, c_int::MAX)
    }

    fn sem_timedwait(semaphore: *mut sem_t, limit: *const timespec) -> c_int {
        sem_clockwait(semaphore, libc::CLOCK_REALTIME, limit)
    }

    fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, limit: *const timespec) -> c_int {
        let (Some(page), Some(base)) = (page(), Base::of(clock)) else {
            return real::sem_clockwait(semaphore, clock, limit);
        };
        if real::sem_trywait(semaphore) == 0 {
            return 0;
        }
        match nanos_of(&*limit) {
            Some(nanos) => take_until(semaphore, page, base.boot_at(page, nanos)),
            None => super::fail(libc::EINVAL),
        }
    }
}
