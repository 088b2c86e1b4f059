//! `libxfrm_shim.so`: preloaded into a program, it takes the program's
//! NETLINK_XFRM sockets to xfrmd.
//!
//! What the program holds is a real netlink socket of protocol
//! NETLINK_USERSOCK in its own network namespace, so that ports, groups,
//! buffers, PEEK and TRUNC, polling, dup, fork and exec are the host kernel's
//! own. Only these differ:
//!
//! * what is sent goes to the daemon as a request over a control connection
//!   (`control`); the call returns when the daemon has queued the answers;
//! * what is received comes from the daemon's port, which is shown as 0, the
//!   kernel's (`receive`); while a dump runs, each receive pulls the next chunk;
//! * `/proc/net/xfrm_stat` and `/proc/sys/net/core/xfrm_*` are the daemon's (`procfs`);
//! * with the feature `time`, clocks and waits are those of the run's virtual clock (`time`); the library
//!   without it leaves them alone;
//! * UDP encapsulation and per-socket policies do not reach the host (`options`).
//!
//! Rules of this crate: every other call of the program passes through
//! unchanged at the price of one table look-up; `errno` is left as the
//! imitated call leaves it; nothing allocates, locks or panics, so that any of
//! it may run in a signal handler and between fork and exec; nothing here
//! calls a symbol that this library itself interposes.
#![allow(
    clippy::cast_possible_truncation,
    reason = "C's types: constants, sizes and results of system calls fit by their definition"
)]

mod calls;
mod connection;
mod control;
mod descriptors;
mod netlink;
mod options;
mod pages;
mod ports;
mod procfs;
mod real;
mod receive;
mod send;
mod symbols;
mod sys;
mod table;
mod tails;
#[cfg(feature = "time")]
mod time;

/// Runs when the library is loaded, before the program.
extern "C" fn load() {
    real::resolve_all();
    pages::set_up();
    connection::read_environment();
    table::adopt_inherited();
    #[cfg(feature = "time")]
    time::set_up();
}

#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;
