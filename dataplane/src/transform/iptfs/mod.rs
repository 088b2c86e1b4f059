//! IPTFS: a tunnel whose outer packets carry as many inner ones, or as much of one, as they
//! have room for (RFC 9347, without its constant rate).
//!
//! Source: `net/xfrm/xfrm_iptfs.c`. An outer packet's payload is an AGGFRAG header and then data
//! blocks: inner packets one behind the other, of which the first may have begun in an earlier
//! payload and the last may end in a later one. ESP names it by next header 144.
//!
//! ```text
//!                      push                    pop
//!  inner packets ---> [send::Send: a queue] ---------> payload -> Transform::place, seal
//!                          init_delay
//!
//!                           take                      Sink::packet
//!  Transform::open, unwrap ------> [receive::Receive] ------------> inner packets
//!                                   drop_time
//! ```
//!
//! * [`send`]: the queue, aggregation and fragmentation;
//! * [`reorder`]: outer packets back in the order of their sequence numbers;
//! * [`receive`]: data blocks, and inner packets put together again.
//!
//! Both sides read no clock: time comes in, and `poll_timeout` says when to come again. What they
//! hold is bounded by the SA's configuration, and by the longest IP packet; memory that a busy
//! moment made them take is given back ([`KEPT_BYTES`]). A packet costs no allocation once they
//! have grown.
//!
//! Not as Linux has it, where Linux loses packets for no reason that its sender could know:
//! `docs/divergences.md` lists that.

pub mod receive;
pub mod reorder;
pub mod send;

use crate::drop_reason::DropReason;

pub use receive::{Receive, ReceiveParams};
pub(super) use send::room;
pub use send::{Popped, PushError, Send, SendParams};

/// The protocol number of an AGGFRAG payload (`IPPROTO_AGGFRAG`).
pub const IPPROTO_AGGFRAG: u8 = 144;

/// Bytes of the AGGFRAG header that Linux sends.
pub const HEADER_BYTES: usize = 4;
/// Bytes of the header with congestion control information, which Linux skips.
const CONGESTION_HEADER_BYTES: usize = 24;

const SUBTYPE_BASIC: u8 = 0;
const SUBTYPE_CONGESTION_CONTROL: u8 = 1;

/// A buffer that has grown beyond this is let go when it is empty.
pub const KEPT_BYTES: usize = 16 << 10;

/// Where goes what comes out of an IPTFS SA.
pub trait Sink {
    /// An inner packet, as long as it says, which enters as if it came from a device:
    /// [`ip4::receive`](crate::packet::ip4::receive) or its twin judges it.
    fn packet(&mut self, packet: &mut [u8]);

    /// Something died: a payload, or what it was a part of.
    fn dropped(&mut self, reason: DropReason);
}

/// An AGGFRAG header (RFC 9347 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    bytes: usize,
    /// Bytes in front of the first inner packet that begins in this payload.
    block_offset: usize,
}

impl Header {
    fn parse(payload: &[u8]) -> Result<Self, DropReason> {
        let &[subtype, flags, high, low] = payload.first_chunk().ok_or(DropReason::IptfsShort)?;
        let bytes = match subtype {
            SUBTYPE_BASIC => HEADER_BYTES,
            SUBTYPE_CONGESTION_CONTROL => CONGESTION_HEADER_BYTES,
            _ => return Err(DropReason::IptfsSubtype),
        };
        if payload.len() < bytes {
            return Err(DropReason::IptfsShort);
        }
        // QUIRK: iptfs_congestion_flags_are_refused. RFC 9347 has two of them in this byte.
        if flags != 0 {
            return Err(DropReason::IptfsFlags);
        }
        Ok(Self {
            bytes,
            block_offset: usize::from(u16::from_be_bytes([high, low])),
        })
    }

    fn write(block_offset: u16) -> [u8; HEADER_BYTES] {
        let [high, low] = block_offset.to_be_bytes();
        [SUBTYPE_BASIC, 0, high, low]
    }
}

#[cfg(test)]
mod tests;
