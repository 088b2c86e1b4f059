//! A virtual clock: what `xfrmd clock` does, and what programs of a run see of it.
//!
//! Nothing here waits for the host's time but to give up. Cases that lack a tool are reported as ignored with
//! the reason, or fail under `XFRMD_REQUIRE_ALL=1`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "all of this is test code: a panic is a failed test"
)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Arguments;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const XFRMD: &str = env!("CARGO_BIN_EXE_xfrmd");
/// How long a run may take to end after its shell.
const GRACE_MS: u32 = 10_000;

/// What a case needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    Ip,
    Compiler,
}

impl Need {
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Ip if !trials::is_installed("ip") => Some("needs ip: apt-get install iproute2"),
            Self::Compiler if !trials::is_installed("cc") => {
                Some("needs a C compiler: apt-get install gcc libc6-dev")
            }
            _ => None,
        }
    }
}

type Case = (&'static str, Need, fn());

static CASES: &[Case] = &[
    ("every_wait_of_libc", Need::Compiler, every_wait_of_libc),
    #[cfg(target_arch = "x86_64")]
    (
        "waits_without_the_shim",
        Need::Compiler,
        waits_without_the_shim,
    ),
    #[cfg(target_arch = "x86_64")]
    (
        "an_hour_without_the_shim",
        Need::Ip,
        an_hour_without_the_shim,
    ),
    ("an_hour_of_an_sa", Need::Ip, an_hour_of_an_sa),
    (
        "sleepers_wake_in_order",
        Need::Nothing,
        sleepers_wake_in_order,
    ),
    (
        "time_stands_until_told",
        Need::Nothing,
        time_stands_until_told,
    ),
    (
        "what_can_never_come_true",
        Need::Ip,
        what_can_never_come_true,
    ),
    (
        "a_real_clock_cannot_be_moved",
        Need::Nothing,
        a_real_clock_cannot_be_moved,
    ),
    (
        "the_environment_chooses",
        Need::Nothing,
        the_environment_chooses,
    ),
    ("from_outside", Need::Nothing, from_outside),
    ("the_same_seed_gives_the_same_events", Need::Ip, same_seed),
    (
        "a_killed_daemon_keeps_the_time",
        Need::Nothing,
        killed_daemon,
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = CASES
        .iter()
        .map(|&(name, need, body)| trials::case(name, need.missing(), body))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a script under a clock; exit code, output, complaints. A run that hangs is ended.
fn run(options: &[&str], script: &str) -> (i32, String, String) {
    let output = Command::new("timeout")
        .args(["60", XFRMD, "run"])
        .args(options)
        .args(["--", "sh", "-c", script])
        .env("X", XFRMD)
        .env_remove("XFRMD_CLOCK")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The same for one that succeeds.
#[track_caller]
fn said(options: &[&str], script: &str) -> String {
    let (code, out, err) = run(options, script);
    assert_eq!(code, 0, "{out}{err}");
    out
}

const VIRTUAL: [&str; 2] = ["--clock", "virtual"];
const AUTO: [&str; 2] = ["--clock", "auto"];
#[cfg(target_arch = "x86_64")]
const SUPERVISED: [&str; 4] = ["--clock", "virtual", "--front", "seccomp"];

fn every_wait_of_libc() {
    waits("shared", &[], &AUTO);
}

/// Without the shim: a static program, and one that the supervisor is to serve.
#[cfg(target_arch = "x86_64")]
fn waits_without_the_shim() {
    waits("static", &["-DSUPERVISED", "-static"], &AUTO);
    let supervised = [&AUTO[..], &["--front", "seccomp"]].concat();
    waits("supervised", &["-DSUPERVISED"], &supervised);
}

/// Compiles the program of all waits and runs it.
fn waits(name: &str, compiler: &[&str], options: &[&str]) {
    let directory = std::env::temp_dir().join(format!("xfrmd-clock-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let program: PathBuf = directory.join("time");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clock/time.c");
    let built = Command::new("cc")
        .args(["-O1", "-Wall", "-pthread", "-o"])
        .arg(&program)
        .arg(source)
        .args(compiler)
        .status();
    assert!(built.unwrap().success());
    let (code, out, err) = run(options, program.to_str().unwrap());
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(
        (code, &*out),
        (0, "every wait took its time\n"),
        "{name}: {out}{err}"
    );
}

/// Adds an SA; its SPI and [`MODE`] follow.
const SA: &str = "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp";
const MODE: &str =
    "mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128";

/// `ip xfrm monitor` hears of an hour-long SA's expiries as soon as the clock has been told to move.
fn an_hour_of_an_sa() {
    hour(&VIRTUAL);
}

/// `ip` has to wait for the supervisor to be told of events, and must not hold the clock up meanwhile.
#[cfg(target_arch = "x86_64")]
fn an_hour_without_the_shim() {
    hour(&SUPERVISED);
    sleepers(&SUPERVISED);
}

fn hour(options: &[&str]) {
    let mut shell = Shell::start(options);
    shell.tell("ip xfrm monitor expire &");
    shell.tell("$X clock run-until idle > /dev/null");
    shell.tell(&format!(
        "{SA} spi 0x1234 {MODE} limit time-soft 3500 limit time-hard 3600"
    ));
    shell.tell("$X clock run-until idle > /dev/null; echo ready");
    assert_eq!(shell.line(), "ready");
    let start = Instant::now();
    shell.tell("$X clock advance 1h > /dev/null");
    for hard in ["hard 0", "hard 1"] {
        while shell.line().trim() != hard {}
        println!("{hard} after {:?}", start.elapsed());
    }
    shell.tell("ip xfrm state count");
    while !shell.line().contains("SAD count 0") {}
}

fn sleepers_wake_in_order() {
    sleepers(&VIRTUAL);
}

fn sleepers(options: &[&str]) {
    // Started in another order than they end; two for the same time.
    let script = "for n in 3 1 4 2; do ( sleep $n; echo $n at $(date +%s) ) & done; \
        start=$(date +%s); $X clock advance 2500ms > /dev/null; echo stands at $(date +%s); \
        $X clock advance 10s > /dev/null; wait; echo from $start to $(date +%s)";
    let out = said(options, script);
    let lines: Vec<&str> = out.lines().collect();
    let (from, to) = lines[5]
        .strip_prefix("from ")
        .unwrap()
        .split_once(" to ")
        .unwrap();
    let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
    assert_eq!(to, from + 12);
    let at = |secs: u64| from + secs;
    let expected = [
        format!("1 at {}", at(1)),
        format!("2 at {}", at(2)),
        format!("stands at {}", at(2)),
        format!("3 at {}", at(3)),
        format!("4 at {}", at(4)),
    ];
    assert_eq!(lines[..5], expected);
}

fn time_stands_until_told() {
    let out = said(
        &VIRTUAL,
        "a=$(date +%s%N); i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; b=$(date +%s%N); \
         $X clock advance 1ns > /dev/null; c=$(date +%s%N); echo $((b-a)) $((c-b)); \
         sleep 1000 & $X clock run-until idle > /dev/null; $X clock -j; kill $!",
    );
    let (first, shown) = out.split_once('\n').unwrap();
    assert_eq!(first, "0 1");
    let shown: serde_json::Value = serde_json::from_str(shown).unwrap();
    let number = |name: &str| shown[name].as_u64().unwrap();
    assert_eq!(shown["clock"], "virtual");
    assert_eq!(shown["auto"], false);
    assert_eq!(number("next") - number("boot"), 1_000_000_000_000);
    assert_eq!(number("waiting"), 1);
}

#[track_caller]
fn refused(options: &[&str], script: &str, complaint: &str) {
    let (code, out, err) = run(options, script);
    assert_eq!(code, 2, "{out}{err}");
    assert!(err.contains(complaint), "{err}");
}

fn what_can_never_come_true() {
    let expire = "$X clock run-until expire spi 0x1234";
    refused(&VIRTUAL, expire, "there is no SA with the SPI 0x1234");
    refused(
        &VIRTUAL,
        &format!("{SA} spi 0x1234 {MODE}; {expire}"),
        "the SA 0x1234 has no limit",
    );
    refused(
        &VIRTUAL,
        &format!(
            "{SA} spi 0x1234 {MODE} limit time-hard 3600; \
             ( sleep 60; ip xfrm state flush ) & {expire}; code=$?; wait; exit $code"
        ),
        "the SA 0x1234 was deleted before it expired",
    );
    refused(
        &VIRTUAL,
        "$X clock run-until acquire",
        "nothing is left to wait for",
    );
    refused(
        &VIRTUAL,
        "$X clock run-until packet",
        "no packets are carried",
    );
    refused(&VIRTUAL, "$X clock advance 1x", "1x");
    refused(
        &VIRTUAL,
        "sleep 3600 & $X clock run-until expire spi 0x5; kill $!; exit 2",
        "there is no SA with the SPI 0x5",
    );
}

fn a_real_clock_cannot_be_moved() {
    for action in ["advance 1h", "auto", "stop", "run-until idle"] {
        refused(
            &["--clock", "real"],
            &format!("$X clock {action}"),
            "the clock is the host's",
        );
    }
    assert!(said(&[], "$X clock").starts_with("clock the host's\n"));
}

fn the_environment_chooses() {
    let run = |value: &str, script: &str| {
        let mut command = Command::new("timeout");
        command.args(["60", XFRMD, "run", "--", "sh", "-c", script]);
        let output = command
            .env("XFRMD_CLOCK", value)
            .env("X", XFRMD)
            .output()
            .unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), out)
    };
    assert_eq!(
        run("auto", "sleep 100000; echo $XFRMD_CLOCK"),
        (0, "auto\n".to_owned())
    );
    let (code, out) = run("virtual", "$X clock");
    assert_eq!(code, 0);
    assert!(out.starts_with("clock virtual\n"), "{out}");
    assert_eq!(run("sometimes", "true").0, 2);
}

/// A shell under a clock, in a process group of its own with all that it starts: `xfrmd run` takes nothing along
/// but its command, and a monitor that is left keeps the pipes of this test open for good.
struct Shell {
    child: Child,
    said: std::io::Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new(XFRMD);
        command.arg("run").args(options).args(["--", "sh"]);
        command.env("X", XFRMD).env_remove("XFRMD_CLOCK");
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        piped.process_group(0);
        let mut child = piped.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn line(&mut self) -> String {
        self.said.next().unwrap().unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        // The shell ends with its input, and the run with it. What is left, or hangs, is killed.
        for _ in 0..GRACE_MS {
            if self.child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn from_outside() {
    let mut shell = Shell::start(&VIRTUAL);
    shell.tell("date +%s; sleep 3000 && date +%s");
    let before: u64 = shell.line().parse().unwrap();
    let pid = shell.child.id().to_string();
    let clock = |arguments: &[&str]| {
        let mut command = Command::new(XFRMD);
        command.args(["clock", "--run", &pid]).args(arguments);
        command.output().unwrap()
    };
    let moved = clock(&["advance", "1h"]);
    assert!(moved.status.success(), "{moved:?}");
    assert_eq!(shell.line().parse::<u64>().unwrap(), before + 3000);
    assert!(clock(&[]).stdout.starts_with(b"clock virtual\n"));
    // This process belongs to no run, though it has children that do.
    let nobody = Command::new(XFRMD)
        .args(["clock", "--run", &std::process::id().to_string()])
        .output()
        .unwrap();
    assert!(!nobody.status.success(), "{nobody:?}");
}

/// Events of the engine, the SPIs and sequence numbers that it chose, and the times at which it did.
fn same_seed() {
    let script = format!(
        "start=$(date +%s); ip -t xfrm monitor & monitor=$!; \
         $X clock run-until idle > /dev/null; \
         for i in 1 2 3 4 5; do ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto esp mode tunnel; done; \
         for i in 1 2 3 4 5; do {SA} spi $i {MODE} limit time-soft $((100*i)) limit time-hard 1000; done; \
         $X clock advance 2000s > /dev/null; kill $monitor; ip xfrm state count; \
         echo $(($(date +%s)-start))"
    );
    let options = |seed| ["--clock", "virtual", "--seed", seed];
    // Times of day differ: what is left are the times from one to the next.
    let runs = ["7", "7", "8"].map(|seed| relative(&said(&options(seed), &script)));
    assert!(
        runs[0]
            .iter()
            .filter(|line| line.contains("Expired"))
            .count()
            >= 10
    );
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

/// Lines, with times of day as seconds from the first.
fn relative(text: &str) -> Vec<String> {
    let mut first = None;
    let mut time = |line: &str| {
        let line = line.strip_prefix("Timestamp:")?;
        let time = line.split_whitespace().find(|word| word.contains(':'))?;
        let units = time.split(':').map(|it| it.parse::<u64>().unwrap());
        let at = units.fold(0, |sum, unit| sum * 60 + unit);
        let first = *first.get_or_insert(at);
        Some(format!("after {}", (at + 86400 - first) % 86400))
    };
    let lines = text.lines();
    lines
        .map(|line| time(line).unwrap_or_else(|| line.to_owned()))
        .collect()
}

fn killed_daemon() {
    let mut shell = Shell::start(&VIRTUAL);
    let daemon = {
        let pid = i32::try_from(shell.child.id()).unwrap();
        let children = |pid: i32| {
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
        };
        let first = |pid: i32| {
            children(pid)
                .split_whitespace()
                .next()
                .and_then(|it| it.parse().ok())
        };
        shell.tell("echo ready");
        assert_eq!(shell.line(), "ready");
        // The keeper was made first; its only child is the daemon.
        first(pid).and_then(first).unwrap()
    };
    shell.tell(
        "date +%s; ( sleep 3000; date +%s ) & $X clock advance 1000s > /dev/null; echo moved",
    );
    let before: u64 = shell.line().parse().unwrap();
    assert_eq!(shell.line(), "moved");
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    shell.tell("until $X clock run-until idle > /dev/null 2>&1; do :; done; $X clock advance 2000s > /dev/null");
    assert_eq!(shell.line().parse::<u64>().unwrap(), before + 3000);
}
