//! Dumps: chunks, staleness, errors, filters.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dump_chunks", dump_chunks),
    Scenario::new("dump_is_stale_by_one_chunk", dump_is_stale_by_one_chunk),
    Scenario::new("dump_while_dumping", dump_while_dumping),
    Scenario::new("dump_truncated_by_reader", dump_truncated_by_reader),
    Scenario::new("dump_errors", dump_errors),
    Scenario::new("dump_flags", dump_flags),
    Scenario::new("dump_filters", dump_filters),
    Scenario::new("dump_while_changing", dump_while_changing),
];

fn fill_sad(s: &mut Session<'_>, a: crate::subject::Socket, count: u32) {
    let messages = (0..count).map(|n| Sa::esp().spi(0x2000 + n).new_sa().flags(NLM_F_REQUEST));
    for chunk in messages.collect::<Vec<_>>().chunks(20) {
        s.datagram(a, "many", chunk.to_vec());
    }
}

fn fill_spd(s: &mut Session<'_>, a: crate::subject::Socket, count: u32) {
    let policy = |n: u32| {
        let policy = Policy::new((n % 3) as u8).info(|info| info.sel.sport = BeU16::new(n as u16));
        policy
            .tmpls(&vec![tmpl(1, n); n as usize % 7])
            .new_policy()
            .flags(NLM_F_REQUEST)
    };
    for chunk in (0..count).map(policy).collect::<Vec<_>>().chunks(20) {
        s.datagram(a, "many", chunk.to_vec());
    }
}

fn dump_chunks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    fill_sad(s, a, 90);
    fill_spd(s, a, 60);
    for (name, buffer) in [
        ("small", 4096),
        ("middle", 8192),
        ("large", 16384),
        ("huge", 32768),
        ("more", 65536),
    ] {
        let reader = s.open(name, Open::new());
        s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
        s.recv_lengths(reader, buffer);
        s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETPOLICY)]);
        s.recv_lengths(reader, buffer);
        s.send(
            reader,
            "dump into 4096 after that",
            vec![Message::dump(XFRM_MSG_GETSA)],
        );
        s.recv_lengths(reader, 4096);
    }
}

fn dump_is_stale_by_one_chunk(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let reader = s.open("reader", Open::new());
    fill_sad(s, a, 30);
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv(reader, 4096);
    s.send(a, "all gone", vec![flush_sa(0)]);
    s.send(a, "and a new one", vec![Sa::esp().spi(0x3000).new_sa()]);
    s.recv_lengths(reader, 4096);
    s.drain(a);
    fill_spd(s, a, 30);
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETPOLICY)]);
    s.send(a, "all gone", vec![flush_policy()]);
    s.recv_lengths(reader, 4096);
}

fn dump_while_changing(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    fill_sad(s, a, 30);
    for (label, victim) in [
        ("deletes what comes next", 0x2000 + 16),
        ("deletes what has been", 0x2000 + 29),
        ("deletes the oldest", 0x2000),
    ] {
        let reader = s.open("reader", Open::new());
        s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
        s.recv(reader, 4096);
        s.request_quietly(a, label, Sa::esp().spi(victim).by_id(XFRM_MSG_DELSA));
        s.request_quietly(a, "adds one", Sa::esp().spi(victim + 0x1000).new_sa());
        s.recv_spis(reader, 4096);
        s.close(reader);
    }
    let reader = s.open("reader", Open::new());
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv(reader, 4096);
    s.close(reader);
    let reader = s.open("next", Open::new());
    s.send(
        reader,
        "dump of another socket",
        vec![Message::dump(XFRM_MSG_GETSA)],
    );
    s.recv_spis(reader, 32768);
    let cursor = Sa::esp().spi(0x2000 + 12);
    s.send(reader, "dump again", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv(reader, 32768);
    s.request_quietly(a, "deletes", cursor.by_id(XFRM_MSG_DELSA));
    s.recv_spis(reader, 32768);
}

fn dump_while_dumping(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    fill_sad(s, a, 20);
    let reader = s.open("reader", Open::new());
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.send(reader, "dump again", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.send(
        reader,
        "dump the other",
        vec![Message::dump(XFRM_MSG_GETPOLICY)],
    );
    s.send(
        reader,
        "get one",
        vec![Sa::esp().spi(0x2003).by_id(XFRM_MSG_GETSA)],
    );
    s.send(
        reader,
        "dump again, no ack wanted, several",
        vec![Message::dump(XFRM_MSG_GETSA), Message::dump(XFRM_MSG_GETSA)],
    );
    s.recv_lengths(reader, 8192);
    s.request(
        reader,
        "and when it is over",
        Message::dump(XFRM_MSG_GETPOLICY),
    );
    s.send(
        reader,
        "two of an empty table",
        vec![
            Message::dump(XFRM_MSG_GETPOLICY),
            Message::dump(XFRM_MSG_GETPOLICY),
        ],
    );
    s.recv_lengths(reader, 8192);
}

fn dump_truncated_by_reader(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    fill_sad(s, a, 12);
    let reader = s.open("reader", Open::new());
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv_lengths(reader, 100);
    s.send(reader, "dump", vec![Message::dump(XFRM_MSG_GETSA)]);
    s.recv_lengths(reader, 4000);
}

fn dump_errors(s: &mut Session<'_>) {
    for (name, cap, ext) in ACKS {
        let a = s.open(name, Open::new().acks(cap, ext));
        let dump = || Message::dump(XFRM_MSG_GETSA);
        let filter = |splen, dplen| AddressFilter {
            family: AF_INET,
            splen,
            dplen,
            ..AddressFilter::default()
        };
        for (splen, dplen) in [
            (32, 32),
            (33, 0),
            (0, 33),
            (128, 128),
            (129, 0),
            (0, 129),
            (255, 255),
        ] {
            s.request(
                a,
                &format!("{splen} {dplen}"),
                dump().pod(XFRMA_ADDRESS_FILTER, &filter(splen, dplen)),
            );
        }
        s.request(
            a,
            "short filter",
            dump().attr(XFRMA_ADDRESS_FILTER, [0; 35]),
        );
        s.request(a, "short proto", dump().attr(XFRMA_PROTO, []));
        s.request(a, "misplaced attribute", dump().attr(XFRMA_SA_DIR, [1]));
        s.request(a, "leftover", dump().raw(&[1, 2, 3]));
        s.request(
            a,
            "leading body",
            dump().put(&[0; 24]).attr(XFRMA_PROTO, [50]),
        );
        s.request(
            a,
            "policy dump ignores attributes",
            Message::dump(XFRM_MSG_GETPOLICY).attr(XFRMA_IF_ID, [1]),
        );
        s.request(
            a,
            "policy dump ignores its body",
            Message::dump(XFRM_MSG_GETPOLICY).raw(&[255; 9]),
        );
    }
}

fn dump_flags(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.request(a, "", Sa::esp().new_sa());
    s.request(a, "", Policy::new(1).new_policy());
    for flags in [0, 0x100, 0x200, 0x300, 0x700, 0x104, 0x308, 0x10] {
        let flags = NLM_F_REQUEST | flags;
        let label = format!("flags {flags:#x}");
        s.request(a, &label, Message::new(XFRM_MSG_GETSA).flags(flags));
        s.request(a, &label, Message::new(XFRM_MSG_GETPOLICY).flags(flags));
        s.request(a, &label, Sa::esp().by_id(XFRM_MSG_GETSA).flags(flags));
        s.request(
            a,
            &label,
            Policy::new(1).by_selector(XFRM_MSG_GETPOLICY).flags(flags),
        );
        s.request(
            a,
            &label,
            Message::new(XFRM_MSG_GETSADINFO).put(&[0; 4]).flags(flags),
        );
        s.request(
            a,
            &label,
            Message::new(XFRM_MSG_GETAE).put(&[0; 48]).flags(flags),
        );
    }
    s.request(
        a,
        "not a request",
        Message::dump(XFRM_MSG_GETSA).flags(NLM_F_DUMP),
    );
}

fn dump_filters(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let mut spi = 0x100;
    for base in [
        Sa::esp(),
        Sa::ah(),
        Sa::comp(),
        Sa::bare(IPPROTO_DSTOPTS).attr(XFRMA_COADDR, [7; 16]),
    ] {
        for last in [1, 9, 130] {
            spi += 1;
            let routed = base.info.id.proto == IPPROTO_DSTOPTS;
            let v4 = base.clone().info(|info| {
                info.id.spi = BeU32::new(if routed { 0 } else { spi });
                info.saddr = Address::v4(10, last, 0, 1);
                info.id.daddr = Address::v4(10, 200, last, 2);
            });
            s.request(a, "", v4.new_sa());
            let over_v6 = base.clone().over_v6().info(|info| {
                info.id.spi = BeU32::new(if routed { 0 } else { spi });
                info.mode = if routed {
                    XFRM_MODE_ROUTEOPTIMIZATION
                } else {
                    0
                };
                info.saddr = v6(last);
                info.id.daddr = v6(last + 1);
            });
            s.request(a, "", over_v6.new_sa());
        }
    }
    for proto in [0, 1, 50, 51, 60, 108, 255, 4] {
        s.send(
            a,
            &format!("proto {proto}"),
            vec![Message::dump(XFRM_MSG_GETSA).attr(XFRMA_PROTO, [proto])],
        );
        s.recv_spis(a, 65536);
    }
    let filters = [
        (AF_INET, Address::v4(10, 9, 0, 1), 32, Address::ANY, 0),
        (AF_INET, Address::v4(10, 9, 0, 1), 16, Address::ANY, 0),
        (AF_INET, Address::v4(10, 8, 0, 1), 15, Address::ANY, 0),
        (AF_INET, Address::ANY, 0, Address::v4(10, 200, 130, 99), 24),
        (AF_INET, Address::ANY, 0, Address::ANY, 0),
        (AF_INET6, Address::ANY, 0, Address::ANY, 0),
        (AF_INET6, v6(9), 128, Address::ANY, 0),
        (AF_INET6, v6(8), 126, v6(8), 125),
        (AF_INET6, v6(9), 128, Address::ANY, 128),
        (0, Address::ANY, 0, Address::ANY, 0),
        (0, Address::v4(10, 9, 0, 1), 32, Address::ANY, 0),
        (0, v6(9), 128, Address::ANY, 0),
        (7, Address::ANY, 0, Address::ANY, 0),
    ];
    for (family, saddr, splen, daddr, dplen) in filters {
        let filter = AddressFilter {
            saddr,
            daddr,
            family,
            splen,
            dplen,
        };
        let dump = Message::dump(XFRM_MSG_GETSA).pod(XFRMA_ADDRESS_FILTER, &filter);
        s.send(a, &format!("{family} {splen} {dplen}"), vec![dump.clone()]);
        s.recv_spis(a, 65536);
        s.send(
            a,
            &format!("{family} {splen} {dplen} AH"),
            vec![dump.attr(XFRMA_PROTO, [51])],
        );
        s.recv_spis(a, 65536);
    }
}
