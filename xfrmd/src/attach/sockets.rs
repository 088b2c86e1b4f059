//! Sockets that have policies of their own, and which of them a packet is for.
//!
//! What such a socket sends has its mark. For what arrives the host is asked
//! which socket it would be delivered to, and tells the mark of that one
//! (`sock_diag(7)`); the children of a listener have the listener's.

use std::io;

use dataplane::spd::{Flow, SocketKey};
use nix::sys::socket::SockProtocol;
use xfrm_proto::consts::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};

use super::netlink::{Messages, Socket, attrs};
use super::{OWN, OWN_MASK, STATE_MASK};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `inet_diag_msg`.
const ANSWER_BYTES: usize = 72;
const INET_DIAG_MARK: u16 = 15;

/// A socket that has policies of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnSocket {
    /// Its mark, of the bits of [`OWN_MASK`].
    pub(crate) mark: u32,
    /// The mark that its user has set.
    pub(crate) user_mark: u32,
    /// Itself, as its policies know it.
    pub(crate) key: SocketKey,
}

/// All of a namespace, as one thread knows them.
#[derive(Debug, Default)]
pub(super) struct OwnSockets {
    sockets: Vec<OwnSocket>,
    asking: Option<Socket>,
}

impl OwnSockets {
    /// In the thread's namespace.
    pub(super) fn set(&mut self, sockets: Vec<OwnSocket>) -> io::Result<()> {
        if self.asking.is_none() && !sockets.is_empty() {
            self.asking = Some(Socket::open(SockProtocol::NetlinkSockDiag)?);
        }
        self.sockets = sockets;
        Ok(())
    }

    /// The socket whose mark this is.
    pub(super) fn of_mark(&self, mark: u32) -> Option<OwnSocket> {
        if mark & OWN == 0 {
            return None;
        }
        let sockets = self.sockets.iter();
        sockets
            .copied()
            .find(|socket| socket.mark == mark & OWN_MASK)
    }

    /// The socket that a packet from outside is for.
    pub(super) fn of_flow(&self, flow: &Flow) -> Option<OwnSocket> {
        if self.sockets.is_empty() || !matches!(flow.proto, IPPROTO_TCP | IPPROTO_UDP) {
            return None;
        }
        let mut mark = None;
        let asked = self
            .asking
            .as_ref()?
            .exchange(&question(flow), |kind, answer| {
                if kind == SOCK_DIAG_BY_FAMILY {
                    mark = mark_of(answer);
                }
            });
        if let Err(error) = asked {
            tracing::debug!(%error, "asking for a socket");
        }
        let mark = mark?;
        self.of_mark(mark).filter(|_| mark & STATE_MASK == OWN)
    }
}

/// Which of these marks are on a connection of the namespace, closed by its program or not.
pub(super) fn alive(asking: &Socket, marks: &[u32]) -> io::Result<Vec<u32>> {
    const NLM_F_DUMP: u16 = 0x300;
    /// What is left of a connection when both ends have closed it.
    const TIME_WAIT: u32 = 1 << 6;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut messages = Messages::default();
        messages.push(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, |out| {
            let [family, _] = family.to_le_bytes();
            out.fixed(&[family, IPPROTO_TCP, 0, 0]);
            out.fixed(&(!TIME_WAIT).to_ne_bytes());
            out.fixed(&[0; 48]);
        });
        asking.exchange(&messages, |kind, answer| {
            let mark = mark_of(answer).filter(|_| kind == SOCK_DIAG_BY_FAMILY);
            found.extend(mark.filter(|mark| marks.contains(&(mark & OWN_MASK))));
        })?;
    }
    Ok(found.into_iter().map(|mark| mark & OWN_MASK).collect())
}

fn mark_of(answer: &[u8]) -> Option<u32> {
    let mut attrs = attrs(answer.get(ANSWER_BYTES..)?);
    let (_, value) = attrs.find(|&(kind, _)| kind == INET_DIAG_MARK)?;
    value.first_chunk().map(|mark| u32::from_ne_bytes(*mark))
}

/// `inet_diag_req_v2`.
fn question(flow: &Flow) -> Messages {
    let mut messages = Messages::default();
    let bytes = if flow.family == AF_INET6 { 16 } else { 4 };
    let (ours, theirs) = ((flow.daddr, flow.dport), (flow.saddr, flow.sport));
    // Of UDP the host wants the ends the other way round.
    let (source, destination) = match flow.proto {
        IPPROTO_UDP => (theirs, ours),
        _ => (ours, theirs),
    };
    messages.push(SOCK_DIAG_BY_FAMILY, 0, |out| {
        let [family, _] = flow.family.to_le_bytes();
        out.fixed(&[family, flow.proto, 0, 0]);
        out.fixed(&u32::MAX.to_ne_bytes());
        let ([a, b], [c, d]) = (source.1.to_be_bytes(), destination.1.to_be_bytes());
        out.fixed(&[a, b, c, d]);
        for (address, _) in [source, destination] {
            let mut field = [0; 16];
            for (slot, byte) in field.iter_mut().zip(address.0).take(bytes) {
                *slot = byte;
            }
            out.fixed(&field);
        }
        // Any interface, any cookie.
        out.fixed(&[0; 4]);
        out.fixed(&[0xff; 8]);
    });
    messages
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;

    /// Whether the host finds the socket that a packet from `from` to `to` is for.
    fn is_found(proto: u8, from: SocketAddr, to: SocketAddr) -> bool {
        let address = |of: SocketAddr| {
            let mut address = xfrm_proto::uapi::Address::default();
            if let std::net::IpAddr::V4(ip) = of.ip() {
                address.0[..4].copy_from_slice(&ip.octets());
            }
            address
        };
        let flow = Flow {
            family: AF_INET,
            daddr: address(to),
            saddr: address(from),
            proto,
            dport: to.port(),
            sport: from.port(),
            ifindex: 0,
            mark: 0,
        };
        let asking = Socket::open(SockProtocol::NetlinkSockDiag).unwrap();
        let mut found = false;
        asking
            .exchange(&question(&flow), |kind, _| {
                found |= kind == SOCK_DIAG_BY_FAMILY;
            })
            .unwrap();
        found
    }

    #[test]
    fn sock_diag_swaps_the_ends_of_udp() {
        let here = UdpSocket::bind("127.0.0.1:0").unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let [at, from] = [&here, &there].map(|socket| socket.local_addr().unwrap());
        here.connect(from).unwrap();
        // Whoever asks for the wrong end finds nobody.
        there.connect("127.0.0.1:9").unwrap();
        assert!(is_found(IPPROTO_UDP, from, at));
        assert!(!is_found(IPPROTO_UDP, at, from));
    }
}
