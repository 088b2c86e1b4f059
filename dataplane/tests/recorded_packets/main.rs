//! Packets that reference kernels made and took: each opened to the inner packet that went in,
//! each made again to the same bytes from the same sequence number and IV.
//!
//! The recordings are in compat-tests/packets; its record.py says what is in them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test"
)]

mod iptfs;
mod recording;
mod sa;

use std::fmt::Write as _;

use dataplane::drop_reason::DropReason;
use dataplane::packet::fragment::Fragmenter;
use dataplane::packet::reassembly::{Limits, Outcome, Reassembler};
use dataplane::packet::{Family, PacketBuf, ip4, ip6};
use dataplane::time::BootNanos;
use dataplane::transform::route_optimization::Arrived;
use dataplane::transform::{Delivery, Inbound, Mode, Protocol, Scratch, Sequence, Transform};

use recording::{Case, Exchange, Got};
use sa::Sa;

const MTU: u32 = 1500;

fn room() -> PacketBuf {
    PacketBuf::with_capacity(70_000)
}

/// Takes packets off the wire through the SAs, outermost first.
struct Receiver {
    sas: Vec<Sa>,
    /// What Linux puts beside IPComp for packets that were not compressed.
    tunnel: Option<Transform>,
    reassembler: Reassembler,
    scratch: Scratch,
}

#[derive(Debug, PartialEq, Eq)]
enum Received {
    Packet(Vec<u8>),
    Dropped(DropReason),
    /// A fragment, kept.
    Nothing,
    /// No SA is for this protocol or SPI.
    Unknown,
}

impl Receiver {
    fn new(case: &Case) -> Self {
        Self {
            sas: case
                .sas
                .iter()
                .map(|sa| Sa::new(sa, case.profile, [0, 0]))
                .collect(),
            tunnel: sa::beside_ipcomp(&case.sas[0]),
            reassembler: Reassembler::new(Limits::default()),
            scratch: Scratch::default(),
        }
    }

    fn receive(&mut self, wire: &[u8]) -> Received {
        let mut buffer = room();
        buffer.fill(wire);
        match self.reassembler.receive(BootNanos(1), &mut buffer) {
            Ok(Outcome::Whole) => {}
            Ok(Outcome::Kept) => return Received::Nothing,
            Err(reason) => return Received::Dropped(reason),
        }
        match self.pass(&mut buffer) {
            Ok(true) => Received::Packet(buffer.to_vec()),
            // Too short to be compressed, it travelled as it is.
            Ok(false) if self.sas[0].protocol == 108 => Received::Packet(buffer.to_vec()),
            Ok(false) => Received::Unknown,
            Err(reason) => Received::Dropped(reason),
        }
    }

    /// What IPv6 does with extension headers in front of ESP and AH.
    fn exchange_home_addresses(&self, buffer: &mut PacketBuf) -> Result<(), DropReason> {
        for sa in &self.sas {
            let Protocol::RouteOptimization(header) = sa.transform().protocol() else {
                continue;
            };
            let arrived = Arrived::find(buffer).ok_or(DropReason::RouteAddress)?;
            assert_eq!(arrived.kind, header.kind);
            header.check(buffer)?;
            arrived.exchange(buffer).unwrap();
        }
        Ok(())
    }

    /// What `xfrm_input` does with a packet.
    fn pass(&mut self, buffer: &mut PacketBuf) -> Result<bool, DropReason> {
        let encap_kind = self.sas.last().unwrap().encap_kind();
        self.exchange_home_addresses(buffer)?;
        let mut inbound = Inbound::locate(buffer, encap_kind)?;
        let mut passed = false;
        loop {
            let Some((spi, low)) = inbound.spi(buffer)? else {
                if let Some(tunnel) = self.tunnel.as_ref().filter(|_| inbound.protocol != 17) {
                    let opened = tunnel.open(buffer, &inbound, Sequence(0), &mut self.scratch)?;
                    tunnel.unwrap(buffer, &inbound, &opened)?;
                    judge(buffer)?;
                    return Ok(true);
                }
                if passed {
                    inbound.finish(buffer)?;
                    judge(buffer)?;
                }
                return Ok(passed);
            };
            let found = self
                .sas
                .iter()
                .find(|sa| sa.spi == spi && sa.protocol == inbound.protocol);
            let Some(sa) = found else { return Ok(false) };
            sa.replay().check(low).map_err(|_| DropReason::InReplay)?;
            let sequence = sa.replay().infer(low);
            let opened = sa
                .transform()
                .open(buffer, &inbound, sequence, &mut self.scratch)?;
            sa.replay()
                .recheck(sequence)
                .map_err(|_| DropReason::InReplay)?;
            sa.replay().advance(low);
            passed = true;
            match sa.transform().unwrap(buffer, &inbound, &opened)? {
                Delivery::Next(next) => inbound = next,
                Delivery::Packet(_) => {
                    judge(buffer)?;
                    return Ok(true);
                }
                Delivery::Aggfrag => unreachable!("no recording of this kind has it"),
            }
        }
    }
}

/// What IP asks of every packet.
fn judge(buffer: &mut PacketBuf) -> Result<(), DropReason> {
    match Family::of(buffer).unwrap() {
        Family::V4 => ip4::receive(buffer).map(|_| ()),
        Family::V6 => ip6::receive(buffer).map(|_| ()),
    }
}

/// A packet as IPv6 transport mode shows it: what is behind its extension headers.
fn payload(packet: &[u8]) -> &[u8] {
    &packet[ip6::upper_layer(packet).unwrap().at..]
}

fn matches(got: &Got, received: &Received, inner: &[u8]) -> bool {
    match (got, received) {
        (Got::Same, Received::Packet(packet)) => packet == inner,
        (Got::Packet(expected), Received::Packet(packet)) => {
            let mut expected = PacketBuf::copy_of(&expected.whole());
            let mut packet = packet.clone();
            if packet[0] >> 4 == 4 && packet[0] != 0x45 {
                // The host writes into options (route, time) before XFRM sees the packet.
                expected[10..12].copy_from_slice(&packet[10..12]);
                let end = usize::from(packet[0] & 15) * 4;
                packet[20..end].copy_from_slice(&expected[20..end]);
            } else {
                // The packet socket shows padding that the next check takes off.
                judge(&mut expected).unwrap();
            }
            *expected == *packet
        }
        (Got::Payload(expected), Received::Packet(packet)) => expected.matches(payload(packet)),
        _ => false,
    }
}

/// Linux decides these outside the transforms: a home address nobody knows,
/// a source route that goes on.
fn is_for_the_path(case: &Case) -> bool {
    case.name.starts_with("ro-")
        || case.name.contains("dest-hao")
        || case.name.contains("routing-left")
}

fn open(case: &Case) {
    let mut receiver = Receiver::new(case);
    if case.name.starts_with("ro-") {
        for out in case.exchanges.iter().flat_map(|exchange| &exchange.out) {
            let result = receiver.pass(&mut PacketBuf::copy_of(&out.whole()));
            assert_eq!(
                result,
                Ok(case.name.ends_with('p') || case.name.ends_with("ah"))
            );
        }
        return;
    }
    for exchange in &case.exchanges {
        let copies = if case.name.starts_with("replay-") {
            3
        } else {
            1
        };
        let mut got = exchange.got.iter();
        for wire in exchange.wires() {
            let Some(wire) = whole(case, wire) else {
                return;
            };
            for _ in 0..copies {
                let received = receiver.receive(&wire);
                let context = format!("{}: {:02x?} gave {received:02x?}", case.name, wire);
                match &received {
                    Received::Packet(_) if exchange.nothing_recorded() => {}
                    Received::Packet(_) => {
                        let expected = got.next().unwrap_or_else(|| panic!("nothing: {context}"));
                        let inner = exchange.inner.whole();
                        assert!(
                            matches(expected, &received, &inner),
                            "{expected:02x?}: {context}"
                        );
                    }
                    Received::Dropped(reason) => {
                        let counter = reason.counter().map(|counter| format!("Xfrm{counter:?}"));
                        if case.name.starts_with("replay-") {
                            assert_eq!(counter.as_deref(), Some("XfrmInStateSeqError"));
                        } else {
                            assert_eq!(counter, exchange.counter, "{reason:?} {context}");
                        }
                    }
                    Received::Unknown => assert!(exchange.got.is_empty(), "{context}"),
                    Received::Nothing => {}
                }
            }
        }
        assert!(
            got.next().is_none(),
            "{}: more was delivered by Linux",
            case.name
        );
    }
}

/// All of a frame; `None` when the recording has only its beginning.
fn whole(case: &Case, wire: &recording::Frame) -> Option<Vec<u8>> {
    if case.is_brief() {
        None
    } else {
        Some(wire.whole())
    }
}

/// Makes a packet out of an inner one as `a` did.
fn seal(
    case: &Case,
    sas: &[Sa],
    exchange: &Exchange,
    sequence: impl Fn(&Sa, usize) -> Sequence,
) -> Result<PacketBuf, DropReason> {
    let out = exchange.out.first().map(|frame| frame.start.clone());
    let mut scratch = Scratch::default();
    let mut buffer = room();
    buffer.fill(&exchange.inner.whole());
    // From the outermost in, what still fits.
    let mut mtus = vec![MTU];
    for sa in sas.iter().rev() {
        mtus.push(sa.transform().mtu(*mtus.last().unwrap()));
    }
    let ident = out
        .as_ref()
        .map_or(0, |out| u16::from_be_bytes([out[4], out[5]]));
    for (at, sa) in sas.iter().enumerate() {
        let outer_mtu = mtus[sas.len() - 1 - at];
        let enforced = at == 0 && matches!(sa.mode(), Mode::Tunnel | Mode::Beet);
        let route = dataplane::transform::Route {
            hop_limit: 64,
            outer_mtu,
            inner_mtu: if enforced {
                mtus[sas.len() - at]
            } else {
                u32::MAX
            },
            ident,
        };
        let place = sa.transform().place(&mut buffer, &route)?;
        sa.transform()
            .seal(&mut buffer, &place, sequence(sa, at), &route, &mut scratch)
            .unwrap_or_else(|reason| panic!("{}: {reason:?}", case.name));
    }
    Ok(buffer)
}

fn make(case: &Case) {
    for exchange in &case.exchanges {
        let seeds = sa::seeds(case, exchange);
        let make = |sa| Sa::new(sa, case.profile, seeds);
        let sas: Vec<_> = case.sas.iter().map(make).collect();
        let context = &case.name;
        let sequence = |sa: &Sa, at| sa.sequence(exchange, at, sas.len());
        let sealed = match seal(case, &sas, exchange, sequence) {
            Err(reason) => {
                assert_eq!(reason, DropReason::OutTooBig, "{context}");
                assert_eq!(exchange.error.as_deref(), Some("EMSGSIZE"), "{context}");
                continue;
            }
            Ok(sealed) => sealed,
        };
        let mtu = usize::try_from(MTU).unwrap();
        if exchange.error.is_some() {
            assert!(
                sealed.len() > mtu && sas[0].mode() == Mode::Transport,
                "{context}"
            );
            continue;
        }
        if exchange.out.is_empty() {
            continue;
        }
        let mut parts = Vec::new();
        if sealed.len() > mtu {
            let ident = exchange.v6_fragment_ident();
            let mut cutter = Fragmenter::new(&sealed, mtu, ident).unwrap();
            let mut part = room();
            while cutter.next_into(&mut part).unwrap() {
                parts.push(part.to_vec());
            }
        } else {
            parts.push(sealed.to_vec());
        }
        assert_eq!(parts.len(), exchange.out.len(), "{context}");
        for (part, out) in parts.iter().zip(&exchange.out) {
            compare(case, part, out, &exchange.inner.whole());
        }
    }
}

/// Gives reference kernels packets of ours, one of each kind that they recorded.
///
/// Needs an installed kernel (compat-tests/kernel); without one it does nothing.
fn taken_by(kernel: &str) {
    let mut text = String::new();
    let (mut count, mut spi) = (0, 0x2000);
    for mut case in recording::read(kernel) {
        // Linux fails on its own ah-esp packets, and its hosts write the time into -ts.
        let other = ["mtu-", "bad-", "ah-esp-", "ro-"];
        if other.iter().any(|kind| case.name.starts_with(kind)) || case.name.ends_with("-ts") {
            continue;
        }
        let travels = |exchange: &Exchange| {
            let as_it_was = exchange.wire.is_empty() && exchange.out.len() == 1;
            as_it_was && !exchange.got.is_empty() && exchange.out[0].start != exchange.inner.start
        };
        let Some(at) = case.exchanges.iter().position(travels) else {
            continue;
        };
        let exchange = case.exchanges.swap_remove(at);
        let _ = writeln!(text, "case {}", case.name);
        for params in &mut case.sas {
            spi += 1;
            params.insert("spi".to_owned(), format!("{spi:#x}"));
            let pairs: Vec<_> = params.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let _ = writeln!(text, "sa {}", pairs.join(" "));
        }
        let fresh = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let make = |params| Sa::new(params, case.profile, fresh);
        let sas: Vec<_> = case.sas.iter().map(make).collect();
        let sealed = seal(&case, &sas, &exchange, |sa, _| sa.first).unwrap();
        let expected = match &exchange.got[0] {
            Got::Packet(other) => other.whole(),
            Got::Same | Got::Payload(_) => exchange.inner.whole(),
        };
        let (expected, sealed) = (recording::hex(&expected), recording::hex(&sealed));
        let _ = writeln!(text, "in {expected}\nwire {sealed}\n");
        count += 1;
    }
    give(kernel, "record.py", &text, count);
}

/// Has a kernel take `count` packets or streams, by a script of compat-tests/packets.
fn give(kernel: &str, script: &str, text: &str, count: usize) {
    let suite = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../compat-tests");
    let file = std::env::temp_dir().join(format!("taken-{kernel}-{}", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let ran = std::process::Command::new(suite.join("kernel/run.sh"))
        .args(["-k", kernel, "-r", "-t", "600", "--", "python3"])
        .arg(suite.join("packets").join(script))
        .arg("--take")
        .arg(&file)
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let output = String::from_utf8_lossy(&ran.stdout);
    let complaint = String::from_utf8_lossy(&ran.stderr);
    if complaint.contains("not installed") {
        // No package has the module of the latter.
        assert!(
            !trials::all_required() || kernel == "7.2-iptfs",
            "{complaint}"
        );
        eprintln!("skipped: {complaint}");
        return;
    }
    assert_eq!(
        output.trim(),
        format!("taken {count} of {count}"),
        "{complaint}"
    );
}

#[test]
fn linux_6_1_takes_our_packets() {
    taken_by("6.1");
}

#[test]
fn linux_6_12_takes_our_packets() {
    taken_by("6.12");
}

#[test]
fn linux_7_2_takes_our_packets() {
    taken_by("7.2");
}

/// The same bytes, but for what Linux leaves to chance: what stands behind AH's ICV, which the
/// ICV covers, and how deflate chooses among equivalents.
fn compare(case: &Case, ours: &[u8], linux: &recording::Frame, inner: &[u8]) {
    // The IV that a fragment depends on may lie behind what is recorded.
    let short = case.is_brief() && linux.start[6] == ip6::FRAGMENT && linux.bytes == ours.len();
    if linux.matches(ours) || (short && ours.starts_with(&linux.start[..48])) {
        return;
    }
    let name = &case.name;
    if case.sas.iter().any(|sa| sa["proto"] == "comp") {
        let Received::Packet(opened) = Receiver::new(case).receive(ours) else {
            panic!("{name}: our compression is not understood");
        };
        assert_eq!(opened, inner, "{name}");
        return;
    }
    let outer = case.sas.last().unwrap();
    let padded = outer["proto"] == "ah" && sa::ah_pad_bytes(outer) > 0;
    assert!(padded, "{name}\nours  {ours:02x?}\nlinux {linux:02x?}");
    let at = Inbound::locate(ours, 0).unwrap().at;
    let linux = linux.whole();
    let own = (usize::from(ours[at + 1]) + 2) * 4;
    assert_eq!(ours[..at + 12], linux[..at + 12], "{name}");
    assert_eq!(ours[at + own..], linux[at + own..], "{name}");
    let Received::Packet(opened) = Receiver::new(case).receive(ours) else {
        panic!("{name}: our AH is not understood");
    };
    assert_eq!(opened, inner, "{name}");
}

fn check(kernel: &str) {
    let cases = recording::read(kernel);
    assert!(cases.len() > 30, "{}", cases.len());
    let mut failed = Vec::new();
    for case in &cases {
        for (what, step) in [("open", open as fn(&Case)), ("make", make)] {
            if is_for_the_path(case) && what == "open" {
                continue;
            }
            if let Err(panic) = std::panic::catch_unwind(|| step(case)) {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                failed.push(format!(
                    "{what} {}: {}",
                    case.name,
                    text.unwrap_or_default()
                ));
            }
        }
    }
    let shown: Vec<_> = failed
        .iter()
        .take(8)
        .map(|f| f.chars().take(3000).collect::<String>())
        .collect();
    let names: Vec<_> = failed.iter().filter_map(|f| f.split(": ").next()).collect();
    assert!(
        failed.is_empty(),
        "{} of {}: {names:#?}\n{}",
        failed.len(),
        cases.len(),
        shown.join("\n")
    );
}

#[test]
fn packets_of_linux_7_2() {
    check("7.2");
}

#[test]
fn packets_of_linux_6_12() {
    check("6.12");
}

#[test]
fn packets_of_linux_6_1() {
    check("6.1");
}

/// The sequence number's type is public for this.
#[test]
fn sequence_halves() {
    let sequence = Sequence::new(5, 7);
    assert_eq!((sequence.high(), sequence.low()), (5, 7));
}
