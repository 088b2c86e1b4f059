//! Requests as a client builds them, including those that no sane client would.

use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{NlAttr, NlMsgHdr, Pod};
use zerocopy::IntoBytes;

/// A netlink message under construction.
///
/// The length in its header follows its contents until [`Message::with_len`] says otherwise.
/// A sequence number of 0 is replaced by the session's next one.
#[derive(Clone, Debug)]
pub struct Message {
    header: NlMsgHdr,
    payload: Vec<u8>,
    len: Option<u32>,
}

impl Message {
    /// A request of type `kind` that wants an acknowledgement.
    #[must_use]
    pub fn new(kind: u16) -> Self {
        let header = NlMsgHdr {
            len: 0,
            kind,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            seq: 0,
            pid: 0,
        };
        Self {
            header,
            payload: Vec::new(),
            len: None,
        }
    }

    /// A request with a fixed structure.
    #[must_use]
    pub fn with<T: Pod>(kind: u16, body: &T) -> Self {
        Self::new(kind).put(body.as_bytes())
    }

    /// A dump request without body.
    #[must_use]
    pub fn dump(kind: u16) -> Self {
        Self::new(kind).flags(NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// Sets the header's flags.
    #[must_use]
    pub fn flags(mut self, flags: u16) -> Self {
        self.header.flags = flags;
        self
    }

    /// Sets the header's type.
    #[must_use]
    pub fn kind(mut self, kind: u16) -> Self {
        self.header.kind = kind;
        self
    }

    /// Sets the header's sequence number.
    #[must_use]
    pub fn seq(mut self, seq: u32) -> Self {
        self.header.seq = seq;
        self
    }

    /// Sets the header's port id.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Self {
        self.header.pid = pid;
        self
    }

    /// Writes `len` into the header, whatever the length is.
    #[must_use]
    pub fn with_len(mut self, len: u32) -> Self {
        self.len = Some(len);
        self
    }

    /// Appends bytes, padded to four.
    #[must_use]
    pub fn put(mut self, bytes: &[u8]) -> Self {
        self.payload.extend_from_slice(bytes);
        self.payload.resize(align4(self.payload.len()), 0);
        self
    }

    /// Appends bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.payload.extend_from_slice(bytes);
        self
    }

    /// Cuts the payload to `len` bytes.
    #[must_use]
    pub fn cut(mut self, len: usize) -> Self {
        self.payload.truncate(len);
        self
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attr(self, kind: u16, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let len = NLA_HDRLEN + value.len();
        self.attr_claiming(kind, len as u16, value)
    }

    /// Appends an attribute whose header says `len`.
    #[must_use]
    pub fn attr_claiming(mut self, kind: u16, len: u16, value: &[u8]) -> Self {
        self.payload
            .extend_from_slice(NlAttr { len, kind }.as_bytes());
        self.put(value)
    }

    /// Appends a structure as an attribute.
    #[must_use]
    pub fn pod<T: Pod>(self, kind: u16, value: &T) -> Self {
        self.attr(kind, value.as_bytes())
    }

    /// Appends a `u32` attribute.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, value.to_ne_bytes())
    }

    /// The message's bytes, unpadded.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let len = NLMSG_HDRLEN + self.payload.len();
        let header = NlMsgHdr {
            len: self.len.unwrap_or(len as u32),
            ..self.header
        };
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(&self.payload);
        out
    }

    pub(crate) fn number(&mut self, next: &mut u32) {
        if self.header.seq == 0 {
            *next += 1;
            self.header.seq = *next;
        }
    }
}
