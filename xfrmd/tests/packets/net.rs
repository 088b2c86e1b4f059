//! The programs that the cases start, and a daemon for several namespaces.

use std::fs::File;
use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrIn, bind, setsockopt, sockopt,
};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{UserPolicyInfo, UserTmpl};
use zerocopy::IntoBytes;

use crate::cases::{A, B, Pair, echo_within};
use crate::namespaces::{Namespace, XFRMD};

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
/// written to a file, until that is `QUIT`. It has a packet thread's socket beside it, unless it
/// shares its port in a way of its own.
pub(crate) fn manage_keys(log: &str, how: &str) {
    const UDP_ENCAP: i32 = 100;
    const ESPINUDP: i32 = 2;
    let socket = match how {
        "" => UdpSocket::bind("0.0.0.0:4500").unwrap(),
        "shares" => bind_shared(sockopt::ReuseAddr),
        _ => bind_shared(sockopt::ReusePort),
    };
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

fn bind_shared(how: impl SetSockOpt<Val = bool>) -> UdpSocket {
    let kind = SockType::Datagram;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = nix::sys::socket::socket(AddressFamily::Inet, kind, flags, None).unwrap();
    setsockopt(&fd, how, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 4500)).unwrap();
    fd.into()
}

/// A key manager without a shared address is followed by another one at once, and by none before.
pub(crate) fn followed() {
    let mut pair = Pair::new();
    let me = std::env::current_exe().unwrap();
    let log = std::env::temp_dir().join(format!("xfrmd-followed-{}", std::process::id()));
    let start = format!(
        "rm -f {log}; {} key-manager {log} > /dev/null 2>&1 < /dev/null & echo $!; \
         while ! grep -q ready {log} 2> /dev/null; do \
         kill -0 $! 2> /dev/null || exit 1; sleep 0.01; done",
        me.display(),
        log = log.display()
    );
    let encap = "encap espinudp 4500 4500 0.0.0.0";
    pair.sas(&format!("transport {encap}"), A, B);
    pair.policies("transport", [A, B], [A, B], false);
    let mut first = pair.xa.sh(&start);
    pair.xb.sh(&start.replace("-followed-", "-follower-"));
    for _ in 0..5 {
        let other = start.replace("-followed-", "-refused-");
        assert_eq!(pair.xa.try_sh(&other).0, "1", "two on one port");
        // `kill` does not wait for the end.
        let dead = first.trim();
        let next = pair.xa.sh(&format!(
            "kill -9 {dead}; while [ -e /proc/{dead}/fd/0 ]; do sleep 0.01; done; {start}"
        ));
        // While one follows the other a datagram may be lost.
        echo_within(100, &pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 1000);
        first = next;
    }
}

/// As IKE: four zeros in front.
pub(crate) const QUIT: &[u8] = b"\0\0\0\0 that is all";

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
            .args(["-n", XFRMD, "--packets", "--socket"])
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
        let output = Command::new(XFRMD)
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
            XFRMD,
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
