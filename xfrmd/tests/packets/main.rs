//! Packets: two network namespaces joined by a veth pair, an `xfrmd run
//! --packets` in each, SAs and policies by `ip xfrm`, real sockets, and a
//! packet socket on the wire that must see no plaintext.
//!
//! Needs root, `/dev/net/tun` and `ip`; without, cases are reported as ignored
//! with the reason, or fail under `XFRMD_REQUIRE_ALL=1`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::undocumented_unsafe_blocks,
    reason = "all of this is test code: a panic is a failed test"
)]

mod arrival;
mod bulk;
mod capture;
mod cases;
mod defaults;
mod interface_ids;
mod iptfs;
#[path = "../namespaces/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod namespaces;
mod net;
mod own;
mod restart;
mod rootless;
mod routes;
mod ways;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("namespace") => {
            namespaces::hold();
            return ExitCode::SUCCESS;
        }
        Some("key-manager") => {
            let log = arguments.next().unwrap();
            net::manage_keys(&log, &arguments.next().unwrap_or_default());
            return ExitCode::SUCCESS;
        }
        Some("own") => {
            own::play(&arguments.next().unwrap(), arguments);
            return ExitCode::SUCCESS;
        }
        Some("iptfs") => {
            iptfs::configure(arguments.next().unwrap().parse().unwrap());
            return ExitCode::SUCCESS;
        }
        Some("protected-sender") => {
            net::send_protected(&arguments.next().unwrap());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let arguments = Arguments::from_args();
    let missing = trials::missing_for_packets();
    let trials = cases::CASES
        .iter()
        .chain(ways::CASES)
        .chain(own::CASES)
        .chain(defaults::CASES)
        .chain(arrival::CASES)
        .chain(routes::CASES)
        .chain(iptfs::CASES)
        .chain(rootless::CASES)
        .map(|&(name, body)| trials::case(name, missing, body))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
