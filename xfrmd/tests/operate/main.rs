//! Operating it: the doctor, the configuration, signals, socket activation, logs, metrics, man pages
//! and completions, each as an operator meets it.
//!
//! A case that lacks something is reported as ignored with the reason, or fails under
//! `XFRMD_REQUIRE_ALL=1`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::undocumented_unsafe_blocks,
    reason = "all of this is test code: a panic is a failed test"
)]

mod cases;
mod check;
mod examples;
mod package;
mod recordings;
mod service;
mod store;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::Arguments;

const GO_LIBRARY: &str = "/usr/share/gocode/src/github.com/vishvananda/netlink";

/// What a case needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    Root,
    /// Root, and these programs, of that Debian package.
    Program(&'static str, &'static str),
    /// Linux of these releases, as programs; and others, of the Debian packages with their names.
    Kernels(&'static [&'static str], &'static [&'static str]),
    /// Root, Go, and its netlink library.
    Go,
    /// Root, and an `ip` without a dynamic linker.
    StaticIp,
}

impl Need {
    fn missing(self) -> Option<String> {
        let root = nix::unistd::geteuid().is_root();
        match self {
            Self::Nothing => None,
            _ if !root => Some("needs root: run the tests with sudo".into()),
            Self::Go if !trials::is_installed("go") || !Path::new(GO_LIBRARY).exists() => {
                let packages = "golang-go golang-github-vishvananda-netlink-dev";
                Some(format!(
                    "needs Go and a library: apt-get install {packages}"
                ))
            }
            Self::StaticIp if !static_ip().join("ip").exists() => {
                Some("needs a static ip: xfrmd/tests/operate/static-ip.sh".into())
            }
            Self::Program(program, package) if !trials::is_installed(program) => {
                Some(format!("needs {program}: apt-get install {package}"))
            }
            Self::Kernels(releases, programs) => {
                let place = std::env::var_os("REFERENCE_KERNEL_DIR");
                let place = place.unwrap_or_else(|| "/opt/reference-kernel".into());
                let is_there = |release: &&&str| {
                    let name = match **release {
                        "6.1" => "oldstable",
                        "6.12" => "stable",
                        _ => "newest",
                    };
                    Path::new(&place).join(name).join("linux").exists()
                };
                let release = releases.iter().find(|release| !is_there(release));
                let kernel = release.map(|release| {
                    format!("needs Linux {release}: compat-tests/kernel/install.sh {release}")
                });
                kernel.or_else(|| {
                    let program = programs.iter().find(|it| !trials::is_installed(it))?;
                    Some(format!("needs {program}: apt-get install {program}"))
                })
            }
            Self::Root | Self::Go | Self::StaticIp | Self::Program(..) => None,
        }
    }
}

/// Where static-ip.sh puts it.
pub(crate) fn static_ip() -> std::path::PathBuf {
    let place = std::env::var_os("STATIC_IP_DIR");
    place.map_or_else(|| "/opt/static-ip".into(), Into::into)
}

/// A case: name, need, body.
pub(crate) type Case = (&'static str, Need, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = [cases::CASES, check::CASES, examples::CASES]
        .into_iter()
        .flatten()
        .map(|&(name, need, body)| trials::case(name, need.missing(), body))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
