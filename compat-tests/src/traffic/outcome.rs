//! What becomes of a packet on its way out: plain, protected, dropped, refused.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::build::{Policy, flush_policy, flush_sa};
use crate::scenario::{Sa, Scenario};
use crate::session::Session;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/out_plain", plain),
    Scenario::new("traffic/out_default_block", default_block),
    Scenario::new("traffic/out_policy_block", policy_block),
    Scenario::new("traffic/out_tunnel", tunnel),
    Scenario::new("traffic/out_transport", transport),
    Scenario::new("traffic/out_forwarded", forwarded),
    Scenario::new("traffic/out_ipv6", ipv6),
    Scenario::new("traffic/out_families_mixed", families_mixed),
    Scenario::new("traffic/out_bundle", bundle),
    Scenario::new("traffic/out_bundle_of_six", bundle_of_six),
    Scenario::new("traffic/out_optional", optional),
    Scenario::new("traffic/out_sa_of_wrong_direction", wrong_direction),
    Scenario::new("traffic/out_sa_choice", sa_choice),
    Scenario::new("traffic/out_sa_selector", sa_selector),
    Scenario::new("traffic/out_changes", changes),
    Scenario::new("traffic/out_encap", encap),
    Scenario::new("traffic/out_ipcomp", comp),
];

const TUNNEL: u8 = XFRM_MODE_TUNNEL;
const TRANSPORT: u8 = XFRM_MODE_TRANSPORT;

fn plain(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.send(socket, PEER, 2000, b"plain");
    let allow = policy(XFRM_POLICY_OUT, OWN, PEER);
    r.policy("allows without templates", &allow);
    r.send(socket, PEER, 2000, b"plain");
    r.inject(
        "forwarded",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"through"),
    );
    let socket = r.udp(OWN6, 1000);
    r.send(socket, PEER6, 2000, b"plain");
    r.inject(
        "arrives",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 1000, b"back"),
    );
}

fn default_block(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.defaults(2, 2, 1);
    r.send(socket, PEER, 2000, b"blocked");
    r.inject(
        "forwarded",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"through"),
    );
    let socket6 = r.udp(OWN6, 1000);
    r.send(socket6, PEER6, 2000, b"blocked");
    let allow = policy(XFRM_POLICY_OUT, OWN, PEER);
    r.policy("allows", &allow);
    r.send(socket, PEER, 2000, b"allowed");
    r.defaults(1, 2, 2);
    r.inject(
        "arrives",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 1000, b"blocked"),
    );
    r.defaults(2, 1, 2);
    r.inject(
        "forwarded",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"through"),
    );
    r.inject(
        "arrives",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 1000, b"allowed"),
    );
}

fn policy_block(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let block = |dir, src, dst| policy(dir, src, dst).info(|info| info.action = XFRM_POLICY_BLOCK);
    r.policy("blocks output", &block(XFRM_POLICY_OUT, OWN, PEER));
    r.send(socket, PEER, 2000, b"blocked");
    r.send(socket, PEER, 2000, b"blocked");
    r.policy(
        "blocks what is forwarded out",
        &block(XFRM_POLICY_OUT, HOST, REMOTE),
    );
    r.inject(
        "forwarded",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"through"),
    );
    r.policy("blocks input", &block(XFRM_POLICY_IN, PEER, OWN));
    r.inject(
        "arrives",
        Link::Outside,
        &Ip::new(PEER, OWN).udp(2000, 1000, b"blocked"),
    );
    r.policy("blocks forwarding", &block(XFRM_POLICY_FWD, REMOTE, HOST));
    r.inject(
        "forwarded",
        Link::Outside,
        &Ip::new(REMOTE, HOST).udp(1, 2, b"back"),
    );
}

fn protected(mode: u8) -> Policy {
    policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[out_template(mode)])
}

fn tunnel(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.sa("tunnel", &out(TUNNEL));
    r.policy("tunnel", &protected(TUNNEL));
    for text in ["one", "two", "three"] {
        r.send(socket, PEER, 2000, text.as_bytes());
    }
    r.send(socket, REMOTE, 2000, b"another destination");
}

fn transport(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.sa("transport", &out(TRANSPORT));
    r.policy("transport", &protected(TRANSPORT));
    for text in ["one", "two", "three"] {
        r.send(socket, PEER, 2000, text.as_bytes());
    }
    r.inject(
        "to the peer, from behind",
        Link::Inside,
        &Ip::new(HOST, PEER).udp(1, 2, b"x"),
    );
}

/// What is between the protected nets goes through the tunnel.
fn nets_out() -> Policy {
    policy(XFRM_POLICY_OUT, "10.1.0.0/16", "10.2.0.0/16").tmpls(&[out_template(TUNNEL)])
}

fn forwarded(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.sa("tunnel", &out(TUNNEL));
    r.policy("between nets", &nets_out());
    let ip = Ip::new(HOST, REMOTE);
    r.inject("through", Link::Inside, &ip.udp(1, 2, b"one"));
    r.inject("through", Link::Inside, &ip.ttl(2).udp(1, 2, b"two"));
    r.inject("TTL ends", Link::Inside, &ip.ttl(1).udp(1, 2, b"three"));
    r.inject(
        "elsewhere",
        Link::Inside,
        &Ip::new(HOST, PEER).udp(1, 2, b"plain"),
    );
    r.inject("ICMP", Link::Inside, &ip.icmp(8, 0, b"\0\x01\0\x01ping"));
    let socket = r.udp(GATE, 1000);
    r.send(socket, REMOTE, 2000, b"the router's own");
}

fn ipv6(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN6, 1000);
    r.sa("transport", &out6(TRANSPORT));
    let wanted = template("::", "::", IPPROTO_ESP, TRANSPORT, 1);
    r.policy(
        "transport",
        &policy(XFRM_POLICY_OUT, OWN6, PEER6).tmpls(&[wanted]),
    );
    r.send(socket, PEER6, 2000, b"six");
    r.sa("tunnel", &sa(OWN6, PEER6, 0x1002, TUNNEL, 3));
    let nets = policy(XFRM_POLICY_OUT, "fd01::/64", "fd02::/64");
    r.policy(
        "tunnel",
        &nets.tmpls(&[template(OWN6, PEER6, IPPROTO_ESP, TUNNEL, 3)]),
    );
    let ip = Ip::new(HOST6, REMOTE6);
    r.inject("through", Link::Inside, &ip.udp(1, 2, b"six in six"));
    r.inject(
        "hop limit ends",
        Link::Inside,
        &ip.ttl(1).udp(1, 2, b"six in six"),
    );
}

fn families_mixed(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let any = |sa: Sa| sa.info(|info| info.flags = XFRM_STATE_AF_UNSPEC);
    r.sa("over IPv4", &any(out(TUNNEL)));
    r.sa("over IPv6", &any(sa(OWN6, PEER6, 0x1002, TUNNEL, 2)));
    let six = policy(XFRM_POLICY_OUT, "fd01::/64", "fd02::/64");
    r.policy("IPv6 over IPv4", &six.tmpls(&[out_template(TUNNEL)]));
    let four = policy(XFRM_POLICY_OUT, "10.1.0.0/16", "10.2.0.0/16");
    r.policy(
        "IPv4 over IPv6",
        &four.tmpls(&[template(OWN6, PEER6, IPPROTO_ESP, TUNNEL, 2)]),
    );
    r.inject(
        "six",
        Link::Inside,
        &Ip::new(HOST6, REMOTE6).udp(1, 2, b"six in four"),
    );
    r.inject(
        "four",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"four in six"),
    );
}

fn bundle(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let ah = Sa::ah().spi(0x3001).info(|info| {
        (info.saddr, info.id.daddr) = (address(OWN).0, address(PEER).0);
        info.reqid = 3;
    });
    r.sa("ESP tunnel", &out(TUNNEL));
    r.sa("AH transport", &ah);
    let templates = [
        out_template(TUNNEL),
        template("0.0.0.0", "0.0.0.0", IPPROTO_AH, TRANSPORT, 3),
    ];
    r.policy(
        "both",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&templates),
    );
    r.send(socket, PEER, 2000, b"one");
    r.send(socket, PEER, 2000, b"two");
    r.request("delete the outer one", ah.by_id(XFRM_MSG_DELSA));
    r.send(socket, PEER, 2000, b"three");
    r.sa("and another", &ah.clone().spi(0x3002));
    r.send(socket, PEER, 2000, b"four");
}

fn bundle_of_six(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    for depth in [4u32, 5, 6] {
        r.note(&format!("{depth} SAs"));
        r.request("flush", flush_sa(0).flags(NLM_F_REQUEST | NLM_F_ACK));
        r.request("flush", flush_policy().flags(NLM_F_REQUEST | NLM_F_ACK));
        let socket = r.udp(OWN, 1000 + depth as u16);
        let mut templates = Vec::new();
        for nth in 1..=depth {
            r.sa("one", &sa(OWN, PEER, 0x1000 + nth, TRANSPORT, nth));
            templates.push(template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, TRANSPORT, nth));
        }
        r.policy("all", &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&templates));
        r.send(socket, PEER, 2000, b"deep");
        r.send(socket, PEER, 2000, b"deep");
    }
}

fn optional(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let may = UserTmpl {
        optional: 1,
        ..template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, TRANSPORT, 1)
    };
    r.policy(
        "optional",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[may]),
    );
    r.send(socket, PEER, 2000, b"without");
    r.sa("now there is one", &out(TRANSPORT));
    r.send(socket, PEER, 2000, b"with");
    r.request("delete it", out(TRANSPORT).by_id(XFRM_MSG_DELSA));
    r.send(socket, PEER, 2000, b"without");
    r.note("an optional one and a required one");
    let must = template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, TRANSPORT, 7);
    let both = policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[may, must]);
    r.request("policy both", both.upd_policy());
    r.sa("the required one", &sa(OWN, PEER, 0x1007, TRANSPORT, 7));
    r.send(socket, PEER, 2000, b"with one");
    r.sa("the optional one", &out(TRANSPORT));
    r.send(socket, PEER, 2000, b"with both");
}

fn wrong_direction(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let sa = out(TUNNEL);
    r.sa(
        "marked as one for input",
        &sa.clone().attr(XFRMA_SA_DIR, [XFRM_SA_DIR_IN]),
    );
    r.policy("tunnel", &protected(TUNNEL));
    r.send(socket, PEER, 2000, b"one");
    r.policy("forwarded", &nets_out());
    r.inject(
        "through",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"one"),
    );
    r.sa(
        "one for output",
        &sa.spi(0x1002).attr(XFRMA_SA_DIR, [XFRM_SA_DIR_OUT]),
    );
    r.send(socket, PEER, 2000, b"two");
}

fn sa_choice(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy("tunnel", &protected(TUNNEL));
    r.sa(
        "other reqid",
        &out(TUNNEL).spi(0x11).info(|info| info.reqid = 9),
    );
    r.sa("other mode", &out(TRANSPORT).spi(0x12));
    r.sa(
        "with an interface id",
        &out(TUNNEL).spi(0x13).u32(XFRMA_IF_ID, 5),
    );
    r.sa(
        "with a mark",
        &out(TUNNEL)
            .spi(0x14)
            .pod(XFRMA_MARK, &Mark { v: 5, m: 0xff }),
    );
    r.sa("other source", &sa("10.0.0.9", PEER, 0x15, TUNNEL, 1));
    r.sa("other destination", &sa(OWN, "10.0.0.9", 0x16, TUNNEL, 1));
    r.sa(
        "WILDRECV",
        &out(TUNNEL)
            .spi(0x17)
            .info(|info| info.flags = XFRM_STATE_WILDRECV),
    );
    r.send(socket, PEER, 2000, b"none of these");
    r.request(
        "the larval one goes",
        flush_sa(0).flags(NLM_F_REQUEST | NLM_F_ACK),
    );
    r.sa("any source", &sa("0.0.0.0", PEER, 0x18, TUNNEL, 1));
    r.send(socket, PEER, 2000, b"that one");
    r.sa("first", &out(TUNNEL).spi(0x21));
    r.send(socket, PEER, 2000, b"that one");
    r.sa("second", &out(TUNNEL).spi(0x22));
    r.send(socket, PEER, 2000, b"the second");
}

fn sa_selector(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy(
        "tunnel",
        &policy(XFRM_POLICY_OUT, OWN, "10.0.0.0/24").tmpls(&[out_template(TUNNEL)]),
    );
    r.sa(
        "for one host",
        &out(TUNNEL).info(|info| info.sel = selector(OWN, PEER)),
    );
    r.send(socket, PEER, 2000, b"fits");
    r.send(socket, "10.0.0.3", 2000, b"does not");
}

fn changes(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.sa("tunnel", &out(TUNNEL));
    r.policy("tunnel", &protected(TUNNEL));
    r.send(socket, PEER, 2000, b"one");
    r.policy(
        "a more urgent one",
        &policy(XFRM_POLICY_OUT, OWN, "10.0.0.0/24").info(|info| info.priority = 0),
    );
    r.send(socket, PEER, 2000, b"the older one wins");
    let first = protected(TUNNEL).info(|info| info.priority = 10);
    r.request("the first is less urgent now", first.upd_policy());
    r.send(socket, PEER, 2000, b"plain");
    r.request(
        "delete the second",
        policy(XFRM_POLICY_OUT, OWN, "10.0.0.0/24").by_selector(XFRM_MSG_DELPOLICY),
    );
    r.send(socket, PEER, 2000, b"protected");
    r.request("delete the SA", out(TUNNEL).by_id(XFRM_MSG_DELSA));
    r.send(socket, PEER, 2000, b"waits");
    r.request("delete the first", first.by_selector(XFRM_MSG_DELPOLICY));
    r.send(socket, PEER, 2000, b"plain");
}

fn encap(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let encap = EncapTmpl {
        kind: 2,
        sport: BeU16::new(4500),
        dport: BeU16::new(4500),
        ..EncapTmpl::default()
    };
    r.sa("in UDP", &out(TUNNEL).pod(XFRMA_ENCAP, &encap));
    r.policy("tunnel", &protected(TUNNEL));
    r.send(socket, PEER, 2000, b"one");
    let update = out(TUNNEL).pod(
        XFRMA_ENCAP,
        &EncapTmpl {
            dport: BeU16::new(14500),
            ..encap
        },
    );
    r.request("another port", update.upd_sa());
    r.send(socket, PEER, 2000, b"two");
}

fn comp(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let comp = Sa::comp().mode(TUNNEL).spi(0x4001).info(|info| {
        (info.saddr, info.id.daddr) = (address(OWN).0, address(PEER).0);
        info.reqid = 4;
    });
    r.sa("IPCOMP", &comp);
    let wanted = template(OWN, PEER, IPPROTO_COMP, TUNNEL, 4);
    r.policy(
        "IPCOMP",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[wanted]),
    );
    r.send(socket, PEER, 2000, b"short");
    r.send(socket, PEER, 2000, &[b'a'; 200]);
}
