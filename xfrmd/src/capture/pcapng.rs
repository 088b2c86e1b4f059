//! A capture as pcapng: a section of two interfaces, outer and inner packets.
//!
//! Packets that belong together have the same `epb_packetid`; which SA it was and why a packet was
//! dropped is in `opt_comment`; what was lost before a packet, in `epb_dropcount`.

use xfrmd::recording::pcapng::{
    Block, COOKED_BYTES, EPB_DROPCOUNT, EPB_FLAGS, EPB_PACKETID, LINK_COOKED, OPT_COMMENT,
    packet_header, section,
};

use super::record::{Direction, Layer, Record};

/// The interfaces, by number.
const INTERFACES: [(u16, &str, &str); 2] = [
    (
        LINK_COOKED,
        "xfrmd-outer",
        "packets as they are on the wire",
    ),
    (LINK_COOKED, "xfrmd-inner", "packets as the host has them"),
];

/// What a file begins with.
pub(super) fn header(most_bytes: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let cooked = u32::try_from(COOKED_BYTES).unwrap_or(0);
    section(
        &mut out,
        most_bytes.saturating_add(cooked),
        None,
        &INTERFACES,
    );
    out
}

/// A packet.
pub(super) fn packet(record: &Record<'_>) -> Vec<u8> {
    let interface = match record.layer {
        Layer::Outer => 0,
        Layer::Inner => 1,
    };
    let captured = COOKED_BYTES + record.packet.len();
    let bytes = COOKED_BYTES + usize::try_from(record.bytes).unwrap_or(0);
    let mut out = Vec::with_capacity(captured + 128);
    let mut block = Block::packet(&mut out, interface, record.time, [captured, bytes]);
    let leaves = record.direction == Direction::Out;
    block.put(&packet_header(leaves, record.packet));
    block.put(record.packet);
    block.pad();
    block.option(OPT_COMMENT, record.comment.as_bytes());
    let direction: u32 = if leaves { 2 } else { 1 };
    block.option(EPB_FLAGS, &direction.to_ne_bytes());
    block.option(EPB_DROPCOUNT, &u64::from(record.lost).to_ne_bytes());
    block.option(EPB_PACKETID, &record.number.to_ne_bytes());
    block.end();
    out
}

#[cfg(test)]
mod tests {
    use xfrmd::recording::pcapng::{ENHANCED_PACKET, INTERFACE, SECTION, blocks};

    use super::*;

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
        let blocks: Vec<_> = blocks(&file).map(Result::unwrap).collect();
        let kinds: Vec<u32> = blocks.iter().map(|block| block.kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, INTERFACE, ENHANCED_PACKET]);
        let found = blocks[3].packet().unwrap();
        assert_eq!((found.interface, found.nanos), (1, record.time));
        assert_eq!(found.payload(), record.packet);
        let (code, comment) = found.options().next().unwrap();
        assert_eq!((code, comment), (OPT_COMMENT, &b"five5"[..]));
    }
}
