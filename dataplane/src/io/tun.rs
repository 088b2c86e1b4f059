//! A TUN device: packets that the host's IP routes to us, and back into it.
//!
//! With `IFF_VNET_HDR` and offloads the kernel hands over up to 64 KiB of TCP
//! or UDP in one read and leaves checksums to be done, and takes as much in one
//! write; measured, that is ten times the throughput of one call a packet.
//! What is read is cut by the engine ([`crate::path::Worker::output_offloaded`]),
//! what is written is joined here ([`crate::packet::join`]).
//!
//! Several threads may use a device at once, each with a [`Joiner`] of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::vnet;
use super::{Sent, sys};
use crate::packet::join::{Joiner, MOST_PACKETS};
use crate::packet::segment::Offload;
use crate::packet::{Family, PacketBuf};

/// Longest device name.
const NAME_BYTES: usize = 15;

/// A TUN device, for as long as this value lives.
#[derive(Debug)]
pub struct Tun {
    device: File,
    /// The host cuts UDP too (since Linux 6.2).
    cuts_udp: bool,
}

impl Tun {
    /// Makes a device of that name in the thread's network namespace.
    ///
    /// # Errors
    /// ENOENT without `/dev/net/tun`, EPERM without CAP_NET_ADMIN, EBUSY when
    /// somebody has the device, EINVAL for a bad name.
    pub fn open(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let cuts_udp = sys::make_tun(device.as_fd(), name)?;
        Ok(Self { device, cuts_udp })
    }

    /// Goes on with the descriptor of another one.
    ///
    /// # Errors
    /// The host's: it is no device any more.
    pub fn adopt(device: OwnedFd) -> io::Result<Self> {
        let cuts_udp = sys::set_offloads(device.as_fd())?;
        let device = device.into();
        Ok(Self { device, cuts_udp })
    }

    /// Becomes readable when a packet waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Reads a packet and what is left to be done to it; `None` when nothing waits.
    ///
    /// The buffer must have room for [`crate::packet::buffer::MAX_PACKET`].
    ///
    /// # Errors
    /// The device's; it can be tried again.
    pub fn read(&self, packet: &mut PacketBuf) -> io::Result<Option<Offload>> {
        loop {
            let mut header = [0; vnet::BYTES];
            let mut parts = [
                IoSliceMut::new(&mut header),
                IoSliceMut::new(packet.offer()),
            ];
            let len = match (&self.device).read_vectored(&mut parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                other => other?,
            };
            packet.truncate(len.saturating_sub(vnet::BYTES));
            // What makes no sense is passed by.
            let offload = vnet::parse(&header).filter(|_| Family::of(packet).is_some());
            if offload.is_some() {
                return Ok(offload);
            }
        }
    }

    /// Takes packets that nobody wants.
    pub(super) fn discard(&self) {
        let mut start = [0; vnet::BYTES + 1];
        while (&self.device).read(&mut start).is_ok() {}
    }

    /// Writes packets, joined where that is possible, which changes the headers of some.
    pub fn write(&self, packets: &mut [PacketBuf], joiner: &mut Joiner) -> Sent {
        joiner.join(packets, self.cuts_udp);
        let mut sent = Sent::default();
        for frame in joiner.frames() {
            let mut parts = [IoSlice::new(&[]); 1 + MOST_PACKETS];
            let mut payloads = joiner.parts(frame, packets).peekable();
            let first = payloads.peek().copied().unwrap_or_default();
            let header = vnet::write(frame, Family::of(first).unwrap_or(Family::V4));
            let bytes = std::iter::once(&header[..]).chain(payloads);
            for (slot, part) in parts.iter_mut().zip(bytes) {
                *slot = IoSlice::new(part);
            }
            let parts = parts.get(..=frame.count).unwrap_or_default();
            let result = (&self.device).write_vectored(parts);
            sent.count(frame.count, &result.map(drop));
        }
        sent
    }
}
