//! The Internet checksum (RFC 1071, RFC 1624).

use xfrm_proto::consts::{IPPROTO_TCP, IPPROTO_UDP};

use super::{Family, be16, put};

/// A sum under way: 16-bit words in one's complement, not folded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// The sum with `bytes` added; they begin at an even offset, and an odd
    /// last byte is followed by a zero.
    #[must_use]
    #[inline]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        // In the machine's own order, which the compiler can do for many bytes at once: the folded
        // sum is the same but for its two bytes' order (RFC 1071, section 2 (B)).
        let (chunks, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = chunks
            .iter()
            .map(|chunk| u64::from(u32::from_ne_bytes(*chunk)))
            .sum();
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        self.0 += u64::from(u16::from_be(fold(sum)));
        self
    }

    /// The sum with one 16-bit word added.
    #[must_use]
    #[inline]
    pub fn word(mut self, word: u16) -> Self {
        self.0 += u64::from(word);
        self
    }

    /// The sum with two 16-bit words added.
    #[must_use]
    #[inline]
    pub fn two_words(mut self, words: u32) -> Self {
        self.0 += u64::from(words);
        self
    }

    /// The checksum: the complement of the folded sum.
    #[must_use]
    #[inline]
    pub const fn finish(self) -> u16 {
        !fold(self.0)
    }
}

/// One's complement addition of the words of a number.
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
#[inline]
const fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of `bytes`.
#[must_use]
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::new().bytes(bytes).finish()
}

/// The sum of the pseudo header of a transport protocol.
///
/// `addresses` are source and destination as they stand in the IP header.
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, transport_bytes: usize) -> Sum {
    let [.., b2, b1, b0] = transport_bytes.to_be_bytes();
    Sum::new()
        .bytes(addresses)
        .bytes(&[0, b2, b1, b0])
        .word(u16::from(protocol))
}

/// Source and destination of an IP packet, as [`pseudo_header`] takes them.
#[must_use]
pub fn addresses(packet: &[u8]) -> Option<&[u8]> {
    match Family::of(packet)? {
        Family::V4 => packet.get(12..20),
        Family::V6 => packet.get(8..40),
    }
}

/// Makes the checksum of TCP or UDP right that begins at `at` in an IP packet and ends with it. Other
/// protocols, UDP without a checksum, and what makes no sense stay as they are.
pub fn renew_transport(packet: &mut [u8], protocol: u8, at: usize) -> Option<()> {
    let transport_bytes = packet.len().checked_sub(at)?;
    let (field, bytes) = match protocol {
        IPPROTO_TCP => (at + 16, transport_bytes),
        IPPROTO_UDP if be16(packet, at + 6)? == 0 => return None,
        IPPROTO_UDP => (at + 6, usize::from(be16(packet, at + 4)?)),
        _ => return None,
    };
    put(packet, field, &[0; 2])?;
    let transport = packet.get(at..)?.get(..bytes)?;
    let sum = pseudo_header(addresses(packet)?, protocol, bytes).bytes(transport);
    let check = match sum.finish() {
        0 => 0xffff,
        check => check,
    };
    put(packet, field, &check.to_be_bytes())
}

/// A checksum after one of its words changed (RFC 1624, equation 3).
#[must_use]
pub fn replace_word(check: u16, old: u16, new: u16) -> u16 {
    Sum::new().word(!check).word(!old).word(new).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1071_example() {
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    /// A UDP datagram over IPv4 whose sum is right, if there is one.
    fn datagram(addresses: [u8; 8], payload: &[u8], with_sum: bool) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(addresses);
        packet.extend([1, 2, 3, 4]);
        let bytes = u16::try_from(payload.len() + 8).unwrap();
        packet.extend(bytes.to_be_bytes());
        packet.extend([0; 2]);
        packet.extend(payload);
        if with_sum {
            let sum = pseudo_header(&addresses, 17, usize::from(bytes)).bytes(&packet[20..]);
            packet[26..28].copy_from_slice(&sum.finish().to_be_bytes());
        }
        packet
    }

    #[test]
    fn other_addresses_have_another_sum() {
        let (here, there) = ([10, 0, 5, 1, 10, 0, 0, 2], [192, 0, 2, 1, 10, 0, 0, 2]);
        for payload in [&b""[..], b"odd", b"even"] {
            let mut packet = datagram(here, payload, true);
            packet[12..20].copy_from_slice(&there);
            renew_transport(&mut packet, 17, 20).unwrap();
            assert_eq!(packet, datagram(there, payload, true));
            let mut without = datagram(here, payload, false);
            assert_eq!(renew_transport(&mut without, 17, 20), None);
            assert_eq!(without, datagram(here, payload, false));
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_renewed(mut packet in proptest::collection::vec(any::<u8>(), 0..80), protocol in 0u8..20, at in 0usize..90) {
            let len = packet.len();
            renew_transport(&mut packet, protocol, at);
            prop_assert_eq!(packet.len(), len);
        }

        #[test]
        fn a_replaced_word_is_as_if_summed_anew(mut bytes in proptest::collection::vec(any::<u8>(), 8..64), at in 0usize..3, new: u16) {
            let check = checksum(&bytes);
            let old = u16::from_be_bytes([bytes[at * 2], bytes[at * 2 + 1]]);
            bytes[at * 2..at * 2 + 2].copy_from_slice(&new.to_be_bytes());
            let updated = replace_word(check, old, new);
            let anew = checksum(&bytes);
            // The two zeros of one's complement mean the same.
            prop_assert!(updated == anew || (updated ^ anew) == 0xffff);
        }

        #[test]
        fn sums_like_the_obvious_loop(bytes in proptest::collection::vec(any::<u8>(), 0..70)) {
            let mut sum = 0u32;
            for pair in bytes.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
            while sum >> 16 != 0 {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            prop_assert_eq!(checksum(&bytes), !u16::try_from(sum).unwrap());
        }
    }
}
