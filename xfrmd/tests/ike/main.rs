//! IKE daemons: network namespaces joined by a veth pair, in each an `xfrmd run --packets` with an
//! unmodified strongSwan or libreswan under it, traffic through what they agree on, and a packet socket
//! on the wire that must see nothing else.
//!
//! Every case: no plaintext on the wire, nothing lost but where a case says so, and the same counters at
//! both ends. strongSwan comes from `install.sh`, libreswan from the distribution; without them, without
//! root or `/dev/net/tun`, cases are reported as ignored with the reason, or fail under
//! `XFRMD_REQUIRE_ALL=1`.
//!
//! Each `xfrmd` records. When its case is over, all that it did is replayed as all three releases
//! (`releases`).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::undocumented_unsafe_blocks,
    reason = "all of this is test code: a panic is a failed test"
)]

mod cases;
mod charon;
mod flow;
mod host;
mod kernel;
#[path = "../namespaces/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod namespaces;
mod pluto;
mod releases;
mod sas;
mod wire;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::Arguments;

/// What a case cannot do without.
#[derive(Clone, Copy)]
enum Need {
    /// strongSwan 5.9.
    Charon5,
    /// strongSwan 6.0.
    Charon6,
    /// libreswan.
    Pluto,
    /// Linux of a release, as compat-tests run it.
    Kernel(&'static str),
    /// A C compiler.
    Compiler,
}

fn missing(need: Need) -> Option<&'static str> {
    let there = |path: &str| Path::new(path).exists();
    match need {
        Need::Kernel(release) => (!there(&kernel::linux(release)))
            .then_some("needs a reference kernel: compat-tests/kernel/install.sh"),
        Need::Compiler => (!trials::is_installed("cc"))
            .then_some("needs a C compiler: apt-get install gcc libc6-dev"),
        Need::Charon5 => (!there(&format!("{}/swanctl", charon::home("5.9"))))
            .then_some("needs strongSwan 5.9: xfrmd/tests/ike/install.sh 5.9"),
        Need::Charon6 => (!there(&format!("{}/swanctl", charon::home("6.0"))))
            .then_some("needs strongSwan 6.0: xfrmd/tests/ike/install.sh 6.0"),
        Need::Pluto => (!there(&format!("{}/pluto", pluto::PROGRAMS)))
            .then_some("needs libreswan: apt-get install libreswan"),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["namespace"] => {
            namespaces::hold();
            return ExitCode::SUCCESS;
        }
        ["answer", address, ports] => {
            flow::answer_alone(address, ports.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        ["paced", source, target, count, seconds] => {
            let (count, seconds) = (count.parse().unwrap(), seconds.parse().unwrap());
            flow::paced(source, target, count, seconds);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // Daemons mostly wait for each other.
    arguments.test_threads.get_or_insert(4);
    let in_general = trials::missing_for_packets();
    let trials = cases::CASES
        .iter()
        .map(|&(name, needs, body)| {
            let missing = in_general.or_else(|| needs.iter().copied().find_map(missing));
            trials::case(name, missing, body)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
