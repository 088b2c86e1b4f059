//! Finding the policy for a flow that no cache knows: nanoseconds, and how they grow.

use dataplane::netns::Limits;
use dataplane::spd::{Flow, Policy, Spd, Templates};
use dataplane::{BootNanos, Now, WallSecs, profile};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, Selector, UserPolicyInfo};

use crate::figure::{Figure, Target};
use crate::messages::{Shape, scramble, selector};
use crate::stopwatch::{cpu_time, median};

const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
const COUNT: u32 = 2_000;
const ROUNDS: u32 = 25;
const NOW: Now = Now {
    boot: BootNanos(1),
    real: WallSecs(1_700_000_000),
};

fn database(shape: Shape, policies: u32) -> Spd {
    let mut spd = Spd::new(&profile::V7_2, Limits::default());
    for i in 0..policies {
        let info = UserPolicyInfo {
            sel: selector(shape, i),
            priority: 1000 + scramble(i) % 8,
            dir: XFRM_POLICY_OUT,
            ..UserPolicyInfo::default()
        };
        let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::default());
        // Two selectors alike but for their padding would be a fault of the set; it has none.
        assert!(spd.insert(policy, true, NOW).is_ok());
    }
    spd
}

/// A flow somewhere within a selector.
fn flow_within(sel: &Selector, random: u32) -> Flow {
    let within = |addr: Address, bits: u8, random: u32| {
        let host = u32::MAX.checked_shr(bits.into()).unwrap_or(0);
        Address::from(std::net::IpAddr::V4(
            (addr.v4_bits() | random & host).into(),
        ))
    };
    Flow {
        family: AF_INET,
        daddr: within(sel.daddr, sel.prefixlen_d, random),
        saddr: within(sel.saddr, sel.prefixlen_s, scramble(random)),
        proto: IPPROTO_UDP,
        dport: sel.dport.get(),
        sport: sel.sport.get(),
        ..Flow::default()
    }
}

/// Nanoseconds of a lookup at each size; the sizes take turns.
fn measure(shape: Shape) -> [f64; 3] {
    let databases = SIZES.map(|policies| database(shape, policies));
    let mut samples = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for ((policies, spd), samples) in SIZES.iter().zip(&databases).zip(&mut samples) {
            let flows: Vec<Flow> = (0..COUNT)
                .map(|i| {
                    let random = scramble(round * COUNT + i);
                    flow_within(&selector(shape, random % policies), scramble(random))
                })
                .collect();
            let nanos = cpu_time(|| {
                for flow in &flows {
                    std::hint::black_box(spd.lookup(flow, XFRM_POLICY_OUT, 0));
                }
            });
            samples.push(nanos / f64::from(COUNT));
        }
    }
    samples.map(|mut s| median(&mut s))
}

/// All figures of this module.
pub(crate) fn run() -> Vec<Figure> {
    let mut all = Vec::new();
    for shape in Shape::ALL {
        let [small, medium, large] = measure(shape);
        let name = shape.name();
        let figure = |name: String, ours, yardstick, against, limit| Figure {
            name,
            ours,
            yardstick,
            unit: "ns",
            against,
            target: Target::AtMost(limit),
        };
        all.extend([
            figure(
                format!("lookup: {name}, 100k"),
                medium,
                300.0,
                "target",
                1.0,
            ),
            figure(
                format!("lookup: {name}, 100k / 1k"),
                medium,
                small,
                "ours at 1,000",
                2.0,
            ),
            figure(
                format!("lookup: {name}, 1M / 1k"),
                large,
                small,
                "ours at 1,000",
                2.0,
            ),
        ]);
    }
    all
}
