//! A namespace with a shell in it, under which a daemon runs; and two of them.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::namespaces::{Namespace, Shell, XFRMD, join};
use crate::releases;

/// How long anything may take that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) shell: Shell,
    /// Its configuration and its logs.
    pub(crate) directory: PathBuf,
    /// What its daemon's environment has more, as a shell reads it.
    pub(crate) variables: String,
    /// Where its daemon's programs are.
    pub(crate) programs: String,
    /// Ends its daemon, in the shell.
    pub(crate) stop: Option<String>,
    /// What its xfrmd did.
    pub(crate) recording: Option<PathBuf>,
}

impl Host {
    /// With an xfrmd.
    pub(crate) fn new() -> Self {
        let directory = directory();
        let mut run = vec!["unshare", "-m", XFRMD, "run", "--packets"];
        let recording = directory.join("recording.pcapng");
        let path = recording.to_str().unwrap().to_owned();
        run.extend(["--record-keys", "--record", &path, "--", "sh"]);
        let mut host = Self::with(&run, directory);
        host.recording = Some(recording);
        host
    }

    /// With one whose clock stands until it is moved, and whose random numbers come from a seed.
    pub(crate) fn clocked(seed: &str) -> Self {
        let clock = ["--clock", "virtual", "--seed", seed, "--", "sh"];
        let run = [&["unshare", "-m", XFRMD, "run", "--packets"][..], &clock].concat();
        Self::with(&run, directory())
    }

    /// With that of another, and its clock.
    pub(crate) fn beside(other: &mut Self) -> Self {
        let variables = other.shell.sh(
            "for name in LD_PRELOAD XFRMD_CONTROL XFRMD_CLOCK; do eval echo $name=\\$$name; done",
        );
        let command = ["env"].into_iter().chain(variables.lines());
        let command: Vec<&str> = command.chain(["unshare", "-m", "sh"]).collect();
        Self::with(&command, directory())
    }

    /// Without.
    pub(crate) fn plain() -> Self {
        Self::with(&["unshare", "-m", "sh"], directory())
    }

    fn with(command: &[&str], directory: PathBuf) -> Self {
        let namespace = Namespace::new();
        let shell = namespace.shell(command);
        Self {
            namespace,
            shell,
            directory,
            variables: String::new(),
            programs: String::new(),
            stop: None,
            recording: None,
        }
    }

    /// A file of its own.
    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// Writes one; its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Ends its daemon as a service manager does; nothing may be left, but for the policies with which
    /// pluto lets neighbour discovery pass, and the larval SA of its traps, which are for transport mode
    /// whatever is agreed.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        let stop = self.stop.take().unwrap();
        self.shell.sh(&stop);
        let left = self.shell.sh("ip -o xfrm state; ip -o xfrm policy");
        let expected = ["proto ipv6-icmp type 13", "proto esp spi 0x00000000"];
        let mut left = left
            .lines()
            .filter(|line| !expected.iter().any(|what| line.contains(what)));
        assert_eq!(left.next(), None);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stat = "grep -wv 0 /proc/net/xfrm_stat || true; ip -s xfrm state; ip xfrm policy";
            let mut said = self.shell.try_sh(stat).1;
            for entry in std::fs::read_dir(&self.directory).unwrap().flatten() {
                let Ok(text) = std::fs::read_to_string(entry.path()) else {
                    continue;
                };
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(200);
                let _ = writeln!(said, "--- {}", entry.path().display());
                for line in &lines[from..] {
                    let _ = writeln!(said, "{line}");
                }
            }
            eprintln!("{said}");
        }
        if let Some(stop) = self.stop.take() {
            self.shell.try_sh(&stop);
        }
        self.shell.end();
        if let Some(recording) = self.recording.take().filter(|_| !std::thread::panicking()) {
            releases::replays(&std::fs::read(recording).unwrap());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("xfrmd-ike-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// A at 192.168.77.1 and fd77::1, B at .2 and ::2; behind them 10.1.0.0/24 and 10.2.0.0/24, and
/// fd01::/64 and fd02::/64, of which they have the first addresses themselves.
pub(crate) struct Pair {
    pub(crate) a: Host,
    pub(crate) b: Host,
}

/// The wire at A.
pub(crate) const WIRE: &str = "v0";

impl Pair {
    pub(crate) fn new() -> Self {
        Self::of(Host::new(), Host::new())
    }

    pub(crate) fn of(a: Host, b: Host) -> Self {
        join(&a.namespace, &b.namespace);
        for (host, device, own, other) in [(&a, WIRE, 1, 2), (&b, "v1", 2, 1)] {
            host.namespace.sh(&format!(
                "ip addr add 192.168.77.{own}/24 dev {device}; \
                 ip addr add fd77::{own}/64 dev {device} nodad; \
                 ip addr add 10.{own}.0.1/24 dev lo; ip addr add fd0{own}::1/64 dev lo nodad; \
                 ip route add 10.{other}.0.0/24 via 192.168.77.{other} src 10.{own}.0.1; \
                 ip route add fd0{other}::/64 via fd77::{other} src fd0{own}::1"
            ));
        }
        Self { a, b }
    }
}
