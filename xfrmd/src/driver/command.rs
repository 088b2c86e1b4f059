//! `xfrmd run`: a private instance for one command and what it starts.
//!
//! The keeper is the command's parent, and the daemon's. It ends when the command ends, with the
//! command's exit code, and takes nothing else with it. Signals sent to it go
//! on to the command; those of the terminal reach the command anyway.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;

use nix::sys::signal::{SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Pid, getppid, getuid};
use xfrm_proto::control::{Address, ENV_CONTROL, Secret};

use super::bypass::{Handover, Listener};
use super::keeper::{self, Errand, Inheritance};
use super::signals::Signals;
use super::{Daemon, Owner, Settings, host, listener};

/// The shim, as it was built with this program.
static SHIM: &[u8] = include_bytes!(env!("XFRM_SHIM"));
/// Its file name, by which we know it among other preloaded libraries.
pub(crate) const SHIM_NAME: &str = "libxfrm_shim.so";

/// Signals that the command gets when we are sent them.
const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Of the name of an instance's directory.
const PREFIX: &str = "xfrmd-";
/// The name of its socket in it.
const CONTROL: &str = "control";
/// Our descriptors in the daemon's loop.
const SIGNALS: usize = 0;
const BYPASS: usize = 1;

/// A directory of our own, removed at the end.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// Where programs may be loaded from, and other users get through but see nothing.
    fn new(temporary: Option<PathBuf>) -> io::Result<Self> {
        let candidates = temporary
            .into_iter()
            .chain(["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from));
        let mut number = [0; 8];
        host::random(&mut number);
        let name = format!("{PREFIX}{:016x}", u64::from_ne_bytes(number));
        let mut last = io::Error::from_raw_os_error(libc::EACCES);
        for parent in candidates.filter(|parent| is_executable(parent)) {
            let path = parent.join(&name);
            match DirBuilder::new().mode(0o711).create(&path) {
                Ok(()) => {
                    remove_left_behind(&parent);
                    return Ok(Self(path));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes directories of ours whose instance was killed: nobody answers there any more.
fn remove_left_behind(parent: &Path) {
    let Ok(entries) = parent.read_dir() else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry
                .metadata()
                .is_ok_and(|status| status.is_dir() && status.uid() == getuid().as_raw());
        if ours && listener::is_dead(&entry.path().join(CONTROL)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether programs may be loaded from there.
pub(crate) fn is_executable(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_NOEXEC))
}

/// Writes the shim into a directory from which programs can load it.
pub(crate) fn install_shim(directory: &Path) -> io::Result<PathBuf> {
    if !is_executable(directory) {
        return Err(io::Error::other("mounted noexec"));
    }
    let path = directory.join(SHIM_NAME);
    let fresh = directory.join(format!("{SHIM_NAME}.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&fresh)?;
    file.write_all(SHIM)?;
    std::fs::rename(&fresh, &path)?;
    Ok(path)
}

/// `LD_PRELOAD` with the shim in front, and without that of an instance around ours.
pub(crate) fn preload(shim: &Path, before: Option<OsString>) -> OsString {
    let mut value = shim.as_os_str().to_owned();
    let before = before.unwrap_or_default();
    for other in before
        .to_string_lossy()
        .split([':', ' '])
        .filter(|other| !other.is_empty() && !other.ends_with(SHIM_NAME))
    {
        value.push(":");
        value.push(other);
    }
    value
}

/// What `xfrmd run` is given.
pub(crate) struct Run {
    /// Settings but for the owner.
    pub(crate) settings: Settings,
    /// The program's file.
    pub(crate) program: PathBuf,
    /// The command, its name first.
    pub(crate) command: Vec<OsString>,
    /// `TMPDIR`.
    pub(crate) temporary: Option<PathBuf>,
    /// `LD_PRELOAD`.
    pub(crate) preload: Option<OsString>,
}

/// Runs a command; its exit code.
pub(crate) fn run(run: Run) -> io::Result<u8> {
    let signals: Vec<Signal> = FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect();
    let signals = Signals::block(&signals)?;
    let directory = PrivateDirectory::new(run.temporary)?;
    let shim = install_shim(&directory.0)?;
    let mut random = [0; 32];
    host::random(&mut random);
    let (token, proof) = random.split_at(16);
    let secret = Secret {
        token: token.try_into().unwrap_or_default(),
        proof: proof.try_into().unwrap_or_default(),
    };
    let path = directory.0.join(CONTROL);
    let name = path.file_name().map(|_| directory.0.to_string_lossy());
    let name = name.unwrap_or_default();
    let mut listeners = vec![listener::at_path(&path)?];
    listeners.extend(listener::at_abstract(&name).ok());
    let path = path.to_string_lossy();
    let address = Address {
        path: path.as_bytes(),
        abstract_name: name.as_bytes(),
        pid: std::process::id(),
        secret: Some(secret),
    };
    let settings = Settings {
        owner: Owner::Private {
            uid: getuid().as_raw(),
            secret,
        },
        ..run.settings
    };
    let inside_another = run
        .preload
        .as_ref()
        .is_some_and(|before| before.to_string_lossy().contains(SHIM_NAME));
    let mut command = Command::new(&run.program);
    if let Some((name, arguments)) = run.command.split_first() {
        command.arg0(name).args(arguments);
    }
    command
        .env(ENV_CONTROL, address.to_string())
        .env("LD_PRELOAD", preload(&shim, run.preload));
    let mask = signals.mask_before();
    let handover = Arc::new(Handover::new()?);
    let theirs = Arc::clone(&handover);
    // SAFETY: a few system calls, which a child may make before exec.
    unsafe {
        command.pre_exec(move || {
            // Without a filter, what is static reaches the host as it would without us.
            let _ = theirs.set_up();
            Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?)
        });
    }
    let mut command = Commanded(command.spawn()?);
    let bypass = Cell::new(handover.take());
    let listeners = Cell::new(listeners);
    keeper::keep(&signals, &mut command, &mut |inheritance| {
        let bypass = bypass.take();
        if bypass.is_none() && !inside_another && inheritance.generation == 0 {
            tracing::warn!(
                "the host allows no seccomp filter: static programs that the command starts reach its kernel"
            );
        }
        let served = Daemon::new(settings.clone(), listeners.take());
        let served = served.map_err(anyhow::Error::from);
        keeper::exit_code(served.and_then(|daemon| serve(daemon, inheritance, bypass)))
    })
}

/// The daemon itself, until the keeper ends it.
fn serve(
    mut daemon: Daemon,
    inheritance: Inheritance,
    mut bypass: Option<Listener>,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::block(&[Signal::SIGTERM])?;
    daemon.inherit(inheritance)?;
    daemon.watch_for_caller(signals.fd(), SIGNALS)?;
    if let Some(bypass) = &bypass {
        daemon.watch_for_caller(&bypass.fd(), BYPASS)?;
    }
    let keeper = getppid().as_raw();
    daemon.serve(|index| {
        if let (BYPASS, Some(bypass)) = (index, &mut bypass) {
            bypass.answer_all();
        }
        // What the whole process group gets is the command's.
        let ends =
            std::iter::from_fn(|| signals.next()).any(|it| i32::try_from(it.by) == Ok(keeper));
        Ok(match ends {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The command, with which it all ends.
struct Commanded(Child);

impl Errand for Commanded {
    fn child_ended(&mut self) -> Option<u8> {
        match self.0.try_wait() {
            Ok(Some(status)) => Some(exit_code(status)),
            _ => None,
        }
    }

    fn signalled(&mut self, signal: Signal, sent: bool) -> bool {
        if sent && let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        true
    }
}

/// As shells report it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code & 0xff).unwrap_or(1)
}
