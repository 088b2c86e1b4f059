//! The IPv6 header and its extension headers (RFC 8200).
//!
//! Two walks, as Linux has two: [`fragmentable_at`] finds where a sender puts
//! ESP or AH (`net/ipv6/output_core.c ip6_find_1stfragopt`), [`upper_layer`]
//! where a receiver finds it (`ip6_protocol_deliver_rcu`).

use super::{PacketBuf, be16, put};
use crate::drop_reason::DropReason;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 40;
/// Offset of the fixed header's next-header field.
pub const NEXT_HEADER_AT: usize = 6;

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// No next header.
pub const NONE: u8 = 59;
/// Destination options.
pub const DESTINATION: u8 = 60;

/// Option type of one byte of padding.
pub const OPTION_PAD1: u8 = 0;
/// Option type of the home address (RFC 6275).
pub const OPTION_HOME_ADDRESS: u8 = 0xc9;

/// The fields of a fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Payload length as the packet states it.
    pub payload_bytes: usize,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
}

impl Header {
    /// Reads the fixed header; `None` unless the version is 6 and all 40 bytes are there.
    #[must_use]
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (first, rest) = packet.split_first_chunk::<8>()?;
        let (src, rest) = rest.split_first_chunk()?;
        let dst = rest.first_chunk()?;
        if first[0] >> 4 != 6 {
            return None;
        }
        Some(Self {
            traffic_class: first[0] << 4 | first[1] >> 4,
            flow_label: u32::from_be_bytes([0, first[1] & 15, first[2], first[3]]),
            payload_bytes: usize::from(u16::from_be_bytes([first[4], first[5]])),
            next_header: first[6],
            hop_limit: first[7],
            src: *src,
            dst: *dst,
        })
    }
}

/// Checks a packet as it comes from a device and cuts what lies behind it
/// (`net/ipv6/ip6_input.c ip6_rcv_core`, as far as it is about bytes).
///
/// # Errors
/// A header that is wrong, or a packet shorter than it says.
#[inline]
pub fn receive(packet: &mut PacketBuf) -> Result<Header, DropReason> {
    let header = Header::parse(packet).ok_or(DropReason::InnerHeader)?;
    let source_is_multicast = header.src[0] == 0xff;
    if source_is_multicast {
        return Err(DropReason::InnerHeader);
    }
    // A payload length of 0 with hop-by-hop options is a jumbogram's, which no link here carries.
    let total = HEADER_BYTES + header.payload_bytes;
    if packet.len() < total {
        return Err(DropReason::InnerTruncated);
    }
    packet.truncate(total);
    Ok(header)
}

/// Sets the payload length to what `packet` has; `None` when it is no IPv6 or too long.
#[inline]
pub fn finish(packet: &mut [u8]) -> Option<()> {
    let payload = u16::try_from(packet.len().checked_sub(HEADER_BYTES)?).ok()?;
    put(packet, 4, &payload.to_be_bytes())
}

/// Changes the traffic class.
pub fn set_traffic_class(packet: &mut [u8], class: u8) -> Option<()> {
    let old = be16(packet, 0)?;
    let new = old & 0xf00f | u16::from(class) << 4;
    put(packet, 0, &new.to_be_bytes())
}

/// A place between headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset of the byte that names what begins at `at`.
    pub next_header_at: usize,
    /// Offset where it begins.
    pub at: usize,
}

/// The bytes of the options header at `at`, all of which are there.
#[must_use]
pub fn extension(packet: &[u8], at: usize) -> Option<&[u8]> {
    let rest = packet.get(at..)?;
    let bytes = (usize::from(*rest.get(1)?) + 1) * 8;
    rest.get(..bytes)
}

/// Offset, in `options`, of the first option of a type (`ipv6_find_tlv`).
///
/// `options` is a whole hop-by-hop or destination options header.
#[must_use]
pub fn find_option(options: &[u8], wanted: u8) -> Option<usize> {
    let mut at = 2;
    while at < options.len() {
        let kind = *options.get(at)?;
        if kind == wanted {
            return Some(at);
        }
        at += match kind {
            OPTION_PAD1 => 1,
            _ => usize::from(*options.get(at + 1)?) + 2,
        };
        if at > options.len() {
            return None;
        }
    }
    None
}

/// Where a sender puts a header that the fragments of a packet share no part
/// of: behind hop-by-hop options, routing header and the destination options
/// in front of it (`ip6_find_1stfragopt`).
///
/// Destination options that carry a home address belong to the part in front,
/// as they do on a kernel with mobile IPv6.
#[must_use]
pub fn fragmentable_at(packet: &[u8]) -> Option<Place> {
    let mut place = Place {
        next_header_at: NEXT_HEADER_AT,
        at: HEADER_BYTES,
    };
    let mut routing_seen = false;
    while place.at <= packet.len() {
        match *packet.get(place.next_header_at)? {
            HOP_BY_HOP => {}
            ROUTING => routing_seen = true,
            DESTINATION => {
                let home = extension(packet, place.at)
                    .and_then(|options| find_option(options, OPTION_HOME_ADDRESS));
                if home.is_none() && routing_seen {
                    return Some(place);
                }
            }
            _ => return Some(place),
        }
        let units = usize::from(*packet.get(place.at + 1)?);
        place = Place {
            next_header_at: place.at,
            at: place.at + (units + 1) * 8,
        };
    }
    None
}

/// Where the first header stands that is neither options nor a finished
/// routing header: ESP, AH, IPComp, a transport protocol, a fragment header.
///
/// `None` for headers that do not parse, for hop-by-hop options that are not
/// the first, and for a routing header with segments left.
#[must_use]
pub fn upper_layer(packet: &[u8]) -> Option<Place> {
    let mut place = Place {
        next_header_at: NEXT_HEADER_AT,
        at: HEADER_BYTES,
    };
    loop {
        match *packet.get(place.next_header_at)? {
            HOP_BY_HOP if place.at != HEADER_BYTES => return None,
            HOP_BY_HOP | DESTINATION => {}
            ROUTING => {
                let segments_left = *packet.get(place.at + 3)?;
                if segments_left != 0 {
                    return None;
                }
            }
            _ => return (place.at <= packet.len()).then_some(place),
        }
        let bytes = extension(packet, place.at)?.len();
        place = Place {
            next_header_at: place.at,
            at: place.at + bytes,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet with the extension headers of `chain` in front of UDP.
    fn packet(chain: &[(u8, &[u8])]) -> Vec<u8> {
        let mut packet = vec![0x6b, 0x81, 0x23, 0x45, 0, 0, 17, 64];
        packet.extend([0xfd; 32]);
        let mut next_header_at = NEXT_HEADER_AT;
        for (kind, body) in chain {
            packet[next_header_at] = *kind;
            next_header_at = packet.len();
            packet.extend([17, u8::try_from((body.len() + 2) / 8 - 1).unwrap()]);
            packet.extend(*body);
        }
        packet.extend(b"udp!");
        finish(&mut packet).unwrap();
        packet
    }

    const PAD: &[u8] = &[1, 4, 0, 0, 0, 0];
    const ROUTE: &[u8] = &[
        2, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ];
    const HOME: &[u8] = &[
        1, 2, 0, 0, 0xc9, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ];

    #[test]
    fn fields() {
        let packet = packet(&[]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!((header.traffic_class, header.flow_label), (0xb8, 0x1_2345));
        assert_eq!((header.payload_bytes, header.next_header), (4, 17));
        let mut changed = packet.clone();
        set_traffic_class(&mut changed, 0x03).unwrap();
        let header = Header::parse(&changed).unwrap();
        assert_eq!((header.traffic_class, header.flow_label), (3, 0x1_2345));
    }

    #[test]
    fn where_a_sender_puts_esp() {
        let at = |chain: &[(u8, &[u8])]| fragmentable_at(&packet(chain)).unwrap().at;
        assert_eq!(at(&[]), 40);
        assert_eq!(at(&[(HOP_BY_HOP, PAD)]), 48);
        assert_eq!(at(&[(DESTINATION, PAD)]), 48);
        assert_eq!(
            at(&[(DESTINATION, PAD), (ROUTING, ROUTE), (DESTINATION, PAD)]),
            72
        );
        assert_eq!(at(&[(ROUTING, ROUTE), (DESTINATION, HOME)]), 88);
    }

    #[test]
    fn where_a_receiver_finds_it() {
        let chain: &[(u8, &[u8])] = &[(HOP_BY_HOP, PAD), (ROUTING, ROUTE), (DESTINATION, PAD)];
        let place = upper_layer(&packet(chain)).unwrap();
        assert_eq!(
            place,
            Place {
                next_header_at: 72,
                at: 80
            }
        );
        assert!(upper_layer(&packet(&[(DESTINATION, PAD), (HOP_BY_HOP, PAD)])).is_none());
        let mut unfinished = packet(&[(ROUTING, ROUTE)]);
        unfinished[43] = 1;
        assert!(upper_layer(&unfinished).is_none());
    }

    #[test]
    fn lying_lengths() {
        let mut lying = packet(&[(DESTINATION, PAD)]);
        lying[41] = 255;
        assert!(upper_layer(&lying).is_none());
        assert!(fragmentable_at(&lying).is_none());
        assert_eq!(find_option(&[0, 0, 5, 200, 0, 0, 0, 0], 9), None);
        assert_eq!(find_option(&[0, 0, 0, 0, 0, 0, 0, 7], 9), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kinds in proptest::collection::vec(prop::sample::select(vec![0u8, 43, 60, 44, 50]), 4)) {
            if let [first, _, _, _, _, _, next, ..] = &mut bytes[..] {
                *first = 0x60;
                *next = kinds[0];
            }
            for (at, kind) in [40usize, 48, 56].into_iter().zip(&kinds[1..]) {
                if at + 1 < bytes.len() {
                    bytes[at] = *kind;
                    bytes[at + 1] &= 1;
                }
            }
            for place in [upper_layer(&bytes), fragmentable_at(&bytes)].into_iter().flatten() {
                prop_assert!(place.at <= bytes.len());
                prop_assert!(place.next_header_at < place.at);
            }
            let _ = receive(&mut PacketBuf::copy_of(&bytes));
            let _ = finish(&mut bytes);
        }
    }
}
