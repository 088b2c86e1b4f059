//! The Internet checksum (RFC 1071, RFC 1624).

use super::Family;

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

    proptest! {
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
