//! `xfrmd run`: a private instance for one command and what it starts.
//!
//! This process is the command's parent, and that of the keeper, whose child the daemon is. It ends
//! when the command ends, with the command's exit code, and takes nothing else with it. Signals
//! sent to it go on to the command; those of the terminal reach the command anyway.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getppid, getuid};
use xfrm_proto::clock::ENV_CLOCK;
use xfrm_proto::control::{Address, ENV_CONTROL, Secret};

use super::clock::page::OwnPage;
use super::clock::{Clock, Timekeeping};
use super::keeper::{self, Inheritance};
use super::program::Reach;
use super::seccomp::Front;
use super::seccomp::filter::Handover;
use super::seccomp::supervisor::Supervisor;
use super::seccomp::time::Time;
use super::signals::Signals;
use super::{Daemon, Owner, Settings, host, listener};

/// The shim, as it was built with this program.
static SHIM: &[u8] = include_bytes!(env!("XFRM_SHIM"));
/// The same with what a virtual clock needs, so that without one nothing is in the way of anything.
static TIMED_SHIM: &[u8] = include_bytes!(env!("XFRM_TIMED_SHIM"));
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

/// How long the daemon may take before it is told again.
const SIGNAL_AGAIN_MS: u32 = 1000;

/// Of the name of an instance's directory.
const PREFIX: &str = "xfrmd-";
/// The name of its socket in it.
const CONTROL: &str = "control";

/// A directory of our own, removed at the end. Until then it is locked: another instance that starts could
/// meet the socket before we listen to it, and would take us for dead.
struct PrivateDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

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
                    let lock = Flock::lock(File::open(&path)?, FlockArg::LockSharedNonblock)
                        .map_err(|(_, errno)| errno)?;
                    remove_left_behind(&parent);
                    return Ok(Self { path, _lock: lock });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Whether [`PrivateDirectory`] names directories so.
fn is_name_of_ours(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX);
    number.is_some_and(|it| it.len() == 16 && it.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Removes directories of ours whose instance was killed: nobody answers there any more.
fn remove_left_behind(parent: &Path) {
    let Ok(entries) = parent.read_dir() else {
        return;
    };
    for entry in entries.flatten() {
        let ours = is_name_of_ours(&entry.file_name().to_string_lossy())
            && entry
                .metadata()
                .is_ok_and(|status| status.is_dir() && status.uid() == getuid().as_raw());
        if ours && listener::is_dead(&entry.path().join(CONTROL)) && !is_locked(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_locked(directory: &Path) -> bool {
    let locked = |file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err();
    File::open(directory).map_or(true, locked)
}

/// Whether programs may be loaded from there.
pub(crate) fn is_executable(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|fs| !fs.flags().contains(FsFlags::ST_NOEXEC))
}

/// Writes the shim into a directory from which programs can load it.
pub(crate) fn install_shim(directory: &Path) -> io::Result<PathBuf> {
    install(directory, SHIM)
}

fn install(directory: &Path, shim: &[u8]) -> io::Result<PathBuf> {
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
    file.write_all(shim)?;
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

/// Looks at the instance when its command has ended, and gives an exit code for what it sees.
pub(crate) type AtEnd = Box<dyn FnOnce(&Address<'_>) -> u8>;

/// What `xfrmd run` is given.
pub(crate) struct Run {
    /// Settings but for the owner.
    pub(crate) settings: Settings,
    /// What time it is.
    pub(crate) clock: Timekeeping,
    /// How programs reach the instance.
    pub(crate) front: Front,
    /// The program's file.
    pub(crate) program: PathBuf,
    /// How the program itself reaches it.
    pub(crate) reach: Reach,
    /// The command, its name first.
    pub(crate) command: Vec<OsString>,
    /// `TMPDIR`.
    pub(crate) temporary: Option<PathBuf>,
    /// `LD_PRELOAD`.
    pub(crate) preload: Option<OsString>,
    /// What is done before the instance ends.
    pub(crate) at_end: Option<AtEnd>,
}

/// Runs a command; its exit code.
pub(crate) fn run(run: Run) -> io::Result<u8> {
    let signals: Vec<Signal> = FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect();
    let signals = Signals::block(&signals)?;
    let directory = PrivateDirectory::new(run.temporary)?;
    let shim = match run.clock {
        Timekeeping::Real => install_shim(&directory.path)?,
        Timekeeping::Virtual | Timekeeping::Auto => install(&directory.path, TIMED_SHIM)?,
    };
    let mut random = [0; 32];
    host::random(&mut random);
    let (token, proof) = random.split_at(16);
    let secret = Secret {
        token: token.try_into().unwrap_or_default(),
        proof: proof.try_into().unwrap_or_default(),
    };
    let path = directory.path.join(CONTROL);
    let name = path.file_name().map(|_| directory.path.to_string_lossy());
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
    let clock = clock(run.clock)?;
    let settings = Settings {
        owner: Owner::Private {
            uid: getuid().as_raw(),
            secret,
        },
        clock: clock.clone(),
        root: std::process::id(),
        ..run.settings
    };
    // Before this process has a second thread.
    let listeners = Cell::new(listeners);
    let daemon = keeper::in_background(&mut |inheritance| {
        let served = Daemon::new(settings.clone(), listeners.take());
        let served = served.map_err(anyhow::Error::from);
        keeper::exit_code(served.and_then(|daemon| serve(daemon, inheritance)))
    })?;
    drop(listeners);

    let inside_another = run
        .preload
        .as_ref()
        .is_some_and(|before| before.to_string_lossy().contains(SHIM_NAME));
    let mut command = Command::new(&run.program);
    if let Some((name, arguments)) = run.command.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env(ENV_CONTROL, address.to_string());
    match run.clock {
        Timekeeping::Real => command.env_remove(ENV_CLOCK),
        Timekeeping::Virtual => command.env(ENV_CLOCK, "virtual"),
        Timekeeping::Auto => command.env(ENV_CLOCK, "auto"),
    };
    if run.front.preloads() {
        command.env("LD_PRELOAD", preload(&shim, run.preload));
    }
    let mask = signals.mask_before();
    let handover = Arc::new(Handover::new(run.front, clock.page().is_some())?);
    let theirs = Arc::clone(&handover);
    let us = std::process::id();
    // SAFETY: a few system calls, which a child may make before exec.
    unsafe {
        command.pre_exec(move || {
            // If we are killed, nobody answers it any more. What it has started and left alone goes on.
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid().as_raw().unsigned_abs() != us {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            match theirs.set_up() {
                Err(error) if run.reach == Reach::Supervisor => return Err(error),
                // Without a filter, what is static reaches the host as it would without us.
                _ => {}
            }
            Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?)
        });
    }
    let mut child = command.spawn().map_err(|error| match run.reach {
        Reach::Supervisor if error.raw_os_error() != Some(libc::ENOENT) => {
            io::Error::other(format!(
                "{}: the shim cannot be loaded into it, and a seccomp filter around it: {error}",
                run.program.display()
            ))
        }
        _ => error,
    })?;
    match handover.take() {
        Some(listener) => {
            let serving = run.front.supervises().then_some((&*shim, &address));
            let time = match clock.page().filter(|_| run.front.supervises()) {
                Some(page) => Time::new(page.shared(), &address)?,
                None => None,
            };
            Supervisor::new(listener, serving, time)?.start()?;
        }
        None if inside_another => {}
        None => tracing::warn!(
            "the host allows no seccomp filter: static programs that the command starts reach its kernel"
        ),
    }
    let status = loop {
        let mut fds = [PollFd::new(signals.fd().as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        if let ControlFlow::Break(status) = pass_on(&signals, &mut child, daemon) {
            break status;
        }
    };
    let seen = run.at_end.map_or(0, |look| look(&address));
    // It withdraws what it has done to the host.
    end(daemon);
    Ok(match exit_code(status) {
        0 => seen,
        code => code,
    })
}

/// Ends the keeper and its daemon. One signal may be lost: while one from somebody else is pending, which
/// does not count, ours is none of its own.
fn end(keeper: Pid) {
    while kill(keeper, Signal::SIGTERM).is_ok() {
        for _ in 0..SIGNAL_AGAIN_MS {
            match waitpid(keeper, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                _ => return,
            }
            let _ = poll(&mut [], PollTimeout::from(1_u8));
        }
    }
}

/// The daemon itself, until its keeper ends it.
fn serve(mut daemon: Daemon, inheritance: Inheritance) -> anyhow::Result<ExitCode> {
    let signals = Signals::block(&[Signal::SIGTERM])?;
    daemon.inherit(inheritance)?;
    daemon.watch_for_caller(signals.fd(), 0)?;
    let keeper = getppid().as_raw();
    daemon.serve(|_| {
        // What the whole process group gets is the command's.
        let mut arrived = std::iter::from_fn(|| signals.next());
        Ok(match arrived.any(|it| i32::try_from(it.by) == Ok(keeper)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The clock that was chosen; of a virtual one this process learns of all that runs by it.
fn clock(chosen: Timekeeping) -> io::Result<Clock> {
    if chosen == Timekeeping::Real {
        return Ok(Clock::default());
    }
    prctl::set_child_subreaper(true)?;
    let page = OwnPage::new()?;
    page.set_moves_by_itself(chosen == Timekeeping::Auto);
    Ok(Clock::of_page(Arc::new(page)))
}

/// Buries what was adopted: descendants whose parents have ended.
fn bury(children: [Pid; 2]) {
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, ended)
        && let Some(pid) = status.pid()
        && !children.contains(&pid)
    {
        let _ = waitpid(pid, None);
    }
}

fn pass_on(signals: &Signals, child: &mut Child, daemon: Pid) -> ControlFlow<ExitStatus> {
    while let Some(arrived) = signals.next() {
        if arrived.signal == Signal::SIGCHLD {
            if let Ok(Some(status)) = child.try_wait() {
                return ControlFlow::Break(status);
            }
            if let Ok(pid) = i32::try_from(child.id()) {
                bury([Pid::from_raw(pid), daemon]);
            }
        } else if arrived.sent
            && let Ok(pid) = i32::try_from(child.id())
        {
            let _ = kill(Pid::from_raw(pid), arrived.signal);
        }
    }
    ControlFlow::Continue(())
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};

    use super::*;

    #[test]
    fn a_directory_goes_when_its_instance_is_dead_and_not_before_it_listens() {
        let parent = std::env::temp_dir().join(format!("xfrmd-left-{}", std::process::id()));
        std::fs::create_dir_all(&parent).unwrap();
        let directory = PrivateDirectory::new(Some(parent.clone())).unwrap();
        let path = directory.path.clone();
        let (kind, flags) = (SockType::SeqPacket, SockFlag::empty());
        let early = socket(AddressFamily::Unix, kind, flags, None).unwrap();
        let control = path.join(CONTROL);
        bind(early.as_raw_fd(), &UnixAddr::new(&control).unwrap()).unwrap();
        assert!(listener::is_dead(&control));
        let [refusing, foreign] = ["xfrmd-0123456789abcdef", "xfrmd-of-somebody"].map(|name| {
            let directory = parent.join(name);
            std::fs::create_dir(&directory).unwrap();
            drop(listener::at_path(&directory.join(CONTROL)).unwrap());
            directory
        });
        remove_left_behind(&parent);
        assert!(path.exists() && foreign.exists());
        assert!(!refusing.exists());
        drop(directory);
        assert!(!path.exists());
        std::fs::remove_dir_all(parent).unwrap();
    }
}
