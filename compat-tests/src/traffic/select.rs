//! Which policy a packet meets: priorities, ports, types, marks, sockets.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::craft::*;
use super::road::Road;
use crate::scenario::Scenario;
use crate::scenario::build::Policy;
use crate::session::Session;
use crate::subject::packets::{Link, UdpOptions};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/select_priority", priority),
    Scenario::new("traffic/select_ports", ports),
    Scenario::new("traffic/select_icmp", icmp),
    Scenario::new("traffic/select_marks", marks),
    Scenario::new("traffic/select_interface", interface),
    Scenario::new("traffic/select_sub_policies", sub_policies),
    Scenario::new("traffic/select_socket_policies", socket_policies),
    Scenario::new("traffic/select_fragments", fragments),
];

fn block(src: &str, dst: &str) -> Policy {
    policy(XFRM_POLICY_OUT, src, dst).info(|info| info.action = XFRM_POLICY_BLOCK)
}

fn allow(src: &str, dst: &str) -> Policy {
    policy(XFRM_POLICY_OUT, src, dst)
}

fn priority(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy(
        "block, 20",
        &block(OWN, PEER).info(|info| info.priority = 20),
    );
    r.send(socket, PEER, 2000, b"blocked");
    r.policy(
        "allow, 10",
        &allow(OWN, "10.0.0.0/24").info(|info| info.priority = 10),
    );
    r.send(socket, PEER, 2000, b"allowed");
    r.policy(
        "block, 10, younger",
        &block(OWN, "10.0.0.0/28").info(|info| info.priority = 10),
    );
    r.send(socket, PEER, 2000, b"allowed");
    r.policy(
        "block, 5",
        &block("0.0.0.0/0", "0.0.0.0/0").info(|info| info.priority = 5),
    );
    r.send(socket, PEER, 2000, b"blocked");
    r.inject(
        "forwarded",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"x"),
    );
}

fn ports(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let to_port = |port: u16, mask: u16| {
        block(OWN, PEER).info(|info| {
            info.sel.proto = IPPROTO_UDP;
            (info.sel.dport, info.sel.dport_mask) = (BeU16::new(port), BeU16::new(mask));
        })
    };
    r.policy("block UDP to 2000", &to_port(2000, 0xffff));
    r.send(socket, PEER, 2000, b"blocked");
    r.send(socket, PEER, 2001, b"allowed");
    r.policy("block UDP to 3000 to 30ff", &to_port(0x3000, 0xff00));
    r.send(socket, PEER, 0x3042, b"blocked");
    r.send(socket, PEER, 0x3142, b"allowed");
    let from = block(HOST, REMOTE).info(|info| {
        info.sel.proto = IPPROTO_UDP;
        (info.sel.sport, info.sel.sport_mask) = (BeU16::new(7), BeU16::new(0xffff));
    });
    r.policy("block UDP from 7", &from);
    let ip = Ip::new(HOST, REMOTE);
    r.inject("from 7", Link::Inside, &ip.udp(7, 9, b"blocked"));
    r.inject("from 8", Link::Inside, &ip.udp(8, 9, b"allowed"));
    r.inject(
        "TCP from 7",
        Link::Inside,
        &ip.carry(IPPROTO_TCP, &[&[0u8, 7, 0, 9][..], &[0; 16]].concat()),
    );
    r.inject(
        "ports cut off",
        Link::Inside,
        &ip.carry(IPPROTO_UDP, &[0, 7]),
    );
}

fn icmp(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let of_type = |kind: u16, code: Option<u16>| {
        block(HOST, REMOTE).info(|info| {
            info.sel.proto = IPPROTO_ICMP;
            (info.sel.sport, info.sel.sport_mask) = (BeU16::new(kind), BeU16::new(0xffff));
            if let Some(code) = code {
                (info.sel.dport, info.sel.dport_mask) = (BeU16::new(code), BeU16::new(0xffff));
            }
        })
    };
    r.policy("block echo", &of_type(8, None));
    r.policy("block 3/1", &of_type(3, Some(1)));
    let ip = Ip::new(HOST, REMOTE);
    r.inject("echo", Link::Inside, &ip.icmp(8, 0, b"\0\x01\0\x01ping"));
    r.inject(
        "echo reply",
        Link::Inside,
        &ip.icmp(0, 0, b"\0\x01\0\x01ping"),
    );
    let about = Ip::new(REMOTE, HOST).udp(1, 2, b"");
    let error = [&[0; 4][..], &about].concat();
    r.inject("3/1", Link::Inside, &ip.icmp(3, 1, &error));
    r.inject("3/0", Link::Inside, &ip.icmp(3, 0, &error));
    let six = policy(XFRM_POLICY_OUT, HOST6, REMOTE6).info(|info| {
        info.action = XFRM_POLICY_BLOCK;
        info.sel.proto = IPPROTO_ICMPV6;
        (info.sel.sport, info.sel.sport_mask) = (BeU16::new(128), BeU16::new(0xffff));
    });
    r.policy("block echo in IPv6", &six);
    let ip = Ip::new(HOST6, REMOTE6);
    r.inject("echo", Link::Inside, &ip.icmp(128, 0, b"\0\x01\0\x01ping"));
    r.inject(
        "echo reply",
        Link::Inside,
        &ip.icmp(129, 0, b"\0\x01\0\x01ping"),
    );
}

fn marks(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let marked = |mark| UdpOptions {
        source: Some((ip(OWN), 1000 + mark as u16).into()),
        mark,
        ..UdpOptions::default()
    };
    let none = r.udp(OWN, 1000);
    let five = r.udp_with(marked(5));
    let fifteen = r.udp_with(marked(0x15));
    r.policy(
        "block mark 5/f",
        &block(OWN, PEER).pod(XFRMA_MARK, &Mark { v: 5, m: 0xf }),
    );
    for socket in [none, five, fifteen] {
        r.send(socket, PEER, 2000, b"marks");
    }
    r.note("the SA's mark must be the policy's");
    let protect = policy(XFRM_POLICY_OUT, OWN, "10.0.0.3").tmpls(&[out_template(XFRM_MODE_TUNNEL)]);
    let mark = Mark { v: 5, m: 0xff };
    r.policy("protect mark 5/ff", &protect.pod(XFRMA_MARK, &mark));
    r.sa("mark 5/ff", &out(XFRM_MODE_TUNNEL).pod(XFRMA_MARK, &mark));
    r.send(five, "10.0.0.3", 2000, b"protected");
    r.send(none, "10.0.0.3", 2000, b"plain");
}

fn interface(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy(
        "block on another interface",
        &block(OWN, PEER).info(|info| info.sel.ifindex = 77),
    );
    r.send(socket, PEER, 2000, b"allowed");
    r.policy(
        "block with an interface id",
        &block(OWN, PEER).u32(XFRMA_IF_ID, 7),
    );
    r.send(socket, PEER, 2000, b"allowed");
    r.note("an SA with an interface id serves no policy without");
    r.policy(
        "protect",
        &allow(OWN, PEER).tmpls(&[out_template(XFRM_MODE_TUNNEL)]),
    );
    r.sa(
        "with an interface id",
        &out(XFRM_MODE_TUNNEL).u32(XFRMA_IF_ID, 7),
    );
    r.send(socket, PEER, 2000, b"waits");
}

fn sub_policies(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    r.policy("main blocks", &block(OWN, PEER));
    r.policy(
        "sub allows, less urgent",
        &allow(OWN, PEER).info(|info| info.priority = 99).kind(1),
    );
    r.send(socket, PEER, 2000, b"sub first, main also");
    r.policy("sub blocks", &block(OWN, "10.0.0.3").kind(1));
    r.send(socket, "10.0.0.3", 2000, b"blocked");
    r.note("templates of both");
    let sub = allow(OWN, "10.0.0.4").kind(1);
    let to = |spi, reqid| sa(OWN, "10.0.0.4", spi, XFRM_MODE_TRANSPORT, reqid);
    let wants = |reqid| {
        template(
            "0.0.0.0",
            "0.0.0.0",
            IPPROTO_ESP,
            XFRM_MODE_TRANSPORT,
            reqid,
        )
    };
    r.policy("sub protects", &sub.tmpls(&[wants(1)]));
    r.sa("for sub", &to(0x1001, 1));
    r.send(socket, "10.0.0.4", 2000, b"one SA");
    r.policy("main protects", &allow(OWN, "10.0.0.4").tmpls(&[wants(2)]));
    r.sa("for main", &to(0x1002, 2));
    r.send(socket, "10.0.0.4", 2000, b"two SAs");
}

fn socket_policies(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let value = |policy: &Policy| {
        let mut bytes = policy.info.as_bytes().to_vec();
        for (kind, payload) in &policy.attrs {
            assert_eq!(*kind, XFRMA_TMPL);
            bytes.extend(payload);
        }
        bytes
    };
    let bypass = allow("0.0.0.0/0", "0.0.0.0/0");
    let with = r.udp(OWN, 1000);
    let without = r.udp(OWN, 1001);
    r.policy("block all", &block(OWN, "0.0.0.0/0"));
    r.socket_policy(with, "bypass", Some(&value(&bypass)));
    r.send(with, PEER, 2000, b"allowed");
    r.send(without, PEER, 2000, b"blocked");
    let protect = allow("0.0.0.0/0", "0.0.0.0/0").tmpls(&[out_template(XFRM_MODE_TUNNEL)]);
    r.socket_policy(with, "protect", Some(&value(&protect)));
    r.send(with, PEER, 2000, b"no SA");
    r.sa("tunnel", &out(XFRM_MODE_TUNNEL));
    r.send(with, PEER, 2000, b"protected");
    let refuse = block("0.0.0.0/0", "0.0.0.0/0");
    r.socket_policy(with, "block", Some(&value(&refuse)));
    r.send(with, PEER, 2000, b"blocked");
    let narrow = block("0.0.0.0/0", "10.0.0.9");
    r.socket_policy(with, "block for another", Some(&value(&narrow)));
    r.send(with, PEER, 2000, b"the global one blocks");
    r.note("input");
    let deny = refuse.info(|info| info.dir = XFRM_POLICY_IN);
    r.socket_policy(with, "block input", Some(&value(&deny)));
    let back = Ip::new(PEER, OWN);
    r.inject("to it", Link::Outside, &back.udp(2000, 1000, b"blocked"));
    r.inject(
        "to the other",
        Link::Outside,
        &back.udp(2000, 1001, b"allowed"),
    );
    let want =
        policy(XFRM_POLICY_IN, "0.0.0.0/0", "0.0.0.0/0").tmpls(&[in_template(XFRM_MODE_TUNNEL)]);
    r.socket_policy(with, "protected input", Some(&value(&want)));
    r.sa("inward", &inward(XFRM_MODE_TUNNEL));
    r.inject("plain", Link::Outside, &back.udp(2000, 1000, b"blocked"));
    let inner = back.udp(2000, 1000, b"protected");
    r.inject("protected", Link::Outside, &tunnelled(IN_SPI, 1, &inner));
    r.socket_policy(with, "none", None);
    r.inject("plain", Link::Outside, &back.udp(2000, 1000, b"allowed"));
}

fn fragments(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let blocked = block(HOST, REMOTE).info(|info| {
        info.sel.proto = IPPROTO_UDP;
        (info.sel.dport, info.sel.dport_mask) = (BeU16::new(9), BeU16::new(0xffff));
    });
    r.policy("block UDP to 9", &blocked);
    let ip = Ip::new(HOST, REMOTE);
    let datagram = ip.udp(7, 9, &data(64));
    r.inject(
        "first fragment",
        Link::Inside,
        &ip.fragment(0x2000).carry(IPPROTO_UDP, &datagram[20..60]),
    );
    r.inject(
        "last fragment",
        Link::Inside,
        &ip.fragment(5).carry(IPPROTO_UDP, &datagram[60..]),
    );
}
