//! A service manager that keeps descriptors: what is left of a main process that is killed.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::service::{Scratch, succeeds};

const PATIENCE: Duration = Duration::from_secs(30);

/// What systemd does with `FileDescriptorStoreMax=`.
struct Manager {
    scratch: Scratch,
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    /// Notifications of other kinds.
    told: Receiver<String>,
}

/// Takes a notification, and what comes with it.
fn listen(notified: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut text = [0; 256];
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let fd = notified.as_raw_fd();
    let received = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags).unwrap();
    let passed = received.cmsgs().unwrap().find_map(|it| match it {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let len = received.bytes;
    let text = String::from_utf8(text[..len].to_vec()).unwrap();
    (text, passed.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

impl Manager {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let notified = UnixDatagram::bind(scratch.path("notify")).unwrap();
        let kept = Arc::new(Mutex::new(BTreeMap::new()));
        let (tell, told) = channel();
        let keeping = Arc::clone(&kept);
        // It goes on for as long as the test's process.
        std::thread::spawn(move || {
            loop {
                let (text, passed) = listen(&notified);
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
                let mut kept = keeping.lock().unwrap();
                if text.starts_with("FDSTORE=1\n") {
                    kept.insert(name.unwrap().to_owned(), passed.unwrap());
                } else if text.starts_with("FDSTOREREMOVE=1\n") {
                    kept.remove(name.unwrap());
                } else {
                    // Nobody may want to know any more.
                    let _ = tell.send(text);
                }
            }
        });
        Self {
            scratch,
            kept,
            told,
        }
    }

    /// Waits until it has told that, and all that it told before.
    #[track_caller]
    fn until(&self, expected: &str) {
        while self.told.recv_timeout(PATIENCE).expect(expected) != expected {}
    }

    /// Starts the daemon, with what was kept.
    fn start(&self) -> Child {
        let kept = self.kept.lock().unwrap();
        let control = self.scratch.path("control");
        let program = env!("CARGO_BIN_EXE_xfrmd");
        let script = "LISTEN_PID=$$ exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, program, "--socket"])
            .arg(control)
            .env("NOTIFY_SOCKET", self.scratch.path("notify"))
            .env("LISTEN_FDS", kept.len().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        command.env("LISTEN_FDNAMES", names.join(":"));
        // Out of the way of the numbers that they get.
        let above = |fd: &OwnedFd| {
            let above = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 200) };
            unsafe { OwnedFd::from_raw_fd(above) }
        };
        let fds: Vec<OwnedFd> = kept.values().map(above).collect();
        unsafe {
            command.pre_exec(move || {
                for (number, fd) in (3..).zip(&fds) {
                    libc::dup2(fd.as_raw_fd(), number);
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(kept);
        self.until("READY=1");
        child
    }

    fn sh(&self, script: &str) -> String {
        let script = format!("eval \"$($XFRMD env --socket $SOCKET)\"\n{script}");
        succeeds(
            Command::new("sh")
                .args(["-ec", &script])
                .env("XFRMD", env!("CARGO_BIN_EXE_xfrmd"))
                .env("SOCKET", self.scratch.path("control")),
        )
    }
}

/// Kill -9 of the main process, and its successor has every SA; an orderly end leaves nothing.
pub(crate) fn killed() {
    let manager = Manager::new("store");
    let mut daemon = manager.start();
    manager.sh(
        "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x1234 mode tunnel \
         aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128; \
         ip xfrm policy add dir out src 10.0.0.1 dst 10.0.0.2 action block",
    );
    let before = manager.sh("ip xfrm state; ip xfrm policy");
    assert!(before.contains("spi 0x00001234") && before.contains("action block"));
    for _ in 0..2 {
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert!(
            manager
                .kept
                .lock()
                .unwrap()
                .contains_key("xfrmd-store-state")
        );
        daemon = manager.start();
        assert_eq!(manager.sh("ip xfrm state; ip xfrm policy"), before);
    }
    let pid = nix::unistd::Pid::from_raw(daemon.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let begin = Instant::now();
    while !manager.kept.lock().unwrap().is_empty() {
        assert!(begin.elapsed() < PATIENCE, "{:?}", manager.kept);
        std::thread::sleep(Duration::from_millis(5));
    }
}
