//! Programs that the shim is not in: static ones, Go's, other C libraries'.
//!
//! Such a program makes its system calls itself and would configure the host's kernel. A seccomp
//! filter, inherited by all that the command of `xfrmd run` starts, brings each
//! `socket(AF_NETLINK, .., NETLINK_XFRM)` to us; the shim never makes that call, so programs that
//! have it are none of our business. What happens then is the front's choice:
//!
//! * [`Front::Preload`]: EPROTONOSUPPORT, as from a kernel without XFRM, and a line on standard
//!   error that says why.
//! * [`Front::Auto`], [`Front::Seccomp`]: the program gets a socket whose number is one of
//!   [`filter::NUMBERS`], and the filter brings the calls on those numbers to us too. All other calls
//!   pass without being looked at.
//!
//! * [`filter`]: the filter, and the way of its listener from the command to us.
//! * [`supervisor`]: the threads of ours that answer the calls; [`calls`]: one by one.
//! * [`target`]: the process whose call it is: its memory, its descriptors.
//! * [`library`]: the shim, loaded by us.
//! * [`time`]: the virtual clock of such programs.
//!
//! When we are gone such calls fail with ENOSYS. Calls of programs for another architecture are not
//! looked at. Where filters are forbidden, or where an instance around ours has one already, the
//! command runs without a filter of ours.

mod calls;
pub(crate) mod filter;
mod library;
pub(crate) mod supervisor;
mod target;
pub(crate) mod time;

/// How programs reach the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Front {
    /// The shim where it can be loaded, the supervisor for all other programs.
    Auto,
    /// The shim; other programs are refused.
    Preload,
    /// The supervisor for every program.
    Seccomp,
}

impl Front {
    /// Whether the shim is put into programs.
    pub(crate) fn preloads(self) -> bool {
        self != Self::Seccomp
    }

    /// Whether programs without the shim are served.
    pub(crate) fn supervises(self) -> bool {
        self != Self::Preload
    }
}
