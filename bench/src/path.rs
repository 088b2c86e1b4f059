//! A packet's whole way beside the bare cipher: flow, policy and SA lookup,
//! headers, limits, sequence number, counters, and the transform.
//!
//! The yardstick of an AEAD is `ring`'s call on the same body, a fresh copy of
//! it each time as ours gets; that of a lookup is what the project wants.

use std::hint::black_box;

use anyhow::{Result, anyhow};
use dataplane::netns::Limits;
use dataplane::packet::{PacketBuf, ip4};
use dataplane::path::{OutputMeta, PathInfo, RouteQuery, Routes, Verdict, Worker};
use dataplane::sad::construct::SaRequest;
use dataplane::spd::{Flow, Policy, Templates};
use dataplane::{BootNanos, Context, Netns, Now, SeededEntropy, WallSecs, profile};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use xfrm_proto::algo::{AlgoBlob, Key, NAME_BYTES};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, LifetimeCfg, Selector, UserPolicyInfo, UserSaInfo, UserTmpl};

use crate::crypto::{Candidate, SIZES, compare, figure};
use crate::figure::{Figure, Target};
use crate::messages::{self, Shape, scramble};
use crate::stopwatch::{cpu_time, median};

const LOCAL: Address = Address::v4(192, 0, 2, 1);
const REMOTE: Address = Address::v4(192, 0, 2, 2);
const NOW: Now = Now {
    boot: BootNanos(1),
    real: WallSecs(1_700_000_000),
};

struct OneRoute;

impl Routes for OneRoute {
    fn generation(&self) -> u64 {
        0
    }

    fn route(&self, _query: &RouteQuery) -> Result<PathInfo, i32> {
        Ok(PathInfo {
            mtu: 9_000,
            hop_limit: 64,
        })
    }

    fn source(&self, _query: &RouteQuery) -> Result<Address, i32> {
        Ok(LOCAL)
    }
}

const META: OutputMeta = OutputMeta {
    mark: 0,
    if_id: 0,
    ifindex: 2,
    socket: None,
    forwarded: true,
    bypasses: false,
    loopback: false,
    mtu: 9_000,
    hop_limit: 64,
};

/// Name, key bytes, ICV bits.
type Algorithm = (&'static str, usize, u32);

const GCM_128: Algorithm = ("rfc4106(gcm(aes))", 20, 128);

fn blob((name, key_bytes, icv_bits): Algorithm) -> AlgoBlob {
    let mut field = [0; NAME_BYTES];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    AlgoBlob {
        name: field,
        key_bits: u32::try_from(key_bytes * 8).unwrap_or(0),
        icv_bits,
        key: Key::new(&vec![7; key_bytes]),
    }
}

fn endless() -> LifetimeCfg {
    LifetimeCfg {
        soft_byte_limit: XFRM_INF,
        hard_byte_limit: XFRM_INF,
        soft_packet_limit: XFRM_INF,
        hard_packet_limit: XFRM_INF,
        ..LifetimeCfg::default()
    }
}

fn template(reqid: u32) -> UserTmpl {
    let mut template = UserTmpl {
        family: AF_INET,
        saddr: LOCAL,
        reqid,
        mode: XFRM_MODE_TUNNEL,
        ..UserTmpl::default()
    };
    template.id.daddr = REMOTE;
    template.id.proto = IPPROTO_ESP;
    template
}

fn add_policy(
    netns: &mut Netns,
    sel: Selector,
    priority: u32,
    templates: &[UserTmpl],
) -> Result<()> {
    let info = UserPolicyInfo {
        sel,
        priority,
        dir: XFRM_POLICY_OUT,
        lft: endless(),
        ..UserPolicyInfo::default()
    };
    let templates = Templates::new(templates.iter().copied());
    let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, templates);
    let added = netns.spd.insert(policy, false, NOW);
    added.map(|_| ()).map_err(|e| anyhow!("errno {}", e.errno))
}

fn add_sa(netns: &mut Netns, spi: u32, fill: impl FnOnce(&mut SaRequest<'_>)) -> Result<()> {
    let mut request = SaRequest {
        info: UserSaInfo {
            lft: endless(),
            family: AF_INET,
            mode: XFRM_MODE_TUNNEL,
            saddr: LOCAL,
            reqid: spi,
            ..UserSaInfo::default()
        },
        ..SaRequest::default()
    };
    request.info.id.daddr = REMOTE;
    request.info.id.spi = spi.into();
    request.info.id.proto = IPPROTO_ESP;
    fill(&mut request);
    let cx = Context {
        now: NOW,
        entropy: &mut SeededEntropy::new(1),
        acqseq: &mut 0,
    };
    let refused = |e: dataplane::XfrmError| anyhow!("errno {}", e.errno);
    let sa = netns.sad.construct(&cx, &netns.sysctls, request);
    let sa = sa.map_err(refused)?;
    netns.sad.add(sa, NOW).map(|_| ()).map_err(refused)
}

fn network(third: u8) -> Selector {
    Selector {
        daddr: Address::v4(10, 2, third, 0),
        prefixlen_d: 24,
        family: AF_INET,
        ..Selector::default()
    }
}

/// An IPv4 packet of `bytes` to 10.2.`third`.1.
fn packet(third: u8, bytes: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, third, 1,
    ];
    packet.resize(bytes, 0x61);
    let _ = ip4::finish(&mut packet);
    packet
}

fn worker(number: u32) -> Worker {
    Worker::new(number, Box::new(SeededEntropy::new(u64::from(number))))
}

/// A namespace with an SA and a policy for each of `count` networks.
fn tunnels(count: u8, fill: impl Fn(&mut SaRequest<'_>)) -> Result<Netns> {
    let mut netns = Netns::new(&profile::V7_2, Limits::default());
    for number in 0..count {
        let reqid = u32::from(number) + 1;
        add_sa(&mut netns, reqid, &fill)?;
        add_policy(&mut netns, network(number), 0, &[template(reqid)])?;
    }
    Ok(netns)
}

/// One packet out.
fn send(worker: &mut Worker, netns: &Netns, buffer: &mut PacketBuf, inner: &[u8]) {
    buffer.fill(inner);
    let mut sink = |packet: &mut PacketBuf, _: &_| {
        black_box(&**packet);
    };
    let verdict = worker.output(netns, NOW, buffer, &META, &OneRoute, &mut sink);
    assert!(matches!(verdict, Verdict::Sent(1) | Verdict::Plain));
}

fn aead(
    name: &str,
    algorithm: Algorithm,
    bare: &'static ring::aead::Algorithm,
    bytes: usize,
) -> Result<Figure> {
    let netns = tunnels(1, |sa| sa.aead = Some(blob(algorithm)))?;
    let key = UnboundKey::new(bare, &vec![7; bare.key_len()]).map_err(|_| anyhow!("key"))?;
    let ring = LessSafeKey::new(key);
    let mut worker = worker(0);
    let inner = packet(0, bytes);
    let mut buffer = PacketBuf::with_capacity(9_100);
    let (fresh, mut body) = (inner.clone(), inner.clone());
    let mut sequence = 0;
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "ours",
            Box::new(|| send(&mut worker, &netns, &mut buffer, &inner)),
        ),
        (
            "ring",
            Box::new(move || {
                body.copy_from_slice(&fresh);
                sequence += 1;
                let nonce = crate::crypto::nonce(sequence);
                let tag = ring.seal_in_place_separate_tag(nonce, Aad::from([1; 8]), &mut body);
                assert!(black_box(tag).is_ok());
                black_box(&body);
            }),
        ),
    ];
    let limit = match bytes {
        0..=64 => 1.6,
        65..=1_000 => 1.4,
        _ => 1.15,
    };
    figure(
        format!("path: {name} out {bytes} B"),
        &mut candidates,
        bytes,
        limit,
    )
}

/// A flow that is remembered and needs no SA: parsing, lookup, policy use.
fn cached() -> Result<Figure> {
    let mut netns = Netns::new(&profile::V7_2, Limits::default());
    for number in 0..100 {
        add_policy(&mut netns, network(number), 0, &[])?;
    }
    let mut worker = worker(0);
    let mut buffer = PacketBuf::with_capacity(100);
    let inners: Vec<_> = (0..100).map(|number| packet(number, 64)).collect();
    let mut next = 0;
    let mut candidates: Vec<Candidate<'_>> = vec![(
        "ours",
        Box::new(|| {
            next = (next + 1) % inners.len();
            if let Some(inner) = inners.get(next) {
                send(&mut worker, &netns, &mut buffer, inner);
            }
        }),
    )];
    let times = compare(&mut candidates, 64);
    Ok(Figure {
        name: "path: remembered flow, no SA".to_owned(),
        ours: times.first().copied().unwrap_or(f64::NAN),
        yardstick: 40.0,
        unit: "ns",
        against: "the issue's figure",
        target: Target::AtMost(1.0),
    })
}

/// Mixed prefixes, a third of them with ports.
fn mixed(number: u32) -> Selector {
    let ports = number.is_multiple_of(3);
    Selector {
        dport: u16::try_from(number & 0xffff).unwrap_or(0).into(),
        dport_mask: if ports { 0xffff } else { 0 }.into(),
        proto: if ports { IPPROTO_UDP } else { 0 },
        ..messages::selector(Shape::Mixed, number)
    }
}

/// Nanoseconds of a lookup among `count` policies, half of which find one.
fn lookup(count: u32) -> Result<f64> {
    let mut netns = Netns::new(&profile::V7_2, Limits::default());
    for number in 0..count {
        let priority = scramble(number) % 1_000;
        add_policy(&mut netns, mixed(number), priority, &[])?;
    }
    let flows: Vec<Flow> = (0..10_000)
        .map(|number| {
            let like = mixed(scramble(number) % count);
            Flow {
                family: AF_INET,
                daddr: like.daddr,
                saddr: if number % 2 == 0 { like.saddr } else { LOCAL },
                proto: IPPROTO_UDP,
                dport: like.dport.get(),
                ..Flow::default()
            }
        })
        .collect();
    let mut samples = Vec::new();
    for _ in 0..15 {
        let all = cpu_time(|| {
            for flow in &flows {
                black_box(netns.spd.lookup(flow, XFRM_POLICY_OUT, 0));
            }
        });
        samples.push(all / flows.len() as f64);
    }
    Ok(median(&mut samples))
}

fn lookups() -> Result<[Figure; 2]> {
    let (few, many) = (lookup(1_000)?, lookup(100_000)?);
    let figure = |against, yardstick, limit| Figure {
        name: "path: lookup among 100k mixed policies".to_owned(),
        ours: many,
        yardstick,
        unit: "ns",
        against,
        target: Target::AtMost(limit),
    };
    Ok([
        figure("the issue's figure", 300.0, 1.0),
        figure("among 1k", few, 2.0),
    ])
}

/// Packets of two workers in the time that one needs for its own: 0.5 is twice as fast.
fn two_workers(name: &str, tunnels_apart: u8) -> Result<Figure> {
    const PACKETS: u32 = 100_000;
    let netns = tunnels(tunnels_apart, |sa| sa.aead = Some(blob(GCM_128)))?;
    // CPU time, because other processes may want the second core.
    let run = |number: u8| {
        let mut worker = worker(u32::from(number));
        let inner = packet(number % tunnels_apart, 1_420);
        let mut buffer = PacketBuf::with_capacity(9_100);
        cpu_time(|| {
            for _ in 0..PACKETS {
                send(&mut worker, &netns, &mut buffer, &inner);
            }
        })
    };
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        alone.push(run(0));
        together.push(std::thread::scope(|scope| {
            let other = scope.spawn(|| run(1));
            run(0).max(other.join().unwrap_or(f64::NAN))
        }));
    }
    let per_packet = |total: f64, packets: u32| total / f64::from(packets);
    Ok(Figure {
        name: format!("path: two workers, {name}, 1420 B"),
        ours: per_packet(median(&mut together), 2 * PACKETS),
        yardstick: per_packet(median(&mut alone), PACKETS),
        unit: "ns",
        against: "one worker",
        target: Target::AtMost(1.0 / 1.8),
    })
}

/// `bench packets BYTES COUNT`: that many AES-128-GCM packets of a size (0: plain ones of 64
/// bytes) and nothing else, for a profiler. Two runs give the instructions of one packet.
pub(crate) fn packets(args: &[String]) -> Result<bool> {
    let mut numbers = args.iter().map(|arg| arg.parse::<usize>());
    let (Some(Ok(bytes)), Some(Ok(count))) = (numbers.next(), numbers.next()) else {
        return Err(anyhow!("usage: packets BYTES COUNT"));
    };
    let mut netns = tunnels(1, |sa| sa.aead = Some(blob(GCM_128)))?;
    if bytes == 0 {
        add_policy(&mut netns, network(0), 0, &[])?;
    }
    let mut worker = worker(0);
    let inner = packet(0, bytes.max(64));
    let mut buffer = PacketBuf::with_capacity(9_100);
    for _ in 0..count {
        send(&mut worker, &netns, &mut buffer, &inner);
    }
    Ok(true)
}

/// CBC and HMAC through the whole way: alone, or eight packets of a flow in hand.
fn cbc_hmac(bytes: usize, at_once: usize) -> Result<Figure> {
    let netns = tunnels(1, |sa| {
        sa.crypt = Some(blob(("cbc(aes)", 16, 0)));
        sa.auth_trunc = Some(blob(("hmac(sha256)", 32, 128)));
    })?;
    let inner = packet(0, bytes);
    let mut worker = worker(0);
    let mut buffers = vec![PacketBuf::with_capacity(9_100); at_once];
    // ESP header and IV, payload in whole blocks with its trailer, ICV.
    let packet_bytes = 8 + 16 + (bytes + 2).next_multiple_of(16) + 16;
    let mut bare = crate::crypto::bare_cbc_hmac::<sha2::Sha256>(packet_bytes, 16)?;
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "ours",
            Box::new(|| {
                for buffer in &mut buffers {
                    buffer.fill(&inner);
                }
                let mut sink = |packet: &mut PacketBuf, _: &_| {
                    black_box(&**packet);
                };
                let mut done = |verdict| assert_eq!(verdict, Verdict::Sent(1));
                let (out, routes) = (&mut buffers, &OneRoute);
                worker.output_batch(&netns, NOW, out, &META, routes, &mut sink, &mut done);
            }),
        ),
        (
            "bare, one by one",
            Box::new(|| (0..at_once).for_each(|_| bare())),
        ),
    ];
    let name = format!("path: AES-CBC + SHA-256 out {bytes} B, {at_once} in hand");
    let limit = if at_once < 8 { 1.15 } else { 0.65 };
    figure(name, &mut candidates, bytes * at_once, limit)
}

pub(crate) fn run() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let aeads = [
        ("AES-128-GCM", GCM_128, &AES_128_GCM),
        ("AES-256-GCM", ("rfc4106(gcm(aes))", 36, 128), &AES_256_GCM),
        (
            "ChaCha20-Poly1305",
            ("rfc7539esp(chacha20,poly1305)", 36, 128),
            &CHACHA20_POLY1305,
        ),
    ];
    for (name, algorithm, bare) in aeads {
        for bytes in SIZES {
            figures.push(aead(name, algorithm, bare, bytes)?);
        }
    }
    for at_once in [1, 8] {
        figures.push(cbc_hmac(1_420, at_once)?);
    }
    figures.push(cached()?);
    figures.extend(lookups()?);
    figures.push(two_workers("an SA each", 2)?);
    figures.push(two_workers("one SA", 1)?);
    Ok(figures)
}
