//! Packets as bytes: the buffer they live in, IP headers, checksums, and what
//! IP itself does to packets (fragments, ICMP errors, segmentation).
//!
//! Contract of every function that reads a packet: any bytes at all are
//! allowed, the answer for bytes that make no sense is `None` or an error, and
//! the work is bounded by the length. Offsets in a parsed header were checked
//! against the bytes it was parsed from.

pub mod buffer;
pub mod checksum;
pub mod encap;
pub mod fragment;
pub mod icmp;
pub mod ip4;
pub mod ip6;
pub mod join;
pub mod reassembly;
pub mod segment;

pub use buffer::PacketBuf;

use xfrm_proto::consts::{AF_INET, AF_INET6};

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `AF_INET` or `AF_INET6`.
    #[must_use]
    pub const fn from_af(af: u16) -> Option<Self> {
        match af {
            AF_INET => Some(Self::V4),
            AF_INET6 => Some(Self::V6),
            _ => None,
        }
    }

    /// `AF_INET` or `AF_INET6`.
    #[must_use]
    pub const fn af(self) -> u16 {
        match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        }
    }

    /// The family that a packet's first four bits name.
    #[must_use]
    #[inline]
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }

    /// Bytes of a header without options.
    #[must_use]
    #[inline]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::V4 => ip4::HEADER_BYTES,
            Self::V6 => ip6::HEADER_BYTES,
        }
    }

    /// The protocol number of a packet of this family inside another.
    #[must_use]
    #[inline]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::V4 => xfrm_proto::consts::IPPROTO_IPIP,
            Self::V6 => xfrm_proto::consts::IPPROTO_IPV6,
        }
    }
}

/// Sets the length of an IP packet, and the checksum of an IPv4 header.
#[inline]
pub fn finish(packet: &mut [u8]) -> Option<()> {
    match Family::of(packet)? {
        Family::V4 => ip4::finish(packet),
        Family::V6 => ip6::finish(packet),
    }
}

/// Reads a 16-bit field.
#[inline]
pub(crate) fn be16(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?))
}

/// Reads a 32-bit field.
#[inline]
pub(crate) fn be32(packet: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*packet.get(at..)?.first_chunk()?))
}

/// Writes bytes at an offset.
#[inline]
pub(crate) fn put(packet: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    packet
        .get_mut(at..)?
        .get_mut(..bytes.len())?
        .copy_from_slice(bytes);
    Some(())
}
