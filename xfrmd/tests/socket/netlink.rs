//! NETLINK_XFRM sockets and messages, through libc's symbols.

use std::io;
use std::mem::{size_of, zeroed};

use libc::{c_int, c_void, sockaddr_nl, socklen_t};

pub(crate) const XFRM_MSG_NEWPOLICY: u16 = 0x13;
pub(crate) const XFRM_MSG_GETPOLICY: u16 = 0x15;
pub(crate) const XFRM_MSG_NEWSADINFO: u16 = 0x22;
pub(crate) const XFRM_MSG_GETSADINFO: u16 = 0x23;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
/// `XFRMNLGRP_POLICY`.
pub(crate) const GROUP_POLICY: u32 = 4;

pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

/// A result that must be an errno.
#[track_caller]
pub(crate) fn fails(result: isize, errno_wanted: i32) {
    assert_eq!((result, errno()), (-1, errno_wanted));
}

/// A result that must not be.
#[track_caller]
pub(crate) fn works(result: isize) -> usize {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result as usize
}

/// A message.
pub(crate) fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    out
}

pub(crate) fn sad_info(seq: u32) -> Vec<u8> {
    message(XFRM_MSG_GETSADINFO, REQUEST, seq, &[0; 4])
}

/// A policy for 10.x.x.x/32 to 11.0.0.1/32, out.
pub(crate) fn new_policy(number: u32, flags: u16) -> Vec<u8> {
    let mut body = [0_u8; 168];
    body[..4].copy_from_slice(&[11, 0, 0, 1]);
    body[16..20].copy_from_slice(&(0x0a00_0000 | number).to_be_bytes());
    body[40..42].copy_from_slice(&2_u16.to_ne_bytes());
    body[42] = 32;
    body[43] = 32;
    // Unlimited by bytes and packets.
    body[56..88].fill(0xff);
    body[160] = 1;
    message(XFRM_MSG_NEWPOLICY, REQUEST | flags, number, &body)
}

pub(crate) fn dump_policies(seq: u32) -> Vec<u8> {
    message(XFRM_MSG_GETPOLICY, REQUEST | DUMP, seq, &[])
}

/// Type and sequence number of a message.
pub(crate) fn head(bytes: &[u8]) -> (u16, u32) {
    (
        u16::from_ne_bytes([bytes[4], bytes[5]]),
        u32::from_ne_bytes(bytes[8..12].try_into().unwrap()),
    )
}

/// Types of all messages of a datagram.
pub(crate) fn kinds(mut bytes: &[u8]) -> Vec<u16> {
    let mut kinds = Vec::new();
    while bytes.len() >= 16 {
        kinds.push(head(bytes).0);
        let len = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        bytes = &bytes[bytes.len().min((len + 3) & !3)..];
    }
    kinds
}

/// The positive errno of an `NLMSG_ERROR`.
pub(crate) fn error_of(bytes: &[u8]) -> i32 {
    assert_eq!(head(bytes).0, NLMSG_ERROR);
    -i32::from_ne_bytes(bytes[16..20].try_into().unwrap())
}

pub(crate) fn address(port: u32, groups: u32) -> sockaddr_nl {
    let mut address: sockaddr_nl = unsafe { zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_pid = port;
    address.nl_groups = groups;
    address
}

/// What a receive gave: the bytes, and where they came from.
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) port: u32,
    pub(crate) groups: u32,
}

/// A socket; closed by hand where a case is about closing.
#[derive(Clone, Copy)]
pub(crate) struct Xfrm(pub(crate) c_int);

impl Xfrm {
    pub(crate) fn open_with(kind: c_int) -> Self {
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, 6) };
        works(fd as isize);
        Self(fd)
    }

    pub(crate) fn open() -> Self {
        Self::open_with(libc::SOCK_RAW | libc::SOCK_CLOEXEC)
    }

    pub(crate) fn bound(groups: u32) -> Self {
        let socket = Self::open();
        works(socket.bind(0, groups));
        socket
    }

    pub(crate) fn bind(self, port: u32, groups: u32) -> isize {
        let address = address(port, groups);
        let len = size_of::<sockaddr_nl>() as socklen_t;
        unsafe { libc::bind(self.0, (&raw const address).cast(), len) as isize }
    }

    /// Port and groups.
    pub(crate) fn name(self) -> (u32, u32) {
        let mut address = address(0, 0);
        let mut len = 112_u32;
        let mut room = [0_u8; 112];
        let result = unsafe { libc::getsockname(self.0, room.as_mut_ptr().cast(), &raw mut len) };
        works(result as isize);
        assert_eq!(len, 12);
        unsafe {
            std::ptr::copy_nonoverlapping(room.as_ptr(), (&raw mut address).cast::<u8>(), 12);
        }
        (address.nl_pid, address.nl_groups)
    }

    pub(crate) fn send(self, bytes: &[u8]) -> isize {
        unsafe { libc::send(self.0, bytes.as_ptr().cast(), bytes.len(), 0) }
    }

    pub(crate) fn send_to(self, bytes: &[u8], to: &sockaddr_nl, len: usize, flags: c_int) -> isize {
        unsafe {
            libc::sendto(
                self.0,
                bytes.as_ptr().cast(),
                bytes.len(),
                flags,
                std::ptr::from_ref(to).cast(),
                len as socklen_t,
            )
        }
    }

    pub(crate) fn recv_into(self, buffer: &mut [u8], flags: c_int) -> isize {
        unsafe { libc::recv(self.0, buffer.as_mut_ptr().cast(), buffer.len(), flags) }
    }

    /// `msg_flags` of a message that is looked at.
    pub(crate) fn peeked_flags(self, buffer: &mut [u8]) -> c_int {
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        let len = unsafe { libc::recvmsg(self.0, &raw mut message, libc::MSG_PEEK) };
        assert_eq!(works(len).min(buffer.len()), works(len));
        assert_eq!(message.msg_iovlen, 1);
        message.msg_flags
    }

    /// What is queued now.
    #[track_caller]
    pub(crate) fn recv(self) -> Datagram {
        self.recv_with(libc::MSG_DONTWAIT)
    }

    #[track_caller]
    pub(crate) fn recv_with(self, flags: c_int) -> Datagram {
        let mut bytes = vec![0; 32768];
        let mut from = address(9, 9);
        let mut len = size_of::<sockaddr_nl>() as socklen_t;
        let result = unsafe {
            libc::recvfrom(
                self.0,
                bytes.as_mut_ptr().cast::<c_void>(),
                bytes.len(),
                flags,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        bytes.truncate(works(result));
        assert_eq!(len, 12);
        Datagram {
            bytes,
            port: from.nl_pid,
            groups: from.nl_groups,
        }
    }

    /// Nothing is queued.
    #[track_caller]
    pub(crate) fn is_quiet(self) {
        fails(
            self.recv_into(&mut [0; 64], libc::MSG_DONTWAIT),
            libc::EAGAIN,
        );
    }

    /// Asks for SADINFO and gets it at once.
    #[track_caller]
    pub(crate) fn asks(self, seq: u32) {
        works(self.send(&sad_info(seq)));
        let reply = self.recv();
        assert_eq!(head(&reply.bytes), (XFRM_MSG_NEWSADINFO, seq));
        assert_eq!((reply.port, reply.groups), (0, 0));
    }

    /// Sends a request that is acknowledged; its errno.
    #[track_caller]
    pub(crate) fn request(self, bytes: &[u8]) -> i32 {
        works(self.send(bytes));
        error_of(&self.recv().bytes)
    }

    pub(crate) fn set(self, level: c_int, name: c_int, value: c_int) -> isize {
        unsafe {
            libc::setsockopt(
                self.0,
                level,
                name,
                (&raw const value).cast(),
                size_of::<c_int>() as socklen_t,
            ) as isize
        }
    }

    #[track_caller]
    pub(crate) fn option<T: Default + Copy>(self, level: c_int, name: c_int) -> T {
        let mut value = T::default();
        let mut len = size_of::<T>() as socklen_t;
        let result =
            unsafe { libc::getsockopt(self.0, level, name, (&raw mut value).cast(), &raw mut len) };
        works(result as isize);
        value
    }

    pub(crate) fn close(self) {
        works(unsafe { libc::close(self.0) } as isize);
    }
}
