//! The part of the shim's memory that a forked child must not inherit: its
//! parent's control connections.
//!
//! A child shares the parent's connections as open files, but requests of two
//! processes must not mix on one. The kernel zeroes this memory in a child
//! (`MADV_WIPEONFORK`), however the child was made, so the child finds no
//! connection and opens its own. A child of `vfork` shares memory and, while
//! the parent waits for it, may use the parent's. The inherited descriptors
//! stay open until exec: while they do, the daemon keeps what the parent's
//! sockets need.

use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

use crate::sys;

/// Connections a process may have: as many as threads and signal handlers that ask at once.
pub(crate) const CONNECTIONS: usize = 32;

/// Connections that are kept after a change of credentials.
pub(crate) const LEASES: usize = 8;

/// A place for a control connection.
pub(crate) struct Place {
    /// [`EMPTY`], [`IDLE`] or [`BUSY`].
    pub(crate) state: AtomicU32,
    /// The descriptor, when idle or busy.
    pub(crate) fd: AtomicI32,
}

/// A connection on which a thread waits for a time.
#[cfg(feature = "time")]
pub(crate) struct Waiting {
    /// The connection, while it is there.
    pub(crate) place: Place,
    /// The number of its word in the clock's page.
    pub(crate) word: AtomicU32,
}

/// Threads of a process that wait for times at once.
#[cfg(feature = "time")]
pub(crate) const WAITS: usize = 256;

/// No connection.
pub(crate) const EMPTY: u32 = 0;
/// Connected, nobody uses it.
pub(crate) const IDLE: u32 = 1;
/// Somebody uses it or is connecting.
pub(crate) const BUSY: u32 = 2;

/// What is wiped.
pub(crate) struct Wiped {
    /// The connections.
    pub(crate) places: [Place; CONNECTIONS],
    /// Connections that are open, but not used, for the sake of what was asked over them.
    pub(crate) leases: [AtomicI32; LEASES],
    /// Not 0 if this process has given policies to sockets.
    pub(crate) holds_policies: AtomicU32,
    /// The connections on which threads wait for times.
    #[cfg(feature = "time")]
    pub(crate) waits: [Waiting; WAITS],
}

static PAGE: AtomicPtr<Wiped> = AtomicPtr::new(core::ptr::null_mut());

static UNMAPPED: Wiped = Wiped {
    places: [const {
        Place {
            state: AtomicU32::new(EMPTY),
            fd: AtomicI32::new(0),
        }
    }; CONNECTIONS],
    leases: [const { AtomicI32::new(0) }; LEASES],
    holds_policies: AtomicU32::new(0),
    #[cfg(feature = "time")]
    waits: [const {
        Waiting {
            place: Place {
                state: AtomicU32::new(EMPTY),
                fd: AtomicI32::new(0),
            },
            word: AtomicU32::new(0),
        }
    }; WAITS],
};

/// Maps the memory.
pub(crate) fn set_up() {
    if let Some(page) = sys::map_wiped_on_fork(size_of::<Wiped>()) {
        PAGE.store(page.cast(), Ordering::Release);
    }
}

/// The memory; ordinary memory before [`set_up`] and where the kernel refused it.
pub(crate) fn wiped() -> &'static Wiped {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return &UNMAPPED;
    }
    // SAFETY: mapped for the life of the process, large enough, and all-zero bytes are valid atomics.
    unsafe { &*page }
}
