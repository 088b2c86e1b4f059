//! What the daemon and a service manager tell each other: listening sockets that it hands over
//! (`sd_listen_fds(3)`), and how far we are (`sd_notify(3)`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

/// The first descriptor that is handed over.
const FIRST: i32 = 3;
/// More are a mistake.
const MOST: i32 = 16;

/// The sockets that were handed over; `pid` and `count` are the values of `LISTEN_PID` and
/// `LISTEN_FDS`. To be called once.
///
/// # Errors
/// A descriptor is not what clients connect to.
pub(crate) fn listeners(pid: Option<&OsStr>, count: Option<&OsStr>) -> io::Result<Vec<OwnedFd>> {
    let number = |text: Option<&OsStr>| text?.to_str()?.parse::<u32>().ok();
    if number(pid) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number(count).and_then(|it| i32::try_from(it).ok());
    (FIRST..FIRST + count.unwrap_or(0).min(MOST))
        .map(|fd| {
            // SAFETY: the service manager has opened it for us, and nobody else uses it: no other
            // descriptor has been opened with these numbers, since they were taken.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            check(&fd).map_err(|error| {
                io::Error::new(error.kind(), format!("socket activation: {error}"))
            })?;
            Ok(fd)
        })
        .collect()
}

fn check(fd: &OwnedFd) -> io::Result<()> {
    let kind = getsockopt(fd, sockopt::SockType)?;
    if kind != SockType::SeqPacket || !getsockopt(fd, sockopt::AcceptConn)? {
        let wanted = "not a listening socket of type SOCK_SEQPACKET (ListenSequentialPacket=)";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, wanted));
    }
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
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

/// Tells the service manager at the address that `NOTIFY_SOCKET` names, if it does.
pub(crate) fn notify(address: Option<&OsStr>, progress: Progress) {
    let Some(address) = address else { return };
    let told = state(progress).and_then(|state| {
        let socket = UnixDatagram::unbound()?;
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = told {
        tracing::warn!(%error, "NOTIFY_SOCKET");
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
