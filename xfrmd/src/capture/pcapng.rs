//! pcapng (draft-ietf-opsawg-pcapng): a section of two interfaces, outer and inner packets.
//!
//! Packets that belong together have the same `epb_packetid`; which SA it was and why a packet was
//! dropped is in `opt_comment`; what was lost before a packet, in `epb_dropcount`.

use super::record::{Direction, Layer, Record};

/// `LINKTYPE_LINUX_SLL`: a header that tells the direction. Of interfaces without a header
/// (`LINKTYPE_RAW`) libpcap opens only files with a single one.
const LINKTYPE: u16 = 113;
/// Its length.
const HEADER_BYTES: u32 = 16;
const PACKET_HOST: u16 = 0;
const PACKET_OUTGOING: u16 = 4;
const ARPHRD_NONE: u16 = 0xfffe;
const ETHERTYPES: [u16; 2] = [0x0800, 0x86dd];
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;
const EPB_PACKETID: u16 = 5;
/// Nanoseconds.
const RESOLUTION: u8 = 9;

/// The interfaces, by number.
const INTERFACES: [(&str, &str); 2] = [
    ("xfrmd-outer", "packets as they are on the wire"),
    ("xfrmd-inner", "packets as the host has them"),
];

/// A block: type, length, body, length.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(12 + body.len()).unwrap_or(u32::MAX);
    let parts = [
        &kind.to_ne_bytes(),
        &len.to_ne_bytes(),
        body,
        &len.to_ne_bytes(),
    ];
    parts.concat()
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(value);
    pad(out);
}

fn end_options(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

/// What a file begins with.
pub(super) fn header(most_bytes: u32) -> Vec<u8> {
    let mut section = 0x1a2b_3c4d_u32.to_ne_bytes().to_vec();
    section.extend_from_slice(&1_u16.to_ne_bytes());
    section.extend_from_slice(&0_u16.to_ne_bytes());
    section.extend_from_slice(&(-1_i64).to_ne_bytes());
    option(
        &mut section,
        SHB_USERAPPL,
        concat!("xfrmd ", env!("CARGO_PKG_VERSION")).as_bytes(),
    );
    end_options(&mut section);
    let mut out = block(SECTION, &section);
    for (name, description) in INTERFACES {
        let mut interface = LINKTYPE.to_ne_bytes().to_vec();
        interface.extend_from_slice(&[0; 2]);
        let most = most_bytes.saturating_add(HEADER_BYTES);
        interface.extend_from_slice(&most.to_ne_bytes());
        option(&mut interface, IF_NAME, name.as_bytes());
        option(&mut interface, IF_DESCRIPTION, description.as_bytes());
        option(&mut interface, IF_TSRESOL, &[RESOLUTION]);
        end_options(&mut interface);
        out.extend(block(INTERFACE, &interface));
    }
    out
}

/// A packet.
pub(super) fn packet(record: &Record<'_>) -> Vec<u8> {
    let [high, low] = halves(record.time);
    let interface = match record.layer {
        Layer::Outer => 0_u32,
        Layer::Inner => 1,
    };
    let captured = u32::try_from(record.packet.len()).unwrap_or(u32::MAX);
    let mut body = Vec::with_capacity(record.packet.len() + 128);
    for word in [
        interface,
        high,
        low,
        captured.saturating_add(HEADER_BYTES),
        record.bytes.saturating_add(HEADER_BYTES),
    ] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body.extend_from_slice(&link_header(record));
    body.extend_from_slice(record.packet);
    pad(&mut body);
    option(&mut body, OPT_COMMENT, record.comment.as_bytes());
    let direction: u32 = match record.direction {
        Direction::In => 1,
        Direction::Out => 2,
    };
    option(&mut body, EPB_FLAGS, &direction.to_ne_bytes());
    option(
        &mut body,
        EPB_DROPCOUNT,
        &u64::from(record.lost).to_ne_bytes(),
    );
    option(&mut body, EPB_PACKETID, &record.number.to_ne_bytes());
    end_options(&mut body);
    block(ENHANCED_PACKET, &body)
}

/// In network byte order: direction, kind of device, an address of no bytes, protocol.
fn link_header(record: &Record<'_>) -> Vec<u8> {
    let kind = match record.direction {
        Direction::In => PACKET_HOST,
        Direction::Out => PACKET_OUTGOING,
    };
    let [v4, v6] = ETHERTYPES;
    let is_v6 = record.packet.first().is_some_and(|first| first >> 4 == 6);
    let protocol = if is_v6 { v6 } else { v4 };
    let parts = [
        &kind.to_be_bytes(),
        &ARPHRD_NONE.to_be_bytes(),
        &[0; 10][..],
        &protocol.to_be_bytes(),
    ];
    parts.concat()
}

fn halves(time: u64) -> [u32; 2] {
    let low = u32::try_from(time & u64::from(u32::MAX)).unwrap_or(0);
    [u32::try_from(time >> 32).unwrap_or(0), low]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types and bodies of blocks, whose lengths must agree.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, &[u8])> {
        let word =
            |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let len = word(bytes, 4) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(bytes, len - 4) as usize, len);
            out.push((word(bytes, 0), &bytes[8..len - 4]));
            bytes = &bytes[len..];
        }
        out
    }

    #[test]
    fn blocks_are_whole() {
        let record = Record {
            layer: Layer::Inner,
            direction: Direction::In,
            time: 0x0001_0000_0002,
            number: 3,
            lost: 4,
            comment: "five5",
            bytes: 1500,
            packet: &[0x45; 7],
        };
        let file = [header(65535), packet(&record)].concat();
        let blocks = blocks(&file);
        let kinds: Vec<u32> = blocks.iter().map(|block| block.0).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, INTERFACE, ENHANCED_PACKET]);
        let body = blocks[3].1;
        let words: Vec<u32> = body[..20]
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [1, 1, 2, 7 + 16, 1500 + 16]);
        assert_eq!(
            &body[36..44],
            &[0x45, 0x45, 0x45, 0x45, 0x45, 0x45, 0x45, 0]
        );
        assert_eq!(&body[48..53], b"five5");
    }
}
