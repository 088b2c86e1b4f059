//! ICMP errors that packets of SAs meet on their way, and errors about them.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{BeU16, EncapTmpl, UserSaInfo};

use super::craft::*;
use super::road::Road;
use crate::scenario::Scenario;
use crate::session::Session;
use crate::subject::packets::{Link, UdpOptions};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/error_forwarded", forwarded),
    Scenario::new("traffic/error_forwarded_ipv6", forwarded_ipv6),
    Scenario::new("traffic/error_about_udp", about_udp),
    Scenario::new("traffic/error_about_udp_ipv6", about_udp_ipv6),
    Scenario::new("traffic/error_about_udp_without_socket", without_socket),
];

const TUNNEL: u8 = XFRM_MODE_TUNNEL;

/// An error of a router inside, and what it quotes.
fn error(kind: u8, code: u8, about: &[u8]) -> Vec<u8> {
    Ip::new("10.1.0.9", REMOTE).icmp(kind, code, &[&[0; 4][..], about].concat())
}

/// Errors go through no SA of their own, but the packets that they are about do.
fn forwarded(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let about = Ip::new(REMOTE, HOST).udp(2000, 1000, b"question");
    let only_udp = |flags: u8, action: u8| {
        policy(XFRM_POLICY_OUT, HOST, REMOTE)
            .info(move |info| {
                info.sel.proto = IPPROTO_UDP;
                (info.flags, info.action) = (flags, action);
            })
            .tmpls(&[out_template(TUNNEL)])
    };
    let with_flag = only_udp(XFRM_POLICY_ICMP, XFRM_POLICY_ALLOW);
    r.sa("tunnel", &out(TUNNEL));
    r.policy("with the flag", &with_flag);
    r.inject("unreachable", Link::Inside, &error(3, 1, &about));
    r.inject("time exceeded", Link::Inside, &error(11, 0, &about));
    r.inject("parameter problem", Link::Inside, &error(12, 0, &about));
    r.inject("echo", Link::Inside, &error(8, 0, &about));
    r.inject(
        "about a piece of one",
        Link::Inside,
        &error(3, 1, &about[..22]),
    );
    let other = Ip::new(REMOTE, HOST).carry(IPPROTO_TCP, &[0; 20]);
    r.inject("about something else", Link::Inside, &error(3, 1, &other));
    let host_itself = Ip::new(HOST, REMOTE).icmp(3, 3, &[&[0; 4][..], &about].concat());
    r.inject("of the host itself", Link::Inside, &host_itself);
    r.inject(
        "long, DF",
        Link::Inside,
        &error(3, 1, &[&about[..], &data(1430)].concat()),
    );
    r.request("delete", out(TUNNEL).by_id(XFRM_MSG_DELSA));
    r.inject("without an SA", Link::Inside, &error(3, 1, &about));
    r.request(
        "without the flag",
        only_udp(0, XFRM_POLICY_ALLOW).upd_policy(),
    );
    r.inject("unreachable", Link::Inside, &error(3, 1, &about));
    let blocks = only_udp(XFRM_POLICY_ICMP, XFRM_POLICY_BLOCK);
    r.request("that blocks", blocks.upd_policy());
    r.inject("unreachable", Link::Inside, &error(3, 1, &about));
}

fn forwarded_ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("tunnel", &out6(TUNNEL));
    let only_udp = policy(XFRM_POLICY_OUT, HOST6, REMOTE6)
        .info(|info| (info.sel.proto, info.flags) = (IPPROTO_UDP, XFRM_POLICY_ICMP))
        .tmpls(&[template(OWN6, PEER6, IPPROTO_ESP, TUNNEL, 1)]);
    r.policy("with the flag", &only_udp);
    let about = Ip::new(REMOTE6, HOST6).udp(2000, 1000, b"question");
    for kind in [1, 2, 3, 4, 128] {
        let rest = [&[0; 4][..], &about].concat();
        let error = Ip::new("fd01::9", REMOTE6).icmp(kind, 0, &rest);
        r.inject("packet", Link::Inside, &error);
    }
}

fn in_udp() -> EncapTmpl {
    EncapTmpl {
        kind: 2,
        sport: BeU16::new(4500),
        dport: BeU16::new(4500),
        ..EncapTmpl::default()
    }
}

/// What a router outside says of a packet of ours that went in UDP.
fn too_big(own: &str, peer: &str, ports: (u16, u16)) -> Vec<u8> {
    let sealed = esp(OUT_SPI, 1, IPPROTO_UDP, &data(1200));
    let about = Ip::new(own, peer).udp(ports.0, ports.1, &sealed);
    let router = if own == OWN { "10.0.0.9" } else { "fd00::9" };
    let (kind, code, quoted) = match own == OWN {
        true => (3, 4, &about[..28]),
        false => (2, 0, &about[..1000]),
    };
    let mtu = 1280u32.to_be_bytes();
    Ip::new(router, own).icmp(kind, code, &[&mtu, quoted].concat())
}

fn start(r: &mut Road<'_, '_>) -> Vec<u8> {
    r.sa("in UDP", &out(TUNNEL).pod(XFRMA_ENCAP, &in_udp()));
    let wanted = policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]);
    r.policy("tunnel", &wanted);
    let packet = Ip::new(HOST, REMOTE).udp(1, 2, &data(1300));
    r.inject("fits", Link::Inside, &packet);
    packet
}

fn socket(r: &mut Road<'_, '_>, own: &str) {
    r.udp_with(UdpOptions {
        source: Some((ip(own), 4500).into()),
        encap: 2,
        ..UdpOptions::default()
    });
}

fn about_udp(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let packet = start(&mut r);
    socket(&mut r, OWN);
    r.inject(
        "a router says 1280",
        Link::Outside,
        &too_big(OWN, PEER, (4500, 4500)),
    );
    r.inject("no longer fits", Link::Inside, &packet);
    let less = Ip::new(HOST, REMOTE).udp(1, 2, &data(1100));
    r.inject("fits", Link::Inside, &less);
}

fn about_udp_ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let any_family = |info: &mut UserSaInfo| info.flags = XFRM_STATE_AF_UNSPEC;
    r.sa(
        "in UDP",
        &out6(TUNNEL).info(any_family).pod(XFRMA_ENCAP, &in_udp()),
    );
    let wanted = template(OWN6, PEER6, IPPROTO_ESP, TUNNEL, 1);
    let wanted = policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[wanted]);
    r.policy("IPv4 in IPv6", &wanted);
    socket(&mut r, OWN6);
    let packet = Ip::new(HOST, REMOTE).udp(1, 2, &data(1300));
    r.inject("fits", Link::Inside, &packet);
    r.inject(
        "a router says 1280",
        Link::Outside,
        &too_big(OWN6, PEER6, (4500, 4500)),
    );
    r.inject("no longer fits", Link::Inside, &packet);
}

fn without_socket(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let packet = start(&mut r);
    r.inject(
        "a router says 1280",
        Link::Outside,
        &too_big(OWN, PEER, (4500, 4500)),
    );
    r.inject("packet", Link::Inside, &packet);
}
