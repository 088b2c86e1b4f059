//! Whether what arrives is what the policies want: `xfrm_policy_check`.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::Scenario;
use crate::scenario::build::Policy;
use crate::session::Session;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/check_plaintext", plaintext),
    Scenario::new("traffic/check_no_policy", no_policy),
    Scenario::new("traffic/check_block", block),
    Scenario::new("traffic/check_reqid", reqid),
    Scenario::new("traffic/check_template", templates),
    Scenario::new("traffic/check_algorithms", algorithms),
    Scenario::new("traffic/check_optional", optional),
    Scenario::new("traffic/check_sa_selector", sa_selector),
    Scenario::new("traffic/check_level_use", level_use),
    Scenario::new(
        "traffic/check_transport_without_policy",
        transport_without_policy,
    ),
    Scenario::new("traffic/check_forward", forward),
    Scenario::new("traffic/check_sub_policies", sub_policies),
    Scenario::new("traffic/check_ports_and_marks", ports_and_marks),
    Scenario::new("traffic/check_icmp_errors", icmp_errors),
    Scenario::new("traffic/check_defaults", defaults),
    Scenario::new("traffic/check_sec_path_ends", sec_path_ends),
];

const TUNNEL: u8 = XFRM_MODE_TUNNEL;
const TRANSPORT: u8 = XFRM_MODE_TRANSPORT;

fn to_router() -> Vec<u8> {
    Ip::new(PEER, OWN).udp(2000, 1000, b"hello")
}

fn through() -> Vec<u8> {
    Ip::new(REMOTE, HOST).udp(2000, 1000, b"hello")
}

fn input() -> Policy {
    policy(XFRM_POLICY_IN, PEER, OWN)
}

fn forwarding() -> Policy {
    policy(XFRM_POLICY_FWD, REMOTE, HOST)
}

fn plaintext(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.policy("in", &input().tmpls(&[in_template(TUNNEL)]));
    r.policy("fwd", &forwarding().tmpls(&[in_template(TUNNEL)]));
    r.inject("to the router", Link::Outside, &to_router());
    r.inject("through", Link::Outside, &through());
    r.inject(
        "another source",
        Link::Outside,
        &Ip::new("10.0.0.9", OWN).udp(2000, 1000, b"x"),
    );
    r.inject(
        "another source",
        Link::Outside,
        &Ip::new("10.2.0.9", HOST).udp(2000, 1000, b"x"),
    );
    r.inject(
        "closed port",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 999, b"x"),
    );
    r.inject(
        "ping",
        Link::Outside,
        &Ip::new(PEER, OWN).icmp(8, 0, b"\0\x01\0\x01ping"),
    );
    r.udp(OWN6, 1000);
    let six = policy(XFRM_POLICY_IN, PEER6, OWN6);
    r.policy(
        "in",
        &six.tmpls(&[template(PEER6, OWN6, IPPROTO_ESP, TUNNEL, 2)]),
    );
    r.inject(
        "six",
        Link::Outside,
        &Ip::new(PEER6, OWN6).udp(2000, 1000, b"x"),
    );
}

fn no_policy(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("tunnel", &inward(TUNNEL));
    r.inject(
        "to the router",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &to_router()),
    );
    r.inject("through", Link::Outside, &tunnelled(IN_SPI, 2, &through()));
    r.policy(
        "allows all, wants nothing",
        &policy(XFRM_POLICY_IN, "0.0.0.0/0", "0.0.0.0/0"),
    );
    r.inject(
        "to the router",
        Link::Outside,
        &tunnelled(IN_SPI, 3, &to_router()),
    );
    r.policy(
        "and forwarding",
        &policy(XFRM_POLICY_FWD, "0.0.0.0/0", "0.0.0.0/0"),
    );
    r.inject("through", Link::Outside, &tunnelled(IN_SPI, 4, &through()));
}

fn block(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("tunnel", &inward(TUNNEL));
    let blocks = |policy: Policy| policy.info(|info| info.action = XFRM_POLICY_BLOCK);
    r.policy("block in", &blocks(input()));
    r.policy("block fwd", &blocks(forwarding()));
    r.inject(
        "protected",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &to_router()),
    );
    r.inject(
        "protected, through",
        Link::Outside,
        &tunnelled(IN_SPI, 2, &through()),
    );
}

fn reqid(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("reqid 2", &inward(TUNNEL));
    let wants = |reqid| template(PEER, OWN, IPPROTO_ESP, TUNNEL, reqid);
    let mut policy = input().tmpls(&[wants(3)]);
    r.policy("wants reqid 3", &policy);
    r.inject("packet", Link::Outside, &tunnelled(IN_SPI, 1, &to_router()));
    for reqid in [2, 0] {
        policy = input().tmpls(&[wants(reqid)]);
        r.request(&format!("wants reqid {reqid}"), policy.upd_policy());
        r.inject("packet", Link::Outside, &tunnelled(IN_SPI, 2, &to_router()));
    }
}

fn templates(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("tunnel", &inward(TUNNEL));
    r.sa("transport", &sa(PEER, OWN, 0x2002, TRANSPORT, 2));
    let right = in_template(TUNNEL);
    let variants = [
        ("right", right),
        (
            "SPI",
            UserTmpl {
                id: XfrmId {
                    spi: BeU32::new(IN_SPI),
                    ..right.id
                },
                ..right
            },
        ),
        (
            "wrong SPI",
            UserTmpl {
                id: XfrmId {
                    spi: BeU32::new(9),
                    ..right.id
                },
                ..right
            },
        ),
        (
            "other protocol",
            UserTmpl {
                id: XfrmId {
                    proto: IPPROTO_AH,
                    ..right.id
                },
                ..right
            },
        ),
        (
            "other mode",
            UserTmpl {
                mode: TRANSPORT,
                ..right
            },
        ),
        (
            "other source",
            UserTmpl {
                saddr: address("10.0.0.9").0,
                ..right
            },
        ),
        (
            "any source",
            UserTmpl {
                saddr: Address::ANY,
                ..right
            },
        ),
        (
            "other destination",
            UserTmpl {
                id: XfrmId {
                    daddr: address("10.0.0.9").0,
                    ..right.id
                },
                ..right
            },
        ),
        (
            "any destination",
            UserTmpl {
                id: XfrmId {
                    daddr: Address::ANY,
                    ..right.id
                },
                ..right
            },
        ),
        (
            "any of both",
            UserTmpl {
                saddr: Address::ANY,
                id: XfrmId {
                    daddr: Address::ANY,
                    ..right.id
                },
                ..right
            },
        ),
    ];
    let outer = Ip::new(PEER, OWN);
    for (seq, (label, template)) in (1..).zip(variants) {
        r.request(label, input().tmpls(&[template]).upd_policy());
        r.inject(
            "tunnel",
            Link::Outside,
            &tunnelled(IN_SPI, seq, &to_router()),
        );
        r.inject(
            "transport",
            Link::Outside,
            &transported(&outer, 0x2002, seq, &to_router()),
        );
    }
}

fn algorithms(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("HMAC-SHA-1", &inward(TUNNEL));
    let right = in_template(TUNNEL);
    for (seq, aalgos) in (1..).zip([1u32 << 3, 1 << 2, 0]) {
        for ealgos in [u32::MAX, 1 << 11, 1 << 12] {
            let template = UserTmpl {
                aalgos,
                ealgos,
                ..right
            };
            r.request(
                &format!("auth {aalgos:x} enc {ealgos:x}"),
                input().tmpls(&[template]).upd_policy(),
            );
            r.inject(
                "packet",
                Link::Outside,
                &tunnelled(IN_SPI, seq, &to_router()),
            );
        }
    }
}

fn optional(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    let outer = Ip::new(PEER, OWN);
    r.sa("transport", &inward(TRANSPORT));
    r.sa("another", &sa(PEER, OWN, 0x2002, TRANSPORT, 3));
    r.sa("tunnel", &sa(PEER, OWN, 0x2003, TUNNEL, 4));
    let may = |reqid, mode| UserTmpl {
        optional: 1,
        ..template(PEER, OWN, IPPROTO_ESP, mode, reqid)
    };
    let must = |reqid, mode| template(PEER, OWN, IPPROTO_ESP, mode, reqid);
    let lists: [(&str, Vec<UserTmpl>); 5] = [
        ("optional", vec![may(2, TRANSPORT)]),
        (
            "optional, then required",
            vec![may(2, TRANSPORT), must(3, TRANSPORT)],
        ),
        (
            "required, then optional",
            vec![must(3, TRANSPORT), may(2, TRANSPORT)],
        ),
        ("optional tunnel", vec![may(4, TUNNEL)]),
        (
            "optional tunnel, then required",
            vec![may(4, TUNNEL), must(2, TRANSPORT)],
        ),
    ];
    let datagram = to_router();
    let two = |first: u32, second: u32, seq| {
        let inside = esp(first, seq, IPPROTO_UDP, &datagram[20..]);
        outer.carry(IPPROTO_ESP, &esp(second, seq, IPPROTO_ESP, &inside))
    };
    for (seq, (label, list)) in (1..).zip(lists) {
        r.request(label, input().tmpls(&list).upd_policy());
        r.inject("plain", Link::Outside, &datagram);
        r.inject(
            "2001",
            Link::Outside,
            &transported(&outer, IN_SPI, seq, &datagram),
        );
        r.inject(
            "2002",
            Link::Outside,
            &transported(&outer, 0x2002, seq, &datagram),
        );
        r.inject("2001 in 2002", Link::Outside, &two(IN_SPI, 0x2002, seq));
        r.inject("2002 in 2001", Link::Outside, &two(0x2002, IN_SPI, seq));
        r.inject("2003", Link::Outside, &tunnelled(0x2003, seq, &datagram));
    }
}

fn sa_selector(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa(
        "for the net",
        &inward(TUNNEL).info(|info| info.sel = selector("10.2.0.0/16", "10.1.0.0/16")),
    );
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, "0.0.0.0/0", "0.0.0.0/0").tmpls(&[in_template(TUNNEL)]),
    );
    r.policy(
        "fwd",
        &policy(XFRM_POLICY_FWD, "0.0.0.0/0", "0.0.0.0/0").tmpls(&[in_template(TUNNEL)]),
    );
    r.inject("fits", Link::Outside, &tunnelled(IN_SPI, 1, &through()));
    r.inject(
        "does not",
        Link::Outside,
        &tunnelled(IN_SPI, 2, &to_router()),
    );
    r.inject(
        "another host",
        Link::Outside,
        &tunnelled(IN_SPI, 3, &Ip::new("10.3.0.1", HOST).udp(1, 2, b"x")),
    );
    let ports = sa(PEER, OWN, 0x2002, TUNNEL, 2).info(|info| {
        info.sel = selector("10.2.0.0/16", "10.1.0.0/16");
        info.sel.proto = IPPROTO_UDP;
        (info.sel.dport, info.sel.dport_mask) = (BeU16::new(1000), BeU16::new(0xffff));
    });
    r.sa("for a port", &ports);
    r.inject("fits", Link::Outside, &tunnelled(0x2002, 1, &through()));
    r.inject(
        "does not",
        Link::Outside,
        &tunnelled(0x2002, 2, &Ip::new(REMOTE, HOST).udp(1, 2, b"x")),
    );
}

fn level_use(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("tunnel", &inward(TUNNEL));
    r.sa("transport", &sa(PEER, OWN, 0x2002, TRANSPORT, 3));
    r.policy("wants nothing", &input());
    r.inject("plain", Link::Outside, &to_router());
    r.inject(
        "transport",
        Link::Outside,
        &transported(&Ip::new(PEER, OWN), 0x2002, 1, &to_router()),
    );
    r.inject("tunnel", Link::Outside, &tunnelled(IN_SPI, 1, &to_router()));
}

fn transport_without_policy(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("transport", &inward(TRANSPORT));
    let packet = |seq| transported(&Ip::new(PEER, OWN), IN_SPI, seq, &to_router());
    r.inject("no policy at all", Link::Outside, &packet(1));
    r.policy(
        "a policy for others",
        &policy(XFRM_POLICY_IN, "10.0.0.9", OWN),
    );
    r.inject("none that fits", Link::Outside, &packet(2));
    r.defaults(1, 2, 2);
    r.inject("default block", Link::Outside, &packet(3));
    r.inject("default block, plain", Link::Outside, &to_router());
}

fn forward(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("in", &inward(TUNNEL));
    r.sa("out", &out(TUNNEL));
    r.policy(
        "fwd",
        &policy(XFRM_POLICY_FWD, "10.2.0.0/16", "10.1.0.0/16").tmpls(&[in_template(TUNNEL)]),
    );
    r.policy(
        "out",
        &policy(XFRM_POLICY_OUT, "10.1.0.0/16", "10.2.0.0/16").tmpls(&[out_template(TUNNEL)]),
    );
    r.inject(
        "protected in",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &through()),
    );
    r.inject("plain in", Link::Outside, &through());
    r.inject(
        "plain out",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"x"),
    );
    r.note("a hub: in through one tunnel, out through another");
    r.policy(
        "fwd back",
        &policy(XFRM_POLICY_FWD, "10.2.0.0/24", "10.2.1.0/24").tmpls(&[in_template(TUNNEL)]),
    );
    r.policy(
        "out back",
        &policy(XFRM_POLICY_OUT, "10.2.0.0/24", "10.2.1.0/24").tmpls(&[out_template(TUNNEL)]),
    );
    let hub = Ip::new(REMOTE, "10.2.1.1").udp(1, 2, b"hub");
    r.inject(
        "between branches",
        Link::Outside,
        &tunnelled(IN_SPI, 2, &hub),
    );
}

fn sub_policies(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("tunnel", &inward(TUNNEL));
    r.sa("transport", &sa(PEER, OWN, 0x2002, TRANSPORT, 3));
    let wants = template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, TRANSPORT, 3);
    r.policy("sub", &input().tmpls(&[in_template(TUNNEL)]).kind(1));
    r.inject(
        "the tunnel is enough",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &to_router()),
    );
    r.policy("main", &input().tmpls(&[wants]));
    r.inject(
        "not enough",
        Link::Outside,
        &tunnelled(IN_SPI, 2, &to_router()),
    );
    let outer = Ip::new(PEER, OWN);
    let both = |seq| {
        let tunnel = esp(IN_SPI, seq, IPPROTO_IPIP, &to_router());
        outer.carry(IPPROTO_ESP, &esp(0x2002, seq, IPPROTO_ESP, &tunnel))
    };
    r.inject("both", Link::Outside, &both(3));
    r.request(
        "main blocks",
        input()
            .info(|info| info.action = XFRM_POLICY_BLOCK)
            .upd_policy(),
    );
    r.inject("both", Link::Outside, &both(4));
    r.request("main is gone", input().by_selector(XFRM_MSG_DELPOLICY));
    r.request(
        "sub blocks",
        input()
            .info(|info| info.action = XFRM_POLICY_BLOCK)
            .kind(1)
            .upd_policy(),
    );
    r.inject("both", Link::Outside, &both(5));
    r.inject("plain", Link::Outside, &to_router());
}

fn ports_and_marks(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.udp(OWN, 1001);
    let narrow = input().info(|info| {
        info.sel.proto = IPPROTO_UDP;
        (info.sel.dport, info.sel.dport_mask) = (BeU16::new(1000), BeU16::new(0xffff));
    });
    r.policy("port 1000 protected", &narrow.tmpls(&[in_template(TUNNEL)]));
    r.inject("port 1000", Link::Outside, &to_router());
    r.inject(
        "port 1001",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 1001, b"x"),
    );
    let marked = input().info(|info| info.action = XFRM_POLICY_BLOCK);
    r.policy(
        "block marked",
        &marked.pod(XFRMA_MARK, &Mark { v: 1, m: 1 }),
    );
    r.inject(
        "unmarked",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 1001, b"x"),
    );
}

fn icmp_errors(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy(
        "in",
        &policy(XFRM_POLICY_IN, "10.0.0.0/24", OWN).tmpls(&[in_template(TUNNEL)]),
    );
    r.send(socket, PEER, 2000, b"question");
    let about = Ip::new(OWN, PEER).udp(1000, 2000, b"question");
    let error = Ip::new("10.0.0.9", OWN).icmp(3, 1, &[&[0; 4][..], &about].concat());
    r.inject("a plain error", Link::Outside, &error);
    r.sa("tunnel", &inward(TUNNEL));
    r.inject(
        "a protected one",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &error),
    );
    r.sa(
        "tunnel that takes errors",
        &inward(TUNNEL).spi(0x2002).info(|info| {
            info.sel = selector(PEER, OWN);
            info.flags = XFRM_STATE_ICMP;
        }),
    );
    r.inject(
        "an error from elsewhere",
        Link::Outside,
        &tunnelled(0x2002, 1, &error),
    );
}

fn defaults(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa("tunnel", &inward(TUNNEL));
    for (seq, (input, fwd)) in (1..).zip([(2, 2), (1, 1), (2, 1), (1, 2)]) {
        r.defaults(input, fwd, 2);
        r.inject("plain", Link::Outside, &to_router());
        r.inject("plain through", Link::Outside, &through());
        r.inject(
            "protected",
            Link::Outside,
            &tunnelled(IN_SPI, seq * 2, &to_router()),
        );
        r.inject(
            "protected through",
            Link::Outside,
            &tunnelled(IN_SPI, seq * 2 + 1, &through()),
        );
    }
}

fn sec_path_ends(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.note("what came through a tunnel and leaves again has no sec path for the next router's policies");
    r.sa("in", &inward(TUNNEL));
    r.policy(
        "fwd",
        &policy(XFRM_POLICY_FWD, "0.0.0.0/0", "0.0.0.0/0").tmpls(&[in_template(TUNNEL)]),
    );
    let inner = Ip::new(REMOTE, HOST);
    r.inject(
        "one",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &inner.udp(1, 2, b"x")),
    );
    r.inject("the same, plain", Link::Outside, &inner.udp(1, 2, b"x"));
    let twice = tunnelled(IN_SPI, 2, &tunnelled(IN_SPI, 3, &inner.udp(1, 2, b"x")));
    r.inject("two tunnels, one template", Link::Outside, &twice);
}
