//! NEWSA: everything that it checks, one thing wrong at a time, and then
//! several, because the order of checks shows.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::build::*;
use super::{Sa, Scenario};
use crate::session::Session;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("sa_families_and_prefixes", families_and_prefixes),
    Scenario::new("sa_protocols", protocols),
    Scenario::new("sa_algorithms_by_protocol", algorithms_by_protocol),
    Scenario::new("sa_algorithm_lengths", algorithm_lengths),
    Scenario::new("sa_modes", modes),
    Scenario::new("sa_flags", flags),
    Scenario::new("sa_esn", esn),
    Scenario::new("sa_esn_windows", esn_windows),
    Scenario::new("sa_replay_by_direction", replay_by_direction),
    Scenario::new("sa_order_of_checks", order_of_checks),
];

fn families_and_prefixes(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for family in [0, 1, 2, 3, 10, 11, 255, 0xffff] {
        cases.push((
            format!("family {family}"),
            Sa::esp().info(|i| i.family = family),
        ));
        for flags in [0, XFRM_STATE_AF_UNSPEC] {
            for mode in [0, 1] {
                let label = format!("selector family {family} flags {flags} mode {mode}");
                let sa = Sa::esp().mode(mode).info(|i| {
                    i.sel.family = family;
                    i.flags = flags;
                });
                cases.push((label.clone() + " v4", sa.clone()));
                cases.push((label + " v6", sa.over_v6()));
            }
        }
    }
    for (d, p) in [
        (32, 32),
        (33, 0),
        (0, 33),
        (33, 33),
        (128, 128),
        (129, 0),
        (0, 129),
        (255, 255),
    ] {
        for family in [0, 2, 10] {
            let sa = Sa::esp().mode(1).info(|i| {
                i.sel.family = family;
                i.sel.prefixlen_d = d;
                i.sel.prefixlen_s = p;
            });
            cases.push((format!("prefixes {d} {p} selector {family} v4"), sa.clone()));
            cases.push((
                format!("prefixes {d} {p} selector {family} v6"),
                sa.over_v6(),
            ));
        }
    }
    try_sas(s, cases);
}

fn protocols(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for proto in (0..=140).chain([254, 255]) {
        let spi = if proto == IPPROTO_DSTOPTS || proto == IPPROTO_ROUTING {
            0
        } else {
            0x100
        };
        let sa = Sa::bare(proto).spi(spi).mode(XFRM_MODE_TRANSPORT);
        cases.push((format!("proto {proto}"), sa.clone()));
    }
    for proto in [IPPROTO_DSTOPTS, IPPROTO_ROUTING, IPPROTO_IPIP, IPPROTO_IPV6] {
        for mode in 0..4 {
            for spi in [0, 1] {
                let sa = Sa::bare(proto)
                    .over_v6()
                    .spi(spi)
                    .mode(mode)
                    .attr(XFRMA_COADDR, [7; 16]);
                cases.push((
                    format!("proto {proto} mode {mode} spi {spi} v6 COADDR"),
                    sa.clone(),
                ));
                cases.push((
                    format!("proto {proto} mode {mode} spi {spi} v6"),
                    sa.without(XFRMA_COADDR),
                ));
            }
        }
    }
    try_sas(s, cases);
}

fn algorithms_by_protocol(s: &mut Session<'_>) {
    let attrs: [(u16, Vec<u8>); 6] = [
        (XFRMA_ALG_AEAD, algo_icv("rfc4106(gcm(aes))", 128, &key(20))),
        (XFRMA_ALG_AUTH, algo("hmac(sha1)", &key(20))),
        (
            XFRMA_ALG_AUTH_TRUNC,
            algo_icv("hmac(sha256)", 128, &key(32)),
        ),
        (XFRMA_ALG_CRYPT, algo("cbc(aes)", &key(16))),
        (XFRMA_ALG_COMP, algo("deflate", &[])),
        (XFRMA_TFCPAD, 64u32.to_ne_bytes().to_vec()),
    ];
    let mut cases = Vec::new();
    for proto in [IPPROTO_AH, IPPROTO_ESP, IPPROTO_COMP, IPPROTO_DSTOPTS] {
        for set in 0..64u32 {
            for mode in [0, 1] {
                let mut sa = Sa::bare(proto).mode(mode);
                for (bit, (kind, payload)) in attrs.iter().enumerate() {
                    if set & (1 << bit) != 0 {
                        sa = sa.attr(*kind, payload);
                    }
                }
                let brief = set & 32 == 0 && mode == 1;
                if !brief {
                    cases.push((format!("proto {proto} set {set:#x} mode {mode}"), sa));
                }
            }
        }
    }
    cases.push(("COMP with a large SPI".into(), Sa::comp().spi(0x10000)));
    cases.push(("COMP with the largest SPI".into(), Sa::comp().spi(0xffff)));
    try_sas(s, cases);
}

fn algorithm_lengths(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    let blobs: [(u16, &str, Vec<u8>, Sa); 5] = [
        (
            XFRMA_ALG_AEAD,
            "rfc4106(gcm(aes))",
            algo_icv("rfc4106(gcm(aes))", 128, &key(20)),
            Sa::bare(IPPROTO_ESP),
        ),
        (
            XFRMA_ALG_AUTH_TRUNC,
            "hmac(sha1)",
            algo_icv("hmac(sha1)", 96, &key(20)),
            Sa::bare(IPPROTO_AH),
        ),
        (
            XFRMA_ALG_AUTH,
            "hmac(sha1)",
            algo("hmac(sha1)", &key(20)),
            Sa::bare(IPPROTO_AH),
        ),
        (
            XFRMA_ALG_CRYPT,
            "cbc(aes)",
            algo("cbc(aes)", &key(16)),
            Sa::bare(IPPROTO_ESP),
        ),
        (
            XFRMA_ALG_COMP,
            "deflate",
            algo("deflate", &[]),
            Sa::bare(IPPROTO_COMP),
        ),
    ];
    for (kind, name, blob, base) in blobs {
        for bits in [
            0u32,
            1,
            7,
            8,
            9,
            121,
            128,
            160,
            161,
            168,
            2048,
            0x7fff_ffff,
            0xffff_fff8,
            0xffff_fff9,
            0xffff_ffff,
        ] {
            let mut payload = blob.clone();
            payload[64..68].copy_from_slice(&bits.to_ne_bytes());
            cases.push((
                format!("{name} claims {bits} bits"),
                base.clone().attr(kind, payload),
            ));
        }
        for extra in [1, 4, 100] {
            let mut payload = blob.clone();
            payload.extend_from_slice(&vec![9; extra]);
            cases.push((
                format!("{name} and {extra} bytes more"),
                base.clone().attr(kind, payload),
            ));
        }
        let mut unterminated = blob.clone();
        unterminated[..64].fill(b'x');
        cases.push((
            format!("{kind} name without end"),
            base.clone().attr(kind, unterminated),
        ));
        let mut padded = blob.clone();
        padded[60] = b'!';
        cases.push((
            format!("{name} with bytes behind the name"),
            base.clone().attr(kind, padded),
        ));
    }
    try_sas(s, cases);
}

fn modes(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for mode in (0..=8).chain([127, 255]) {
        for base in [Sa::esp(), Sa::ah(), Sa::comp()] {
            let proto = base.info.id.proto;
            for dir in [None, Some(1), Some(2)] {
                let sa = match dir {
                    Some(dir) => base.clone().mode(mode).attr(XFRMA_SA_DIR, [dir]),
                    None => base.clone().mode(mode),
                };
                cases.push((format!("mode {mode} proto {proto} dir {dir:?}"), sa.clone()));
                cases.push((
                    format!("mode {mode} proto {proto} dir {dir:?} v6"),
                    sa.over_v6(),
                ));
            }
        }
    }
    try_sas(s, cases);
}

fn flags(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for bit in 0..8 {
        let flag = 1u8 << bit;
        for dir in [None, Some(1u8), Some(2)] {
            for base in [Sa::esp(), Sa::ah().over_v6()] {
                let sa = base.mode(1).info(|i| i.flags = flag);
                let sa = match dir {
                    Some(dir) => sa.attr(XFRMA_SA_DIR, [dir]),
                    None => sa,
                };
                cases.push((format!("flag {flag:#x} dir {dir:?}"), sa.clone()));
                for extra in [1, 2, 3, 4, 0x8000_0000] {
                    if bit == 0 {
                        let sa = sa
                            .clone()
                            .info(|i| i.flags = 0)
                            .u32(XFRMA_SA_EXTRA_FLAGS, extra);
                        cases.push((format!("extra {extra:#x} dir {dir:?}"), sa));
                    }
                }
            }
        }
    }
    cases.push(("all".into(), Sa::ah().info(|i| i.flags = 0x7f)));
    try_sas(s, cases);
}

fn esn_windows(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for esn in [0, XFRM_STATE_ESN] {
        for dir in [None, Some(1u8), Some(2)] {
            for (bmp_len, window, words) in [
                (0, 0, 0),
                (0, 1, 0),
                (1, 0, 1),
                (1, 1, 1),
                (1, 32, 1),
                (1, 33, 1),
                (2, 64, 2),
                (2, 64, 1),
                (2, 64, 0),
                (128, 4096, 128),
                (128, 4096, 0),
                (129, 32, 129),
                (129, 32, 0),
                (4, 32, 5),
                (0xffff_ffff, 1, 0),
                (0x4000_0000, 1, 0),
                (1, 0xffff_ffff, 1),
            ] {
                let sa = Sa::esp().info(|i| i.flags = esn);
                let sa = sa.attr(XFRMA_REPLAY_ESN_VAL, replay_esn(bmp_len, window, words));
                let sa = match dir {
                    Some(dir) => sa.attr(XFRMA_SA_DIR, [dir]),
                    None => sa,
                };
                cases.push((
                    format!(
                        "esn {esn} dir {dir:?} bmp_len {bmp_len} window {window} words {words}"
                    ),
                    sa,
                ));
            }
        }
    }
    try_sas(s, cases);
}

fn esn(s: &mut Session<'_>) {
    let with_esn = |sa: Sa| sa.info(|i| i.flags = XFRM_STATE_ESN);
    let value = replay_esn(1, 32, 1);
    let cases = vec![
        ("flag alone", with_esn(Sa::esp())),
        (
            "flag and legacy value",
            with_esn(Sa::esp()).attr(XFRMA_REPLAY_VAL, [1; 12]),
        ),
        (
            "both values",
            with_esn(Sa::esp())
                .attr(XFRMA_REPLAY_VAL, [1; 12])
                .attr(XFRMA_REPLAY_ESN_VAL, &value),
        ),
        ("value alone", Sa::esp().attr(XFRMA_REPLAY_ESN_VAL, &value)),
        ("AH", with_esn(Sa::ah()).attr(XFRMA_REPLAY_ESN_VAL, &value)),
        (
            "COMP",
            with_esn(Sa::comp()).attr(XFRMA_REPLAY_ESN_VAL, &value),
        ),
        (
            "COMP without flag",
            Sa::comp().attr(XFRMA_REPLAY_ESN_VAL, &value),
        ),
        ("COMP flag alone", with_esn(Sa::comp())),
        (
            "legacy window",
            with_esn(Sa::esp())
                .info(|i| i.replay_window = 1)
                .attr(XFRMA_REPLAY_ESN_VAL, &value),
        ),
        (
            "legacy window without flag",
            Sa::esp()
                .info(|i| i.replay_window = 1)
                .attr(XFRMA_REPLAY_ESN_VAL, &value),
        ),
        (
            "COMP, legacy window",
            with_esn(Sa::comp())
                .info(|i| i.replay_window = 1)
                .attr(XFRMA_REPLAY_ESN_VAL, &value),
        ),
    ];
    try_sas(s, labelled(cases));
}

fn replay_by_direction(s: &mut Session<'_>) {
    let max = u32::MAX;
    let mut cases = Vec::new();
    let words: [u32; 3] = [0, 1, max];
    for dir in [1u8, 2] {
        for window in [0, 1] {
            for oseq in words {
                for seq in words {
                    for bitmap in [0u32, 1] {
                        let value = ReplayState { oseq, seq, bitmap };
                        let sa = Sa::esp()
                            .info(|i| i.replay_window = window)
                            .attr(XFRMA_SA_DIR, [dir]);
                        let label = format!(
                            "dir {dir} window {window} oseq {oseq:x} seq {seq:x} bitmap {bitmap}"
                        );
                        if window == 0 || seq == oseq {
                            cases.push((label, sa.pod(XFRMA_REPLAY_VAL, &value)));
                        }
                    }
                }
            }
        }
        for flag in [0, XFRM_STATE_ESN] {
            for (oseq, oseq_hi, seq, seq_hi) in [
                (0, 0, 0, 0),
                (1, 0, 0, 0),
                (0, 1, 0, 0),
                (0, 0, 1, 0),
                (0, 0, 0, 1),
                (max, 0, 0, 0),
                (0, max, 0, 0),
                (max, max, 0, 0),
                (0, 0, max, 0),
                (0, 0, 0, max),
                (0, 0, max, max),
                (1, 1, 1, 1),
                (max, 1, 0, 0),
                (0, 0, max, 1),
            ] {
                for (bmp_len, replay_window) in [(0, 0), (1, 0), (1, 32)] {
                    let value = ReplayStateEsn {
                        bmp_len,
                        oseq,
                        seq,
                        oseq_hi,
                        seq_hi,
                        replay_window,
                    };
                    let sa = Sa::esp().info(|i| i.flags = flag).attr(XFRMA_SA_DIR, [dir]);
                    let label = format!(
                        "dir {dir} esn {flag} {oseq:x} {oseq_hi:x} {seq:x} {seq_hi:x} bmp {bmp_len} window {replay_window}"
                    );
                    cases.push((label, sa.pod(XFRMA_REPLAY_ESN_VAL, &value)));
                }
            }
        }
    }
    try_sas(s, cases);
}

fn order_of_checks(s: &mut Session<'_>) {
    // One fault for each check, the earliest check first: each case has all faults from the n-th on.
    let faults: [(&str, fn(Sa) -> Sa); 18] = [
        ("family", |sa| sa.info(|i| i.family = 99)),
        ("prefix", |sa| sa.info(|i| i.sel.prefixlen_d = 200)),
        ("proto", |sa| sa.info(|i| i.id.proto = 99)),
        ("algorithms", |sa| {
            sa.attr(XFRMA_ALG_COMP, algo("deflate", &[]))
        }),
        ("aead length", |sa| {
            let mut blob = algo_icv("rfc4106(gcm(aes))", 128, &key(20));
            blob[66] = 9;
            sa.without(XFRMA_ALG_AEAD).attr(XFRMA_ALG_AEAD, blob)
        }),
        ("sec ctx length", |sa| {
            sa.attr(XFRMA_SEC_CTX, [9, 0, 0, 0, 0, 0, 0, 0])
        }),
        ("esn", |sa| sa.info(|i| i.flags |= XFRM_STATE_ESN)),
        ("mode", |sa| sa.info(|i| i.mode = 9)),
        ("mtimer", |sa| sa.u32(XFRMA_MTIMER_THRESH, 9)),
        ("dir", |sa| {
            sa.attr(XFRMA_SA_DIR, [2]).info(|i| i.replay_window = 4)
        }),
        ("pcpu", |sa| sa.u32(XFRMA_SA_PCPU, 9)),
        ("aead name", |sa| {
            let mut sa = sa;
            for attr in &mut sa.attrs {
                if attr.0 == XFRMA_ALG_AEAD {
                    attr.1[0] = b'X';
                }
            }
            sa
        }),
        ("tfc", |sa| {
            sa.info(|i| {
                if i.mode == 0 {
                    i.mode = 1
                }
            })
            .u32(XFRMA_TFCPAD, 70000)
        }),
        ("encap", |sa| sa.pod(XFRMA_ENCAP, &encap_of(9))),
        ("keepalive", |sa| sa.u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 9)),
        ("bmp", |sa| {
            sa.attr(XFRMA_REPLAY_ESN_VAL, replay_esn(1, 33, 1))
        }),
        ("offload", |sa| {
            sa.pod(
                XFRMA_OFFLOAD_DEV,
                &UserOffload {
                    ifindex: 1,
                    flags: 8,
                    pad: [0; 3],
                },
            )
        }),
        ("nothing", |sa| sa),
    ];
    let mut cases = Vec::new();
    for first in 0..faults.len() {
        for second in first + 1..faults.len() {
            let sa = faults[second].1(faults[first].1(Sa::esp()));
            cases.push((format!("{} and {}", faults[first].0, faults[second].0), sa));
        }
        let all = faults[first..]
            .iter()
            .fold(Sa::esp(), |sa, fault| fault.1(sa));
        cases.push((format!("everything from {}", faults[first].0), all));
    }
    try_sas(s, cases);
}
