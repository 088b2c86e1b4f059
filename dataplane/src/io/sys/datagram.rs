//! UDP sockets that send and receive several equally long datagrams at once
//! (`UDP_SEGMENT`, `UDP_GRO`), and that share a port by what datagrams contain.

use std::io::{self, IoSlice};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_void, sock_filter, sockaddr_in6, sockaddr_storage, socklen_t};

use super::{Ancillary, checked, open, origin, set_mark, set_option, set_room, tell_origin};
use crate::packet::Family;
use crate::packet::buffer::Origin;

/// Receptions of one system call; each may be 64 datagrams.
pub(in crate::io) const RECEPTIONS: usize = 8;
const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
/// Where key managers take ESP in UDP (RFC 3948).
const NAT_PORT: u16 = 4500;
const UDP_SEGMENT: c_int = 103;
const UDP_GRO: c_int = 104;
const ON: c_int = 1;

/// What an IP header says of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) struct Header {
    /// Source address and port.
    pub(in crate::io) source: SocketAddr,
    /// Destination address and port.
    pub(in crate::io) destination: SocketAddr,
    /// TTL or hop limit.
    pub(in crate::io) hop_limit: u8,
    /// TOS or traffic class.
    pub(in crate::io) traffic_class: u8,
}

/// What one reception is.
#[derive(Clone, Copy, Debug)]
pub(in crate::io) struct Reception {
    /// Bytes of all its datagrams.
    pub(in crate::io) bytes: usize,
    /// Bytes of each datagram but the last.
    pub(in crate::io) segment_bytes: usize,
    /// The header that they share.
    pub(in crate::io) header: Header,
    /// How they have come.
    pub(in crate::io) origin: Origin,
}

fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: value and length are valid for writing, and the length is the value's.
    checked(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value)
}

/// The local address of a socket.
fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    // SAFETY: all-zero bytes are a valid address.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: address and length are valid for writing, and the length is the address's.
    checked(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut storage).cast(), &raw mut len) })?;
    address_of(&storage).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn address_of(storage: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is larger, aligned for any address, and of this family.
            let name = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from_bits(u32::from_be(name.sin_addr.s_addr));
            Some((address, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*std::ptr::from_ref(storage).cast::<sockaddr_in6>() };
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some((address, u16::from_be(name.sin6_port)).into())
        }
        _ => None,
    }
}

fn storage_of(address: SocketAddr) -> (sockaddr_storage, socklen_t) {
    // SAFETY: all-zero bytes are valid addresses.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let port = address.port().to_be();
    let len = match address.ip() {
        IpAddr::V4(ip) => {
            // SAFETY: as above; the storage is larger and aligned for any address.
            unsafe {
                let mut name: libc::sockaddr_in = zeroed();
                name.sin_family = libc::AF_INET as u16;
                name.sin_port = port;
                name.sin_addr.s_addr = ip.to_bits().to_be();
                (&raw mut storage).cast::<libc::sockaddr_in>().write(name);
            }
            size_of::<libc::sockaddr_in>()
        }
        IpAddr::V6(ip) => {
            // SAFETY: as above.
            unsafe {
                let mut name: sockaddr_in6 = zeroed();
                name.sin6_family = libc::AF_INET6 as u16;
                name.sin6_port = port;
                name.sin6_addr.s6_addr = ip.octets();
                (&raw mut storage).cast::<sockaddr_in6>().write(name);
            }
            size_of::<sockaddr_in6>()
        }
    };
    (storage, len as socklen_t)
}

/// A UDP socket that sends and receives in bulk, bound to an address, and to `share`'s port.
pub(in crate::io) fn bulk_socket(
    address: SocketAddr,
    mark: u32,
    room_bytes: c_int,
    shares: bool,
) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    let socket = open(family, libc::SOCK_DGRAM, 0)?;
    let fd = socket.as_fd();
    set_mark(fd, mark)?;
    set_room(fd, room_bytes);
    let (level, options, probe) = match family {
        Family::V4 => (
            libc::IPPROTO_IP,
            [libc::IP_RECVTTL, libc::IP_RECVTOS],
            (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        ),
        Family::V6 => {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &ON)?;
            (
                libc::IPPROTO_IPV6,
                [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVTCLASS],
                (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
            )
        }
    };
    tell_origin(fd, family)?;
    for name in options {
        set_option(fd, level, name, &ON)?;
    }
    set_option(fd, level, probe.0, &probe.1)?;
    set_option(fd, libc::SOL_UDP, UDP_GRO, &ON)?;
    if shares {
        set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &ON)?;
        set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &ON)?;
    }
    let (storage, len) = storage_of(address);
    // SAFETY: the address is valid for its length and only read.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), len) })?;
    Ok(socket)
}

/// A second socket on the owner's port, and the address that both have. `program` says which of
/// them gets a datagram, 0 for the owner; it sees the payload.
///
/// Only beside an owner that does not share its port in a way of its own. Another one of its kind
/// must be able to take over at any time: one that shares its address (`SO_REUSEADDR`) can, and at
/// [`NAT_PORT`] the shim sees to it. The owner itself refuses others as before.
pub(in crate::io) fn socket_beside(
    owner: BorrowedFd<'_>,
    program: &[sock_filter],
    mark: u32,
    room_bytes: c_int,
) -> io::Result<(OwnedFd, SocketAddr)> {
    let address = local_address(owner)?;
    let flag = |level, name| option(owner, level, name).map(|value| value != 0);
    let both = address.is_ipv6() && !flag(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
    let shared = flag(libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
    let shares_address = flag(libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    if both || shared || !shares_address && address.port() != NAT_PORT {
        return Err(io::ErrorKind::Unsupported.into());
    }
    set_option(owner, libc::SOL_SOCKET, libc::SO_REUSEADDR, &ON)?;
    set_option(owner, libc::SOL_SOCKET, libc::SO_REUSEPORT, &ON)?;
    let beside = bulk_socket(address, mark, room_bytes, true).and_then(|socket| {
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        let name = SO_ATTACH_REUSEPORT_CBPF;
        set_option(socket.as_fd(), libc::SOL_SOCKET, name, &program)?;
        Ok(socket)
    });
    if !shares_address {
        // The host asks for it only when somebody binds.
        set_option(owner, libc::SOL_SOCKET, libc::SO_REUSEADDR, &0)?;
    }
    match beside {
        Ok(socket) => Ok((socket, address)),
        Err(error) => {
            let _ = set_option(owner, libc::SOL_SOCKET, libc::SO_REUSEPORT, &0);
            Err(error)
        }
    }
}

/// Sends datagrams, each but the last `segment_bytes` long, that `parts` are together. The
/// header's destination port counts, and the source's address; its port is the socket's.
pub(in crate::io) fn send_segments(
    fd: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    segment_bytes: u16,
    header: &Header,
) -> io::Result<()> {
    let (mut name, name_len) = storage_of(header.destination);
    let mut control = Ancillary([0; 192]);
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len();
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let (hop_limit, class) = (
        c_int::from(header.hop_limit),
        c_int::from(header.traffic_class),
    );
    let mut writer = Writer::new(&message);
    if parts.len() > 1 {
        writer.push(libc::SOL_UDP, UDP_SEGMENT, segment_bytes);
    }
    match header.source.ip() {
        IpAddr::V4(source) => {
            // SAFETY: all-zero bytes are a valid in_pktinfo.
            let mut info: libc::in_pktinfo = unsafe { zeroed() };
            info.ipi_spec_dst.s_addr = source.to_bits().to_be();
            writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            writer.push(libc::IPPROTO_IP, libc::IP_TTL, hop_limit);
            writer.push(libc::IPPROTO_IP, libc::IP_TOS, class);
        }
        IpAddr::V6(source) => {
            // SAFETY: all-zero bytes are a valid in6_pktinfo.
            let mut info: libc::in6_pktinfo = unsafe { zeroed() };
            info.ipi6_addr.s6_addr = source.octets();
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, hop_limit);
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
        }
    }
    message.msg_controllen = writer.bytes;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message names bytes, an address and control messages that outlive the call;
    // an IoSlice is an iovec.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Control messages of a message whose control buffer is all zeros.
struct Writer<'a> {
    message: &'a libc::msghdr,
    next: *mut libc::cmsghdr,
    bytes: usize,
}

impl<'a> Writer<'a> {
    fn new(message: &'a libc::msghdr) -> Self {
        Self {
            message,
            // SAFETY: the message has a control buffer.
            next: unsafe { libc::CMSG_FIRSTHDR(message) },
            bytes: 0,
        }
    }

    /// Appends one; those of [`send_segments`] together are less than its buffer.
    fn push<T>(&mut self, level: c_int, kind: c_int, value: T) {
        let size = size_of::<T>() as libc::c_uint;
        if self.next.is_null() {
            return;
        }
        // SAFETY: `next` is a header inside of the buffer, as CMSG_FIRSTHDR and CMSG_NXTHDR give
        // it, and there is room for this value behind it, since the buffer was sized for all.
        unsafe {
            (*self.next).cmsg_level = level;
            (*self.next).cmsg_type = kind;
            (*self.next).cmsg_len = libc::CMSG_LEN(size) as usize;
            libc::CMSG_DATA(self.next)
                .cast::<T>()
                .write_unaligned(value);
            self.bytes += libc::CMSG_SPACE(size) as usize;
            self.next = libc::CMSG_NXTHDR(self.message, self.next);
        }
    }
}

/// Receives into `rooms`, from the first on; what each of them got. Never waits. `port` is the
/// socket's own; `None` is a reception that does not tell where it went to.
pub(in crate::io) fn receive_segments(
    fd: BorrowedFd<'_>,
    rooms: &mut [Box<[u8]>; RECEPTIONS],
    port: u16,
    receptions: &mut [Option<Reception>; RECEPTIONS],
) -> io::Result<usize> {
    // SAFETY: all-zero bytes are a valid mmsghdr, iovec and address.
    let (mut messages, mut parts, mut sources): (
        [libc::mmsghdr; RECEPTIONS],
        [libc::iovec; RECEPTIONS],
        [sockaddr_storage; RECEPTIONS],
    ) = unsafe { zeroed() };
    let mut ancillary = [Ancillary([0; 192]); RECEPTIONS];
    let slots = messages
        .iter_mut()
        .zip(&mut parts)
        .zip(sources.iter_mut().zip(&mut ancillary));
    for (((message, part), (source, ancillary)), room) in slots.zip(rooms) {
        part.iov_base = room.as_mut_ptr().cast::<c_void>();
        part.iov_len = room.len();
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = std::ptr::from_mut(source).cast();
        message.msg_hdr.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
        message.msg_hdr.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = ancillary.0.len();
    }
    // SAFETY: every message names rooms that are valid for writing and outlive the call.
    let count = checked(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            RECEPTIONS as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })?;
    let received = messages.iter().zip(&sources).take(count);
    for ((message, source), slot) in received.zip(receptions) {
        *slot = reception(message, source, port);
    }
    Ok(count)
}

fn reception(message: &libc::mmsghdr, source: &sockaddr_storage, port: u16) -> Option<Reception> {
    let bytes = message.msg_len as usize;
    let mut segment_bytes = bytes;
    let mut destination = None;
    let (mut hop_limit, mut traffic_class) = (64, 0);
    // SAFETY: the kernel has filled the control buffer up to msg_controllen, and each message's
    // data has the type that level and type say.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message.msg_hdr);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_UDP, UDP_GRO) => {
                    let size = data.cast::<c_int>().read_unaligned();
                    segment_bytes = usize::try_from(size).unwrap_or(bytes);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let address = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
                    destination = Some(IpAddr::V4(address));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    hop_limit = data.cast::<c_int>().read_unaligned() as u8;
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => traffic_class = data.read(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    traffic_class = data.cast::<c_int>().read_unaligned() as u8;
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message.msg_hdr, header);
        }
    }
    Some(Reception {
        bytes,
        segment_bytes: segment_bytes.max(1),
        header: Header {
            source: address_of(source)?,
            destination: SocketAddr::new(destination?, port),
            hop_limit,
            traffic_class,
        },
        // SAFETY: the kernel has filled this message.
        origin: unsafe { origin(&message.msg_hdr) },
    })
}
