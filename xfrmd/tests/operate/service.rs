//! A daemon as a service manager has it: a configuration file, sockets, notifications, a log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program under test.
pub(crate) fn xfrmd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_xfrmd"))
}

/// Runs to the end.
pub(crate) fn outcome(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// The same; it must succeed. What it printed.
#[track_caller]
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = outcome(command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A script inside a reference kernel, again if that crashes; `$XFRMD` is the program.
pub(crate) fn inside_linux(release: &str, script: &str) -> Command {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../compat-tests/kernel/run.sh");
    let mut command = Command::new("bash");
    command.args([run, "-k", release, "-r", "--", "sh", "-ec", script]);
    command.env("XFRMD", env!("CARGO_BIN_EXE_xfrmd"));
    command
}

/// A directory of a case.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("xfrmd-operate-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a daemon is started.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// Its configuration file, but for the socket.
    pub(crate) file: &'a str,
    pub(crate) options: &'a [&'a str],
    pub(crate) variables: &'a [(&'a str, &'a str)],
    /// A listening socket that it is given.
    pub(crate) socket: Option<OwnedFd>,
}

/// A daemon that runs.
pub(crate) struct Service {
    pub(crate) scratch: Scratch,
    child: Child,
    notified: UnixDatagram,
}

impl Service {
    pub(crate) fn start(name: &str, start: Start<'_>) -> Self {
        let scratch = Scratch::new(name);
        let notify = scratch.path("notify");
        let notified = UnixDatagram::bind(&notify).unwrap();
        notified
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let log = std::fs::File::create(scratch.path("log")).unwrap();
        let mut command = xfrmd();
        command
            .arg("--config")
            .arg(file(&scratch, start.file))
            .args(start.options)
            .env_remove("XFRMD_LOG")
            .env_remove("RUST_LOG")
            .envs(start.variables.iter().copied())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stderr(log);
        if let Some(socket) = start.socket {
            // What systemd does: descriptor 3, and who is meant.
            let program = command.get_program().to_owned();
            let mut wrapped = Command::new("sh");
            wrapped
                .args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\""])
                .arg(program)
                .args(command.get_args())
                .env_remove("XFRMD_LOG")
                .env("NOTIFY_SOCKET", &notify)
                .stdin(Stdio::null())
                .stderr(std::fs::File::create(scratch.path("log")).unwrap());
            unsafe {
                wrapped.pre_exec(move || {
                    // dup2 to itself would keep close-on-exec.
                    if socket.as_raw_fd() == 3 {
                        libc::fcntl(3, libc::F_SETFD, 0);
                    } else if libc::dup2(socket.as_raw_fd(), 3) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    Ok(())
                });
            }
            command = wrapped;
        }
        let service = Self {
            child: command.spawn().unwrap(),
            scratch,
            notified,
        };
        assert_eq!(service.notification(), "READY=1");
        service
    }

    #[track_caller]
    pub(crate) fn notification(&self) -> String {
        loop {
            let mut message = [0; 256];
            let len = self.notified.recv(&mut message).unwrap();
            let text = String::from_utf8(message[..len].to_vec()).unwrap();
            // What is to be kept is for whoever wants to know.
            if !text.starts_with("FDSTORE") {
                return text;
            }
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.path("control")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Changes the file and has it read again.
    pub(crate) fn reload(&self, text: &str) {
        file(&self.scratch, text);
        self.signal(Signal::SIGHUP);
        let told = self.notification();
        assert!(told.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told}");
        assert_eq!(self.notification(), "READY=1");
    }

    /// Ends it as a service manager does; its log.
    pub(crate) fn stop(mut self) -> String {
        // A queue that is full, of what is to be kept, has no room for what it says at its end.
        self.notified.set_nonblocking(true).unwrap();
        while self.notified.recv(&mut [0; 256]).is_ok() {}
        self.notified.set_nonblocking(false).unwrap();
        self.signal(Signal::SIGTERM);
        assert_eq!(self.notification(), "STOPPING=1");
        assert!(self.child.wait().unwrap().success());
        self.log()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path("log")).unwrap()
    }

    /// A script whose programs use it.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let script = format!("eval \"$($XFRMD env --socket $SOCKET)\"\n{script}");
        succeeds(
            Command::new("sh")
                .args(["-ec", &script])
                .env("XFRMD", env!("CARGO_BIN_EXE_xfrmd"))
                .env("SOCKET", self.socket()),
        )
    }

    /// `xfrmd stat` with an option.
    #[track_caller]
    pub(crate) fn stat(&self, option: &str) -> String {
        succeeds(
            xfrmd()
                .args(["stat", option, "--socket"])
                .arg(self.socket()),
        )
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the configuration file.
fn file(scratch: &Scratch, text: &str) -> PathBuf {
    let socket = scratch.path("control");
    let text = format!("socket = \"{}\"\n{text}", socket.display());
    scratch.write("xfrmd.toml", &text)
}

/// What a server of metrics says to a request.
pub(crate) fn ask(endpoint: &str, request: &str) -> std::io::Result<String> {
    fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
    if endpoint.starts_with('/') {
        exchange(UnixStream::connect(Path::new(endpoint))?, request)
    } else {
        exchange(TcpStream::connect(endpoint)?, request)
    }
}

/// A request that is answered.
pub(crate) const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// A port that nobody has right now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
