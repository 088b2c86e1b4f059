//! Locks and atomics of what several threads share.
//!
//! With the feature `shuttle` they are those of a scheduler that runs threads one at a time, in
//! every order that it thinks of (`tests/schedules.rs`). Nothing else is built with it.
//! Whatever happens once (`OnceLock`) is the standard library's in both: what it runs takes no lock.

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

pub(crate) use std::sync::{OnceLock, PoisonError};
