//! A packet's whole way beside the bare cipher: flow, policy and SA lookup, headers, limits,
//! sequence number or replay window, counters, and the transform.
//!
//! The yardstick of an AEAD is `ring`'s call on the same body, a fresh copy of
//! it each time as ours gets; that of a lookup is what the project wants. Packets that leave
//! and that arrive are measured one at a time and as a driver has them, several in hand.

use std::hint::black_box;

use anyhow::Result;
use dataplane::netns::Limits;
use dataplane::spd::Flow;
use dataplane::{Netns, profile};
use ring::aead::{AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::Selector;

use crate::crypto::{BareAead, Candidate, SIZES, compare, figure};
use crate::figure::{Figure, Target};
use crate::messages::{self, Shape, scramble};
use crate::stopwatch::{cpu_time, least};
use crate::tunnel::{
    Algorithm, End, GCM_128, IN_HAND, LOCAL, Way, add_policy, blob, instructions, open_networks,
    packet, tunnels,
};

const ROUNDS: usize = 25;

/// What a packet's way may take of the bare cipher's time.
const fn limit(bytes: usize) -> f64 {
    match bytes {
        0..=64 => 1.6,
        65..=1_000 => 1.4,
        _ => 1.15,
    }
}

fn aead_out(
    name: &str,
    algorithm: Algorithm,
    bare: &'static ring::aead::Algorithm,
    bytes: usize,
    in_hand: usize,
) -> Result<Figure> {
    let netns = tunnels(1, |sa| sa.aead = Some(blob(algorithm)))?;
    let inner = packet(0, bytes);
    let mut bare = BareAead::new(bare, &inner)?;
    let mut end = End::new(&netns, 0, in_hand);
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "ours",
            Box::new(|| match in_hand {
                1 => end.send(&inner),
                _ => end.send_all(&inner),
            }),
        ),
        (
            "ring",
            Box::new(move || (0..in_hand).for_each(|_| bare.seal())),
        ),
    ];
    let name = format!("path: {name} out {bytes} B, {in_hand} in hand");
    Ok(figure(name, &mut candidates, bytes * in_hand, limit(bytes))?.each_of(in_hand))
}

fn aead_in(
    name: &str,
    algorithm: Algorithm,
    bare: &'static ring::aead::Algorithm,
    bytes: usize,
    in_hand: usize,
) -> Result<Figure> {
    let fill = |sa: &mut dataplane::sad::construct::SaRequest<'_>| sa.aead = Some(blob(algorithm));
    let (near, far) = (tunnels(1, fill)?, tunnels(1, fill)?);
    let (mut near, mut far) = (End::new(&near, 0, 1), End::new(&far, 0, in_hand));
    let inner = packet(0, bytes);
    let bare = BareAead::new(bare, &inner)?;
    let count = 400_000 / (bytes + 200);
    // No packet may come twice, so they are many, from beyond the first cache; and so are the yardstick's.
    let (bare_sealed, mut hands) = (bare.sealed(count), vec![Vec::new(); in_hand]);
    let (mut ours, mut yardstick) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let sealed = near.sealed(&inner, count);
        let nanos = cpu_time(|| match in_hand {
            1 => sealed.iter().for_each(|outer| far.receive(outer)),
            _ => sealed
                .chunks(in_hand)
                .for_each(|outers| far.receive_all(outers)),
        });
        ours.push(nanos / count as f64);
        let nanos = cpu_time(|| bare.open_all(&bare_sealed, &mut hands));
        yardstick.push(nanos / count as f64);
    }
    Ok(Figure {
        name: format!("path: {name} in {bytes} B, {in_hand} in hand"),
        ours: least(&ours),
        yardstick: least(&yardstick),
        unit: "ns",
        against: "ring",
        target: Target::AtMost(limit(bytes)),
    })
}

/// Instructions of a packet's way, beside the bare cipher's.
fn counted() -> Result<Vec<Figure>> {
    let rows = [
        ("remembered flow, no SA", Way::Plain, None),
        ("AES-128-GCM out", Way::Out, Some(Way::BareSeal)),
        (
            "AES-128-GCM out, in hand",
            Way::OutInHand,
            Some(Way::BareSeal),
        ),
        ("AES-128-GCM in", Way::In, Some(Way::BareOpen)),
        (
            "AES-128-GCM in, in hand",
            Way::InInHand,
            Some(Way::BareOpen),
        ),
    ];
    let mut all = Vec::new();
    for (name, way, bare) in rows {
        let sizes: &[usize] = if bare.is_some() { &[64, 1_420] } else { &[64] };
        for &bytes in sizes {
            let Some(ours) = instructions(way, bytes)? else {
                println!("path: instructions: not counted: apt-get install valgrind");
                return Ok(all);
            };
            let yardstick = match bare {
                Some(bare) => instructions(bare, bytes)?.unwrap_or(f64::NAN),
                None => ours,
            };
            all.push(Figure {
                name: format!("path: {name} {bytes} B, instructions"),
                ours,
                yardstick,
                unit: "",
                against: "ring as valgrind sees it",
                target: Target::Nothing,
            });
        }
    }
    Ok(all)
}

/// A flow that is remembered and needs no SA: parsing, lookup, policy use.
fn cached() -> Result<Figure> {
    let netns = open_networks(100)?;
    let mut end = End::new(&netns, 0, 1);
    let inners: Vec<_> = (0..100).map(|number| packet(number, 64)).collect();
    let mut next = 0;
    let mut candidates: Vec<Candidate<'_>> = vec![(
        "ours",
        Box::new(|| {
            next = (next + 1) % inners.len();
            if let Some(inner) = inners.get(next) {
                end.send(inner);
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
        let which = (mixed(number), XFRM_POLICY_OUT);
        add_policy(&mut netns, which, priority, &[])?;
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
    Ok(least(&samples))
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
        let mut end = End::new(&netns, u32::from(number), 1);
        let inner = packet(number % tunnels_apart, 1_420);
        cpu_time(|| (0..PACKETS).for_each(|_| end.send(&inner)))
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
        ours: per_packet(least(&together), 2 * PACKETS),
        yardstick: per_packet(least(&alone), PACKETS),
        unit: "ns",
        against: "one worker",
        target: Target::AtMost(1.0 / 1.8),
    })
}

/// CBC and HMAC through the whole way: alone, or eight packets of a flow in hand.
fn cbc_hmac(bytes: usize, in_hand: usize) -> Result<Figure> {
    let netns = tunnels(1, |sa| {
        sa.crypt = Some(blob(("cbc(aes)", 16, 0)));
        sa.auth_trunc = Some(blob(("hmac(sha256)", 32, 128)));
    })?;
    let inner = packet(0, bytes);
    let mut end = End::new(&netns, 0, in_hand);
    // ESP header and IV, payload in whole blocks with its trailer, ICV.
    let packet_bytes = 8 + 16 + (bytes + 2).next_multiple_of(16) + 16;
    let mut bare = crate::crypto::bare_cbc_hmac::<sha2::Sha256>(packet_bytes, 16)?;
    let mut candidates: Vec<Candidate<'_>> = vec![
        ("ours", Box::new(|| end.send_all(&inner))),
        (
            "bare, one by one",
            Box::new(|| (0..in_hand).for_each(|_| bare())),
        ),
    ];
    let name = format!("path: AES-CBC + SHA-256 out {bytes} B, {in_hand} in hand");
    let limit = if in_hand < 8 { 1.15 } else { 0.65 };
    Ok(figure(name, &mut candidates, bytes * in_hand, limit)?.each_of(in_hand))
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
            figures.push(aead_out(name, algorithm, bare, bytes, 1)?);
            figures.push(aead_out(name, algorithm, bare, bytes, IN_HAND)?);
            figures.push(aead_in(name, algorithm, bare, bytes, 1)?);
            figures.push(aead_in(name, algorithm, bare, bytes, IN_HAND)?);
        }
    }
    for in_hand in [1, 8] {
        figures.push(cbc_hmac(1_420, in_hand)?);
    }
    figures.push(cached()?);
    figures.extend(lookups()?);
    figures.push(two_workers("an SA each", 2)?);
    figures.push(two_workers("one SA", 1)?);
    figures.extend(counted()?);
    Ok(figures)
}
