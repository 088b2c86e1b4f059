//! Messages to the host's rtnetlink and nf_tables, and sockets that wait for
//! what the host says to them.
//!
//! The host answers before `send` returns, so an answer is either there or
//! does not come.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::driver::host;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

pub(super) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;
/// A transaction may be as long as all policies of a namespace make it.
const SEND_BYTES: usize = 256 << 20;

/// Messages for one `send`.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    seq: u32,
}

impl Messages {
    /// Appends a message; `body` writes what follows its header.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.seq += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&self.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(&mut Body(&mut self.bytes));
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        set(&mut self.bytes, start, &len.to_ne_bytes());
    }
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(slot) = bytes
        .get_mut(at..)
        .and_then(|rest| rest.get_mut(..value.len()))
    {
        slot.copy_from_slice(value);
    }
}

/// What follows a message's header.
pub(crate) struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
    /// A fixed part, whose length is a multiple of four.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// An attribute.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(xfrm_proto::align4(self.0.len()), 0);
    }

    /// A number in the host's byte order.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number as nf_tables wants it.
    pub(super) fn big(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A string with its NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// An attribute of attributes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Body<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        inner(&mut Body(self.0));
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        set(self.0, start, &len.to_ne_bytes());
    }
}

/// A netlink socket of ours in some namespace.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// In the thread's network namespace.
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        Self::bound(fd)
    }

    /// Takes a netlink socket and gives it a port.
    pub(crate) fn bound(fd: OwnedFd) -> io::Result<Self> {
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        if setsockopt(&fd, sockopt::SndBufForce, &SEND_BYTES).is_err() {
            setsockopt(&fd, sockopt::SndBuf, &SEND_BYTES)?;
        }
        Ok(Self(fd))
    }

    /// Becomes a member of a group.
    pub(super) fn join(&self, group: i32) -> io::Result<()> {
        host::join(self.0.as_fd(), group)
    }

    /// Itself.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Sends messages; the first error that the host answers.
    pub(crate) fn transact(&self, messages: &Messages) -> io::Result<()> {
        let mut failed = Ok(());
        self.exchange(messages, |kind, payload| {
            if kind == NLMSG_ERROR
                && failed.is_ok()
                && let Some(code) = payload.first_chunk().map(|code| i32::from_ne_bytes(*code))
                && code != 0
            {
                failed = Err(io::Error::from_raw_os_error(-code));
            }
        })?;
        failed
    }

    /// Sends messages; `answer` sees type and payload of everything that the host answers.
    pub(super) fn exchange(
        &self,
        messages: &Messages,
        mut answer: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        send(self.0.as_raw_fd(), &messages.bytes, MsgFlags::empty())?;
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len) = recv(
            self.0.as_fd().as_raw_fd(),
            &mut buffer,
            MsgFlags::MSG_DONTWAIT,
        ) {
            let mut bytes = buffer.get(..len).unwrap_or_default();
            while let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() {
                let [a, b, c, d, kind_a, kind_b, ..] = *header;
                let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(0);
                let Some(payload) = bytes.get(HEADER_BYTES..len) else {
                    break;
                };
                answer(u16::from_ne_bytes([kind_a, kind_b]), payload);
                bytes = bytes.get(xfrm_proto::align4(len)..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// The attributes of a message's tail.
pub(super) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..len)?;
        bytes = bytes.get(xfrm_proto::align4(len)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NLA_F_NESTED, value))
    })
}
