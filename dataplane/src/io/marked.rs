//! Packets with their firewall mark.
//!
//! A TUN device does not tell the mark of a packet. A packet socket does
//! (`SO_RCVMARK`, Linux 5.19), and sees the same frames: so this is a device
//! that nobody reads, and a socket that looks at what the host sends to it.
//! Marked packets take a call each, and are lost where the socket's room ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::tun::Tun;
use super::vnet;
use crate::packet::segment::Offload;
use crate::packet::{Family, PacketBuf};

/// Receive buffer.
const ROOM_BYTES: i32 = 32 << 20;

/// A device whose packets come with their marks, for as long as this value lives.
#[derive(Debug)]
pub struct Marked {
    device: Tun,
    socket: OwnedFd,
}

impl Marked {
    /// Looks at what goes to `device`, whose name this is.
    ///
    /// # Errors
    /// ENOPROTOOPT from a host that tells no marks, EPERM without CAP_NET_RAW.
    pub fn new(device: Tun, name: &str) -> io::Result<Self> {
        let socket = super::sys::marked::packet_socket(name, ROOM_BYTES)?;
        Ok(Self { device, socket })
    }

    /// Becomes readable when a packet waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads a packet, what is left to be done to it, and its mark; `None` when nothing waits.
    ///
    /// # Errors
    /// The socket's; it can be tried again.
    pub fn read(&self, packet: &mut PacketBuf) -> io::Result<Option<(Offload, u32)>> {
        loop {
            let mut header = [0; vnet::BYTES];
            let read =
                super::sys::marked::receive(self.socket.as_fd(), &mut header, packet.offer());
            let (len, mark) = match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.device.discard();
                    return Ok(None);
                }
                other => other?,
            };
            packet.truncate(len.saturating_sub(vnet::BYTES));
            let offload = vnet::parse(&header).filter(|_| Family::of(packet).is_some());
            if let Some(offload) = offload {
                return Ok(Some((offload, mark)));
            }
        }
    }
}
