//! UPDSA: what an update changes, and what it only says.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("update_changes", update_changes),
    Scenario::new("update_each_field", update_each_field),
    Scenario::new("update_directions", update_directions),
    Scenario::new("update_encap", update_encap),
    Scenario::new("update_missing", update_missing),
    Scenario::new("sa_events", events),
];

fn update_changes(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let old = Sa::esp().mode(1).info(|i| i.sel = host_selector());
    s.request(a, "old", old.new_sa());
    let new = Sa::bare(50)
        .attr(XFRMA_ALG_CRYPT, algo("cbc(aes)", &key(32)))
        .attr(
            XFRMA_ALG_AUTH_TRUNC,
            algo_icv("hmac(sha256)", 128, &key(32)),
        )
        .u32(XFRMA_IF_ID, 7)
        .u32(XFRMA_SET_MARK, 9)
        .u32(XFRMA_SA_EXTRA_FLAGS, 1)
        .u32(XFRMA_REPLAY_THRESH, 55)
        .pod(
            XFRMA_REPLAY_VAL,
            &ReplayState {
                oseq: 3,
                seq: 4,
                bitmap: 5,
            },
        )
        .info(|i| {
            i.reqid = 99;
            i.seq = 88;
            i.mode = 0;
            i.flags = 0x42;
            i.replay_window = 20;
            i.saddr = Address::v4(10, 1, 0, 77);
            i.lft.hard_byte_limit = 1000;
            i.lft.hard_add_expires_seconds = 1000;
        });
    s.request(a, "update", new.upd_sa());
    dump_sad(s, a);
    s.request(a, "update with nothing", old.upd_sa());
    dump_sad(s, a);
    s.request(
        a,
        "an update that NEWSA would refuse",
        new.clone().info(|i| i.sel.prefixlen_s = 99).upd_sa(),
    );
    s.request(
        a,
        "an update with a bad algorithm",
        Sa::bare(50)
            .attr(XFRMA_ALG_CRYPT, algo("nope", &[]))
            .upd_sa(),
    );
    dump_sad(s, a);
}

fn update_each_field(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let attrs: [(u16, Vec<u8>); 13] = [
        (XFRMA_TFCPAD, vec![9, 0, 0, 0]),
        (XFRMA_MARK, vec![0; 8]),
        (XFRMA_SET_MARK, vec![5, 0, 0, 0]),
        (XFRMA_IF_ID, vec![6, 0, 0, 0]),
        (XFRMA_COADDR, vec![7; 16]),
        (XFRMA_SA_EXTRA_FLAGS, vec![2, 0, 0, 0]),
        (XFRMA_REPLAY_VAL, vec![3; 12]),
        (XFRMA_LTIME_VAL, vec![4; 32]),
        (XFRMA_ETIMER_THRESH, vec![4, 0, 0, 0]),
        (XFRMA_OFFLOAD_DEV, vec![1, 0, 0, 0, 0, 0, 0, 0]),
        (XFRMA_NAT_KEEPALIVE_INTERVAL, vec![0; 4]),
        (XFRMA_REPLAY_ESN_VAL, vec![0; 24]),
        (XFRMA_SEC_CTX, vec![8, 0, 8, 0, 1, 1, 0, 0]),
    ];
    for (attr, payload) in attrs {
        for before in [false, true] {
            let base = Sa::esp().mode(1);
            let with = base.clone().attr(attr, &payload);
            s.send(
                a,
                "old",
                vec![
                    flush_sa(0),
                    if before { &with } else { &base }
                        .new_sa()
                        .flags(NLM_F_REQUEST),
                ],
            );
            s.drain_silently();
            s.request(
                a,
                &format!("attr {attr}, had it before: {before}"),
                if before { &base } else { &with }.upd_sa(),
            );
            s.request(a, "get", base.by_id(XFRM_MSG_GETSA));
        }
    }
    let fields: [(&str, fn(&mut UserSaInfo)); 10] = [
        ("reqid", |i| i.reqid = 9),
        ("mode", |i| i.mode = 0),
        ("window", |i| i.replay_window = 9),
        ("flags", |i| i.flags = 1),
        ("saddr", |i| i.saddr.0[3] = 99),
        ("seq", |i| i.seq = 4),
        ("selector", |i| i.sel = host_selector()),
        ("lft", |i| i.lft.soft_use_expires_seconds = 5000),
        ("curlft", |i| i.curlft.bytes = 9),
        ("stats", |i| i.stats.replay = 9),
    ];
    for (label, change) in fields {
        s.send(
            a,
            "old",
            vec![flush_sa(0), Sa::esp().mode(1).new_sa().flags(NLM_F_REQUEST)],
        );
        s.drain_silently();
        s.request(a, label, Sa::esp().mode(1).info(change).upd_sa());
        s.request(a, "get", Sa::esp().by_id(XFRM_MSG_GETSA));
    }
}

fn update_directions(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let with = |dir: Option<u8>| match dir {
        Some(dir) => Sa::esp().attr(XFRMA_SA_DIR, [dir]),
        None => Sa::esp(),
    };
    for old in [None, Some(1), Some(2)] {
        for new in [None, Some(1), Some(2)] {
            s.send(
                a,
                "old",
                vec![flush_sa(0), with(old).new_sa().flags(NLM_F_REQUEST)],
            );
            s.drain_silently();
            s.request(a, &format!("{new:?} over {old:?}"), with(new).upd_sa());
            s.send(
                a,
                "larval",
                vec![
                    flush_sa(0),
                    alloc(&with(old), 0x1000, 0x1000).flags(NLM_F_REQUEST),
                ],
            );
            s.drain(a);
            s.request(
                a,
                &format!("{new:?} over larval {old:?}"),
                with(new).upd_sa(),
            );
            dump_sad(s, a);
        }
    }
}

fn update_encap(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for old in [None, Some(encap_from(2, 4500)), Some(encap_from(1, 4500))] {
        for new in [
            None,
            Some(encap_from(2, 4501)),
            Some(encap_from(1, 4501)),
            Some(encap_from(2, 4500)),
        ] {
            let with = |encap: Option<EncapTmpl>| match encap {
                Some(encap) => Sa::esp().pod(XFRMA_ENCAP, &encap),
                None => Sa::esp(),
            };
            s.send(a, "flush", vec![flush_sa(0)]);
            s.request(a, "old", with(old).new_sa());
            s.request(
                a,
                "new",
                with(new).info(|i| i.lft.hard_byte_limit = 7).upd_sa(),
            );
            dump_sad(s, a);
        }
    }
}

fn update_missing(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    s.request(a, "no SA", Sa::esp().upd_sa());
    s.request(a, "SPI 0", Sa::esp().spi(0).upd_sa());
    s.request(a, "", alloc(&Sa::bare(50), 0x1000, 0x1000));
    s.request(a, "over a larval", Sa::esp().info(|i| i.reqid = 4).upd_sa());
    dump_sad(s, a);
    s.request(a, "over another protocol's", Sa::ah().upd_sa());
    s.request(
        a,
        "",
        alloc(&Sa::bare(50).spi(0).info(|i| i.mode = 1), 0x1001, 0x1001),
    );
    s.request(a, "NEWSA over a larval", Sa::esp().spi(0x1001).new_sa());
    s.request(a, "UPDSA, other mode", Sa::esp().spi(0x1001).upd_sa());
    dump_sad(s, a);
}

fn events(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let full = Sa::bare(50)
        .over_v6()
        .mode(1)
        .attr(XFRMA_ALG_CRYPT, algo("aes", &key(16)))
        .attr(XFRMA_ALG_AUTH, algo("sha256", &key(32)))
        .pod(XFRMA_ENCAP, &encap_from(2, 4500))
        .u32(XFRMA_TFCPAD, 100)
        .pod(XFRMA_MARK, &Mark { v: 3, m: 255 })
        .u32(XFRMA_SET_MARK, 5)
        .u32(XFRMA_IF_ID, 6)
        .attr(XFRMA_COADDR, [4; 16])
        .u32(XFRMA_SA_EXTRA_FLAGS, 2)
        .attr(XFRMA_SA_DIR, [2])
        .u32(XFRMA_NAT_KEEPALIVE_INTERVAL, 30)
        .u32(XFRMA_SA_PCPU, 0)
        .attr(
            XFRMA_REPLAY_ESN_VAL,
            ReplayStateEsn {
                oseq: 9,
                ..ReplayStateEsn::default()
            }
            .as_bytes(),
        )
        .info(|i| i.flags = XFRM_STATE_ESN);
    s.request(a, "everything, outbound", full.new_sa());
    s.request(a, "update", full.upd_sa());
    let expire = UserExpire {
        state: full.info,
        hard: 0,
        pad: [0; 7],
    };
    s.request(
        a,
        "soft",
        Message::with(XFRM_MSG_EXPIRE, &expire).pod(XFRMA_MARK, &Mark { v: 3, m: 255 }),
    );
    let ae = AeventId {
        sa_id: full.id(),
        flags: 0xff,
        ..AeventId::default()
    };
    s.request(
        a,
        "aevent",
        Message::with(XFRM_MSG_GETAE, &ae).pod(XFRMA_MARK, &Mark { v: 3, m: 255 }),
    );
    s.request(a, "delete", full.by_id(XFRM_MSG_DELSA));
    let inbound = full
        .without(XFRMA_SA_DIR)
        .attr(XFRMA_SA_DIR, [1])
        .without(XFRMA_NAT_KEEPALIVE_INTERVAL)
        .without(XFRMA_SA_EXTRA_FLAGS);
    let inbound = inbound
        .u32(XFRMA_MTIMER_THRESH, 11)
        .without(XFRMA_REPLAY_ESN_VAL);
    let window = ReplayStateEsn {
        bmp_len: 2,
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    let mut value = window.as_bytes().to_vec();
    value.extend_from_slice(&[0; 8]);
    let inbound = inbound.attr(XFRMA_REPLAY_ESN_VAL, value);
    s.request(a, "everything, inbound", inbound.new_sa());
    s.request(
        a,
        "hard",
        Message::with(XFRM_MSG_EXPIRE, &UserExpire { hard: 1, ..expire })
            .pod(XFRMA_MARK, &Mark { v: 3, m: 255 }),
    );
    dump_sad(s, a);
}
