//! The keeper: a tiny parent that outlives the daemon and starts it again.
//!
//! It opens what must not go with the daemon, forks it, and waits. It has no
//! thread, maps no state, and reads nothing but signals and descriptors that
//! the daemon asks it to hold:
//!
//! * the file with all state ([`xfrmd::store`]), which has no name and is in no file system;
//! * listening sockets, so that clients that connect meanwhile wait instead of being refused;
//! * namespaces, the sockets that speak in them, with their ports, and the TUN devices: what the
//!   host sends there waits in the device.
//!
//! A daemon that was killed, by whatever signal, is forked anew and goes on from there. One that
//! ends by itself takes the keeper along, with its exit code; so does one that is killed again
//! and again, because then something kills it that will be there next time: the host's rules stay,
//! and protected flows find no way. A keeper that is killed takes the daemon along (`PR_SET_PDEATHSIG`):
//! nobody would start it again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};
use xfrmd::store::Store;

use super::service::Manager;
use super::signals::Signals;
use super::{clock, host};

/// A daemon that is killed so often within [`TOO_SOON`] is not started again.
const MOST_DEATHS: usize = 5;
const TOO_SOON: u64 = 10_000_000_000;

/// What is held of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Itself.
    Namespace = 0,
    /// The same, because packets are carried for it.
    Followed = 1,
    /// Our socket for replies.
    Reply = 2,
    /// Our socket for events.
    Event = 3,
    /// The device.
    Tun = 4,
    /// Sockets that protected packets come to, by protocol and IP.
    Esp = 5,
    EspV6 = 6,
    Ah = 7,
    AhV6 = 8,
    Comp = 9,
    CompV6 = 10,
    Udp = 11,
    UdpV6 = 12,
}

impl Role {
    pub(crate) const ALL: [Self; 13] = [
        Self::Namespace,
        Self::Followed,
        Self::Reply,
        Self::Event,
        Self::Tun,
        Self::Esp,
        Self::EspV6,
        Self::Ah,
        Self::AhV6,
        Self::Comp,
        Self::CompV6,
        Self::Udp,
        Self::UdpV6,
    ];

    /// What is there while packets are carried.
    pub(crate) fn carrying() -> impl Iterator<Item = Self> {
        let always = [Self::Namespace, Self::Reply, Self::Event];
        Self::ALL
            .into_iter()
            .filter(move |role| !always.contains(role))
    }
}

/// Descriptors by namespace and role.
pub(crate) type Held = BTreeMap<(u64, Role), OwnedFd>;

/// The daemon's line to the keeper.
#[derive(Debug)]
pub(crate) struct Line(OwnedFd);

impl Line {
    /// Has a descriptor held until [`Line::release`], in place of one that was.
    pub(crate) fn hold(&self, netns: u64, role: Role, fd: BorrowedFd<'_>) {
        self.tell(netns, role, Some(fd));
    }

    /// Has it closed.
    pub(crate) fn release(&self, netns: u64, role: Role) {
        self.tell(netns, role, None);
    }

    fn tell(&self, netns: u64, role: Role, fd: Option<BorrowedFd<'_>>) {
        let [a, b, c, d, e, f, g, h] = netns.to_le_bytes();
        let frame = [role as u8, a, b, c, d, e, f, g, h];
        loop {
            match host::send_frame(self.0.as_fd(), &frame, &[], fd) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, PollTimeout::NONE);
                }
                Err(error) => {
                    tracing::error!(%error, "the keeper cannot be told");
                    return;
                }
                Ok(()) => return,
            }
        }
    }
}

/// What a daemon begins with.
pub(crate) struct Inheritance {
    /// All state; empty at first.
    pub(crate) state: OwnedFd,
    /// What was held for those before.
    pub(crate) held: Held,
    /// The way to the keeper.
    pub(crate) line: Line,
    /// How many there were before.
    pub(crate) generation: u32,
}

/// What outlives the keeper itself, where a service manager keeps it.
#[derive(Debug, Default)]
pub(crate) struct Outliving {
    manager: Option<Manager>,
    state: Option<OwnedFd>,
    held: Held,
}

const STATE: &str = "state";

impl Outliving {
    /// Kept by a service manager, if there is one; `stored` is what it has kept for a keeper
    /// before this one.
    pub(crate) fn new(manager: Option<Manager>, stored: Vec<(String, OwnedFd)>) -> Self {
        let (mut state, mut held) = (None, Held::new());
        for (name, fd) in stored {
            if name == STATE {
                state = Some(fd);
            } else if let Some(key) = parse_name(&name) {
                held.insert(key, fd);
            }
        }
        Self {
            manager,
            state,
            held,
        }
    }
}

/// What a descriptor is called at the service manager's.
fn name((netns, role): (u64, Role)) -> String {
    format!("{netns:x}-{}", role as u8)
}

fn parse_name(name: &str) -> Option<(u64, Role)> {
    let (netns, role) = name.split_once('-')?;
    let role = *Role::ALL.get(role.parse::<usize>().ok()?)?;
    Some((u64::from_str_radix(netns, 16).ok()?, role))
}

struct Keeper<'a> {
    manager: Option<Manager>,
    state: OwnedFd,
    held: Held,
    generation: u32,
    deaths: Vec<u64>,
    run: &'a mut dyn FnMut(Inheritance) -> u8,
}

/// A daemon that runs.
struct Running {
    pid: Pid,
    line: OwnedFd,
}

/// Runs the daemon, again and again if need be; its exit code.
///
/// What a service manager has kept of a keeper that was killed, this one goes on with.
///
/// `signals` are those that the caller has blocked, `SIGCHLD` among them; they go on to the daemon,
/// or only those that `from` sends.
///
/// # Errors
/// The host's, before the first daemon is started.
pub(crate) fn keep(
    signals: &Signals,
    from: Option<Pid>,
    outliving: Outliving,
    run: &mut dyn FnMut(Inheritance) -> u8,
) -> io::Result<u8> {
    let Outliving {
        manager,
        state,
        held,
    } = outliving;
    let generation = u32::from(state.is_some());
    let state = match state {
        Some(state) => state,
        None => {
            let state = Store::file()?;
            if let Some(manager) = &manager {
                manager.store(STATE, state.as_fd());
            }
            state
        }
    };
    let mut keeper = Keeper {
        manager,
        state,
        held,
        generation,
        deaths: Vec::new(),
        run,
    };
    let mut daemon = keeper.start()?;
    loop {
        let mut fds = [signals.fd().as_fd(), daemon.line.as_fd()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        keeper.listen(&daemon.line);
        while let Some(arrived) = signals.next() {
            if arrived.signal != Signal::SIGCHLD {
                let counts = from.is_none_or(|from| i32::try_from(arrived.by) == Ok(from.as_raw()));
                if counts {
                    let _ = kill(daemon.pid, arrived.signal);
                }
                continue;
            }
            match keeper.outcome(&daemon) {
                None => {}
                Some(Outcome::Ended(code)) => {
                    if code == 0 {
                        keeper.forget_all();
                    }
                    return Ok(code);
                }
                Some(Outcome::Killed(signal)) => match keeper.start_again(&daemon, signal) {
                    Some(next) => daemon = next,
                    None => return Ok(1),
                },
            }
        }
    }
}

/// The same in a process of its own, which ends with ours; `SIGTERM` from us ends it.
///
/// To be called while there is one thread.
///
/// # Errors
/// The host's.
pub(crate) fn in_background(run: &mut dyn FnMut(Inheritance) -> u8) -> io::Result<Pid> {
    let parent = Pid::this();
    child(|| {
        let kept = Signals::block(&[Signal::SIGTERM, Signal::SIGCHLD])
            .and_then(|signals| keep(&signals, Some(parent), Outliving::default(), run));
        kept.unwrap_or_else(|error| {
            eprintln!("xfrmd: {error}");
            1
        })
    })
}

/// A child that ends with us, and with the code that `run` gives; its number.
fn child(run: impl FnOnce() -> u8) -> io::Result<Pid> {
    let parent = Pid::this();
    // SAFETY: this process has one thread, so that nobody holds a lock in the child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            if getppid() != parent {
                std::process::abort();
            }
            std::process::exit(run().into());
        }
    }
}

enum Outcome {
    Ended(u8),
    Killed(Signal),
}

impl Keeper<'_> {
    fn start(&mut self) -> io::Result<Running> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let pid = child(|| {
            let inheritance = self.state.try_clone().map(|state| Inheritance {
                state,
                held: std::mem::take(&mut self.held),
                line: Line(theirs),
                generation: self.generation,
            });
            match inheritance {
                Ok(inheritance) => (self.run)(inheritance),
                Err(_) => 1,
            }
        })?;
        Ok(Running { pid, line: ours })
    }

    /// Takes what the daemon wants held.
    fn listen(&mut self, line: &OwnedFd) {
        let mut frame = [0; 16];
        while let Ok((len @ 1.., [fd, _])) = host::receive_frame(line.as_fd(), &mut frame) {
            let told = frame.get(..len).and_then(|frame| {
                let (&role, netns) = frame.split_first()?;
                let role = *Role::ALL.get(usize::from(role))?;
                Some((u64::from_le_bytes(netns.try_into().ok()?), role))
            });
            let Some(key) = told else { continue };
            if let Some(fd) = fd {
                if let Some(manager) = &self.manager {
                    manager.store(&name(key), fd.as_fd());
                }
                self.held.insert(key, fd);
            } else if self.held.remove(&key).is_some()
                && let Some(manager) = &self.manager
            {
                manager.forget(&name(key));
            }
        }
    }

    /// Leaves nothing at the service manager's: there is nothing to go on with.
    fn forget_all(&self) {
        if let Some(manager) = &self.manager {
            manager.forget(STATE);
            self.held.keys().for_each(|key| manager.forget(&name(*key)));
        }
    }

    /// What has become of the daemon, if it is no more.
    fn outcome(&self, daemon: &Running) -> Option<Outcome> {
        match waitpid(daemon.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => {
                Some(Outcome::Ended(u8::try_from(code).unwrap_or(1)))
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Outcome::Killed(signal)),
            _ => None,
        }
    }

    fn start_again(&mut self, daemon: &Running, signal: Signal) -> Option<Running> {
        // What it had said before it was killed.
        self.listen(&daemon.line);
        let now = clock::uptime().0;
        self.deaths.retain(|then| now - then < TOO_SOON);
        self.deaths.push(now);
        if self.deaths.len() > MOST_DEATHS {
            tracing::error!(
                %signal,
                "the daemon is killed again and again: it stays down, and what policies protect is blocked"
            );
            return None;
        }
        self.generation += 1;
        tracing::warn!(%signal, "the daemon was killed: it is started again");
        let next = self.start();
        next.inspect_err(|error| tracing::error!(%error, "it cannot be"))
            .ok()
    }
}

/// What a failed start says, as the command line would.
pub(crate) fn exit_code(result: anyhow::Result<ExitCode>) -> u8 {
    match result {
        Ok(code) if code == ExitCode::SUCCESS => 0,
        Ok(_) => 1,
        Err(error) => {
            eprintln!("xfrmd: {error:#}");
            1
        }
    }
}
