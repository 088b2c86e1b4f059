//! Headers of packets that arrive: marks, DSCP and ECN, what is inside, fragments.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::craft::*;
use super::road::Road;
use crate::scenario::Scenario;
use crate::session::Session;
use crate::subject::packets::Link;

use super::receive::{TUNNEL, inner, start};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/in_marks", marks),
    Scenario::new("traffic/in_set_mark", set_mark),
    Scenario::new("traffic/in_dscp_and_ecn", dscp_and_ecn),
    Scenario::new("traffic/in_inner_header", inner_header),
    Scenario::new("traffic/in_wildcard_source", wildcard_source),
    Scenario::new("traffic/in_fragments", fragments),
];

fn marks(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(
        &mut r,
        &inward(TUNNEL).pod(XFRMA_MARK, &Mark { v: 5, m: 0xf }),
    );
    r.inject(
        "the SA wants a mark",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &inner()),
    );
    r.sa(
        "any mark with those bits clear",
        &inward(TUNNEL)
            .spi(0x2002)
            .pod(XFRMA_MARK, &Mark { v: 0, m: 0xf }),
    );
    r.inject("no mark", Link::Outside, &tunnelled(0x2002, 1, &inner()));
}

fn set_mark(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    r.udp(OWN, 1000);
    r.sa(
        "sets a mark",
        &inward(TUNNEL)
            .u32(XFRMA_SET_MARK, 0x15)
            .u32(XFRMA_SET_MARK_MASK, 0xff),
    );
    let marked = policy(XFRM_POLICY_IN, PEER, OWN).pod(XFRMA_MARK, &Mark { v: 0x15, m: 0xff });
    r.policy("for that mark", &marked.tmpls(&[in_template(TUNNEL)]));
    r.inject("marked", Link::Outside, &tunnelled(IN_SPI, 1, &inner()));
    r.sa(
        "sets another",
        &inward(TUNNEL).spi(0x2002).u32(XFRMA_SET_MARK, 0x16),
    );
    r.inject(
        "marked otherwise",
        Link::Outside,
        &tunnelled(0x2002, 1, &inner()),
    );
}

fn dscp_and_ecn(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL));
    r.sa(
        "DECAP_DSCP",
        &inward(TUNNEL)
            .spi(0x2002)
            .info(|info| info.flags = XFRM_STATE_DECAP_DSCP),
    );
    r.sa(
        "NOECN",
        &inward(TUNNEL)
            .spi(0x2003)
            .info(|info| info.flags = XFRM_STATE_NOECN),
    );
    for spi in [0x2001, 0x2002, 0x2003] {
        let pairs = [
            (0xb8, 0),
            (0x03, 0x02),
            (0x03, 0x00),
            (0xbb, 0x29),
            (0x01, 0x02),
        ];
        for (seq, (outer, inner)) in (1..).zip(pairs) {
            let inner = Ip::new(REMOTE, HOST).tos(inner).udp(2000, 1000, b"hello");
            let packet = Ip::new(PEER, OWN)
                .tos(outer)
                .carry(IPPROTO_ESP, &esp(spi, seq, IPPROTO_IPIP, &inner));
            r.inject("packet", Link::Outside, &packet);
        }
    }
}

fn inner_header(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL));
    let good = Ip::new(REMOTE, HOST).udp(2000, 1000, b"hello");
    let change = |at: usize, to: u8| {
        let mut packet = good.clone();
        packet[at] = to;
        packet
    };
    r.inject(
        "version 5",
        Link::Outside,
        &tunnelled(IN_SPI, 1, &change(0, 0x55)),
    );
    r.inject(
        "IHL 4",
        Link::Outside,
        &tunnelled(IN_SPI, 2, &change(0, 0x44)),
    );
    r.inject(
        "IHL 15",
        Link::Outside,
        &tunnelled(IN_SPI, 3, &change(0, 0x4f)),
    );
    r.inject(
        "length too long",
        Link::Outside,
        &tunnelled(IN_SPI, 4, &change(3, 200)),
    );
    r.inject(
        "length 0",
        Link::Outside,
        &tunnelled(IN_SPI, 5, &change(3, 0)),
    );
    r.inject(
        "checksum",
        Link::Outside,
        &tunnelled(IN_SPI, 6, &change(10, 0)),
    );
    r.inject(
        "19 bytes",
        Link::Outside,
        &tunnelled(IN_SPI, 7, &good[..19]),
    );
    r.inject(
        "20 bytes",
        Link::Outside,
        &tunnelled(IN_SPI, 8, &good[..20]),
    );
    let longer = [&good[..], &[0; 8]].concat();
    r.inject(
        "bytes behind the end",
        Link::Outside,
        &tunnelled(IN_SPI, 9, &longer),
    );
    r.inject("good", Link::Outside, &tunnelled(IN_SPI, 10, &good));
}

fn wildcard_source(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &sa("0.0.0.0", OWN, IN_SPI, TUNNEL, 2));
    r.inject("any source", Link::Outside, &tunnelled(IN_SPI, 1, &inner()));
}

fn fragments(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(TUNNEL));
    let esp = esp(
        IN_SPI,
        1,
        IPPROTO_IPIP,
        &Ip::new(PEER, OWN).udp(2000, 1000, &data(100)),
    );
    let outer = Ip::new(PEER, OWN);
    r.inject(
        "second half",
        Link::Outside,
        &outer.fragment(8).carry(IPPROTO_ESP, &esp[64..]),
    );
    r.inject(
        "first half",
        Link::Outside,
        &outer.fragment(0x2000).carry(IPPROTO_ESP, &esp[..64]),
    );
    r.note("inner fragments are forwarded as they are");
    let ip = Ip::new(REMOTE, HOST);
    let whole = ip.udp(2000, 1000, &data(100));
    let first = ip.fragment(0x2000).carry(IPPROTO_UDP, &whole[20..84]);
    let last = ip.fragment(8).carry(IPPROTO_UDP, &whole[84..]);
    r.inject("first", Link::Outside, &tunnelled(IN_SPI, 2, &first));
    r.inject("last", Link::Outside, &tunnelled(IN_SPI, 3, &last));
    r.note("inner fragments for the router are put together");
    let ip = Ip::new(PEER, OWN).ident(1);
    let whole = ip.udp(2000, 1000, &data(100));
    let first = ip.fragment(0x2000).carry(IPPROTO_UDP, &whole[20..84]);
    let last = ip.fragment(8).carry(IPPROTO_UDP, &whole[84..]);
    r.inject("first", Link::Outside, &tunnelled(IN_SPI, 4, &first));
    r.inject("last", Link::Outside, &tunnelled(IN_SPI, 5, &last));
}
