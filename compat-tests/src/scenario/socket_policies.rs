//! Policies of a socket's own, set with `IP_XFRM_POLICY` and `IPV6_XFRM_POLICY`.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::Scenario;
use super::build::*;
use crate::message::Message;
use crate::session::{Open, Session};
use crate::subject::Socket;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("socket_policy_life", life),
    Scenario::new("socket_policy_checks", checks),
    Scenario::new("socket_policy_lookup", lookup),
];

/// The option's value.
fn value(policy: &Policy) -> Vec<u8> {
    let mut out = policy.info.as_bytes().to_vec();
    for (kind, payload) in &policy.attrs {
        if *kind == XFRMA_TMPL {
            out.extend_from_slice(payload);
        }
    }
    out
}

fn look(s: &mut Session<'_>, a: Socket) {
    dump_spd(s, a);
    s.request(a, "info", Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]));
}

fn life(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let one = s.open_udp(AF_INET);
    let two = s.open_udp(AF_INET6);
    let any = |dir| {
        Policy::new(dir).info(|i| {
            i.sel = Selector {
                family: AF_INET,
                ..Selector::default()
            }
        })
    };
    s.set_socket_policy(one, "out", AF_INET, Some(&value(&any(1))));
    s.set_socket_policy(one, "in", AF_INET, Some(&value(&any(0))));
    look(s, a);
    s.request(a, "one of all", any(1).new_policy());
    s.set_socket_policy(
        one,
        "out again",
        AF_INET,
        Some(&value(&any(1).tmpls(&[tmpl(0, 1)]))),
    );
    s.set_socket_policy(
        two,
        "out",
        AF_INET6,
        Some(&value(&Policy::new(1).over_v6())),
    );
    look(s, a);
    s.request(a, "flush", flush_policy().flags(5));
    look(s, a);
    s.set_socket_policy(one, "clear", AF_INET, None);
    look(s, a);
    s.close_udp(two);
    look(s, a);
    s.request(a, "index of what comes next", any(1).new_policy());
    look(s, a);
}

fn checks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let one = s.open_udp(AF_INET);
    let six = s.open_udp(AF_INET6);
    let good = Policy::new(1);
    let long = |len: usize| {
        let mut bytes = value(&good);
        bytes.resize(len, 0);
        bytes
    };
    s.set_socket_policy(one, "no bytes", AF_INET, Some(&[]));
    for len in [1, 167, 169, 168 + 63, 168 + 64, 4096, 4097] {
        s.set_socket_policy(one, &format!("{len} bytes"), AF_INET, Some(&long(len)));
    }
    s.set_socket_policy(one, "IPv6 option on IPv4", AF_INET6, Some(&value(&good)));
    s.set_socket_policy(six, "IPv4 option on IPv6", AF_INET, Some(&value(&good)));
    s.set_socket_policy(six, "IPv4 selector on IPv6", AF_INET6, Some(&value(&good)));
    s.set_socket_policy(
        one,
        "IPv6 selector on IPv4",
        AF_INET,
        Some(&value(&good.clone().over_v6())),
    );
    let tables: [(&str, fn(Policy) -> Policy); 16] = [
        ("forward", |p| p.info(|i| i.dir = 2)),
        ("direction 3", |p| p.info(|i| i.dir = 3)),
        ("direction 255", |p| p.info(|i| i.dir = 255)),
        ("share", |p| p.info(|i| i.share = 9)),
        ("action", |p| p.info(|i| i.action = 9)),
        ("family", |p| p.info(|i| i.sel.family = 9)),
        ("prefix", |p| p.info(|i| i.sel.prefixlen_d = 99)),
        ("index", |p| p.info(|i| i.index = 0x81)),
        ("wrong index", |p| p.info(|i| i.index = 0x80)),
        ("block", |p| p.info(|i| i.action = 1)),
        ("limits", |p| {
            p.info(|i| i.lft.hard_add_expires_seconds = 5000)
        }),
        ("template", |p| p.tmpls(&[tmpl(1, 3)])),
        ("six templates", |p| p.tmpls(&[tmpl(0, 3); 6])),
        ("seven templates", |p| p.tmpls(&[tmpl(0, 3); 7])),
        ("template of mode 9", |p| p.tmpls(&[tmpl(9, 3)])),
        ("optional tunnel", |p| {
            p.tmpls(&[UserTmpl {
                optional: 1,
                ..tmpl(1, 3)
            }])
        }),
    ];
    for (label, change) in tables {
        s.set_socket_policy(one, label, AF_INET, Some(&value(&change(good.clone()))));
        look(s, a);
        s.set_socket_policy(one, "clear", AF_INET, None);
    }
}

fn lookup(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let one = s.open_udp(AF_INET);
    s.set_socket_policy(one, "out", AF_INET, Some(&value(&Policy::new(1))));
    for dir in 0..5 {
        for index in [3, 4, 11, 12] {
            s.request(
                a,
                &format!("index {index}"),
                by_index(XFRM_MSG_GETPOLICY, dir, index),
            );
            s.request(
                a,
                &format!("index {index}"),
                by_index(XFRM_MSG_DELPOLICY, dir, index),
            );
        }
        s.request(
            a,
            "selector",
            Policy::new(dir).by_selector(XFRM_MSG_GETPOLICY),
        );
        let expire = UserPolExpire {
            pol: Policy::new(dir).info,
            hard: 1,
            pad: [0; 7],
        };
        s.request(a, "expire", Message::with(XFRM_MSG_POLEXPIRE, &expire));
    }
    look(s, a);
}
