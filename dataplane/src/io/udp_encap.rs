//! ESP in UDP (RFC 3948) beside a key manager that owns the port.
//!
//! Linux takes ESP out of a socket with `UDP_ENCAP` before its owner sees it.
//! Here the owner's socket gets a filter that drops ESP and keepalives
//! ([`filter_owner`]), and a raw UDP socket receives the ESP that comes to
//! those ports ([`UdpEncap`]). What is ESP decides
//! [`crate::packet::encap::classify`]'s rule for type 2: more than eight bytes
//! of payload that do not begin with four zeros.
//!
//! QUIRK: raw_sockets_get_joined_datagrams. What was joined on the way (GRO for
//! a socket that wants it, as strongSwan 6 does; a sender's `UDP_SEGMENT` over a
//! virtual link) a raw socket gets as one datagram, which is cut here again.
//!
//! What is sent is whole IP packets, through any [`super::raw::Raw`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::sock_filter;
use xfrm_proto::consts::IPPROTO_UDP;

use super::raw::Raw;
use super::sys::{ACCEPT, DROP, jump, statement};
use super::{PacketIo, Sent, sys};
use crate::packet::buffer::MAX_PACKET;
use crate::packet::{Family, PacketBuf, encap, ip4, ip6, put};

/// Payload of the longest datagram that is too short to be ESP.
pub(super) const LONGEST_NON_ESP_PAYLOAD: u32 = 8;
/// Its UDP length.
const LONGEST_NON_ESP: u32 = LONGEST_NON_ESP_PAYLOAD + 8;
/// UDP length of a keepalive.
const KEEPALIVE: u32 = 9;
/// Most ports of one socket: jumps of a filter are 8 bits long.
pub const MOST_PORTS: usize = 200;

/// Receives ESP in UDP, whole IP packets, for a set of local ports.
#[derive(Debug)]
pub struct UdpEncap {
    raw: Raw,
    /// What was received last, how many packets of it are given away, and how many there are.
    batch: Vec<PacketBuf>,
    at: usize,
    count: usize,
    /// How much of the payload of the packet at `at`, which is several, is given away.
    done: usize,
}

impl UdpEncap {
    /// A socket for these local ports, in the thread's network namespace.
    ///
    /// # Errors
    /// As [`Raw::open`]; EINVAL for more than [`MOST_PORTS`].
    pub fn open(family: Family, ports: &[u16], mark: u32) -> io::Result<Self> {
        let mut opened = Self::of(Raw::open(family, IPPROTO_UDP, mark)?);
        opened.set_ports(ports)?;
        // What came before the filter was there is not for us.
        let mut waste = [PacketBuf::with_capacity(0)];
        while opened.raw.receive(&mut waste)? > 0 {}
        Ok(opened)
    }

    /// Goes on with the descriptor of another one, and its ports.
    #[must_use]
    pub fn adopt(fd: OwnedFd, family: Family) -> Self {
        Self::of(Raw::adopt(fd, family, IPPROTO_UDP))
    }

    fn of(raw: Raw) -> Self {
        Self {
            raw,
            batch: Vec::new(),
            at: 0,
            count: 0,
            done: 0,
        }
    }

    /// Receives for these ports from now on.
    ///
    /// # Errors
    /// EINVAL for more than [`MOST_PORTS`].
    pub fn set_ports(&self, ports: &[u16]) -> io::Result<()> {
        if ports.len() > MOST_PORTS {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        sys::attach_filter(self.raw.fd(), &receiver_program(self.raw.family(), ports))
    }

    /// Which IP it receives.
    #[must_use]
    pub fn family(&self) -> Family {
        self.raw.family()
    }

    /// Becomes readable when a packet waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.raw.fd()
    }
}

impl PacketIo for UdpEncap {
    fn receive(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(slot) = packets.get_mut(filled) {
            if self.at == self.count {
                let make = || PacketBuf::with_capacity(MAX_PACKET);
                self.batch.resize_with(sys::BATCH, make);
                (self.at, self.count) = (0, self.raw.receive(&mut self.batch)?);
                if self.count == 0 {
                    break;
                }
            }
            filled += usize::from(self.next_into(slot).is_some());
        }
        Ok(filled)
    }

    fn send(&mut self, packets: &[PacketBuf]) -> Sent {
        self.raw.send(packets)
    }

    fn has_more(&self) -> bool {
        self.at < self.count
    }
}

impl UdpEncap {
    /// Moves the next packet into a buffer; `None` when it makes no sense.
    fn next_into(&mut self, slot: &mut PacketBuf) -> Option<()> {
        let packet = self.batch.get_mut(self.at)?;
        self.at += 1;
        let headers = match Family::of(packet)? {
            Family::V4 => ip4::Header::parse(packet)?.header_bytes,
            Family::V6 => ip6::HEADER_BYTES,
        } + encap::HEADER_BYTES;
        let payload = packet.get(headers..)?;
        let Some(bytes) = encap::joined_bytes(payload) else {
            std::mem::swap(slot, packet);
            return Some(());
        };
        let rest = payload.get(self.done..)?;
        let part = rest.get(..bytes).unwrap_or(rest);
        if part.len() < rest.len() {
            self.at -= 1;
            self.done += part.len();
        } else {
            self.done = 0;
        }
        slot.fill(packet.get(..headers)?);
        slot.set_origin(packet.origin());
        slot.push_back(part.len())?.copy_from_slice(part);
        match Family::of(slot)? {
            Family::V4 => ip4::finish(slot)?,
            Family::V6 => ip6::finish(slot)?,
        }
        // The host has checked the sum of them all.
        let datagram = u16::try_from(encap::HEADER_BYTES + part.len()).ok()?;
        let at = headers - encap::HEADER_BYTES;
        put(slot, at + 4, &datagram.to_be_bytes())?;
        put(slot, at + 6, &[0, 0])
    }
}

/// Makes a UDP socket's owner see IKE only.
///
/// # Errors
/// The host's.
pub fn filter_owner(socket: &impl AsFd) -> io::Result<()> {
    sys::attach_filter(socket.as_fd(), &owner_program())
}

const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;

/// Sees the IP header over IPv4, and the UDP header over IPv6, where raw sockets have no more.
fn receiver_program(family: Family, ports: &[u16]) -> Vec<sock_filter> {
    let mut program = vec![match family {
        // Index register: length of the IP header.
        Family::V4 => statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
        Family::V6 => statement(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 0),
    }];
    program.push(statement(HALF, 2));
    let count = u8::try_from(ports.len()).unwrap_or(u8::MAX);
    for (left, &port) in (0..count).rev().zip(ports) {
        // To the checks behind the list's own drop.
        program.push(jump(libc::BPF_JEQ, u32::from(port), left + 1, 0));
    }
    program.extend([
        statement(libc::BPF_RET | libc::BPF_K, DROP),
        statement(HALF, 4),
        jump(libc::BPF_JGT, LONGEST_NON_ESP, 0, 2),
        statement(WORD, 8),
        jump(libc::BPF_JEQ, 0, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, DROP),
        statement(libc::BPF_RET | libc::BPF_K, ACCEPT),
    ]);
    program
}

/// Sees the UDP header.
fn owner_program() -> [sock_filter; 9] {
    const HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    [
        statement(HALF, 4),
        jump(libc::BPF_JGT, LONGEST_NON_ESP, 0, 2),
        statement(WORD, 8),
        jump(libc::BPF_JEQ, 0, 3, 4),
        jump(libc::BPF_JEQ, KEEPALIVE, 0, 2),
        statement(BYTE, 8),
        jump(libc::BPF_JEQ, 0xff, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, ACCEPT),
        statement(libc::BPF_RET | libc::BPF_K, DROP),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use xfrm_proto::consts::UDP_ENCAP_ESPINUDP;

    use crate::packet::encap::{Datagram, classify};

    const PAYLOADS: [&[u8]; 8] = [
        b"",
        b"\xff",
        b"\xfe",
        b"\x00",
        b"12345678",
        b"123456789",
        b"\0\0\0\x0012345",
        b"\0\0\0\x0112345",
    ];

    fn datagram(payload: &[u8]) -> Vec<u8> {
        [&[0; 8], payload].concat()
    }

    /// Which payloads reach a socket with a filter that sees the UDP header.
    fn passed(program: impl FnOnce(u16) -> Vec<sock_filter>) -> Vec<&'static [u8]> {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = receiver.local_addr().unwrap();
        sys::attach_filter(receiver.as_fd(), &program(address.port())).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for payload in PAYLOADS {
            sender.send_to(payload, address).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let mut buffer = [0; 100];
        let mut seen = Vec::new();
        while let Ok(len) = receiver.recv(&mut buffer) {
            let payload = PAYLOADS.into_iter().find(|it| **it == buffer[..len]);
            seen.push(payload.unwrap());
        }
        seen
    }

    #[test]
    fn the_owner_sees_ike_and_the_receiver_esp() {
        let classified = |wanted: fn(&Datagram) -> bool| -> Vec<&[u8]> {
            let kind = |payload: &&[u8]| wanted(&classify(&datagram(payload), UDP_ENCAP_ESPINUDP));
            PAYLOADS.into_iter().filter(kind).collect()
        };
        let ike = classified(|it| matches!(it, Datagram::Ike));
        let esp = classified(|it| matches!(it, Datagram::Esp { .. }));
        assert_eq!((ike.len(), esp.len()), (5, 2));
        assert_eq!(passed(|_| owner_program().to_vec()), ike);
        let mine = |port| receiver_program(Family::V6, &[7, port, 9]);
        assert_eq!(passed(mine), esp);
        assert_eq!(
            passed(|_| receiver_program(Family::V6, &[7, 9])),
            [&b""[..]; 0]
        );
    }
}
