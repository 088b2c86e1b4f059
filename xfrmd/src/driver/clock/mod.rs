//! The clock and the random numbers that the engine is given.
//!
//! * [`page`]: a virtual clock, as programs share it. [`motion`]: how it moves, [`order`]: when.
//! * [`looks`]: whether everything is idle. [`waits`]: what programs wait for.
//! * [`programs`]: what they ask of the clock. [`randomness`]: random numbers.
//!
//! What the daemon does on the host's account (looking again for sockets that linger, rights that were
//! checked long ago, MTUs that the host has learned) goes by [`uptime`].

mod looks;
pub(super) mod motion;
pub(crate) mod order;
pub(crate) mod page;
mod programs;
pub(crate) mod randomness;
pub(crate) mod waits;

use std::sync::Arc;

use dataplane::{BootNanos, Now, WallSecs};
use nix::time::{ClockId, clock_gettime};

use page::OwnPage;

/// Which clock a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Timekeeping {
    /// The host's.
    Real,
    /// One that stands until it is moved.
    Virtual,
    /// One that jumps to the next timer whenever everything is idle.
    Auto,
}

/// The engine's clock: the one place where it gets its time from. The host's, but for a virtual one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Option<Arc<OwnPage>>);

impl Clock {
    /// One that stands until it is moved.
    pub(crate) fn of_page(page: Arc<OwnPage>) -> Self {
        Self(Some(page))
    }

    /// The page of a virtual one.
    pub(crate) fn page(&self) -> Option<&OwnPage> {
        self.0.as_deref()
    }

    /// The present: boot time for timers, wall time for what is shown.
    #[inline]
    pub(crate) fn now(&self) -> Now {
        match &self.0 {
            None => host_now(),
            Some(page) => page.now(),
        }
    }

    /// When the host's clock shows what is `at` on this one; never, if that does not depend on it.
    pub(crate) fn at_uptime(&self, at: BootNanos) -> Option<BootNanos> {
        self.0.is_none().then_some(at)
    }
}

fn host_now() -> Now {
    Now {
        boot: uptime(),
        real: WallSecs(
            clock_gettime(ClockId::CLOCK_REALTIME)
                .map_or(0, |now| u64::try_from(now.tv_sec()).unwrap_or(0)),
        ),
    }
}

/// The host's time since boot, suspensions included.
pub(crate) fn uptime() -> BootNanos {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return BootNanos(0);
    };
    let secs = u64::try_from(now.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
    BootNanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}
