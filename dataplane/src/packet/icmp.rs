//! ICMP errors about packets that are too big: made for what may not enter an
//! SA, understood when a router sends one about a packet that left it.
//!
//! Source: `net/ipv4/icmp.c icmp_send`, `net/ipv6/icmp.c icmp6_send`;
//! `esp4_err`, `ah4_err`, `ipcomp4_err` and their IPv6 twins for what is read.

use super::checksum::{checksum, pseudo_header};
use super::{Family, PacketBuf, be16, be32, ip4, ip6, put};

const PROTOCOL_V4: u8 = 1;
const PROTOCOL_V6: u8 = 58;
const HEADER_BYTES: usize = 8;
const V4_UNREACHABLE: u8 = 3;
const V4_FRAGMENTATION_NEEDED: u8 = 4;
const V6_PACKET_TOO_BIG: u8 = 2;
/// The longest error: what every host can take in one piece.
const V4_MOST_BYTES: usize = 576;
const V6_MOST_BYTES: usize = 1280;
const HOP_LIMIT: u8 = 64;

/// Whether an error may answer `packet`: not a broadcast, a later fragment, or an error itself.
#[must_use]
pub fn may_answer(packet: &[u8]) -> bool {
    match Family::of(packet) {
        Some(Family::V4) => ip4::Header::parse(packet).is_some_and(|header| {
            let kind = packet.get(header.header_bytes);
            let is_error =
                header.protocol == PROTOCOL_V4 && matches!(kind, Some(3 | 4 | 5 | 11 | 12));
            let to_many = header.dst[0] >= 224;
            let from_nobody = header.src[0] >= 224 || header.src == [0; 4];
            let is_later = header.fragment & ip4::OFFSET_MASK != 0;
            !(is_later || is_error || to_many || from_nobody)
        }),
        Some(Family::V6) => ip6::Header::parse(packet).is_some_and(|header| {
            let from_one = header.src[0] != 0xff && header.src != [0; 16];
            let is_error = ip6::upper_layer(packet).is_some_and(|place| {
                let protocol = packet.get(place.next_header_at);
                let kind = packet.get(place.at);
                protocol == Some(&PROTOCOL_V6) && kind.is_some_and(|kind| *kind < 128)
            });
            // Too-big alone may answer a multicast (RFC 4443 2.4 e.3).
            from_one && !is_error
        }),
        None => false,
    }
}

/// Replaces `packet` by the error that says what MTU would have been right:
/// fragmentation needed, or packet too big. `None` when none may be sent.
///
/// `from` is the address that the error comes from (4 or 16 bytes), `ident`
/// the identification of an IPv4 error.
pub fn answer_too_big(packet: &mut PacketBuf, from: &[u8], mtu: u32, ident: u16) -> Option<()> {
    if !may_answer(packet) {
        return None;
    }
    match Family::of(packet)? {
        Family::V4 => {
            let to = ip4::Header::parse(packet)?;
            packet.truncate(V4_MOST_BYTES - ip4::HEADER_BYTES - HEADER_BYTES);
            packet.push_front(ip4::HEADER_BYTES + HEADER_BYTES)?;
            // TOS of the packet without its precedence, which is internetwork control's.
            let tos = to.tos & 0x1e | 0xc0;
            let [id_high, id_low] = ident.to_be_bytes();
            let head = [
                0x45,
                tos,
                0,
                0,
                id_high,
                id_low,
                0,
                0,
                HOP_LIMIT,
                PROTOCOL_V4,
                0,
                0,
            ];
            put(packet, 0, &head)?;
            put(packet, 12, from.first_chunk::<4>()?)?;
            put(packet, 16, &to.src)?;
            ip4::finish(packet)?;
            let [.., high, low] = mtu.to_be_bytes();
            let body = [
                V4_UNREACHABLE,
                V4_FRAGMENTATION_NEEDED,
                0,
                0,
                0,
                0,
                high,
                low,
            ];
            put(packet, ip4::HEADER_BYTES, &body)?;
            let check = checksum(packet.get(ip4::HEADER_BYTES..)?);
            put(packet, ip4::HEADER_BYTES + 2, &check.to_be_bytes())
        }
        Family::V6 => {
            let to = ip6::Header::parse(packet)?;
            packet.truncate(V6_MOST_BYTES - ip6::HEADER_BYTES - HEADER_BYTES);
            packet.push_front(ip6::HEADER_BYTES + HEADER_BYTES)?;
            put(packet, 0, &[0x60, 0, 0, 0, 0, 0, PROTOCOL_V6, HOP_LIMIT])?;
            put(packet, 8, from.first_chunk::<16>()?)?;
            put(packet, 24, &to.src)?;
            ip6::finish(packet)?;
            put(packet, ip6::HEADER_BYTES, &[V6_PACKET_TOO_BIG, 0, 0, 0])?;
            put(packet, ip6::HEADER_BYTES + 4, &mtu.to_be_bytes())?;
            let message = packet.get(ip6::HEADER_BYTES..)?;
            let check = pseudo_header(packet.get(8..40)?, PROTOCOL_V6, message.len())
                .bytes(message)
                .finish();
            put(packet, ip6::HEADER_BYTES + 2, &check.to_be_bytes())
        }
    }
}

/// What a router says about a packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// The MTU that would be right; 0 from routers that do not know (IPv4).
    pub mtu: u32,
    /// Offset of the packet that it is about, as much of it as the router returned.
    pub about_at: usize,
}

/// Understands an error about a packet that was too big; `None` for anything
/// else, and when the checksum is wrong.
#[must_use]
pub fn parse_too_big(packet: &[u8]) -> Option<TooBig> {
    match Family::of(packet)? {
        Family::V4 => {
            let header = ip4::Header::parse(packet)?;
            let message = packet.get(header.header_bytes..)?;
            let kind = message.first_chunk::<2>()?;
            let matches = header.protocol == PROTOCOL_V4
                && !header.is_fragment()
                && *kind == [V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED]
                && checksum(message) == 0;
            matches.then_some(TooBig {
                mtu: u32::from(be16(message, 6)?),
                about_at: header.header_bytes + HEADER_BYTES,
            })
        }
        Family::V6 => {
            let place = ip6::upper_layer(packet)?;
            let message = packet.get(place.at..)?;
            let sum = pseudo_header(packet.get(8..40)?, PROTOCOL_V6, message.len()).bytes(message);
            let matches = *packet.get(place.next_header_at)? == PROTOCOL_V6
                && *message.first()? == V6_PACKET_TOO_BIG
                && sum.finish() == 0;
            matches.then_some(TooBig {
                mtu: be32(message, 4)?,
                about_at: place.at + HEADER_BYTES,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(family: Family, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = match family {
            Family::V4 => vec![0x45, 0xbb, 0, 0, 9, 9, 0x40, 0, 64, protocol, 0, 0],
            Family::V6 => vec![0x60, 0, 0, 0, 0, 0, protocol, 64],
        };
        packet.extend(match family {
            Family::V4 => [10; 8].to_vec(),
            Family::V6 => [0xfd; 32].to_vec(),
        });
        packet.extend(payload);
        super::super::finish(&mut packet).unwrap();
        packet
    }

    #[test]
    fn what_is_said_is_understood() {
        for (family, from, most) in [
            (Family::V4, vec![192, 0, 2, 1], 576),
            (Family::V6, vec![0x20; 16], 1280),
        ] {
            let about = packet(family, 17, &[7; 1400]);
            let mut buffer = PacketBuf::copy_of(&about);
            answer_too_big(&mut buffer, &from, 1390, 5).unwrap();
            assert_eq!(buffer.len(), most);
            let said = parse_too_big(&buffer).unwrap();
            assert_eq!(said.mtu, 1390);
            let returned = &buffer[said.about_at..];
            assert_eq!(returned, &about[..returned.len()]);
            let mut spoiled = buffer.to_vec();
            spoiled[most - 1] ^= 1;
            assert!(parse_too_big(&spoiled).is_none());
        }
    }

    #[test]
    fn errors_about_errors_are_not_made() {
        assert!(!may_answer(&packet(
            Family::V4,
            1,
            &[3, 4, 0, 0, 0, 0, 0, 0]
        )));
        assert!(may_answer(&packet(
            Family::V4,
            1,
            &[8, 0, 0, 0, 0, 0, 0, 0]
        )));
        assert!(!may_answer(&packet(
            Family::V6,
            58,
            &[2, 0, 0, 0, 0, 0, 0, 0]
        )));
        assert!(may_answer(&packet(
            Family::V6,
            58,
            &[128, 0, 0, 0, 0, 0, 0, 0]
        )));
        let mut later = packet(Family::V4, 17, &[0; 8]);
        later[7] = 1;
        assert!(!may_answer(&later));
        let mut multicast = packet(Family::V4, 17, &[0; 8]);
        multicast[16] = 224;
        assert!(!may_answer(&multicast));
        assert!(!may_answer(&[]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool) {
            if let [first, ..] = &mut bytes[..] {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            let _ = parse_too_big(&bytes);
            let _ = answer_too_big(&mut PacketBuf::copy_of(&bytes), &[1; 16], 1400, 1);
        }
    }
}
