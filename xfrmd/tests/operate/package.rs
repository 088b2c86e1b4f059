//! The Debian package: made, looked into, unpacked.

use std::path::Path;
use std::process::Command;

use crate::service::{Scratch, succeeds, xfrmd};

pub(crate) fn whole() {
    let scratch = Scratch::new("package");
    // Of the program that is there, whatever its profile.
    let made = succeeds(
        Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--package", "xtask", "--", "deb"])
            .args(["--program", env!("CARGO_BIN_EXE_xfrmd"), "--out"])
            .arg(&scratch.0)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")),
    );
    let package = made.lines().last().unwrap();
    let content = succeeds(Command::new("dpkg-deb").args(["--contents", package]));
    for path in [
        "./usr/bin/xfrmd",
        "./etc/xfrmd/xfrmd.toml",
        "./usr/lib/systemd/system/xfrmd.service",
        "./usr/lib/systemd/system/xfrmd.socket",
        "./usr/share/man/man8/xfrmd-doctor.8.gz",
        "./usr/share/man/man5/xfrmd.toml.5.gz",
        "./usr/share/bash-completion/completions/xfrmd",
        "./usr/share/doc/xfrmd/copyright",
    ] {
        let there = content.lines().any(|line| line.ends_with(path));
        assert!(there, "{path}: {content}");
    }
    let is_roots = |line: &str| line.contains(" root/root ");
    assert!(content.lines().all(is_roots), "{content}");
    let field = |name| succeeds(Command::new("dpkg-deb").args(["-f", package, name]));
    assert!(field("Depends").contains("libc6 (>= "));
    let version = succeeds(xfrmd().arg("--version"));
    assert_eq!(field("Version"), version.trim_start_matches("xfrmd "));
    unpacked(&scratch, package);
    scripts(&scratch, package);
}

/// What comes out runs.
fn unpacked(scratch: &Scratch, package: &str) {
    let root = scratch.path("unpacked");
    succeeds(Command::new("dpkg").arg("-x").arg(package).arg(&root));
    let file = root.join("etc/xfrmd/xfrmd.toml");
    let mut program = Command::new(root.join("usr/bin/xfrmd"));
    let said = succeeds(program.args(["config", "--config"]).arg(file));
    let default = succeeds(xfrmd().args(["config", "--config", "/dev/null"]));
    assert_eq!(said, default);
}

/// They start nothing, and do without systemd.
fn scripts(scratch: &Scratch, package: &str) {
    let directory = scratch.path("scripts");
    succeeds(Command::new("dpkg").arg("-e").arg(package).arg(&directory));
    let arguments = [
        ("postinst", "configure"),
        ("prerm", "upgrade"),
        ("postrm", "remove"),
    ];
    for (script, argument) in arguments {
        let path = directory.join(script);
        succeeds(Command::new("sh").arg("-n").arg(&path));
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.starts_with('#'));
        for line in code {
            let starts = line.contains("systemctl start") || line.contains("systemctl enable");
            assert!(!starts, "{script}: {line}");
        }
        if !Path::new("/run/systemd/system").exists() {
            succeeds(Command::new(&path).arg(argument));
        }
    }
}
