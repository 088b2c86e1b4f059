//! A TUN device: packets that the host's IP routes to us, and back into it.
//!
//! With `IFF_VNET_HDR` and offloads the kernel hands over up to 64 KiB of TCP
//! or UDP in one read and leaves checksums to be done; measured, that is ten
//! times the throughput of one read a packet. SAs protect packets, so what
//! comes in one piece is cut here ([`crate::packet::segment`]).
//!
//! Not yet: joining segments on the way into the host.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::vnet;
use super::{PacketIo, Sent, sys};
use crate::packet::buffer::MAX_PACKET;
use crate::packet::segment::{Offload, Segmenter, complete_checksum};
use crate::packet::{Family, PacketBuf};

/// Longest device name.
const NAME_BYTES: usize = 15;

/// A TUN device, for as long as this value lives.
#[derive(Debug)]
pub struct Tun {
    device: File,
    /// A packet as the device gives it.
    whole: PacketBuf,
    /// What it was cut into, and buffers for that.
    cut: VecDeque<PacketBuf>,
    spare: Vec<PacketBuf>,
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
        sys::make_tun(device.as_fd(), name)?;
        Ok(Self::adopt(device.into()))
    }

    /// Goes on with the descriptor of another one.
    #[must_use]
    pub fn adopt(device: OwnedFd) -> Self {
        Self {
            device: device.into(),
            whole: PacketBuf::with_capacity(MAX_PACKET),
            cut: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Becomes readable when a packet waits. Pieces of one that was read do not show.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Whether pieces of a packet that was read wait.
    #[must_use]
    pub fn has_pieces(&self) -> bool {
        !self.cut.is_empty()
    }

    /// Reads one packet into `self.whole`; `None` when nothing waits or it makes no sense.
    fn read(&mut self) -> io::Result<Option<Offload>> {
        let mut header = vnet::WHOLE;
        let room = self.whole.offer();
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(room)];
        let len = (&self.device).read_vectored(&mut parts)?;
        let offload = vnet::parse(&header);
        self.whole.truncate(len.saturating_sub(vnet::BYTES));
        Ok(offload.filter(|_| Family::of(&self.whole).is_some()))
    }

    /// Cuts what was read, or finishes it.
    fn cut(&mut self, offload: Offload) {
        let Self {
            whole, cut, spare, ..
        } = self;
        let mut buffer = || {
            spare
                .pop()
                .unwrap_or_else(|| PacketBuf::with_capacity(MAX_PACKET))
        };
        if offload.segment_bytes != 0 {
            let Some(mut segmenter) = Segmenter::new(whole, offload.segment_bytes) else {
                return;
            };
            loop {
                let mut packet = buffer();
                if segmenter.next_into(&mut packet) != Some(true) {
                    return;
                }
                cut.push_back(packet);
            }
        }
        if let Some((start, offset)) = offload.checksum
            && complete_checksum(whole, start, offset).is_none()
        {
            return;
        }
        let mut packet = buffer();
        if packet.fill(whole) {
            cut.push_back(packet);
        }
    }
}

impl PacketIo for Tun {
    fn receive(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize> {
        let mut count = 0;
        for slot in packets {
            while self.cut.is_empty() {
                match self.read() {
                    Ok(Some(offload)) => self.cut(offload),
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                    Err(_) if count > 0 => return Ok(count),
                    Err(error) => return Err(error),
                }
            }
            if let Some(mut packet) = self.cut.pop_front() {
                std::mem::swap(slot, &mut packet);
                self.spare.push(packet);
                count += 1;
            }
        }
        Ok(count)
    }

    fn send(&mut self, packets: &[PacketBuf]) -> Sent {
        let mut sent = Sent::default();
        for packet in packets {
            let parts = [IoSlice::new(&vnet::WHOLE), IoSlice::new(packet)];
            sent.count(&(&self.device).write_vectored(&parts).map(drop));
        }
        sent
    }
}
