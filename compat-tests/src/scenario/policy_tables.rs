//! The SPD: what identifies a policy, indexes, order, types, and what finds,
//! updates, expires and flushes it.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::Scenario;
use super::build::*;
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("policy_identity", identity),
    Scenario::new("policy_marks", marks),
    Scenario::new("policy_indexes", indexes),
    Scenario::new("policy_requested_indexes", requested_indexes),
    Scenario::new("policy_by_index", by_index_),
    Scenario::new("policy_lookup_fields", lookup_fields),
    Scenario::new("policy_update", update),
    Scenario::new("policy_dump_order", dump_order),
];

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
    dump_spd(s, a);
}

fn marks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let with = |v, m| Policy::new(1).pod(XFRMA_MARK, &Mark { v, m });
    s.request(a, "stored masked", with(0x1ff, 0xff).new_policy());
    dump_spd(s, a);
    for (v, m) in [(0x1ff, 0xff), (0xff, 0xff), (0x1ff, 0x1ff), (0, 0)] {
        s.request(
            a,
            &format!("get {v:x}/{m:x}"),
            with(v, m).by_selector(XFRM_MSG_GETPOLICY),
        );
        s.request(a, &format!("update {v:x}/{m:x}"), with(v, m).upd_policy());
        s.request(a, &format!("new {v:x}/{m:x}"), with(v, m).new_policy());
    }
    dump_spd(s, a);
    s.request(
        a,
        "delete",
        with(0xff, 0xff).by_selector(XFRM_MSG_DELPOLICY),
    );
    dump_spd(s, a);
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
    dump_spd(s, a);
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
    dump_spd(s, a);
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
    dump_spd(s, a);
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
    dump_spd(s, a);
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
    dump_spd(s, a);
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
    dump_spd(s, a);
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
    dump_spd(s, a);
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
