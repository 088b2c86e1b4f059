//! Packets that are too large, fragments, and what headers inherit.

use xfrm_proto::consts::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::Scenario;
use crate::session::Session;
use crate::subject::packets::{Link, UdpOptions};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/size_local", local),
    Scenario::new("traffic/size_local_ipv6", local_ipv6),
    Scenario::new("traffic/size_forwarded", forwarded),
    Scenario::new("traffic/size_forwarded_ipv6", forwarded_ipv6),
    Scenario::new("traffic/size_transport", transport),
    Scenario::new("traffic/size_transport_cut", transport_cut),
    Scenario::new("traffic/size_fragments_through", fragments_through),
    Scenario::new("traffic/size_outer_too_big", outer_too_big),
    Scenario::new("traffic/header_dscp_and_ecn", dscp_and_ecn),
    Scenario::new("traffic/header_df", df),
    Scenario::new("traffic/tfc", tfc),
];

const TUNNEL: u8 = XFRM_MODE_TUNNEL;
const TRANSPORT: u8 = XFRM_MODE_TRANSPORT;

/// Inner bytes that just fit a tunnel of NULL and HMAC-SHA-1-96 on a link of 1,500 bytes.
const FITS: usize = 1458;

fn never_fragmenting(port: u16) -> UdpOptions {
    UdpOptions {
        source: Some((ip(OWN), port).into()),
        dont_fragment: true,
        ..UdpOptions::default()
    }
}

fn local(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp_with(never_fragmenting(1000));
    r.sa("tunnel", &out(TUNNEL));
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[out_template(TUNNEL)]),
    );
    for inner in [FITS - 2, FITS - 1, FITS, FITS + 1, FITS + 2, 1500, 1501] {
        r.send(socket, PEER, 2000, &data(inner - 28));
    }
}

/// A socket cuts by the MTU of its SAs, and each piece passes them.
fn local_ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let cut = r.udp(OWN6, 1000);
    let never_cut = r.udp_with(UdpOptions {
        source: Some((ip(OWN6), 1001).into()),
        dont_fragment: true,
        ..UdpOptions::default()
    });
    for (mode, label) in [(TUNNEL, "tunnel"), (TRANSPORT, "transport")] {
        let sa = out6(mode);
        r.sa(label, &sa);
        let wanted = template(OWN6, PEER6, IPPROTO_ESP, mode, 1);
        let wanted = policy(XFRM_POLICY_OUT, OWN6, PEER6).tmpls(&[wanted]);
        r.policy(label, &wanted);
        for bytes in [1437, 1438, 1439, 3000] {
            r.send(cut, PEER6, 2000, &data(bytes - 48));
        }
        for bytes in [1438, 1439] {
            r.send(never_cut, PEER6, 2000, &data(bytes - 48));
        }
        r.request("delete", sa.by_id(XFRM_MSG_DELSA));
        r.request("delete", wanted.by_selector(XFRM_MSG_DELPOLICY));
    }
}

fn forwarded(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("tunnel", &out(TUNNEL));
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    let ip = Ip::new(HOST, REMOTE);
    for inner in [FITS - 1, FITS, FITS + 1, FITS + 2, 1500] {
        r.inject("DF", Link::Inside, &ip.udp(1, 2, &data(inner - 28)));
    }
    for inner in [FITS, FITS + 4, 1500] {
        r.inject(
            "no DF",
            Link::Inside,
            &ip.fragment(0).udp(1, 2, &data(inner - 28)),
        );
    }
}

fn forwarded_ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("tunnel", &out6(TUNNEL));
    let wanted = template(OWN6, PEER6, IPPROTO_ESP, TUNNEL, 1);
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, HOST6, REMOTE6).tmpls(&[wanted]),
    );
    let ip = Ip::new(HOST6, REMOTE6);
    for inner in [1280, 1420, 1437, 1438, 1439, 1440, 1500] {
        r.inject("packet", Link::Inside, &ip.udp(1, 2, &data(inner - 48)));
    }
}

fn transport(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let strict = r.udp_with(never_fragmenting(1000));
    r.sa("transport", &out(TRANSPORT));
    r.policy(
        "transport",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[out_template(TRANSPORT)]),
    );
    for bytes in [1450, 1462, 1478, 1479, 1500] {
        r.send(strict, PEER, 2000, &data(bytes - 28));
    }
}

/// The socket cuts a datagram by the MTU of the bundle, ESP seals it whole, and what leaves is
/// cut where the socket had cut it.
fn transport_cut(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1001);
    r.sa("transport", &out(TRANSPORT));
    let wanted = out_template(TRANSPORT);
    r.policy(
        "transport",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[wanted]),
    );
    r.send(socket, PEER, 2000, &data(1472));
    r.send(socket, PEER, 2000, &data(2000));
}

fn fragments_through(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("tunnel", &out(TUNNEL));
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    let ip = Ip::new(HOST, REMOTE);
    let whole = ip.udp(1, 2, &data(100));
    r.inject(
        "first",
        Link::Inside,
        &ip.fragment(0x2000).carry(IPPROTO_UDP, &whole[20..84]),
    );
    r.inject(
        "last",
        Link::Inside,
        &ip.fragment(8).carry(IPPROTO_UDP, &whole[84..]),
    );
}

fn outer_too_big(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("tunnel", &out(TUNNEL));
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    let ip = Ip::new(HOST, REMOTE);
    r.inject("fits", Link::Inside, &ip.udp(1, 2, &data(1400)));
    let outer = Ip::new(OWN, PEER).carry(
        IPPROTO_ESP,
        &esp(OUT_SPI, 1, IPPROTO_IPIP, &ip.udp(1, 2, &data(1400))),
    );
    let too_big = [&[0, 0, 0x04, 0xb0][..], &outer[..28]].concat();
    r.inject(
        "a router says 1200",
        Link::Outside,
        &Ip::new("10.0.0.9", OWN).icmp(3, 4, &too_big),
    );
    r.inject("no longer fits", Link::Inside, &ip.udp(1, 2, &data(1400)));
    r.inject("fits", Link::Inside, &ip.udp(1, 2, &data(1100)));
    let unknown = [
        &[0, 0, 0x04, 0xb0][..],
        &Ip::new(OWN, PEER).carry(IPPROTO_ESP, &esp(0x9999, 1, 4, &[]))[..28],
    ]
    .concat();
    r.inject(
        "about no SA of ours",
        Link::Outside,
        &Ip::new("10.0.0.9", OWN).icmp(3, 4, &unknown),
    );
}

fn dscp_and_ecn(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    let kinds: [(&str, u8, u32); 4] = [
        ("usual", 0, 0),
        ("NOECN", XFRM_STATE_NOECN, 0),
        ("DONT_ENCAP_DSCP", 0, 1),
        ("both", XFRM_STATE_NOECN, 1),
    ];
    for (nth, (label, flags, extra)) in (0..).zip(kinds) {
        let sa = out(TUNNEL)
            .spi(0x1001 + nth)
            .info(|info| info.flags = flags);
        let sa = if extra == 0 {
            sa
        } else {
            sa.u32(XFRMA_SA_EXTRA_FLAGS, extra)
        };
        r.sa(label, &sa);
        for tos in [0, 0xb8, 0xb9, 0xba, 0xbb] {
            r.inject(
                "packet",
                Link::Inside,
                &Ip::new(HOST, REMOTE).tos(tos).udp(1, 2, b"x"),
            );
        }
        r.request("delete", sa.by_id(XFRM_MSG_DELSA));
    }
}

fn df(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let ip = Ip::new(HOST, REMOTE);
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    for (label, flags) in [("usual", 0), ("NOPMTUDISC", XFRM_STATE_NOPMTUDISC)] {
        let sa = out(TUNNEL).info(|info| info.flags = flags);
        r.sa(label, &sa);
        r.inject("DF", Link::Inside, &ip.udp(1, 2, b"x"));
        r.inject("no DF", Link::Inside, &ip.fragment(0).udp(1, 2, b"x"));
        r.inject(
            "no DF, long",
            Link::Inside,
            &ip.fragment(0).udp(1, 2, &data(1472)),
        );
        r.inject("DF, long", Link::Inside, &ip.udp(1, 2, &data(1472)));
        r.request("delete", sa.by_id(XFRM_MSG_DELSA));
    }
}

fn tfc(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.sa("TFC", &out(TUNNEL).u32(XFRMA_TFCPAD, 200));
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[out_template(TUNNEL)]),
    );
    r.send(socket, PEER, 2000, b"padded");
    r.send(socket, PEER, 2000, &data(300));
    r.udp(OWN, 1001);
    r.sa("in", &inward(TUNNEL));
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, PEER, OWN).tmpls(&[in_template(TUNNEL)]),
    );
    let padded = [Ip::new(PEER, OWN).udp(2000, 1001, b"padded"), vec![0; 100]].concat();
    r.inject("padded", Link::Outside, &tunnelled(IN_SPI, 1, &padded));
}
