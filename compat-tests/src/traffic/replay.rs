//! Sequence numbers on the way in.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::craft::*;
use super::road::Road;
use crate::scenario::{Sa, Scenario};
use crate::session::Session;
use crate::subject::packets::Link;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("traffic/replay_none", none),
    Scenario::new("traffic/replay_legacy", legacy),
    Scenario::new("traffic/replay_bitmap", bitmap),
    Scenario::new("traffic/replay_esn", with_esn),
    Scenario::new("traffic/replay_esn_near_wrap", esn_near_wrap),
    Scenario::new("traffic/replay_odd_window", odd_window),
    Scenario::new("traffic/replay_of_bad_packets", bad_packets),
];

fn start(r: &mut Road<'_, '_>, sa: &Sa) {
    r.udp(OWN, 1000);
    r.sa("in", sa);
    let template = in_template(XFRM_MODE_TUNNEL);
    r.policy("in", &policy(XFRM_POLICY_IN, PEER, OWN).tmpls(&[template]));
}

fn inner() -> Vec<u8> {
    Ip::new(PEER, OWN).udp(2000, 1000, b"x")
}

fn play(r: &mut Road<'_, '_>, numbers: &[u32]) {
    for &seq in numbers {
        r.inject("packet", Link::Outside, &tunnelled(IN_SPI, seq, &inner()));
    }
}

fn none(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(&mut r, &inward(XFRM_MODE_TUNNEL));
    play(&mut r, &[1, 1, 5, 3, 0, u32::MAX]);
}

fn legacy(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(
        &mut r,
        &inward(XFRM_MODE_TUNNEL).info(|info| info.replay_window = 32),
    );
    play(
        &mut r,
        &[
            0,
            1,
            1,
            3,
            2,
            2,
            40,
            8,
            9,
            9,
            39,
            41,
            10,
            9,
            72,
            41,
            40,
            1000,
            968,
            969,
            u32::MAX,
            0,
            1,
        ],
    );
    r.note("a window of four");
    r.sa(
        "small",
        &inward(XFRM_MODE_TUNNEL)
            .spi(0x2002)
            .info(|info| info.replay_window = 4),
    );
    for seq in [4, 1, 2, 5, 1, 2, 9, 6, 5] {
        r.inject("packet", Link::Outside, &tunnelled(0x2002, seq, &inner()));
    }
}

/// An SA with a bitmap of `words` words.
fn with_bitmap(head: ReplayStateEsn, words: u32) -> Sa {
    let head = ReplayStateEsn {
        bmp_len: words,
        ..head
    };
    let mut value = head.as_bytes().to_vec();
    value.resize(value.len() + words as usize * 4, 0);
    inward(XFRM_MODE_TUNNEL).attr(XFRMA_REPLAY_ESN_VAL, value)
}

fn bitmap(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let head = ReplayStateEsn {
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    start(&mut r, &with_bitmap(head, 2));
    play(
        &mut r,
        &[
            0,
            1,
            1,
            64,
            2,
            65,
            1,
            2,
            200,
            136,
            137,
            137,
            u32::MAX,
            0,
            5,
            u32::MAX - 63,
        ],
    );
}

fn esn_of(head: ReplayStateEsn, words: u32) -> Sa {
    with_bitmap(head, words).info(|info| info.flags = XFRM_STATE_ESN)
}

fn play_esn(r: &mut Road<'_, '_>, numbers: &[u64]) {
    for &seq in numbers {
        let esp = esp_esn(IN_SPI, seq, IPPROTO_IPIP, &inner());
        let label = format!("packet {:x}:{:x}", seq >> 32, seq as u32);
        r.inject(
            &label,
            Link::Outside,
            &Ip::new(PEER, OWN).carry(IPPROTO_ESP, &esp),
        );
    }
}

fn with_esn(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let head = ReplayStateEsn {
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    start(&mut r, &esn_of(head, 2));
    play_esn(
        &mut r,
        &[
            0,
            1,
            1,
            100,
            37,
            36,
            100,
            1 << 32 | 5,
            0xffff_fff0,
            1 << 32 | 5,
            1 << 32 | 5,
            0xffff_fff5,
            0xffff_fff0,
            2 << 32 | 9,
        ],
    );
}

fn esn_near_wrap(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let head = ReplayStateEsn {
        replay_window: 32,
        seq: 0xffff_ffff,
        seq_hi: 3,
        ..ReplayStateEsn::default()
    };
    start(&mut r, &esn_of(head, 1));
    play_esn(
        &mut r,
        &[
            0x3_ffff_fff0,
            0x4_0000_0000,
            0x4_0000_0000,
            0x3_ffff_fff0,
            0x3_ffff_ffff,
            0x4_0000_001f,
            0x4_0000_0001,
            0x3_ffff_fff1,
            0x5_0000_0000,
        ],
    );
}

fn odd_window(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    let head = ReplayStateEsn {
        replay_window: 50,
        ..ReplayStateEsn::default()
    };
    start(&mut r, &with_bitmap(head, 2));
    play(&mut r, &[1, 1, 1, 2, 2, 51, 1, 2, 3, 120, 70, 71]);
}

fn bad_packets(s: &mut Session<'_>) {
    let mut r = Road::new(s);
    start(
        &mut r,
        &inward(XFRM_MODE_TUNNEL).info(|info| info.replay_window = 32),
    );
    let spoil = |seq| {
        let mut packet = tunnelled(IN_SPI, seq, &inner());
        *packet.last_mut().unwrap() ^= 1;
        packet
    };
    r.inject("bad", Link::Outside, &spoil(100));
    play(&mut r, &[1]);
    r.inject("bad, in the window", Link::Outside, &spoil(2));
    play(&mut r, &[2]);
    r.inject("bad, seen", Link::Outside, &spoil(2));
}
