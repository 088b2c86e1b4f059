//! The SAD: what identifies an SA, what finds it, what deletes it, what an
//! update changes.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

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
];

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
        dump_sad(s, a);
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
    dump_sad(s, a);
    s.request(a, "flush", flush_sa(50));
    dump_sad(s, a);
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
    dump_sad(s, a);
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
    dump_sad(s, a);
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
    dump_sad(s, a);
    s.request(a, "a larval with the seq of an SA", larval(77, 3));
    dump_sad(s, a);
}

fn ipcomp_tunnel(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let one = Sa::comp().mode(1).spi(0x10);
    let two = one.clone().spi(0x11);
    s.request(a, "one", one.new_sa());
    dump_sad(s, a);
    s.request(a, "two", two.new_sa());
    dump_sad(s, a);
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
