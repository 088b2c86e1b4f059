//! Dumps: chunk by chunk, each made when the reader has taken the one before.
//!
//! The first chunk is made while the request is handled, chunk N + 1 when
//! chunk N is received: a dump is stale by one chunk, as on Linux. A chunk is
//! as large as the largest receive buffer that the socket has shown, at least
//! [`FIRST_CHUNK`]; `NLMSG_DONE` always comes in a datagram of its own.
//!
//! Source: `net/netlink/af_netlink.c __netlink_dump_start`, `netlink_dump`,
//! `netlink_dump_done`.

use dataplane::Netns;
use xfrm_proto::consts::*;
use xfrm_proto::extack::{ExtAck, XfrmError, write_done};
use xfrm_proto::uapi::NlMsgHdr;

use super::{Destination, Outbox, Sockets};
use crate::emulator::Peer;
use crate::xfrm::{Dump, StartDump};

/// `NLMSG_GOODSIZE`: a page less what an skb takes of it.
const FIRST_CHUNK: usize = 4096 - 320;
/// `SKB_WITH_OVERHEAD(32768)`: receive buffers count up to here.
const LARGEST_CHUNK: usize = 32768 - 320;

/// A dump under way on a socket.
pub(crate) struct Running {
    dump: Dump,
    seq: u32,
}

/// Starts a dump and makes its first chunk.
pub(crate) fn start(
    ns: &mut Netns,
    sockets: &mut Sockets,
    out: &mut Outbox,
    peer: Peer,
    header: NlMsgHdr,
    message: &[u8],
    start: StartDump,
) -> Result<(), XfrmError> {
    if sockets.is_dumping(peer.port) {
        return Err(XfrmError::new(errno::EBUSY));
    }
    let dump = start(ns, message);
    sockets.dumps.insert(
        peer.port,
        Running {
            dump,
            seq: header.seq,
        },
    );
    continue_dump(ns, sockets, out, peer);
    Ok(())
}

/// Makes the next chunk of `peer`'s dump, if it has one; whether the dump goes on.
pub(crate) fn continue_dump(
    ns: &mut Netns,
    sockets: &mut Sockets,
    out: &mut Outbox,
    peer: Peer,
) -> bool {
    let Some(running) = sockets.dumps.get_mut(&peer.port) else {
        return false;
    };
    let limit = peer.recv_bytes.clamp(FIRST_CHUNK, LARGEST_CHUNK);
    let seq = running.seq;
    let mut end = None;
    out.send(peer.netns, Destination::Port(peer.port), |bytes| {
        let start = bytes.len();
        let result = running.dump.fill(ns, bytes, start + limit, seq, peer.port);
        if result.is_err() || bytes.len() == start {
            bytes.truncate(start);
            end = Some(result);
        }
    });
    let Some(result) = end else { return true };
    let (errno, extack) = match result {
        Ok(()) => (0, ExtAck::default()),
        Err(error) if ns.profile.dump_done_names_attribute => (error.errno, error.extack),
        Err(error) => {
            let text = error.extack.text;
            (
                error.errno,
                ExtAck {
                    text,
                    ..ExtAck::default()
                },
            )
        }
    };
    out.send(peer.netns, Destination::Port(peer.port), |bytes| {
        write_done(bytes, seq, peer.port, errno, &extack, peer.options.ext_ack);
    });
    sockets.dumps.remove(&peer.port);
    false
}
