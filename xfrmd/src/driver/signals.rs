//! Signals, as events of the loop.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A signal that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Which.
    pub(crate) signal: Signal,
    /// A process sent it; else the kernel did, to the terminal's whole process group.
    pub(crate) sent: bool,
    /// Which one.
    pub(crate) by: u32,
}

/// Signals that no longer interrupt but are read.
pub(crate) struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks `signals` for this thread and those that it starts.
    pub(crate) fn block(signals: &[Signal]) -> io::Result<Self> {
        let mut set = SigSet::empty();
        for &signal in signals {
            set.add(signal);
        }
        let before = SigSet::thread_get_mask()?;
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, before })
    }

    /// Becomes readable when a signal has arrived.
    pub(crate) fn fd(&self) -> &SignalFd {
        &self.fd
    }

    /// The mask before, for programs that we start.
    pub(crate) fn mask_before(&self) -> SigSet {
        self.before
    }

    /// The next signal.
    pub(crate) fn next(&self) -> Option<Arrived> {
        let info = self.fd.read_signal().ok()??;
        let number = i32::try_from(info.ssi_signo).ok()?;
        Some(Arrived {
            signal: Signal::try_from(number).ok()?,
            sent: info.ssi_code <= 0,
            by: info.ssi_pid,
        })
    }
}
