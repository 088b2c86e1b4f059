//! What a policy request may say, and what it is told when it may not.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::Scenario;
use super::build::*;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("spd_fields", fields),
    Scenario::new("spd_order_of_checks", order_of_checks),
    Scenario::new("spd_templates", templates),
    Scenario::new("spd_template_families", template_families),
    Scenario::new("spd_template_echo", template_echo),
    Scenario::new("spd_sec_ctx_and_offload", sec_ctx_and_offload),
];

fn out() -> Policy {
    Policy::new(XFRM_POLICY_OUT)
}

fn fields(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for share in [1, 3, 4, 255] {
        cases.push((format!("share {share}"), out().info(|p| p.share = share)));
    }
    for action in [1, 2, 255] {
        cases.push((
            format!("action {action}"),
            out().info(|p| p.action = action),
        ));
    }
    for flags in [1, 7, 255] {
        cases.push((format!("flags {flags}"), out().info(|p| p.flags = flags)));
    }
    for family in [0, 1, AF_INET6, 16, 0x0202] {
        let policy = out().info(|p| p.sel.family = family);
        cases.push((format!("family {family}"), policy));
    }
    for bits in [0, 31, 33, 128, 129, 255] {
        cases.push((
            format!("v4 /{bits} from"),
            out().info(|p| p.sel.prefixlen_s = bits),
        ));
        cases.push((
            format!("v4 /{bits} to"),
            out().info(|p| p.sel.prefixlen_d = bits),
        ));
        let v6 = out().over_v6();
        cases.push((
            format!("v6 /{bits} to"),
            v6.info(|p| p.sel.prefixlen_d = bits),
        ));
    }
    for dir in [0, 2, 3, 4, 7, 8, 255] {
        cases.push((format!("direction {dir}"), Policy::new(dir)));
    }
    for index in [1, 2, 9, 0xffff_fff9, 0xffff_ffff] {
        cases.push((format!("index {index:#x}"), out().info(|p| p.index = index)));
    }
    for kind in [0, 1, 2, 255] {
        cases.push((format!("type {kind}"), out().kind(kind)));
    }
    for (v, m) in [(1, 0), (0, 1), (0xff, 0xf), (u32::MAX, u32::MAX)] {
        let policy = out().pod(XFRMA_MARK, &Mark { v, m });
        cases.push((format!("mark {v:#x}/{m:#x}"), policy));
    }
    for if_id in [0, 1, u32::MAX] {
        cases.push((
            format!("interface id {if_id:#x}"),
            out().u32(XFRMA_IF_ID, if_id),
        ));
    }
    let filled = out().info(|p| {
        p.curlft.bytes = 1;
        p.curlft.add_time = 2;
        p.curlft.use_time = 3;
        p.pad = [4; 4];
        p.sel.pad = [5; 3];
        p.sel.user = 6;
        p.sel.ifindex = -7;
        p.sel.proto = 8;
        p.sel.dport = BeU16::new(9);
        p.sel.sport_mask = BeU16::new(10);
        p.sel.daddr.0[15] = 11;
        p.priority = u32::MAX;
        p.lft.soft_use_expires_seconds = 1 << 40;
        p.lft.soft_packet_limit = 0;
    });
    cases.push(("everything filled in".into(), filled));
    try_policies(s, cases);
}

/// One thing after the other is put right.
fn order_of_checks(s: &mut Session<'_>) {
    let bad_tmpl = UserTmpl {
        id: XfrmId::default(),
        family: 7,
        ..tmpl(9, 1)
    };
    let mut policy = out()
        .info(|p| {
            p.share = 9;
            p.action = 9;
            p.sel.family = 9;
            p.dir = 9;
            p.index = 12;
        })
        .attr(XFRMA_SEC_CTX, [0; 8])
        .kind(9)
        .tmpls(&[bad_tmpl; 7])
        .pod(XFRMA_OFFLOAD_DEV, &UserOffload::default());
    let fixes: [(&str, fn(&mut Policy)); 11] = [
        ("nothing right", |_| ()),
        ("share", |p| p.info.share = 0),
        ("action", |p| p.info.action = 0),
        ("family", |p| p.info.sel.family = AF_INET),
        ("direction", |p| p.info.dir = 1),
        ("index", |p| p.info.index = 9),
        ("context", |p| p.attrs[0] = (XFRMA_PAD, Vec::new())),
        ("type", |p| p.attrs[1].1[0] = 0),
        ("six templates", |p| p.attrs[2].1.truncate(6 * 64)),
        ("no template", |p| p.attrs[2] = (XFRMA_PAD, Vec::new())),
        ("no offload", |p| p.attrs.truncate(3)),
    ];
    let a = s.open("a", Open::new());
    for (label, fix) in fixes {
        fix(&mut policy);
        s.request(a, label, policy.new_policy());
    }
}

fn templates(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for count in [1, 5, 6, 7, 20] {
        let policy = out().tmpls(&vec![tmpl(0, 1); count]);
        cases.push((format!("{count} templates"), policy));
    }
    for mode in 0..8 {
        cases.push((format!("mode {mode}"), out().tmpls(&[tmpl(mode, 1)])));
        for dir in [0, 1, 2] {
            let optional = UserTmpl {
                optional: 2,
                ..tmpl(mode, 1)
            };
            let policy = Policy::new(dir).tmpls(&[optional]);
            cases.push((format!("optional mode {mode} in direction {dir}"), policy));
        }
    }
    for proto in [0, 4, 6, 41, 43, 50, 51, 60, 108, 255] {
        let mut template = tmpl(0, 1);
        template.id.proto = proto;
        cases.push((format!("protocol {proto}"), out().tmpls(&[template])));
    }
    let filled = UserTmpl {
        id: XfrmId {
            daddr: v6(9),
            spi: BeU32::new(7),
            proto: IPPROTO_AH,
            pad: [1, 2, 3],
        },
        pad0: [4, 5],
        saddr: v6(8),
        share: 200,
        pad1: 6,
        aalgos: 7,
        ealgos: 0,
        calgos: 1 << 31,
        ..tmpl(XFRM_MODE_TUNNEL, u32::MAX)
    };
    cases.push((
        "everything filled in".into(),
        out().tmpls(&[filled, tmpl(0, 2)]),
    ));
    let mut ragged: Vec<u8> = zerocopy::IntoBytes::as_bytes(&tmpl(0, 1)).to_vec();
    ragged.resize(100, 1);
    cases.push(("one and a half".into(), out().attr(XFRMA_TMPL, ragged)));
    try_policies(s, cases);
}

fn template_families(s: &mut Session<'_>) {
    let of = |mode, family| UserTmpl {
        family,
        ..tmpl(mode, 1)
    };
    let mut cases = Vec::new();
    for mode in [0, 1, 2, 4, 5] {
        for family in [0, AF_INET, AF_INET6, 1] {
            let label = format!("mode {mode} family {family}");
            cases.push((label, out().tmpls(&[of(mode, family)])));
            let label = format!("mode {mode} family {family} behind a v6 tunnel");
            cases.push((label, out().tmpls(&[of(1, AF_INET6), of(mode, family)])));
        }
    }
    cases.push((
        "v6, family 0".into(),
        out().over_v6().tmpls(&[of(0, 0), of(1, 0)]),
    ));
    try_policies(s, cases);
}

/// The kernel writes the family that it assumes into the request, and echoes that.
fn template_echo(s: &mut Session<'_>) {
    let a = s.open("a", Open::new().acks(false, true));
    let unnamed = UserTmpl {
        family: 0,
        ..tmpl(0, 1)
    };
    let bad = UserTmpl { mode: 9, ..unnamed };
    s.request(
        a,
        "bad mode",
        out().tmpls(&[unnamed, bad, unnamed]).new_policy(),
    );
    s.request(a, "too many", out().tmpls(&[unnamed; 7]).new_policy());
    s.request(a, "good", out().tmpls(&[unnamed, unnamed]).new_policy());
    s.request(a, "twice", out().tmpls(&[unnamed, unnamed]).new_policy());
    let v6 = out().over_v6().tmpls(&[unnamed, bad]);
    s.request(a, "v6", v6.new_policy());
}

fn sec_ctx_and_offload(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    let contexts: [(&str, &[u8]); 4] = [
        (
            "context longer than the attribute",
            &[12, 0, 0, 0, 0, 0, 4, 0],
        ),
        ("context length off by one", &[8, 0, 0, 0, 0, 0, 1, 0, 0]),
        (
            "context shorter than its header",
            &[7, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2],
        ),
        ("context of nothing", &[0; 8]),
    ];
    for (label, bytes) in contexts {
        cases.push((label.to_owned(), out().attr(XFRMA_SEC_CTX, bytes)));
    }
    for (ifindex, flags) in [
        (1, 0),
        (1, 1),
        (1, 4),
        (1, 5),
        (1, 12),
        (0, 4),
        (99, 4),
        (-1, 4),
    ] {
        let offload = UserOffload {
            ifindex,
            flags,
            pad: [0; 3],
        };
        let label = format!("offload {flags} to {ifindex}");
        cases.push((label, out().pod(XFRMA_OFFLOAD_DEV, &offload)));
    }
    try_policies(s, cases);
}
