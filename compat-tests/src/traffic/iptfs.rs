//! IPTFS SAs: what enters their queue and leaves it, what payloads hold, and what counts.
//!
//! Only `7.2-iptfs` has the mode's module; what the other kernels make of these is no use to anyone,
//! but is compared too. Inner packets come from elsewhere: those of sockets have identifications
//! that nobody can foresee. Each has a payload of its own: Linux spoils others where an interface
//! has no link layer header (`docs/divergences.md`), as the links here.

use xfrm_proto::consts::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::{Sa, Scenario};
use crate::session::Session;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/iptfs_out", outbound),
    Scenario::new("traffic/iptfs_out_ipv6", outbound_v6),
    Scenario::new("traffic/iptfs_queue", queue),
    Scenario::new("traffic/iptfs_dont_frag", dont_frag),
    Scenario::new("traffic/iptfs_in", inbound),
    Scenario::new("traffic/iptfs_in_malformed", malformed),
    Scenario::new("traffic/iptfs_in_policy", policies),
];

const IPTFS: u8 = XFRM_MODE_IPTFS;
const AGGFRAG: u8 = 144;

fn sending() -> Sa {
    out(IPTFS).attr(XFRMA_SA_DIR, [XFRM_SA_DIR_OUT])
}

fn receiving() -> Sa {
    inward(IPTFS).attr(XFRMA_SA_DIR, [XFRM_SA_DIR_IN])
}

fn protect(r: &mut Road<'_, '_>, sa: &Sa) {
    r.sa("out", sa);
    let wanted = [out_template(IPTFS)];
    r.policy("local", &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&wanted));
    r.policy(
        "through",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&wanted),
    );
}

fn outbound(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    protect(&mut r, &sending());
    let whole = Ip::new(HOST, REMOTE).fragment(0);
    for inner in [33, 1000, 1453, 1454, 1455, 1456, 1457, 1458, 1459, 1500] {
        r.inject("no DF", Link::Inside, &whole.udp(1, 2, &data(inner - 28)));
    }
    let through = Ip::new(HOST, REMOTE);
    for inner in [100, 1440, 1500] {
        r.inject("DF", Link::Inside, &through.udp(1, 2, &data(inner - 28)));
    }
    let marked = through.tos(0xbb).ttl(3);
    r.inject("DSCP, ECN", Link::Inside, &marked.udp(1, 2, &data(8)));
}

fn outbound_v6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let sa = out6(IPTFS).attr(XFRMA_SA_DIR, [XFRM_SA_DIR_OUT]);
    r.sa("out", &sa);
    let wanted = template(OWN6, PEER6, IPPROTO_ESP, IPTFS, 1);
    r.policy(
        "through",
        &policy(XFRM_POLICY_OUT, HOST6, REMOTE6).tmpls(&[wanted]),
    );
    let through = Ip::new(HOST6, REMOTE6);
    for inner in [100, 1280, 1440, 1500] {
        r.inject(
            "packet",
            Link::Inside,
            &through.udp(1, 2, &data(inner - 48)),
        );
    }
    let marked = through.tos(0xbb).ttl(3);
    r.inject("DSCP, ECN", Link::Inside, &marked.udp(1, 2, &data(8)));
}

fn queue(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    protect(&mut r, &sending().u32(XFRMA_IPTFS_MAX_QSIZE, 500));
    let through = Ip::new(HOST, REMOTE);
    for inner in [499, 500, 501, 476] {
        r.inject(
            "packet",
            Link::Inside,
            &through.udp(1, 2, &data(inner - 28)),
        );
    }
    for tos in [0, 1, 2, 3] {
        let packet = through.tos(tos).udp(1, 2, &data(460));
        r.inject("near the bound", Link::Inside, &packet);
    }
    r.inject("beyond", Link::Inside, &through.udp(1, 2, &data(500)));
}

fn dont_frag(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let sa = sending()
        .attr(XFRMA_IPTFS_DONT_FRAG, [])
        .u32(XFRMA_IPTFS_PKT_SIZE, 500);
    protect(&mut r, &sa);
    r.send(socket, PEER, 2000, &data(469 - 28));
    for inner in [467, 468, 469] {
        let through = Ip::new(HOST, REMOTE);
        r.inject("DF", Link::Inside, &through.udp(1, 2, &data(inner - 28)));
        let whole = Ip::new(HOST, REMOTE).fragment(0);
        r.inject("no DF", Link::Inside, &whole.udp(1, 2, &data(inner - 28)));
    }
}

/// A socket on port 1000, the SA, and policies that let its packets in and through.
fn expect(r: &mut Road<'_, '_>) {
    r.udp(OWN, 1000);
    r.sa("in", &receiving());
    let wanted = [in_template(IPTFS)];
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, "0.0.0.0/0", OWN).tmpls(&wanted),
    );
    r.policy(
        "fwd",
        &policy(XFRM_POLICY_FWD, "0.0.0.0/0", "10.1.0.0/16").tmpls(&wanted),
    );
}

fn payload(seq: u32, offset: u16, blocks: &[&[u8]]) -> Vec<u8> {
    let mut payload = vec![0, 0];
    payload.extend(offset.to_be_bytes());
    payload.extend(blocks.concat());
    Ip::new(PEER, OWN).carry(IPPROTO_ESP, &esp(IN_SPI, seq, AGGFRAG, &payload))
}

fn here(text: &[u8]) -> Vec<u8> {
    Ip::new(PEER, OWN).udp(2000, 1000, text)
}

fn there(bytes: usize) -> Vec<u8> {
    Ip::new(REMOTE, HOST).udp(2, 1, &data(bytes))
}

fn inbound(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    expect(&mut r);
    let (first, second, third) = (here(b"first"), here(b"second"), there(30));
    let all = payload(1, 0, &[&first, &[0; 9]]);
    r.inject("one and padding", Link::Outside, &all);
    r.inject("again", Link::Outside, &all);
    r.inject("number 2", Link::Outside, &payload(2, 0, &[&third]));
    r.inject("padding", Link::Outside, &payload(3, 0, &[&[0; 40]]));
    r.inject("number 5", Link::Outside, &payload(5, 0, &[&second]));
    r.inject("number 4", Link::Outside, &payload(4, 0, &[&first]));
    r.inject("number 9", Link::Outside, &payload(9, 0, &[&first]));
    r.inject("number 10", Link::Outside, &payload(10, 0, &[&second]));
    r.inject("number 6", Link::Outside, &payload(6, 0, &[&third]));
}

fn malformed(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    expect(&mut r);
    let good = here(b"good");
    let carry = |seq, payload: &[u8]| {
        Ip::new(PEER, OWN).carry(IPPROTO_ESP, &esp(IN_SPI, seq, AGGFRAG, payload))
    };
    r.inject("three bytes", Link::Outside, &carry(1, &[0; 3]));
    r.inject("header alone", Link::Outside, &carry(2, &[0; 4]));
    r.inject("kind 2", Link::Outside, &carry(3, &[2, 0, 0, 0]));
    r.inject("flags", Link::Outside, &carry(4, &[0, 1, 0, 0]));
    r.inject("kind 1, short", Link::Outside, &carry(5, &[1; 20]));
    let bad = payload(6, 0, &[&good, &[0x50; 20]]);
    r.inject("good and version 5", Link::Outside, &bad);
    let mut short = good.clone();
    short[2..4].copy_from_slice(&[0, 19]);
    r.inject("length 19", Link::Outside, &payload(7, 0, &[&short]));
    let mut broken = good.clone();
    broken[10] ^= 1;
    r.inject("checksum", Link::Outside, &payload(8, 0, &[&broken]));
    let long = there(600);
    r.inject(
        "a beginning",
        Link::Outside,
        &payload(9, 0, &[&long[..300]]),
    );
    let early = payload(10, 100, &[&long[300..400], &good]);
    r.inject("an end too early", Link::Outside, &early);
    r.inject(
        "an end of nothing",
        Link::Outside,
        &payload(11, 8, &[&[9; 8], &good]),
    );
}

fn policies(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("in", &receiving());
    let (here, there) = (here(b"hello"), there(10));
    r.inject("no policy", Link::Outside, &payload(1, 0, &[&here]));
    let tunnel = [in_template(XFRM_MODE_TUNNEL)];
    let wanted = policy(XFRM_POLICY_IN, "0.0.0.0/0", OWN).tmpls(&tunnel);
    r.policy("in, a tunnel", &wanted);
    r.inject("another mode", Link::Outside, &payload(2, 0, &[&here]));
    let fwd = policy(XFRM_POLICY_FWD, "0.0.0.0/0", "10.1.0.0/16");
    r.policy("fwd", &fwd.tmpls(&[in_template(IPTFS)]));
    r.inject("through", Link::Outside, &payload(3, 0, &[&there]));
}
