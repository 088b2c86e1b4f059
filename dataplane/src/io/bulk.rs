//! ESP in UDP, several packets a system call.
//!
//! Raw sockets take and give one packet at a time. A UDP socket sends up to
//! 64 equally long datagrams at once (`UDP_SEGMENT`), which most of the way down
//! cost what one does, and receives as many (`UDP_GRO`); measured, that is three
//! times the throughput. The port is the key manager's, though: [`Bulk::beside`]
//! opens a second socket on it that gets what is ESP and leaves the rest.
//!
//! What can be sent so are IPv4 packets with DF and IPv6 packets, without options
//! or extension headers. Their UDP checksum is then not 0 but right, and the
//! identification the host's.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::sock_filter;
use xfrm_proto::consts::IPPROTO_UDP;

use super::PacketIo;
use super::sys::datagram::{
    self, Header, RECEPTIONS, Reception, bulk_socket, receive_segments, send_segments,
};
use super::sys::{jump, statement};
use super::{Sent, udp_encap};
use crate::packet::{Family, PacketBuf, be16, ip4, ip6, put};

/// Receive and send buffer of a socket.
const ROOM_BYTES: i32 = 8 << 20;
/// `UDP_MAX_SEGMENTS` of older kernels.
const MOST_SEGMENTS: usize = 64;
/// Payload of all datagrams of one call: `IP_MAX_MTU` without the headers of IPv6 and UDP.
const MOST_BYTES: usize = 65_520 - 48;
const UDP_HEADER_BYTES: usize = 8;

/// A UDP socket for whole IP packets that are ESP in UDP from one port.
#[derive(Debug)]
pub struct Bulk {
    fd: OwnedFd,
    address: SocketAddr,
}

/// What a [`Bulk`] has received and not given away yet, for one thread.
#[derive(Debug)]
pub struct Receptions {
    rooms: [Box<[u8]>; RECEPTIONS],
    receptions: [Option<Reception>; RECEPTIONS],
    /// The reception whose turn it is, how many there are, and how much of it is given away.
    at: usize,
    count: usize,
    done: usize,
    /// The socket had no more.
    drained: bool,
}

impl Default for Receptions {
    fn default() -> Self {
        Self {
            rooms: std::array::from_fn(|_| vec![0; 1 << 16].into()),
            receptions: [None; RECEPTIONS],
            at: 0,
            count: 0,
            done: 0,
            drained: false,
        }
    }
}

impl Bulk {
    /// A socket of its own, in the thread's network namespace.
    ///
    /// # Errors
    /// The host's.
    pub fn open(address: SocketAddr, mark: u32) -> io::Result<Self> {
        let fd = bulk_socket(address, mark, ROOM_BYTES, false)?;
        Ok(Self { fd, address })
    }

    /// A socket beside a key manager's, in the thread's network namespace, which must be the
    /// owner's. From then on it receives the ESP that comes to that port, and nothing else.
    ///
    /// # Errors
    /// Unsupported when the owner shares its port, takes both kinds of IP, or neither shares its
    /// address nor has the usual port; the host's.
    pub fn beside(owner: &impl AsFd, mark: u32) -> io::Result<Self> {
        let program = selector_program();
        let (fd, address) = datagram::socket_beside(owner.as_fd(), &program, mark, ROOM_BYTES)?;
        Ok(Self { fd, address })
    }

    /// Becomes readable when a packet waits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Which IP it sends and receives.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.address {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        }
    }

    /// Where it is bound.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Whether a packet can be sent from here.
    #[must_use]
    pub fn takes(&self, packet: &[u8]) -> bool {
        self.header(packet).is_some()
    }

    /// Sends the packets at the front that can go together; how many those were, 0 when the first
    /// one cannot go this way.
    ///
    /// # Errors
    /// The host's; nothing was sent.
    pub fn send(&self, packets: &[PacketBuf]) -> io::Result<usize> {
        let Some((first, payload_at)) = packets.first().and_then(|it| self.header(it)) else {
            return Ok(0);
        };
        let mut parts = [IoSlice::new(&[]); MOST_SEGMENTS];
        let (mut count, mut bytes, mut segment_bytes) = (0, 0, 0);
        for (slot, packet) in parts.iter_mut().zip(packets) {
            let alike = count == 0 || self.header(packet) == Some((first, payload_at));
            let payload = packet.get(payload_at..).unwrap_or_default();
            if count == 0 {
                segment_bytes = payload.len();
            }
            if !alike || payload.len() > segment_bytes || bytes + payload.len() > MOST_BYTES {
                break;
            }
            *slot = IoSlice::new(payload);
            bytes += payload.len();
            count += 1;
            if payload.len() < segment_bytes {
                break;
            }
        }
        let Ok(segment_bytes) = u16::try_from(segment_bytes) else {
            return Ok(0);
        };
        let parts = parts.get(..count).unwrap_or_default();
        send_segments(self.fd.as_fd(), parts, segment_bytes, &first)?;
        Ok(count)
    }

    /// Whether one call takes all of these packets, and one more.
    #[must_use]
    pub fn has_room_beside(&self, packets: &[PacketBuf]) -> bool {
        let [first, .., last] = packets else {
            return true;
        };
        // A shorter one is the last of a call.
        let bytes = packets.iter().map(|packet| packet.len()).sum::<usize>() + first.len();
        packets.len() < MOST_SEGMENTS && bytes <= MOST_BYTES && last.len() == first.len()
    }

    /// The header of a packet that this socket can send, and where the payload begins.
    fn header(&self, packet: &[u8]) -> Option<(Header, usize)> {
        const PLAIN_V4: u8 = 0x45;
        let family = Family::of(packet)?;
        let at = family.header_bytes();
        let ends = (be16(packet, at)?, be16(packet, at + 2)?);
        let (source, destination, protocol, hop_limit, traffic_class) = match family {
            Family::V4 => {
                if *packet.first()? != PLAIN_V4 || be16(packet, 6)? != ip4::DF {
                    return None;
                }
                let address = |at: usize| packet.get(at..)?.first_chunk::<4>().copied();
                (
                    address(12)?.into(),
                    address(16)?.into(),
                    *packet.get(9)?,
                    *packet.get(8)?,
                    *packet.get(1)?,
                )
            }
            Family::V6 => {
                let address = |at: usize| packet.get(at..)?.first_chunk::<16>().copied();
                let [_, class] = (be16(packet, 0)? >> 4).to_be_bytes();
                (
                    address(8)?.into(),
                    address(24)?.into(),
                    *packet.get(6)?,
                    *packet.get(7)?,
                    class,
                )
            }
        };
        let header = Header {
            source: SocketAddr::new(source, ends.0),
            destination: SocketAddr::new(destination, ends.1),
            hop_limit,
            traffic_class,
        };
        let own = self.address.ip();
        let mine = protocol == IPPROTO_UDP
            && ends.0 == self.address.port()
            && (own.is_unspecified() && own.is_ipv4() == source.is_ipv4() || own == source);
        mine.then_some((header, at + UDP_HEADER_BYTES))
    }
}

/// A [`Bulk`] and what it has received.
#[derive(Debug)]
pub struct BulkReceiver<T> {
    bulk: T,
    receptions: Receptions,
}

impl<T: AsRef<Bulk>> BulkReceiver<T> {
    /// Receives from a socket.
    pub fn new(bulk: T) -> Self {
        Self {
            bulk,
            receptions: Receptions::default(),
        }
    }

    /// The socket.
    pub fn bulk(&self) -> &Bulk {
        self.bulk.as_ref()
    }

    /// Forgets what waits.
    ///
    /// # Errors
    /// The host's.
    pub fn discard(&mut self) -> io::Result<()> {
        loop {
            self.receptions.drained = false;
            if !self.refill()? {
                return Ok(());
            }
            self.receptions.at = self.receptions.count;
        }
    }

    /// Receives if nothing is left; false when nothing waits.
    fn refill(&mut self) -> io::Result<bool> {
        let Self { bulk, receptions } = self;
        let Receptions {
            rooms,
            receptions,
            at,
            count,
            drained,
            ..
        } = receptions;
        if *at < *count || *drained {
            return Ok(*at < *count);
        }
        let bulk = bulk.as_ref();
        (*at, *count) = (0, 0);
        let port = bulk.address.port();
        match receive_segments(bulk.fd.as_fd(), rooms, port, receptions) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            other => {
                *count = other?;
                *drained = *count < RECEPTIONS;
                Ok(*count > 0)
            }
        }
    }
}

impl<T: AsRef<Bulk>> PacketIo for BulkReceiver<T> {
    fn receive(&mut self, packets: &mut [PacketBuf]) -> io::Result<usize> {
        let mut filled = 0;
        self.receptions.drained = false;
        while let Some(rest) = packets.get_mut(filled..)
            && self.refill()?
        {
            // What came together stays together, so that it can be joined again.
            if filled > 0 && self.receptions.rest() > rest.len() {
                break;
            }
            let Some(slot) = rest.first_mut() else {
                break;
            };
            if self.receptions.next_into(slot) {
                filled += 1;
            }
        }
        Ok(filled)
    }

    fn send(&mut self, packets: &[PacketBuf]) -> Sent {
        let mut sent = Sent::default();
        let mut rest = packets;
        while !rest.is_empty() {
            let result = self.bulk.as_ref().send(rest);
            let count = *result.as_ref().unwrap_or(&1);
            if count == 0 {
                sent.lost += 1;
            } else {
                sent.count(count, &result.map(drop));
            }
            rest = rest.get(count.max(1)..).unwrap_or_default();
        }
        sent
    }

    fn has_more(&self) -> bool {
        self.receptions.at < self.receptions.count
    }
}

impl Receptions {
    /// Datagrams that are left of the reception whose turn it is.
    fn rest(&self) -> usize {
        let reception = self.receptions.get(self.at).and_then(Option::as_ref);
        reception.map_or(0, |it| {
            it.bytes
                .saturating_sub(self.done)
                .div_ceil(it.segment_bytes)
        })
    }

    /// Moves the next datagram into a buffer as a whole IP packet; false when it is none.
    fn next_into(&mut self, packet: &mut PacketBuf) -> bool {
        let (Some(Some(reception)), Some(room)) =
            (self.receptions.get(self.at), self.rooms.get(self.at))
        else {
            self.at += 1;
            return false;
        };
        let end = reception.bytes.min(room.len());
        let next = end.min(self.done + reception.segment_bytes);
        let payload = room.get(self.done..next).unwrap_or_default();
        packet.set_origin(reception.origin);
        let whole = packet.fill(payload) && put_headers(packet, &reception.header).is_some();
        self.done = next;
        if self.done >= end {
            self.at += 1;
            self.done = 0;
        }
        whole
    }
}

/// Puts IP and UDP headers in front of a datagram's payload.
fn put_headers(packet: &mut PacketBuf, header: &Header) -> Option<()> {
    let udp_bytes = u16::try_from(packet.len() + UDP_HEADER_BYTES).ok()?;
    match (header.source.ip(), header.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.push_front(ip4::HEADER_BYTES + UDP_HEADER_BYTES)?;
            let [length_high, length_low] = (udp_bytes.checked_add(20)?).to_be_bytes();
            let [df, _] = ip4::DF.to_be_bytes();
            put(
                packet,
                0,
                &[0x45, header.traffic_class, length_high, length_low],
            )?;
            put(
                packet,
                4,
                &[0, 0, df, 0, header.hop_limit, IPPROTO_UDP, 0, 0],
            )?;
            put(packet, 12, &source.octets())?;
            put(packet, 16, &destination.octets())?;
            ip4::finish(packet)?;
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.push_front(ip6::HEADER_BYTES + UDP_HEADER_BYTES)?;
            let [first, second] = (0x6000 | u16::from(header.traffic_class) << 4).to_be_bytes();
            put(
                packet,
                0,
                &[first, second, 0, 0, 0, 0, IPPROTO_UDP, header.hop_limit],
            )?;
            put(packet, 8, &source.octets())?;
            put(packet, 24, &destination.octets())?;
            ip6::finish(packet)?;
        }
        _ => return None,
    }
    let at = Family::of(packet)?.header_bytes();
    put(packet, at, &header.source.port().to_be_bytes())?;
    put(packet, at + 2, &header.destination.port().to_be_bytes())?;
    put(packet, at + 4, &udp_bytes.to_be_bytes())?;
    // The host has checked it.
    put(packet, at + 6, &[0, 0])
}

/// Sees the payload: 1 is ESP, 0 the owner's.
fn selector_program() -> [sock_filter; 6] {
    const WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const LENGTH: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_LEN;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    [
        statement(LENGTH, 0),
        jump(libc::BPF_JGT, udp_encap::LONGEST_NON_ESP_PAYLOAD, 0, 3),
        statement(WORD, 0),
        jump(libc::BPF_JEQ, 0, 1, 0),
        statement(RETURN, 1),
        statement(RETURN, 0),
    ]
}
