//! The life of policies: found, told about, walked, counted, expired, migrated.

use std::time::Duration;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::Scenario;
use super::build::*;
use super::lifetimes::{next_second, tick};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("spd_life", life),
    Scenario::new("spd_identity", identity),
    Scenario::new("spd_indices", indices),
    Scenario::new("spd_dump", dump),
    Scenario::new("spd_dump_while_changing", dump_while_changing),
    Scenario::new("spd_info", info),
    Scenario::new("spd_thresholds", thresholds),
    Scenario::new("spd_defaults", defaults),
    Scenario::new("spd_flush", flush),
    Scenario::new("spd_polexpire", polexpire),
    Scenario::new("spd_acquire", acquire),
    Scenario::new("spd_migrate", migrate),
    Scenario {
        sleeps: true,
        ..Scenario::new("spd_expiry", expiry)
    },
];

fn out() -> Policy {
    Policy::new(XFRM_POLICY_OUT)
}

fn numbered(user: u32) -> Policy {
    out().info(|p| p.sel.user = user)
}

fn full() -> Policy {
    out()
        .tmpls(&[tmpl(1, 1), tmpl(0, 2)])
        .pod(XFRMA_MARK, &Mark { v: 0x12, m: 0xff })
        .u32(XFRMA_IF_ID, 9)
        .kind(1)
}

fn life(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    for policy in [out(), out().over_v6().tmpls(&[tmpl(1, 1)]), full()] {
        let get = || policy.by_selector(XFRM_MSG_GETPOLICY);
        s.request(a, "get", get());
        s.request(a, "add", policy.new_policy());
        s.request(a, "again", policy.new_policy());
        s.request(
            a,
            "other priority",
            policy.clone().info(|p| p.priority = 5).new_policy(),
        );
        s.request(a, "get", get());
        s.request(
            a,
            "update",
            policy.clone().info(|p| p.priority = 7).upd_policy(),
        );
        s.request(a, "get, own pid", get().pid(77));
        s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
        let delete = policy.by_selector(XFRM_MSG_DELPOLICY);
        s.request(a, "delete, own pid", delete.clone().pid(77));
        s.request(a, "delete", delete);
        s.request(a, "update what is not there", policy.upd_policy().pid(5));
    }
    for (index, dir) in [(1, 1), (9, 0), (9, 2), (0, 1)] {
        s.request(a, "get", by_index(XFRM_MSG_GETPOLICY, dir, index));
        s.request(a, "delete", by_index(XFRM_MSG_DELPOLICY, dir, index));
    }
    let by_all = |kind| {
        by_index(kind, 1, 17)
            .pod(XFRMA_MARK, &Mark { v: 0x12, m: 0xff })
            .u32(XFRMA_IF_ID, 9)
            .pod(XFRMA_POLICY_TYPE, &policy_type(1))
    };
    s.request(
        a,
        "get by index, type main",
        by_index(XFRM_MSG_GETPOLICY, 1, 17),
    );
    s.request(a, "get by index", by_all(XFRM_MSG_GETPOLICY));
    s.request(a, "delete by index", by_all(XFRM_MSG_DELPOLICY));
    for dir in [3, 4, 255] {
        s.request(a, "bad direction", by_index(XFRM_MSG_GETPOLICY, dir, 3));
        s.request(a, "bad direction", by_index(XFRM_MSG_DELPOLICY, dir, 0));
    }
    let get = || out().by_selector(XFRM_MSG_GETPOLICY);
    s.request(a, "bad type", get().pod(XFRMA_POLICY_TYPE, &policy_type(3)));
    s.request(a, "bad context", get().attr(XFRMA_SEC_CTX, [0; 8]));
    let by_one = by_index(XFRM_MSG_GETPOLICY, 1, 1);
    s.request(
        a,
        "bad context, by index",
        by_one.attr(XFRMA_SEC_CTX, [0; 8]),
    );
}

fn identity(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let base = out().info(|p| p.sel = prefixes(LEFT, 24, RIGHT, 24));
    s.request(a, "base", base.new_policy());
    let change = |f: fn(&mut Selector)| base.clone().info(|p| f(&mut p.sel));
    let variants: Vec<(&str, Policy)> = vec![
        ("pad", change(|sel| sel.pad = [0, 1, 0])),
        ("user", change(|sel| sel.user = 1)),
        ("ifindex", change(|sel| sel.ifindex = 1)),
        ("host bits", change(|sel| sel.daddr.0[3] = 77)),
        (
            "bytes behind an IPv4 address",
            change(|sel| sel.saddr.0[9] = 1),
        ),
        ("port without mask", change(|sel| sel.dport = BeU16::new(1))),
        ("direction", base.clone().info(|p| p.dir = 0)),
        ("type", base.clone().kind(1)),
        ("interface id", base.clone().u32(XFRMA_IF_ID, 1)),
        ("mark", base.clone().pod(XFRMA_MARK, &Mark { v: 1, m: 1 })),
        ("mark 0", base.clone().pod(XFRMA_MARK, &Mark { v: 0, m: 1 })),
        (
            "unmasked mark",
            base.clone().pod(XFRMA_MARK, &Mark { v: 0x33, m: 2 }),
        ),
        ("action", base.clone().info(|p| p.action = 1)),
        ("flags", base.clone().info(|p| p.flags = 1)),
        ("index", base.clone().info(|p| p.index = 801)),
        ("templates", base.clone().tmpls(&[tmpl(0, 1)])),
    ];
    for (label, policy) in &variants {
        s.request(a, label, policy.new_policy());
    }
    for (label, policy) in &variants {
        s.request(a, label, policy.by_selector(XFRM_MSG_GETPOLICY));
    }
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
    for (label, policy) in variants.iter().rev() {
        s.request(a, label, policy.by_selector(XFRM_MSG_DELPOLICY));
    }
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
}

fn indices(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let get = |s: &mut Session<'_>, policy: &Policy| {
        s.request(a, "add", policy.new_policy());
        s.request(a, "get", policy.by_selector(XFRM_MSG_GETPOLICY));
    };
    for (user, dir) in [(0, 2), (1, 0), (2, 1), (3, 0)] {
        get(s, &numbered(user).info(|p| p.dir = dir));
    }
    let wanted = |user, index| numbered(user).info(|p| p.index = index);
    // A free one, the same, the next of the generator, a taken one, one of a deleted policy.
    for (user, index) in [(10, 801), (11, 801), (12, 49), (13, 0), (14, 17)] {
        get(s, &wanted(user, index));
    }
    s.request(a, "delete", numbered(10).by_selector(XFRM_MSG_DELPOLICY));
    get(s, &wanted(15, 801));
    s.request(a, "ignored when replacing", wanted(15, 1601).upd_policy());
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
    s.request(a, "flush", flush_policy());
    get(s, &numbered(20));
}

fn dump(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let adds = (0..40).map(|user| numbered(user).tmpls(&[tmpl(0, user)]).new_policy());
    s.datagram(a, "many", adds.map(|m| m.flags(NLM_F_REQUEST)).collect());
    s.request(a, "replace", numbered(7).upd_policy());
    s.request(a, "sub", numbered(50).kind(1).new_policy());
    for buffer in [4096, 16384] {
        let reader = s.open(&format!("reader {buffer}"), Open::new());
        let request = Message::dump(XFRM_MSG_GETPOLICY).pod(XFRMA_POLICY_TYPE, &policy_type(1));
        s.send(reader, "dump", vec![request]);
        while s.recv(reader, buffer).is_some() {}
        s.close(reader);
    }
    s.request(
        a,
        "a bad attribute",
        Message::dump(XFRM_MSG_GETPOLICY).attr(XFRMA_IF_ID, [1]),
    );
}

fn dump_while_changing(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let reader = s.open("reader", Open::new());
    let adds = (0..100).map(|user| numbered(user).new_policy());
    s.datagram(a, "many", adds.map(|m| m.flags(NLM_F_REQUEST)).collect());
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETPOLICY)]);
    s.recv(reader, 4096);
    let quiet = |message: Message| message.flags(NLM_F_REQUEST);
    let delete = |user| quiet(numbered(user).by_selector(XFRM_MSG_DELPOLICY));
    s.datagram(
        a,
        "delete around the cursor",
        (55..76).map(delete).collect(),
    );
    s.recv(reader, 4096);
    let update = |user| quiet(numbered(user).upd_policy());
    s.datagram(
        a,
        "replace around the cursor",
        (30..55).map(update).collect(),
    );
    s.recv(reader, 4096);
    s.request(a, "flush", flush_policy());
    let adds = (200..205).map(|user| quiet(numbered(user).new_policy()));
    s.datagram(a, "new ones", adds.collect());
    while s.recv(reader, 4096).is_some() {}
}

fn info(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let get = || Message::new(XFRM_MSG_GETSPDINFO).put(&[1, 2, 3, 4]);
    s.request(a, "empty", get());
    let mut user = 0;
    for step in [1, 6, 1, 1, 7, 1, 20, 200] {
        for dir in [0, 1, 2] {
            let adds: Vec<_> = (0..step)
                .map(|_| {
                    user += 1;
                    let policy = numbered(user).info(|p| p.dir = dir);
                    policy.new_policy().flags(NLM_F_REQUEST)
                })
                .collect();
            // One by one, because the kernel's worker takes one step at a time.
            for add in adds {
                s.send(a, "add", vec![add]);
            }
            s.sleep(Duration::from_millis(20));
            s.request(a, "info", get());
        }
    }
    s.request(a, "update", numbered(3).info(|p| p.dir = 0).upd_policy());
    s.request(a, "sub", numbered(3).kind(1).new_policy());
    s.request(a, "info", get());
    s.request(a, "flush", flush_policy());
    s.request(a, "info", get());
}

fn thresholds(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let get = || Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]);
    let set = || Message::new(XFRM_MSG_NEWSPDINFO).put(&[0; 4]);
    let bits = |lbits, rbits| SpdHthresh { lbits, rbits };
    for (v4, v6) in [
        ((0, 32), (128, 0)),
        ((33, 0), (1, 1)),
        ((1, 1), (0, 129)),
        ((8, 16), (64, 48)),
    ] {
        let both = set()
            .pod(XFRMA_SPD_IPV4_HTHRESH, &bits(v4.0, v4.1))
            .pod(XFRMA_SPD_IPV6_HTHRESH, &bits(v6.0, v6.1));
        s.request(a, "both", both);
        s.request(a, "get", get());
    }
    s.request(a, "v4", set().pod(XFRMA_SPD_IPV4_HTHRESH, &bits(3, 4)));
    s.request(a, "v6", set().pod(XFRMA_SPD_IPV6_HTHRESH, &bits(5, 6)));
    s.request(a, "none", set());
    s.request(
        a,
        "others",
        set()
            .attr(XFRMA_SPD_INFO, [0; 24])
            .attr(XFRMA_SPD_HINFO, [9; 8]),
    );
    s.request(a, "short", set().attr(XFRMA_SPD_IPV4_HTHRESH, [1]));
    s.request(a, "get", get());
    s.request(
        a,
        "get with attributes",
        get().pod(XFRMA_SPD_IPV4_HTHRESH, &bits(3, 4)),
    );
}

fn defaults(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let get = || Message::new(XFRM_MSG_GETDEFAULT).put(&[9; 3]);
    s.request(a, "get", get());
    for (input, fwd, out) in [(1, 2, 0), (0, 1, 1), (3, 255, 2), (2, 2, 2), (2, 2, 2)] {
        let wanted = UserPolicyDefault { input, fwd, out };
        s.request(a, "set", Message::with(XFRM_MSG_SETDEFAULT, &wanted).pid(9));
        s.request(a, "get", get().pid(9));
    }
}

fn flush(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let flush = || Message::new(XFRM_MSG_FLUSHPOLICY).pid(6);
    s.request(a, "empty", flush());
    for policy in [
        numbered(1),
        numbered(2).info(|p| p.dir = 2),
        numbered(3).kind(1),
    ] {
        s.request(a, "add", policy.new_policy());
    }
    for kind in [255, 2, 1, 1] {
        let of_type = flush().pod(XFRMA_POLICY_TYPE, &policy_type(kind));
        s.request(a, &format!("type {kind}"), of_type);
    }
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
    s.request(a, "main", flush());
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
}

fn polexpire(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let expire = |policy: &Policy, hard| {
        let body = UserPolExpire {
            pol: policy.info,
            hard,
            pad: [7; 7],
        };
        let attrs = policy.attrs.iter();
        let message = Message::with(XFRM_MSG_POLEXPIRE, &body).pid(3);
        attrs.fold(message, |message, (kind, payload)| {
            message.attr(*kind, payload)
        })
    };
    for policy in [out(), full()] {
        s.request(a, "nobody", expire(&policy, 0));
        s.request(a, "add", policy.new_policy());
        s.request(a, "soft", expire(&policy, 0));
        s.request(a, "hard", expire(&policy, 200));
        s.request(a, "hard again", expire(&policy, 1));
        s.request(a, "get", policy.by_selector(XFRM_MSG_GETPOLICY));
    }
    s.request(a, "add", out().new_policy());
    let by_number = |index, dir| out().info(|p| (p.index, p.dir) = (index, dir));
    for (index, dir) in [(17, 0), (17, 1), (17, 3), (25, 1)] {
        s.request(a, "by index", expire(&by_number(index, dir), 1));
    }
    s.request(
        a,
        "bad share is not looked at",
        expire(&out().info(|p| p.share = 9), 0),
    );
    s.request(a, "bad type", expire(&out().kind(7), 0));
    s.request(
        a,
        "bad context",
        expire(&out().attr(XFRMA_SEC_CTX, [1; 8]), 0),
    );
}

fn acquire(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let ask = |policy: &Policy| {
        let body = UserAcquire {
            id: XfrmId {
                daddr: v6(5),
                spi: BeU32::new(6),
                proto: 7,
                pad: [8; 3],
            },
            saddr: v6(9),
            sel: Selector {
                user: 10,
                ..host_selector_v6()
            },
            policy: policy.info,
            aalgos: 11,
            ealgos: 12,
            calgos: 13,
            seq: 14,
        };
        let attrs = policy.attrs.iter();
        let message = Message::with(XFRM_MSG_ACQUIRE, &body);
        attrs.fold(message, |message, (kind, payload)| {
            message.attr(*kind, payload)
        })
    };
    s.request(a, "no template", ask(&out()));
    s.request(a, "one", ask(&out().tmpls(&[tmpl(0, 1)])));
    s.request(
        a,
        "two, all else",
        ask(&full().info(|p| (p.dir, p.index, p.flags) = (0, 808, 9))),
    );
    let unmasked = out()
        .tmpls(&[tmpl(0, 1)])
        .pod(XFRMA_MARK, &Mark { v: 3, m: 1 });
    s.request(a, "unmasked mark", ask(&unmasked));
    for cpu in [0, 1, u32::MAX] {
        let policy = out().tmpls(&[tmpl(0, 1)]).u32(XFRMA_SA_PCPU, cpu);
        s.request(a, &format!("cpu {cpu:#x}"), ask(&policy));
    }
    s.request(a, "bad share", ask(&out().info(|p| p.share = 9)));
    s.request(
        a,
        "bad share and cpu",
        ask(&out().info(|p| p.share = 9).u32(XFRMA_SA_PCPU, 9999)),
    );
    s.request(a, "bad type", ask(&out().kind(7)));
    s.request(a, "bad template", ask(&out().tmpls(&[tmpl(9, 1)])));
    s.request(a, "bad context", ask(&out().attr(XFRMA_SEC_CTX, [1; 8])));
}

fn migrate(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let entry = UserMigrate {
        old_daddr: RIGHT,
        old_saddr: LEFT,
        new_daddr: v6(2),
        new_saddr: v6(1),
        proto: IPPROTO_ESP,
        mode: XFRM_MODE_TUNNEL,
        reserved: 5,
        reqid: 1,
        old_family: AF_INET,
        new_family: AF_INET6,
    };
    let id = UserPolicyId {
        sel: host_selector(),
        index: 99,
        dir: 1,
        pad: [1; 3],
    };
    let with = |id: &UserPolicyId, entries: &[UserMigrate]| {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|e| zerocopy::IntoBytes::as_bytes(e).to_vec())
            .collect();
        Message::with(XFRM_MSG_MIGRATE, id).attr(XFRMA_MIGRATE, &bytes)
    };
    s.request(a, "no entries", Message::with(XFRM_MSG_MIGRATE, &id));
    let other = UserMigrate { reqid: 2, ..entry };
    let many: Vec<_> = (0..7).map(|reqid| UserMigrate { reqid, ..entry }).collect();
    s.request(a, "seven", with(&id, &many));
    let nowhere = UserMigrate {
        new_saddr: Address::ANY,
        ..entry
    };
    s.request(a, "to nowhere", with(&id, &[entry, nowhere]));
    s.request(a, "twice the same", with(&id, &[entry, other, entry]));
    s.request(
        a,
        "bad direction",
        with(&UserPolicyId { dir: 3, ..id }, &[entry]),
    );
    s.request(
        a,
        "bad type",
        with(&id, &[entry]).pod(XFRMA_POLICY_TYPE, &policy_type(2)),
    );
    s.request(a, "no policy", with(&id, &[entry]));
    for family in [0, 1] {
        let mut strange = id;
        strange.sel.family = family;
        s.request(a, "no such family", with(&strange, &[entry]));
    }
    let dump = || Message::dump(XFRM_MSG_GETPOLICY);
    for mode in [0, 1, 2, 4, 5] {
        let templates = [tmpl(mode, 1), tmpl(mode, 2), tmpl(1, 1)];
        if !s
            .request(a, "add", out().tmpls(&templates).new_policy())
            .is_ok()
        {
            continue;
        }
        let of_mode = UserMigrate { mode, ..entry };
        let any_reqid = UserMigrate {
            reqid: 0,
            ..of_mode
        };
        let elsewhere = UserMigrate {
            old_daddr: v6(7),
            ..of_mode
        };
        let label = |what: &str| format!("{what}, mode {mode}");
        s.request(
            a,
            &label("another protocol"),
            with(
                &id,
                &[UserMigrate {
                    proto: 51,
                    ..of_mode
                }],
            ),
        );
        s.request(a, &label("other endpoints"), with(&id, &[elsewhere]));
        s.request(a, &label("one"), with(&id, &[of_mode]));
        s.request(a, "dump", dump());
        s.request(a, &label("any request id"), with(&id, &[any_reqid]));
        s.request(a, "dump", dump());
        s.request(a, "flush", flush_policy());
    }
    s.request(a, "add", full().new_policy());
    // With a second entry Linux 7.2 miscounts the event's length and dies of a BUG_ON.
    let whole = with(&id, &[entry])
        .pod(XFRMA_POLICY_TYPE, &policy_type(1))
        .u32(XFRMA_IF_ID, 9)
        .pod(
            XFRMA_KMADDRESS,
            &UserKmAddress {
                local: v6(3),
                remote: v6(4),
                reserved: 5,
                family: 6,
                pad: [7; 2],
            },
        )
        .pod(
            XFRMA_ENCAP,
            &EncapTmpl {
                kind: 2,
                pad: [8; 2],
                ..EncapTmpl::default()
            },
        );
    s.request(a, "a marked policy is not found", whole.clone());
    s.request(
        a,
        "without the mark",
        full().by_selector(XFRM_MSG_DELPOLICY),
    );
    let unmarked = out().tmpls(&[tmpl(1, 1)]).u32(XFRMA_IF_ID, 9).kind(1);
    s.request(a, "add", unmarked.new_policy());
    s.request(a, "everything", whole);
    s.request(a, "dump", dump());
}

fn expiry(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let limited = |user, soft_add, hard_add, soft_use, hard_use| {
        numbered(user).info(|p| {
            p.lft.soft_add_expires_seconds = soft_add;
            p.lft.hard_add_expires_seconds = hard_add;
            p.lft.soft_use_expires_seconds = soft_use;
            p.lft.hard_use_expires_seconds = hard_use;
        })
    };
    for (user, limits) in (1..).zip([
        (1, 0, 0, 0),
        (0, 2, 0, 0),
        (2, 4, 0, 0),
        (0, 0, 3, 0),
        (0, 0, 0, 4),
        (0, u64::MAX, 0, 0),
        (0, 1 << 62, 0, 0),
    ]) {
        let policy = limited(user, limits.0, limits.1, limits.2, limits.3);
        s.request(a, "add", policy.new_policy());
        s.sleep(Duration::from_millis(50));
    }
    tick(s, 6);
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
    next_second(s);
    s.request(a, "update starts anew", limited(1, 2, 0, 0, 0).upd_policy());
    tick(s, 3);
}
