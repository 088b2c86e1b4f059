//! Building messages: header, fixed part, attributes, lengths and padding as
//! the kernel's `nlmsg_put`, `nla_put` and `nlmsg_end` leave them.

use crate::align4;
use crate::consts::{NLA_HDRLEN, NLMSG_HDRLEN};
use crate::uapi::{NlAttr, NlMsgHdr, Pod};
use zerocopy::IntoBytes;

/// Appends one message to a buffer; [`Writer::end`] fills in its length.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Writer<'a> {
    /// Starts a message at the end of `out`.
    pub fn begin(out: &'a mut Vec<u8>, kind: u16, flags: u16, seq: u32, pid: u32) -> Self {
        let start = out.len();
        out.extend_from_slice(
            NlMsgHdr {
                len: 0,
                kind,
                flags,
                seq,
                pid,
            }
            .as_bytes(),
        );
        Self { out, start }
    }

    /// A writer for attributes without a message around them (nested ones).
    pub fn attrs_only(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start }
    }

    /// Appends raw bytes, unpadded.
    pub fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Appends the fixed part of a message, padded to four bytes.
    pub fn body<T: Pod>(&mut self, body: &T) {
        self.put(body.as_bytes());
        self.pad_to(align4(T::SIZE) - T::SIZE);
    }

    /// Appends `count` zero bytes.
    pub fn pad_to(&mut self, count: usize) {
        self.out.resize(self.out.len() + count, 0);
    }

    /// Appends an attribute, padded to four bytes.
    ///
    /// A payload beyond 64 KiB has no wire form; the kernel never makes one, and here it is cut.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) {
        self.attr_parts(kind, &[payload]);
    }

    /// Appends an attribute whose payload is given in pieces.
    pub fn attr_parts(&mut self, kind: u16, parts: &[&[u8]]) {
        let bytes = NLA_HDRLEN + parts.iter().map(|part| part.len()).sum::<usize>();
        let len = u16::try_from(bytes).unwrap_or(u16::MAX);
        self.put(NlAttr { len, kind }.as_bytes());
        for part in parts {
            self.put(part);
        }
        self.pad_to(align4(bytes) - bytes);
    }

    /// Appends a structure as an attribute.
    pub fn attr_pod<T: Pod>(&mut self, kind: u16, value: &T) {
        self.attr(kind, value.as_bytes());
    }

    /// Appends a `u32` attribute.
    pub fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Bytes of the message so far, header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the message's length into its header.
    pub fn end(self) {
        let len = u32::try_from(self.len()).unwrap_or(u32::MAX);
        if let Some(field) = self.out.get_mut(self.start..self.start + 4) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Takes the message back, as the kernel does when it does not fit.
    pub fn cancel(self) {
        self.out.truncate(self.start);
    }
}

/// The messages of a datagram, as `netlink_rcv_skb` and clients walk them:
/// a length that is too small or too large ends the walk.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = (NlMsgHdr, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = NlMsgHdr::read(rest)?;
        let len = usize::try_from(header.len).ok()?;
        if len < NLMSG_HDRLEN {
            return None;
        }
        let message = rest.get(..len)?;
        rest = rest.get(align4(len)..).unwrap_or_default();
        Some((header, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_padding() {
        let mut out = Vec::new();
        let mut w = Writer::begin(&mut out, 0x10, 0, 7, 9);
        w.attr(5, &[1, 2, 3, 4, 5]);
        w.end();
        assert_eq!(out.len(), 16 + 12);
        let (header, message) = messages(&out).next().unwrap();
        assert_eq!(
            (header.len, header.seq, header.pid, message.len()),
            (28, 7, 9, 28)
        );
        assert_eq!(&out[16..], [9, 0, 5, 0, 1, 2, 3, 4, 5, 0, 0, 0]);
    }

    #[test]
    fn a_lying_length_ends_the_walk() {
        let mut out = Vec::new();
        Writer::begin(&mut out, 0x10, 0, 0, 0).end();
        let second = out.len();
        Writer::begin(&mut out, 0x10, 0, 0, 0).end();
        out[second] = 15;
        assert_eq!(messages(&out).count(), 1);
        out[second] = 17;
        assert_eq!(messages(&out).count(), 1);
    }
}
