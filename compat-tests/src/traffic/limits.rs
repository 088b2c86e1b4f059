//! What runs out: bytes, packets, seconds of use, sequence numbers; and who is told.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::craft::*;
use super::road::Road;
use crate::message::Message;
use crate::scenario::{Sa, Scenario};
use crate::session::Session;
use crate::subject::UdpSocket;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/limit_packets_out", packets_out),
    Scenario::new("traffic/limit_bytes_out", bytes_out),
    Scenario::new("traffic/limit_packets_in", packets_in),
    Scenario::new("traffic/limit_bytes_in", bytes_in),
    Scenario::new("traffic/limit_zero", zero),
    Scenario::new("traffic/limit_in_bundle", in_bundle),
    Scenario::sleeping("traffic/limit_use_time", use_time),
    Scenario::sleeping("traffic/limit_policy_use_time", policy_use_time),
    Scenario::new("traffic/sequence_ends", sequence_ends),
    Scenario::new("traffic/sequence_may_wrap", sequence_may_wrap),
    Scenario::new("traffic/sequence_esn", sequence_esn),
    Scenario::sleeping("traffic/aevents_out", aevents_out),
    Scenario::sleeping("traffic/aevents_in", aevents_in),
    Scenario::sleeping("traffic/aevents_deferred", aevents_deferred),
];

const TUNNEL: u8 = XFRM_MODE_TUNNEL;
const TRANSPORT: u8 = XFRM_MODE_TRANSPORT;

/// A socket whose packets to the peer pass an SA.
fn sender(r: &mut Road<'_, '_>, sa: &Sa) -> UdpSocket {
    let socket = r.udp(OWN, 1000);
    r.sa("out", sa);
    let template = out_template(sa.info.mode);
    r.policy(
        "out",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[template]),
    );
    socket
}

/// A socket that takes what comes through an SA.
fn receiver(r: &mut Road<'_, '_>, sa: &Sa) -> UdpSocket {
    let socket = r.udp(OWN, 1000);
    r.sa("in", sa);
    let template = in_template(sa.info.mode);
    r.policy("in", &policy(XFRM_POLICY_IN, PEER, OWN).tmpls(&[template]));
    socket
}

/// A datagram to that socket.
fn datagram() -> Vec<u8> {
    Ip::new(PEER, OWN).udp(2000, 1000, b"ten bytes.")
}

fn packets_out(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let limited = out(TUNNEL).info(|info| {
        (info.lft.soft_packet_limit, info.lft.hard_packet_limit) = (2, 4);
    });
    let socket = sender(&mut r, &limited);
    for _ in 0..6 {
        r.send(socket, PEER, 2000, b"ten bytes.");
    }
    r.sa("another", &limited.spi(0x1002));
    for _ in 0..3 {
        r.send(socket, PEER, 2000, b"ten bytes.");
    }
}

fn bytes_out(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    for mode in [TUNNEL, TRANSPORT] {
        r.note(&format!("mode {mode}"));
        r.request(
            "flush",
            crate::scenario::build::flush_policy().flags(NLM_F_REQUEST | NLM_F_ACK),
        );
        let limited = out(mode).spi(0x1010 + u32::from(mode)).info(|info| {
            (info.lft.soft_byte_limit, info.lft.hard_byte_limit) = (38, 100);
        });
        let socket = r.udp(OWN, 1000 + u16::from(mode));
        r.sa("out", &limited);
        let template = out_template(mode);
        r.policy(
            "out",
            &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[template]),
        );
        for _ in 0..8 {
            r.send(socket, PEER, 2000, b"ten bytes.");
        }
    }
}

fn packets_in(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let limited = inward(TUNNEL).info(|info| {
        (info.lft.soft_packet_limit, info.lft.hard_packet_limit) = (2, 4);
        info.replay_window = 32;
    });
    receiver(&mut r, &limited);
    for seq in 1..=6 {
        r.inject(
            "packet",
            Link::Outside,
            &tunnelled(IN_SPI, seq, &datagram()),
        );
    }
}

fn bytes_in(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let limited = inward(TRANSPORT).info(|info| {
        (info.lft.soft_byte_limit, info.lft.hard_byte_limit) = (20, 50);
    });
    receiver(&mut r, &limited);
    let outer = Ip::new(PEER, OWN);
    for seq in 1..=5 {
        let packet = transported(&outer, IN_SPI, seq, &datagram());
        r.inject("packet", Link::Outside, &packet);
    }
}

fn zero(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let limited =
        |sa: Sa| sa.info(|info| (info.lft.soft_packet_limit, info.lft.hard_packet_limit) = (0, 0));
    let socket = sender(&mut r, &limited(out(TUNNEL)));
    r.send(socket, PEER, 2000, b"x");
    r.sa(
        "soft alone",
        &out(TUNNEL)
            .spi(0x1002)
            .info(|info| info.lft.soft_byte_limit = 0),
    );
    r.send(socket, PEER, 2000, b"x");
    r.send(socket, PEER, 2000, b"x");
    r.sa("in", &limited(inward(TUNNEL)));
    r.inject("packet", Link::Outside, &tunnelled(IN_SPI, 1, &datagram()));
    r.inject("packet", Link::Outside, &tunnelled(IN_SPI, 2, &datagram()));
}

fn in_bundle(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let inner = sa(OWN, PEER, 0x1001, TRANSPORT, 1);
    let outer = sa(OWN, PEER, 0x1002, TRANSPORT, 2);
    r.sa("inner", &inner);
    r.sa(
        "outer, limited",
        &outer.info(|info| info.lft.hard_packet_limit = 1),
    );
    let wants = |reqid| template("0.0.0.0", "0.0.0.0", IPPROTO_ESP, TRANSPORT, reqid);
    r.policy(
        "both",
        &policy(XFRM_POLICY_OUT, OWN, PEER).tmpls(&[wants(1), wants(2)]),
    );
    for _ in 0..3 {
        r.send(socket, PEER, 2000, b"x");
    }
}

fn use_time(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let limited = out(TUNNEL).info(|info| {
        info.lft.soft_use_expires_seconds = 2;
        info.lft.hard_use_expires_seconds = 4;
    });
    let socket = sender(&mut r, &limited);
    r.sleep_until(1500);
    r.send(socket, PEER, 2000, b"used");
    r.sleep_until(2500);
    r.sleep_until(4500);
    r.send(socket, PEER, 2000, b"dying");
    r.sleep_until(6500);
    r.send(socket, PEER, 2000, b"gone");
}

fn policy_use_time(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = r.udp(OWN, 1000);
    let limited = policy(XFRM_POLICY_OUT, OWN, PEER).info(|info| {
        info.action = XFRM_POLICY_BLOCK;
        info.lft.soft_use_expires_seconds = 2;
        info.lft.hard_use_expires_seconds = 5;
    });
    r.policy("limited", &limited);
    r.sleep_until(1500);
    r.send(socket, PEER, 2000, b"blocked");
    r.sleep_until(2800);
    r.sleep_until(4800);
    r.sleep_until(7800);
    r.send(socket, PEER, 2000, b"plain");
}

/// Output starts at `oseq`.
fn starting(sa: Sa, oseq: u32) -> Sa {
    let replay = ReplayState {
        oseq,
        ..ReplayState::default()
    };
    sa.pod(XFRMA_REPLAY_VAL, &replay)
}

fn sequence_ends(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let socket = sender(&mut r, &starting(out(TUNNEL), u32::MAX - 2));
    for _ in 0..4 {
        r.send(socket, PEER, 2000, b"x");
    }
    r.policy(
        "forwarded",
        &policy(XFRM_POLICY_OUT, HOST, REMOTE).tmpls(&[out_template(TUNNEL)]),
    );
    r.inject(
        "through",
        Link::Inside,
        &Ip::new(HOST, REMOTE).udp(1, 2, b"x"),
    );
}

fn sequence_may_wrap(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let sa = starting(out(TUNNEL), u32::MAX - 1).u32(XFRMA_SA_EXTRA_FLAGS, 2);
    let socket = sender(&mut r, &sa);
    for _ in 0..4 {
        r.send(socket, PEER, 2000, b"x");
    }
}

/// REPLAY_ESN_VAL with room for `window` bits.
fn esn(head: ReplayStateEsn) -> Vec<u8> {
    let words = head.replay_window.div_ceil(32);
    let head = ReplayStateEsn {
        bmp_len: words,
        ..head
    };
    let mut out = head.as_bytes().to_vec();
    out.resize(out.len() + words as usize * 4, 0);
    out
}

fn sequence_esn(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let numbers = |oseq_hi, oseq| {
        esn(ReplayStateEsn {
            oseq,
            oseq_hi,
            replay_window: 32,
            ..ReplayStateEsn::default()
        })
    };
    let with = |numbers: Vec<u8>| {
        out(TUNNEL)
            .info(|info| info.flags = XFRM_STATE_ESN)
            .attr(XFRMA_REPLAY_ESN_VAL, numbers)
    };
    let socket = sender(&mut r, &with(numbers(0, u32::MAX - 1)));
    for _ in 0..3 {
        r.send(socket, PEER, 2000, b"x");
    }
    r.note("the end of 64 bits");
    r.sa(
        "at the end",
        &with(numbers(u32::MAX, u32::MAX - 1)).spi(0x1002),
    );
    for _ in 0..3 {
        r.send(socket, PEER, 2000, b"x");
    }
    r.note("a bitmap without ESN");
    let plain = out(TUNNEL)
        .spi(0x1003)
        .attr(XFRMA_REPLAY_ESN_VAL, numbers(0, u32::MAX - 1));
    r.sa("bitmap", &plain);
    for _ in 0..3 {
        r.send(socket, PEER, 2000, b"x");
    }
}

fn aevents_out(s: &mut Session<'_>) {
    let mut r = Road::with_aevent_timers(s);
    let sa = out(TUNNEL)
        .u32(XFRMA_REPLAY_THRESH, 3)
        .u32(XFRMA_ETIMER_THRESH, 100);
    let socket = sender(&mut r, &sa);
    for _ in 0..7 {
        r.send(socket, PEER, 2000, b"x");
    }
    r.note("what is left is told after a second");
    r.sleep_until(500);
    r.sleep_until(2000);
    r.note("thresholds of the namespace");
    r.sa("defaults", &out(TUNNEL).spi(0x1002));
    for _ in 0..5 {
        r.send(socket, PEER, 2000, b"x");
    }
    r.sleep_until(2500);
    r.sleep_until(4000);
}

fn aevents_in(s: &mut Session<'_>) {
    let mut r = Road::with_aevent_timers(s);
    let sa = inward(TUNNEL)
        .u32(XFRMA_REPLAY_THRESH, 4)
        .info(|info| info.replay_window = 32);
    receiver(&mut r, &sa);
    for seq in [1, 2, 3, 4, 5, 20, 21, 19] {
        r.inject(
            "packet",
            Link::Outside,
            &tunnelled(IN_SPI, seq, &datagram()),
        );
    }
    r.sleep_until(500);
    r.sleep_until(2500);
    r.note("ESN");
    let sa = sa.without(XFRMA_REPLAY_THRESH);
    let head = ReplayStateEsn {
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    let sa = sa
        .spi(0x2002)
        .info(|info| {
            info.flags = XFRM_STATE_ESN;
            info.replay_window = 0;
        })
        .attr(XFRMA_REPLAY_ESN_VAL, esn(head));
    r.sa("ESN", &sa);
    for seq in [1, 2, 3, 200, 201] {
        let inner = datagram();
        let packet =
            Ip::new(PEER, OWN).carry(IPPROTO_ESP, &esp_esn(0x2002, seq, IPPROTO_IPIP, &inner));
        r.inject("packet", Link::Outside, &packet);
    }
    r.sleep_until(3000);
    r.sleep_until(4500);
}

fn aevents_deferred(s: &mut Session<'_>) {
    let mut r = Road::with_aevent_timers(s);
    let sa = out(TUNNEL)
        .u32(XFRMA_REPLAY_THRESH, 100)
        .u32(XFRMA_ETIMER_THRESH, 80);
    let socket = sender(&mut r, &sa);
    r.note("the timer finds nothing new: the next packet tells at once");
    r.sleep_until(1300);
    r.send(socket, PEER, 2000, b"x");
    r.send(socket, PEER, 2000, b"x");
    r.sleep_until(1800);
    r.sleep_until(3500);
    r.send(socket, PEER, 2000, b"x");
    r.sleep_until(3900);
    r.sleep_until(5600);
    let ask = AeventId {
        sa_id: sa.id(),
        ..AeventId::default()
    };
    let change = Message::with(XFRM_MSG_NEWAE, &ask)
        .flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE)
        .u32(XFRMA_REPLAY_THRESH, 2);
    r.request("a lower threshold", change);
    r.send(socket, PEER, 2000, b"x");
    r.send(socket, PEER, 2000, b"x");
    r.send(socket, PEER, 2000, b"x");
}
