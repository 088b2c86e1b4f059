//! Network namespaces of the host: entering them, and learning when they end.
//!
//! A namespace is known by its cookie (`SO_NETNS_COOKIE`), which is never used
//! again. Instances must not keep a namespace alive: their sockets in it exist
//! only while clients use them, and what is in the SAD and SPD stays until the
//! kernel tells that the namespace is gone (`RTM_DELNSID`, which needs
//! CAP_NET_ADMIN and an id given to the namespace before). Without that, state
//! goes with the daemon, which then is a private one. Sockets and device of a
//! namespace that packets are carried for stay while somebody else is in it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};
use nix::sys::stat::fstat;

use super::host;

const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
const RTM_GETNSID: u16 = 90;
const RTNLGRP_NSID: i32 = 28;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// The daemon's own namespace, to which it returns.
pub(crate) struct Home {
    /// Its cookie.
    pub(crate) cookie: u64,
    /// Itself.
    pub(crate) namespace: OwnedFd,
}

impl Home {
    /// Where the calling thread is.
    pub(crate) fn here() -> io::Result<Self> {
        let cookie = host::netns_cookie(host::usersock()?.as_fd())?;
        let namespace = File::open("/proc/thread-self/ns/net")?.into();
        Ok(Self { cookie, namespace })
    }

    /// Runs `work` inside `namespace`.
    pub(crate) fn inside<T>(
        &self,
        namespace: BorrowedFd<'_>,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        // Staying elsewhere would mix namespaces up; there is no going on from that.
        if let Err(error) = setns(&self.namespace, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot return to the own network namespace");
            std::process::abort();
        }
        result
    }
}

/// Port ids and groups of the sockets that stand for NETLINK_XFRM ones in the thread's namespace,
/// as the kernel lists them.
pub(crate) fn listeners() -> io::Result<Vec<(u32, u32)>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink")?;
    Ok(text.lines().skip(1).filter_map(listener).collect())
}

fn listener(line: &str) -> Option<(u32, u32)> {
    let mut columns = line.split_whitespace().skip(1);
    let is_usersock = columns.next()? == "2";
    let port = columns.next()?.parse().ok()?;
    let groups = u32::from_str_radix(columns.next()?, 16).ok()?;
    (is_usersock && groups != 0).then_some((port, groups))
}

/// Whether a process or a mount that we see keeps a namespace alive.
pub(crate) fn is_inhabited(namespace: BorrowedFd<'_>) -> bool {
    let Ok(status) = fstat(namespace) else {
        return true;
    };
    let name = format!("net:[{}]", status.st_ino);
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return true;
    };
    let lives_in = |process: std::fs::DirEntry| {
        std::fs::read_link(process.path().join("ns/net"))
            .is_ok_and(|found| found.as_os_str() == &*name)
    };
    // What is mounted has its name as the mount's root.
    let mounted = std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|mounts| mounts.split_whitespace().any(|word| word == name));
    mounted || processes.flatten().any(lives_in)
}

/// Tells when namespaces end.
pub(crate) struct Watch {
    socket: OwnedFd,
    port: u32,
    seq: u32,
    cookies: HashMap<i32, u64>,
    gone: Vec<u64>,
}

impl Watch {
    /// Listens; fails without CAP_NET_ADMIN.
    pub(crate) fn new() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        host::join(socket.as_fd(), RTNLGRP_NSID)?;
        Ok(Self {
            port: host::port(socket.as_fd())?,
            socket,
            seq: 0,
            cookies: HashMap::new(),
            gone: Vec::new(),
        })
    }

    /// Becomes readable when something happened.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Asks to be told of the end of a namespace.
    pub(crate) fn add(&mut self, cookie: u64, namespace: BorrowedFd<'_>) -> io::Result<()> {
        if self.cookies.values().any(|&known| known == cookie) {
            return Ok(());
        }
        self.seq += 1;
        // Giving an id fails with EEXIST where somebody has; asking then tells it.
        let fd = namespace.as_raw_fd();
        self.request(RTM_NEWNSID, &[(NETNSA_FD, fd), (NETNSA_NSID, -1)])?;
        self.request(RTM_GETNSID, &[(NETNSA_FD, fd)])?;
        // The kernel has answered before send returned.
        self.read(Some(cookie));
        Ok(())
    }

    fn request(&self, kind: u16, attrs: &[(u16, i32)]) -> io::Result<()> {
        let len = 16 + 4 + 8 * attrs.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&u32::try_from(len).unwrap_or(0).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&1_u16.to_ne_bytes());
        bytes.extend_from_slice(&self.seq.to_ne_bytes());
        // Port, then the family and its padding.
        bytes.extend_from_slice(&[0; 8]);
        for &(attr, value) in attrs {
            bytes.extend_from_slice(&8_u16.to_ne_bytes());
            bytes.extend_from_slice(&attr.to_ne_bytes());
            bytes.extend_from_slice(&value.to_ne_bytes());
        }
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads what is queued: the id of `asked`, and namespaces that ended.
    fn read(&mut self, asked: Option<u64>) {
        let mut buffer = [0_u8; 8192];
        while let Ok(len) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            for message in messages(buffer.get(..len).unwrap_or_default()) {
                let Some(id) = nsid(message.payload).filter(|&id| id >= 0) else {
                    continue;
                };
                if message.kind == RTM_DELNSID {
                    self.gone.extend(self.cookies.remove(&id));
                } else if message.kind == RTM_NEWNSID
                    && message.seq == self.seq
                    && message.port == self.port
                    && let Some(cookie) = asked
                {
                    self.cookies.insert(id, cookie);
                }
            }
        }
    }

    /// Namespaces that have ended.
    pub(crate) fn ended(&mut self) -> Vec<u64> {
        self.read(None);
        std::mem::take(&mut self.gone)
    }
}

struct Message<'a> {
    kind: u16,
    seq: u32,
    port: u32,
    payload: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> Vec<Message<'_>> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let [a, b, c, d, kind_a, kind_b, _, _, e, f, g, h, i, j, k, l] = *header;
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(0);
        let Some(payload) = bytes.get(16..len) else {
            break;
        };
        found.push(Message {
            kind: u16::from_ne_bytes([kind_a, kind_b]),
            seq: u32::from_ne_bytes([e, f, g, h]),
            port: u32::from_ne_bytes([i, j, k, l]),
            payload,
        });
        bytes = bytes.get(xfrm_proto::align4(len)..).unwrap_or_default();
    }
    found
}

fn nsid(payload: &[u8]) -> Option<i32> {
    let mut attrs = payload.get(4..)?;
    while let Some((&[a, b, c, d], rest)) = attrs.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) == NETNSA_NSID {
            return Some(i32::from_ne_bytes(*rest.first_chunk()?));
        }
        attrs = attrs.get(xfrm_proto::align4(len.max(4))..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_members_of_the_protocol_that_stands_for_xfrm() {
        let member = "0000000000000000 2   4242       0000001f 0        0        0     2        0        123";
        assert_eq!(listener(member), Some((4242, 0x1f)));
        let route = "0000000000000000 0   4242       0000001f 0        0        0     2        0        123";
        assert_eq!(listener(route), None);
        let no_member = "0000000000000000 2   4242       00000000 0        0        0     2        0        123";
        assert_eq!(listener(no_member), None);
        assert_eq!(listener(""), None);
    }

    #[test]
    fn an_id_is_found_behind_other_attributes() {
        let mut payload = vec![0; 4];
        for (kind, value) in [(7_u16, 9_i32), (NETNSA_NSID, 5)] {
            payload.extend_from_slice(&8_u16.to_ne_bytes());
            payload.extend_from_slice(&kind.to_ne_bytes());
            payload.extend_from_slice(&value.to_ne_bytes());
        }
        assert_eq!(nsid(&payload), Some(5));
        assert_eq!(nsid(&payload[..6]), None);
        assert_eq!(nsid(&[]), None);
    }
}
