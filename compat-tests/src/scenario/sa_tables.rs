//! The SAD: what identifies an SA, what finds it, what deletes it, what an
//! update changes.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("sa_identity", identity),
    Scenario::new("sa_identity_marks", identity_marks),
    Scenario::new("sa_by_address", by_address),
    Scenario::new("sa_spi_zero", spi_zero),
    Scenario::new("sa_lookup_fields", lookup_fields),
    Scenario::new("sa_dump_order", dump_order),
    Scenario::new("sa_flush", flush),
    Scenario::new("sa_seq_replaces_larval", seq_replaces_larval),
    Scenario::new("sa_ipcomp_tunnel", ipcomp_tunnel),
    Scenario::new("update_changes", update_changes),
    Scenario::new("update_each_field", update_each_field),
    Scenario::new("update_directions", update_directions),
    Scenario::new("update_encap", update_encap),
    Scenario::new("update_missing", update_missing),
    Scenario::new("sa_events", events),
];

fn dump(s: &mut Session<'_>, a: crate::subject::Socket) {
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
}

fn variants() -> Vec<(&'static str, Sa)> {
    vec![
        ("same", Sa::esp()),
        ("other SPI", Sa::esp().spi(0x1001)),
        (
            "other destination",
            Sa::esp().info(|i| i.id.daddr = Address::v4(10, 1, 0, 3)),
        ),
        (
            "other source",
            Sa::esp().info(|i| i.saddr = Address::v4(10, 1, 0, 3)),
        ),
        ("AH", Sa::ah()),
        ("COMP", Sa::comp()),
        ("v6", Sa::esp().over_v6()),
        (
            "v6 with the same bytes",
            Sa::esp().info(|i| {
                i.family = AF_INET6;
                i.sel.family = AF_INET6;
            }),
        ),
        (
            "junk behind the IPv4 address",
            Sa::esp().info(|i| i.id.daddr.0[7] = 9),
        ),
        ("other reqid", Sa::esp().info(|i| i.reqid = 5)),
        ("other mode", Sa::esp().mode(1)),
        ("other if_id", Sa::esp().u32(XFRMA_IF_ID, 5)),
        ("other direction", Sa::esp().attr(XFRMA_SA_DIR, [1])),
        (
            "other selector",
            Sa::esp().info(|i| i.sel = host_selector()),
        ),
        ("marked", Sa::esp().pod(XFRMA_MARK, &Mark { v: 1, m: 15 })),
        (
            "mark mask 0",
            Sa::esp().pod(XFRMA_MARK, &Mark { v: 1, m: 0 }),
        ),
        (
            "other key",
            Sa::esp()
                .without(XFRMA_ALG_AEAD)
                .attr(XFRMA_ALG_AEAD, algo_icv("rfc4106(gcm(aes))", 128, &[9; 20])),
        ),
    ]
}

fn identity(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for (first_name, first) in variants() {
        for (second_name, second) in variants() {
            s.send(
                a,
                "flush",
                vec![flush_sa(0), first.new_sa().flags(NLM_F_REQUEST)],
            );
            s.drain_silently();
            s.request(
                a,
                &format!("{second_name} after {first_name}"),
                second.new_sa(),
            );
            if first_name == "same" || second_name == "same" {
                s.request(a, "delete the second", second.by_id(XFRM_MSG_DELSA));
                s.send(a, "left", vec![Message::dump(XFRM_MSG_GETSA)]);
                s.recv_spis(a, 65536);
            }
        }
    }
}

fn identity_marks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let marks = [
        None,
        Some((0, 0)),
        Some((1, 15)),
        Some((1, 1)),
        Some((0, 15)),
        Some((0x21, 0xff)),
        Some((2, u32::MAX)),
        Some((5, 0)),
    ];
    let marked = |sa: Sa, mark: Option<(u32, u32)>| match mark {
        Some((v, m)) => sa.pod(XFRMA_MARK, &Mark { v, m }),
        None => sa,
    };
    for (n, first) in marks.into_iter().enumerate() {
        for (k, second) in marks.into_iter().enumerate() {
            s.send(a, "flush", vec![flush_sa(0)]);
            let reqid = |id: usize| Sa::esp().info(|i| i.reqid = id as u32 + 1);
            s.request(a, &format!("{first:?}"), marked(reqid(n), first).new_sa());
            s.request(
                a,
                &format!("{second:?} after {first:?}"),
                marked(reqid(k + 100), second).new_sa(),
            );
            for mark in marks {
                let answer = s.request_for_errno(a, marked(Sa::esp(), mark).by_id(XFRM_MSG_GETSA));
                s.note(format!("get {mark:?}: {answer}"));
            }
            s.request(
                a,
                "update the second",
                marked(reqid(k + 100), second).upd_sa(),
            );
            s.request(
                a,
                "delete the first",
                marked(Sa::esp(), first).by_id(XFRM_MSG_DELSA),
            );
        }
    }
}

fn by_address(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let routed = |proto: u8| {
        Sa::bare(proto)
            .over_v6()
            .spi(0)
            .mode(2)
            .attr(XFRMA_COADDR, [7; 16])
    };
    for proto in [IPPROTO_DSTOPTS, IPPROTO_ROUTING] {
        let sa = routed(proto);
        let other = sa.clone().info(|i| i.saddr = v6(9));
        s.request(a, "one", sa.new_sa());
        s.request(a, "the same", sa.new_sa());
        s.request(a, "other source", other.new_sa());
        s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
        s.request(
            a,
            "get with a wrong SPI",
            sa.clone().spi(9).by_id(XFRM_MSG_GETSA),
        );
        s.request(
            a,
            "get without source",
            Message::with(XFRM_MSG_GETSA, &sa.id()),
        );
        s.request(
            a,
            "get of nobody",
            sa.clone().info(|i| i.saddr = v6(8)).by_id(XFRM_MSG_GETSA),
        );
        s.request(
            a,
            "update",
            sa.clone()
                .info(|i| i.sel = host_selector_v6())
                .attr(XFRMA_COADDR, [8; 16])
                .upd_sa(),
        );
        s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
        s.request(
            a,
            "delete without source",
            Message::with(XFRM_MSG_DELSA, &sa.id()),
        );
        s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
        s.request(a, "delete again", sa.by_id(XFRM_MSG_DELSA));
        dump(s, a);
    }
    for proto in [0, 4, 6, 41, 43, 99, 255] {
        s.request(
            a,
            &format!("get proto {proto}"),
            Sa::bare(proto).by_id(XFRM_MSG_GETSA),
        );
        s.request(
            a,
            &format!("get proto {proto} without source"),
            Message::with(XFRM_MSG_GETSA, &Sa::bare(proto).id()),
        );
    }
}

fn spi_zero(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let sa = Sa::esp().spi(0);
    for n in 0..3 {
        s.request(a, "another", sa.clone().info(|i| i.reqid = n).new_sa());
    }
    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    s.request(a, "update", sa.upd_sa());
    s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
    dump(s, a);
    s.request(a, "flush", flush_sa(50));
    dump(s, a);
}

fn lookup_fields(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let sa = Sa::esp();
    s.request(a, "", sa.new_sa());
    let odd: [(&str, fn(&mut UserSaId)); 9] = [
        ("padding", |id| id.pad = 9),
        ("junk behind the address", |id| id.daddr.0[9] = 9),
        ("family 0", |id| id.family = 0),
        ("family 10", |id| id.family = 10),
        ("family 3", |id| id.family = 3),
        ("proto 0", |id| id.proto = 0),
        ("proto 255", |id| id.proto = 255),
        ("SPI", |id| id.spi = BeU32::new(0x1001)),
        ("address", |id| id.daddr.0[3] = 9),
    ];
    for (label, change) in odd {
        let mut id = sa.id();
        change(&mut id);
        s.request(a, label, Message::with(XFRM_MSG_GETSA, &id));
        s.request(
            a,
            label,
            Message::with(
                XFRM_MSG_GETAE,
                &AeventId {
                    sa_id: id,
                    ..AeventId::default()
                },
            ),
        );
    }
    s.request(
        a,
        "wrong source",
        sa.by_id(XFRM_MSG_GETSA).pod(XFRMA_SRCADDR, &v6(9)),
    );
    s.request(
        a,
        "wrong if_id",
        sa.by_id(XFRM_MSG_GETSA).u32(XFRMA_IF_ID, 9),
    );
    s.request(
        a,
        "a mark",
        sa.by_id(XFRM_MSG_GETSA)
            .pod(XFRMA_MARK, &Mark { v: 9, m: 9 }),
    );
    s.request(
        a,
        "delete with wrong if_id",
        sa.by_id(XFRM_MSG_DELSA).u32(XFRMA_IF_ID, 9),
    );
}

fn dump_order(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for n in [5u32, 1, 9, 3] {
        s.request(a, "", Sa::esp().spi(n).new_sa());
        s.request(a, "", Sa::ah().over_v6().spi(n + 1).new_sa());
    }
    s.send(a, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv_spis(a, 65536);
    s.request(
        a,
        "update",
        Sa::esp()
            .spi(1)
            .info(|i| i.lft.hard_byte_limit = 9)
            .upd_sa(),
    );
    s.request(a, "delete", Sa::esp().spi(9).by_id(XFRM_MSG_DELSA));
    s.request(a, "add again", Sa::esp().spi(9).new_sa());
    s.send(a, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv_spis(a, 65536);
}

fn flush(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    for proto in [0, 50, 51, 108, 255, 1, 4] {
        let all = [
            Sa::esp(),
            Sa::ah(),
            Sa::comp(),
            Sa::bare(60)
                .over_v6()
                .spi(0)
                .mode(2)
                .attr(XFRMA_COADDR, [7; 16]),
        ];
        for sa in &all {
            s.send(a, "", vec![sa.new_sa().flags(NLM_F_REQUEST)]);
        }
        s.drain_silently();
        s.request(a, &format!("flush {proto}"), flush_sa(proto).flags(5));
        s.request(a, &format!("flush {proto} again"), flush_sa(proto).flags(5));
        s.send(a, "left", vec![Message::dump(XFRM_MSG_GETSA)]);
        s.recv_spis(a, 65536);
    }
    s.request(
        a,
        "with padding",
        Message::new(XFRM_MSG_FLUSHSA).raw(&[50, 9, 9, 9]),
    );
}

fn seq_replaces_larval(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let larval = |seq: u32, reqid: u32| {
        alloc(
            &Sa::bare(50).info(|i| {
                i.seq = seq;
                i.reqid = reqid;
            }),
            0x900 + reqid,
            0x900 + reqid,
        )
    };
    s.request(a, "larval", larval(0, 1));
    s.request(a, "larval with unknown seq", larval(77, 2));
    dump(s, a);
    s.request(
        a,
        "an SA with the tuple of a larval",
        Sa::esp().spi(0x901).new_sa(),
    );
    s.request(
        a,
        "an SA for the same hosts",
        Sa::esp().spi(0x800).info(|i| i.reqid = 1).new_sa(),
    );
    dump(s, a);
    s.request(
        a,
        "an SA with seq",
        Sa::esp()
            .spi(0x801)
            .info(|i| {
                i.reqid = 2;
                i.seq = 77;
            })
            .new_sa(),
    );
    dump(s, a);
    s.request(a, "a larval with the seq of an SA", larval(77, 3));
    dump(s, a);
}

fn ipcomp_tunnel(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let one = Sa::comp().mode(1).spi(0x10);
    let two = one.clone().spi(0x11);
    s.request(a, "one", one.new_sa());
    dump(s, a);
    s.request(a, "two", two.new_sa());
    dump(s, a);
    s.request(a, "count", Message::new(XFRM_MSG_GETSADINFO).put(&[0; 4]));
    let hidden = Sa::bare(IPPROTO_IPIP).spi(0x0a01_0001);
    s.request(a, "get the hidden one", hidden.by_id(XFRM_MSG_GETSA));
    s.request(
        a,
        "get the hidden one's events",
        Message::with(
            XFRM_MSG_GETAE,
            &AeventId {
                sa_id: hidden.id(),
                ..AeventId::default()
            },
        ),
    );
    s.request(a, "delete the hidden one", hidden.by_id(XFRM_MSG_DELSA));
    s.request(a, "flush its protocol", flush_sa(4).flags(5));
    s.request(a, "delete one", one.by_id(XFRM_MSG_DELSA));
    s.request(a, "transport", Sa::comp().spi(0x12).new_sa());
    s.request(a, "v6", Sa::comp().over_v6().mode(1).spi(0x13).new_sa());
    s.send(a, "protocols", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv_spis(a, 65536);
    s.request(
        a,
        "expire the hidden one",
        Message::with(
            XFRM_MSG_EXPIRE,
            &UserExpire {
                state: hidden.info,
                hard: 0,
                pad: [0; 7],
            },
        ),
    );
    s.request(a, "update the hidden one", hidden.upd_sa());
}

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
    dump(s, a);
    s.request(a, "update with nothing", old.upd_sa());
    dump(s, a);
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
    dump(s, a);
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
            dump(s, a);
        }
    }
}

fn udp(kind: u16, port: u16) -> EncapTmpl {
    EncapTmpl {
        kind,
        sport: BeU16::new(port),
        dport: BeU16::new(4500),
        pad: [0; 2],
        oa: Address::ANY,
    }
}

fn update_encap(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for old in [None, Some(udp(2, 4500)), Some(udp(1, 4500))] {
        for new in [
            None,
            Some(udp(2, 4501)),
            Some(udp(1, 4501)),
            Some(udp(2, 4500)),
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
            dump(s, a);
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
    dump(s, a);
    s.request(a, "over another protocol's", Sa::ah().upd_sa());
    s.request(
        a,
        "",
        alloc(&Sa::bare(50).spi(0).info(|i| i.mode = 1), 0x1001, 0x1001),
    );
    s.request(a, "NEWSA over a larval", Sa::esp().spi(0x1001).new_sa());
    s.request(a, "UPDSA, other mode", Sa::esp().spi(0x1001).upd_sa());
    dump(s, a);
}

fn events(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let full = Sa::bare(50)
        .over_v6()
        .mode(1)
        .attr(XFRMA_ALG_CRYPT, algo("aes", &key(16)))
        .attr(XFRMA_ALG_AUTH, algo("sha256", &key(32)))
        .pod(XFRMA_ENCAP, &udp(2, 4500))
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
    dump(s, a);
}
