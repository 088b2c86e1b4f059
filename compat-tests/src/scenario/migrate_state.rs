//! MIGRATE_STATE: one SA moves.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("migrate_state_checks", state_checks),
    Scenario::new("migrate_state_moves", state_moves),
    Scenario::new("migrate_state_attributes", state_attributes),
    Scenario::new("migrate_state_selector", state_selector),
];

pub(super) fn state_request(sa: &Sa) -> UserMigrateState {
    UserMigrateState {
        id: sa.id(),
        new_daddr: RIGHT,
        new_saddr: ELSEWHERE,
        new_sel: sa.info.sel,
        new_family: AF_INET,
        new_reqid: sa.info.reqid,
        ..UserMigrateState::default()
    }
}

pub(super) fn state(request: &UserMigrateState) -> Message {
    Message::with(XFRM_MSG_MIGRATE_STATE, request)
}

fn state_checks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp().mode(1);
    s.request(a, "no SA", state(&state_request(&sa)));
    let bad: [(&str, fn(&mut UserMigrateState)); 18] = [
        ("SPI 0", |m| m.id.spi = BeU32::new(0)),
        ("reserved", |m| m.reserved = 1),
        ("flags 4", |m| m.flags = 4),
        ("flags all", |m| m.flags = u32::MAX),
        ("family 0", |m| m.new_family = 0),
        ("family 3", |m| m.new_family = 3),
        ("id family 3", |m| m.id.family = 3),
        ("prefix", |m| m.new_sel.prefixlen_d = 99),
        ("prefix v6", |m| {
            m.new_sel.family = 10;
            m.new_sel.prefixlen_d = 129;
        }),
        ("selector family 3", |m| m.new_sel.family = 3),
        ("selector family 0", |m| m.new_sel.family = 0),
        ("selector family 0, prefix", |m| {
            m.new_sel.family = 0;
            m.new_sel.prefixlen_s = 99;
        }),
        ("mark", |m| m.old_mark = Mark { v: 1, m: 1 }),
        ("proto", |m| m.id.proto = 51),
        ("proto 0", |m| m.id.proto = 0),
        ("new addresses 0", |m| {
            m.new_saddr = Address::ANY;
            m.new_daddr = Address::ANY;
        }),
        ("update selector", |m| m.flags = 2),
        ("everything wrong", |m| {
            m.id.spi = BeU32::new(0);
            m.reserved = 1;
            m.flags = 9;
            m.new_family = 3;
        }),
    ];
    for (label, change) in bad {
        s.send(
            a,
            "old",
            vec![flush_sa(0), sa.new_sa().flags(NLM_F_REQUEST)],
        );
        s.drain_silently();
        let mut request = state_request(&sa);
        change(&mut request);
        if s.request(a, label, state(&request)).is_ok() {
            s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
        }
    }
    s.request(a, "larval", alloc(&Sa::bare(51), 0x900, 0x900));
    s.request(
        a,
        "of a larval",
        state(&state_request(&Sa::ah().spi(0x900))),
    );
}

fn state_moves(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = rich();
    s.request(a, "", sa.new_sa());
    s.request(
        a,
        "to the same place",
        state(&UserMigrateState {
            new_saddr: LEFT,
            ..state_request(&sa)
        }),
    );
    s.request(a, "source", state(&state_request(&sa)).pid(5));
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
    s.request(
        a,
        "destination",
        state(&UserMigrateState {
            new_daddr: ELSEWHERE,
            new_reqid: 99,
            ..state_request(&sa)
        }),
    );
    s.request(a, "get at the old one", sa.by_id(XFRM_MSG_GETSA));
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
    let moved = sa.clone().info(|i| i.id.daddr = ELSEWHERE);
    s.request(a, "one in the way", Sa::esp().new_sa());
    s.request(
        a,
        "into it",
        state(&UserMigrateState {
            new_daddr: RIGHT,
            ..state_request(&moved)
        }),
    );
    let six = UserMigrateState {
        new_daddr: v6(2),
        new_saddr: v6(1),
        new_family: 10,
        ..state_request(&moved)
    };
    s.request(a, "to IPv6", state(&six));
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
    s.request(
        a,
        "",
        Sa::esp().spi(9).info(|i| i.sel = host_selector()).new_sa(),
    );
    let transport = UserMigrateState {
        new_daddr: v6(2),
        new_saddr: v6(1),
        new_family: 10,
        ..state_request(&Sa::esp().spi(9))
    };
    s.request(a, "transport to IPv6", state(&transport));
    s.request(
        a,
        "transport with a selector",
        state(&UserMigrateState {
            new_sel: host_selector(),
            ..state_request(&Sa::esp().spi(9))
        }),
    );
    s.request(
        a,
        "",
        Sa::esp()
            .spi(10)
            .pod(XFRMA_MARK, &Mark { v: 1, m: 3 })
            .new_sa(),
    );
    let marked = state_request(&Sa::esp().spi(10));
    s.request(a, "marked, without the mark", state(&marked));
    s.request(
        a,
        "marked",
        state(&UserMigrateState {
            old_mark: Mark { v: 1, m: 3 },
            ..marked
        })
        .pod(XFRMA_MARK, &Mark { v: 2, m: 3 }),
    );
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
}

fn state_attributes(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let nat = || Sa::esp().mode(1).pod(XFRMA_ENCAP, &encap_from(2, 4500));
    let cases: Vec<(&str, Sa, Message)> = vec![
        ("encap inherited", nat(), state(&state_request(&nat()))),
        (
            "encap changed",
            nat(),
            state(&state_request(&nat())).pod(XFRMA_ENCAP, &encap_from(2, 999)),
        ),
        (
            "encap removed",
            nat(),
            state(&state_request(&nat())).pod(XFRMA_ENCAP, &EncapTmpl::default()),
        ),
        (
            "encap added",
            Sa::esp(),
            state(&state_request(&Sa::esp())).pod(XFRMA_ENCAP, &encap_from(2, 999)),
        ),
        (
            "encap of type 1",
            Sa::esp(),
            state(&state_request(&Sa::esp())).pod(
                XFRMA_ENCAP,
                &EncapTmpl {
                    kind: 1,
                    ..encap_from(2, 9)
                },
            ),
        ),
        (
            "encap of type 7",
            Sa::esp(),
            state(&state_request(&Sa::esp())).pod(
                XFRMA_ENCAP,
                &EncapTmpl {
                    kind: 7,
                    ..encap_from(2, 9)
                },
            ),
        ),
        (
            "encap on AH",
            Sa::ah(),
            state(&state_request(&Sa::ah())).pod(XFRMA_ENCAP, &encap_from(2, 9)),
        ),
        (
            "mtimer",
            nat(),
            state(&state_request(&nat())).u32(XFRMA_MTIMER_THRESH, 5),
        ),
        (
            "mtimer without encap",
            Sa::esp(),
            state(&state_request(&Sa::esp())).u32(XFRMA_MTIMER_THRESH, 5),
        ),
        (
            "mtimer and removed encap",
            nat().u32(XFRMA_MTIMER_THRESH, 5),
            state(&state_request(&nat())).pod(XFRMA_ENCAP, &EncapTmpl::default()),
        ),
        (
            "keepalive",
            nat().attr(XFRMA_SA_DIR, [2]),
            state(&state_request(&nat())).u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 5),
        ),
        (
            "keepalive inbound",
            nat().attr(XFRMA_SA_DIR, [1]),
            state(&state_request(&nat())).u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 5),
        ),
        (
            "keepalive without encap",
            Sa::esp().attr(XFRMA_SA_DIR, [2]),
            state(&state_request(&Sa::esp())).u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 5),
        ),
        (
            "keepalive 0",
            Sa::esp(),
            state(&state_request(&Sa::esp())).u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 0),
        ),
        (
            "keepalive inherited, encap removed",
            nat()
                .attr(XFRMA_SA_DIR, [2])
                .u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 5),
            state(&state_request(&nat())).pod(XFRMA_ENCAP, &EncapTmpl::default()),
        ),
        (
            "set mark",
            Sa::esp().u32(XFRMA_SET_MARK, 4),
            state(&state_request(&Sa::esp()))
                .u32(XFRMA_SET_MARK, 7)
                .u32(XFRMA_SET_MARK_MASK, 15),
        ),
        (
            "set mark 0",
            Sa::esp().u32(XFRMA_SET_MARK, 4),
            state(&state_request(&Sa::esp())).u32(XFRMA_SET_MARK, 0),
        ),
        (
            "mask alone",
            Sa::esp().u32(XFRMA_SET_MARK, 4),
            state(&state_request(&Sa::esp())).u32(XFRMA_SET_MARK_MASK, 15),
        ),
        (
            "mark",
            Sa::esp(),
            state(&state_request(&Sa::esp())).pod(XFRMA_MARK, &Mark { v: 0x1ff, m: 0xff }),
        ),
        (
            "offload",
            Sa::esp(),
            state(&state_request(&Sa::esp())).pod(
                XFRMA_OFFLOAD_DEV,
                &UserOffload {
                    ifindex: 1,
                    flags: 0,
                    pad: [0; 3],
                },
            ),
        ),
        (
            "offload 4",
            Sa::esp(),
            state(&state_request(&Sa::esp())).pod(
                XFRMA_OFFLOAD_DEV,
                &UserOffload {
                    ifindex: 1,
                    flags: 4,
                    pad: [0; 3],
                },
            ),
        ),
        (
            "offload and clear",
            Sa::esp(),
            state(&UserMigrateState {
                flags: 1,
                ..state_request(&Sa::esp())
            })
            .pod(
                XFRMA_OFFLOAD_DEV,
                &UserOffload {
                    ifindex: 1,
                    flags: 0,
                    pad: [0; 3],
                },
            ),
        ),
        (
            "clear",
            Sa::esp(),
            state(&UserMigrateState {
                flags: 1,
                ..state_request(&Sa::esp())
            }),
        ),
        (
            "clear with mode",
            rich(),
            state(&UserMigrateState {
                flags: 1,
                ..state_request(&rich())
            }),
        ),
        (
            "IPCOMP tunnel",
            Sa::comp().mode(1).spi(9),
            state(&state_request(&Sa::comp().spi(9))),
        ),
        (
            "IPTFS",
            Sa::esp().mode(5).attr(XFRMA_SA_DIR, [2]),
            state(&state_request(&Sa::esp())),
        ),
    ];
    for (label, sa, request) in cases {
        s.send(a, "flush", vec![flush_sa(0)]);
        s.request(a, "old", sa.new_sa());
        s.request(a, label, request);
        s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
    }
}

fn state_selector(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sels = [
        (
            "any",
            Selector {
                family: 2,
                ..Selector::default()
            },
        ),
        ("hosts", host_selector()),
        ("nets", prefixes(LEFT, 24, RIGHT, 24)),
        (
            "hosts with ports",
            Selector {
                proto: 17,
                sport: BeU16::new(5),
                sport_mask: BeU16::new(0xffff),
                ..host_selector()
            },
        ),
        ("other hosts", prefixes(ELSEWHERE, 32, RIGHT, 32)),
    ];
    for (label, sel) in sels {
        for flags in [0, 2] {
            for mode in [0, 1] {
                let sa = Sa::esp().mode(mode).info(|i| i.sel = sel);
                s.send(
                    a,
                    "old",
                    vec![flush_sa(0), sa.new_sa().flags(NLM_F_REQUEST)],
                );
                s.drain_silently();
                let request = UserMigrateState {
                    flags,
                    new_sel: host_selector(),
                    ..state_request(&sa)
                };
                s.request(
                    a,
                    &format!("{label} flags {flags} mode {mode}"),
                    state(&request),
                );
                s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
            }
        }
    }
}
