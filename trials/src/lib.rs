//! Tests that may lack their tool: reported as ignored, with the reason and what would enable them,
//! or failed where `XFRMD_REQUIRE_ALL=1` demands every test.

use libtest_mimic::{Failed, Trial};

/// Whether `XFRMD_REQUIRE_ALL=1` demands every test.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the variable is for tests")]
pub fn all_required() -> bool {
    std::env::var_os("XFRMD_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// A test that says whether it failed.
pub fn trial(
    name: String,
    missing: Option<String>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    match missing {
        None => Trial::test(name, run),
        Some(reason) if all_required() => Trial::test(name, move || Err(reason.into())),
        Some(reason) => {
            Trial::test(format!("{name} ({reason})"), || Ok(())).with_ignored_flag(true)
        }
    }
}

/// A test that panics when it fails.
pub fn case(
    name: &str,
    missing: Option<impl Into<String>>,
    body: impl FnOnce() + Send + 'static,
) -> Trial {
    trial(name.to_owned(), missing.map(Into::into), move || {
        body();
        Ok(())
    })
}

/// Whether there is a program of that name.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "where programs are")]
pub fn is_installed(program: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&places).any(|place| place.join(program).is_file())
}

/// What a test lacks here that makes network namespaces and carries packets in them.
#[must_use]
pub fn missing_for_packets() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        Some("needs root: run the tests with sudo")
    } else if !is_installed("ip") {
        Some("needs ip: apt-get install iproute2")
    } else if std::fs::File::open("/dev/net/tun").is_err() {
        Some("needs /dev/net/tun: modprobe tun")
    } else {
        None
    }
}
