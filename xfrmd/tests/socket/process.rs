//! Other programs of the tests: `xfrmd`, and this one started again.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use crate::netlink::*;

/// Nobody.
pub(crate) const NOBODY: u32 = 65534;

/// The program under test, where nobody can execute it too.
pub(crate) fn xfrmd() -> Command {
    Command::new(reachable(env!("CARGO_BIN_EXE_xfrmd").into(), "xfrmd"))
}

/// This program.
pub(crate) fn me() -> Command {
    Command::new(reachable(std::env::current_exe().unwrap(), "socket-tests"))
}

/// Where copies of the programs are, while the tests run.
pub(crate) fn copies() -> PathBuf {
    std::env::temp_dir().join(format!("xfrmd-socket-tests-{}", std::process::id()))
}

/// A build directory may be closed to others; then a copy is used that is not.
fn reachable(program: PathBuf, name: &str) -> PathBuf {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !nix::unistd::geteuid().is_root() {
        return program;
    }
    let directory = copies();
    let _ = std::fs::create_dir(&directory);
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let status = program.metadata().unwrap();
    let copy = directory.join(format!("{name}-{}-{}", status.mtime(), status.mtime_nsec()));
    if !copy.exists() {
        let fresh = directory.join(format!(
            "{name}.{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::copy(&program, &fresh).unwrap();
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&fresh, &copy).unwrap();
    }
    copy
}

/// Makes a command start as nobody, if we are root.
pub(crate) fn as_nobody(command: &mut Command) -> &mut Command {
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Runs to the end; fails with what it said.
#[track_caller]
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = outcome(command);
    assert!(
        output.status.success(),
        "{:?}: {}\n{}{}",
        command,
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn outcome(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn user_namespaces_work() -> bool {
    as_nobody(Command::new("unshare").args(["-rn", "true"]))
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The other half of a case: an agent that does what it is told, one that asks for a socket, or what
/// runs after exec (`what` is the descriptor that it was left).
pub(crate) fn run(what: &str) {
    match what {
        "agent" => return agent(),
        "unshimmed" => {
            let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 6) };
            return println!("{}", said(fd as isize));
        }
        _ => {}
    }
    let socket = Xfrm(what.parse().unwrap());
    // It was said before exec; only the socket itself can tell.
    let mut unknown = new_policy(1, ACK);
    unknown[16 + 160] = 9;
    works_after_exec(socket, &unknown);
}

fn said(result: isize) -> String {
    match result {
        -1 => format!("errno {}", errno()),
        _ => "ok".into(),
    }
}

/// One socket; a command a line, an answer a line.
fn agent() {
    let socket = Xfrm::open();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (command, argument) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: u32 = argument.parse().unwrap();
        let answer = match command {
            "bind" => said(socket.bind(0, number)),
            "ask" => said(socket.send(&sad_info(number))),
            "policy" => said(socket.send(&new_policy(number, 0))),
            "dump" => said(socket.send(&dump_policies(number))),
            "poll" => {
                let mut poll = libc::pollfd {
                    fd: socket.0,
                    events: libc::POLLIN,
                    revents: 0,
                };
                let count = unsafe { libc::poll(&raw mut poll, 1, number as i32) };
                format!("ready {count}")
            }
            "recv" => {
                let mut buffer = [0; 8192];
                match socket.recv_into(&mut buffer, number as i32) {
                    -1 => format!("errno {}", errno()),
                    _ => format!("type {:#x}", head(&buffer).0),
                }
            }
            other => panic!("{other}"),
        };
        println!("{answer}");
    }
}

/// An agent, from outside.
pub(crate) struct Agent {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .args(["process", "agent"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, answers }
    }

    pub(crate) fn say(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        self.answers.next().unwrap().unwrap()
    }

    pub(crate) fn does(&mut self, command: &str) -> String {
        self.say(command);
        self.answer()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    /// Without commands it ends by itself, and so does `xfrmd run` around it.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn works_after_exec(socket: Xfrm, bad_request: &[u8]) {
    socket.asks(77);
    works(socket.send(bad_request));
    let reply = socket.recv();
    let flags = u16::from_ne_bytes([reply.bytes[6], reply.bytes[7]]);
    assert_eq!(error_of(&reply.bytes), libc::EINVAL);
    assert_ne!(flags & 0x200, 0, "no TLVs: NETLINK_EXT_ACK was lost");
}
