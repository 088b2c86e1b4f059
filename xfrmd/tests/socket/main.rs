//! The socket: what programs do with it through libc, under `xfrmd run` and
//! with a shared daemon.
//!
//! A case of [`client`] runs in this very program, started again under
//! `xfrmd run`; a case of [`daemon`] starts and kills daemons of its own. A case that lacks something is
//! reported as ignored with the reason, or fails under `XFRMD_REQUIRE_ALL=1`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::undocumented_unsafe_blocks,
    reason = "all of this is test code: a panic is a failed test"
)]

mod client;
mod daemon;
mod netlink;
mod process;

use std::process::ExitCode;

use libtest_mimic::Arguments;

/// What a case needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// To be root, to make namespaces and become somebody else.
    Root,
    /// To start without privileges, as nobody if we are root.
    Nobody,
    /// `ip`, and to be root.
    Ip,
    /// A user namespace of one's own, without privileges.
    UserNamespaces,
    /// A C compiler and a static C library.
    Compiler,
    /// That, and to be root.
    RootAndCompiler,
}

impl Need {
    /// What is missing, and how to get it.
    fn missing(self) -> Option<&'static str> {
        let root = nix::unistd::geteuid().is_root();
        match self {
            Self::Root if !root => Some("needs root: run the tests with sudo"),
            Self::Ip if !root || !trials::is_installed("ip") => {
                Some("needs root and ip: apt-get install iproute2, sudo")
            }
            Self::RootAndCompiler if !root => Some("needs root: run the tests with sudo"),
            Self::Compiler | Self::RootAndCompiler if !trials::is_installed("cc") => {
                Some("needs a C compiler: apt-get install gcc libc6-dev")
            }
            Self::UserNamespaces if !process::user_namespaces_work() => {
                Some("needs user namespaces: sysctl kernel.unprivileged_userns_clone=1")
            }
            _ => None,
        }
    }
}

/// A case: name, need, body.
pub(crate) type Case = (&'static str, Need, fn());

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("client") => {
            client::run(&arguments.next().unwrap(), arguments.next());
            return ExitCode::SUCCESS;
        }
        Some("process") => {
            process::run(&arguments.next().unwrap());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let arguments = Arguments::from_args();
    let clients = client::CASES.iter().map(|&(name, need, _)| {
        let start = move || client::start(name, need, "preload");
        trials::case(name, need.missing(), start)
    });
    let supervised = client::CASES
        .iter()
        .filter(|case| !client::NOT_SUPERVISED.contains(&case.0))
        .map(|&(name, need, _)| {
            let start = move || client::start(name, need, "seccomp");
            trials::case(&format!("supervised::{name}"), need.missing(), start)
        });
    let others = daemon::CASES
        .iter()
        .map(|&(name, need, body)| trials::case(name, need.missing(), body));
    let trials = clients.chain(supervised).chain(others).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let _ = std::fs::remove_dir_all(process::copies());
    conclusion.exit_code()
}
