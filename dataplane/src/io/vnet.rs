//! The header in front of a packet of a TUN device with `IFF_VNET_HDR`
//! (`struct virtio_net_hdr`, virtio 1.1 section 5.1.6), in host byte order.

use xfrm_proto::consts::IPPROTO_TCP;

use crate::packet::Family;
use crate::packet::join::Frame;
use crate::packet::segment::Offload;

/// Bytes of the header.
pub(super) const BYTES: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Congestion was experienced; the segmenter looks at the packet itself.
const GSO_ECN: u8 = 0x80;

/// What a device says of the packet behind the header; `None` for what it was never told to do.
pub(super) fn parse(header: &[u8; BYTES]) -> Option<Offload> {
    let [
        flags,
        gso,
        _,
        _,
        size_a,
        size_b,
        start_a,
        start_b,
        offset_a,
        offset_b,
    ] = *header;
    let segment_bytes = match gso & !GSO_ECN {
        GSO_NONE => 0,
        GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4 => u16::from_ne_bytes([size_a, size_b]),
        _ => return None,
    };
    let checksum = (flags & NEEDS_CSUM != 0).then(|| {
        (
            u16::from_ne_bytes([start_a, start_b]),
            u16::from_ne_bytes([offset_a, offset_b]),
        )
    });
    Some(Offload {
        segment_bytes,
        checksum,
    })
}

/// The header of a frame that is to be cut, or of a packet with nothing left to be done.
pub(super) fn write(frame: &Frame, family: Family) -> [u8; BYTES] {
    let Some((start, offset)) = frame.offload.checksum else {
        return WHOLE;
    };
    let gso = match (frame.protocol, family) {
        (IPPROTO_TCP, Family::V4) => GSO_TCPV4,
        (IPPROTO_TCP, Family::V6) => GSO_TCPV6,
        _ => GSO_UDP_L4,
    };
    let [length_a, length_b] = frame.header_bytes.to_ne_bytes();
    let [size_a, size_b] = frame.offload.segment_bytes.to_ne_bytes();
    let [start_a, start_b] = start.to_ne_bytes();
    let [offset_a, offset_b] = offset.to_ne_bytes();
    [
        NEEDS_CSUM, gso, length_a, length_b, size_a, size_b, start_a, start_b, offset_a, offset_b,
    ]
}

/// The header of a packet that is whole.
const WHOLE: [u8; BYTES] = [0; BYTES];

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8) -> [u8; BYTES] {
        let mut header = [flags, gso, 54, 0, 0, 0, 0, 0, 0, 0];
        header[4..6].copy_from_slice(&1348_u16.to_ne_bytes());
        header[6..8].copy_from_slice(&20_u16.to_ne_bytes());
        header[8..10].copy_from_slice(&16_u16.to_ne_bytes());
        header
    }

    #[test]
    fn headers() {
        assert_eq!(parse(&WHOLE), Some(Offload::default()));
        let tcp = Offload {
            segment_bytes: 1348,
            checksum: Some((20, 16)),
        };
        assert_eq!(parse(&header(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN)), Some(tcp));
        let one = Offload {
            segment_bytes: 0,
            ..tcp
        };
        assert_eq!(parse(&header(NEEDS_CSUM, GSO_NONE)), Some(one));
        assert_eq!(parse(&header(0, 3)), None);
    }
}
