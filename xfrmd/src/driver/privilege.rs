//! Who may configure XFRM.
//!
//! A private instance belongs to whoever started it: the same uid is its root.
//! Everybody else, and everybody at the system's daemon, needs what Linux
//! demands: CAP_NET_ADMIN in the user namespace that owns the network
//! namespace (`kernel/capability.c ns_capable`, `security/commoncap.c
//! cap_capable`).
//!
//! Credentials are the peer's when it connected; the shim connects anew when
//! they change, and [`super::connection`] looks again from time to time.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::stat::fstat;

const CAP_NET_ADMIN: u32 = 12;
/// No chain of user namespaces is longer (`kernel/user_namespace.c`).
const LONGEST_CHAIN: usize = 33;

nix::ioctl_none_bad!(ns_get_userns, 0xb701);
nix::ioctl_none_bad!(ns_get_parent, 0xb702);
nix::ioctl_read_bad!(ns_get_owner_uid, 0xb704, libc::uid_t);

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Process id when it connected.
    pub(crate) pid: i32,
    /// Effective uid then.
    pub(crate) uid: u32,
}

/// Whether the process has CAP_NET_ADMIN over a network namespace.
pub(crate) fn has_net_admin(peer: Credentials, netns: BorrowedFd<'_>) -> bool {
    decide(peer, netns).unwrap_or(false)
}

fn decide(peer: Credentials, netns: BorrowedFd<'_>) -> Option<bool> {
    let own = inode(&File::open(format!("/proc/{}/ns/user", peer.pid)).ok()?)?;
    let capable = effective_capabilities(peer.pid)? & (1 << CAP_NET_ADMIN) != 0;
    // SAFETY: no argument; a new descriptor or an error.
    let mut namespace = owned(unsafe { ns_get_userns(netns.as_raw_fd()) }.ok()?);
    for _ in 0..LONGEST_CHAIN {
        if inode(&namespace)? == own {
            return Some(capable);
        }
        // SAFETY: as above. There is no parent to be had above our own namespace.
        let Ok(parent) = (unsafe { ns_get_parent(namespace.as_raw_fd()) }) else {
            return Some(false);
        };
        let parent = owned(parent);
        if inode(&parent)? == own {
            // Whoever made a user namespace has every capability in it.
            let mut owner = 0;
            // SAFETY: a uid is written.
            unsafe { ns_get_owner_uid(namespace.as_raw_fd(), &raw mut owner) }.ok()?;
            if owner == peer.uid {
                return Some(true);
            }
        }
        namespace = parent;
    }
    Some(false)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the descriptor is new and ours.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn inode(fd: &impl std::os::fd::AsFd) -> Option<(u64, u64)> {
    let status = fstat(fd).ok()?;
    Some((status.st_dev, status.st_ino))
}

fn effective_capabilities(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}
