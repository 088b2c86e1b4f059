//! A host around the engine: what of a kernel is not IPsec, as little as traffic scenarios need.
//!
//! Two links, fixed addresses and routes, UDP sockets, and ICMP where scenarios meet it. It
//! models the host that [`super::tun`] sets up, no other.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use dataplane::netns::Context;
use dataplane::packet::checksum::{addresses, checksum, pseudo_header};
use dataplane::packet::{Family, PacketBuf, icmp, ip4, ip6};
use dataplane::path::{
    Destination, Host, InputMeta, OutputMeta, Owner, PathInfo, Received, RouteQuery, Routes,
    Verdict, Worker,
};
use dataplane::spd::{Flow, SocketKey};
use dataplane::{Netns, SeededEntropy};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::Address;

use super::Errno;
use super::packets::{Datagram, LINK_MTU, Link, UdpOptions};

const LOOPBACK: i32 = 1;
const HOP_LIMIT: u8 = 64;
/// More than SAs put in front of a packet here.
const MOST_HEADERS: usize = 200;
/// `tos` of ICMP errors.
const INTERNETWORK_CONTROL: u8 = 0xc0;
/// An identification that no scenario uses.
const IDENT: u16 = 0x7777;
const DF: u16 = 0x4000;

/// A UDP socket.
#[derive(Default)]
struct Udp {
    options: UdpOptions,
    queue: VecDeque<Datagram>,
}

/// Routes, sockets, and what is on the links.
#[derive(Default)]
struct World {
    sockets: BTreeMap<usize, Udp>,
    links: [VecDeque<Vec<u8>>; 2],
    /// MTUs that routers have told of.
    learned: BTreeMap<Address, u32>,
}

/// The host.
pub(super) struct ModelHost {
    worker: Worker,
    world: World,
}

/// Where addresses are, and which of them is the host's there.
fn link_of(address: IpAddr) -> Option<(Link, IpAddr)> {
    let inside = |own: &str| Some((Link::Inside, own.parse().ok()?));
    let outside = |own: &str| Some((Link::Outside, own.parse().ok()?));
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [10, 1, 0, _] => inside("10.1.0.254"),
            [10, 0, 0, _] | [10, 2, ..] => outside("10.0.0.1"),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0xfd01, 0, 0, 0, ..] => inside("fd01::fe"),
            [0xfd00 | 0xfd02, 0, 0, 0, ..] => outside("fd00::1"),
            _ => None,
        },
    }
}

fn is_own(address: IpAddr) -> bool {
    let on_link = link_of(address);
    on_link.is_some_and(|(_, own)| own == address)
}

fn ip_of(family: u16, address: Address) -> IpAddr {
    match family {
        AF_INET => IpAddr::from(*address.0.first_chunk::<4>().unwrap()),
        _ => IpAddr::from(address.0),
    }
}

/// Source and destination of a packet.
fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let both = addresses(packet)?;
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        match bytes.len() {
            4 => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
            _ => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        }
    };
    let (source, destination) = both.split_at(both.len() / 2);
    Some((ip(source)?, ip(destination)?))
}

impl Routes for World {
    fn generation(&self) -> u64 {
        self.learned.len() as u64
    }

    fn route(&self, query: &RouteQuery) -> Result<PathInfo, i32> {
        link_of(ip_of(query.family, query.daddr)).ok_or(libc::ENETUNREACH)?;
        let learned = self.learned.get(&query.daddr).copied();
        Ok(PathInfo {
            mtu: learned.unwrap_or(LINK_MTU),
            hop_limit: HOP_LIMIT,
        })
    }

    fn source(&self, query: &RouteQuery) -> Result<Address, i32> {
        let to = link_of(ip_of(query.family, query.daddr));
        to.map(|(_, own)| own.into()).ok_or(libc::ENETUNREACH)
    }
}

impl Host for World {
    fn destination(&self, family: u16, address: Address) -> Option<Destination> {
        let address = ip_of(family, address);
        let (link, _) = link_of(address)?;
        let is_local = is_own(address);
        Some(Destination {
            is_local,
            ifindex: if is_local {
                LOOPBACK
            } else {
                link.index() as i32
            },
        })
    }

    fn owner(&self, flow: &Flow) -> Option<Owner> {
        let to = SocketAddr::new(ip_of(flow.family, flow.daddr), flow.dport);
        let mut sockets = self.sockets.iter().filter(|_| flow.proto == IPPROTO_UDP);
        let (&number, socket) = sockets.find(|(_, socket)| socket.options.source == Some(to))?;
        Some(Owner {
            socket: SocketKey(number as u64),
            encap: socket.options.encap,
        })
    }
}

impl World {
    /// A packet that is ready for the wire.
    fn leave(&mut self, packet: &[u8]) {
        let to = ends(packet).and_then(|(_, destination)| link_of(destination));
        if let Some((link, _)) = to {
            self.links[link as usize].push_back(packet.to_vec());
        }
    }

    fn meta(&self, packet: &[u8]) -> OutputMeta {
        let link = ends(packet).and_then(|(_, to)| link_of(to));
        OutputMeta {
            mark: 0,
            if_id: 0,
            ifindex: link.map_or(0, |(link, _)| link.index() as i32),
            socket: None,
            forwarded: false,
            bypasses: false,
            loopback: false,
            mtu: LINK_MTU,
            hop_limit: HOP_LIMIT,
        }
    }
}

impl ModelHost {
    pub(super) fn new() -> Self {
        Self {
            worker: Worker::new(0, Box::new(SeededEntropy::new(2))),
            world: World::default(),
        }
    }

    /// A worker that knows nothing, as after a restart.
    pub(super) fn forget(&mut self) {
        self.worker = Worker::new(0, Box::new(SeededEntropy::new(3)));
    }

    pub(super) fn take(&mut self, link: Link) -> Option<Vec<u8>> {
        self.world.links[link as usize].pop_front()
    }

    pub(super) fn configure_udp(&mut self, socket: usize, options: &UdpOptions) {
        self.world.sockets.entry(socket).or_default().options = *options;
    }

    pub(super) fn receive_udp(&mut self, socket: usize) -> Option<Datagram> {
        self.world.sockets.get_mut(&socket)?.queue.pop_front()
    }

    /// Looks after packets that wait, once timers have run.
    pub(super) fn handle_timeout(&mut self, netns: &mut Netns, cx: &mut Context<'_>) {
        let world = &self.world;
        let mut left = Vec::new();
        let mut sink = |packet: &mut PacketBuf, _: &_| left.push(packet.to_vec());
        self.worker.timeout_alone(netns, cx, world, &mut sink);
        for packet in left {
            self.world.leave(&packet);
        }
        self.receive_inner(netns, cx);
    }

    /// Sends a packet of this host or another's; its sender's errno.
    fn output(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
    ) -> Result<(), Errno> {
        let mut left = Vec::new();
        let mut sink = |packet: &mut PacketBuf, _: &_| left.push(packet.to_vec());
        let (worker, world) = (&mut self.worker, &self.world);
        let verdict = worker.output_alone(netns, cx, packet, meta, world, &mut sink);
        for packet in left {
            self.world.leave(&packet);
        }
        match verdict {
            Verdict::Plain => self.world.leave(packet),
            Verdict::Sent(_)
            | Verdict::Held
            | Verdict::Queued
            | Verdict::Dropped { errno: 0, .. } => {}
            Verdict::Dropped { errno, .. } => return Err(errno),
            Verdict::TooBig { mtu } => {
                if meta.forwarded {
                    self.answer_too_big(netns, cx, packet, mtu);
                }
                return Err(errno::EMSGSIZE);
            }
        }
        Ok(())
    }

    pub(super) fn send_udp(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        number: usize,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let options = self.world.sockets.entry(number).or_default().options;
        let source = options.source.expect("a bound socket");
        let mut datagram = Vec::new();
        for word in [source.port(), to.port(), 8 + payload.len() as u16, 0] {
            datagram.extend(word.to_be_bytes());
        }
        datagram.extend(payload);
        let mut bytes = ip(source.ip(), to.ip(), IPPROTO_UDP, 0, DF, &datagram);
        set_checksum(&mut bytes, IPPROTO_UDP, datagram.len(), 6);
        let mut meta = OutputMeta {
            mark: options.mark,
            socket: Some(SocketKey(number as u64)),
            ..self.world.meta(&bytes)
        };
        if source.is_ipv6() {
            // An IPv6 socket looks SAs up before it knows the interface.
            meta.ifindex = 0;
        }
        // A socket asks once, for the route; asking here again would count again.
        let may_be_long = bytes.len() > LINK_MTU as usize - MOST_HEADERS;
        if may_be_long && bytes.len() > self.worker.mtu(netns, &bytes, &meta, &self.world) as usize
        {
            if options.dont_fragment {
                return Err(errno::EMSGSIZE);
            }
            if source.is_ipv4() {
                bytes[6] = 0;
                ip4::set_checksum(&mut bytes);
            }
        }
        self.output(netns, cx, &mut PacketBuf::copy_of(&bytes), &meta)
    }

    /// A packet arrives.
    pub(super) fn inject(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        link: Link,
        bytes: &[u8],
    ) {
        let mut packet = PacketBuf::with_capacity(65_600);
        packet.fill(bytes);
        let meta = InputMeta {
            ifindex: link.index() as i32,
            ..InputMeta::default()
        };
        self.receive(netns, cx, packet, meta);
        self.receive_inner(netns, cx);
    }

    /// What has come out of IPTFS SAs arrives too.
    fn receive_inner(&mut self, netns: &mut Netns, cx: &mut Context<'_>) {
        let mut packet = PacketBuf::with_capacity(65_600);
        let mut meta = InputMeta::default();
        while self.worker.next_inner(&mut packet, &mut meta) {
            self.receive(netns, cx, packet.clone(), meta);
        }
    }

    fn receive(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        mut packet: PacketBuf,
        mut meta: InputMeta,
    ) {
        let (worker, world) = (&mut self.worker, &self.world);
        match worker.receive_alone(netns, cx, &mut packet, &mut meta, world) {
            Received::Local => self.deliver(netns, cx, &packet),
            Received::Forward => self.forward(netns, cx, packet, meta.mark),
            Received::Kept | Received::Consumed | Received::Inner | Received::Dropped(_) => {}
        }
    }

    fn forward(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        mut packet: PacketBuf,
        mark: u32,
    ) {
        let at = match Family::of(&packet) {
            Some(Family::V4) => 8,
            _ => 7,
        };
        if packet[at] <= 1 {
            self.answer(netns, cx, &packet, (11, 0), (3, 0));
            return;
        }
        packet[at] -= 1;
        if at == 8 {
            ip4::set_checksum(&mut packet);
        }
        let meta = OutputMeta {
            mark,
            forwarded: true,
            ..self.world.meta(&packet)
        };
        let _ = self.output(netns, cx, &mut packet, &meta);
    }

    fn deliver(&mut self, netns: &mut Netns, cx: &mut Context<'_>, packet: &[u8]) {
        let (Some((source, destination)), Some((protocol, at))) = (ends(packet), upper(packet))
        else {
            return;
        };
        let body = &packet[at..];
        match protocol {
            IPPROTO_UDP if is_intact(packet, body) => {
                let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
                let to = SocketAddr::new(destination, port(2));
                let mut sockets = self.world.sockets.values_mut();
                match sockets.find(|socket| socket.options.source == Some(to)) {
                    Some(socket) => socket.queue.push_back(Datagram {
                        from: SocketAddr::new(source, port(0)),
                        payload: body[8..].to_vec(),
                    }),
                    None => self.answer(netns, cx, packet, (3, 3), (1, 4)),
                }
            }
            IPPROTO_ICMP if body.first() == Some(&8) => {
                let mut reply = body.to_vec();
                reply[0] = 0;
                reply[2..4].fill(0);
                let check = checksum(&reply);
                reply[2..4].copy_from_slice(&check.to_be_bytes());
                let bytes = ip(destination, source, IPPROTO_ICMP, 0, 0, &reply);
                self.send_own(netns, cx, &bytes);
            }
            _ => {
                if let Some(learned) = netns.learn_mtu(packet, 0, &self.world) {
                    self.world.learned.insert(learned.destination, learned.mtu);
                }
            }
        }
    }

    fn send_own(&mut self, netns: &mut Netns, cx: &mut Context<'_>, bytes: &[u8]) {
        let meta = self.world.meta(bytes);
        let _ = self.output(netns, cx, &mut PacketBuf::copy_of(bytes), &meta);
    }

    /// An ICMP error about a packet: type and code for IPv4, and for IPv6.
    fn answer(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        packet: &[u8],
        v4: (u8, u8),
        v6: (u8, u8),
    ) {
        let Some((source, _)) = ends(packet).filter(|_| icmp::may_answer(packet)) else {
            return;
        };
        let Some((_, own)) = link_of(source) else {
            return;
        };
        let (protocol, (kind, code), tos, most) = match source {
            IpAddr::V4(_) => (IPPROTO_ICMP, v4, INTERNETWORK_CONTROL, 548),
            IpAddr::V6(_) => (IPPROTO_ICMPV6, v6, 0, 1232),
        };
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend(&packet[..packet.len().min(most)]);
        let mut bytes = ip(own, source, protocol, tos, 0, &message);
        if protocol == IPPROTO_ICMP {
            let check = checksum(&message);
            bytes[22..24].copy_from_slice(&check.to_be_bytes());
        } else {
            set_checksum(&mut bytes, protocol, message.len(), 2);
        }
        self.send_own(netns, cx, &bytes);
    }

    fn answer_too_big(
        &mut self,
        netns: &mut Netns,
        cx: &mut Context<'_>,
        packet: &PacketBuf,
        mtu: u32,
    ) {
        let own = ends(packet).and_then(|(source, _)| link_of(source));
        let from = match own {
            Some((_, IpAddr::V4(own))) => own.octets().to_vec(),
            Some((_, IpAddr::V6(own))) => own.octets().to_vec(),
            None => return,
        };
        let mut answer = PacketBuf::copy_of(packet);
        if icmp::answer_too_big(&mut answer, &from, mtu, IDENT).is_some() {
            let bytes = answer.to_vec();
            self.send_own(netns, cx, &bytes);
        }
    }
}

/// The protocol behind the IP headers of a packet, and where it begins.
fn upper(packet: &[u8]) -> Option<(u8, usize)> {
    match Family::of(packet)? {
        Family::V4 => {
            let header = ip4::Header::parse(packet)?;
            Some((header.protocol, header.header_bytes))
        }
        Family::V6 => {
            let place = ip6::upper_layer(packet)?;
            Some((*packet.get(place.next_header_at)?, place.at))
        }
    }
}

/// Whether the checksum of a UDP datagram is right.
fn is_intact(packet: &[u8], datagram: &[u8]) -> bool {
    datagram.len() >= 8
        && (datagram[6..8] == [0, 0] && packet[0] >> 4 == 4
            || pseudo_header(addresses(packet).unwrap(), IPPROTO_UDP, datagram.len())
                .bytes(datagram)
                .finish()
                == 0)
}

/// A packet of this host.
fn ip(src: IpAddr, dst: IpAddr, protocol: u8, tos: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend([0x45, tos]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend(IDENT.to_be_bytes());
            packet.extend(fragment.to_be_bytes());
            packet.extend([HOP_LIMIT, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            ip4::set_checksum(&mut packet);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend([0x60 | tos >> 4, tos << 4, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, HOP_LIMIT]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        _ => panic!("addresses of one family"),
    }
    packet.extend(payload);
    packet
}

/// Fills in a checksum that covers addresses, `at` bytes into what follows the IP header.
fn set_checksum(packet: &mut [u8], protocol: u8, bytes: usize, at: usize) {
    let start = packet.len() - bytes;
    let sum = pseudo_header(addresses(packet).unwrap(), protocol, bytes);
    let check = match sum.bytes(&packet[start..]).finish() {
        0 => 0xffff,
        check => check,
    };
    packet[start + at..start + at + 2].copy_from_slice(&check.to_be_bytes());
}
