//! The attributes of a request: parsed once, last one of a type wins.
//!
//! Source: `lib/nlattr.c __nla_validate_parse` with `NL_VALIDATE_LIBERAL`.
//! Nothing here copies; payloads are slices of the request.

use crate::consts::{NLA_F_NESTED, NLA_HDRLEN, NLA_TYPE_MASK, XFRMA_MAX};
use crate::extack::XfrmError;
use crate::policy::Table;
use crate::uapi::{NlAttr, Pod};
use crate::{align4, consts::errno};

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Offset of the attribute in the message, 0 for absent.
    offset: u32,
    /// Payload bytes.
    len: u16,
}

/// The attributes of one request.
#[derive(Clone, Debug)]
pub struct Attrs<'a> {
    message: &'a [u8],
    slots: [Slot; XFRMA_MAX as usize + 1],
    /// Bytes were left over behind the last attribute: the kernel goes on and says so.
    pub leftover: bool,
}

impl<'a> Attrs<'a> {
    /// No attributes.
    #[must_use]
    pub fn none(message: &'a [u8]) -> Self {
        Self {
            message,
            slots: [Slot::default(); XFRMA_MAX as usize + 1],
            leftover: false,
        }
    }

    /// Parses what follows the fixed header; `start` is its (aligned) offset in `message`.
    ///
    /// # Errors
    /// The first attribute that fails `table`.
    pub fn parse(message: &'a [u8], start: usize, table: &Table) -> Result<Self, XfrmError> {
        let mut attrs = Self::none(message);
        let mut at = start;
        loop {
            let rest = message.get(at..).unwrap_or_default();
            let header = NlAttr::read(rest);
            let attr = header.map(|h| (h.kind, rest.get(NLA_HDRLEN..usize::from(h.len))));
            let Some((raw_kind, Some(payload))) = attr else {
                attrs.leftover = !rest.is_empty();
                return Ok(attrs);
            };
            let offset = u32::try_from(at).map_err(|_| XfrmError::new(errno::EINVAL))?;
            let kind = raw_kind & NLA_TYPE_MASK;
            if kind != 0 && kind <= table.max {
                table.validate(kind, raw_kind & NLA_F_NESTED != 0, payload, offset)?;
                if let Some(slot) = attrs.slots.get_mut(usize::from(kind)) {
                    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
                    *slot = Slot { offset, len };
                }
            }
            at += align4(NLA_HDRLEN + payload.len());
        }
    }

    fn slot(&self, kind: u16) -> Option<Slot> {
        self.slots
            .get(usize::from(kind))
            .copied()
            .filter(|slot| slot.offset != 0)
    }

    /// Whether the attribute was given.
    #[must_use]
    pub fn has(&self, kind: u16) -> bool {
        self.slot(kind).is_some()
    }

    /// The attribute's payload.
    #[must_use]
    pub fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        let slot = self.slot(kind)?;
        let start = slot.offset as usize + NLA_HDRLEN;
        self.message.get(start..start + usize::from(slot.len))
    }

    /// Where the attribute starts in its message, for `NLMSGERR_ATTR_OFFS`.
    #[must_use]
    pub fn offset(&self, kind: u16) -> Option<u32> {
        self.slot(kind).map(|slot| slot.offset)
    }

    /// Where the attribute's payload starts in its message.
    #[must_use]
    pub fn payload_offset(&self, kind: u16) -> Option<usize> {
        self.slot(kind)
            .map(|slot| slot.offset as usize + NLA_HDRLEN)
    }

    /// The structure at the front of the attribute; the table has checked its length.
    #[must_use]
    pub fn pod<T: Pod>(&self, kind: u16) -> Option<T> {
        T::read(self.bytes(kind)?)
    }

    /// A `u32` attribute.
    #[must_use]
    pub fn u32(&self, kind: u16) -> Option<u32> {
        self.bytes(kind)?
            .first_chunk()
            .copied()
            .map(u32::from_ne_bytes)
    }

    /// A `u16` attribute.
    #[must_use]
    pub fn u16(&self, kind: u16) -> Option<u16> {
        self.bytes(kind)?
            .first_chunk()
            .copied()
            .map(u16::from_ne_bytes)
    }

    /// A `u8` attribute.
    #[must_use]
    pub fn u8(&self, kind: u16) -> Option<u8> {
        self.bytes(kind)?.first().copied()
    }

    /// All structures of an array attribute; a remainder is ignored, as Linux does.
    pub fn array<T: Pod>(&self, kind: u16) -> impl ExactSizeIterator<Item = T> + use<'a, T> {
        self.bytes(kind)
            .unwrap_or_default()
            .chunks_exact(T::SIZE)
            .map(|chunk| T::read(chunk).unwrap_or_default())
    }

    /// The types that were given, ascending.
    pub fn kinds(&self) -> impl Iterator<Item = u16> + '_ {
        (0..=XFRMA_MAX).filter(|&kind| self.has(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consts::*;

    fn attr(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&u16::try_from(payload.len() + 4).unwrap().to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(payload);
        out.resize(align4(out.len()), 0);
        out
    }

    fn message(attrs: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![0; 16];
        attrs.iter().for_each(|a| out.extend_from_slice(a));
        out
    }

    #[test]
    fn last_one_wins_and_unknown_is_ignored() {
        let m = message(&[
            attr(XFRMA_IF_ID, &[1, 0, 0, 0]),
            attr(200, &[9]),
            attr(XFRMA_IF_ID, &[2, 0, 0, 0, 7]),
        ]);
        let attrs = Attrs::parse(&m, 16, &Table::xfrma(XFRMA_MAX)).unwrap();
        assert_eq!(
            attrs.u32(XFRMA_IF_ID),
            Some(u32::from_ne_bytes([2, 0, 0, 0]))
        );
        assert!(!attrs.leftover);
    }

    #[test]
    fn short_attribute_is_erange_with_offset() {
        let m = message(&[attr(XFRMA_IF_ID, &[1, 0, 0, 0]), attr(XFRMA_MARK, &[0; 7])]);
        let error = Attrs::parse(&m, 16, &Table::xfrma(XFRMA_MAX)).unwrap_err();
        assert_eq!(error.errno, errno::ERANGE);
        assert_eq!(error.extack.offset, Some(24));
    }

    #[test]
    fn strict_attributes_want_their_exact_length() {
        let m = message(&[attr(XFRMA_SA_DIR, &[1, 0])]);
        let error = Attrs::parse(&m, 16, &Table::xfrma(XFRMA_MAX)).unwrap_err();
        assert_eq!(
            (error.errno, error.extack.text.as_deref()),
            (errno::EINVAL, Some("invalid attribute length"))
        );
        assert!(Attrs::parse(&m, 16, &Table::xfrma(XFRMA_MTIMER_THRESH)).is_ok());
    }

    #[test]
    fn junk_behind_the_last_attribute_is_remembered() {
        let mut m = message(&[attr(XFRMA_IF_ID, &[1, 0, 0, 0])]);
        m.extend_from_slice(&[3, 0]);
        assert!(
            Attrs::parse(&m, 16, &Table::xfrma(XFRMA_MAX))
                .unwrap()
                .leftover
        );
    }
}
