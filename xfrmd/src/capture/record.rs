//! A captured packet on its way from the daemon to `xfrmd capture`: one record of a
//! `SOCK_SEQPACKET` connection each, in host byte order.

/// On which side of its SAs a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// As it is on the wire.
    Outer,
    /// As the host has it.
    Inner,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// It came from the wire.
    In,
    /// It goes to the wire.
    Out,
}

/// Without comment and packet.
const HEADER_BYTES: usize = 32;
/// The longest comment.
pub(crate) const MOST_COMMENT: usize = 512;

/// A packet, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) layer: Layer,
    pub(crate) direction: Direction,
    /// Nanoseconds since 1970.
    pub(crate) time: u64,
    /// The same for all packets that one packet was made of or became.
    pub(crate) number: u64,
    /// Packets that were lost before this one, because nobody read them.
    pub(crate) lost: u32,
    /// Its SA, and what became of it.
    pub(crate) comment: &'a str,
    /// How long it was.
    pub(crate) bytes: u32,
    /// As much of it as was asked for.
    pub(crate) packet: &'a [u8],
}

impl<'a> Record<'a> {
    /// Its bytes, behind what is in `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let comment = self.comment.as_bytes();
        let comment = comment.get(..MOST_COMMENT).unwrap_or(comment);
        let len = u16::try_from(comment.len()).unwrap_or(0);
        out.push(u8::from(self.layer == Layer::Inner));
        out.push(u8::from(self.direction == Direction::Out));
        out.extend_from_slice(&len.to_ne_bytes());
        out.extend_from_slice(&self.lost.to_ne_bytes());
        out.extend_from_slice(&self.time.to_ne_bytes());
        out.extend_from_slice(&self.number.to_ne_bytes());
        out.extend_from_slice(&self.bytes.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(comment);
        out.extend_from_slice(self.packet);
    }

    /// Reads one.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let long = |at: usize| {
            header
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u64::from_ne_bytes)
        };
        let word = |at: usize| {
            header
                .get(at..)?
                .first_chunk()
                .copied()
                .map(u32::from_ne_bytes)
        };
        let &[inner, out, a, b, ..] = header;
        let (comment, packet) = rest.split_at_checked(u16::from_ne_bytes([a, b]).into())?;
        Some(Self {
            layer: if inner == 0 {
                Layer::Outer
            } else {
                Layer::Inner
            },
            direction: if out == 0 {
                Direction::In
            } else {
                Direction::Out
            },
            lost: word(4)?,
            time: long(8)?,
            number: long(16)?,
            bytes: word(24)?,
            comment: std::str::from_utf8(comment).ok()?,
            packet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back() {
        let record = Record {
            layer: Layer::Inner,
            direction: Direction::Out,
            time: 5,
            number: 6,
            lost: 7,
            comment: "a comment",
            bytes: 9,
            packet: &[1, 2, 3],
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), Some(record));
        for len in 0..HEADER_BYTES + record.comment.len() {
            assert_eq!(Record::decode(&bytes[..len]), None);
        }
    }
}
