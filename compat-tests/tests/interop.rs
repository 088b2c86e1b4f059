//! An independent oracle: every message that the emulator sends in any scenario
//! parses with netlink-packet-xfrm, and comes out of it as it went in, but for
//! what that crate is known to lose.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::time::Duration;

use compat_tests::scenario;
use compat_tests::subject::{
    Errno, InProcess, Received, Socket, SocketOptions, Subject, UdpSocket,
};
use dataplane::profile;
use netlink_packet_core::{Emitable as _, ParseableParametrized as _};
use netlink_packet_xfrm::XfrmMessage;
use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{self, NlAttr, Pod};

/// Keeps a copy of everything that is received.
struct Tap {
    inner: InProcess,
    seen: Vec<Vec<u8>>,
}

impl Subject for Tap {
    fn open(&mut self, options: &SocketOptions) -> Result<Socket, Errno> {
        self.inner.open(options)
    }
    fn close(&mut self, socket: Socket) {
        self.inner.close(socket);
    }
    fn set_member(&mut self, socket: Socket, group: u32, member: bool) -> Result<(), Errno> {
        self.inner.set_member(socket, group, member)
    }
    fn send(&mut self, socket: Socket, datagram: &[u8]) -> Result<(), Errno> {
        self.inner.send(socket, datagram)
    }
    fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Result<Received, Errno> {
        let received = self.inner.recv(socket, buffer_bytes)?;
        if received.bytes.len() == received.full_len {
            self.seen
                .extend(messages(&received.bytes).map(|(_, message)| message.to_vec()));
        }
        Ok(received)
    }
    fn open_udp(&mut self, family: u16) -> Result<UdpSocket, Errno> {
        self.inner.open_udp(family)
    }
    fn close_udp(&mut self, socket: UdpSocket) {
        self.inner.close_udp(socket);
    }
    fn set_socket_policy(
        &mut self,
        socket: UdpSocket,
        option_family: u16,
        value: Option<&[u8]>,
    ) -> Result<(), Errno> {
        self.inner.set_socket_policy(socket, option_family, value)
    }
    fn set_sysctl(&mut self, name: &str, value: u32) -> Result<(), Errno> {
        self.inner.set_sysctl(name, value)
    }
    fn sleep(&mut self, time: Duration) {
        self.inner.sleep(time);
    }
    fn wall(&self) -> Duration {
        self.inner.wall()
    }
}

/// The fixed part of a message type, and whether the crate keeps what follows it.
fn shape(kind: u16) -> Option<(usize, bool)> {
    Some(match kind {
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA => (uapi::UserSaInfo::SIZE, true),
        XFRM_MSG_DELSA => (uapi::UserSaId::SIZE, true),
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY => (uapi::UserPolicyInfo::SIZE, true),
        XFRM_MSG_DELPOLICY => (uapi::UserPolicyId::SIZE, true),
        XFRM_MSG_FLUSHPOLICY => (0, true),
        XFRM_MSG_ACQUIRE => (uapi::UserAcquire::SIZE, true),
        XFRM_MSG_POLEXPIRE => (uapi::UserPolExpire::SIZE, true),
        XFRM_MSG_NEWAE => (uapi::AeventId::SIZE, true),
        XFRM_MSG_NEWSADINFO | XFRM_MSG_NEWSPDINFO => (4, true),
        XFRM_MSG_MIGRATE => (uapi::UserPolicyId::SIZE, true),
        // The crate drops the attributes of these.
        XFRM_MSG_EXPIRE => (uapi::UserExpire::SIZE, false),
        XFRM_MSG_FLUSHSA => (uapi::UserSaFlush::SIZE, false),
        XFRM_MSG_GETDEFAULT => (uapi::UserPolicyDefault::SIZE, false),
        // MIGRATE_STATE is newer than the crate.
        _ => return None,
    })
}

/// Type and payload of each attribute.
fn attributes(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(header) = NlAttr::read(rest) {
        let len = usize::from(header.len);
        let Some(payload) = rest.get(NLA_HDRLEN..len) else {
            break;
        };
        all.push((header.kind & NLA_TYPE_MASK, payload.to_vec()));
        rest = rest.get(align4(len)..).unwrap_or_default();
    }
    all
}

/// What the crate makes of a message's body, or how it failed.
fn through_the_crate(kind: u16, body: &[u8]) -> Result<Vec<u8>, String> {
    let body = body.to_vec();
    let parsed = catch_unwind(move || XfrmMessage::parse_with_param(&body, kind));
    let message = parsed
        .map_err(|_| "panics")?
        .map_err(|error| error.to_string())?;
    let mut out = vec![0; message.buffer_len()];
    message.emit(&mut out);
    Ok(out)
}

#[test]
fn every_reply_survives_netlink_packet_xfrm() {
    let mut counts = BTreeMap::new();
    for scenario in scenario::all() {
        let mut tap = Tap {
            inner: InProcess::new(&profile::V7_2),
            seen: Vec::new(),
        };
        let _ = scenario.transcript(&mut tap);
        for message in &tap.seen {
            let kind = u16::from_ne_bytes([message[4], message[5]]);
            let Some((fixed, keeps_attributes)) = shape(kind) else {
                continue;
            };
            let body = &message[NLMSG_HDRLEN..];
            let back = through_the_crate(kind, body)
                .unwrap_or_else(|why| panic!("{}: {kind:#x}: {why}", scenario.name));
            *counts.entry(kind).or_insert(0_u32) += 1;
            assert_eq!(
                without_padding(kind, &body[..fixed]),
                without_padding(kind, &back[..fixed]),
                "{}: {kind:#x}: fixed part",
                scenario.name
            );
            if keeps_attributes {
                let known = |bytes: &[u8]| {
                    let mut all = attributes(bytes);
                    all.retain(|(kind, _)| *kind <= XFRMA_MTIMER_THRESH);
                    all.iter_mut()
                        .for_each(|(kind, payload)| clear_padding(*kind, payload));
                    all
                };
                let (sent, came) = (known(&body[align4(fixed)..]), known(&back[align4(fixed)..]));
                assert_eq!(sent, came, "{}: {kind:#x}: attributes", scenario.name);
            }
        }
    }
    // The oracle must have seen every kind of message, or it proves little.
    for kind in [
        XFRM_MSG_NEWSA,
        XFRM_MSG_NEWPOLICY,
        XFRM_MSG_ACQUIRE,
        XFRM_MSG_EXPIRE,
        XFRM_MSG_NEWAE,
    ] {
        assert!(
            counts.contains_key(&kind),
            "no scenario showed a message of type {kind:#x}"
        );
    }
}

/// Clears what the crate loses of an attribute: padding, which Linux echoes.
fn clear_padding(kind: u16, payload: &mut [u8]) {
    let (size, ranges): (usize, &[(usize, usize)]) = match kind {
        XFRMA_TMPL => (uapi::UserTmpl::SIZE, &[(21, 24), (26, 28), (51, 52)]),
        XFRMA_ENCAP => (uapi::EncapTmpl::SIZE, &[(6, 8)]),
        XFRMA_KMADDRESS => (uapi::UserKmAddress::SIZE, &[(38, 40)]),
        XFRMA_SA => (uapi::UserSaInfo::SIZE, &[(45, 48), (77, 80), (217, 224)]),
        XFRMA_POLICY => (uapi::UserPolicyInfo::SIZE, &[(45, 48), (164, 168)]),
        XFRMA_OFFLOAD_DEV => (uapi::UserOffload::SIZE, &[(5, 8)]),
        _ => return,
    };
    for part in payload.chunks_exact_mut(size) {
        for &(start, end) in ranges {
            part[start..end].fill(0);
        }
    }
}

/// A fixed part with the padding cleared that Linux echoes and the crate zeroes.
fn without_padding(kind: u16, fixed: &[u8]) -> Vec<u8> {
    let mut out = fixed.to_vec();
    let mut clear = |range: std::ops::Range<usize>| {
        if let Some(bytes) = out.get_mut(range) {
            bytes.fill(0);
        }
    };
    match kind {
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA | XFRM_MSG_EXPIRE => {
            clear(45..48);
            clear(77..80);
            clear(217..224);
        }
        XFRM_MSG_DELSA => clear(23..24),
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY | XFRM_MSG_POLEXPIRE => {
            clear(45..48);
            clear(164..168);
        }
        XFRM_MSG_DELPOLICY | XFRM_MSG_MIGRATE => {
            clear(45..48);
            clear(61..64);
        }
        XFRM_MSG_ACQUIRE => {
            clear(21..24);
            clear(85..88);
            clear(141..144);
            clear(260..264);
        }
        XFRM_MSG_NEWAE => clear(23..24),
        _ => {}
    }
    out
}
