//! What Linux's IPTFS made of packets and took out of payloads (compat-tests/packets/iptfs.py):
//! the same packets in the same queue make the same payloads, and what a payload holds is
//! delivered in the same step.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use dataplane::drop_reason::DropReason;
use dataplane::packet::PacketBuf;
use dataplane::profile::V7_2;
use dataplane::sad::sa::IptfsConfig;
use dataplane::time::BootNanos;
use dataplane::transform::iptfs::{Popped, Receive, ReceiveParams, Send, SendParams, Sink};
use dataplane::transform::{Inbound, Route, Scratch, Sequence, Transform};

use super::give;
use super::recording::{Params, hex, unhex};
use super::sa::Sa;

const DEFAULT_MTU: u32 = 1500;

/// Where Linux loses packets that it should not, and what it is about (`docs/divergences.md`).
const NOT_EMULATED: [(&str, &str); 6] = [
    ("out4-mtu68", "a piece that ends with the IP header"),
    ("in-done-with-window", "the window's timer is cancelled"),
    ("in-stale-timer", "an old timer ends a new packet"),
    (
        "order-gaps-1-3-wait300-5-wait600-4-6-wait900-7",
        "gaps given up",
    ),
    ("in-esn-wrap-window0", "high half of the sequence number"),
    ("in-esn-wrap-window3", "high half of the sequence number"),
];

/// Something that the recorder did to b, and what came of it.
#[derive(Debug, Default)]
struct Step {
    /// What it put on the wire, if it did not just wait.
    wire: Option<Vec<u8>>,
    from_ms: u64,
    to_ms: u64,
    got: Vec<Vec<u8>>,
    counters: BTreeMap<String, u64>,
}

/// Packets that were in a's queue together.
#[derive(Debug, Default)]
struct Burst {
    inner: Vec<Vec<u8>>,
    out: Vec<Vec<u8>>,
    counters: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Case {
    name: String,
    sa: Params,
    mtu: u32,
    bursts: Vec<Burst>,
    steps: Vec<Step>,
}

fn read() -> Vec<Case> {
    let file: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "../compat-tests/packets/iptfs-7.2.txt",
    ]
    .iter()
    .collect();
    let text = std::fs::read_to_string(file).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "case" {
            cases.push(Case {
                name: rest.to_owned(),
                mtu: DEFAULT_MTU,
                ..Case::default()
            });
        }
        if let Some(case) = cases.last_mut() {
            case.read_line(word, rest);
        }
    }
    cases
}

impl Case {
    fn read_line(&mut self, word: &str, rest: &str) {
        match word {
            "" | "case" => {}
            "sa" => {
                let pairs = rest.split(' ').filter_map(|pair| pair.split_once('='));
                self.sa = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            }
            "limit" => self.mtu = rest.parse().unwrap(),
            "burst" => self.bursts.push(Burst::default()),
            "in" => self.bursts.last_mut().unwrap().inner.push(unhex(rest)),
            "out" => self.bursts.last_mut().unwrap().out.push(unhex(rest)),
            "wire" => {
                let wire = match rest.strip_prefix('=') {
                    Some(number) => {
                        let mut all = self.bursts.iter().flat_map(|burst| &burst.out);
                        all.nth(number.parse().unwrap()).unwrap().clone()
                    }
                    None => unhex(rest),
                };
                self.steps.push(Step {
                    wire: Some(wire),
                    ..Step::default()
                });
            }
            "wait" => self.steps.push(Step::default()),
            "time" => {
                let (from, to) = rest.split_once(' ').unwrap();
                let step = self.steps.last_mut().unwrap();
                (step.from_ms, step.to_ms) = (from.parse().unwrap(), to.parse().unwrap());
            }
            "got" => {
                let packet = match rest.strip_prefix('=') {
                    Some(number) => self.inner(number.parse().unwrap()),
                    None => unhex(rest),
                };
                self.steps.last_mut().unwrap().got.push(packet);
            }
            "mib" => {
                let (name, count) = rest.split_once(' ').unwrap_or((rest, "1"));
                let counters = match self.steps.last_mut() {
                    Some(step) => &mut step.counters,
                    None => &mut self.bursts.last_mut().unwrap().counters,
                };
                counters.insert(name.to_owned(), count.parse().unwrap());
            }
            other => panic!("{other}"),
        }
    }

    fn inner(&self, number: usize) -> Vec<u8> {
        let mut all = self.bursts.iter().flat_map(|burst| &burst.inner);
        all.nth(number).unwrap().clone()
    }

    fn config(&self) -> IptfsConfig {
        let number = |key: &str, default| {
            let value = self.sa.get(key).map(|value| value.parse().unwrap());
            value.unwrap_or(default)
        };
        IptfsConfig {
            drop_time_usecs: number("drop-time", 1_000_000),
            reorder_window: u16::try_from(number("reorder-window", 3)).unwrap(),
            dont_frag: self.sa.contains_key("dont-frag"),
            init_delay_usecs: number("init-delay", 0),
            max_queue_bytes: number("max-queue-size", 10 << 20),
            packet_bytes: number("pkt-size", 0),
        }
    }

    fn send_params(&self, transform: &Transform) -> SendParams {
        transform.iptfs_send_params(&self.config()).unwrap()
    }

    fn receiver(&self) -> Receiver {
        let sa = Sa::new(&self.sa, &V7_2, [0, 0]);
        let receive = Receive::new(&ReceiveParams {
            config: self.config(),
            flags: sa.transform().mode().params().flags,
        });
        Receiver {
            sa,
            receive,
            out: Out::default(),
        }
    }

    fn is_emulated(&self) -> bool {
        NOT_EMULATED.iter().all(|(name, _)| *name != self.name)
    }

    /// Linux's own packets are too long for the path: see the quirk of `SendParams`.
    fn outgrows_path(&self) -> bool {
        let all = self.bursts.iter().flat_map(|burst| &burst.out);
        let limit = usize::try_from(self.mtu).unwrap();
        let sent_less = self.bursts.iter().any(|burst| burst.out.is_empty());
        self.name.contains("-cbc-mtu") && (sent_less || all.clone().any(|out| out.len() > limit))
    }
}

#[derive(Debug, Default)]
struct Out {
    packets: Vec<Vec<u8>>,
    counters: BTreeMap<String, u64>,
}

impl Out {
    fn count(&mut self, reason: DropReason) {
        if let Some(counter) = reason.counter() {
            *self.counters.entry(format!("Xfrm{counter:?}")).or_default() += 1;
        }
    }
}

impl Sink for Out {
    fn packet(&mut self, packet: &mut [u8]) {
        self.packets.push(packet.to_vec());
    }

    fn dropped(&mut self, reason: DropReason) {
        self.count(reason);
    }
}

struct Receiver {
    sa: Sa,
    receive: Receive,
    out: Out,
}

impl Receiver {
    fn open(&self, wire: &[u8]) -> Result<(PacketBuf, Sequence), DropReason> {
        let mut buffer = PacketBuf::copy_of(wire);
        let inbound = Inbound::locate(&buffer, 0)?;
        let (_, low) = inbound.spi(&buffer)?.unwrap();
        // The cases with ESN begin just below a wrap.
        let high = u32::from(self.sa.is_esn() && low < 1 << 31);
        let sequence = Sequence::new(high, low);
        let transform = self.sa.transform();
        let opened = transform.open(&mut buffer, &inbound, sequence, &mut Scratch::default())?;
        transform.unwrap(&mut buffer, &inbound, &opened)?;
        Ok((buffer, sequence))
    }

    fn step(&mut self, wire: Option<&[u8]>, from: BootNanos, to: BootNanos) {
        self.receive.handle_timeout(from, &mut self.out);
        if let Some(wire) = wire {
            match self.open(wire) {
                Ok((mut payload, sequence)) => {
                    self.receive
                        .take(&mut payload, sequence, from, &mut self.out);
                }
                Err(reason) => self.out.count(reason),
            }
        }
        self.receive.handle_timeout(to, &mut self.out);
    }
}

fn millis(millis: u64) -> BootNanos {
    BootNanos(0).plus_nanos(millis * 1_000_000)
}

#[test]
fn receives_what_linux_receives() {
    let mut steps = 0;
    for case in read().iter().filter(|case| case.is_emulated()) {
        let mut receiver = case.receiver();
        for (at, step) in case.steps.iter().enumerate() {
            let (from, to) = (millis(step.from_ms), millis(step.to_ms));
            receiver.step(step.wire.as_deref(), from, to);
            let out = std::mem::take(&mut receiver.out);
            let name = &case.name;
            assert!(
                out.packets == step.got,
                "{name}, step {at}: {out:02x?}, Linux {step:02x?}"
            );
            assert_eq!(out.counters, step.counters, "{name}, step {at}");
            steps += 1;
        }
    }
    assert!(steps > 500, "{steps}");
}

/// Gives a kernel that has IPTFS what we send, every stream through an SA of its own.
///
/// Needs compat-tests/kernel/iptfs.sh to have been run; without it does nothing.
#[test]
fn linux_takes_our_payloads() {
    let (mut text, mut count) = (String::new(), 0);
    for (number, mut case) in read().into_iter().enumerate() {
        case.sa
            .insert("spi".to_owned(), format!("{:#x}", 0x2000 + number));
        // Linux gives up a packet of which a piece ends with the IP header.
        if case.bursts.is_empty() || case.name == "out4-mtu68" {
            continue;
        }
        let sa = Sa::new(&case.sa, &V7_2, [7, 11]);
        let mut ours = case.receiver();
        let pairs: Vec<_> = case.sa.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let _ = writeln!(text, "case {}\nsa {}", case.name, pairs.join(" "));
        let mut sequence = 0;
        for payload in case
            .bursts
            .iter()
            .flat_map(|burst| send(&case, burst, &sa).0)
        {
            sequence += 1;
            let outer = wrap(&case, &sa, &payload, sequence);
            let _ = writeln!(text, "wire {}", hex(&outer));
            ours.step(Some(&outer), millis(1), millis(1));
        }
        for packet in ours.out.packets {
            let _ = writeln!(text, "got {}", hex(&packet));
        }
        text.push('\n');
        count += 1;
    }
    give("7.2-iptfs", "iptfs.py", &text, count);
}

/// What a payload is said to be is not asked for.
#[test]
fn iptfs_takes_any_next_header() {
    let cases = read();
    let case = cases.iter().find(|case| case.name == "in-proto-ipip");
    let case = case.unwrap();
    let mut receiver = case.receiver();
    let step = &case.steps[0];
    receiver.step(step.wire.as_deref(), millis(0), millis(0));
    assert_eq!(receiver.out.packets, step.got);
    assert_eq!(step.got.len(), 1);
}

/// Where Linux loses packets, ours are all there.
#[test]
fn receives_what_linux_loses() {
    for (name, _) in NOT_EMULATED {
        let cases = read();
        let case = cases.iter().find(|case| case.name == name).unwrap();
        let mut receiver = case.receiver();
        for step in &case.steps {
            let (from, to) = (millis(step.from_ms), millis(step.to_ms));
            receiver.step(step.wire.as_deref(), from, to);
        }
        let ours = receiver.out.packets;
        let linux: Vec<_> = case.steps.iter().flat_map(|step| &step.got).collect();
        assert!(linux.len() < ours.len(), "{name}: no longer so");
        assert!(linux.iter().all(|packet| ours.contains(packet)), "{name}");
    }
}

/// What a queue made, and what died.
fn send(case: &Case, burst: &Burst, sa: &Sa) -> (Vec<PacketBuf>, Out) {
    let transform = sa.transform();
    let mut send = Send::new(case.send_params(transform));
    let mut out = Out::default();
    let now = BootNanos(7);
    for inner in &burst.inner {
        // The IP layer has its own limit, of which nothing here is counted.
        if inner.len() as u64 > u64::from(transform.mtu(case.mtu)) {
            continue;
        }
        if let Err(error) = send.push(&mut inner.clone(), (), case.mtu, now) {
            out.count(error.reason());
        }
    }
    let mut payloads = Vec::new();
    let mut buffer = PacketBuf::with_capacity(70_000);
    let due = now.plus_nanos(u64::from(case.config().init_delay_usecs) * 1000);
    if let Some(timeout) = send.poll_timeout() {
        assert_eq!(timeout, due);
    }
    assert!(
        send.pop(BootNanos(due.0 - 1), |()| case.mtu, &mut buffer)
            .is_none()
    );
    while let Some(popped) = send.pop(due, |()| case.mtu, &mut buffer) {
        match popped {
            Popped::Payload(()) => payloads.push(PacketBuf::copy_of(&buffer)),
            Popped::Dropped((), reason) => out.count(reason),
        }
    }
    assert_eq!(send.poll_timeout(), None);
    (payloads, out)
}

/// The outer packet around a payload.
fn wrap(case: &Case, sa: &Sa, payload: &PacketBuf, sequence: u64) -> Vec<u8> {
    let mut packet = PacketBuf::copy_of(payload);
    let route = Route {
        hop_limit: 64,
        outer_mtu: case.mtu,
        inner_mtu: u32::MAX,
        ident: 0,
    };
    let place = sa.transform().place(&mut packet, &route).unwrap();
    let mut scratch = Scratch::default();
    let sequence = Sequence(sequence);
    let sealed = sa
        .transform()
        .seal(&mut packet, &place, sequence, &route, &mut scratch);
    sealed.unwrap();
    packet.to_vec()
}

#[test]
fn makes_what_linux_makes() {
    let (mut payloads, mut shorter) = (0, 0);
    for case in read() {
        let sa = Sa::new(&case.sa, &V7_2, [0, 0]);
        let receiver = case.receiver();
        let mut sequence = 0;
        for burst in &case.bursts {
            let (made, out) = send(&case, burst, &sa);
            let made: Vec<_> = made
                .iter()
                .map(|payload| {
                    sequence += 1;
                    (payload, wrap(&case, &sa, payload, sequence))
                })
                .collect();
            if case.outgrows_path() {
                let limit = usize::try_from(case.mtu).unwrap();
                assert!(made.iter().all(|(_, outer)| outer.len() <= limit));
                shorter += 1;
                continue;
            }
            let name = &case.name;
            assert_eq!(made.len(), burst.out.len(), "{name}");
            assert_eq!(out.counters, burst.counters, "{name}");
            for ((payload, outer), linux) in made.iter().zip(&burst.out) {
                let (expected, number) = receiver.open(linux).unwrap();
                assert_eq!(***payload, *expected, "{name}");
                assert_eq!(outer.len(), linux.len(), "{name}");
                // IP header, SPI and sequence number.
                let header_bytes = if linux[0] >> 4 == 4 { 20 } else { 40 };
                let shown = header_bytes + 8;
                assert_eq!(outer[..shown], linux[..shown], "{name} {number:?}");
                payloads += 1;
            }
        }
    }
    assert!(payloads > 300 && shorter > 10, "{payloads} {shorter}");
}

/// What is sent is received, whatever the path takes, and where Linux's own packets do not fit too.
#[test]
fn what_is_sent_is_received() {
    for case in read().iter().filter(|case| !case.bursts.is_empty()) {
        let sa = Sa::new(&case.sa, &V7_2, [0, 0]);
        let mut receiver = case.receiver();
        let mut wanted = Vec::new();
        let mut sequence = 0;
        for burst in &case.bursts {
            let (made, out) = send(case, burst, &sa);
            if out.counters.is_empty() && !case.sa.contains_key("dont-frag") {
                wanted.extend(burst.inner.iter().cloned());
            }
            for payload in made {
                sequence += 1;
                let outer = wrap(case, &sa, &payload, sequence);
                receiver.step(Some(&outer), millis(1), millis(1));
            }
        }
        if case.name.contains("queue") || case.name.contains("ecn") || wanted.is_empty() {
            continue;
        }
        assert_eq!(receiver.out.packets, wanted, "{}", case.name);
    }
}
