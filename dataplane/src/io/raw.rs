//! Raw sockets: packets of one IP protocol from the host, and any IP packet out.
//!
//! The host reassembles what it gives us, and sends no ICMP error for a
//! protocol as long as a raw socket receives it. It does neither fragment nor
//! complete what we send: packets are whole ([`crate::packet::fragment`]).
//!
//! Everything that is sent carries the socket's mark, by which the host's
//! rules know that it has passed us already.
//!
//! IPv6 sockets deliver no IP header; it is put together again from what they
//! tell. Extension headers and the flow label are lost, which matters to AH
//! behind extension headers only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::sock_filter;
use xfrm_proto::consts::{IPPROTO_ICMP, IPPROTO_ICMPV6};

use super::{PacketIo, Sent, sys};
use crate::packet::{Family, PacketBuf, ip6, put};

/// Receive and send buffer of a socket.
const ROOM_BYTES: i32 = 8 << 20;

/// A raw socket.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    family: Family,
    protocol: u8,
}

impl Raw {
    /// A socket that receives packets of `protocol` and sends with `mark`, in the thread's
    /// network namespace.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW and, for the mark, CAP_NET_ADMIN; EAFNOSUPPORT without IPv6.
    pub fn open(family: Family, protocol: u8, mark: u32) -> io::Result<Self> {
        let fd = sys::raw_socket(family, protocol)?;
        sys::set_mark(fd.as_fd(), mark)?;
        sys::include_header(fd.as_fd(), family)?;
        sys::set_room(fd.as_fd(), ROOM_BYTES);
        sys::tell_origin(fd.as_fd(), family)?;
        if family == Family::V6 {
            sys::tell_header(fd.as_fd())?;
        }
        Ok(Self {
            fd,
            family,
            protocol,
        })
    }

    /// Goes on with the descriptor of another one, which was opened the same way.
    #[must_use]
    pub const fn adopt(fd: OwnedFd, family: Family, protocol: u8) -> Self {
        Self {
            fd,
            family,
            protocol,
        }
    }

    /// A socket that receives what routers say of packets that were too long.
    ///
    /// # Errors
    /// As [`Raw::open`].
    pub fn open_too_big(family: Family, mark: u32) -> io::Result<Self> {
        let protocol = match family {
            Family::V4 => IPPROTO_ICMP,
            Family::V6 => IPPROTO_ICMPV6,
        };
        let raw = Self::open(family, protocol, mark)?;
        sys::attach_filter(raw.fd(), &too_big_program(family))?;
        Ok(raw)
    }

    /// Becomes readable when a packet waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The protocol that it receives.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Which IP it receives and sends.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Puts the IPv6 header in front again; an empty packet is one that cannot be.
    fn restore(&self, packet: &mut PacketBuf, header: Option<sys::Header6>) {
        if header
            .and_then(|header| put_header6(packet, self.protocol, header))
            .is_none()
        {
            packet.truncate(0);
        }
    }
}

/// Sees the IP header over IPv4, and the ICMP header over IPv6.
fn too_big_program(family: Family) -> Vec<sock_filter> {
    const FRAGMENTATION_NEEDED: u32 = 0x0304;
    const PACKET_TOO_BIG: u32 = 0x0200;
    let (index, wanted) = match family {
        Family::V4 => (libc::BPF_B | libc::BPF_MSH, FRAGMENTATION_NEEDED),
        Family::V6 => (libc::BPF_W | libc::BPF_IMM, PACKET_TOO_BIG),
    };
    vec![
        sys::statement(libc::BPF_LDX | index, 0),
        sys::statement(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0),
        sys::jump(libc::BPF_JEQ, wanted, 0, 1),
        sys::statement(libc::BPF_RET | libc::BPF_K, sys::ACCEPT),
        sys::statement(libc::BPF_RET | libc::BPF_K, sys::DROP),
    ]
}

fn put_header6(packet: &mut PacketBuf, protocol: u8, header: sys::Header6) -> Option<()> {
    packet.push_front(ip6::HEADER_BYTES)?;
    packet.get_mut(..ip6::HEADER_BYTES)?.fill(0);
    let [first, second] = (0x6000 | u16::from(header.traffic_class) << 4).to_be_bytes();
    put(packet, 0, &[first, second])?;
    put(packet, 6, &[protocol, header.hop_limit])?;
    put(packet, 8, &header.source.octets())?;
    put(packet, 24, &header.destination.octets())?;
    ip6::finish(packet)
}

impl Raw {
    /// Receives what one system call gives.
    fn receive_some(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize> {
        let mut headers = [None; sys::BATCH];
        let wants_headers = self.family == Family::V6;
        let result = sys::receive(
            self.fd.as_fd(),
            packets,
            wants_headers.then_some(&mut headers),
        );
        let count = match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other?,
        };
        if wants_headers {
            for (packet, header) in packets.iter_mut().zip(headers).take(count) {
                self.restore(packet, header);
            }
        }
        Ok(count)
    }
}

impl PacketIo for Raw {
    fn receive(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest @ [_, ..]) = packets.get_mut(filled..) {
            match self.receive_some(rest) {
                Ok(count) => {
                    filled += count;
                    if count < sys::BATCH {
                        break;
                    }
                }
                // What a router said is told once; what has come counts.
                Err(error) if filled == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(filled)
    }

    fn send(&mut self, packets: &[PacketBuf]) -> Sent {
        let mut sent = Sent::default();
        let mut rest = packets;
        while !rest.is_empty() {
            let done = match sys::send(self.fd.as_fd(), rest) {
                Ok(count) => {
                    sent.packets += count;
                    count.max(1)
                }
                Err(error) => {
                    sent.count(1, &Err(error));
                    1
                }
            };
            rest = rest.get(done..).unwrap_or_default();
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;
    use xfrm_proto::consts::IPPROTO_ESP;

    #[test]
    fn an_ipv6_header_comes_back() {
        let mut packet = PacketBuf::copy_of(b"payload!");
        let header = sys::Header6 {
            source: Ipv6Addr::LOCALHOST,
            destination: Ipv6Addr::UNSPECIFIED,
            hop_limit: 63,
            traffic_class: 0xb8,
        };
        put_header6(&mut packet, IPPROTO_ESP, header).unwrap();
        assert!(ip6::Header::parse(&packet).is_some());
        assert_eq!(packet[..8], [0x6b, 0x80, 0, 0, 0, 8, IPPROTO_ESP, 63]);
        assert_eq!(packet[8..24], Ipv6Addr::LOCALHOST.octets());
        assert_eq!(&packet[40..], b"payload!");
    }
}
