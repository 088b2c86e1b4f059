//! The cost of a request among a million entries beside that among a thousand,
//! inside the emulator: no sockets, no shim.

use dataplane::netns::Limits;
use dataplane::{BootNanos, Now, SeededEntropy, WallSecs, profile};
use xfrm_proto::consts::*;
use xfrm_proto::extack::AckOptions;
use xfrmd::emulator::{Emulator, Inputs, NetnsId, Peer};

use crate::figure::{Figure, Target};
use crate::messages::{self as msg, Shape, scramble};
use crate::stopwatch::{cpu_time, median};

const SMALL: u32 = 1_000;
const LARGE: u32 = 1_000_000;
/// Requests of a batch: first some that are not timed.
const WARM_UP: u32 = 500;
const COUNT: u32 = 1_000;
const ROUNDS: u32 = 15;

struct Machine {
    emulator: Emulator,
    entropy: SeededEntropy,
    netns: NetnsId,
    datagram: Vec<u8>,
}

impl Machine {
    fn new() -> Self {
        let mut emulator = Emulator::new(&profile::V7_2, Limits::default());
        let netns = emulator.create_netns();
        Self {
            emulator,
            entropy: SeededEntropy::new(1),
            netns,
            datagram: Vec::new(),
        }
    }

    fn send(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        self.datagram.clear();
        put(&mut self.datagram);
        let peer = Peer {
            netns: self.netns,
            port: 1,
            options: AckOptions::default(),
            privileged: true,
            recv_bytes: 0,
        };
        let now = Now {
            boot: BootNanos(1),
            real: WallSecs(1_700_000_000),
        };
        let inputs = Inputs {
            now,
            entropy: &mut self.entropy,
        };
        self.emulator.handle_datagram(inputs, peer, &self.datagram);
        while let Some(datagram) = self.emulator.poll_datagram() {
            std::hint::black_box(datagram.bytes);
        }
    }
}

/// A request whose cost must not depend on how many entries there are.
struct Probe {
    name: &'static str,
    put: fn(&mut Vec<u8>, Shape, u32),
    /// Whether it works on entries that exist already (or else on new ones).
    existing: bool,
}

const POLICY_PROBES: [Probe; 4] = [
    Probe {
        name: "NEWPOLICY",
        put: |out, shape, i| msg::put_policy(out, XFRM_MSG_NEWPOLICY, 0, shape, i),
        existing: false,
    },
    Probe {
        name: "GETPOLICY",
        put: |out, shape, i| msg::put_policy_id(out, XFRM_MSG_GETPOLICY, 0, shape, i),
        existing: true,
    },
    Probe {
        name: "UPDPOLICY",
        put: |out, shape, i| msg::put_policy(out, XFRM_MSG_UPDPOLICY, 0, shape, i),
        existing: true,
    },
    Probe {
        name: "DELPOLICY",
        put: |out, shape, i| msg::put_policy_id(out, XFRM_MSG_DELPOLICY, 0, shape, i),
        existing: false,
    },
];

const SA_PROBES: [Probe; 4] = [
    Probe {
        name: "NEWSA",
        put: |out, _, i| msg::put_sa(out, 0, i),
        existing: false,
    },
    Probe {
        name: "GETSA",
        put: |out, _, i| msg::put_sa_id(out, XFRM_MSG_GETSA, 0, i),
        existing: true,
    },
    Probe {
        name: "DELSA",
        put: |out, _, i| msg::put_sa_id(out, XFRM_MSG_DELSA, 0, i),
        existing: false,
    },
    Probe {
        name: "ALLOCSPI",
        put: |out, _, i| msg::put_alloc_spi(out, 0, i),
        existing: false,
    },
];

/// A machine that has `entries` entries, made by the first probe.
fn loaded(probes: &[Probe], shape: Shape, entries: u32) -> Machine {
    let mut machine = Machine::new();
    if let Some(first) = probes.first() {
        for i in 0..entries {
            machine.send(|out| (first.put)(out, shape, i));
        }
    }
    machine
}

/// Nanoseconds of each probe at each size: medians of batches.
///
/// The sizes take turns, so that what else the machine does hits both, and each batch begins with
/// requests that are not timed, so that it finds the caches as its own size leaves them.
fn measure(probes: &[Probe], shape: Shape) -> Vec<[f64; 2]> {
    const SIZES: [u32; 2] = [SMALL, LARGE];
    let mut machines = SIZES.map(|entries| loaded(probes, shape, entries));
    let mut samples = vec![[Vec::new(), Vec::new()]; probes.len()];
    for round in 0..ROUNDS {
        for (probe, samples) in probes.iter().zip(&mut samples) {
            for ((entries, machine), samples) in SIZES.iter().zip(&mut machines).zip(samples) {
                let first = round * (WARM_UP + COUNT);
                let index = |i: u32| match (probe.existing, probe.name) {
                    (true, _) => scramble(first + i) % entries,
                    (false, "ALLOCSPI") => entries + first + i,
                    // NEW makes them and DEL takes them away again, so the table keeps its size.
                    (false, _) => entries + i,
                };
                let mut run = |range: std::ops::Range<u32>| {
                    for i in range {
                        machine.send(|out| (probe.put)(out, shape, index(i)));
                    }
                };
                run(0..WARM_UP);
                let nanos = cpu_time(|| run(WARM_UP..WARM_UP + COUNT));
                samples.push(nanos / f64::from(COUNT));
            }
        }
    }
    let medians = |[small, large]: [Vec<f64>; 2]| [small, large].map(|mut s| median(&mut s));
    samples.into_iter().map(medians).collect()
}

fn figures(probes: &[Probe], shape: Shape, label: &str) -> Vec<Figure> {
    probes
        .iter()
        .zip(measure(probes, shape))
        .map(|(probe, [small, large])| Figure {
            name: format!("scale: {}{label}, 1M / 1k", probe.name),
            ours: large,
            yardstick: small,
            unit: "ns",
            against: "ours at 1,000",
            target: Target::AtMost(2.0),
        })
        .collect()
}

/// All figures of this module.
pub(crate) fn run() -> Vec<Figure> {
    let mut all = figures(&SA_PROBES, Shape::Pairs, "");
    for shape in Shape::ALL {
        all.extend(figures(
            &POLICY_PROBES,
            shape,
            &format!(" {}", shape.name()),
        ));
    }
    all
}
