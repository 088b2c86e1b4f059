//! The clock and the random numbers that the engine is given.

use dataplane::{BootNanos, Entropy, Now, WallSecs};
use nix::time::{ClockId, clock_gettime};

use super::host;

/// The engine's clock: the one place where it gets its time from.
///
/// What the daemon does on the host's account (looking again for sockets that linger, rights that
/// were checked long ago) goes by [`uptime`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock;

impl Clock {
    /// The present: boot time for timers, wall time for what is shown.
    pub(crate) fn now(&self) -> Now {
        Now {
            boot: uptime(),
            real: WallSecs(
                clock_gettime(ClockId::CLOCK_REALTIME)
                    .map_or(0, |now| u64::try_from(now.tv_sec()).unwrap_or(0)),
            ),
        }
    }

    /// When the host's clock shows what is `at` on this one; never, if that does not depend on it.
    pub(crate) fn at_uptime(&self, at: BootNanos) -> Option<BootNanos> {
        Some(at)
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

/// The host's random numbers, a few hundred bytes at a time.
pub(crate) struct HostEntropy {
    buffer: [u8; 512],
    used: usize,
}

impl Default for HostEntropy {
    fn default() -> Self {
        Self {
            buffer: [0; 512],
            used: 512,
        }
    }
}

impl Entropy for HostEntropy {
    fn u64(&mut self) -> u64 {
        if self.used + 8 > self.buffer.len() {
            host::random(&mut self.buffer);
            self.used = 0;
        }
        let bytes = self
            .buffer
            .get(self.used..)
            .and_then(<[u8]>::first_chunk)
            .copied()
            .unwrap_or_default();
        self.used += 8;
        u64::from_ne_bytes(bytes)
    }
}
