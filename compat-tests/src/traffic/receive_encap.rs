//! ESP in UDP that arrives: encapsulation that does not fit, and NATs that change ports.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::craft::*;
use super::road::Road;
use crate::scenario::{Sa, Scenario};
use crate::session::Session;
use crate::subject::UdpSocket;
use crate::subject::packets::{Link, UdpOptions};

use super::receive::{TUNNEL, inner, start};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/in_encap_mismatch", encap_mismatch),
    Scenario::new("traffic/in_nat_mapping", mapping),
    Scenario::sleeping("traffic/in_nat_mapping_rate", mapping_rate),
];

fn natted(port: u16) -> Sa {
    let encap = EncapTmpl {
        kind: 2,
        sport: BeU16::new(port),
        dport: BeU16::new(4500),
        ..EncapTmpl::default()
    };
    inward(TUNNEL).pod(XFRMA_ENCAP, &encap)
}

/// The socket of an IKE daemon: encapsulated packets come to it whatever the policies say.
fn encap_socket(r: &mut Road<'_, '_>) -> UdpSocket {
    let socket = r.udp_with(UdpOptions {
        source: Some((ip(OWN), 4500).into()),
        encap: 2,
        ..UdpOptions::default()
    });
    bypass(r, socket);
    socket
}

fn bypass(r: &mut Road<'_, '_>, socket: UdpSocket) {
    let bypass = policy(XFRM_POLICY_IN, "0.0.0.0/0", "0.0.0.0/0");
    r.socket_policy(socket, "bypass", Some(bypass.info.as_bytes()));
}

fn encap_mismatch(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &natted(4500));
    let socket = encap_socket(&mut r);
    r.socket_policy(socket, "no bypass", None);
    r.inject(
        "in UDP, refused as such",
        Link::Outside,
        &encapsulated(4500, 4500, IN_SPI, 1, &inner()),
    );
    bypass(&mut r, socket);
    r.inject(
        "in UDP",
        Link::Outside,
        &encapsulated(4500, 4500, IN_SPI, 1, &inner()),
    );
    r.inject("bare", Link::Outside, &tunnelled(IN_SPI, 2, &inner()));
    r.sa("without encapsulation", &inward(TUNNEL).spi(0x2002));
    r.inject(
        "in UDP",
        Link::Outside,
        &encapsulated(4500, 4500, 0x2002, 1, &inner()),
    );
    r.inject("bare", Link::Outside, &tunnelled(0x2002, 1, &inner()));
    r.inject(
        "keepalive",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(4500, 4500, &[0xff]),
    );
    r.inject(
        "IKE",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(4500, 4500, &[0, 0, 0, 0, 1, 2, 3, 4, 5]),
    );
    r.inject(
        "short",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(4500, 4500, &[0, 0, 0x20, 1, 0, 0, 0]),
    );
    r.inject(
        "just the header",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(4500, 4500, &[0, 0, 0x20, 1, 0, 0, 0, 1, 2]),
    );
    r.inject(
        "unknown SPI",
        Link::Outside,
        &encapsulated(4500, 4500, 0x9999, 1, &inner()),
    );
}

fn mapping(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &natted(4500));
    encap_socket(&mut r);
    r.inject(
        "usual port",
        Link::Outside,
        &encapsulated(4500, 4500, IN_SPI, 1, &inner()),
    );
    r.inject(
        "other port",
        Link::Outside,
        &encapsulated(5500, 4500, IN_SPI, 2, &inner()),
    );
    r.inject(
        "other port",
        Link::Outside,
        &encapsulated(5500, 4500, IN_SPI, 3, &inner()),
    );
    let esp = esp(IN_SPI, 4, IPPROTO_IPIP, &inner());
    let moved = Ip::new("10.0.0.9", OWN).udp(4500, 4500, &esp);
    r.inject("other address", Link::Outside, &moved);
    let mut spoilt = super::craft::esp(IN_SPI, 5, IPPROTO_IPIP, &inner());
    *spoilt.last_mut().unwrap() ^= 1;
    let spoilt = Ip::new(PEER, OWN).udp(5500, 4500, &spoilt);
    r.inject("other port, bad ICV", Link::Outside, &spoilt);
    r.request("the new port", natted(5500).upd_sa());
    r.inject(
        "new port",
        Link::Outside,
        &encapsulated(5500, 4500, IN_SPI, 6, &inner()),
    );
}

fn mapping_rate(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &natted(4500).u32(XFRMA_MTIMER_THRESH, 2));
    encap_socket(&mut r);
    let from = |r: &mut Road<'_, '_>, port, seq| {
        r.inject(
            "packet",
            Link::Outside,
            &encapsulated(port, 4500, IN_SPI, seq, &inner()),
        );
    };
    from(&mut r, 5500, 1);
    from(&mut r, 5500, 2);
    from(&mut r, 5600, 3);
    from(&mut r, 5500, 4);
    r.sleep_until(1500);
    from(&mut r, 5500, 5);
    r.sleep_until(4800);
    from(&mut r, 5500, 6);
    from(&mut r, 4500, 7);
    from(&mut r, 5500, 8);
}
