//! Walking a datagram: which messages are executed, and what answers each.
//!
//! Source: `net/netlink/af_netlink.c netlink_rcv_skb`, `netlink_ack`;
//! `net/xfrm/xfrm_user.c xfrm_user_rcv_msg`.

use dataplane::{Context, Netns};
use xfrm_proto::align4;
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::{ExtAck, XfrmError, write_ack};
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::NlMsgHdr;

use super::{Destination, Outbox, Sockets, dump};
use crate::emulator::Peer;
use crate::xfrm::{self, Call, Request};

/// What became of a message.
enum Outcome {
    /// Acknowledge if asked, or tell the error.
    Answered(Result<(), XfrmError>),
    /// A dump began: no acknowledgement, asked or not.
    Dumping,
}

/// Handles every message of `datagram`; an error in one does not stop the next.
pub(crate) fn receive(
    ns: &mut Netns,
    sockets: &mut Sockets,
    mut cx: Context<'_>,
    out: &mut Outbox,
    peer: Peer,
    datagram: &[u8],
) {
    for (header, message) in messages(datagram) {
        let mut warning = ExtAck::default();
        let mut rewrites = Vec::new();
        let executes = header.flags & NLM_F_REQUEST != 0 && header.kind >= NLMSG_MIN_TYPE;
        let outcome = if executes {
            execute(
                ns,
                sockets,
                &mut cx,
                out,
                peer,
                header,
                message,
                &mut warning,
                &mut rewrites,
            )
        } else {
            Outcome::Answered(Ok(()))
        };
        let (errno, extack) = match outcome {
            Outcome::Dumping => continue,
            Outcome::Answered(Ok(())) if header.flags & NLM_F_ACK == 0 => continue,
            Outcome::Answered(Ok(())) => (
                0,
                ExtAck {
                    text: warning.text,
                    ..ExtAck::default()
                },
            ),
            Outcome::Answered(Err(error)) => {
                let text = if error.extack.is_weak {
                    warning.text.or(error.extack.text)
                } else {
                    error.extack.text.or(warning.text)
                };
                (
                    error.errno,
                    ExtAck {
                        text,
                        ..error.extack
                    },
                )
            }
        };
        let rewritten = apply(&rewrites, message);
        let message = rewritten.as_deref().unwrap_or(message);
        out.send(peer.netns, Destination::Port(peer.port), |bytes| {
            write_ack(bytes, message, peer.port, errno, &extack, peer.options);
        });
    }
}

/// The request as its handler left it, if it wrote into it.
fn apply(rewrites: &[(usize, u16)], message: &[u8]) -> Option<Vec<u8>> {
    if rewrites.is_empty() {
        return None;
    }
    let mut message = message.to_vec();
    for &(offset, value) in rewrites {
        if let Some(place) = message.get_mut(offset..offset + 2) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }
    Some(message)
}

#[expect(
    clippy::too_many_arguments,
    reason = "the state of one message, split by who owns it"
)]
fn execute(
    ns: &mut Netns,
    sockets: &mut Sockets,
    cx: &mut Context<'_>,
    out: &mut Outbox,
    peer: Peer,
    header: NlMsgHdr,
    message: &[u8],
    warning: &mut ExtAck,
    rewrites: &mut Vec<(usize, u16)>,
) -> Outcome {
    let profile = ns.profile;
    if header.kind > profile.msg_max {
        return Outcome::Answered(Err(XfrmError::new(errno::EINVAL)));
    }
    if !peer.privileged {
        return Outcome::Answered(Err(XfrmError::new(errno::EPERM)));
    }
    let link = xfrm::link(header.kind);
    if let Some(start) = link.dump
        && header.flags & NLM_F_DUMP != 0
    {
        return match dump::start(ns, sockets, out, peer, header, message, start) {
            Ok(()) => Outcome::Dumping,
            Err(error) => Outcome::Answered(Err(error)),
        };
    }
    let mut run = || {
        let body_end = NLMSG_HDRLEN + link.min_body;
        if message.len() < body_end {
            return Err(XfrmError::invalid("Invalid header length"));
        }
        let attrs = Attrs::parse(
            message,
            NLMSG_HDRLEN + align4(link.min_body),
            &link.table(profile),
        )?;
        if attrs.leftover {
            warning.text = Some("bytes leftover after parsing attributes".into());
        }
        xfrm::reject_misplaced(profile, header.kind, &attrs)?;
        let handler = link.handler.ok_or(XfrmError::new(errno::EINVAL))?;
        let body = message.get(NLMSG_HDRLEN..).unwrap_or_default();
        let mut call = Call {
            ns,
            cx,
            out,
            sockets,
            netns: peer.netns,
            warning,
            rewrites,
        };
        handler(
            &mut call,
            &Request {
                header,
                body,
                attrs,
                port: peer.port,
            },
        )
    };
    Outcome::Answered(run())
}
