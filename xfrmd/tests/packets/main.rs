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

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

fn missing() -> Option<&'static str> {
    let ip = Command::new("ip").arg("-V").stdout(Stdio::null()).status();
    if !nix::unistd::geteuid().is_root() {
        Some("needs root: run the tests with sudo")
    } else if ip.is_err() {
        Some("needs ip: apt-get install iproute2")
    } else if std::fs::File::open("/dev/net/tun").is_err() {
        Some("needs /dev/net/tun: modprobe tun")
    } else {
        None
    }
}

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
    let required = std::env::var_os("XFRMD_REQUIRE_ALL").is_some_and(|value| value == "1");
    let missing = missing();
    let trials = cases::CASES
        .iter()
        .chain(ways::CASES)
        .chain(own::CASES)
        .chain(defaults::CASES)
        .chain(arrival::CASES)
        .chain(routes::CASES)
        .chain(iptfs::CASES)
        .chain(rootless::CASES)
        .map(|&(name, body)| {
            let name = match missing {
                Some(reason) if !required => format!("{name} ({reason})"),
                _ => name.to_owned(),
            };
            Trial::test(name, move || match missing {
                Some(reason) => Err(Failed::from(reason)),
                None => {
                    body();
                    Ok(())
                }
            })
            .with_ignored_flag(missing.is_some() && !required)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
