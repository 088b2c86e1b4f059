//! Larval SAs: ALLOCSPI, and ACQUIRE from user space.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("allocspi_checks", checks),
    Scenario::new("allocspi_ranges", ranges),
    Scenario::new("allocspi_random", random),
    Scenario::new("allocspi_finds_larval", finds_larval),
    Scenario::new("allocspi_uniqueness", uniqueness),
    Scenario::new("allocspi_attributes", attributes),
    Scenario::new("larval_life", life),
    Scenario::new("acquire_from_user", acquire),
    Scenario::new("acquire_checks", acquire_checks),
];

fn checks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for proto in [0, 4, 43, 50, 51, 60, 108, 255] {
        s.request(
            a,
            &format!("proto {proto}"),
            alloc(&Sa::bare(proto), 0x900, 0x900),
        );
        s.send(a, "", vec![flush_sa(0)]);
    }
    for (min, max) in [
        (5, 4),
        (0, 0),
        (1, 1),
        (0xffff, 0xffff),
        (0x10000, 0x10000),
        (u32::MAX, u32::MAX),
        (2, 1),
    ] {
        for proto in [50, 108] {
            s.request(a, &format!("proto {proto} {min:x}-{max:x}"), {
                alloc(&Sa::bare(proto), min, max)
            });
            s.send(a, "", vec![flush_sa(0)]);
        }
    }
    for family in [0, 2, 3, 10, 255] {
        for mode in [0, 1, 4, 5, 9, 255] {
            s.request(
                a,
                &format!("family {family} mode {mode}"),
                alloc(
                    &Sa::bare(50).mode(mode).info(|i| i.family = family),
                    0x900,
                    0x900,
                ),
            );
            s.send(a, "", vec![flush_sa(0)]);
        }
    }
    let odd = Sa::bare(50).info(|i| {
        i.sel = host_selector();
        i.lft.hard_add_expires_seconds = 5;
        i.flags = 0xff;
        i.replay_window = 9;
        i.id.pad = [1; 3];
        i.pad = [1; 7];
    });
    s.request(a, "everything else is ignored", alloc(&odd, 0x900, 0x900));
    s.request(
        a,
        "wildcard addresses",
        alloc(
            &Sa::bare(50).info(|i| {
                i.saddr = Address::ANY;
                i.id.daddr = Address::ANY;
            }),
            0x901,
            0x901,
        ),
    );
}

fn ranges(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let reqid = |n: u32| Sa::bare(50).info(|i| i.reqid = n);
    // A draw that meets a taken SPI counts as a try, so only a full range is sure to fail.
    for n in 0..3 {
        s.request(a, "exact", alloc(&reqid(n), 0x10 + n, 0x10 + n));
    }
    s.request(a, "a full range", alloc(&reqid(5), 0x10, 0x12));
    s.request(
        a,
        "larger for COMP than it may be",
        alloc(&Sa::bare(108), 0x100, 0x10000),
    );
    s.request(
        a,
        "how many",
        Message::new(XFRM_MSG_GETSADINFO).put(&[0; 4]),
    );
    s.request(a, "0 to the end", alloc(&reqid(9), 0, u32::MAX));
    s.request(a, "0 alone", alloc(&reqid(10), 0, 0));
    s.alloc_spi(a, "1 to the end", alloc(&reqid(12), 1, u32::MAX));
    s.request(a, "a taken one", alloc(&reqid(13), 0x11, 0x11));
}

fn random(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let spi = s.alloc_spi(a, "", alloc(&Sa::bare(50), 0xc000_0000, 0xcfff_ffff));
    assert!((0xc000_0000..=0xcfff_ffff).contains(&spi) || spi == 0);
    let sa = Sa::esp().spi(spi);
    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    s.request(a, "update", sa.upd_sa());
    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
    let spi = s.alloc_spi(a, "COMP", alloc(&Sa::bare(108), 0x100, 0xefff));
    s.request(a, "update", Sa::comp().spi(spi).upd_sa());
}

fn finds_larval(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let base = || Sa::bare(50).info(|i| i.reqid = 1);
    s.request(
        a,
        "no SPI to be had: the larval stays",
        alloc(&base(), 0, 0),
    );
    dump_sad(s, a);
    let others: [(&str, Sa); 10] = [
        ("other reqid", base().info(|i| i.reqid = 2)),
        ("other mode", base().mode(1)),
        ("other source", base().info(|i| i.saddr.0[3] = 9)),
        ("other destination", base().info(|i| i.id.daddr.0[3] = 9)),
        ("other protocol", base().info(|i| i.id.proto = 51)),
        ("v6", base().over_v6()),
        ("mark", base().pod(XFRMA_MARK, &Mark { v: 1, m: 1 })),
        ("if_id", base().u32(XFRMA_IF_ID, 9)),
        ("pcpu", base().u32(XFRMA_SA_PCPU, 0)),
        ("direction", base().attr(XFRMA_SA_DIR, [2])),
    ];
    for (label, sa) in &others {
        s.request(a, label, alloc(sa, 0, 0));
        s.request(
            a,
            "how many",
            Message::new(XFRM_MSG_GETSADINFO).put(&[0; 4]),
        );
    }
    s.request(a, "and one that gets an SPI", alloc(&base(), 0x900, 0x900));
    s.request(a, "the same again", alloc(&base(), 0x901, 0x901));
    dump_sad(s, a);
    s.request(
        a,
        "by seq",
        alloc(&base().info(|i| i.seq = 5), 0x902, 0x902),
    );
    s.request(
        a,
        "by seq again",
        alloc(&base().info(|i| i.seq = 5), 0x903, 0x903),
    );
    s.request(
        a,
        "by seq, other hosts",
        alloc(&base().over_v6().info(|i| i.seq = 5), 0x904, 0x904),
    );
    dump_sad(s, a);
}

fn uniqueness(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.request(a, "an SA", Sa::esp().new_sa());
    let at = |sa: Sa, n: u32| alloc(&sa.info(|i| i.reqid = n), 0x1000, 0x1000);
    s.request(a, "same tuple", at(Sa::bare(50), 1));
    s.request(
        a,
        "other destination",
        at(Sa::bare(50).info(|i| i.id.daddr.0[3] = 9), 2),
    );
    s.request(a, "v6", at(Sa::bare(50).over_v6(), 3));
    s.request(a, "other protocol", at(Sa::bare(51), 4));
    s.request(
        a,
        "marked",
        at(Sa::bare(50).pod(XFRMA_MARK, &Mark { v: 1, m: 1 }), 5),
    );
    s.request(a, "delete", Sa::esp().by_id(XFRM_MSG_DELSA));
    s.request(
        a,
        "other destination",
        at(Sa::bare(50).info(|i| i.id.daddr.0[3] = 9), 6),
    );
    s.request(a, "same tuple", at(Sa::bare(50), 7));
    dump_sad(s, a);
}

fn attributes(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let cases = [
        (
            "mark",
            Sa::bare(50).pod(XFRMA_MARK, &Mark { v: 0x1ff, m: 0xff }),
        ),
        ("if_id", Sa::bare(50).u32(XFRMA_IF_ID, 3)),
        ("in", Sa::bare(50).attr(XFRMA_SA_DIR, [1])),
        ("out", Sa::bare(50).attr(XFRMA_SA_DIR, [2])),
        ("cpu 0", Sa::bare(50).u32(XFRMA_SA_PCPU, 0)),
        ("cpu 1", Sa::bare(50).u32(XFRMA_SA_PCPU, 1)),
        ("cpu 99999", Sa::bare(50).u32(XFRMA_SA_PCPU, 99999)),
        ("cpu none", Sa::bare(50).u32(XFRMA_SA_PCPU, u32::MAX)),
        (
            "others",
            Sa::esp()
                .u32(XFRMA_TFCPAD, 9)
                .u32(XFRMA_SET_MARK, 4)
                .attr(XFRMA_COADDR, [3; 16]),
        ),
    ];
    for (label, sa) in cases {
        s.request(a, label, alloc(&sa, 0x900, 0x900));
        dump_sad(s, a);
        s.send(a, "", vec![flush_sa(0)]);
    }
}

fn life(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.set_sysctl("xfrm_acq_expires", 77);
    s.request(a, "", alloc(&Sa::bare(50), 0x900, 0x900));
    let sa = Sa::esp().spi(0x900);
    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    let ae = AeventId {
        sa_id: sa.id(),
        ..AeventId::default()
    };
    s.request(a, "aevent", Message::with(XFRM_MSG_GETAE, &ae));
    let set = Message::with(XFRM_MSG_NEWAE, &ae).flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE);
    s.request(a, "set aevent", set.u32(XFRMA_REPLAY_THRESH, 3));
    s.request(
        a,
        "soft expire",
        Message::with(
            XFRM_MSG_EXPIRE,
            &UserExpire {
                state: sa.info,
                hard: 0,
                pad: [0; 7],
            },
        ),
    );
    s.request(
        a,
        "hard expire",
        Message::with(
            XFRM_MSG_EXPIRE,
            &UserExpire {
                state: sa.info,
                hard: 1,
                pad: [0; 7],
            },
        ),
    );
    s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
    s.set_sysctl("xfrm_acq_expires", 0);
    s.request(a, "", alloc(&Sa::bare(50), 0x901, 0x901));
    s.request(a, "flush", flush_sa(50));
}

fn acquire_of(policy: &Policy) -> UserAcquire {
    UserAcquire {
        id: XfrmId {
            daddr: RIGHT,
            spi: BeU32::new(0x77),
            proto: 50,
            pad: [1; 3],
        },
        saddr: LEFT,
        sel: host_selector(),
        policy: policy.info,
        aalgos: 1,
        ealgos: 2,
        calgos: 3,
        seq: 4,
    }
}

fn acquire(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let request = |policy: &Policy| {
        let attrs = policy.attrs.iter();
        attrs.fold(
            Message::with(XFRM_MSG_ACQUIRE, &acquire_of(policy)),
            |m, (kind, payload)| m.attr(*kind, payload),
        )
    };
    for dir in 0..4 {
        for count in 0..4 {
            let policy = Policy::new(dir);
            let policy = if count == 0 {
                policy
            } else {
                policy.tmpls(&vec![tmpl(1, 7); count])
            };
            s.request(
                a,
                &format!("dir {dir}, {count} templates"),
                request(&policy),
            );
        }
    }
    let policy = Policy::new(1).tmpls(&[tmpl(0, 1), tmpl(1, 2)]);
    s.request(
        a,
        "marked",
        request(&policy.clone().pod(XFRMA_MARK, &Mark { v: 0x1ff, m: 0xff })),
    );
    s.request(a, "if_id", request(&policy.clone().u32(XFRMA_IF_ID, 5)));
    s.request(a, "sub", request(&policy.clone().kind(1)));
    s.request(a, "cpu", request(&policy.clone().u32(XFRMA_SA_PCPU, 0)));
    s.request(a, "cpu 5", request(&policy.clone().u32(XFRMA_SA_PCPU, 5)));
    s.request(a, "index", request(&policy.clone().info(|i| i.index = 9)));
    let mut spi_tmpl = tmpl(1, 2);
    spi_tmpl.id.spi = BeU32::new(0x5555);
    spi_tmpl.aalgos = 7;
    spi_tmpl.ealgos = 8;
    spi_tmpl.calgos = 9;
    s.request(
        a,
        "template's own SPI and algorithms",
        request(&Policy::new(1).tmpls(&[spi_tmpl])),
    );
    dump_sad(s, a);
    s.request(
        a,
        "nothing was installed",
        Message::dump(XFRM_MSG_GETPOLICY),
    );
}

fn acquire_checks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let base = || Policy::new(1).tmpls(&[tmpl(1, 7)]);
    let request = |policy: &Policy, change: fn(&mut UserAcquire)| {
        let mut acquire = acquire_of(policy);
        change(&mut acquire);
        let attrs = policy.attrs.iter();
        attrs.fold(
            Message::with(XFRM_MSG_ACQUIRE, &acquire),
            |m, (kind, payload)| m.attr(*kind, payload),
        )
    };
    let fine: fn(&mut UserAcquire) = |_| {};
    s.request(a, "action", request(&base().info(|i| i.action = 9), fine));
    s.request(a, "share", request(&base().info(|i| i.share = 9), fine));
    s.request(
        a,
        "policy selector family",
        request(&base().info(|i| i.sel.family = 9), fine),
    );
    s.request(
        a,
        "policy prefix",
        request(&base().info(|i| i.sel.prefixlen_d = 99), fine),
    );
    s.request(a, "direction", request(&base().info(|i| i.dir = 9), fine));
    s.request(
        a,
        "selector family",
        request(&base(), |acquire| acquire.sel.family = 9),
    );
    s.request(
        a,
        "selector prefix",
        request(&base(), |acquire| acquire.sel.prefixlen_d = 99),
    );
    s.request(
        a,
        "proto",
        request(&base(), |acquire| acquire.id.proto = 99),
    );
    s.request(
        a,
        "template mode",
        request(&Policy::new(1).tmpls(&[tmpl(9, 7)]), fine),
    );
    s.request(
        a,
        "seven templates",
        request(&Policy::new(1).tmpls(&[tmpl(1, 7); 7]), fine),
    );
    s.request(
        a,
        "v6 everything",
        request(&base().over_v6(), |acquire| {
            acquire.sel = host_selector_v6();
            acquire.saddr = v6(1);
            acquire.id.daddr = v6(2);
        }),
    );
}
