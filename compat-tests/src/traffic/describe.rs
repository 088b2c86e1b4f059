//! Packets as text: every field that is worth comparing, in one line.
//!
//! Scenarios encrypt with nothing (`ecb(cipher_null)`), so what is inside can be shown.
//! Identifications that the subject draws at random are `R`; checksums are `bad` when they are.

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane::crypto::Deflate;
use dataplane::packet::checksum::checksum;
use xfrm_proto::consts::*;

use super::craft::{ICV_BYTES, IDENT};
use xfrm_proto::decode::hex;

const IPPROTO_FRAGMENT: u8 = 44;
/// Payload that is shown in full.
const MOST_SHOWN: usize = 48;

/// One line about a packet, with the identifications of its IPv4 headers if they matter.
#[must_use]
pub(super) fn packet(bytes: &[u8], with_ids: bool) -> String {
    let words = network(bytes).unwrap_or_else(|| format!("undecodable {}", brief(bytes)));
    if with_ids {
        return words;
    }
    let words: Vec<&str> = words.split(' ').collect();
    let is_id = |at: &usize| words[*at] == "id" || *at > 0 && words[*at - 1] == "id";
    let kept = (0..words.len()).filter(|at| !is_id(at));
    kept.map(|at| words[at]).collect::<Vec<_>>().join(" ")
}

fn network(bytes: &[u8]) -> Option<String> {
    match bytes.first()? >> 4 {
        4 => v4(bytes),
        6 => v6(bytes),
        _ => None,
    }
}

fn v4(bytes: &[u8]) -> Option<String> {
    let header_bytes = usize::from(bytes[0] & 15) * 4;
    let header = bytes.get(..header_bytes.max(20))?;
    let total = usize::from(be16(bytes, 2)?);
    let (ident, fragment) = (be16(bytes, 4)?, be16(bytes, 6)?);
    let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let mut text = format!(
        "{}>{} tos {:#x} ttl {}",
        address(12)?,
        address(16)?,
        bytes[1],
        bytes[8]
    );
    text += &match ident {
        0 => String::new(),
        _ if (IDENT..IDENT + 0x100).contains(&ident) => format!(" id {ident:x}"),
        _ => " id R".to_owned(),
    };
    if fragment & 0x4000 != 0 {
        text += " DF";
    }
    if header.len() > 20 {
        text += &format!(" options {}", hex(&header[20..]));
    }
    if checksum(header) != 0 {
        text += " bad checksum";
    }
    let payload = match bytes.get(header_bytes..total) {
        Some(payload) if total == bytes.len() => payload,
        _ => {
            text += &format!(" length {total} of {}", bytes.len());
            bytes.get(header_bytes..total.min(bytes.len()))?
        }
    };
    if fragment & 0x3fff != 0 {
        let more = if fragment & 0x2000 != 0 { "+" } else { "" };
        let at = (fragment & 0x1fff) * 8;
        return Some(format!(
            "{text} fragment {at}{more} proto {} {}",
            bytes[9],
            brief(payload)
        ));
    }
    Some(format!("{text} {}", transport(bytes[9], payload)))
}

fn v6(bytes: &[u8]) -> Option<String> {
    let word = u32::from_be_bytes(*bytes.first_chunk::<4>()?);
    let length = usize::from(be16(bytes, 4)?);
    let address = |at: usize| Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?));
    let class = word >> 20 & 0xff;
    let mut text = format!(
        "{}>{} tc {class:#x} hops {}",
        address(8)?,
        address(24)?,
        bytes[7]
    );
    if word & 0xfffff != 0 {
        text += &format!(" flow {:#x}", word & 0xfffff);
    }
    let payload = &bytes[40..];
    if payload.len() != length {
        text += &format!(" length {length} of {}", payload.len());
    }
    Some(format!("{text} {}", transport(bytes[6], payload)))
}

/// What follows IP headers.
fn transport(proto: u8, bytes: &[u8]) -> String {
    let text = match proto {
        IPPROTO_UDP => udp(bytes),
        IPPROTO_ICMP | IPPROTO_ICMPV6 => icmp(proto, bytes),
        IPPROTO_ESP => esp(bytes),
        IPPROTO_AH => ah(bytes),
        IPPROTO_COMP => comp(bytes),
        IPPROTO_IPIP | IPPROTO_IPV6 => network(bytes).map(|inner| format!("[{inner}]")),
        IPPROTO_FRAGMENT => fragment6(bytes),
        _ => None,
    };
    text.unwrap_or_else(|| format!("proto {proto} {}", brief(bytes)))
}

fn udp(bytes: &[u8]) -> Option<String> {
    let (sport, dport, length) = (be16(bytes, 0)?, be16(bytes, 2)?, be16(bytes, 4)?);
    let mut text = format!("udp {sport}>{dport}");
    if be16(bytes, 6)? == 0 {
        text += " unchecked";
    }
    if usize::from(length) != bytes.len() {
        text += &format!(" length {length} of {}", bytes.len());
    }
    if (sport == 4500 || dport == 4500) && bytes.len() > 8 + 8 {
        return Some(format!("{text} {}", esp(&bytes[8..])?));
    }
    Some(format!("{text} {}", brief(&bytes[8..])))
}

fn icmp(proto: u8, bytes: &[u8]) -> Option<String> {
    let name = if proto == IPPROTO_ICMP {
        "icmp"
    } else {
        "icmpv6"
    };
    let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
    let rest = bytes.get(4..8)?;
    let error = if proto == IPPROTO_ICMP {
        matches!(kind, 3 | 5 | 11 | 12)
    } else {
        kind < 128
    };
    let quoted = &bytes[8..];
    let what = if error {
        format!("about {} of [{}]", quoted.len(), quote(quoted))
    } else {
        brief(quoted)
    };
    Some(format!("{name} {kind}/{code} {} {what}", hex(rest)))
}

/// A packet that an ICMP error quotes, perhaps not whole: its addresses and what comes next.
fn quote(bytes: &[u8]) -> String {
    let text = || {
        let v4 = bytes.first()? >> 4 == 4;
        let (proto, at) = if v4 {
            (bytes.get(9)?, 20)
        } else {
            (bytes.get(6)?, 40)
        };
        let addresses = if v4 {
            let address = |at: usize| Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?));
            format!("{}>{}", address(12)?, address(16)?)
        } else {
            let address = |at: usize| Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?));
            format!("{}>{}", address(8)?, address(24)?)
        };
        let ports = hex(bytes.get(at..at + 4)?);
        Some(format!("{addresses} proto {proto} {ports}"))
    };
    text().unwrap_or_else(|| brief(bytes))
}

fn esp(bytes: &[u8]) -> Option<String> {
    let (spi, seq) = (be32(bytes, 0)?, be32(bytes, 4)?);
    let body = bytes.get(8..bytes.len().checked_sub(ICV_BYTES)?)?;
    let (&next, rest) = body.split_last()?;
    let (&pad_bytes, rest) = rest.split_last()?;
    let (payload, pad) = rest.split_at_checked(rest.len().checked_sub(pad_bytes.into())?)?;
    let mut text = format!("esp {spi:#x} seq {seq} {}", transport(next, payload));
    text += &format!(" pad {pad_bytes}");
    if !pad.iter().zip(1..).all(|(&byte, nth)| byte == nth) {
        text += &format!(" {}", hex(pad));
    }
    Some(text)
}

fn ah(bytes: &[u8]) -> Option<String> {
    let header_bytes = (usize::from(*bytes.get(1)?) + 2) * 4;
    let (spi, seq) = (be32(bytes, 4)?, be32(bytes, 8)?);
    let inner = transport(bytes[0], bytes.get(header_bytes..)?);
    Some(format!("ah {header_bytes} {spi:#x} seq {seq} {inner}"))
}

fn comp(bytes: &[u8]) -> Option<String> {
    let (next, cpi) = (*bytes.first()?, be16(bytes, 2)?);
    // How well it is compressed is zlib's matter.
    let mut plain = vec![0; 65_535];
    let content = match Deflate::default().decompress(&bytes[4..], &mut plain) {
        Some(bytes) => transport(next, plain.get(..bytes)?),
        None => format!("proto {next} not compressed {}", brief(&bytes[4..])),
    };
    Some(format!("ipcomp {cpi:#x} {content}"))
}

fn fragment6(bytes: &[u8]) -> Option<String> {
    let field = be16(bytes, 2)?;
    let more = if field & 1 != 0 { "+" } else { "" };
    let (next, at) = (*bytes.first()?, field & !7);
    Some(format!(
        "fragment {at}{more} proto {next} {}",
        brief(bytes.get(8..)?)
    ))
}

/// Bytes, or how many and what they add up to.
fn brief(bytes: &[u8]) -> String {
    if bytes.len() <= MOST_SHOWN {
        return format!("\"{}\"", hex(bytes));
    }
    let sum = bytes.iter().fold(0xcbf2_9ce4u32, |sum, &byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{} bytes {sum:08x}", bytes.len())
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
