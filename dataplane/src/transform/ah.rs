//! Authentication Header (RFC 4302).
//!
//! The MAC covers the whole packet, with its own ICV and every field that
//! routers change replaced by zeros. That is done in the packet itself: the
//! headers in front of AH are put aside, blanked, and put back. With ESN the
//! high half of the sequence number follows the packet in the MAC's input.
//!
//! Source: `net/ipv4/ah4.c`, `net/ipv6/ah6.c`. The padding behind an ICV is zeros here; Linux
//! leaves in it what was in memory.

use xfrm_proto::consts::IPPROTO_AH;

use super::{Inbound, Opened, Place, Scratch, Sequence};
use crate::crypto::Mac;
use crate::drop_reason::DropReason;
use crate::packet::{Family, PacketBuf, finish, ip4, ip6, put};

/// Bytes in front of the ICV.
const FIXED_BYTES: usize = 12;

/// IPv4 options that no router changes: end, padding, basic and extended
/// security, commercial security, router alert, and RFC 1770's.
const IMMUTABLE_OPTIONS: [u8; 5] = [0x82, 0x85, 0x86, 0x94, 0x95];
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LOOSE_ROUTE: u8 = 0x83;
const OPTION_STRICT_ROUTE: u8 = 0x89;
/// The bit in an IPv6 option's type that says routers may change it.
const OPTION_MUTABLE: u8 = 0x20;

/// AH of one SA.
pub struct Ah {
    spi: u32,
    mac: Box<dyn Mac>,
    /// Bytes of the header: ICV and alignment included.
    header_bytes: usize,
    /// The same with the ICV that is not truncated, which is let in as well.
    full_header_bytes: usize,
    esn: bool,
}

/// What AH needs to know of its SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AhParams {
    /// SPI.
    pub spi: u32,
    /// Family of the SA's addresses.
    pub family: Family,
    /// Bytes of ICV before truncation.
    pub full_icv_bytes: usize,
    /// `XFRM_STATE_ALIGN4`, which only IPv4 asks.
    pub align4: bool,
    /// `XFRM_STATE_ESN`.
    pub esn: bool,
}

impl std::fmt::Debug for Ah {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ah")
            .field("spi", &self.spi)
            .field("header_bytes", &self.header_bytes)
            .finish_non_exhaustive()
    }
}

/// Which way a packet goes: only the sender rearranges a home address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

impl Ah {
    /// AH with its keys.
    #[must_use]
    pub fn new(params: &AhParams, mac: Box<dyn Mac>) -> Self {
        let unit = if params.align4 && params.family == Family::V4 {
            4
        } else {
            8
        };
        let aligned = |icv_bytes: usize| (FIXED_BYTES + icv_bytes).next_multiple_of(unit);
        Self {
            spi: params.spi,
            header_bytes: aligned(mac.icv_bytes()),
            full_header_bytes: aligned(params.full_icv_bytes),
            mac,
            esn: params.esn,
        }
    }

    pub(super) const fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Authenticates (`ah_output`, `ah6_output`).
    pub(super) fn seal(
        &self,
        packet: &mut PacketBuf,
        place: &Place,
        sequence: Sequence,
        scratch: &mut Scratch,
    ) -> Result<(), DropReason> {
        let no_room = DropReason::OutNoRoom;
        let next_header = *packet.get(place.next_header_at).ok_or(no_room)?;
        put(packet, place.next_header_at, &[IPPROTO_AH]).ok_or(no_room)?;
        finish(packet).ok_or(DropReason::OutOversize)?;

        let (headers, own) = packet
            .split_at_mut_checked(place.header_at)
            .ok_or(no_room)?;
        let own = own.get_mut(..self.header_bytes).ok_or(no_room)?;
        own.fill(0);
        let [.., words] = (self.header_bytes / 4 - 2).to_be_bytes();
        put(own, 0, &[next_header, words]).ok_or(no_room)?;
        put(own, 4, &self.spi.to_be_bytes()).ok_or(no_room)?;
        put(own, 8, &sequence.low().to_be_bytes()).ok_or(no_room)?;

        scratch.headers.clear();
        scratch.headers.extend_from_slice(headers);
        blank(headers, Direction::Out).ok_or(DropReason::OutOptions)?;

        let mut icv = [0; MAX_ICV_BYTES];
        let icv = icv.get_mut(..self.mac.icv_bytes()).ok_or(no_room)?;
        self.mac
            .write(&[packet, self.seq_high(sequence, &mut [0; 4])], icv);
        put(packet, place.header_at + FIXED_BYTES, icv).ok_or(no_room)?;
        put(packet, 0, &scratch.headers).ok_or(no_room)
    }

    /// Verifies (`ah_input`, `ah6_input`).
    pub(super) fn open(
        &self,
        packet: &mut PacketBuf,
        inbound: &Inbound,
        sequence: Sequence,
        scratch: &mut Scratch,
    ) -> Result<Opened, DropReason> {
        let wrong = DropReason::AhLength;
        let (headers, rest) = packet
            .split_at_mut_checked(inbound.at)
            .ok_or(DropReason::AhLength)?;
        let &[protocol, words, ..] = rest.first_chunk::<FIXED_BYTES>().ok_or(wrong)?;
        let own_bytes = (usize::from(words) + 2) * 4;
        if own_bytes != self.header_bytes && own_bytes != self.full_header_bytes {
            return Err(wrong);
        }
        // QUIRK: ah_may_be_as_long_as_the_full_icv. Only the truncated one is looked at.
        let own = rest.get_mut(..own_bytes).ok_or(wrong)?;
        let mut received = [0; MAX_ICV_BYTES];
        let received = received.get_mut(..self.mac.icv_bytes()).ok_or(wrong)?;
        let icv = own
            .get_mut(FIXED_BYTES..)
            .and_then(|icv| icv.get_mut(..received.len()))
            .ok_or(wrong)?;
        received.copy_from_slice(icv);
        icv.fill(0);

        scratch.headers.clear();
        scratch.headers.extend_from_slice(headers);
        blank(headers, Direction::In).ok_or(DropReason::AhOptions)?;
        let genuine = self
            .mac
            .verify(&[packet, self.seq_high(sequence, &mut [0; 4])], received);
        put(packet, 0, &scratch.headers).ok_or(wrong)?;
        if !genuine {
            return Err(DropReason::AhIcv);
        }
        Ok(Opened {
            at: inbound.at + own_bytes,
            protocol,
        })
    }

    fn seq_high<'a>(&self, sequence: Sequence, room: &'a mut [u8; 4]) -> &'a [u8] {
        if !self.esn {
            return &[];
        }
        *room = sequence.high().to_be_bytes();
        room
    }
}

/// The longest ICV that there is: HMAC-SHA-512 in full.
const MAX_ICV_BYTES: usize = 64;

/// Zeros what routers change in the headers in front of AH.
fn blank(headers: &mut [u8], direction: Direction) -> Option<()> {
    match Family::of(headers)? {
        Family::V4 => {
            let (fixed, options) = headers.split_first_chunk_mut::<{ ip4::HEADER_BYTES }>()?;
            fixed[1] = 0;
            [fixed[6], fixed[7], fixed[8]] = [0; 3];
            [fixed[10], fixed[11]] = [0; 2];
            let last_hop = blank_v4_options(options)?;
            if let (Some(last_hop), Direction::Out) = (last_hop, direction) {
                [fixed[16], fixed[17], fixed[18], fixed[19]] = last_hop;
            }
            Some(())
        }
        Family::V6 => {
            let (fixed, extensions) = headers.split_first_chunk_mut::<{ ip6::HEADER_BYTES }>()?;
            blank_v6_extensions(fixed, extensions, direction)?;
            [fixed[0], fixed[1], fixed[2], fixed[3]] = [0x60, 0, 0, 0];
            fixed[7] = 0;
            Some(())
        }
    }
}

/// Zeros mutable options; the last hop of a source route, which the MAC's
/// input has as destination (`ip_clear_mutable_options`).
fn blank_v4_options(mut options: &mut [u8]) -> Option<Option<[u8; 4]>> {
    let mut last_hop = None;
    loop {
        match options {
            [] | [OPTION_END, ..] => return Some(last_hop),
            [OPTION_NOP, rest @ ..] => options = rest,
            [kind, bytes, ..] if *bytes >= 2 => {
                let (kind, bytes) = (*kind, usize::from(*bytes));
                let (option, rest) = options.split_at_mut_checked(bytes)?;
                if kind == OPTION_LOOSE_ROUTE || kind == OPTION_STRICT_ROUTE {
                    last_hop = Some(*option.last_chunk().filter(|_| bytes >= 6)?);
                }
                if !IMMUTABLE_OPTIONS.contains(&kind) {
                    option.fill(0);
                }
                options = rest;
            }
            _ => return None,
        }
    }
}

/// Zeros mutable options, and arranges routing header and home address as
/// they will be at the destination (`ipv6_clear_mutable_options`).
fn blank_v6_extensions(
    fixed: &mut [u8; ip6::HEADER_BYTES],
    mut extensions: &mut [u8],
    direction: Direction,
) -> Option<()> {
    let mut kind = fixed[6];
    while !extensions.is_empty() {
        if !matches!(kind, ip6::HOP_BY_HOP | ip6::DESTINATION | ip6::ROUTING) {
            return Some(());
        }
        let units = usize::from(*extensions.get(1)?) + 1;
        let (header, rest) = extensions.split_at_mut_checked(units * 8)?;
        let next = *header.first()?;
        match kind {
            ip6::ROUTING => arrange_route(fixed, header)?,
            kind => {
                if kind == ip6::DESTINATION && direction == Direction::Out {
                    arrange_home_address(fixed, header);
                }
                blank_v6_options(header)?;
            }
        }
        kind = next;
        extensions = rest;
    }
    Some(())
}

/// Zeros the data of mutable options of a whole options header (`zero_out_mutable_opts`).
fn blank_v6_options(header: &mut [u8]) -> Option<()> {
    let mut options = header.get_mut(2..)?;
    loop {
        match options {
            [] => return Some(()),
            [ip6::OPTION_PAD1, rest @ ..] => options = rest,
            [kind, bytes, rest @ ..] => {
                let (data, rest) = rest.split_at_mut_checked(usize::from(*bytes))?;
                if *kind & OPTION_MUTABLE != 0 {
                    data.fill(0);
                }
                options = rest;
            }
            [_] => return None,
        }
    }
}

/// The destination of a packet with segments left is the last of them (`ipv6_rearrange_rthdr`).
fn arrange_route(fixed: &mut [u8; ip6::HEADER_BYTES], header: &mut [u8]) -> Option<()> {
    let left = usize::from(*header.get(3)?);
    if left == 0 {
        return Some(());
    }
    *header.get_mut(3)? = 0;
    let (addresses, _) = header.get_mut(8..)?.as_chunks_mut::<16>();
    let first = addresses.len().checked_sub(left)?;
    let ahead = addresses.get_mut(first..)?;
    ahead.rotate_right(1);
    let (_, destination) = fixed.split_last_chunk_mut::<16>()?;
    std::mem::swap(ahead.first_mut()?, destination);
    Some(())
}

/// The home address is the source (`ipv6_rearrange_destopt`, RFC 6275 11.3.2).
fn arrange_home_address(fixed: &mut [u8; ip6::HEADER_BYTES], header: &mut [u8]) {
    let at = ip6::find_option(header, ip6::OPTION_HOME_ADDRESS);
    let option = at.and_then(|at| header.get_mut(at + 1..));
    if let Some([16, rest @ ..]) = option
        && let (Some(home), Some(source)) = (
            rest.first_chunk_mut::<16>(),
            fixed
                .get_mut(8..24)
                .and_then(|source| source.first_chunk_mut()),
        )
    {
        std::mem::swap(home, source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn immutable_options_stay() {
        let mut options = [1, 0x94, 4, 0, 9, 7, 3, 5, 0x82, 3, 7, 0, 9];
        assert_eq!(blank_v4_options(&mut options), Some(None));
        assert_eq!(options, [1, 0x94, 4, 0, 9, 0, 0, 0, 0x82, 3, 7, 0, 9]);
    }

    #[test]
    fn a_source_route_ends_at_its_last_hop() {
        let mut options = [0x83, 11, 4, 10, 0, 0, 1, 10, 0, 0, 9, 0];
        assert_eq!(blank_v4_options(&mut options), Some(Some([10, 0, 0, 9])));
        assert_eq!(options, [0; 12]);
        assert_eq!(blank_v4_options(&mut [0x83, 5, 4, 1, 2]), None);
    }

    #[test]
    fn options_that_lie_are_refused() {
        for mut options in [[7, 1, 0, 0], [7, 0, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
            assert_eq!(blank_v4_options(&mut options), None);
        }
    }

    /// Up to Linux 6.12 a routing header with more segments left than it has
    /// addresses made AH write in front of them.
    #[test]
    fn more_segments_left_than_addresses() {
        let mut fixed = [0; 40];
        let mut header = [0; 24];
        (header[1], header[3]) = (2, 2);
        assert_eq!(arrange_route(&mut fixed, &mut header), None);
        header[3] = 1;
        header[8] = 9;
        assert_eq!(arrange_route(&mut fixed, &mut header), Some(()));
        assert_eq!((fixed[24], header[3], header[8]), (9, 0, 0));
    }

    #[test]
    fn a_route_is_as_it_will_be() {
        let mut fixed = [0; 40];
        fixed[24..].fill(1);
        let mut header = [0; 8 + 48];
        (header[1], header[3]) = (6, 2);
        for (at, value) in [(8, 5), (24, 2), (40, 3)] {
            header[at..at + 16].fill(value);
        }
        arrange_route(&mut fixed, &mut header).unwrap();
        assert_eq!((header[8], header[24], header[40], fixed[24]), (5, 1, 2, 3));
    }

    proptest! {
        #[test]
        fn any_headers_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v6: bool, kind in prop::sample::select(vec![0u8, 43, 60]), out: bool) {
            let direction = if out { Direction::Out } else { Direction::In };
            if let [first, ..] = &mut bytes[..] {
                *first = if v6 { 0x60 } else { 0x45 };
            }
            if let Some(next) = bytes.get_mut(6) {
                *next = kind;
            }
            let _ = blank(&mut bytes, direction);
        }
    }
}
