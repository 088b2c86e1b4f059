//! Errors as netlink carries them: an errno, and what extended acknowledgements
//! add to it. The one place that turns [`XfrmError`] into bytes.
//!
//! Source: `net/netlink/af_netlink.c netlink_ack`, `netlink_dump_done`.

use std::borrow::Cow;

use crate::align4;
use crate::consts::*;
use crate::reply::Writer;
use crate::uapi::{NlMsgHdr, Pod};
use zerocopy::IntoBytes;

/// The kernel's copy of the violated attribute policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrRange {
    /// `NL_ATTR_TYPE_*`.
    pub kind: u32,
    /// Lowest and highest value.
    pub limits: Option<(u64, u64)>,
}

/// What an extended acknowledgement says beside the errno.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtAck {
    /// The message.
    pub text: Option<Cow<'static, str>>,
    /// Offset of the offending attribute.
    pub offset: Option<u32>,
    /// Its policy.
    pub policy: Option<AttrRange>,
    /// A text that was set before stays (`NL_SET_ERR_MSG_WEAK`).
    pub is_weak: bool,
}

impl ExtAck {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XfrmError {
    /// Positive errno.
    pub errno: i32,
    /// Text and offset, when the kernel gives them.
    pub extack: ExtAck,
}

impl XfrmError {
    /// An errno without text.
    #[must_use]
    pub const fn new(errno: i32) -> Self {
        Self {
            errno,
            extack: ExtAck {
                text: None,
                offset: None,
                policy: None,
                is_weak: false,
            },
        }
    }

    /// The same error, with `text` if there is none yet (`NL_SET_ERR_MSG_WEAK`).
    #[must_use]
    pub fn or_text(mut self, text: &'static str) -> Self {
        if self.extack.text.is_none() {
            self.extack.text = Some(text.into());
            self.extack.is_weak = true;
        }
        self
    }

    /// An errno with the kernel's text.
    #[must_use]
    pub fn with_text(errno: i32, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            errno,
            extack: ExtAck {
                text: Some(text.into()),
                offset: None,
                policy: None,
                is_weak: false,
            },
        }
    }

    /// EINVAL with the kernel's text, the commonest of all.
    #[must_use]
    pub fn invalid(text: &'static str) -> Self {
        Self::with_text(errno::EINVAL, text)
    }
}

impl std::fmt::Display for XfrmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.extack.text {
            Some(text) => write!(f, "errno {}: {text}", self.errno),
            None => write!(f, "errno {}", self.errno),
        }
    }
}

impl std::error::Error for XfrmError {}

/// What the requesting socket asked acknowledgements to look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckOptions {
    /// `NETLINK_CAP_ACK`: do not echo the request.
    pub cap_ack: bool,
    /// `NETLINK_EXT_ACK`: append TLVs.
    pub ext_ack: bool,
}

/// Appends the `NLMSG_ERROR` for `request` (a whole message, header included) to `out`.
///
/// `errno` 0 is an acknowledgement. `port` is the requester's port id.
pub fn write_ack(
    out: &mut Vec<u8>,
    request: &[u8],
    port: u32,
    errno: i32,
    extack: &ExtAck,
    options: AckOptions,
) {
    let header = NlMsgHdr::read(request).unwrap_or_default();
    let echo = errno != 0 && !options.cap_ack;
    let tlvs = options.ext_ack && !extack.is_empty();
    let mut flags = 0;
    if !echo {
        flags |= NLM_F_CAPPED;
    }
    if tlvs {
        flags |= NLM_F_ACK_TLVS;
    }
    let mut writer = Writer::begin(out, NLMSG_ERROR, flags, header.seq, port);
    writer.put(&(-errno).to_ne_bytes());
    if echo {
        writer.put(request);
        writer.pad_to(align4(request.len()) - request.len());
    } else {
        writer.put(header.as_bytes());
    }
    if tlvs {
        write_tlvs(&mut writer, extack);
    }
    writer.end();
}

/// Appends the `NLMSG_DONE` that ends a dump, in a datagram of its own.
pub fn write_done(
    out: &mut Vec<u8>,
    seq: u32,
    port: u32,
    errno: i32,
    extack: &ExtAck,
    ext_ack: bool,
) {
    let tlvs = ext_ack && !extack.is_empty();
    let flags = NLM_F_MULTI | if tlvs { NLM_F_ACK_TLVS } else { 0 };
    let mut writer = Writer::begin(out, NLMSG_DONE, flags, seq, port);
    writer.put(&(-errno).to_ne_bytes());
    if tlvs {
        write_tlvs(&mut writer, extack);
    }
    writer.end();
}

fn write_tlvs(writer: &mut Writer<'_>, extack: &ExtAck) {
    if let Some(text) = &extack.text {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        writer.attr(NLMSGERR_ATTR_MSG, &bytes);
    }
    if let Some(offset) = extack.offset {
        writer.attr(NLMSGERR_ATTR_OFFS, &offset.to_ne_bytes());
    }
    if let Some(policy) = extack.policy {
        let mut nested = Vec::new();
        let mut inner = Writer::attrs_only(&mut nested);
        if let Some((low, high)) = policy.limits {
            inner.attr(NL_POLICY_TYPE_ATTR_MIN_VALUE_U, &low.to_ne_bytes());
            inner.attr(NL_POLICY_TYPE_ATTR_MAX_VALUE_U, &high.to_ne_bytes());
        }
        inner.attr(NL_POLICY_TYPE_ATTR_TYPE, &policy.kind.to_ne_bytes());
        writer.attr(NLMSGERR_ATTR_POLICY | NLA_F_NESTED, &nested);
    }
}
