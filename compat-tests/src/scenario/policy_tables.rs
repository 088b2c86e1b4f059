//! The SPD: what identifies a policy, indexes, order, types, and what finds,
//! updates, expires and flushes it.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::Scenario;
use super::build::*;
use crate::message::Message;
use crate::session::{Open, Session};
use crate::subject::Socket;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("policy_identity", identity),
    Scenario::new("policy_marks", marks),
    Scenario::new("policy_indexes", indexes),
    Scenario::new("policy_requested_indexes", requested_indexes),
    Scenario::new("policy_by_index", by_index_),
    Scenario::new("policy_lookup_fields", lookup_fields),
    Scenario::new("policy_update", update),
    Scenario::new("policy_dump_order", dump_order),
    Scenario::new("policy_types", types),
    Scenario::new("policy_flush", flush),
    Scenario::new("policy_events", events),
    Scenario::new("policy_many", many),
    Scenario::new("policy_prefixes", prefix_trees),
    Scenario::new("policy_rehash", rehash),
    Scenario::new("default_policies", defaults),
    Scenario::new("info_tables", info_tables),
];

fn dump(s: &mut Session<'_>, a: Socket) {
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
}

fn variants() -> Vec<(&'static str, Policy)> {
    let sel = |change: fn(&mut Selector)| Policy::new(1).info(|i| change(&mut i.sel));
    vec![
        ("same", Policy::new(1)),
        ("in", Policy::new(0)),
        ("priority", Policy::new(1).info(|i| i.priority = 5)),
        ("action", Policy::new(1).info(|i| i.action = 1)),
        ("templates", Policy::new(1).tmpls(&[tmpl(0, 1)])),
        ("if_id", Policy::new(1).u32(XFRMA_IF_ID, 5)),
        (
            "mark",
            Policy::new(1).pod(XFRMA_MARK, &Mark { v: 1, m: 15 }),
        ),
        (
            "mark mask",
            Policy::new(1).pod(XFRMA_MARK, &Mark { v: 1, m: 1 }),
        ),
        (
            "mark 0/0",
            Policy::new(1).pod(XFRMA_MARK, &Mark { v: 0, m: 0 }),
        ),
        (
            "mark 9/0",
            Policy::new(1).pod(XFRMA_MARK, &Mark { v: 9, m: 0 }),
        ),
        ("sub", Policy::new(1).kind(1)),
        ("destination", sel(|sel| sel.daddr.0[3] = 9)),
        ("source prefix", sel(|sel| sel.prefixlen_s = 24)),
        (
            "host bits",
            sel(|sel| {
                sel.prefixlen_s = 24;
                sel.saddr.0[3] = 77;
            }),
        ),
        ("junk behind the address", sel(|sel| sel.daddr.0[9] = 9)),
        ("port", sel(|sel| sel.sport = BeU16::new(1))),
        ("port mask", sel(|sel| sel.sport_mask = BeU16::new(1))),
        ("proto", sel(|sel| sel.proto = 6)),
        ("ifindex", sel(|sel| sel.ifindex = 6)),
        ("user", sel(|sel| sel.user = 6)),
        ("padding", sel(|sel| sel.pad[1] = 6)),
        ("v6", Policy::new(1).over_v6()),
    ]
}

fn identity(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for (first_name, first) in variants() {
        let sub = flush_policy().pod(XFRMA_POLICY_TYPE, &policy_type(1));
        s.send(
            a,
            "flush",
            vec![flush_policy(), sub, first.new_policy().flags(NLM_F_REQUEST)],
        );
        s.drain_silently();
        for (second_name, second) in variants() {
            let errno = s.request_for_errno(a, second.by_selector(XFRM_MSG_GETPOLICY));
            s.note(format!("{second_name} finds {first_name}: {errno}"));
        }
        for (second_name, second) in variants() {
            let errno = s.request_for_errno(a, second.new_policy());
            s.note(format!(
                "{second_name} after {first_name} and all before: {errno}"
            ));
        }
        s.send(a, "dump", vec![Message::dump(XFRM_MSG_GETPOLICY)]);
        s.recv_lengths(a, 65536);
    }
    dump(s, a);
}

fn marks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let with = |v, m| Policy::new(1).pod(XFRMA_MARK, &Mark { v, m });
    s.request(a, "stored masked", with(0x1ff, 0xff).new_policy());
    dump(s, a);
    for (v, m) in [(0x1ff, 0xff), (0xff, 0xff), (0x1ff, 0x1ff), (0, 0)] {
        s.request(
            a,
            &format!("get {v:x}/{m:x}"),
            with(v, m).by_selector(XFRM_MSG_GETPOLICY),
        );
        s.request(a, &format!("update {v:x}/{m:x}"), with(v, m).upd_policy());
        s.request(a, &format!("new {v:x}/{m:x}"), with(v, m).new_policy());
    }
    dump(s, a);
    s.request(
        a,
        "delete",
        with(0xff, 0xff).by_selector(XFRM_MSG_DELPOLICY),
    );
    dump(s, a);
}

fn indexes(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for round in 0..3u8 {
        for dir in [0, 1, 2, 1] {
            let kind = u8::from(round == 2);
            s.request(
                a,
                "",
                Policy::new(dir)
                    .kind(kind)
                    .info(|i| i.sel.sport = BeU16::new(u16::from(round * 8 + dir)))
                    .new_policy(),
            );
        }
    }
    dump(s, a);
    s.request(
        a,
        "delete one",
        Policy::new(1)
            .info(|i| i.sel.sport = BeU16::new(1))
            .by_selector(XFRM_MSG_DELPOLICY),
    );
    s.request(
        a,
        "its index is not used again",
        Policy::new(1)
            .info(|i| i.sel.sport = BeU16::new(99))
            .new_policy(),
    );
    dump(s, a);
    s.request(
        a,
        "a refused one",
        Policy::new(1)
            .info(|i| i.sel.sport = BeU16::new(99))
            .new_policy(),
    );
    s.request(
        a,
        "an invalid one",
        Policy::new(1).info(|i| i.share = 9).new_policy(),
    );
    s.request(
        a,
        "the next",
        Policy::new(1)
            .info(|i| i.sel.sport = BeU16::new(100))
            .new_policy(),
    );
    dump(s, a);
}

fn requested_indexes(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let with = |dir, port, index| {
        Policy::new(dir).info(|i| {
            i.sel.sport = BeU16::new(port);
            i.index = index;
        })
    };
    s.request(a, "0x81", with(1, 1, 0x81).new_policy());
    s.request(a, "0x81 again", with(1, 2, 0x81).new_policy());
    s.request(a, "what would come next", with(1, 3, 0x11).new_policy());
    s.request(a, "generated", with(1, 4, 0).new_policy());
    s.request(a, "generated", with(1, 5, 0).new_policy());
    s.request(a, "on replacement", with(1, 1, 0x91).upd_policy());
    s.request(a, "on update of nothing", with(1, 6, 0x99).upd_policy());
    s.request(a, "8 for in", with(0, 6, 8).new_policy());
    s.request(a, "generated for in", with(0, 7, 0).new_policy());
    s.request(
        a,
        "same number, other type",
        with(1, 8, 0x81).kind(1).new_policy(),
    );
    dump(s, a);
}

fn by_index_(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(
        a,
        "",
        Policy::new(1)
            .info(|i| i.index = 0x81)
            .u32(XFRMA_IF_ID, 4)
            .pod(XFRMA_MARK, &Mark { v: 3, m: 3 })
            .new_policy(),
    );
    let full = |kind| {
        by_index(kind, 1, 0x81)
            .u32(XFRMA_IF_ID, 4)
            .pod(XFRMA_MARK, &Mark { v: 3, m: 3 })
    };
    s.request(a, "get", full(XFRM_MSG_GETPOLICY));
    s.request(
        a,
        "no if_id",
        by_index(XFRM_MSG_GETPOLICY, 1, 0x81).pod(XFRMA_MARK, &Mark { v: 3, m: 3 }),
    );
    s.request(
        a,
        "no mark",
        by_index(XFRM_MSG_GETPOLICY, 1, 0x81).u32(XFRMA_IF_ID, 4),
    );
    s.request(
        a,
        "no such index",
        by_index(XFRM_MSG_GETPOLICY, 1, 0x89)
            .u32(XFRMA_IF_ID, 4)
            .pod(XFRMA_MARK, &Mark { v: 3, m: 3 }),
    );
    s.request(a, "other direction", by_index(XFRM_MSG_GETPOLICY, 0, 0x81));
    s.request(a, "direction 9", by_index(XFRM_MSG_GETPOLICY, 9, 0x81));
    s.request(
        a,
        "other type",
        full(XFRM_MSG_GETPOLICY).pod(XFRMA_POLICY_TYPE, &policy_type(1)),
    );
    s.request(
        a,
        "bad type",
        full(XFRM_MSG_GETPOLICY).pod(XFRMA_POLICY_TYPE, &policy_type(4)),
    );
    s.request(
        a,
        "index and a wrong selector",
        Message::with(
            XFRM_MSG_GETPOLICY,
            &UserPolicyId {
                sel: host_selector_v6(),
                index: 0x81,
                dir: 1,
                pad: [9; 3],
            },
        )
        .u32(XFRMA_IF_ID, 4)
        .pod(XFRMA_MARK, &Mark { v: 3, m: 3 }),
    );
    s.request(a, "delete", full(XFRM_MSG_DELPOLICY));
    s.request(a, "delete again", full(XFRM_MSG_DELPOLICY));
    for dir in 0..3u8 {
        s.request(a, "", Policy::new(dir).new_policy());
    }
    for index in 0..32 {
        for dir in 0..5 {
            let errno = s.request_for_errno(a, by_index(XFRM_MSG_GETPOLICY, dir, index));
            s.note(format!("index {index} dir {dir}: {errno}"));
        }
    }
}

fn lookup_fields(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    for kind in [XFRM_MSG_GETPOLICY, XFRM_MSG_DELPOLICY] {
        s.request(a, "no policy", Policy::new(1).by_selector(kind));
        s.request(a, "direction 3", Policy::new(3).by_selector(kind));
        s.request(a, "direction 255", Policy::new(255).by_selector(kind));
        s.request(a, "", Policy::new(1).new_policy());
        s.request(
            a,
            "prefix too long",
            Policy::new(1)
                .info(|i| i.sel.prefixlen_d = 99)
                .by_selector(kind),
        );
        s.request(
            a,
            "family 9",
            Policy::new(1).info(|i| i.sel.family = 9).by_selector(kind),
        );
        s.request(
            a,
            "family 0",
            Policy::new(1).info(|i| i.sel.family = 0).by_selector(kind),
        );
        s.request(
            a,
            "sec ctx",
            Policy::new(1)
                .by_selector(kind)
                .attr(XFRMA_SEC_CTX, [8, 0, 8, 0, 1, 1, 0, 0]),
        );
        s.request(
            a,
            "bad sec ctx",
            Policy::new(1)
                .by_selector(kind)
                .attr(XFRMA_SEC_CTX, [9, 0, 8, 0, 1, 1, 0, 0]),
        );
        s.request(
            a,
            "templates are ignored",
            Policy::new(1).by_selector(kind).attr(XFRMA_TMPL, [9; 64]),
        );
        s.request(a, "", Policy::new(1).by_selector(kind));
    }
    dump(s, a);
}

fn update(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(a, "creates", Policy::new(1).upd_policy());
    s.request(
        a,
        "other",
        Policy::new(1)
            .info(|i| i.sel.sport = BeU16::new(1))
            .new_policy(),
    );
    s.request(
        a,
        "replaces",
        Policy::new(1)
            .info(|i| {
                i.priority = 9;
                i.action = 1;
                i.flags = 5;
                i.lft.hard_byte_limit = 99;
            })
            .tmpls(&[tmpl(1, 2)])
            .upd_policy(),
    );
    dump(s, a);
    s.request(
        a,
        "of another if_id: a new one",
        Policy::new(1).u32(XFRMA_IF_ID, 3).upd_policy(),
    );
    s.request(
        a,
        "refused",
        Policy::new(1).info(|i| i.action = 7).upd_policy(),
    );
    s.request(a, "sub", Policy::new(1).kind(1).upd_policy());
    dump(s, a);
}

fn dump_order(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for (n, priority) in [(1, 5), (2, 1), (3, 5), (4, 9), (5, 1)] {
        s.request(
            a,
            "",
            Policy::new((n % 3) as u8)
                .info(|i| {
                    i.sel.sport = BeU16::new(n);
                    i.priority = priority;
                })
                .new_policy(),
        );
    }
    let sports = |s: &mut Session<'_>| {
        s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
    };
    sports(s);
    s.request(
        a,
        "update",
        Policy::new(2)
            .info(|i| {
                i.sel.sport = BeU16::new(2);
                i.priority = 1;
            })
            .upd_policy(),
    );
    s.request(
        a,
        "update, new priority",
        Policy::new(1)
            .info(|i| {
                i.sel.sport = BeU16::new(4);
                i.priority = 1;
            })
            .upd_policy(),
    );
    s.request(
        a,
        "of a type: all the same",
        Message::dump(XFRM_MSG_GETPOLICY).pod(XFRMA_POLICY_TYPE, &policy_type(1)),
    );
}

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
    dump(s, a);
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
    dump(s, a);
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
    dump(s, a);
    s.request(a, "index after a flush", Policy::new(1).new_policy());
    dump(s, a);
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
    dump(s, a);
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
    dump(s, a);
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
    dump(s, a);
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
