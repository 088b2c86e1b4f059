//! Time: limits of SAs and policies, larvals that nobody completes, and what
//! users expire.

use std::time::Duration;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::sleeping("time_sa_soft_and_hard", sa_soft_and_hard),
    Scenario::sleeping("time_sa_hard_only", sa_hard_only),
    Scenario::sleeping("time_sa_hard_before_soft", sa_hard_before_soft),
    Scenario::sleeping("time_sa_use_limits", sa_use_limits),
    Scenario::sleeping("time_sa_update", sa_update),
    Scenario::sleeping("time_sa_ltime_val", sa_ltime_val),
    Scenario::sleeping("time_larval", larval),
    Scenario::sleeping("time_policy_soft_and_hard", |s| {
        policy(s, 0, limits(1, 3, 0, 0), |p| p)
    }),
    Scenario::sleeping("time_policy_hard", |s| {
        policy(s, 1, limits(0, 2, 0, 0), |p| p)
    }),
    Scenario::sleeping("time_policy_use_limits", |s| {
        policy(s, 2, limits(0, 0, 1, 3), |p| p.kind(1))
    }),
    Scenario::sleeping("time_policy_hard_before_soft", |s| {
        policy(s, 1, limits(3, 2, 0, 0), |p| p)
    }),
    Scenario::sleeping("time_policy_attributes", |s| {
        policy(s, 2, limits(2, 0, 0, 0), |p| {
            p.u32(XFRMA_IF_ID, 4).pod(XFRMA_MARK, &Mark { v: 3, m: 3 })
        })
    }),
    Scenario::sleeping("time_policy_update", policy_update),
    Scenario::sleeping("time_expiry_of_attributes", expiry_of_attributes),
    Scenario::new("expire_by_user", expire_by_user),
    Scenario::new("polexpire_by_user", polexpire_by_user),
];

/// Looks at what has come, `seconds` times, 900 ms into each second: scenarios begin early in a
/// second, so timers run early in one.
pub(super) fn tick(s: &mut Session<'_>, seconds: u64) {
    for _ in 0..seconds {
        let next = (s.elapsed().as_millis() as u64 + 150) / 1000;
        s.sleep_until(Duration::from_millis(next * 1000 + 850));
    }
}

/// Goes on to early in the next second, to do something then.
pub(super) fn next_second(s: &mut Session<'_>) {
    let next = s.elapsed().as_secs() + 1;
    s.sleep_until(Duration::from_millis(next * 1000));
}

fn dump(s: &mut Session<'_>, a: crate::subject::Socket) {
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
}

fn limits(soft_add: u64, hard_add: u64, soft_use: u64, hard_use: u64) -> LifetimeCfg {
    LifetimeCfg {
        soft_add_expires_seconds: soft_add,
        hard_add_expires_seconds: hard_add,
        soft_use_expires_seconds: soft_use,
        hard_use_expires_seconds: hard_use,
        ..LifetimeCfg::UNLIMITED
    }
}

fn sa_soft_and_hard(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(
        a,
        "soft 2 hard 4",
        Sa::esp().info(|i| i.lft = limits(2, 4, 0, 0)).new_sa(),
    );
    s.request(
        a,
        "soft 1 hard 3",
        Sa::ah().info(|i| i.lft = limits(1, 3, 0, 0)).new_sa(),
    );
    tick(s, 3);
    dump(s, a);
    tick(s, 2);
    dump(s, a);
}

fn sa_hard_only(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(
        a,
        "hard 1",
        Sa::esp().info(|i| i.lft = limits(0, 1, 0, 0)).new_sa(),
    );
    s.request(
        a,
        "hard 2",
        Sa::esp()
            .spi(2)
            .info(|i| i.lft = limits(0, 2, 0, 0))
            .new_sa(),
    );
    s.request(
        a,
        "soft 2",
        Sa::esp()
            .spi(3)
            .info(|i| i.lft = limits(2, 0, 0, 0))
            .new_sa(),
    );
    tick(s, 4);
    dump(s, a);
    s.request(a, "the expired one", Sa::esp().by_id(XFRM_MSG_GETSA));
    s.request(a, "count", Message::new(XFRM_MSG_GETSADINFO).put(&[0; 4]));
}

fn sa_hard_before_soft(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(
        a,
        "soft 3 hard 2",
        Sa::esp().info(|i| i.lft = limits(3, 2, 0, 0)).new_sa(),
    );
    s.request(
        a,
        "soft 2 hard 2",
        Sa::esp()
            .spi(2)
            .info(|i| i.lft = limits(2, 2, 0, 0))
            .new_sa(),
    );
    tick(s, 4);
}

fn sa_use_limits(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(
        a,
        "never used",
        Sa::esp().info(|i| i.lft = limits(0, 0, 1, 2)).new_sa(),
    );
    s.request(
        a,
        "never used, add 3",
        Sa::ah().info(|i| i.lft = limits(3, 0, 1, 2)).new_sa(),
    );
    tick(s, 4);
    dump(s, a);
}

fn sa_update(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(
        a,
        "soft 1",
        Sa::esp().info(|i| i.lft = limits(1, 0, 0, 0)).new_sa(),
    );
    tick(s, 2);
    next_second(s);
    s.request(
        a,
        "soft 1 again: long past",
        Sa::esp().info(|i| i.lft = limits(1, 0, 0, 0)).upd_sa(),
    );
    tick(s, 2);
    next_second(s);
    s.request(
        a,
        "hard 6",
        Sa::esp().info(|i| i.lft = limits(0, 6, 0, 0)).upd_sa(),
    );
    tick(s, 4);
    dump(s, a);
}

fn sa_ltime_val(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let old = LifetimeCur {
        add_time: 1000,
        use_time: 1000,
        ..LifetimeCur::default()
    };
    s.request(
        a,
        "born long ago",
        Sa::esp()
            .info(|i| i.lft = limits(0, 100, 0, 0))
            .pod(XFRMA_LTIME_VAL, &old)
            .new_sa(),
    );
    s.request(
        a,
        "used long ago",
        Sa::esp()
            .spi(2)
            .info(|i| i.lft = limits(0, 0, 0, 100))
            .pod(XFRMA_LTIME_VAL, &old)
            .new_sa(),
    );
    s.request(
        a,
        "used long ago, soft",
        Sa::esp()
            .spi(4)
            .info(|i| i.lft = limits(0, 0, 100, 0))
            .pod(XFRMA_LTIME_VAL, &old)
            .new_sa(),
    );
    let future = LifetimeCur {
        add_time: 1 << 40,
        ..LifetimeCur::default()
    };
    s.request(
        a,
        "born in the future",
        Sa::esp()
            .spi(3)
            .info(|i| i.lft = limits(0, 1, 0, 0))
            .pod(XFRMA_LTIME_VAL, &future)
            .new_sa(),
    );
    tick(s, 3);
    dump(s, a);
}

fn larval(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.set_sysctl("xfrm_acq_expires", 2);
    s.request(a, "with an SPI", alloc(&Sa::bare(50), 0x900, 0x900));
    s.request(a, "without one", alloc(&Sa::bare(51), 0, 0));
    s.request(
        a,
        "to be completed",
        alloc(&Sa::bare(50).info(|i| i.reqid = 5), 0x901, 0x901),
    );
    s.set_sysctl("xfrm_acq_expires", 30);
    tick(s, 1);
    s.request(
        a,
        "complete",
        Sa::esp().spi(0x901).info(|i| i.reqid = 5).upd_sa(),
    );
    tick(s, 3);
    dump(s, a);
}

/// One policy a scenario: which of two timers of the same tick runs first is chance.
fn policy(s: &mut Session<'_>, dir: u8, lft: LifetimeCfg, change: fn(Policy) -> Policy) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let policy = change(Policy::new(dir).info(|i| i.lft = lft).tmpls(&[tmpl(1, 4)]));
    s.request(a, "", policy.new_policy());
    tick(s, 3);
    dump(s, a);
    tick(s, 2);
    dump(s, a);
}

fn policy_update(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let with = |lft| Policy::new(1).info(|i| i.lft = lft);
    s.request(a, "hard 3", with(limits(0, 3, 0, 0)).new_policy());
    tick(s, 1);
    next_second(s);
    s.request(
        a,
        "hard 3 again: the clock starts anew",
        with(limits(0, 3, 0, 0)).upd_policy(),
    );
    tick(s, 2);
    dump(s, a);
    tick(s, 2);
    dump(s, a);
}

fn expiry_of_attributes(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp()
        .mode(1)
        .pod(XFRMA_MARK, &Mark { v: 3, m: 255 })
        .u32(XFRMA_IF_ID, 6)
        .attr(XFRMA_SA_DIR, [2])
        .u32(XFRMA_SA_PCPU, 0)
        .info(|i| i.lft = limits(1, 2, 0, 0));
    s.request(a, "", sa.new_sa());
    tick(s, 3);
}

fn expire_by_user(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let expire = |sa: &Sa, hard| {
        Message::with(
            XFRM_MSG_EXPIRE,
            &UserExpire {
                state: sa.info,
                hard,
                pad: [9; 7],
            },
        )
    };
    s.request(a, "no SA", expire(&Sa::esp(), 0));
    s.request(a, "", Sa::esp().new_sa());
    let other = Sa::esp().info(|i| {
        i.saddr = v6(7);
        i.reqid = 9;
        i.mode = 3;
        i.sel.family = 99;
    });
    for hard in [0, 0, 2, 255, 1] {
        s.request(a, &format!("hard {hard}"), expire(&other, hard).pid(5));
        dump(s, a);
        s.request(a, "", Sa::esp().new_sa());
    }
    s.request(a, "by proto only", expire(&Sa::ah(), 0));
    s.request(a, "odd protocol", expire(&Sa::bare(60), 0));
    s.request(a, "larval", alloc(&Sa::bare(51), 0x900, 0x900));
    s.request(a, "larval expires", expire(&Sa::ah().spi(0x900), 1));
    dump(s, a);
}

fn polexpire_by_user(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let expire = |policy: &Policy, hard| {
        Message::with(
            XFRM_MSG_POLEXPIRE,
            &UserPolExpire {
                pol: policy.info,
                hard,
                pad: [9; 7],
            },
        )
    };
    let policy = Policy::new(1).tmpls(&[tmpl(1, 3)]);
    s.request(a, "no policy", expire(&policy, 0));
    for hard in [0, 0, 2, 1] {
        s.request(a, "", policy.new_policy());
        s.request(a, &format!("hard {hard}"), expire(&policy, hard).pid(6));
        dump(s, a);
    }
    s.request(a, "", policy.clone().u32(XFRMA_IF_ID, 4).new_policy());
    s.request(a, "without if_id", expire(&policy, 1));
    s.request(a, "with if_id", expire(&policy, 1).u32(XFRMA_IF_ID, 4));
    s.request(a, "", policy.clone().info(|i| i.index = 0x81).new_policy());
    s.request(
        a,
        "by index",
        expire(
            &Policy::new(1).info(|i| {
                i.index = 0x81;
                i.sel = Selector::default();
            }),
            0,
        ),
    );
    s.request(
        a,
        "by a wrong index",
        expire(&policy.clone().info(|i| i.index = 0x89), 0),
    );
    s.request(
        a,
        "wrong direction",
        expire(&policy.clone().info(|i| i.dir = 0), 0),
    );
    s.request(
        a,
        "direction 3",
        expire(&policy.clone().info(|i| i.dir = 3), 0),
    );
    s.request(
        a,
        "sub",
        expire(&policy, 1).pod(XFRMA_POLICY_TYPE, &policy_type(1)),
    );
    s.request(
        a,
        "bad type",
        expire(&policy, 1).pod(XFRMA_POLICY_TYPE, &policy_type(9)),
    );
    s.request(
        a,
        "hard",
        expire(&policy, 1).pod(XFRMA_POLICY_TYPE, &policy_type(0)),
    );
}
