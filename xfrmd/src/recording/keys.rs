//! Keys in netlink messages: zeroed, wherever a message can have any.
//!
//! A key is behind name and sizes of an algorithm's attribute. The attributes of any message are looked
//! at, also of one that has no use for them, of the copy of a request in an error, and of what is no
//! message at all nothing but its first bytes is left. Lengths stay, so that whoever reads the message
//! again judges it alike.

use xfrm_proto::algo::Layout;
use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::decode::fixed_bytes;
use xfrm_proto::uapi::{NlAttr, NlMsgHdr, Pod};

/// An error's number in front of the request.
const ERRNO_BYTES: usize = 4;

/// Zeroes the keys in a datagram; whether there were any.
pub fn zero(datagram: &mut [u8]) -> bool {
    let mut rest = datagram;
    let mut any = false;
    while let Some(header) = NlMsgHdr::read(rest) {
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len < NLMSG_HDRLEN || len > rest.len() {
            break;
        }
        let (message, after) = rest.split_at_mut(align4(len).min(rest.len()));
        any |= zero_message(header, message);
        rest = after;
    }
    // Nobody reads what is left, but for the header that ends the walk.
    any | fill(rest.get_mut(NLMSG_HDRLEN..).unwrap_or_default())
}

fn zero_message(header: NlMsgHdr, message: &mut [u8]) -> bool {
    let body = message.get_mut(NLMSG_HDRLEN..).unwrap_or_default();
    if header.kind == NLMSG_ERROR {
        let echo = body.get_mut(ERRNO_BYTES..).unwrap_or_default();
        // Behind a short copy are attributes of the error's own.
        return match NlMsgHdr::read(echo) {
            Some(request) if header.flags & NLM_F_CAPPED == 0 => {
                let len = usize::try_from(request.len).unwrap_or(usize::MAX);
                let end = len.min(echo.len());
                let copy = echo.get_mut(..end).unwrap_or_default();
                request.kind != NLMSG_ERROR && zero_message(request, copy)
            }
            _ => false,
        };
    }
    if header.kind < NLMSG_MIN_TYPE {
        return false;
    }
    // A request for a dump has nothing in front of its attributes.
    let is_dump = header.flags & NLM_F_DUMP != 0
        && matches!(header.kind, XFRM_MSG_GETSA | XFRM_MSG_GETPOLICY);
    let fixed = match is_dump {
        true => 0,
        false => align4(fixed_bytes(header.kind)),
    };
    zero_attributes(body.get_mut(fixed..).unwrap_or_default())
}

fn zero_attributes(mut rest: &mut [u8]) -> bool {
    let mut any = false;
    while let Some(header) = NlAttr::read(rest) {
        let len = usize::from(header.len);
        if len < NLA_HDRLEN || len > rest.len() {
            break;
        }
        let (attribute, after) = rest.split_at_mut(align4(len).min(rest.len()));
        rest = after;
        let layout = match header.kind & NLA_TYPE_MASK {
            XFRMA_ALG_AUTH | XFRMA_ALG_CRYPT | XFRMA_ALG_COMP => Layout::Plain,
            XFRMA_ALG_AEAD | XFRMA_ALG_AUTH_TRUNC => Layout::WithIcv,
            _ => continue,
        };
        let key = attribute.get_mut(NLA_HDRLEN + layout.header_bytes()..);
        any |= fill(key.unwrap_or_default());
    }
    any | fill(rest)
}

/// Whether there was anything but zeros.
fn fill(bytes: &mut [u8]) -> bool {
    let any = bytes.iter().any(|&byte| byte != 0);
    bytes.fill(0);
    any
}
