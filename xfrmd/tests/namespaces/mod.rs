//! Network namespaces, shells in them, and what goes over the wire between them: for tests of more
//! than one program.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

/// The program.
pub(crate) const XFRMD: &str = env!("CARGO_BIN_EXE_xfrmd");

/// Of this program, started again: a namespace for as long as its standard input is open.
pub(crate) fn hold() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    println!("ready");
    let _ = std::io::stdin().lines().count();
}

/// A program that says one line for each that it is told, or by and by.
pub(crate) struct Talk {
    child: Child,
    tell: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    pub(crate) fn start(command: &mut Command) -> Self {
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

    pub(crate) fn line(&mut self) -> String {
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
        path(self.pid())
    }

    /// A program in it.
    pub(crate) fn command(&self, program: &str) -> Command {
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
        inside(self.pid(), work)
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

    /// A shell in it, which a command starts.
    pub(crate) fn shell(&self, command: &[&str]) -> Shell {
        let mut shell = Shell(Talk::start(self.command(command[0]).args(&command[1..])));
        shell.sh("true");
        shell
    }

    /// A shell under an xfrmd that carries its packets.
    pub(crate) fn xfrmd(&self) -> Shell {
        self.shell(&[XFRMD, "run", "--packets", "--", "sh"])
    }
}

fn path(pid: u32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// Does something in the namespace of a process, on a thread of its own.
pub(crate) fn inside<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(File::open(path(pid)).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        entered.join().unwrap()
    })
}

/// Joins two namespaces: `v0` here is `v1` there.
pub(crate) fn join(here: &Namespace, there: &Namespace) {
    here.sh(&format!(
        "ip link add v0 type veth peer name v1 netns {}; ip link set v0 up",
        there.pid()
    ));
    there.sh("ip link set v1 up");
}

/// A shell, mostly under `xfrmd run --packets`.
pub(crate) struct Shell(Talk);

impl Shell {
    /// Runs a script that must succeed; what it prints.
    #[track_caller]
    pub(crate) fn sh(&mut self, script: &str) -> String {
        let (code, said) = self.try_sh(script);
        assert_eq!(code, "0", "{script}: {said}");
        said
    }

    /// Runs a script; how it ended, and what it printed.
    pub(crate) fn try_sh(&mut self, script: &str) -> (String, String) {
        let tell = self.0.tell.as_mut().unwrap();
        writeln!(tell, "( set -e; {script}\n); echo \"=$?\"").unwrap();
        let mut said = String::new();
        loop {
            let line = self.0.line();
            if let Some(code) = line.strip_prefix('=') {
                return (code.to_owned(), said);
            }
            said += &line;
            said.push('\n');
        }
    }

    /// Ends it, and waits for that.
    pub(crate) fn end(&mut self) {
        self.0.tell.take();
        let _ = self.0.child.wait();
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> u32 {
        // `nsenter` has become it.
        self.0.child.id()
    }

    /// Waits until a counter of `/proc/net/xfrm_stat` is that: what is counted may be on its way.
    #[track_caller]
    pub(crate) fn counts(&mut self, name: &str, expected: u64) {
        for _ in 0..500 {
            if self.counter(name) == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.counter(name), expected, "{name}");
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

    /// The daemon, which is the child of a child: of its keeper.
    pub(crate) fn daemon(&self) -> u32 {
        let children = |pid: u32| {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = std::fs::read_to_string(path).unwrap_or_default();
            let numbers = children.split_whitespace().map(|pid| pid.parse().unwrap());
            let is_daemon = |pid: &u32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name == "xfrmd\n")
            };
            numbers.collect::<Vec<u32>>().into_iter().find(is_daemon)
        };
        // While another is started there is none.
        for _ in 0..3000 {
            if let Some(daemon) = children(self.0.child.id()).and_then(children) {
                return daemon;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no daemon");
    }

    /// Kills the daemon as nothing can prevent, and waits until there is another.
    pub(crate) fn kill_daemon(&mut self) {
        let daemon = self.daemon();
        let pid = nix::unistd::Pid::from_raw(daemon as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        for _ in 0..3000 {
            let is_gone = std::fs::metadata(format!("/proc/{daemon}")).is_err();
            // Whoever asks at that very moment may be told so.
            if is_gone && self.try_sh("cat /proc/net/xfrm_stat >/dev/null").0 == "0" {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no other daemon comes");
    }

    /// Ends it as nothing can prevent, and with it the way to its shell.
    pub(crate) fn kill(&mut self) {
        // `nsenter` has become `xfrmd`.
        self.0.child.kill().unwrap();
        self.0.child.wait().unwrap();
        self.0.tell.take();
    }
}

/// What a packet socket sees of an interface.
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<Vec<u8>>>>>,
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
                    Ok(len) => seen.push(packets_of(&buffer[..len])),
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
    pub(crate) fn stop(self) -> Vec<Vec<u8>> {
        self.stop_joined().concat()
    }

    /// The same by frames: what was sent at once.
    pub(crate) fn stop_joined(mut self) -> Vec<Vec<Vec<u8>>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The packets of an Ethernet frame, which has a `virtio_net_hdr` in front: datagrams that a device
/// would cut from one are shown as it would send them.
fn packets_of(frame: &[u8]) -> Vec<Vec<u8>> {
    const HEADER: usize = 10;
    const ETHERNET: usize = 14;
    const UDP_DATAGRAMS: u8 = 5;
    let (header, frame) = frame.split_at(HEADER);
    let packet = &frame[ETHERNET..];
    let size = usize::from(u16::from_ne_bytes([header[4], header[5]]));
    if header[1] != UDP_DATAGRAMS || size == 0 {
        return vec![packet.to_vec()];
    }
    let headers = 8 + match packet[0] >> 4 {
        4 => usize::from(packet[0] & 15) * 4,
        _ => 40,
    };
    let (headers, payload) = packet.split_at(headers);
    let datagrams = payload.chunks(size);
    datagrams.map(|part| [headers, part].concat()).collect()
}

const PACKET_VNET_HDR: i32 = 15;

fn packet_socket(interface: &str) -> OwnedFd {
    // It hears nothing until it is bound: of other interfaces it is not to hear.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let yes: i32 = 1;
    let told = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw const yes).cast(),
            4,
        )
    };
    assert_eq!(told, 0);
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
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
            6 if packet[6] == 44 => packet[40],
            6 => packet[6],
            _ => continue,
        };
        if !seen.contains(&protocol) {
            seen.push(protocol);
        }
    }
    seen
}
