//! NEWSA: what each of its options is checked for.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::build::*;
use super::{Sa, Scenario, migrate_state};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("sa_direction", direction),
    Scenario::new("sa_encap", encap),
    Scenario::new("sa_keepalive_and_mtimer", keepalive_and_mtimer),
    Scenario::new("sa_iptfs", iptfs),
    Scenario::new("sa_iptfs_packet_size", iptfs_packet_size),
    Scenario::new("sa_iptfs_life", iptfs_life),
    Scenario::new("sa_offload", offload),
    Scenario::new("sa_pcpu", pcpu),
    Scenario::new("sa_sec_ctx", sec_ctx),
    Scenario::new("sa_marks", marks),
    Scenario::new("sa_odd_values", odd_values),
];

fn direction(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for dir in [1u8, 2] {
        let sa = || Sa::esp().mode(1).attr(XFRMA_SA_DIR, [dir]);
        for window in [0, 1, 32, 33, 64, 255] {
            cases.push((
                format!("dir {dir} window {window}"),
                sa().info(|i| i.replay_window = window),
            ));
        }
        for (name, flag) in [
            ("DECAP_DSCP", 2),
            ("ICMP", 16),
            ("WILDRECV", 8),
            ("NOPMTUDISC", 4),
            ("all", 0x7f),
        ] {
            cases.push((format!("dir {dir} {name}"), sa().info(|i| i.flags = flag)));
        }
        cases.push((format!("dir {dir} if_id"), sa().u32(XFRMA_IF_ID, 3)));
        cases.push((format!("dir {dir} AH"), Sa::ah().attr(XFRMA_SA_DIR, [dir])));
        cases.push((
            format!("dir {dir} COMP"),
            Sa::comp().attr(XFRMA_SA_DIR, [dir]),
        ));
        cases.push((format!("dir {dir} TFC"), sa().u32(XFRMA_TFCPAD, 20)));
    }
    try_sas(s, cases);
}

fn encap(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for kind in (0..=8).chain([0xff, 0xffff]) {
        for (name, base) in [
            ("ESP", Sa::esp()),
            ("AH", Sa::ah()),
            ("COMP", Sa::comp()),
            ("ESP v6", Sa::esp().over_v6()),
        ] {
            cases.push((
                format!("{name} type {kind}"),
                base.pod(XFRMA_ENCAP, &encap_of(kind)),
            ));
        }
        for mode in [1, 4] {
            cases.push((
                format!("mode {mode} type {kind}"),
                Sa::esp().mode(mode).pod(XFRMA_ENCAP, &encap_of(kind)),
            ));
        }
    }
    cases.push((
        "DSTOPTS".into(),
        Sa::bare(IPPROTO_DSTOPTS)
            .spi(0)
            .over_v6()
            .mode(2)
            .attr(XFRMA_COADDR, [1; 16])
            .pod(XFRMA_ENCAP, &encap_of(2)),
    ));
    try_sas(s, cases);
}

fn keepalive_and_mtimer(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for attr in [XFRMA_NAT_KEEPALIVE_INTERVAL, XFRMA_MTIMER_THRESH] {
        for value in [0, 1, 20, u32::MAX] {
            for dir in [None, Some(1u8), Some(2)] {
                for encapsulated in [false, true] {
                    let mut sa = Sa::esp().mode(1).u32(attr, value);
                    if let Some(dir) = dir {
                        sa = sa.attr(XFRMA_SA_DIR, [dir]);
                    }
                    if encapsulated {
                        sa = sa.pod(XFRMA_ENCAP, &encap_of(2));
                    }
                    cases.push((
                        format!("attr {attr} = {value} dir {dir:?} encap {encapsulated}"),
                        sa,
                    ));
                }
            }
        }
    }
    try_sas(s, cases);
}

fn iptfs(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for mode in [1, 5] {
        for dir in [None, Some(1u8), Some(2)] {
            let base = |proto: u8| {
                let sa = if proto == IPPROTO_AH {
                    Sa::ah()
                } else {
                    Sa::esp()
                }
                .mode(mode);
                match dir {
                    Some(dir) => sa.attr(XFRMA_SA_DIR, [dir]),
                    None => sa,
                }
            };
            cases.push((format!("mode {mode} dir {dir:?}"), base(50)));
            cases.push((format!("mode {mode} dir {dir:?} v6"), base(50).over_v6()));
            cases.push((format!("mode {mode} dir {dir:?} AH"), base(51)));
            for (attr, payloads) in [
                (
                    XFRMA_IPTFS_DROP_TIME,
                    vec![vec![0u8; 4], vec![1, 0, 0, 0], vec![255; 4]],
                ),
                (
                    XFRMA_IPTFS_REORDER_WINDOW,
                    vec![vec![0; 2], vec![9, 0], vec![255; 2]],
                ),
                (XFRMA_IPTFS_DONT_FRAG, vec![vec![]]),
                (
                    XFRMA_IPTFS_INIT_DELAY,
                    vec![vec![0; 4], vec![1, 0, 0, 0], vec![255; 4]],
                ),
                (
                    XFRMA_IPTFS_MAX_QSIZE,
                    vec![vec![0; 4], vec![1, 0, 0, 0], vec![255; 4]],
                ),
                (
                    XFRMA_IPTFS_PKT_SIZE,
                    vec![vec![0; 4], vec![99, 0, 0, 0], vec![255; 4]],
                ),
            ] {
                for payload in payloads {
                    cases.push((
                        format!("mode {mode} dir {dir:?} attr {attr} {payload:?}"),
                        base(50).attr(attr, payload),
                    ));
                }
            }
        }
    }
    try_sas(s, cases);
}

/// The least size of an outer packet, which depends on the headers in front of the payload.
fn iptfs_packet_size(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    let cbc = || {
        Sa::bare(IPPROTO_ESP)
            .attr(XFRMA_ALG_CRYPT, algo("cbc(aes)", &key(16)))
            .attr(XFRMA_ALG_AUTH, algo("hmac(sha1)", &key(20)))
    };
    let null = || Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_CRYPT, algo("ecb(cipher_null)", &[]));
    for (cipher, sa) in [("gcm", Sa::esp()), ("cbc", cbc()), ("null", null())] {
        for v6 in [false, true] {
            for encap in [false, true] {
                let mut sa = sa.clone().mode(5).attr(XFRMA_SA_DIR, [2]);
                if v6 {
                    sa = sa.over_v6();
                }
                if encap {
                    sa = sa.pod(XFRMA_ENCAP, &encap_of(2));
                }
                let iv = match cipher {
                    "gcm" => 8,
                    "cbc" => 16,
                    _ => 0,
                };
                let headers = 8 + iv + 4 + if v6 { 40 } else { 20 } + if encap { 8 } else { 0 };
                for size in [headers - 8, headers - 1, headers, headers + 1, headers + 8] {
                    cases.push((
                        format!("{cipher} v6 {v6} encap {encap} size {size}"),
                        sa.clone().u32(XFRMA_IPTFS_PKT_SIZE, size),
                    ));
                }
            }
        }
    }
    try_sas(s, cases);
}

/// Told, asked for, updated, migrated: what of the configuration lasts.
fn iptfs_life(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let inbound = || {
        Sa::esp()
            .mode(5)
            .attr(XFRMA_SA_DIR, [1])
            .u32(XFRMA_IPTFS_DROP_TIME, 77_000)
            .attr(XFRMA_IPTFS_REORDER_WINDOW, 9u16.to_ne_bytes())
    };
    let outbound = || {
        Sa::esp()
            .mode(5)
            .attr(XFRMA_SA_DIR, [2])
            .attr(XFRMA_IPTFS_DONT_FRAG, [])
            .u32(XFRMA_IPTFS_INIT_DELAY, 1234)
            .u32(XFRMA_IPTFS_MAX_QSIZE, 100_000)
            .u32(XFRMA_IPTFS_PKT_SIZE, 500)
    };
    for (label, sa, plain) in [
        ("in", inbound(), Sa::esp().mode(5).attr(XFRMA_SA_DIR, [1])),
        ("out", outbound(), Sa::esp().mode(5).attr(XFRMA_SA_DIR, [2])),
    ] {
        s.request(a, label, sa.new_sa());
        s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
        s.request(a, "update without attributes", plain.upd_sa());
        s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
        s.request(a, "update", sa.upd_sa());
        s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
        s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
    }
    for sa in [inbound(), outbound()] {
        s.request(a, "old", sa.new_sa());
        s.request(
            a,
            "migrate",
            migrate_state::state(&migrate_state::state_request(&sa)),
        );
        s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
        s.send(a, "flush", vec![flush_sa(0)]);
    }
}

fn offload(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for ifindex in [0, 1, 77, -1] {
        for flags in [0, 1, 2, 3, 4, 5, 6, 7, 8, 255] {
            for dir in [None, Some(1u8), Some(2)] {
                let mut sa = Sa::esp().pod(
                    XFRMA_OFFLOAD_DEV,
                    &UserOffload {
                        ifindex,
                        flags,
                        pad: [9; 3],
                    },
                );
                if let Some(dir) = dir {
                    sa = sa.attr(XFRMA_SA_DIR, [dir]);
                }
                cases.push((
                    format!("if {ifindex} flags {flags} dir {dir:?}"),
                    sa.clone(),
                ));
                if ifindex == 1 && dir.is_none() {
                    cases.push((
                        format!("if {ifindex} flags {flags} AH"),
                        Sa::ah().attr(XFRMA_OFFLOAD_DEV, &sa.attrs[1].1),
                    ));
                    cases.push((
                        format!("if {ifindex} flags {flags} v6"),
                        sa.clone().over_v6(),
                    ));
                    cases.push((
                        format!("if {ifindex} flags {flags} tunnel TFC"),
                        sa.clone().mode(1).u32(XFRMA_TFCPAD, 9),
                    ));
                    cases.push((
                        format!("if {ifindex} flags {flags} encap"),
                        sa.clone().pod(XFRMA_ENCAP, &encap_of(2)),
                    ));
                    cases.push((
                        format!("if {ifindex} flags {flags} if_id"),
                        sa.u32(XFRMA_IF_ID, 4),
                    ));
                }
            }
        }
    }
    try_sas(s, cases);
}

fn pcpu(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for dir in [None, Some(1u8), Some(2)] {
        for cpu in [0, 1, 1023, 65535, u32::MAX - 1, u32::MAX] {
            let sa = Sa::esp().u32(XFRMA_SA_PCPU, cpu);
            let sa = match dir {
                Some(dir) => sa.attr(XFRMA_SA_DIR, [dir]),
                None => sa,
            };
            cases.push((format!("dir {dir:?} cpu {cpu}"), sa));
        }
    }
    try_sas(s, cases);
}

fn sec_ctx(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for (len, ctx_len, bytes) in [
        (8, 0, 0),
        (8, 0, 4),
        (12, 4, 4),
        (12, 4, 0),
        (12, 3, 4),
        (13, 4, 4),
        (12, 4, 9),
        (0, 0, 0),
        (0xffff, 0xfff7, 4),
        (4, 0xfffc, 0),
    ] {
        for (alg, doi) in [(1, 1), (0, 0), (2, 1)] {
            let ctx = UserSecCtx {
                len,
                exttype: XFRMA_SEC_CTX,
                ctx_alg: alg,
                ctx_doi: doi,
                ctx_len,
            };
            let mut payload = ctx.as_bytes().to_vec();
            payload.extend_from_slice(&b"abcdefghi"[..bytes]);
            cases.push((
                format!("len {len} ctx_len {ctx_len} bytes {bytes} alg {alg} doi {doi}"),
                Sa::esp().attr(XFRMA_SEC_CTX, payload),
            ));
        }
    }
    try_sas(s, cases);
}

fn marks(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for (v, m) in [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (0x1ff, 0xff),
        (u32::MAX, u32::MAX),
        (0, u32::MAX),
        (7, 0xf0),
    ] {
        cases.push((
            format!("mark {v:x}/{m:x}"),
            Sa::esp().pod(XFRMA_MARK, &Mark { v, m }),
        ));
        cases.push((format!("set mark {v:x}"), Sa::esp().u32(XFRMA_SET_MARK, v)));
        cases.push((
            format!("set mark {v:x}/{m:x}"),
            Sa::esp().u32(XFRMA_SET_MARK, v).u32(XFRMA_SET_MARK_MASK, m),
        ));
        cases.push((
            format!("set mark mask {m:x} alone"),
            Sa::esp().u32(XFRMA_SET_MARK_MASK, m),
        ));
        cases.push((format!("if_id {v:x}"), Sa::esp().u32(XFRMA_IF_ID, v)));
    }
    try_sas(s, cases);
}

fn odd_values(s: &mut Session<'_>) {
    let many = [1u8; 256];
    let cases = vec![
        ("SPI 0", Sa::esp().spi(0)),
        ("SPI 1", Sa::esp().spi(1)),
        ("SPI 255", Sa::ah().spi(255)),
        ("SPI ffffffff", Sa::ah().spi(u32::MAX)),
        (
            "destination 0",
            Sa::esp().info(|i| i.id.daddr = Address::ANY),
        ),
        ("source 0", Sa::esp().info(|i| i.saddr = Address::ANY)),
        (
            "junk behind IPv4 addresses",
            Sa::esp().info(|i| {
                i.id.daddr = Address([9; 16]);
                i.saddr = Address([8; 16]);
            }),
        ),
        (
            "padding",
            Sa::esp().info(|i| {
                i.pad = [1; 7];
                i.id.pad = [2; 3];
                i.sel.pad = [3; 3];
            }),
        ),
        (
            "counters and statistics",
            Sa::esp().info(|i| {
                i.curlft = LifetimeCur {
                    bytes: 1,
                    packets: 2,
                    add_time: 3,
                    use_time: 4,
                };
                i.stats = Stats {
                    replay_window: 1,
                    replay: 2,
                    integrity_failed: 3,
                };
            }),
        ),
        (
            "LTIME_VAL",
            Sa::esp().pod(
                XFRMA_LTIME_VAL,
                &LifetimeCur {
                    bytes: 1,
                    packets: 2,
                    add_time: 3,
                    use_time: 4,
                },
            ),
        ),
        (
            "selector",
            Sa::esp().info(|i| {
                i.sel = Selector {
                    dport: BeU16::new(1),
                    dport_mask: BeU16::new(2),
                    sport: BeU16::new(3),
                    sport_mask: BeU16::new(4),
                    proto: 5,
                    ifindex: 6,
                    user: 7,
                    ..host_selector()
                };
            }),
        ),
        (
            "limits",
            Sa::esp().info(|i| {
                i.lft = LifetimeCfg {
                    soft_byte_limit: 1,
                    hard_byte_limit: 2,
                    soft_packet_limit: 3,
                    hard_packet_limit: 4,
                    soft_add_expires_seconds: 5000,
                    hard_add_expires_seconds: 6000,
                    soft_use_expires_seconds: 7000,
                    hard_use_expires_seconds: 8000,
                };
            }),
        ),
        (
            "endless limits",
            Sa::esp().info(|i| {
                i.lft.soft_add_expires_seconds = u64::MAX;
                i.lft.hard_add_expires_seconds = u64::MAX;
                i.lft.soft_use_expires_seconds = u64::MAX;
                i.lft.hard_use_expires_seconds = 1 << 63;
            }),
        ),
        (
            "reqid and seq",
            Sa::esp().info(|i| {
                i.reqid = 0xffff_fffe;
                i.seq = 0x1234_5678;
            }),
        ),
        ("COADDR", Sa::esp().attr(XFRMA_COADDR, [6; 16])),
        ("COADDR zero", Sa::esp().attr(XFRMA_COADDR, [0; 16])),
        ("TFC 1", Sa::esp().mode(1).u32(XFRMA_TFCPAD, 1)),
        ("TFC 65535", Sa::esp().mode(1).u32(XFRMA_TFCPAD, 65535)),
        ("TFC 65536", Sa::esp().mode(1).u32(XFRMA_TFCPAD, 65536)),
        ("TFC 0 in transport", Sa::esp().u32(XFRMA_TFCPAD, 0)),
        (
            "thresholds",
            Sa::esp()
                .u32(XFRMA_REPLAY_THRESH, 5)
                .u32(XFRMA_ETIMER_THRESH, 6),
        ),
        (
            "REPLAY_VAL",
            Sa::esp().pod(
                XFRMA_REPLAY_VAL,
                &ReplayState {
                    oseq: 1,
                    seq: 2,
                    bitmap: 3,
                },
            ),
        ),
        ("window 31", Sa::esp().info(|i| i.replay_window = 31)),
        ("window 32", Sa::esp().info(|i| i.replay_window = 32)),
        ("window 33", Sa::esp().info(|i| i.replay_window = 33)),
        ("window 255", Sa::esp().info(|i| i.replay_window = 255)),
        (
            "long key",
            Sa::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH, algo("hmac(sha256)", &many)),
        ),
    ];
    try_sas(s, labelled(cases));
}
