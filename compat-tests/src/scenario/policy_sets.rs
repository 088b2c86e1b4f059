//! Policies as a whole: types, flushes, many of them, defaults, tables.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::Scenario;
use super::build::*;
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("policy_types", types),
    Scenario::new("policy_flush", flush),
    Scenario::new("policy_events", events),
    Scenario::new("policy_many", many),
    Scenario::new("policy_prefixes", prefix_trees),
    Scenario::new("policy_rehash", rehash),
    Scenario::new("default_policies", defaults),
    Scenario::new("info_tables", info_tables),
];

fn types(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    for kind in 0..2 {
        for dir in 0..3 {
            s.request(
                a,
                "",
                Policy::new(dir)
                    .kind(kind)
                    .tmpls(&[tmpl(0, 1)])
                    .new_policy(),
            );
        }
    }
    dump_spd(s, a);
    s.request(a, "info", Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]));
    s.request(
        a,
        "get main",
        Policy::new(1).by_selector(XFRM_MSG_GETPOLICY),
    );
    s.request(
        a,
        "get sub",
        Policy::new(1).kind(1).by_selector(XFRM_MSG_GETPOLICY),
    );
    s.request(
        a,
        "get type 2",
        Policy::new(1).kind(2).by_selector(XFRM_MSG_GETPOLICY),
    );
    s.request(
        a,
        "delete sub",
        Policy::new(1).kind(1).by_selector(XFRM_MSG_DELPOLICY),
    );
    s.request(
        a,
        "delete sub again",
        Policy::new(1).kind(1).by_selector(XFRM_MSG_DELPOLICY),
    );
    s.request(a, "flush main", flush_policy().flags(5));
    s.request(a, "flush main again", flush_policy().flags(5));
    dump_spd(s, a);
    s.request(
        a,
        "flush sub",
        flush_policy()
            .flags(5)
            .pod(XFRMA_POLICY_TYPE, &policy_type(1)),
    );
    for kind in [2, 3, 254, 255] {
        s.request(
            a,
            &format!("flush {kind}"),
            flush_policy()
                .flags(5)
                .pod(XFRMA_POLICY_TYPE, &policy_type(kind)),
        );
    }
}

fn flush(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(a, "empty", flush_policy().flags(5));
    s.request(a, "", Policy::new(1).new_policy());
    s.request(a, "one", flush_policy().flags(5).pid(7));
    s.request(a, "", Policy::new(1).u32(XFRMA_IF_ID, 7).new_policy());
    s.request(
        a,
        "another if_id",
        flush_policy().flags(5).u32(XFRMA_IF_ID, 9),
    );
    dump_spd(s, a);
    s.request(a, "index after a flush", Policy::new(1).new_policy());
    dump_spd(s, a);
}

fn events(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let full = Policy::new(1)
        .over_v6()
        .kind(1)
        .tmpls(&[
            UserTmpl {
                family: 10,
                ..tmpl(1, 1)
            },
            UserTmpl {
                family: 0,
                ..tmpl(0, 2)
            },
        ])
        .pod(XFRMA_MARK, &Mark { v: 3, m: 255 })
        .u32(XFRMA_IF_ID, 6)
        .info(|i| {
            i.priority = 7;
            i.flags = 3;
            i.share = 2;
            i.sel.proto = 17;
            i.sel.dport = BeU16::new(53);
            i.sel.dport_mask = BeU16::new(0xffff);
        });
    s.request(a, "new", full.new_policy());
    s.request(a, "update", full.upd_policy());
    s.request(a, "get", full.by_selector(XFRM_MSG_GETPOLICY));
    let expire = UserPolExpire {
        pol: full.info,
        hard: 0,
        pad: [0; 7],
    };
    let attrs = |message: Message| {
        full.attrs
            .iter()
            .filter(|attr| attr.0 != XFRMA_TMPL)
            .fold(message, |m, (kind, payload)| m.attr(*kind, payload))
    };
    s.request(a, "soft", attrs(Message::with(XFRM_MSG_POLEXPIRE, &expire)));
    s.request(a, "delete", full.by_selector(XFRM_MSG_DELPOLICY));
    s.request(a, "new", full.new_policy());
    s.request(
        a,
        "hard",
        attrs(Message::with(
            XFRM_MSG_POLEXPIRE,
            &UserPolExpire { hard: 1, ..expire },
        )),
    );
    dump_spd(s, a);
}

fn many(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let policy = |n: u16| {
        Policy::new((n % 3) as u8).info(|i| {
            i.sel.sport = BeU16::new(n);
            i.sel.saddr = Address::v4(10, 2, (n / 7) as u8, 1);
            i.priority = u32::from(n % 5);
        })
    };
    let all: Vec<_> = (0..120)
        .map(|n| policy(n).new_policy().flags(NLM_F_REQUEST))
        .collect();
    for chunk in all.chunks(20) {
        s.datagram(a, "", chunk.to_vec());
    }
    s.request(a, "info", Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]));
    for n in (0..120).step_by(3) {
        let errno = s.request_for_errno(a, policy(n).by_selector(XFRM_MSG_DELPOLICY));
        assert!(errno <= 0 || errno == 38 || errno == 2);
    }
    s.request(
        a,
        "one of the rest",
        policy(50).by_selector(XFRM_MSG_GETPOLICY),
    );
    s.request(
        a,
        "one of the deleted",
        policy(51).by_selector(XFRM_MSG_GETPOLICY),
    );
    s.send(a, "dump", vec![Message::dump(XFRM_MSG_GETPOLICY)]);
    s.recv_lengths(a, 8192);
    s.request(a, "flush", flush_policy().flags(5));
}

fn prefix_trees(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let net = |n: u8, bits: u8, m: u8, m_bits: u8| {
        Policy::new(1).info(|i| {
            i.sel = prefixes(
                Address::v4(10, n, 0, 0),
                bits,
                Address::v4(10, m, 0, 0),
                m_bits,
            );
            i.priority = u32::from(n ^ m) & 3;
        })
    };
    let mut all = Vec::new();
    for n in [0, 1, 2, 4, 128] {
        for bits in [0, 8, 9, 16, 24, 31] {
            for m_bits in [0, 8, 16, 32] {
                all.push(net(n, bits, n + 1, m_bits));
            }
        }
    }
    for policy in &all {
        s.request_quietly(a, "", policy.new_policy());
    }
    for policy in all.iter().step_by(3) {
        s.request_quietly(a, "", policy.by_selector(XFRM_MSG_DELPOLICY));
    }
    for policy in all.iter().step_by(2) {
        s.request_quietly(a, "", policy.upd_policy());
    }
    for policy in &all {
        let errno = s.request_for_errno(a, policy.by_selector(XFRM_MSG_GETPOLICY));
        s.note(format!("{errno}"));
    }
    dump_spd(s, a);
}

fn rehash(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let sel = |s_bits, d_bits| {
        Policy::new(1).info(|i| {
            i.sel = prefixes(
                Address::v4(10, 3, 4, 5),
                s_bits,
                Address::v4(10, 6, 7, 8),
                d_bits,
            )
        })
    };
    for bits in [0, 8, 16, 24, 32] {
        s.request(a, "", sel(bits, 32 - bits).new_policy());
    }
    for (left, right) in [(0, 0), (24, 24), (16, 32), (32, 32)] {
        let set = Message::new(XFRM_MSG_NEWSPDINFO)
            .put(&[0; 4])
            .attr(3, [left, right])
            .attr(4, [64, 128]);
        s.request(a, "thresholds", set);
        s.sleep(std::time::Duration::from_millis(30));
        s.request(a, "info", Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]));
        for bits in [0, 8, 16, 24, 32] {
            s.request(a, "", sel(bits, 32 - bits).by_selector(XFRM_MSG_GETPOLICY));
        }
        s.request(a, "new", sel(left, right).new_policy());
    }
    dump_spd(s, a);
}

fn defaults(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let get = || Message::with(XFRM_MSG_GETDEFAULT, &UserPolicyDefault::default());
    s.request(a, "boot", get());
    for (input, fwd, out) in [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (2, 2, 2),
        (1, 1, 1),
        (3, 255, 128),
        (0, 0, 0),
        (2, 3, 1),
    ] {
        s.request(
            a,
            &format!("{input} {fwd} {out}"),
            Message::with(XFRM_MSG_SETDEFAULT, &UserPolicyDefault { input, fwd, out }),
        );
        s.request(a, "get", get());
    }
    s.request(
        a,
        "request content is ignored",
        Message::new(XFRM_MSG_GETDEFAULT).put(&[9; 4]),
    );
}

fn info_tables(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let both = |s: &mut Session<'_>| {
        s.request(
            a,
            "SAD",
            Message::new(XFRM_MSG_GETSADINFO).put(&0xdead_beef_u32.to_ne_bytes()),
        );
        s.request(
            a,
            "SPD",
            Message::new(XFRM_MSG_GETSPDINFO).put(&0x1234_5678_u32.to_ne_bytes()),
        );
    };
    both(s);
    s.request(a, "", super::Sa::esp().new_sa());
    s.request(a, "", alloc(&super::Sa::bare(51), 0x900, 0x900));
    for dir in 0..3 {
        s.request(a, "", Policy::new(dir).new_policy());
    }
    s.request(a, "", Policy::new(1).kind(1).new_policy());
    both(s);
    s.request(a, "flush", flush_sa(0));
    s.request(a, "flush", flush_policy());
    both(s);
}
