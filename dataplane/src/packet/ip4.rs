//! The IPv4 header (RFC 791) as `ip_rcv` checks it and `ip_local_out` fills it.

use super::checksum::{Sum, checksum};
use super::{PacketBuf, be16, put};
use crate::drop_reason::DropReason;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Don't fragment, in the fragment word.
pub const DF: u16 = 0x4000;
/// More fragments.
pub const MF: u16 = 0x2000;
/// The fragment offset, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// The fields of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of it, options included: 20 to 60.
    pub header_bytes: usize,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Total length as the packet states it.
    pub total_bytes: usize,
    /// Identification.
    pub ident: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
}

impl Header {
    /// Reads the header of `packet`; `None` unless version and header length
    /// make sense and all of it is there. Checksum and total length are not judged.
    #[must_use]
    #[inline(always)]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; HEADER_BYTES] = packet.first_chunk()?;
        let header_bytes = usize::from(fixed[0] & 15) * 4;
        if fixed[0] >> 4 != 4 || header_bytes < HEADER_BYTES || packet.len() < header_bytes {
            return None;
        }
        let word = |high, low| u16::from_be_bytes([high, low]);
        Some(Self {
            header_bytes,
            tos: fixed[1],
            total_bytes: usize::from(word(fixed[2], fixed[3])),
            ident: word(fixed[4], fixed[5]),
            fragment: word(fixed[6], fixed[7]),
            ttl: fixed[8],
            protocol: fixed[9],
            src: [fixed[12], fixed[13], fixed[14], fixed[15]],
            dst: [fixed[16], fixed[17], fixed[18], fixed[19]],
        })
    }

    /// Whether the packet is a part of one (`ip_is_fragment`).
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & (MF | OFFSET_MASK) != 0
    }
}

/// Checks a packet as it comes from a device and cuts what lies behind it
/// (`net/ipv4/ip_input.c ip_rcv_core`).
///
/// # Errors
/// A header that is wrong or fails its checksum, or a packet shorter than it says.
#[inline]
pub fn receive(packet: &mut PacketBuf) -> Result<Header, DropReason> {
    let header = Header::parse(packet).ok_or(DropReason::InnerHeader)?;
    let is_right = match header.header_bytes {
        HEADER_BYTES => packet.first_chunk().is_some_and(sums_up),
        bytes => packet.get(..bytes).map(checksum) == Some(0),
    };
    if !is_right {
        return Err(DropReason::InnerHeader);
    }
    if packet.len() < header.total_bytes {
        return Err(DropReason::InnerTruncated);
    }
    if header.total_bytes < header.header_bytes {
        return Err(DropReason::InnerHeader);
    }
    packet.truncate(header.total_bytes);
    Ok(header)
}

/// Whether the checksum of a header without options is right, as most have none.
#[inline]
fn sums_up(header: &[u8; HEADER_BYTES]) -> bool {
    let (words, _) = header.as_chunks();
    // In the machine's own order: a sum of all ones is one in any (RFC 1071, section 2 (B)).
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum == 0xffff
}

/// Sets the total length to that of `packet` and the checksum to what it must
/// be (`ip_send_check`); `None` when the packet is no IPv4 or is too long.
#[inline]
pub fn finish(packet: &mut [u8]) -> Option<()> {
    let total = u16::try_from(packet.len()).ok()?;
    let header = packet.first_chunk_mut::<HEADER_BYTES>()?;
    let (&[first, second, third, src, dst], _) = header.as_chunks::<4>() else {
        return None;
    };
    if header[0] != 0x45 {
        [header[2], header[3]] = total.to_be_bytes();
        return set_checksum(packet);
    }
    // The processor waits where it reads more than it has just written, so nothing is written
    // before all is read.
    const UPPER: u32 = 0xffff_0000;
    let check = Sum::new()
        .two_words(u32::from_be_bytes(first) & UPPER | u32::from(total))
        .two_words(u32::from_be_bytes(second))
        .two_words(u32::from_be_bytes(third) & UPPER)
        .two_words(u32::from_be_bytes(src))
        .two_words(u32::from_be_bytes(dst));
    [header[2], header[3]] = total.to_be_bytes();
    [header[10], header[11]] = check.finish().to_be_bytes();
    Some(())
}

/// Sets the checksum to what it must be.
#[inline]
pub fn set_checksum(packet: &mut [u8]) -> Option<()> {
    if let [0x45, ..] = packet
        && let Some(fixed) = packet.first_chunk_mut::<HEADER_BYTES>()
    {
        [fixed[10], fixed[11]] = [0, 0];
        [fixed[10], fixed[11]] = checksum(fixed).to_be_bytes();
        return Some(());
    }
    put(packet, 10, &[0, 0])?;
    let header_bytes = usize::from(packet.first()? & 15) * 4;
    let check = checksum(packet.get(..header_bytes)?);
    put(packet, 10, &check.to_be_bytes())
}

/// Changes the type of service, and the checksum by as much.
pub fn set_tos(packet: &mut [u8], tos: u8) -> Option<()> {
    let (old, check) = (be16(packet, 0)?, be16(packet, 10)?);
    *packet.get_mut(1)? = tos;
    let new = be16(packet, 0)?;
    let check = super::checksum::replace_word(check, old, new);
    put(packet, 10, &check.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet() -> Vec<u8> {
        let mut packet = vec![0x45, 0xb8, 0, 0, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(b"payload");
        finish(&mut packet).unwrap();
        packet
    }

    #[test]
    fn what_it_finishes_it_receives() {
        let mut buffer = PacketBuf::copy_of(&packet());
        let header = receive(&mut buffer).unwrap();
        assert_eq!(header.total_bytes, 27);
        assert_eq!((header.tos, header.ident), (0xb8, 0x1234));
        assert!(!header.is_fragment());
    }

    #[test]
    fn bytes_behind_the_packet_are_cut() {
        let mut bytes = packet();
        bytes.extend([0; 50]);
        let mut buffer = PacketBuf::copy_of(&bytes);
        receive(&mut buffer).unwrap();
        assert_eq!(&*buffer, &packet()[..]);
    }

    #[test]
    fn refuses_what_ip_rcv_refuses() {
        let refused = |spoil: fn(&mut Vec<u8>)| {
            let mut bytes = packet();
            spoil(&mut bytes);
            receive(&mut PacketBuf::copy_of(&bytes)).unwrap_err()
        };
        assert_eq!(refused(|p| p[8] = 1), DropReason::InnerHeader);
        assert_eq!(refused(|p| p[0] = 0x44), DropReason::InnerHeader);
        assert_eq!(refused(|p| p[0] = 0x4f), DropReason::InnerHeader);
        assert_eq!(refused(|p| p.truncate(19)), DropReason::InnerHeader);
        assert_eq!(refused(|p| p.truncate(26)), DropReason::InnerTruncated);
        assert_eq!(refused(Vec::clear), DropReason::InnerHeader);
    }

    /// An inner packet that states a total length of zero was once taken as it was (2025, IPTFS and ESP GRO).
    #[test]
    fn zero_total_length() {
        let mut bytes = packet();
        bytes[2..4].fill(0);
        set_checksum(&mut bytes).unwrap();
        let refused = receive(&mut PacketBuf::copy_of(&bytes)).unwrap_err();
        assert_eq!(refused, DropReason::InnerHeader);
    }

    proptest! {
        #[test]
        fn a_header_sums_up_if_its_checksum_is_zero(mut header: [u8; HEADER_BYTES], spoilt: bool) {
            header[0] = 0x45;
            set_checksum(&mut header).unwrap();
            prop_assert!(sums_up(&header));
            header[5] ^= u8::from(spoilt);
            prop_assert_eq!(sums_up(&header), checksum(&header) == 0);
        }

        #[test]
        fn a_changed_tos_keeps_the_checksum_right(tos: u8) {
            let mut bytes = packet();
            set_tos(&mut bytes, tos).unwrap();
            prop_assert_eq!(checksum(&bytes[..20]), 0);
            prop_assert_eq!(bytes[1], tos);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut buffer = PacketBuf::copy_of(&bytes);
            let _ = receive(&mut buffer);
            let mut bytes = bytes;
            let _ = finish(&mut bytes);
            let _ = set_tos(&mut bytes, 1);
        }
    }
}
