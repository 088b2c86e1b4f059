//! What the daemon and a service manager tell each other: listening sockets that it hands over
//! (`sd_listen_fds(3)`), how far we are (`sd_notify(3)`), and descriptors that it keeps for us
//! while we are away (`FDSTORE=1`).

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, getsockopt, sendmsg, sockopt};
use nix::time::{ClockId, clock_gettime};

/// The first descriptor that is handed over.
const FIRST: i32 = 3;
/// More are a mistake.
const MOST: i32 = 1 << 16;
/// How long a service manager may take to hear us.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the names of descriptors begin with that are kept for us.
const STORED: &str = "xfrmd-store-";

/// What a service manager has handed over.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Sockets that clients connect to.
    pub(crate) listeners: Vec<OwnedFd>,
    /// What was kept for us, by name.
    pub(crate) stored: Vec<(String, OwnedFd)>,
}

/// The descriptors that were handed over; these are the values of `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES`. To be called once.
///
/// # Errors
/// A descriptor is not what clients connect to.
pub(crate) fn given(
    pid: Option<&OsStr>,
    count: Option<&OsStr>,
    names: Option<&OsStr>,
) -> io::Result<Given> {
    let number = |text: Option<&OsStr>| text?.to_str()?.parse::<u32>().ok();
    let mut given = Given::default();
    if number(pid) != Some(std::process::id()) {
        return Ok(given);
    }
    let count = number(count).and_then(|it| i32::try_from(it).ok());
    let mut names = names.and_then(OsStr::to_str).unwrap_or_default().split(':');
    for fd in FIRST..FIRST + count.unwrap_or(0).min(MOST) {
        // SAFETY: the service manager has opened it for us, and nobody else uses it: no other
        // descriptor has been opened with these numbers, since they were taken.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        if let Some(name) = names.next().and_then(|name| name.strip_prefix(STORED)) {
            given.stored.push((name.to_owned(), fd));
            continue;
        }
        check(&fd)
            .map_err(|error| io::Error::new(error.kind(), format!("socket activation: {error}")))?;
        given.listeners.push(fd);
    }
    Ok(given)
}

fn check(fd: &OwnedFd) -> io::Result<()> {
    let kind = getsockopt(fd, sockopt::SockType)?;
    if kind != SockType::SeqPacket || !getsockopt(fd, sockopt::AcceptConn)? {
        let wanted = "not a listening socket of type SOCK_SEQPACKET (ListenSequentialPacket=)";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, wanted));
    }
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// How far we are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Progress {
    /// Clients can come, or what is new is in force.
    Ready,
    /// The configuration is read again.
    Reloading,
    /// It ends.
    Stopping,
}

/// The service manager at the address that `NOTIFY_SOCKET` names.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    /// It could not be told the last time, which has been said.
    deaf: Cell<bool>,
}

impl Manager {
    /// None if there is none, or if it cannot be told.
    pub(crate) fn at(address: Option<&OsStr>) -> Option<Self> {
        let address = address?;
        let connected = || {
            let socket = UnixDatagram::unbound()?;
            match address.as_bytes().strip_prefix(b"@") {
                Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
                None => socket.connect(address)?,
            }
            // One that does not listen does not stop us for long.
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok::<_, io::Error>(socket)
        };
        let socket = connected().inspect_err(warn).ok()?;
        Some(Self {
            socket,
            deaf: Cell::default(),
        })
    }

    /// Has a descriptor kept while we are away, in place of one of the same name.
    pub(crate) fn store(&self, name: &str, fd: BorrowedFd<'_>) {
        self.forget(name);
        // A device that is gone is told us by the host, not by losing it.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={STORED}{name}");
        self.tell(&text, &[fd.as_raw_fd()]);
    }

    /// Has one closed.
    pub(crate) fn forget(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={STORED}{name}"), &[]);
    }

    fn tell(&self, text: &str, fds: &[RawFd]) {
        let parts = [IoSlice::new(text.as_bytes())];
        let passed = [ControlMessage::ScmRights(fds)];
        let passed = if fds.is_empty() { &[][..] } else { &passed };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.socket.as_raw_fd(), &parts, passed, flags, None);
        match sent {
            Ok(_) => self.deaf.set(false),
            Err(error) if !self.deaf.replace(true) => warn(&error.into()),
            Err(_) => {}
        }
    }
}

fn warn(error: &io::Error) {
    tracing::warn!(%error, "the service manager at NOTIFY_SOCKET cannot be told");
}

/// Tells the service manager how far we are, if there is one.
pub(crate) fn notify(address: Option<&OsStr>, progress: Progress) {
    let Some(manager) = Manager::at(address) else {
        return;
    };
    match state(progress) {
        Ok(state) => manager.tell(&state, &[]),
        Err(error) => warn(&error),
    }
}

fn state(progress: Progress) -> io::Result<String> {
    Ok(match progress {
        Progress::Ready => "READY=1".into(),
        Progress::Stopping => "STOPPING=1".into(),
        Progress::Reloading => {
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
            let micros = i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec() / 1000);
            format!("RELOADING=1\nMONOTONIC_USEC={micros}")
        }
    })
}
