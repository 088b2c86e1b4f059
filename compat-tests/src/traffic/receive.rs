//! Protected packets that arrive, and every way in which that can end.

use xfrm_proto::consts::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::build::alloc;
use crate::scenario::{Sa, Scenario};
use crate::session::Session;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/in_tunnel", tunnel),
    Scenario::new("traffic/in_transport", transport),
    Scenario::new("traffic/in_ipv6", ipv6),
    Scenario::new("traffic/in_families_mixed", families_mixed),
    Scenario::new("traffic/in_short", short),
    Scenario::new("traffic/in_unknown_spi", unknown_spi),
    Scenario::new("traffic/in_bad", bad),
    Scenario::new("traffic/in_states", states),
    Scenario::new("traffic/in_direction", direction),
    Scenario::new("traffic/in_mode_mismatch", mode_mismatch),
    Scenario::new("traffic/in_nested", nested),
    Scenario::new("traffic/in_depth", depth),
    Scenario::new("traffic/in_ipcomp", comp),
];

pub(super) const TUNNEL: u8 = XFRM_MODE_TUNNEL;
pub(super) const TRANSPORT: u8 = XFRM_MODE_TRANSPORT;

/// A socket on port 1000, the SA, and a policy that lets its packets in and through.
pub(super) fn start(r: &mut Road<'_, '_>, sa: &Sa) {
    r.udp(OWN, 1000);
    r.sa("in", sa);
    let template = in_template(sa.info.mode);
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, "0.0.0.0/0", OWN).tmpls(&[template]),
    );
    r.policy(
        "fwd",
        &policy(XFRM_POLICY_FWD, "0.0.0.0/0", "10.1.0.0/16").tmpls(&[template]),
    );
}

pub(super) fn inner() -> Vec<u8> {
    Ip::new(PEER, OWN).udp(2000, 1000, b"hello")
}

fn tunnel(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL));
    r.inject(
        "to the router",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &inner()),
    );
    let through = Ip::new(REMOTE, HOST).udp(2000, 1000, b"hello");
    r.inject("through it", Link::Outside, &tunnelled(IN_SPI, 2, &through));
    let ending = Ip::new(REMOTE, HOST).ttl(1).udp(2000, 1000, b"hello");
    r.inject("TTL ends", Link::Outside, &tunnelled(IN_SPI, 3, &ending));
    r.inject("from inside", Link::Inside, &tunnelled(IN_SPI, 4, &inner()));
    let elsewhere = Ip::new(REMOTE, "10.0.0.9").udp(2000, 1000, b"hello");
    r.inject(
        "out again",
        Link::Outside,
        &tunnelled(IN_SPI, 5, &elsewhere),
    );
}

fn transport(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TRANSPORT));
    let outer = Ip::new(PEER, OWN);
    r.inject(
        "packet",
        Link::Outside,
        &transported(&outer, IN_SPI, 1, &inner()),
    );
    r.inject(
        "from another",
        Link::Outside,
        &transported(&Ip::new("10.0.0.9", OWN), IN_SPI, 2, &inner()),
    );
    let ping = outer.icmp(8, 0, b"\0\x01\0\x01ping");
    r.inject(
        "ping",
        Link::Outside,
        &transported(&outer, IN_SPI, 3, &ping),
    );
    let nobody = outer.udp(2000, 999, b"nobody there");
    r.inject(
        "closed port",
        Link::Outside,
        &transported(&outer, IN_SPI, 4, &nobody),
    );
}

fn ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN6, 1000);
    r.sa("tunnel", &inward6(TUNNEL));
    r.sa("transport", &sa(PEER6, OWN6, 0x2002, TRANSPORT, 3));
    let inner = Ip::new(PEER6, OWN6).udp(2000, 1000, b"hello");
    r.inject(
        "tunnel without policy",
        Link::Outside,
        &tunnelled6(IN_SPI, 1, &inner),
    );
    let wants = template(PEER6, OWN6, IPPROTO_ESP, TUNNEL, 2);
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, "::/0", "::/0").tmpls(&[wants]),
    );
    r.policy(
        "fwd",
        &policy(XFRM_POLICY_FWD, "::/0", "::/0").tmpls(&[wants]),
    );
    r.inject("tunnel", Link::Outside, &tunnelled6(IN_SPI, 2, &inner));
    let through = Ip::new(REMOTE6, HOST6).udp(2000, 1000, b"hello");
    r.inject("through", Link::Outside, &tunnelled6(IN_SPI, 3, &through));
    let transport = transported(&Ip::new(PEER6, OWN6), 0x2002, 1, &inner);
    r.inject(
        "transport meets the tunnel's policy",
        Link::Outside,
        &transport,
    );
    r.inject("unknown", Link::Outside, &tunnelled6(0x9999, 1, &inner));
    r.inject(
        "short",
        Link::Outside,
        &Ip::new(PEER6, OWN6).carry(IPPROTO_ESP, &[0, 0, 0x20, 1, 0, 0, 0]),
    );
}

fn families_mixed(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.udp(OWN6, 1000);
    let any = |sa: Sa| sa.info(|info| info.flags = XFRM_STATE_AF_UNSPEC);
    r.sa("over IPv4", &any(inward(TUNNEL)));
    r.sa("over IPv6", &any(sa(PEER6, OWN6, 0x2002, TUNNEL, 3)));
    r.sa("over IPv4, IPv4 alone", &sa(PEER, OWN, 0x2003, TUNNEL, 2));
    let six = policy(XFRM_POLICY_IN, "::/0", "::/0");
    r.policy("IPv6 in", &six.tmpls(&[in_template(TUNNEL)]));
    let four = policy(XFRM_POLICY_IN, "0.0.0.0/0", "0.0.0.0/0");
    r.policy(
        "IPv4 in",
        &four.tmpls(&[template(PEER6, OWN6, IPPROTO_ESP, TUNNEL, 3)]),
    );
    let inner6 = Ip::new(PEER6, OWN6).udp(2000, 1000, b"hello");
    r.inject("six in four", Link::Outside, &tunnelled(IN_SPI, 1, &inner6));
    r.inject(
        "four in six",
        Link::Outside,
        &tunnelled6(0x2002, 1, &inner()),
    );
    r.inject(
        "six in four, not meant",
        Link::Outside,
        &tunnelled(0x2003, 1, &inner6),
    );
}

fn short(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL));
    let outer = Ip::new(PEER, OWN);
    let whole = esp(IN_SPI, 1, IPPROTO_IPIP, &inner());
    for bytes in [0, 1, 7, 8, 9, 12, 19, 20, 21, 22, 24, whole.len() - 1] {
        r.inject(
            &format!("{bytes} bytes of ESP"),
            Link::Outside,
            &outer.carry(IPPROTO_ESP, &whole[..bytes]),
        );
    }
    let ah = [4, 4, 0, 0, 0, 0, 0x20, 1, 0, 0, 0, 1];
    for bytes in [0, 11, 12] {
        r.inject(
            &format!("{bytes} bytes of AH"),
            Link::Outside,
            &outer.carry(IPPROTO_AH, &ah[..bytes]),
        );
    }
    for bytes in [0, 3, 4] {
        r.inject(
            &format!("{bytes} bytes of IPCOMP"),
            Link::Outside,
            &outer.carry(IPPROTO_COMP, &[4, 0, 1, 2][..bytes]),
        );
    }
}

fn unknown_spi(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL));
    r.inject("unknown", Link::Outside, &tunnelled(0x9999, 1, &inner()));
    r.inject("zero", Link::Outside, &tunnelled(0, 1, &inner()));
    let outer = Ip::new(PEER, OWN);
    r.inject(
        "AH with the SPI of an ESP SA",
        Link::Outside,
        &outer.carry(IPPROTO_AH, &ah(&outer, IN_SPI, 1, IPPROTO_IPIP, &inner())),
    );
    let elsewhere = Ip::new(PEER, GATE).carry(IPPROTO_ESP, &esp(IN_SPI, 1, IPPROTO_IPIP, &inner()));
    r.inject("to another address", Link::Outside, &elsewhere);
    r.sa("SPI zero", &inward(TUNNEL).spi(0));
    r.inject("zero", Link::Outside, &tunnelled(0, 1, &inner()));
    let pass = Ip::new(PEER, HOST).carry(IPPROTO_ESP, &esp(IN_SPI, 1, IPPROTO_IPIP, &inner()));
    r.inject("passing by", Link::Outside, &pass);
}

fn bad(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL).info(|info| info.replay_window = 32));
    let outer = Ip::new(PEER, OWN);
    let mut packet = tunnelled(IN_SPI, 1, &inner());
    *packet.last_mut().unwrap() ^= 1;
    r.inject("ICV", Link::Outside, &packet);
    let mut packet = tunnelled(IN_SPI, 1, &inner());
    packet[40] ^= 1;
    r.inject("body", Link::Outside, &packet);
    r.inject(
        "dummy",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &esp(IN_SPI, 2, 59, &inner())),
    );
    r.inject(
        "pad length lies",
        Link::Outside,
        &outer.carry(
            IPPROTO_ESP,
            &esp_padded(IN_SPI, 3, IPPROTO_IPIP, &inner(), 255),
        ),
    );
    r.inject(
        "all is padding",
        Link::Outside,
        &outer.carry(
            IPPROTO_ESP,
            &esp_padded(IN_SPI, 4, IPPROTO_IPIP, &inner(), 35),
        ),
    );
    r.inject(
        "nothing inside",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &esp(IN_SPI, 5, IPPROTO_IPIP, &[])),
    );
    r.inject(
        "UDP in a tunnel",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &esp(IN_SPI, 6, IPPROTO_UDP, &inner()[20..])),
    );
    r.inject(
        "IPv6 that is IPv4",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &esp(IN_SPI, 7, IPPROTO_IPV6, &inner())),
    );
    r.inject(
        "the right one",
        Link::Outside,
        &tunnelled(IN_SPI, 8, &inner()),
    );
    let sa = Sa::ah().spi(0x3001).info(|info| {
        (info.saddr, info.id.daddr) = (address(PEER).0, address(OWN).0);
        info.reqid = 2;
    });
    r.sa("AH", &sa);
    r.policy(
        "AH in",
        &policy(XFRM_POLICY_IN, PEER, OWN)
            .info(|info| info.priority = 0)
            .tmpls(&[template("0.0.0.0", "0.0.0.0", IPPROTO_AH, TRANSPORT, 2)])
            .kind(1),
    );
    let udp = &inner()[20..];
    r.inject(
        "AH",
        Link::Outside,
        &outer.carry(IPPROTO_AH, &ah(&outer, 0x3001, 1, IPPROTO_UDP, udp)),
    );
    let mut packet = outer.carry(IPPROTO_AH, &ah(&outer, 0x3001, 2, IPPROTO_UDP, udp));
    packet[50] ^= 1;
    r.inject("AH, ICV", Link::Outside, &packet);
    let mut packet = ah(&outer, 0x3001, 3, IPPROTO_UDP, udp);
    packet[1] = 9;
    r.inject(
        "AH, length",
        Link::Outside,
        &outer.carry(IPPROTO_AH, &packet),
    );
}

fn states(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    let larval = inward(TUNNEL);
    r.request("a larval SA", alloc(&larval, IN_SPI, IN_SPI));
    r.inject("larval", Link::Outside, &tunnelled(IN_SPI, 1, &inner()));
    r.request("filled in", larval.upd_sa());
    r.inject(
        "valid, no policy",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &inner()),
    );
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, PEER, OWN).tmpls(&[in_template(TUNNEL)]),
    );
    r.inject("valid", Link::Outside, &tunnelled(IN_SPI, 2, &inner()));
    r.request("deleted", larval.by_id(XFRM_MSG_DELSA));
    r.inject("gone", Link::Outside, &tunnelled(IN_SPI, 3, &inner()));
}

fn direction(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(
        &mut r,
        &inward(TUNNEL).attr(XFRMA_SA_DIR, [XFRM_SA_DIR_OUT]),
    );
    r.inject(
        "an SA for output",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &inner()),
    );
    r.sa(
        "one for input",
        &inward(TUNNEL)
            .spi(0x2002)
            .attr(XFRMA_SA_DIR, [XFRM_SA_DIR_IN]),
    );
    r.inject(
        "an SA for input",
        Link::Outside,
        &tunnelled(0x2002, 1, &inner()),
    );
}

fn mode_mismatch(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TRANSPORT));
    r.inject(
        "a tunnel packet for a transport SA",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &inner()),
    );
    r.sa("tunnel", &sa(PEER, OWN, 0x2002, TUNNEL, 2));
    let outer = Ip::new(PEER, OWN);
    r.inject(
        "a transport packet for a tunnel SA",
        Link::Outside,
        &transported(&outer, 0x2002, 1, &inner()),
    );
}

fn nested(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("ESP tunnel", &inward(TUNNEL));
    r.sa("ESP transport", &sa(PEER, OWN, 0x2002, TRANSPORT, 3));
    let sa = Sa::ah().spi(0x3001).info(|info| {
        (info.saddr, info.id.daddr) = (address(PEER).0, address(OWN).0);
        info.reqid = 4;
    });
    r.sa("AH transport", &sa);
    let wants = |proto, reqid| template("0.0.0.0", "0.0.0.0", proto, TRANSPORT, reqid);
    let templates = [
        in_template(TUNNEL),
        wants(IPPROTO_ESP, 3),
        wants(IPPROTO_AH, 4),
    ];
    r.policy(
        "all three",
        &policy(XFRM_POLICY_IN, PEER, OWN).tmpls(&templates),
    );
    let outer = Ip::new(PEER, OWN);
    let in_tunnel = |seq| esp(IN_SPI, seq, IPPROTO_IPIP, &inner());
    let in_transport = |seq| esp(0x2002, seq, IPPROTO_ESP, &in_tunnel(seq));
    let all = |seq| {
        outer.carry(
            IPPROTO_AH,
            &ah(&outer, 0x3001, seq, IPPROTO_ESP, &in_transport(seq)),
        )
    };
    r.inject("all three", Link::Outside, &all(1));
    r.inject(
        "without AH",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &in_transport(2)),
    );
    r.inject(
        "the tunnel alone",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &in_tunnel(3)),
    );
    let swapped = ah(&outer, 0x3001, 4, IPPROTO_UDP, &inner()[20..]);
    let swapped = outer.carry(IPPROTO_ESP, &esp(0x2002, 4, IPPROTO_AH, &swapped));
    r.inject("AH inside ESP", Link::Outside, &swapped);
    let again = esp(
        IN_SPI,
        5,
        IPPROTO_IPIP,
        &outer.carry(IPPROTO_ESP, &in_tunnel(6)),
    );
    r.inject(
        "a tunnel in a tunnel",
        Link::Outside,
        &outer.carry(IPPROTO_ESP, &again),
    );
    r.policy(
        "the tunnel alone will do",
        &policy(XFRM_POLICY_IN, PEER, OWN)
            .tmpls(&[in_template(TUNNEL)])
            .info(|info| info.sel.proto = IPPROTO_UDP),
    );
    r.inject("all three", Link::Outside, &all(7));
}

fn depth(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("transport", &inward(TRANSPORT));
    let outer = Ip::new(PEER, OWN);
    let mut seq = 0;
    for depth in [5, 6, 7] {
        let (mut next, mut payload) = (IPPROTO_UDP, inner()[20..].to_vec());
        for _ in 0..depth {
            seq += 1;
            payload = esp(IN_SPI, seq, next, &payload);
            next = IPPROTO_ESP;
        }
        r.inject(
            &format!("{depth} deep"),
            Link::Outside,
            &outer.carry(IPPROTO_ESP, &payload),
        );
    }
    r.sa("tunnel", &sa(PEER, OWN, 0x2002, TUNNEL, 2));
    let mut packet = inner();
    for _ in 0..7 {
        seq += 1;
        packet = outer.carry(IPPROTO_ESP, &esp(0x2002, seq, IPPROTO_IPIP, &packet));
    }
    r.inject("7 tunnels", Link::Outside, &packet);
}

fn comp(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    let comp = |mode, cpi, reqid| {
        Sa::comp().mode(mode).spi(cpi).info(|info| {
            (info.saddr, info.id.daddr) = (address(PEER).0, address(OWN).0);
            info.reqid = reqid;
        })
    };
    r.sa("transport", &comp(TRANSPORT, 0x4001, 4));
    let wants = template("0.0.0.0", "0.0.0.0", IPPROTO_COMP, TRANSPORT, 4);
    r.policy(
        "transport",
        &policy(XFRM_POLICY_IN, PEER, OWN).tmpls(&[wants]),
    );
    let outer = Ip::new(PEER, OWN);
    let long = outer.udp(2000, 1000, &[b'a'; 300]);
    r.inject(
        "compressed",
        Link::Outside,
        &outer.carry(IPPROTO_COMP, &ipcomp(0x4001, IPPROTO_UDP, &long[20..])),
    );
    r.inject("bare", Link::Outside, &inner());
    r.inject(
        "unknown",
        Link::Outside,
        &outer.carry(IPPROTO_COMP, &ipcomp(0x4009, IPPROTO_UDP, &long[20..])),
    );
    r.inject(
        "not deflate",
        Link::Outside,
        &outer.carry(IPPROTO_COMP, &[17, 0, 0x40, 1, 7, 7, 7, 7]),
    );
    r.note("tunnel, with the SA that it brings");
    r.sa("tunnel", &comp(TUNNEL, 0x4002, 5));
    let from = Ip::new(REMOTE, OWN);
    let wants = template(PEER, OWN, IPPROTO_COMP, TUNNEL, 5);
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_IN, REMOTE, OWN).tmpls(&[wants]),
    );
    let long = from.udp(2000, 1000, &[b'a'; 300]);
    r.inject(
        "compressed",
        Link::Outside,
        &outer.carry(IPPROTO_COMP, &ipcomp(0x4002, IPPROTO_IPIP, &long)),
    );
    let short = from.udp(2000, 1000, b"short");
    r.inject(
        "bare in a tunnel",
        Link::Outside,
        &outer.carry(IPPROTO_IPIP, &short),
    );
    r.inject("bare", Link::Outside, &short);
    let other = Ip::new("10.0.0.9", OWN).carry(IPPROTO_IPIP, &short);
    r.inject("bare in another tunnel", Link::Outside, &other);
}
