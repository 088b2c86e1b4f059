//! The documented examples, as they are; and that each notices what is forgotten.

use std::path::Path;
use std::process::{Command, Output};

use crate::service::*;
use crate::{Case, Need};

pub(crate) const CASES: &[Case] = &[
    (
        "the_example_for_shells_works",
        Need::Program("ip", "iproute2"),
        shell,
    ),
    (
        "the_example_for_pytest_works",
        Need::Program("pytest-3", "python3-pytest"),
        pytest,
    ),
    ("the_example_for_go_works", Need::Go, go),
    (
        "the_example_for_shells_works_with_a_static_ip",
        Need::StaticIp,
        static_ip,
    ),
];

/// Runs a command line in the project's directory and a network namespace of its own, with the program in
/// the path.
fn run(line: &str, variables: &[(&str, &str)]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_xfrmd")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(program.to_path_buf()).chain(std::env::split_paths(&path)),
    );
    let mut command = Command::new("unshare");
    command
        .args(["-n", "sh", "-c", line])
        .env("PATH", path.unwrap());
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    outcome(command.envs(variables.iter().copied()))
}

/// It succeeds; with `FORGET` it fails and says that something was left behind.
#[track_caller]
fn works(line: &str, variables: &[(&str, &str)]) {
    let output = run(line, variables);
    let all = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&all);
    assert!(output.status.success(), "{said}");
    let forgetful = run(line, &[variables, &[("FORGET", "1")]].concat());
    let all = [forgetful.stdout, forgetful.stderr].concat();
    let said = String::from_utf8_lossy(&all);
    assert_eq!(forgetful.status.code(), Some(1), "{said}");
    assert!(
        said.contains("left-behind") || said.contains("left behind"),
        "{said}"
    );
}

fn shell() {
    works("xfrmd run --check -- sh examples/shell/test.sh", &[]);
}

/// The same script, and the same `ip`, which the shim cannot be loaded into.
fn static_ip() {
    let line = format!(
        "PATH={}:$PATH xfrmd run --check -- sh examples/shell/test.sh",
        crate::static_ip().display()
    );
    works(&line, &[]);
}

fn pytest() {
    let line = "xfrmd run -- pytest-3 -p no:cacheprovider examples/pytest";
    works(line, &[("PYTHONDONTWRITEBYTECODE", "1")]);
}

/// Compiled once; `go test` would do nothing else.
fn go() {
    let scratch = Scratch::new("go");
    let program = scratch.path("xfrm.test");
    let go = [
        ("GO111MODULE", "off"),
        ("GOPATH", "/usr/share/gocode"),
        ("GOCACHE", scratch.path("cache").to_str().unwrap()),
        ("CGO_ENABLED", "0"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let build = |words: &[&str], program: &Path, source: &str| {
        let mut build = Command::new("go");
        build.args(words).arg("-o").arg(program).arg(source);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        succeeds(build.envs(go.clone()));
    };
    build(&["test", "-c"], &program, "./examples/go");
    let program = program.to_str().unwrap();
    works(&format!("xfrmd run --check -- {program} -test.v"), &[]);
    // By a shell that has the shim, and for whoever is not root.
    let own = scratch.path("xfrmd");
    std::fs::copy(env!("CARGO_BIN_EXE_xfrmd"), &own).unwrap();
    let by_nobody = format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups \
           {} run --check -- sh -c '{program} -test.v'",
        own.display()
    );
    let output = run(&by_nobody, &[("TMPDIR", "/tmp")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let other = scratch.path("static");
    build(&["build"], &other, "xfrmd/tests/operate/static.go");
    for case in ["numbers", "ports", "rings", "threads", "children"] {
        let output = run(&format!("xfrmd run -- {} {case}", other.display()), &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {said}");
    }
}
