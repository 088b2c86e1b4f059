//! The SAs, policies and packets that traffic scenarios are made of.
//!
//! SAs encrypt with nothing and authenticate with HMAC-SHA-1-96, so that packets are the same
//! on every run and readable in a transcript; what ciphers do is `packets/record.py`'s matter.

use std::net::IpAddr;

use dataplane::crypto::{AuthAlgorithm, Deflate, mac};
use dataplane::packet::checksum::{addresses, checksum, pseudo_header};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use crate::scenario::Sa;
use crate::scenario::build::{self, Policy, algo, key};

/// Bytes of ICV at the end of each ESP packet.
pub(super) const ICV_BYTES: usize = 12;
/// Identification of the packets that scenarios make; up to 255 more follow it.
pub(super) const IDENT: u16 = 0x1200;
/// Bytes of authentication key.
const KEY_BYTES: usize = 20;

/// The router outside: its end of the SAs.
pub(super) const OWN: &str = "10.0.0.1";
/// The other end.
pub(super) const PEER: &str = "10.0.0.2";
/// A protected host.
pub(super) const HOST: &str = "10.1.0.1";
/// The router inside.
pub(super) const GATE: &str = "10.1.0.254";
/// A host behind the other end.
pub(super) const REMOTE: &str = "10.2.0.1";
/// The same in IPv6.
pub(super) const OWN6: &str = "fd00::1";
/// See [`PEER`].
pub(super) const PEER6: &str = "fd00::2";
/// See [`HOST`].
pub(super) const HOST6: &str = "fd01::1";
/// See [`REMOTE`].
pub(super) const REMOTE6: &str = "fd02::1";

/// SPI of [`out`].
pub(super) const OUT_SPI: u32 = 0x1001;
/// SPI of [`inward`].
pub(super) const IN_SPI: u32 = 0x2001;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An address and its family.
pub(super) fn address(text: &str) -> (Address, u16) {
    let address = ip(text);
    let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    (address.into(), family)
}

/// An ESP SA.
pub(super) fn sa(src: &str, dst: &str, spi: u32, mode: u8, reqid: u32) -> Sa {
    let ((saddr, family), (daddr, _)) = (address(src), address(dst));
    Sa::bare(IPPROTO_ESP)
        .attr(XFRMA_ALG_CRYPT, algo("ecb(cipher_null)", &[]))
        .attr(XFRMA_ALG_AUTH, algo("hmac(sha1)", &key(KEY_BYTES)))
        .spi(spi)
        .mode(mode)
        .info(|info| {
            (info.saddr, info.id.daddr, info.family) = (saddr, daddr, family);
            info.reqid = reqid;
        })
}

/// The SA to the other end.
pub(super) fn out(mode: u8) -> Sa {
    sa(OWN, PEER, OUT_SPI, mode, 1)
}

/// The SA from it.
pub(super) fn inward(mode: u8) -> Sa {
    sa(PEER, OWN, IN_SPI, mode, 2)
}

/// See [`out`].
pub(super) fn out6(mode: u8) -> Sa {
    sa(OWN6, PEER6, OUT_SPI, mode, 1)
}

/// See [`inward`].
pub(super) fn inward6(mode: u8) -> Sa {
    sa(PEER6, OWN6, IN_SPI, mode, 2)
}

/// A prefix such as `10.1.0.0/16`; a host without a length.
pub(super) fn prefix(text: &str) -> (Address, u16, u8) {
    let (host, bits) = text.split_once('/').unwrap_or((text, ""));
    let (address, family) = address(host);
    let whole = if family == AF_INET { 32 } else { 128 };
    (address, family, bits.parse().unwrap_or(whole))
}

/// Everything from one prefix to another.
pub(super) fn selector(src: &str, dst: &str) -> Selector {
    let ((saddr, family, prefixlen_s), (daddr, _, prefixlen_d)) = (prefix(src), prefix(dst));
    Selector {
        daddr,
        saddr,
        family,
        prefixlen_d,
        prefixlen_s,
        ..Selector::default()
    }
}

/// A policy between prefixes.
pub(super) fn policy(dir: u8, src: &str, dst: &str) -> Policy {
    Policy::new(dir).info(|info| info.sel = selector(src, dst))
}

/// A template that wants `proto` between two addresses.
pub(super) fn template(src: &str, dst: &str, proto: u8, mode: u8, reqid: u32) -> UserTmpl {
    let ((saddr, family), (daddr, _)) = (address(src), address(dst));
    UserTmpl {
        id: XfrmId {
            daddr,
            proto,
            ..XfrmId::default()
        },
        family,
        saddr,
        ..build::tmpl(mode, reqid)
    }
}

/// The template that [`out`] serves.
pub(super) fn out_template(mode: u8) -> UserTmpl {
    match mode {
        XFRM_MODE_TRANSPORT => template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, mode, 1),
        _ => template(OWN, PEER, IPPROTO_ESP, mode, 1),
    }
}

/// The template that [`inward`] serves.
pub(super) fn in_template(mode: u8) -> UserTmpl {
    match mode {
        XFRM_MODE_TRANSPORT => template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, mode, 2),
        _ => template(PEER, OWN, IPPROTO_ESP, mode, 2),
    }
}

/// An IP header to put in front of something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    src: IpAddr,
    dst: IpAddr,
    tos: u8,
    ttl: u8,
    ident: u16,
    fragment: u16,
}

impl Ip {
    /// TTL 64, DF, the usual identification.
    pub(super) fn new(src: &str, dst: &str) -> Self {
        Self {
            src: ip(src),
            dst: ip(dst),
            tos: 0,
            ttl: 64,
            ident: IDENT,
            fragment: 0x4000,
        }
    }

    pub(super) fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    pub(super) fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// IPv4: flags and fragment offset.
    pub(super) fn fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    /// IPv4: the `n`th identification of those that scenarios use.
    pub(super) fn ident(self, n: u8) -> Self {
        Self {
            ident: IDENT + u16::from(n),
            ..self
        }
    }

    /// With a payload of protocol `proto` behind it.
    pub(super) fn carry(&self, proto: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet;
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                packet = vec![0x45, self.tos];
                packet.extend((20 + payload.len() as u16).to_be_bytes());
                packet.extend(self.ident.to_be_bytes());
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([self.ttl, proto, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                let check = checksum(&packet);
                packet[10..12].copy_from_slice(&check.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                packet = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
                packet.extend((payload.len() as u16).to_be_bytes());
                packet.extend([proto, self.ttl]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
            }
            _ => panic!("addresses of one family"),
        }
        packet.extend(payload);
        packet
    }

    /// With a UDP datagram behind it.
    pub(super) fn udp(&self, sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for word in [sport, dport, 8 + data.len() as u16, 0] {
            datagram.extend(word.to_be_bytes());
        }
        datagram.extend(data);
        let mut packet = self.carry(IPPROTO_UDP, &datagram);
        let at = packet.len() - datagram.len();
        let sum = pseudo_header(addresses(&packet).unwrap(), IPPROTO_UDP, datagram.len());
        let check = match sum.bytes(&datagram).finish() {
            0 => 0xffff,
            check => check,
        };
        packet[at + 6..at + 8].copy_from_slice(&check.to_be_bytes());
        packet
    }

    /// With an ICMP message behind it.
    pub(super) fn icmp(&self, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(rest);
        let proto = if self.src.is_ipv4() {
            IPPROTO_ICMP
        } else {
            IPPROTO_ICMPV6
        };
        let check = if self.src.is_ipv4() {
            checksum(&message)
        } else {
            let packet = self.carry(proto, &message);
            pseudo_header(addresses(&packet).unwrap(), proto, message.len())
                .bytes(&message)
                .finish()
        };
        message[2..4].copy_from_slice(&check.to_be_bytes());
        self.carry(proto, &message)
    }
}

/// What ESP makes of a payload of protocol `next`: header to ICV.
pub(super) fn esp(spi: u32, seq: u32, next: u8, payload: &[u8]) -> Vec<u8> {
    sealed(spi, seq, None, next, payload, None)
}

/// The same with ESN: the high half is authenticated and not sent.
pub(super) fn esp_esn(spi: u32, seq: u64, next: u8, payload: &[u8]) -> Vec<u8> {
    sealed(
        spi,
        seq as u32,
        Some((seq >> 32) as u32),
        next,
        payload,
        None,
    )
}

/// The same with a pad length that says something else.
pub(super) fn esp_padded(spi: u32, seq: u32, next: u8, payload: &[u8], claim: u8) -> Vec<u8> {
    sealed(spi, seq, None, next, payload, Some(claim))
}

fn sealed(
    spi: u32,
    seq: u32,
    high: Option<u32>,
    next: u8,
    payload: &[u8],
    claim: Option<u8>,
) -> Vec<u8> {
    let mut out = spi.to_be_bytes().to_vec();
    out.extend(seq.to_be_bytes());
    out.extend(payload);
    let pad = (payload.len() + 2).wrapping_neg() % 4;
    out.extend((1..=pad).map(|nth| nth as u8));
    out.extend([claim.unwrap_or(pad as u8), next]);
    let high = high.map(u32::to_be_bytes);
    let mut icv = [0; ICV_BYTES];
    let mac = mac(AuthAlgorithm::HmacSha1, &key(KEY_BYTES), ICV_BYTES).unwrap();
    mac.write(
        &[&out, high.as_ref().map_or(&[], |high| &high[..])],
        &mut icv,
    );
    out.extend(icv);
    out
}

/// An outer packet from the other end that carries `inner` in tunnel mode.
pub(super) fn tunnelled(spi: u32, seq: u32, inner: &[u8]) -> Vec<u8> {
    Ip::new(PEER, OWN).carry(IPPROTO_ESP, &esp(spi, seq, ip_protocol(inner), inner))
}

/// The same over IPv6.
pub(super) fn tunnelled6(spi: u32, seq: u32, inner: &[u8]) -> Vec<u8> {
    Ip::new(PEER6, OWN6).carry(IPPROTO_ESP, &esp(spi, seq, ip_protocol(inner), inner))
}

/// The same in UDP.
pub(super) fn encapsulated(sport: u16, dport: u16, spi: u32, seq: u32, inner: &[u8]) -> Vec<u8> {
    let esp = esp(spi, seq, ip_protocol(inner), inner);
    Ip::new(PEER, OWN).udp(sport, dport, &esp)
}

/// The protocol number of a packet inside another.
pub(super) fn ip_protocol(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 {
        IPPROTO_IPIP
    } else {
        IPPROTO_IPV6
    }
}

/// A packet with its IP header as `outer`, and what follows its own header sealed in transport mode.
pub(super) fn transported(outer: &Ip, spi: u32, seq: u32, packet: &[u8]) -> Vec<u8> {
    let (next, at) = if packet[0] >> 4 == 4 {
        (packet[9], 20)
    } else {
        (packet[6], 40)
    };
    outer.carry(IPPROTO_ESP, &esp(spi, seq, next, &packet[at..]))
}

/// What AH puts in front of `payload`, with an ICV over the packet that `outer` makes of it.
pub(super) fn ah(outer: &Ip, spi: u32, seq: u32, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 4, 0, 0];
    header.extend(spi.to_be_bytes());
    header.extend(seq.to_be_bytes());
    header.extend([0; ICV_BYTES]);
    let whole = [&header[..], payload].concat();
    let mut zeroed = outer.carry(IPPROTO_AH, &whole);
    for at in [1, 6, 7, 8, 10, 11] {
        zeroed[at] = 0;
    }
    let mut icv = [0; ICV_BYTES];
    let mac = mac(AuthAlgorithm::HmacSha1, &key(KEY_BYTES), ICV_BYTES).unwrap();
    mac.write(&[&zeroed], &mut icv);
    header[12..].copy_from_slice(&icv);
    [header, payload.to_vec()].concat()
}

/// What IPComp makes of a payload that compresses.
pub(super) fn ipcomp(cpi: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![next, 0];
    out.extend(cpi.to_be_bytes());
    let mut room = vec![0; payload.len()];
    let bytes = Deflate::default().compress(payload, &mut room).unwrap();
    out.extend(&room[..bytes]);
    out
}

/// Payload of a length, recognisable.
pub(super) fn data(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|nth| b'a' + (nth % 26) as u8).collect()
}
