//! Cutting a packet into fragments.
//!
//! Source: `net/ipv4/ip_output.c ip_do_fragment`, `net/ipv6/ip6_output.c
//! ip6_fragment`. A fragmenter writes one fragment after the other into a
//! buffer of the caller's.

use super::{Family, PacketBuf, ip4, ip6, put};

/// Bytes of an IPv6 fragment header.
pub const V6_HEADER_BYTES: usize = 8;
const OPTION_COPIED: u8 = 0x80;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;

/// A packet being cut.
#[derive(Debug)]
pub struct Fragmenter<'a> {
    packet: &'a [u8],
    family: Family,
    /// Headers that every fragment gets.
    header_bytes: usize,
    /// Most payload of one fragment, a multiple of 8.
    step: usize,
    /// Payload done.
    done: usize,
    /// IPv4: offset of the payload in the packet that this one is a fragment of already.
    base: usize,
    /// IPv4: this packet has successors itself.
    more: bool,
    /// Identification, unless the header has one.
    ident: u32,
    /// IPv6: the place of the fragment header.
    place: ip6::Place,
}

impl<'a> Fragmenter<'a> {
    /// Prepares to cut `packet` to `mtu`; `None` when it does not parse or when
    /// `mtu` has no room for 8 bytes of payload. `ident` is for IPv6, and for an IPv4 packet that
    /// has none: the host would give each fragment another one.
    #[must_use]
    pub fn new(packet: &'a [u8], mtu: usize, ident: u32) -> Option<Self> {
        let family = Family::of(packet)?;
        let (place, base, more) = match family {
            Family::V4 => {
                let header = ip4::Header::parse(packet)?;
                let place = ip6::Place {
                    next_header_at: 0,
                    at: header.header_bytes,
                };
                let base = usize::from(header.fragment & ip4::OFFSET_MASK) * 8;
                (place, base, header.fragment & ip4::MF != 0)
            }
            Family::V6 => (ip6::fragmentable_at(packet)?, 0, false),
        };
        let own = match family {
            Family::V4 => 0,
            Family::V6 => V6_HEADER_BYTES,
        };
        let step = mtu.checked_sub(place.at + own)? & !7;
        (step > 0).then_some(Self {
            packet,
            family,
            header_bytes: place.at,
            step,
            done: 0,
            base,
            more,
            ident,
            place,
        })
    }

    /// Writes the next fragment; false when there is none left, `None` when
    /// it does not fit the buffer.
    pub fn next_into(&mut self, buffer: &mut PacketBuf) -> Option<bool> {
        let payload = self.packet.get(self.header_bytes..)?;
        let rest = payload.get(self.done..)?;
        if rest.is_empty() {
            return Some(false);
        }
        let part = rest.get(..self.step).unwrap_or(rest);
        let last = part.len() == rest.len() && !self.more;
        let offset = self.base + self.done;
        buffer.fill(&[]);
        let header = self.packet.get(..self.header_bytes)?;
        buffer.push_back(header.len())?.copy_from_slice(header);
        match self.family {
            Family::V4 => {
                let word = u16::try_from(offset / 8).ok()?;
                let flag = if last { 0 } else { ip4::MF };
                put(buffer, 6, &(word | flag).to_be_bytes())?;
                if buffer.get(4..6)? == [0; 2] {
                    let [.., high, low] = (self.ident | 1).to_be_bytes();
                    put(buffer, 4, &[high, low])?;
                }
                if self.done != 0 {
                    drop_uncopied_options(buffer.get_mut(ip4::HEADER_BYTES..)?);
                }
            }
            Family::V6 => {
                let next_header = buffer.get_mut(self.place.next_header_at)?;
                let protocol = std::mem::replace(next_header, ip6::FRAGMENT);
                let word = u16::try_from(offset).ok()? | u16::from(!last);
                let [high, low] = word.to_be_bytes();
                let own: &mut [u8; 4] = buffer.push_back(4)?.first_chunk_mut()?;
                *own = [protocol, 0, high, low];
                let ident = self.ident.to_be_bytes();
                buffer.push_back(4)?.copy_from_slice(&ident);
            }
        }
        buffer.push_back(part.len())?.copy_from_slice(part);
        match self.family {
            Family::V4 => ip4::finish(buffer)?,
            Family::V6 => ip6::finish(buffer)?,
        }
        self.done += part.len();
        Some(true)
    }
}

/// Turns options that only the first fragment carries into padding (`ip_options_fragment`).
fn drop_uncopied_options(mut options: &mut [u8]) {
    loop {
        match options {
            [] | [OPTION_END, ..] => return,
            [OPTION_NOP, rest @ ..] => options = rest,
            [kind, bytes, ..] => {
                let (copied, bytes) = (*kind & OPTION_COPIED != 0, usize::from(*bytes));
                let Some((option, rest)) = options.split_at_mut_checked(bytes.max(2)) else {
                    return;
                };
                if !copied {
                    option.fill(OPTION_NOP);
                }
                options = rest;
            }
            [_] => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fragments_of_a_packet_without_identification_have_one() {
        let mut packet = PacketBuf::copy_of(&[0; 100]);
        let head = [0x45, 0, 0, 100, 0, 0, 0x40, 0, 64, 50];
        packet.get_mut(..10).unwrap().copy_from_slice(&head);
        let mut cutter = Fragmenter::new(&packet, 60, 0x0001_0200).unwrap();
        let mut part = PacketBuf::with_capacity(100);
        for _ in 0..2 {
            assert_eq!(cutter.next_into(&mut part), Some(true));
            assert_eq!(part[4..6], [2, 1]);
        }
    }

    fn v4(options: &[u8], payload: usize) -> Vec<u8> {
        let ihl = u8::try_from(5 + options.len() / 4).unwrap();
        let mut packet = vec![0x40 | ihl, 0, 0, 0, 9, 9, 0, 0, 64, 50, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(options);
        packet.extend((0..payload).map(|i| (i % 251).to_be_bytes()[7]));
        ip4::finish(&mut packet).unwrap();
        packet
    }

    fn all(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let mut cutter = Fragmenter::new(packet, mtu, 0xabcd_ef01).unwrap();
        let mut buffer = PacketBuf::with_capacity(2000);
        let mut out = Vec::new();
        while cutter.next_into(&mut buffer).unwrap() {
            out.push(buffer.to_vec());
        }
        out
    }

    #[test]
    fn v4_fragments() {
        let parts = all(&v4(&[], 1500), 1500);
        let shapes: Vec<_> = parts
            .iter()
            .map(|part| (part.len(), u16::from_be_bytes([part[6], part[7]])))
            .collect();
        assert_eq!(shapes, [(1500, ip4::MF), (40, 185)]);
    }

    #[test]
    fn only_copied_options_travel_with_later_fragments() {
        let parts = all(&v4(&[7, 4, 4, 0, 0x94, 4, 0, 0], 40), 52);
        assert_eq!(parts[0][20..28], [7, 4, 4, 0, 0x94, 4, 0, 0]);
        assert_eq!(parts[1][20..28], [1, 1, 1, 1, 0x94, 4, 0, 0]);
    }

    #[test]
    fn a_fragment_can_be_cut_again() {
        let first = all(&v4(&[], 3000), 1500);
        let again: Vec<_> = first.iter().flat_map(|part| all(part, 576)).collect();
        let last = again.last().unwrap();
        assert_eq!(u16::from_be_bytes([last[6], last[7]]) & ip4::MF, 0);
        let more = again.iter().filter(|part| part[6] & 0x20 != 0).count();
        assert_eq!(more, again.len() - 1);
    }

    #[test]
    fn no_room_for_payload() {
        assert!(Fragmenter::new(&v4(&[], 100), 27, 0).is_none());
        assert!(Fragmenter::new(&[], 1500, 0).is_none());
    }

    proptest! {
        #[test]
        fn parts_cover_the_payload(payload in 0usize..4000, mtu in 60usize..1500) {
            let packet = v4(&[], payload);
            let mut whole: Vec<u8> = Vec::new();
            for part in all(&packet, mtu) {
                prop_assert!(part.len() <= mtu);
                whole.extend(&part[20..]);
            }
            prop_assert_eq!(&whole[..], &packet[20..]);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), mtu in 0usize..200) {
            if let Some(mut cutter) = Fragmenter::new(&bytes, mtu, 1) {
                let mut buffer = PacketBuf::with_capacity(400);
                for _ in 0..100 {
                    if cutter.next_into(&mut buffer) != Some(true) {
                        break;
                    }
                }
            }
        }
    }
}
