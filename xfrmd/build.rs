//! Builds `libxfrm_shim.so` and puts it into the program, so that one file is all there is to install.
//!
//! Cargo has no stable way to depend on another crate's shared library, so this runs cargo once
//! more, in a target directory of its own, with the same toolchain, target and lock file.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = path("CARGO_MANIFEST_DIR").join("..");
    for watched in [
        "shim",
        "xfrm-proto/src/clock.rs",
        "xfrm-proto/src/control.rs",
        "xfrm-proto/src/lib.rs",
        "Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    for (feature, name) in [(None, "XFRM_SHIM"), (Some("time"), "XFRM_TIMED_SHIM")] {
        let library = build(&root, feature);
        println!("cargo:rustc-env={name}={}", library.display());
    }
}

/// Builds the shim, with a feature or without; a copy of it.
fn build(root: &Path, feature: Option<&str>) -> PathBuf {
    let out = path("OUT_DIR").join("shim");
    let target = text("TARGET");
    let mut cargo = Command::new(text("CARGO"));
    cargo
        .args([
            "build",
            "--release",
            "--package",
            "shim",
            "--target",
            &target,
        ])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&out)
        .args(feature.map(|feature| format!("--features={feature}")))
        .current_dir(root);
    // Lints and flags of the outer build are not meant for this one.
    for variable in [
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(variable);
    }
    // It is loaded into every program: small, and a panic must not unwind into C.
    for (setting, value) in [("DEBUG", "0"), ("STRIP", "symbols"), ("PANIC", "abort")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    let output = cargo
        .output()
        .unwrap_or_else(|error| panic!("running cargo: {error}"));
    assert!(
        output.status.success(),
        "building the shim:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let library = out.join(target).join("release/libxfrm_shim.so");
    assert!(
        Path::new(&library).exists(),
        "{} is missing",
        library.display()
    );
    let copy = out.join(format!("{}.so", feature.unwrap_or("plain")));
    std::fs::copy(&library, &copy).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
    copy
}

#[expect(
    clippy::disallowed_methods,
    reason = "build scripts get their input so"
)]
fn text(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(text(name))
}
