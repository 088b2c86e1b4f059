//! An instance's clock.

use std::time::Duration;

use dataplane::{BootNanos, Now, WallSecs};

use super::{EPOCH, Instance};
use crate::emulator::Inputs;

/// Time.
impl Instance {
    /// The present.
    #[must_use]
    pub fn now(&self) -> Now {
        now(self.clock)
    }

    /// The wall clock, since 1970.
    #[must_use]
    pub fn wall(&self) -> Duration {
        Duration::from_secs(EPOCH) + self.clock
    }

    /// How long until something happens by itself, if anything does.
    #[must_use]
    pub fn next_timer(&self) -> Option<Duration> {
        let due = self.emulator.poll_timeout()?;
        Some(Duration::from_nanos(due.0).saturating_sub(self.clock))
    }

    /// Lets time pass; timers run when they are due, one after the other.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # let mut linux = xfrmd::testing::Instance::new(&dataplane::profile::V7_2);
    /// assert_eq!(linux.next_timer(), None);
    /// let before = linux.now().real;
    /// linux.advance(Duration::from_secs(100 * 3600));
    /// assert_eq!(linux.now().real.0 - before.0, 360_000);
    /// ```
    pub fn advance(&mut self, time: Duration) {
        let end = self.clock.saturating_add(time);
        while self.run_timer(end) {
            self.run_roads();
        }
    }

    /// Goes on to the next timer, if one is due before the clock is `end` after boot, and runs it; else to
    /// that end. Of packets that wait only [`Instance::advance`] takes care.
    pub fn run_timer(&mut self, end: Duration) -> bool {
        let due = self.emulator.poll_timeout();
        let due = due.map(|at| Duration::from_nanos(at.0));
        let Some(due) = due.filter(|due| *due <= end) else {
            self.clock = self.clock.max(end);
            return false;
        };
        self.clock = self.clock.max(due);
        let inputs = Inputs {
            now: now(self.clock),
            entropy: &mut self.entropy,
        };
        self.emulator.handle_timeout(inputs);
        self.deliver();
        true
    }

    /// How long the machine has been up.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.clock
    }
}

/// What it is, so long after boot.
pub(super) fn now(clock: Duration) -> Now {
    Now {
        boot: BootNanos(u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX)),
        real: WallSecs(EPOCH.saturating_add(clock.as_secs())),
    }
}
