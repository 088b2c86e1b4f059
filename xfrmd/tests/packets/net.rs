//! Namespaces, an xfrmd in each, and what goes over the wire between them.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{UserPolicyInfo, UserTmpl};
use zerocopy::IntoBytes;

/// Of this program, started again: a namespace for as long as its standard input is open.
pub(crate) fn hold_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    println!("ready");
    let _ = std::io::stdin().lines().count();
}

const IP_XFRM_POLICY: i32 = 17;

/// A policy for all of a socket's packets.
fn socket_policy(dir: u8) -> UserPolicyInfo {
    let mut policy = UserPolicyInfo {
        dir,
        ..UserPolicyInfo::default()
    };
    policy.sel.family = AF_INET;
    policy
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: &[u8]) {
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Of this program, started again: sends from a socket whose own policy wants ESP.
pub(crate) fn send_protected(to: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut template = UserTmpl {
        family: AF_INET,
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
        ..UserTmpl::default()
    };
    template.id.proto = IPPROTO_ESP;
    let policy = [
        socket_policy(XFRM_POLICY_OUT).as_bytes(),
        template.as_bytes(),
    ]
    .concat();
    set(&socket, libc::IPPROTO_IP, IP_XFRM_POLICY, &policy);
    for _ in 0..3 {
        // It may fail or be lost, but not go.
        let _ = socket.send_to(b"nothing", (to, 9));
    }
}

/// Of this program, started again: what an IKE daemon does with its socket. All that it gets is
/// written to a file, until that is `QUIT`.
pub(crate) fn manage_keys(log: &str) {
    const UDP_ENCAP: i32 = 100;
    const ESPINUDP: i32 = 2;
    let socket = UdpSocket::bind("0.0.0.0:4500").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    for dir in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
        let bypass = socket_policy(dir);
        set(&socket, libc::IPPROTO_IP, IP_XFRM_POLICY, bypass.as_bytes());
    }
    set(
        &socket,
        libc::IPPROTO_UDP,
        UDP_ENCAP,
        &ESPINUDP.to_ne_bytes(),
    );
    let mut file = File::create(log).unwrap();
    file.write_all(b"ready\n").unwrap();
    let mut buffer = [0; 2000];
    while let Ok(len) = socket.recv(&mut buffer) {
        file.write_all(&buffer[..len]).unwrap();
        file.write_all(b"\n").unwrap();
        if &buffer[..len] == QUIT {
            return;
        }
    }
}

/// As IKE: four zeros in front.
pub(crate) const QUIT: &[u8] = b"\0\0\0\0 that is all";

/// A program that says one line for each that it is told.
struct Talk {
    child: Child,
    tell: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            tell: child.stdin.take(),
            said: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    fn line(&mut self) -> String {
        self.said.next().unwrap().unwrap()
    }
}

impl Drop for Talk {
    /// Without standard input it ends by itself.
    fn drop(&mut self) {
        self.tell.take();
        let _ = self.child.wait();
    }
}

/// A network namespace.
pub(crate) struct Namespace(Talk);

impl Namespace {
    pub(crate) fn new() -> Self {
        let mut talk = Talk::start(Command::new(std::env::current_exe().unwrap()).arg("namespace"));
        assert_eq!(talk.line(), "ready");
        let namespace = Self(talk);
        namespace.sh("ip link set lo up");
        namespace
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.child.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs a script; what it prints.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.command("sh").args(["-ec", script]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Does something in it, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap()
        })
    }

    /// The same, and goes on.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// An xfrmd that carries its packets.
    pub(crate) fn xfrmd(&self) -> Xfrmd {
        let mut command = self.command(env!("CARGO_BIN_EXE_xfrmd"));
        command.args(["run", "--packets", "--", "sh"]);
        let mut xfrmd = Xfrmd(Talk::start(&mut command));
        xfrmd.sh("true");
        xfrmd
    }
}

/// A daemon for all namespaces, and where it listens.
pub(crate) struct Shared {
    daemon: Child,
    directory: PathBuf,
}

impl Shared {
    pub(crate) fn start() -> Self {
        let name = format!("xfrmd-packets-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        // In a namespace of its own: what goes wrong shall not reach the host's.
        let daemon = Command::new("unshare")
            .args(["-n", env!("CARGO_BIN_EXE_xfrmd"), "--packets", "--socket"])
            .arg(directory.join("control"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let shared = Self { daemon, directory };
        for _ in 0..1000 {
            if shared.stat().is_some() {
                return shared;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the daemon does not answer");
    }

    /// What it says of itself.
    pub(crate) fn stat(&self) -> Option<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_xfrmd"))
            .args(["stat", "-j", "--socket"])
            .arg(self.directory.join("control"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(text)
    }

    /// A script in a namespace that uses it.
    #[track_caller]
    pub(crate) fn sh(&self, namespace: &Namespace, script: &str) -> String {
        namespace.sh(&format!(
            "eval \"$({} env --socket {})\"; {script}",
            env!("CARGO_BIN_EXE_xfrmd"),
            self.directory.join("control").display()
        ))
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        assert!(self.daemon.wait().unwrap().success());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Joins two namespaces: `v0` here is `v1` there.
pub(crate) fn join(here: &Namespace, there: &Namespace) {
    here.sh(&format!(
        "ip link add v0 type veth peer name v1 netns {}; ip link set v0 up",
        there.pid()
    ));
    there.sh("ip link set v1 up");
}

/// A shell under `xfrmd run --packets`.
pub(crate) struct Xfrmd(Talk);

impl Xfrmd {
    /// Runs a script that must succeed; what it prints.
    #[track_caller]
    pub(crate) fn sh(&mut self, script: &str) -> String {
        let tell = self.0.tell.as_mut().unwrap();
        writeln!(tell, "( set -e; {script}\n); echo \"=$?\"").unwrap();
        let mut said = String::new();
        loop {
            let line = self.0.line();
            if let Some(code) = line.strip_prefix('=') {
                assert_eq!(code, "0", "{script}: {said}");
                return said;
            }
            said += &line;
            said.push('\n');
        }
    }

    /// A counter of `/proc/net/xfrm_stat`.
    #[track_caller]
    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        let stat = self.sh("cat /proc/net/xfrm_stat");
        let line = stat
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// The daemon, beside which its keeper has the command.
    pub(crate) fn daemon(&self) -> u32 {
        let keeper = self.0.child.id();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        let children: Vec<u32> = children
            .unwrap()
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect();
        let is_daemon = |pid: &&u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it == "xfrmd\n")
        };
        *children.iter().find(is_daemon).unwrap()
    }

    /// Kills the daemon as nothing can prevent, and waits until there is another.
    pub(crate) fn kill_daemon(&mut self) {
        let daemon = self.daemon();
        let pid = nix::unistd::Pid::from_raw(daemon as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        // Whoever asks while it is away may be told so, once.
        for _ in 0..1000 {
            if self.sh("cat /proc/net/xfrm_stat >/dev/null && echo yes || echo no") == "yes\n"
                && std::fs::metadata(format!("/proc/{daemon}")).is_err()
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no other daemon comes");
    }

    /// Ends it as nothing can prevent, and with it the way to its shell.
    pub(crate) fn kill(mut self) {
        // `nsenter` has become `xfrmd`.
        self.0.child.kill().unwrap();
        self.0.child.wait().unwrap();
    }
}

/// What a packet socket sees of an interface.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<u8>>>>,
}

impl Wire {
    /// Listens; frames without their link-layer header.
    pub(crate) fn listen(namespace: &Namespace, interface: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let socket = namespace.inside(|| packet_socket(interface));
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut buffer = vec![0; 1 << 17];
            // What was sent before the stop has arrived before it.
            loop {
                let stopping = asked.load(Ordering::SeqCst);
                let len = unsafe {
                    libc::recv(
                        socket.as_raw_fd(),
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        libc::MSG_DONTWAIT,
                    )
                };
                match usize::try_from(len) {
                    Ok(len) => seen.push(buffer[..len].to_vec()),
                    Err(_) if stopping => return seen,
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// All IP packets.
    pub(crate) fn stop(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn packet_socket(interface: &str) -> OwnedFd {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            i32::from(all),
        )
    };
    assert!(fd >= 0);
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = nix::net::if_::if_nametoindex(interface).unwrap() as i32;
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    assert_eq!(bound, 0);
    let room: i32 = 64 << 20;
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            4,
        );
    }
    fd
}

/// Protocols of IP packets, each once, in order of appearance; neighbour discovery and multicast
/// do not count.
pub(crate) fn protocols(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut seen = Vec::new();
    for packet in packets {
        let protocol = match packet.first().map_or(0, |first| first >> 4) {
            4 => packet[9],
            6 if packet[24] == 0xff => continue,
            6 if packet[6] == 58 && packet.get(40).is_some_and(|&kind| kind > 132) => continue,
            6 => packet[6],
            _ => continue,
        };
        if !seen.contains(&protocol) {
            seen.push(protocol);
        }
    }
    seen
}
