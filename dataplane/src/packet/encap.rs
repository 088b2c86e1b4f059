//! UDP encapsulation of ESP (RFC 3948): telling ESP from IKE and keepalives,
//! and the header itself.
//!
//! Source: `net/ipv4/xfrm4_input.c __xfrm4_udp_encap_rcv`, its IPv6 twin, and
//! `net/ipv4/esp4.c esp_output_udp_encap`.

use xfrm_proto::consts::{IPPROTO_UDP, UDP_ENCAP_ESPINUDP_NON_IKE};

use super::checksum::{addresses, pseudo_header};
use super::{Family, be16, put};

/// Bytes of a UDP header.
pub const HEADER_BYTES: usize = 8;
/// The marker in front of ESP in encapsulation type 1, all zeros.
const NON_IKE_MARKER_BYTES: usize = 8;

/// How an SA is encapsulated (`struct xfrm_encap_tmpl`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    /// `UDP_ENCAP_ESPINUDP`, or up to Linux 6.1 `UDP_ENCAP_ESPINUDP_NON_IKE`.
    pub kind: u16,
    /// UDP source port.
    pub sport: u16,
    /// UDP destination port.
    pub dport: u16,
}

impl Encap {
    /// Bytes in front of the ESP header.
    #[must_use]
    pub const fn header_bytes(&self) -> usize {
        match self.kind {
            UDP_ENCAP_ESPINUDP_NON_IKE => HEADER_BYTES + NON_IKE_MARKER_BYTES,
            _ => HEADER_BYTES,
        }
    }

    /// Writes the header over the first bytes of `datagram`, which is all of
    /// the packet behind its IP headers; the checksum is zero.
    pub fn write(&self, datagram: &mut [u8]) -> Option<()> {
        let bytes = u16::try_from(datagram.len()).ok()?;
        put(datagram, 0, &self.sport.to_be_bytes())?;
        put(datagram, 2, &self.dport.to_be_bytes())?;
        put(datagram, 4, &bytes.to_be_bytes())?;
        datagram.get_mut(6..self.header_bytes())?.fill(0);
        Some(())
    }
}

/// Fills the checksum of the UDP datagram at `at` of an IPv6 packet; IPv4 leaves it zero.
pub fn finish_checksum(packet: &mut [u8], at: usize) -> Option<()> {
    if Family::of(packet)? == Family::V4 {
        return Some(());
    }
    put(packet, at + 6, &[0, 0])?;
    let datagram = packet.get(at..)?;
    let sum = pseudo_header(addresses(packet)?, IPPROTO_UDP, datagram.len()).bytes(datagram);
    let check = match sum.finish() {
        0 => 0xffff,
        check => check,
    };
    put(packet, at + 6, &check.to_be_bytes())
}

/// What a datagram to an encapsulation socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// A NAT keepalive, for nobody.
    Keepalive,
    /// For the socket's owner.
    Ike,
    /// ESP, this many bytes behind the start of the UDP header.
    Esp {
        /// Offset of the ESP header.
        at: usize,
    },
}

/// Tells what `datagram`, UDP header included, is to a socket of encapsulation type `kind`.
#[must_use]
pub fn classify(datagram: &[u8], kind: u16) -> Datagram {
    let Some(payload) = datagram.get(HEADER_BYTES..) else {
        return Datagram::Ike;
    };
    if payload == [0xff] {
        return Datagram::Keepalive;
    }
    if kind == UDP_ENCAP_ESPINUDP_NON_IKE {
        return match payload.first_chunk::<NON_IKE_MARKER_BYTES>() {
            Some([0, 0, 0, 0, 0, 0, 0, 0]) if payload.len() > 2 * NON_IKE_MARKER_BYTES => {
                Datagram::Esp {
                    at: HEADER_BYTES + NON_IKE_MARKER_BYTES,
                }
            }
            _ => Datagram::Ike,
        };
    }
    match payload.first_chunk::<8>() {
        Some([0, 0, 0, 0, ..]) => Datagram::Ike,
        Some(_) if payload.len() > 8 => Datagram::Esp { at: HEADER_BYTES },
        _ => Datagram::Ike,
    }
}

/// The length of each of several ESP packets that were joined on their way
/// (GRO, or the sender's `UDP_SEGMENT` over a virtual link), if that is what a payload is.
///
/// A raw socket gets them as one datagram and is not told. The second packet is recognized by
/// the first one's SPI and one of the next sequence numbers, in a place where ESP can begin;
/// that such bytes are there by chance is as likely as guessing 58 bits.
#[must_use]
pub fn joined_bytes(payload: &[u8]) -> Option<usize> {
    const LEAST_BYTES: usize = 24;
    const MOST_JOINED: u32 = 64;
    let (words, _) = payload.as_chunks::<4>();
    let [spi, number, ..] = words else {
        return None;
    };
    let number = u32::from_be_bytes(*number);
    let follows = |pair: &[[u8; 4]]| match pair {
        [first, second] => {
            let ahead = u32::from_be_bytes(*second).wrapping_sub(number);
            first == spi && (1..=MOST_JOINED).contains(&ahead)
        }
        _ => false,
    };
    let later = words.get(LEAST_BYTES / 4..)?;
    let at = later.windows(2).position(follows)?;
    Some(LEAST_BYTES + at * 4)
}

/// Source and destination port of a datagram.
#[must_use]
pub fn ports(datagram: &[u8]) -> Option<(u16, u16)> {
    Some((be16(datagram, 0)?, be16(datagram, 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xfrm_proto::consts::UDP_ENCAP_ESPINUDP;

    fn kind(payload: &[u8]) -> Datagram {
        let mut datagram = vec![0; 8];
        datagram.extend(payload);
        classify(&datagram, UDP_ENCAP_ESPINUDP)
    }

    #[test]
    fn esp_ike_and_keepalives() {
        assert_eq!(kind(&[0xff]), Datagram::Keepalive);
        assert_eq!(kind(&[0xfe]), Datagram::Ike);
        assert_eq!(kind(&[]), Datagram::Ike);
        assert_eq!(kind(&[0, 0, 0, 0, 1, 2, 3, 4, 5]), Datagram::Ike);
        assert_eq!(kind(&[0, 0, 16, 1, 0, 0, 0, 1]), Datagram::Ike);
        assert_eq!(kind(&[0, 0, 16, 1, 0, 0, 0, 1, 9]), Datagram::Esp { at: 8 });
        assert_eq!(classify(&[0; 7], UDP_ENCAP_ESPINUDP), Datagram::Ike);
    }

    #[test]
    fn non_ike_marker() {
        let marked = [0u8; 8 + 8 + 8 + 1];
        let kind = UDP_ENCAP_ESPINUDP_NON_IKE;
        assert_eq!(classify(&marked, kind), Datagram::Esp { at: 16 });
        assert_eq!(classify(&marked[..24], kind), Datagram::Ike);
        let mut other = marked;
        other[9] = 1;
        assert_eq!(classify(&other, kind), Datagram::Ike);
    }

    #[test]
    fn raw_sockets_get_joined_datagrams() {
        let esp = |spi: u8, number: u32, bytes: usize| {
            let mut packet = vec![0x5a; bytes];
            packet[..4].copy_from_slice(&[spi; 4]);
            packet[4..8].copy_from_slice(&number.to_be_bytes());
            packet
        };
        let join = |parts: &[Vec<u8>]| joined_bytes(&parts.concat());
        assert_eq!(join(&[esp(1, 7, 1400)]), None);
        assert_eq!(join(&[esp(1, 7, 100), esp(1, 8, 60)]), Some(100));
        let many: Vec<_> = (0..40)
            .map(|number| esp(1, (u32::MAX - 20).wrapping_add(number), 400))
            .collect();
        assert_eq!(join(&many), Some(400));
        // One was lost before; another SA's or an older one is no evidence.
        assert_eq!(join(&[esp(1, 7, 100), esp(1, 9, 100)]), Some(100));
        assert_eq!(join(&[esp(1, 7, 100), esp(2, 8, 100)]), None);
        assert_eq!(join(&[esp(1, 7, 100), esp(1, 6, 100)]), None);
        for bytes in 0..24 {
            assert_eq!(joined_bytes(&vec![1; bytes]), None);
        }
    }
}
