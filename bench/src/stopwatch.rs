//! Repeated timings.
//!
//! In-process work is timed on the thread's CPU clock, which other processes on
//! the machine do not stretch; work that waits for another process, on the wall's.

use std::time::{Duration, Instant};

/// Nanoseconds as a number to divide.
pub(crate) fn ns(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// The middle value.
pub(crate) fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The smallest value: what disturbs a measurement only adds to it.
pub(crate) fn least(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Nanoseconds that `work` takes.
pub(crate) fn time(work: impl FnOnce()) -> f64 {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    work();
    ns(start.elapsed())
}

/// Nanoseconds of CPU time that `work` takes on this thread.
pub(crate) fn cpu_time(work: impl FnOnce()) -> f64 {
    let clock = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
        now.map_or(0.0, |t| ns(t.into()))
    };
    let start = clock();
    work();
    clock() - start
}
