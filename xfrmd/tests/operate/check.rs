//! `xfrmd check`: as a gate, and at the end of `xfrmd run`.

use std::process::{Command, Output};

use serde_json::Value;

use crate::service::*;
use crate::{Case, Need};

const IP: Need = Need::Program("ip", "iproute2");

pub(crate) const CASES: &[Case] = &[
    ("check_is_a_gate", IP, gate),
    ("check_at_the_end_of_a_run", IP, at_the_end),
    ("check_looks_at_every_namespace", IP, every_namespace),
    ("check_says_what_it_cannot_do", Need::Root, errors),
    (
        "check_of_the_kernel_s_own_state",
        Need::Kernels(&["6.1"], &[]),
        own_kernel,
    ),
];

/// A tunnel with nothing wrong, in both directions.
const TUNNEL: &str = "
    for way in '1 2 out' '2 1 in'; do set -- $way
      ip xfrm state add src 10.0.0.$1 dst 10.0.0.$2 proto esp spi 0x10$1 reqid 1 mode tunnel \
        replay-window 32 aead 'rfc4106(gcm(aes))' 0x5e47e15e47e15e47e15e47e15e47e15e47e15e47 128 \
        limit time-soft 3000 limit time-hard 3600
      ip xfrm policy add src 10.$1.0.0/16 dst 10.$2.0.0/16 dir $3 priority 100 \
        tmpl src 10.0.0.$1 dst 10.0.0.$2 proto esp reqid 1 mode tunnel
    done";
const REMOVAL: &str = "ip xfrm state deleteall; ip xfrm policy deleteall";
const SENTINEL: &str = "5e47e1";

/// Runs a script under `xfrmd run` with options, in a network namespace of its own; `$XFRMD` is the
/// program.
fn run(options: &[&str], script: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_xfrmd");
    let mut command = Command::new("unshare");
    command.args(["-n", program, "run"]).args(options);
    command.args(["--", "sh", "-ec", script]);
    outcome(command.env("XFRMD", program))
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn gate() {
    let script = format!(
        "{TUNNEL}
         $XFRMD check
         ip xfrm policy add src 10.0.0.0/8 dst 10.0.0.0/8 dir out priority 50
         ip xfrm state delete src 10.0.0.2 dst 10.0.0.1 proto esp spi 0x102
         $XFRMD check || echo code $?
         $XFRMD check -j || echo code $?
         $XFRMD check --ignore shadowed-policy --ignore one-way-sa --ignore policy-without-sa"
    );
    let output = run(&[], &script);
    let (text, error) = said(&output);
    assert!(output.status.success(), "{text}{error}");
    let mut parts = text.split("code 1\n");
    let plain = parts.next().unwrap();
    let (clean, found) = plain.split_once('\n').unwrap();
    assert!(
        clean.ends_with("2 states, 2 policies, nothing found"),
        "{plain}"
    );
    for line in [
        "  one-way-sa: esp 10.0.0.1 > 10.0.0.2 spi 0x00000101 reqid 1: \
         there is none from 10.0.0.2 to 10.0.0.1 with reqid 1",
        "  shadowed-policy: out 10.1.0.0/16 > 10.2.0.0/16 priority 100",
        "  policy-without-sa: in 10.2.0.0/16 > 10.1.0.0/16",
    ] {
        assert!(found.contains(line), "{found}");
    }
    let report: Value = serde_json::from_str(parts.next().unwrap()).unwrap();
    let findings = report["namespaces"][0]["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 3, "{report}");
    let spi = findings.iter().find_map(|it| it["sa"]["spi"].as_u64());
    assert_eq!(spi, Some(0x101));
    assert!(parts.next().unwrap().contains("nothing found"), "{text}");
    assert!(!text.contains(SENTINEL), "a key: {text}");
}

fn at_the_end() {
    let clean = run(&["--check"], &format!("{TUNNEL}; {REMOVAL}"));
    assert_eq!(said(&clean), (String::new(), String::new()));
    assert_eq!(clean.status.code(), Some(0));
    let left = run(&["--check"], TUNNEL);
    let (_, report) = said(&left);
    assert_eq!(left.status.code(), Some(1), "{report}");
    assert_eq!(report.matches("left-behind").count(), 4, "{report}");
    assert!(!report.contains(SENTINEL), "a key: {report}");
    // The command's own failure is the one that counts.
    let failed = run(&["--check"], &format!("{TUNNEL}; exit 7"));
    assert_eq!(failed.status.code(), Some(7));
    assert!(said(&failed).1.contains("left-behind"));
    let accepted = run(&["--check", "--ignore", "left-behind"], TUNNEL);
    assert_eq!(accepted.status.code(), Some(0));
    assert_eq!(run(&[], TUNNEL).status.code(), Some(0));
}

fn every_namespace() {
    // The instance's daemon is in another one.
    let script = format!(
        "TUNNEL=$(cat <<'END'\n{TUNNEL}\nEND\n)\nunshare -n sh -ec \"$TUNNEL\n$XFRMD check --left\""
    );
    let output = run(&[], &script);
    let (text, error) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{error}");
    assert_eq!(text.matches("left-behind").count(), 4, "{text}");
}

fn errors() {
    let nobody = outcome(xfrmd().args(["check", "--socket", "/nowhere"]));
    assert_eq!(nobody.status.code(), Some(2));
    assert!(said(&nobody).1.contains("no daemon at /nowhere"));
    let unknown = outcome(xfrmd().args(["check", "--ignore", "leaks"]));
    assert_eq!(unknown.status.code(), Some(2));
    assert!(said(&unknown).1.contains("left-behind, one-way-sa"));
    let inside = run(&[], "$XFRMD check --host");
    assert_eq!(inside.status.code(), Some(2));
    assert!(said(&inside).1.contains("not the kernel"));
    let empty = run(&[], "$XFRMD check");
    assert_eq!(said(&empty).0, "nobody has configured anything\n");
    assert_eq!(empty.status.code(), Some(0));
}

/// On a reference kernel.
fn own_kernel() {
    let script = format!(
        "{TUNNEL}
         $XFRMD check --host
         $XFRMD check --host --left || echo code $?"
    );
    let output = outcome(&mut inside_linux("6.1", &script));
    let (text, error) = said(&output);
    assert!(output.status.success(), "{text}{error}");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert!(
        lines.contains(&"the kernel's own: 2 states, 2 policies, nothing found"),
        "{text}"
    );
    assert_eq!(text.matches("left-behind").count(), 4, "{text}");
    assert!(!text.contains(SENTINEL), "a key: {text}");
}
