//! Time, as an argument.
//!
//! Linux arms its timers on boot time and stores add and use times as
//! wall-clock seconds; both come in together, so that a virtual clock can move
//! them as it likes.

/// Nanoseconds since boot (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootNanos(pub u64);

impl BootNanos {
    /// This many nanoseconds later, at most the end of time.
    #[must_use]
    pub const fn plus_nanos(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// This many seconds later, at most the end of time.
    #[must_use]
    pub const fn plus_secs(self, secs: u64) -> Self {
        self.plus_nanos(secs.saturating_mul(1_000_000_000))
    }
}

/// Seconds since 1970 (`ktime_get_real_seconds`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallSecs(pub u64);

/// The present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub boot: BootNanos,
    /// For add and use times.
    pub real: WallSecs,
}
