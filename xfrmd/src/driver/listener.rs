//! Where clients find the daemon: a pathname, and an abstract address for
//! processes of the same network namespace that do not see the pathname.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};

/// How long a daemon may take to end whose keeper was killed.
const ENDING_WAIT: Duration = Duration::from_millis(20);
const ENDING_TRIES: u32 = 50;

/// Listens at a pathname, taking the place of a daemon that has died.
pub(crate) fn at_path(path: &Path) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    // One whose keeper has just been killed is about to end.
    let mut tries = 0;
    while let Err(error) = clear(path, SockType::SeqPacket) {
        tries += 1;
        if tries > ENDING_TRIES {
            return Err(error);
        }
        std::thread::sleep(ENDING_WAIT);
    }
    let fd = seqpacket()?;
    bind(fd.as_raw_fd(), &address)?;
    // Anybody may ask; what they may do is decided for each.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

/// Removes what a daemon that was killed has left: a socket at which nobody listens. Anything else
/// stays, and is in the way.
pub(crate) fn clear(path: &Path, kind: SockType) -> io::Result<()> {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|status| status.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    let probe = unconnected(kind)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path),
        _ => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}

/// Whether a daemon has listened there that is no more.
pub(crate) fn is_dead(path: &Path) -> bool {
    let refused = || {
        let address = UnixAddr::new(path).ok()?;
        let probe = seqpacket().ok()?;
        connect(probe.as_raw_fd(), &address).err()
    };
    refused() == Some(Errno::ECONNREFUSED)
}

/// Listens at an abstract address of the network namespace.
pub(crate) fn at_abstract(name: &str) -> io::Result<OwnedFd> {
    let fd = seqpacket()?;
    bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

fn seqpacket() -> io::Result<OwnedFd> {
    unconnected(SockType::SeqPacket)
}

fn unconnected(kind: SockType) -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        kind,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

/// A file that is removed when the daemon ends.
pub(crate) struct Removed(pub(crate) PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
