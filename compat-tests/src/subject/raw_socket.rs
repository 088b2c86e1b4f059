//! Whatever is behind `AF_NETLINK` sockets of protocol `NETLINK_XFRM`: the
//! running kernel, or xfrmd when its shim is preloaded.
//!
//! Only libc's own symbols are called, because those are what a preloaded
//! library replaces. The thread that makes a [`RawSocket`] moves to a network
//! namespace of its own and stays there.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libc::{c_int, c_void, sockaddr, sockaddr_nl, socklen_t};

use super::packets::{Datagram, Link, Packets, UdpOptions};
use super::tun::{self, Links};
use super::{Errno, Received, Socket, SocketOptions, Subject, UdpSocket};

const CAP_NET_ADMIN: u32 = 12;
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sockets in a network namespace of their own.
pub struct RawSocket {
    sockets: Vec<Option<(OwnedFd, bool)>>,
    udp: Vec<Option<OwnedFd>>,
    links: Option<Links>,
}

impl RawSocket {
    /// Moves the calling thread to a fresh network namespace.
    ///
    /// # Errors
    /// What `unshare` says: EPERM for those who may not.
    pub fn in_fresh_netns() -> Result<Self, Errno> {
        // SAFETY: no pointers are involved.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        Ok(Self {
            sockets: Vec::new(),
            udp: Vec::new(),
            links: None,
        })
    }

    fn fd(&self, socket: Socket) -> (c_int, bool) {
        let (fd, privileged) = self.sockets[socket.0].as_ref().unwrap();
        (fd.as_raw_fd(), *privileged)
    }

    fn links(&mut self) -> &mut Links {
        self.links.get_or_insert_with(Links::new)
    }

    fn udp(&self, socket: UdpSocket) -> &OwnedFd {
        self.udp[socket.0].as_ref().unwrap()
    }
}

impl Packets for RawSocket {
    fn prepare(&mut self) {
        self.links();
    }

    fn inject(&mut self, link: Link, packet: &[u8]) {
        self.links().inject(link, packet);
    }

    fn take(&mut self, link: Link) -> Option<Vec<u8>> {
        self.links().take(link)
    }

    fn configure_udp(&mut self, socket: UdpSocket, options: &UdpOptions) -> Result<(), Errno> {
        self.links();
        tun::configure_udp(self.udp(socket), options)
    }

    fn send_udp(&mut self, socket: UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
        tun::send_udp(self.udp(socket), to, payload)
    }

    fn receive_udp(&mut self, socket: UdpSocket) -> Result<Option<Datagram>, Errno> {
        tun::receive_udp(self.udp(socket))
    }

    fn mib(&mut self) -> Vec<(String, u64)> {
        tun::mib()
    }
}

impl Subject for RawSocket {
    fn open(&mut self, options: &SocketOptions) -> Result<Socket, Errno> {
        let fd = with_privilege(options.privileged, || open(options))?;
        self.sockets.push(Some((fd, options.privileged)));
        Ok(Socket(self.sockets.len() - 1))
    }

    fn close(&mut self, socket: Socket) {
        self.sockets[socket.0] = None;
    }

    fn set_member(&mut self, socket: Socket, group: u32, member: bool) -> Result<(), Errno> {
        let (fd, privileged) = self.fd(socket);
        let option = if member {
            libc::NETLINK_ADD_MEMBERSHIP
        } else {
            libc::NETLINK_DROP_MEMBERSHIP
        };
        with_privilege(privileged, || set_option(fd, option, group as c_int))
    }

    fn send(&mut self, socket: Socket, datagram: &[u8]) -> Result<(), Errno> {
        let (fd, privileged) = self.fd(socket);
        let kernel = address(0, 0);
        with_privilege(privileged, || {
            // SAFETY: both pointers are valid for the lengths that go with them.
            let sent = unsafe {
                libc::sendto(
                    fd,
                    datagram.as_ptr().cast(),
                    datagram.len(),
                    0,
                    (&raw const kernel).cast::<sockaddr>(),
                    size_of::<sockaddr_nl>() as socklen_t,
                )
            };
            check(sent).map(drop)
        })
    }

    fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Result<Received, Errno> {
        let (fd, _) = self.fd(socket);
        let mut bytes = vec![0u8; buffer_bytes];
        let mut from = address(0, 0);
        let mut len = size_of::<sockaddr_nl>() as socklen_t;
        // SAFETY: all pointers are valid for the lengths that go with them.
        let received = unsafe {
            libc::recvfrom(
                fd,
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                (&raw mut from).cast::<sockaddr>(),
                &raw mut len,
            )
        };
        let full_len = check(received)? as usize;
        bytes.truncate(full_len);
        Ok(Received {
            bytes,
            full_len,
            sender: from.nl_pid,
            groups: from.nl_groups,
        })
    }

    fn open_udp(&mut self, family: u16) -> Result<UdpSocket, Errno> {
        // SAFETY: no pointers are involved.
        let fd = check(unsafe {
            libc::socket(family.into(), libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
        })?;
        // SAFETY: the descriptor was just opened and is nobody else's.
        self.udp.push(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
        Ok(UdpSocket(self.udp.len() - 1))
    }

    fn close_udp(&mut self, socket: UdpSocket) {
        self.udp[socket.0] = None;
    }

    fn set_socket_policy(
        &mut self,
        socket: UdpSocket,
        option_family: u16,
        value: Option<&[u8]>,
    ) -> Result<(), Errno> {
        const IP_XFRM_POLICY: c_int = 17;
        const IPV6_XFRM_POLICY: c_int = 35;
        let (level, option) = match c_int::from(option_family) {
            libc::AF_INET6 => (libc::IPPROTO_IPV6, IPV6_XFRM_POLICY),
            _ => (libc::IPPROTO_IP, IP_XFRM_POLICY),
        };
        let fd = self.udp(socket).as_raw_fd();
        let (pointer, len) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
        // SAFETY: the value is valid for its length, or null with length 0.
        let result =
            unsafe { libc::setsockopt(fd, level, option, pointer.cast(), len as socklen_t) };
        check(result).map(drop)
    }

    fn set_sysctl(&mut self, name: &str, value: u32) -> Result<(), Errno> {
        std::fs::write(format!("/proc/sys/net/core/{name}"), value.to_string())
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn sleep(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn wall(&self) -> Duration {
        #[expect(
            clippy::disallowed_methods,
            reason = "the subject is a real system with the real time"
        )]
        let now = SystemTime::now();
        now.duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn packets(&mut self) -> Option<&mut dyn Packets> {
        Some(self)
    }
}

fn open(options: &SocketOptions) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are involved.
    let fd = check(unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_XFRM,
        )
    })?;
    // SAFETY: the descriptor was just opened and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let raw = fd.as_raw_fd();
    if options.cap_ack {
        set_option(raw, libc::NETLINK_CAP_ACK, 1)?;
    }
    if options.ext_ack {
        set_option(raw, libc::NETLINK_EXT_ACK, 1)?;
    }
    let own = address(options.port, options.groups);
    // SAFETY: the address is valid for its length.
    check(unsafe {
        libc::bind(
            raw,
            (&raw const own).cast::<sockaddr>(),
            size_of::<sockaddr_nl>() as socklen_t,
        )
    })?;
    Ok(fd)
}

fn set_option(fd: c_int, option: c_int, value: c_int) -> Result<(), Errno> {
    // SAFETY: the value is valid for its length.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast::<c_void>(),
            size_of::<c_int>() as socklen_t,
        )
    };
    check(result).map(drop)
}

fn address(port: u32, groups: u32) -> sockaddr_nl {
    // SAFETY: all zeroes is a valid sockaddr_nl.
    let mut address: sockaddr_nl = unsafe { zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_pid = port;
    address.nl_groups = groups;
    address
}

fn check<T: PartialOrd + Default>(result: T) -> Result<T, Errno> {
    if result < T::default() {
        Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO))
    } else {
        Ok(result)
    }
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Runs `act` with or without `CAP_NET_ADMIN` in the thread's effective set.
fn with_privilege<T>(privileged: bool, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    if privileged {
        return act();
    }
    let header = CapHeader {
        version: LINUX_CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut before = [CapData::default(); 2];
    // SAFETY: header and data have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, before.as_mut_ptr()) })?;
    let mut without = before;
    without[0].effective &= !(1 << CAP_NET_ADMIN);
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, without.as_ptr()) })?;
    let result = act();
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, before.as_ptr()) })?;
    result
}
