//! Packets for which there is no SA yet.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::Scenario;
use crate::scenario::build::{Policy, alloc};
use crate::session::Session;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/acquire_once", once),
    Scenario::sleeping("traffic/acquire_again_after_expiry", again),
    Scenario::new("traffic/acquire_without_listener", no_listener),
    Scenario::new("traffic/acquire_answered", answered),
    Scenario::new("traffic/acquire_transport", transport),
    Scenario::new("traffic/acquire_ipv6", ipv6),
    Scenario::new("traffic/acquire_of_bundle", bundle),
    Scenario::new("traffic/acquire_with_mark_and_type", mark_and_type),
    Scenario::sleeping("traffic/hold_and_release", hold),
    Scenario::sleeping("traffic/hold_overflows", hold_overflows),
    Scenario::sleeping("traffic/hold_policy_deleted", hold_policy_deleted),
];

const TUNNEL: u8 = XFRM_MODE_TUNNEL;

fn protected() -> Policy {
    policy(XFRM_POLICY_OUT, OWN, "10.0.0.0/24").tmpls(&[out_template(TUNNEL)])
}

fn once(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let (first, second) = (r.udp(OWN, 1000), r.udp(OWN, 1001));
    r.policy("tunnel", &protected());
    r.send(first, PEER, 2000, b"asks");
    r.send(first, PEER, 2000, b"waits");
    r.send(second, PEER, 2001, b"another flow waits too");
    r.send(second, "10.0.0.7", 2001, b"another destination too");
    r.policy(
        "forwarded",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    r.inject(
        "through",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"waits"),
    );
}

fn again(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.set_sysctl("xfrm_acq_expires", 1);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected());
    r.send(socket, PEER, 2000, b"asks");
    r.sleep_until(500);
    r.send(socket, PEER, 2000, b"waits");
    r.sleep_until(2500);
    r.send(socket, PEER, 2000, b"asks again");
    r.sleep_until(5000);
}

fn no_listener(s: &mut Session<'_>) {
    let mut r = Road::without_listener(s);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected());
    r.send(socket, PEER, 2000, b"nobody to ask");
    r.send(socket, PEER, 2000, b"nobody to ask");
    r.inject(
        "forwarded",
        Link::Inside,
        &Ip::new(HOST, PEER).udp(1, 2, b"plain"),
    );
}

fn answered(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected());
    r.send(socket, PEER, 2000, b"asks");
    r.sa("the answer", &out(TUNNEL));
    r.send(socket, PEER, 2000, b"protected");
    r.request("delete", out(TUNNEL).by_id(XFRM_MSG_DELSA));
    r.send(socket, PEER, 2000, b"asks");
    let larval = out(TUNNEL).spi(0x1008);
    r.request("the larval gets an SPI", alloc(&larval, 0x1008, 0x1008));
    r.send(socket, PEER, 2000, b"waits");
    r.request("and keys", larval.upd_sa());
    r.send(socket, PEER, 2000, b"protected");
}

fn transport(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let wanted = template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, XFRM_MODE_TRANSPORT, 1);
    r.policy(
        "transport",
        &policy(XFRM_POLICY_OUT, OWN, "10.0.0.0/24").tmpls(&[wanted]),
    );
    r.send(socket, PEER, 2000, b"asks");
    r.send(socket, "10.0.0.7", 2000, b"asks for another destination");
    r.send(socket, PEER, 2001, b"waits");
}

fn ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN6, 1000);
    let wanted = template(OWN6, PEER6, IPPROTO_ESP, TUNNEL, 1);
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, OWN6, PEER6).tmpls(&[wanted]),
    );
    r.send(socket, PEER6, 2000, b"asks");
    r.send(socket, PEER6, 2000, b"waits");
}

fn bundle(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let templates = [
        out_template(TUNNEL),
        template("0.0.0.0", "0.0.0.0", IPPROTO_AH, XFRM_MODE_TRANSPORT, 3),
    ];
    r.policy(
        "ESP in AH",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&templates),
    );
    r.send(socket, PEER, 2000, b"asks for the first");
    r.sa("ESP", &out(TUNNEL));
    r.send(socket, PEER, 2000, b"asks for the second");
    r.send(socket, PEER, 2000, b"waits");
}

fn mark_and_type(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp_with(crate::subject::packets::UdpOptions {
        source: Some((ip(OWN), 1000).into()),
        mark: 0x25,
        ..Default::default()
    });
    let marked = protected().pod(XFRMA_MARK, &Mark { v: 5, m: 0xf });
    r.policy("marked, sub", &marked.kind(1));
    r.send(socket, PEER, 2000, b"asks");
}

fn hold(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.set_sysctl("xfrm_larval_drop", 0);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected());
    r.send(socket, PEER, 2000, b"one");
    r.send(socket, PEER, 2000, b"two");
    r.send(socket, "10.0.0.7", 2000, b"three");
    r.sa("the answer", &out(TUNNEL));
    r.sleep_until(1000);
    r.send(socket, PEER, 2000, b"four");
    r.policy(
        "forwarded",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[template(
            OWN,
            PEER,
            IPPROTO_ESP,
            TUNNEL,
            8,
        )]),
    );
    r.inject(
        "through",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"held"),
    );
    r.sa("the answer", &sa(OWN, PEER, 0x1008, TUNNEL, 8));
    r.sleep_until(2000);
}

fn hold_overflows(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.set_sysctl("xfrm_larval_drop", 0);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected());
    for nth in 0..104u8 {
        r.send_quietly(socket, PEER, 2000, &[nth]);
    }
    r.sa(
        "the answer, without aevents",
        &out(TUNNEL).u32(XFRMA_REPLAY_THRESH, 0),
    );
    r.sleep_until(5000);
}

fn hold_policy_deleted(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.set_sysctl("xfrm_larval_drop", 0);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected());
    r.send(socket, PEER, 2000, b"held");
    r.request("delete", protected().by_selector(XFRM_MSG_DELPOLICY));
    r.sleep_until(800);
    r.send(socket, PEER, 2000, b"plain");
}
