//! NEWPOLICY: everything that it checks.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::Scenario;
use super::build::*;
use crate::session::Session;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("policy_fields", fields),
    Scenario::new("policy_selectors", selectors),
    Scenario::new("policy_templates", templates),
    Scenario::new("policy_template_modes", template_modes),
    Scenario::new("policy_template_protocols", template_protocols),
    Scenario::new("policy_template_counts", template_counts),
    Scenario::new("policy_attributes", attributes),
    Scenario::new("policy_sec_ctx", sec_ctx),
    Scenario::new("policy_order_of_checks", order_of_checks),
];

fn fields(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for value in [0, 1, 2, 3, 4, 5, 8, 127, 255] {
        cases.push((
            format!("share {value}"),
            Policy::new(1).info(|i| i.share = value),
        ));
        cases.push((
            format!("action {value}"),
            Policy::new(1).info(|i| i.action = value),
        ));
        cases.push((
            format!("flags {value}"),
            Policy::new(1).info(|i| i.flags = value),
        ));
        cases.push((format!("dir {value}"), Policy::new(value)));
        cases.push((format!("type {value}"), Policy::new(0).kind(value)));
    }
    for index in [
        1,
        8,
        9,
        0x11,
        0x12,
        0x10,
        3,
        4,
        7,
        0x81,
        0xffff_fff9,
        0xffff_ffff,
    ] {
        for dir in 0..3 {
            cases.push((
                format!("index {index:#x} dir {dir}"),
                Policy::new(dir).info(|i| i.index = index),
            ));
        }
    }
    cases.push((
        "priority".into(),
        Policy::new(1).info(|i| i.priority = u32::MAX),
    ));
    cases.push((
        "padding".into(),
        Policy::new(1).info(|i| {
            i.pad = [1; 4];
            i.sel.pad = [2; 3];
        }),
    ));
    cases.push((
        "counters".into(),
        Policy::new(1).info(|i| {
            i.curlft = LifetimeCur {
                bytes: 1,
                packets: 2,
                add_time: 3,
                use_time: 4,
            }
        }),
    ));
    cases.push((
        "limits".into(),
        Policy::new(1).info(|i| {
            i.lft = LifetimeCfg {
                soft_byte_limit: 1,
                hard_byte_limit: 2,
                soft_packet_limit: 3,
                hard_packet_limit: 4,
                soft_add_expires_seconds: 5000,
                hard_add_expires_seconds: 6000,
                soft_use_expires_seconds: 7000,
                hard_use_expires_seconds: u64::MAX,
            }
        }),
    ));
    try_policies(s, cases);
}

fn selectors(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for family in [0, 1, 2, 3, 10, 255] {
        for (d, p) in [
            (0, 0),
            (32, 32),
            (33, 0),
            (0, 33),
            (128, 128),
            (129, 0),
            (0, 255),
        ] {
            cases.push((
                format!("family {family} prefixes {d} {p}"),
                Policy::new(1).info(|i| {
                    i.sel.family = family;
                    i.sel.prefixlen_d = d;
                    i.sel.prefixlen_s = p;
                }),
            ));
        }
    }
    let changes: [(&str, fn(&mut Selector)); 7] = [
        ("host bits", |sel| {
            *sel = prefixes(Address([9; 16]), 8, Address([8; 16]), 16)
        }),
        ("ports", |sel| {
            sel.sport = BeU16::new(1);
            sel.dport_mask = BeU16::new(0xff00);
        }),
        ("proto", |sel| sel.proto = 255),
        ("ifindex", |sel| sel.ifindex = 1),
        ("absent ifindex", |sel| sel.ifindex = 99),
        ("negative ifindex", |sel| sel.ifindex = -5),
        ("user", |sel| sel.user = 1000),
    ];
    for (label, change) in changes {
        cases.push((
            label.to_owned(),
            Policy::new(0).info(|i| change(&mut i.sel)),
        ));
    }
    try_policies(s, cases);
}

fn templates(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    let changes: [(&str, fn(&mut UserTmpl)); 14] = [
        ("nothing", |_| {}),
        ("family 0", |t| t.family = 0),
        ("family 10", |t| t.family = 10),
        ("family 3", |t| t.family = 3),
        ("wildcard addresses", |t| {
            t.saddr = Address::ANY;
            t.id.daddr = Address::ANY;
        }),
        ("SPI", |t| t.id.spi = BeU32::new(0x1234)),
        ("share", |t| t.share = 9),
        ("optional", |t| t.optional = 1),
        ("very optional", |t| t.optional = 255),
        ("padding", |t| {
            t.pad0 = [1; 2];
            t.pad1 = 1;
            t.id.pad = [1; 3];
        }),
        ("algorithms", |t| {
            t.aalgos = 1;
            t.ealgos = 2;
            t.calgos = 3;
        }),
        ("no algorithms", |t| {
            t.aalgos = 0;
            t.ealgos = 0;
            t.calgos = 0;
        }),
        ("reqid", |t| t.reqid = u32::MAX),
        ("junk behind addresses", |t| {
            t.saddr.0[9] = 1;
            t.id.daddr.0[9] = 1;
        }),
    ];
    for dir in 0..3 {
        for mode in [0, 1] {
            for (label, change) in changes {
                let mut tmpl = tmpl(mode, 3);
                change(&mut tmpl);
                cases.push((
                    format!("dir {dir} mode {mode} {label}"),
                    Policy::new(dir).tmpls(&[tmpl]),
                ));
                if dir == 1 {
                    cases.push((
                        format!("v6 mode {mode} {label}"),
                        Policy::new(dir).over_v6().tmpls(&[tmpl]),
                    ));
                }
            }
        }
    }
    try_policies(s, cases);
}

fn template_modes(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for mode in (0..8).chain([255]) {
        for dir in 0..3 {
            for optional in [0, 1] {
                for family in [0, 2, 10] {
                    let mut tmpl = tmpl(mode, 3);
                    tmpl.optional = optional;
                    tmpl.family = family;
                    cases.push((
                        format!("mode {mode} dir {dir} optional {optional} family {family}"),
                        Policy::new(dir).tmpls(&[tmpl]),
                    ));
                }
            }
        }
    }
    let with = |optional: u8, mode: u8, family: u16| UserTmpl {
        optional,
        family,
        ..tmpl(mode, 3)
    };
    cases.push((
        "optional tunnel below a transport one".into(),
        Policy::new(1).tmpls(&[with(0, 0, 2), with(1, 1, 2)]),
    ));
    cases.push((
        "family changes, then back".into(),
        Policy::new(1).tmpls(&[with(0, 1, 10), with(0, 0, 10), with(0, 1, 2)]),
    ));
    cases.push((
        "transport behind a family change".into(),
        Policy::new(1).tmpls(&[with(0, 1, 10), with(0, 0, 2)]),
    ));
    cases.push((
        "family 0 behind a family change".into(),
        Policy::new(1).tmpls(&[with(0, 1, 10), with(0, 0, 0)]),
    ));
    cases.push((
        "iptfs changes family".into(),
        Policy::new(1).tmpls(&[with(0, 5, 10)]),
    ));
    cases.push((
        "beet changes family".into(),
        Policy::new(1).tmpls(&[with(0, 4, 10)]),
    ));
    try_policies(s, cases);
}

fn template_protocols(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for proto in 0..=255 {
        let mut tmpl = tmpl(0, 3);
        tmpl.id.proto = proto;
        cases.push((format!("proto {proto}"), Policy::new(1).tmpls(&[tmpl])));
        if [0, 43, 60, 108, 255].contains(&proto) {
            tmpl.family = 10;
            cases.push((
                format!("proto {proto} v6"),
                Policy::new(1).over_v6().tmpls(&[tmpl]),
            ));
        }
    }
    try_policies(s, cases);
}

fn template_counts(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for count in [1, 2, 5, 6, 7, 8, 20] {
        cases.push((
            format!("{count}"),
            Policy::new(1).tmpls(&vec![tmpl(0, 3); count]),
        ));
    }
    let bytes: Vec<u8> = [tmpl(0, 3); 7]
        .iter()
        .flat_map(|tmpl| tmpl.as_bytes().to_vec())
        .collect();
    for len in [64, 65, 127, 128, 130, 384, 447, 448] {
        cases.push((
            format!("{len} bytes"),
            Policy::new(1).attr(XFRMA_TMPL, &bytes[..len]),
        ));
    }
    try_policies(s, cases);
}

fn attributes(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for (v, m) in [(0, 0), (1, 0), (0, 1), (0x1ff, 0xff), (u32::MAX, u32::MAX)] {
        cases.push((
            format!("mark {v:x}/{m:x}"),
            Policy::new(1).pod(XFRMA_MARK, &Mark { v, m }),
        ));
        cases.push((format!("if_id {v:x}"), Policy::new(1).u32(XFRMA_IF_ID, v)));
    }
    for ifindex in [0, 1, 9] {
        for flags in [0, 1, 2, 3, 4, 5, 8, 255] {
            cases.push((
                format!("offload {ifindex} {flags}"),
                Policy::new(1).pod(
                    XFRMA_OFFLOAD_DEV,
                    &UserOffload {
                        ifindex,
                        flags,
                        pad: [0; 3],
                    },
                ),
            ));
        }
    }
    for len in [6, 7, 10] {
        let mut bytes = vec![1; len];
        bytes[1..].fill(7);
        cases.push((
            format!("type in {len} bytes"),
            Policy::new(1).attr(XFRMA_POLICY_TYPE, bytes),
        ));
    }
    try_policies(s, cases);
}

fn sec_ctx(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for (len, ctx_len, bytes) in [
        (8, 0, 0),
        (12, 4, 4),
        (12, 3, 4),
        (13, 4, 4),
        (12, 4, 0),
        (0, 0, 0),
    ] {
        let ctx = UserSecCtx {
            len,
            exttype: XFRMA_SEC_CTX,
            ctx_alg: 1,
            ctx_doi: 1,
            ctx_len,
        };
        let mut payload = ctx.as_bytes().to_vec();
        payload.extend_from_slice(&b"abcdefghi"[..bytes]);
        cases.push((
            format!("len {len} ctx_len {ctx_len} bytes {bytes}"),
            Policy::new(1).attr(XFRMA_SEC_CTX, payload),
        ));
    }
    try_policies(s, cases);
}

fn order_of_checks(s: &mut Session<'_>) {
    let faults: [(&str, fn(Policy) -> Policy); 11] = [
        ("share", |p| p.info(|i| i.share = 9)),
        ("action", |p| p.info(|i| i.action = 9)),
        ("prefix", |p| p.info(|i| i.sel.prefixlen_s = 200)),
        ("dir", |p| p.info(|i| i.dir = 9)),
        ("index", |p| p.info(|i| i.index = 16)),
        ("sec ctx", |p| {
            p.attr(XFRMA_SEC_CTX, [9, 0, 0, 0, 0, 0, 0, 0])
        }),
        ("type", |p| p.kind(9)),
        ("count", |p| p.tmpls(&[tmpl(9, 1); 7])),
        ("mode", |p| p.tmpls(&[tmpl(9, 1)])),
        ("proto", |p| {
            let mut t = tmpl(0, 1);
            t.id.proto = 99;
            p.tmpls(&[t])
        }),
        ("offload", |p| {
            p.pod(
                XFRMA_OFFLOAD_DEV,
                &UserOffload {
                    ifindex: 1,
                    flags: 9,
                    pad: [0; 3],
                },
            )
        }),
    ];
    let mut cases = Vec::new();
    for first in 0..faults.len() {
        for second in first + 1..faults.len() {
            let policy = faults[second].1(faults[first].1(Policy::new(1)));
            cases.push((
                format!("{} and {}", faults[first].0, faults[second].0),
                policy,
            ));
        }
        let all = faults[first..]
            .iter()
            .fold(Policy::new(1), |policy, fault| fault.1(policy));
        cases.push((format!("everything from {}", faults[first].0), all));
    }
    // Within a template, and between two.
    let t = |mode, family, optional, proto| {
        let mut t = UserTmpl {
            family,
            optional,
            ..tmpl(mode, 1)
        };
        t.id.proto = proto;
        t
    };
    for (label, tmpls) in [
        ("optional tunnel of a bad family", vec![t(1, 3, 1, 50)]),
        ("mode 9 of another family", vec![t(9, 10, 0, 50)]),
        ("mode 9 of a bad family", vec![t(9, 3, 0, 50)]),
        ("bad family and protocol", vec![t(1, 3, 0, 99)]),
        ("mode and protocol", vec![t(9, 2, 0, 99)]),
        ("second is worse", vec![t(0, 2, 0, 99), t(9, 2, 0, 50)]),
        ("mode 7 optional", vec![t(7, 2, 1, 50)]),
    ] {
        cases.push((label.into(), Policy::new(1).tmpls(&tmpls)));
    }
    try_policies(s, cases);
}
