//! Which of several policies a flow gets, shown without packets.
//!
//! MIGRATE finds its policy by flow (on 6.1 by selector) and answers ENODATA
//! unless one of the policy's templates has the request id that it names. So
//! if every policy has a transport template with a request id of its own, the
//! one id that succeeds names the winner, and nothing changes.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::Scenario;
use super::build::*;
use crate::message::Message;
use crate::session::{Open, Session};
use crate::subject::Socket;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("policy_order_ties", ties),
    Scenario::new("policy_order_thresholds", thresholds),
    Scenario::new("policy_order_fields", fields),
    Scenario::new("policy_order_at_random", at_random),
];

/// A policy for `sel` whose template has request id `number`.
fn numbered(sel: Selector, number: u32, priority: u32) -> Policy {
    Policy::new(XFRM_POLICY_OUT)
        .info(|info| (info.sel, info.priority) = (sel, priority))
        .tmpls(&[tmpl(XFRM_MODE_TRANSPORT, number)])
}

fn migrate(flow: Selector, number: u32, kind: u8) -> Message {
    let id = UserPolicyId {
        sel: flow,
        dir: XFRM_POLICY_OUT,
        ..UserPolicyId::default()
    };
    let entry = UserMigrate {
        old_daddr: RIGHT,
        old_saddr: LEFT,
        new_daddr: RIGHT,
        new_saddr: LEFT,
        proto: IPPROTO_ESP,
        mode: XFRM_MODE_TRANSPORT,
        reqid: number,
        old_family: AF_INET,
        new_family: AF_INET,
        ..UserMigrate::default()
    };
    Message::with(XFRM_MSG_MIGRATE, &id)
        .pod(XFRMA_MIGRATE, &entry)
        .pod(XFRMA_POLICY_TYPE, &policy_type(kind))
}

/// Asks which of the policies 1 to `count` the flow gets.
fn winner(s: &mut Session<'_>, a: Socket, flow: Selector, count: u32) {
    for number in 1..=count {
        let label = format!("is it {number}");
        if s.request(a, &label, migrate(flow, number, 0)).is_ok() {
            return;
        }
    }
}

const WIDE: (Address, u8) = (Address::v4(10, 0, 0, 0), 8);
const NET: (Address, u8) = (Address::v4(10, 1, 0, 0), 24);
const HOST_NET: (Address, u8) = (Address::v4(10, 1, 0, 2), 24);

fn to(daddr: (Address, u8)) -> Selector {
    prefixes(LEFT, 32, daddr.0, daddr.1)
}

fn ties(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let flow = host_selector();
    let exact = numbered(flow, 1, 10);
    let both = numbered(to(NET), 2, 10);
    let host_bits = numbered(to(HOST_NET), 3, 10);
    let source = numbered(to(WIDE), 4, 10);
    let of = |sel: Selector, number| numbered(sel, number, 10);
    let destination = of(prefixes(Address::ANY, 0, NET.0, NET.1), 5);
    let any = of(prefixes(WIDE.0, WIDE.1, WIDE.0, WIDE.1), 6);
    let all = [&any, &destination, &source, &host_bits, &both, &exact];

    s.note("oldest wins, whatever list it is in");
    for policy in all {
        s.request(a, "add", policy.new_policy());
        winner(s, a, flow, 6);
    }
    s.note("without the oldest the next one does");
    for policy in all {
        s.request(a, "delete", policy.by_selector(XFRM_MSG_DELPOLICY));
        winner(s, a, flow, 6);
    }
    s.note("replacing makes a policy the youngest of all lists but its own");
    for pair in [
        [&both, &host_bits],
        [&both, &exact],
        [&source, &any],
        [&any, &destination],
    ] {
        s.request(a, "flush", flush_policy());
        for policy in pair {
            s.request(a, "add", policy.new_policy());
        }
        winner(s, a, flow, 6);
        s.request(a, "replace the older", pair[0].upd_policy());
        winner(s, a, flow, 6);
        s.request(a, "replace the younger", pair[1].upd_policy());
        winner(s, a, flow, 6);
    }
    s.note("another priority and back: youngest in its own list too");
    s.request(a, "flush", flush_policy());
    s.request(a, "add", both.new_policy());
    s.request(a, "add", host_bits.new_policy());
    s.request(
        a,
        "worse",
        both.clone().info(|info| info.priority = 11).upd_policy(),
    );
    winner(s, a, flow, 3);
    s.request(a, "as before", both.upd_policy());
    winner(s, a, flow, 3);
    s.request(
        a,
        "better",
        both.clone().info(|info| info.priority = 9).upd_policy(),
    );
    winner(s, a, flow, 3);
    s.request(a, "as before", both.upd_policy());
    winner(s, a, flow, 3);
}

fn thresholds(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let flow = host_selector();
    let first = numbered(to(NET), 1, 10);
    let second = numbered(prefixes(LEFT, 24, HOST_NET.0, 24), 2, 10);
    let third = numbered(flow, 3, 10);
    for policy in [&first, &second, &third] {
        s.request(a, "add", policy.new_policy());
    }
    s.request(a, "replace the first", first.upd_policy());
    winner(s, a, flow, 3);
    for (lbits, rbits) in [(24, 24), (32, 0), (0, 0), (32, 32)] {
        let set = Message::new(XFRM_MSG_NEWSPDINFO)
            .put(&[0; 4])
            .pod(XFRMA_SPD_IPV4_HTHRESH, &SpdHthresh { lbits, rbits });
        s.request(a, &format!("thresholds {lbits} {rbits}"), set);
        // A worker of the kernel sorts all policies in anew.
        s.sleep(std::time::Duration::from_millis(50));
        winner(s, a, flow, 3);
        s.request(a, "replace the second", second.upd_policy());
        winner(s, a, flow, 3);
    }
}

fn fields(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let flow = Selector {
        proto: IPPROTO_UDP,
        sport: BeU16::new(500),
        dport: BeU16::new(4500),
        ifindex: 1,
        ..host_selector()
    };
    let base = host_selector();
    let all = [
        Selector {
            proto: IPPROTO_TCP,
            ..base
        },
        Selector {
            proto: IPPROTO_UDP,
            dport: BeU16::new(4501),
            dport_mask: BeU16::new(0xffff),
            ..base
        },
        Selector {
            proto: IPPROTO_UDP,
            dport: BeU16::new(4096),
            dport_mask: BeU16::new(0xf000),
            ..base
        },
        Selector {
            sport: BeU16::new(500),
            sport_mask: BeU16::new(0xffff),
            ..base
        },
        Selector { ifindex: 2, ..base },
        Selector { ifindex: 1, ..base },
        Selector {
            proto: IPPROTO_UDP,
            ..base
        },
        Selector { user: 1, ..base },
    ];
    let count = all.len() as u32;
    for (number, sel) in (1..).zip(all) {
        s.request(a, "add", numbered(sel, number, 20 - number).new_policy());
        winner(s, a, flow, count);
    }
    s.note("protocols 0 and 255");
    winner(s, a, base, count);
    winner(s, a, Selector { proto: 0, ..flow }, count);
    winner(s, a, Selector { proto: 255, ..flow }, count);
    for number in (1..=count).rev() {
        let policy = numbered(all[number as usize - 1], number, 0);
        s.request(a, "delete", policy.by_selector(XFRM_MSG_DELPOLICY));
        winner(s, a, flow, count);
    }
    s.note("what counts as a port of which protocol");
    let ports = |proto, dport, sport| Selector {
        proto,
        dport: BeU16::new(dport),
        dport_mask: BeU16::new(0xffff),
        sport: BeU16::new(sport),
        sport_mask: BeU16::new(0xffff),
        ..base
    };
    for proto in [0, 1, 6, 17, 47, 50, 58, 132, 135, 136, 255] {
        let pairs = [(0x0304, 0x0506), (4, 3), (0, 3), (0x0506, 0x0304), (0, 0)];
        for (number, (dport, sport)) in (1..).zip(pairs) {
            let policy = numbered(ports(proto, dport, sport), number, 0);
            s.request(a, "add", policy.new_policy());
        }
        winner(s, a, ports(proto, 0x0304, 0x0506), 5);
        s.request(a, "flush", flush_policy());
    }
    s.note("mark, interface id and type");
    let mark = |v, m| Mark { v, m };
    s.request(
        a,
        "mark",
        numbered(base, 1, 1)
            .pod(XFRMA_MARK, &mark(1, 1))
            .new_policy(),
    );
    winner(s, a, flow, 3);
    s.request(
        a,
        "mark 0",
        numbered(base, 2, 1)
            .pod(XFRMA_MARK, &mark(0, 1))
            .new_policy(),
    );
    winner(s, a, flow, 3);
    s.request(
        a,
        "interface id",
        numbered(base, 3, 0).u32(XFRMA_IF_ID, 7).new_policy(),
    );
    winner(s, a, flow, 3);
    for if_id in [7, 8] {
        let request = migrate(flow, 3, 0).u32(XFRMA_IF_ID, if_id);
        s.request(a, "of an interface id", request);
    }
    s.request(a, "sub", numbered(base, 4, 9).kind(1).new_policy());
    for kind in [0, 1] {
        s.request(a, "of a type", migrate(flow, 4, kind));
    }
}

/// Equal priorities, overlapping prefixes, replacements: what the lists of Linux make of it.
fn at_random(s: &mut Session<'_>) {
    const COUNT: u32 = 7;
    let a = s.open("a", Open::new());
    let mut state = 20_261_121u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    let bits = [0, 8, 16, 20, 24, 30, 32];
    let hosts = [1, 2, 3, 130].map(|d| Address::v4(10, 1, 0, d));
    for _ in 0..120 {
        let host = |random: &mut dyn FnMut(u32) -> u32| hosts[random(4) as usize];
        let (saddr, daddr) = (host(&mut random), host(&mut random));
        match random(8) {
            0..6 => {
                let number = 1 + random(COUNT);
                let mut bits = || bits[random(7) as usize];
                let sel = prefixes(saddr, bits(), daddr, bits());
                s.request(a, "put", numbered(sel, number, 5).upd_policy());
            }
            6 => {
                let index = 1 + 8 * random(40);
                s.request(
                    a,
                    "delete",
                    by_index(XFRM_MSG_DELPOLICY, XFRM_POLICY_OUT, index),
                );
            }
            _ => {}
        }
        winner(s, a, prefixes(saddr, 32, daddr, 32), COUNT);
    }
}
