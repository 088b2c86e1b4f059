//! The system calls of packet sockets and devices, as safe functions.
#![allow(unsafe_code, reason = "system calls that nothing else wraps")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "C's types: constants and sizes of structures fit by their definition"
)]

pub(super) mod datagram;
pub(super) mod marked;

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, sock_filter, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::packet::buffer::Origin;
use crate::packet::{Family, PacketBuf};

/// Packets of one system call.
pub(super) const BATCH: usize = 32;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
const IPV6_HDRINCL: c_int = 36;

fn checked(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Turns a freshly opened `/dev/net/tun` into the device `name`, with every offload that the
/// host knows; whether UDP is among them.
pub(super) fn make_tun(device: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the request is valid for reading and writing.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    set_offloads(device)
}

/// Has a TUN device hand over what is to be cut and summed; whether UDP too.
pub(super) fn set_offloads(device: BorrowedFd<'_>) -> io::Result<bool> {
    let basic = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let set = |offloads: libc::c_uint| {
        let offloads = libc::c_ulong::from(offloads);
        // SAFETY: the argument is a number.
        checked(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
    };
    // UDP came with Linux 6.2.
    match set(basic | TUN_F_USO4 | TUN_F_USO6) {
        Ok(_) => Ok(true),
        Err(_) => set(basic).map(|_| false),
    }
}

/// A raw socket in the thread's network namespace.
pub(super) fn raw_socket(family: Family, protocol: u8) -> io::Result<OwnedFd> {
    open(family, libc::SOCK_RAW, c_int::from(protocol))
}

fn open(family: Family, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain integers; the descriptor is new and ours.
    unsafe {
        let fd = libc::socket(domain, kind, protocol);
        checked(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn set_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is valid for its size, and only read.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as socklen_t,
        )
    };
    checked(result).map(drop)
}

/// The firewall mark of what the socket sends.
pub(super) fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// Room for bursts, beyond the host's limit if we may.
pub(super) fn set_room(fd: BorrowedFd<'_>, bytes: c_int) {
    for [forced, plain] in [
        [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF],
        [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF],
    ] {
        if set_option(fd, libc::SOL_SOCKET, forced, &bytes).is_err() {
            // Then bursts are lost sooner.
            let _ = set_option(fd, libc::SOL_SOCKET, plain, &bytes);
        }
    }
}

/// The IP header is the caller's, and of MTUs only the interface's counts: what the host has
/// learned is about other packets to the same address too.
pub(super) fn include_header(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    let on: c_int = 1;
    let (level, include, discover, probe) = match family {
        Family::V4 => (
            libc::IPPROTO_IP,
            libc::IP_HDRINCL,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
        Family::V6 => (
            libc::IPPROTO_IPV6,
            IPV6_HDRINCL,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    };
    set_option(fd, level, include, &on)?;
    set_option(fd, level, discover, &probe)
}

/// What an IPv6 socket tells of headers that it does not deliver.
pub(super) fn tell_header(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    for name in [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS] {
        set_option(fd, libc::IPPROTO_IPV6, name, &on)?;
    }
    Ok(())
}

/// Has a socket tell how packets have come. Marks are told since Linux 5.19; without, they are 0.
pub(super) fn tell_origin(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    let on: c_int = 1;
    // An older host does without.
    let _ = marked::tell_mark(fd);
    match family {
        Family::V4 => set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, &on),
        Family::V6 => set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &on),
    }
}

/// Of a filter: the whole packet.
pub(super) const ACCEPT: u32 = u32::MAX;
/// Of a filter: nothing of it.
pub(super) const DROP: u32 = 0;

/// An instruction of a filter.
pub(super) const fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// A comparison with a constant, and how many instructions either answer skips.
pub(super) const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | code | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    }
}

/// Lets only what the program accepts into the socket.
pub(super) fn attach_filter(fd: BorrowedFd<'_>, program: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// What comes with a received packet that has no IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header6 {
    /// Source address.
    pub(super) source: Ipv6Addr,
    /// Destination address.
    pub(super) destination: Ipv6Addr,
    /// Hop limit.
    pub(super) hop_limit: u8,
    /// Traffic class.
    pub(super) traffic_class: u8,
}

/// Room for the control messages of [`tell_header`], aligned as their header must be.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Ancillary([u8; 192]);

/// Receives packets into the front of `packets`; never waits.
///
/// With `headers`, each packet's is told there.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    packets: &mut [PacketBuf],
    mut headers: Option<&mut [Option<Header6>; BATCH]>,
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid mmsghdr, iovec and address.
    let (mut messages, mut parts, mut sources): (
        [libc::mmsghdr; BATCH],
        [libc::iovec; BATCH],
        [sockaddr_in6; BATCH],
    ) = unsafe { zeroed() };
    let mut ancillary = [Ancillary([0; 192]); BATCH];
    let wants_headers = headers.is_some();
    let mut wanted = 0;
    let rooms = messages
        .iter_mut()
        .zip(&mut parts)
        .zip(sources.iter_mut().zip(&mut ancillary));
    for (((message, part), (source, ancillary)), packet) in rooms.zip(&mut *packets) {
        let room = packet.offer();
        part.iov_base = room.as_mut_ptr().cast();
        part.iov_len = room.len();
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = ancillary.0.len();
        if wants_headers {
            message.msg_hdr.msg_name = std::ptr::from_mut(source).cast();
            message.msg_hdr.msg_namelen = size_of::<sockaddr_in6>() as socklen_t;
        }
        wanted += 1;
    }
    // SAFETY: every message names rooms that are valid for writing and outlive the call.
    let count = checked(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            wanted,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })?;
    let received = messages.iter().take(count).zip(packets).zip(&sources);
    for (index, ((message, packet), source)) in received.enumerate() {
        packet.truncate(message.msg_len as usize);
        if message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            packet.truncate(0);
        }
        // SAFETY: the kernel has filled this message.
        packet.set_origin(unsafe { origin(&message.msg_hdr) });
        if let Some(slot) = headers
            .as_deref_mut()
            .and_then(|headers| headers.get_mut(index))
        {
            *slot = header6(&message.msg_hdr, source);
        }
    }
    Ok(count)
}

/// How the packet of a message has come.
///
/// # Safety
/// The kernel has filled the control buffer up to `msg_controllen`.
unsafe fn origin(message: &libc::msghdr) -> Origin {
    let mut origin = Origin::default();
    // SAFETY: the caller's word; each message's data has the type that level and type say.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_SOCKET, libc::SO_MARK) => {
                    origin.mark = data.cast::<u32>().read_unaligned();
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    origin.ifindex = data.cast::<libc::in_pktinfo>().read_unaligned().ipi_ifindex;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    origin.ifindex = info.ipi6_ifindex as c_int;
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    origin
}

fn header6(message: &libc::msghdr, source: &sockaddr_in6) -> Option<Header6> {
    let mut destination = None;
    let (mut hop_limit, mut traffic_class) = (64, 0);
    // SAFETY: the kernel has filled the control buffer up to msg_controllen, and each message's
    // data has the type that level and type say.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    hop_limit = data.cast::<c_int>().read_unaligned() as u8;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    traffic_class = data.cast::<c_int>().read_unaligned() as u8;
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    Some(Header6 {
        source: Ipv6Addr::from(source.sin6_addr.s6_addr),
        destination: destination?,
        hop_limit,
        traffic_class,
    })
}

fn destination(packet: &[u8]) -> Option<(sockaddr_storage, socklen_t)> {
    // SAFETY: all-zero bytes are valid addresses.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let len = match Family::of(packet)? {
        Family::V4 => {
            let address: [u8; 4] = packet.get(16..)?.first_chunk().copied()?;
            // SAFETY: as above.
            let mut name: libc::sockaddr_in = unsafe { zeroed() };
            name.sin_family = libc::AF_INET as u16;
            name.sin_addr.s_addr = Ipv4Addr::from(address).to_bits().to_be();
            // SAFETY: the storage is larger and aligned for any address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(name) };
            size_of::<libc::sockaddr_in>()
        }
        Family::V6 => {
            let address: [u8; 16] = packet.get(24..)?.first_chunk().copied()?;
            // SAFETY: as above.
            let mut name: sockaddr_in6 = unsafe { zeroed() };
            name.sin6_family = libc::AF_INET6 as u16;
            name.sin6_addr.s6_addr = address;
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<sockaddr_in6>().write(name) };
            size_of::<sockaddr_in6>()
        }
    };
    Some((storage, len as socklen_t))
}

/// Sends packets, each to the address in its header, from the front of `packets`; never waits.
/// How many went; the error is that of the first, if none did.
pub(super) fn send(fd: BorrowedFd<'_>, packets: &[PacketBuf]) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid mmsghdr, iovec and address.
    let (mut messages, mut parts, mut names): (
        [libc::mmsghdr; BATCH],
        [libc::iovec; BATCH],
        [sockaddr_storage; BATCH],
    ) = unsafe { zeroed() };
    let mut wanted = 0;
    let rooms = messages.iter_mut().zip(&mut parts).zip(&mut names);
    for (((message, part), name), packet) in rooms.zip(packets) {
        let Some((address, len)) = destination(packet) else {
            break;
        };
        *name = address;
        part.iov_base = packet.as_ptr().cast_mut().cast::<c_void>();
        part.iov_len = packet.len();
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
        message.msg_hdr.msg_namelen = len;
        wanted += 1;
    }
    if wanted == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: every message names bytes and an address that are valid and outlive the call.
    checked(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            wanted,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}
