//! The header that a tunnel puts in front, as it is before a packet's own fields.

use xfrm_proto::uapi::Address;

use super::mode::V4_PROTOCOL_AT;
use crate::packet::{Family, ip4, ip6};

pub(super) const fn next_header_at(family: Family) -> usize {
    match family {
        Family::V4 => V4_PROTOCOL_AT,
        Family::V6 => ip6::NEXT_HEADER_AT,
    }
}

/// Puts a header's template at the front of a packet.
#[inline]
pub(super) fn lay_out(
    packet: &mut [u8],
    family: Family,
    template: &[u8; ip6::HEADER_BYTES],
) -> Option<()> {
    match family {
        Family::V4 => {
            let header: &mut [u8; ip4::HEADER_BYTES] = packet.first_chunk_mut()?;
            *header = *template.first_chunk()?;
        }
        Family::V6 => *packet.first_chunk_mut()? = *template,
    }
    Some(())
}

/// A header with addresses, version and length, the rest zero.
pub(super) fn header_template(
    family: Family,
    src: &Address,
    dst: &Address,
) -> [u8; ip6::HEADER_BYTES] {
    let mut header = [0; ip6::HEADER_BYTES];
    let (first, at, bytes) = match family {
        Family::V4 => (0x45, 12, 4),
        Family::V6 => (0x60, 8, 16),
    };
    header[0] = first;
    let addresses = header.iter_mut().skip(at);
    let source = src.0.iter().take(bytes);
    let destination = dst.0.iter().take(bytes);
    for (to, from) in addresses.zip(source.chain(destination)) {
        *to = *from;
    }
    header
}
