//! Where packets come from and go to.
//!
//! A [`PacketIo`] gives whole IP packets and takes whole IP packets: what it
//! does not give (an IPv6 header) is made good here, so that the engine never
//! knows where a packet came from. A TUN device gives and takes frames of up to
//! 64 KiB that are several packets.
//!
//! * [`mem`]: two ends in memory, for tests.
//! * [`tun`]: plain packets, from and to the host's IP; [`marked`]: such as have a mark.
//! * [`raw`]: protected packets, by protocol number; and any packet, outward.
//! * [`udp_encap`]: ESP in UDP, beside the key manager's own socket.
//! * [`bulk`]: the same, many packets at once, where the key manager's socket allows it.
//! * `sys`: the system calls. The only unsafe code of this crate.
//!
//! Nothing here blocks, and nothing but `tun::Tun::open` opens a file.

pub mod bulk;
pub mod marked;
pub mod mem;
pub mod raw;
mod sys;
pub mod tun;
pub mod udp_encap;
mod vnet;

use std::io;

use crate::packet::PacketBuf;

/// A source and sink of IP packets.
pub trait PacketIo {
    /// Fills buffers from the front of `packets`; how many were, 0 when nothing waits.
    ///
    /// # Errors
    /// The device's; it can be tried again.
    fn receive(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize>;

    /// Sends packets; what became of them.
    fn send(&mut self, packets: &[PacketBuf]) -> Sent;

    /// Whether packets wait that have been taken from the host already.
    fn has_more(&self) -> bool {
        false
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets that went.
    pub packets: usize,
    /// Packets that were too long for their route.
    pub too_long: usize,
    /// Packets that were lost for another reason.
    pub lost: usize,
}

impl Sent {
    /// Counts the fate that some packets share.
    fn count(&mut self, packets: usize, result: &io::Result<()>) {
        let counter = match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => &mut self.packets,
            Err(Some(libc::EMSGSIZE)) => &mut self.too_long,
            Err(_) => &mut self.lost,
        };
        *counter += packets;
    }
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.too_long += other.too_long;
        self.lost += other.lost;
    }
}
