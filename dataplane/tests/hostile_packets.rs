//! What was sent to break XFRM, over its history: each class of bug has a test here (or beside the
//! code it is about: fragments in `packet::reassembly`, route headers in `transform::ah`, inner
//! total lengths in `packet::ip4`). Packets below are authentic where an authentic one is needed
//! to get that far: the peer itself is not trusted with our memory.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test"
)]

use dataplane::crypto::{
    AeadAlgorithm, AuthAlgorithm, CipherAlgorithm, Deflate, EspTransform, mac,
};
use dataplane::drop_reason::DropReason;
use dataplane::packet::encap::Encap;
use dataplane::packet::{Family, PacketBuf, ip4, ip6};
use dataplane::profile::V7_2;
use dataplane::transform::ah::{Ah, AhParams};
use dataplane::transform::esp::Esp;
use dataplane::transform::ipcomp::IpComp;
use dataplane::transform::{
    Delivery, Inbound, Mode, ModeParams, Protocol, Route, Scratch, Sequence, Transform,
};
use dataplane::{Profile, SeededEntropy};
use proptest::prelude::*;
use xfrm_proto::consts::XFRM_STATE_DECAP_DSCP;
use xfrm_proto::uapi::Address;

const ROUTE: Route = Route {
    hop_limit: 64,
    outer_mtu: 1500,
    inner_mtu: u32::MAX,
    ident: 7,
};
const SPI: u32 = 0x1001;

fn mode(mode: Mode, outer: Family, inner: Family) -> ModeParams {
    let address = |family, last| match family {
        Family::V4 => Address::v4(10, 0, 0, last),
        Family::V6 => Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
    };
    ModeParams {
        mode,
        family: outer,
        selector_family: Some(inner),
        src: address(outer, 1),
        dst: address(outer, 2),
        selector_src: address(inner, 3),
        selector_dst: address(inner, 4),
        flags: XFRM_STATE_DECAP_DSCP,
        extra_flags: 0,
    }
}

fn gcm() -> EspTransform {
    let mut entropy = SeededEntropy::new(1);
    EspTransform::aead(AeadAlgorithm::AesGcm, &[7; 20], 16, true, &mut entropy).unwrap()
}

fn cbc() -> EspTransform {
    let mut entropy = SeededEntropy::new(1);
    let cipher = (CipherAlgorithm::AesCbc, &[7; 16][..]);
    let auth = (AuthAlgorithm::HmacSha256, &[8; 32][..]);
    EspTransform::authenc(cipher, auth, 16, true, &mut entropy).unwrap()
}

fn esp(params: &ModeParams, crypto: EspTransform, tfc_pad: u32) -> Transform {
    Transform::new(params, Protocol::Esp(Esp::new(SPI, crypto, tfc_pad)), None)
}

fn ah(params: &ModeParams) -> Transform {
    let own = AhParams {
        spi: SPI,
        family: params.family,
        full_icv_bytes: 32,
        align4: false,
        esn: true,
    };
    let mac = mac(AuthAlgorithm::HmacSha256, &[9; 32], 16).unwrap();
    Transform::new(params, Protocol::Ah(Ah::new(&own, mac)), None)
}

fn comp(params: &ModeParams, profile: &'static Profile) -> Transform {
    let comp = IpComp::new(0x1002, 90, profile);
    Transform::new(params, Protocol::IpComp(comp), None)
}

/// An IP packet of a protocol.
fn ip(family: Family, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match family {
        Family::V4 => vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0],
        Family::V6 => vec![0x60, 0, 0, 0, 0, 0, protocol, 64],
    };
    let addresses = match family {
        Family::V4 => [[10, 0, 0, 3], [10, 0, 0, 4]].concat(),
        Family::V6 => [[0xfd; 16], [0xfc; 16]].concat(),
    };
    packet.extend(addresses);
    packet.extend(payload);
    match family {
        Family::V4 => ip4::finish(&mut packet),
        Family::V6 => ip6::finish(&mut packet),
    };
    packet
}

/// The outer packet of an ESP body (payload, padding, trailer) that is authentic.
fn authentic(family: Family, crypto: &EspTransform, body: &[u8]) -> Vec<u8> {
    let layout = *crypto.layout();
    let mut frame = vec![0; layout.prefix_bytes()];
    frame[..4].copy_from_slice(&SPI.to_be_bytes());
    frame[7] = 1;
    frame.extend(body);
    frame.extend(vec![0; layout.icv_bytes]);
    crypto.seal(1, &mut frame).unwrap();
    ip(family, 50, &frame)
}

fn take(transform: &Transform, wire: &[u8]) -> Result<(Delivery, Vec<u8>), DropReason> {
    take_in(transform, wire, Sequence(1))
}

fn take_in(
    transform: &Transform,
    wire: &[u8],
    sequence: Sequence,
) -> Result<(Delivery, Vec<u8>), DropReason> {
    let mut buffer = PacketBuf::with_capacity(70_000);
    buffer.fill(wire);
    let inbound = Inbound::locate(&buffer, 2)?;
    inbound.spi(&buffer)?;
    let opened = transform.open(&mut buffer, &inbound, sequence, &mut Scratch::default())?;
    let delivery = transform.unwrap(&mut buffer, &inbound, &opened)?;
    match delivery {
        Delivery::Next(next) => next.finish(&mut buffer)?,
        Delivery::Packet(Family::V4) => {
            ip4::receive(&mut buffer)?;
        }
        Delivery::Packet(Family::V6) => {
            ip6::receive(&mut buffer)?;
        }
        Delivery::Aggfrag => {}
    }
    Ok((delivery, buffer.to_vec()))
}

fn send(transform: &Transform, inner: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut buffer = PacketBuf::with_capacity(70_000);
    buffer.fill(inner);
    let place = transform.place(&mut buffer, &ROUTE)?;
    let scratch = &mut Scratch::default();
    transform.seal(&mut buffer, &place, Sequence(1), &ROUTE, scratch)?;
    Ok(buffer.to_vec())
}

fn tunnel() -> ModeParams {
    mode(Mode::Tunnel, Family::V4, Family::V4)
}

#[test]
fn shorter_than_headers() {
    let inner = ip(Family::V4, 17, &[1; 40]);
    for transform in [
        esp(&tunnel(), gcm(), 0),
        esp(&tunnel(), cbc(), 0),
        ah(&tunnel()),
    ] {
        let whole = send(&transform, &inner).unwrap();
        for bytes in 20..whole.len() {
            let mut cut = whole[..bytes].to_vec();
            ip4::finish(&mut cut).unwrap();
            let reason = take(&transform, &cut).unwrap_err();
            let header = if whole[9] == 50 { 8 } else { 12 };
            let expected = if bytes - 20 < header {
                "InHdrError"
            } else {
                "InStateProtoError"
            };
            assert_eq!(
                format!("{:?}", reason.counter().unwrap()),
                expected,
                "{bytes}"
            );
        }
    }
}

/// A pad length of more than there is once made the length negative.
#[test]
fn pad_length_lies() {
    for crypto in [gcm, cbc] {
        let transform = esp(&tunnel(), crypto(), 0);
        for pad in 1..=255u8 {
            let mut body = ip(Family::V4, 17, &[0; 10]);
            body.extend([pad, 4]);
            let reason = take(&transform, &authentic(Family::V4, &crypto(), &body)).unwrap_err();
            let expected = match pad {
                // What is left is shorter than its own header says.
                1..=10 => DropReason::InnerTruncated,
                11..=29 => DropReason::InnerShort,
                _ => DropReason::EspPadding,
            };
            assert_eq!(reason, expected, "{pad}");
        }
    }
}

#[test]
fn empty_payload_is_refused() {
    let transform = esp(&mode(Mode::Transport, Family::V4, Family::V4), gcm(), 0);
    let trailer_alone = authentic(Family::V4, &gcm(), &[1, 2, 2, 17]);
    assert_eq!(
        take(&transform, &trailer_alone).unwrap_err(),
        DropReason::EspPadding
    );
    let nothing = authentic(Family::V4, &gcm(), &[]);
    assert_eq!(
        take(&transform, &nothing).unwrap_err(),
        DropReason::EspPadding
    );
    let one = authentic(Family::V4, &gcm(), &[17]);
    assert_eq!(take(&transform, &one).unwrap_err(), DropReason::EspPadding);
}

#[test]
fn dummy_packets() {
    let transform = esp(&tunnel(), gcm(), 0);
    let dummy = authentic(Family::V4, &gcm(), &[0, 0, 0, 0, 1, 2, 2, 59]);
    assert_eq!(take(&transform, &dummy).unwrap_err(), DropReason::EspDummy);
}

#[test]
fn other_protocols_in_a_tunnel() {
    let transform = esp(&tunnel(), gcm(), 0);
    for protocol in (0..=255u8).filter(|protocol| ![4, 41, 59].contains(protocol)) {
        let body = [&ip(Family::V4, 17, &[0; 10])[..], &[0, protocol]].concat();
        let reason = take(&transform, &authentic(Family::V4, &gcm(), &body)).unwrap_err();
        assert_eq!(reason, DropReason::InnerProtocol);
    }
    // The number says IPv6, the packet IPv4, and the other way round.
    for (inner, protocol) in [(Family::V4, 41), (Family::V6, 4)] {
        let body = [&ip(inner, 17, &[0; 40])[..], &[0, protocol]].concat();
        let reason = take(&transform, &authentic(Family::V4, &gcm(), &body)).unwrap_err();
        assert_eq!(reason, DropReason::InnerHeader);
    }
}

#[test]
fn inner_lengths_lie() {
    let transform = esp(&tunnel(), gcm(), 0);
    for total in [0u16, 1, 19, 51, 0xffff] {
        let mut inner = ip(Family::V4, 17, &[0; 30]);
        inner[2..4].copy_from_slice(&total.to_be_bytes());
        ip4::set_checksum(&mut inner).unwrap();
        inner.extend([0, 4]);
        let reason = take(&transform, &authentic(Family::V4, &gcm(), &inner)).unwrap_err();
        assert_eq!(reason.counter(), None, "{total}: {reason:?}");
    }
    let mut inner = ip(Family::V6, 17, &[0; 30]);
    inner[5] = 31;
    inner.extend([0, 41]);
    let reason = take(&transform, &authentic(Family::V4, &gcm(), &inner)).unwrap_err();
    assert_eq!(reason, DropReason::InnerTruncated);
}

/// A wrong high half must fail, whatever the low one is.
#[test]
fn esn_high_half_is_authenticated() {
    for transform in [
        esp(&tunnel(), gcm(), 0),
        esp(&tunnel(), cbc(), 0),
        ah(&tunnel()),
    ] {
        let wire = send(&transform, &ip(Family::V4, 17, &[1; 40])).unwrap();
        assert!(take_in(&transform, &wire, Sequence::new(0, 1)).is_ok());
        for high in [1, u32::MAX] {
            let reason = take_in(&transform, &wire, Sequence::new(high, 1)).unwrap_err();
            assert!(matches!(reason, DropReason::EspIcv | DropReason::AhIcv));
        }
    }
}

#[test]
fn ah_length_lies() {
    let transform = ah(&mode(Mode::Transport, Family::V4, Family::V4));
    let wire = send(&transform, &ip(Family::V4, 17, &[1; 40])).unwrap();
    for words in 0..=255u8 {
        let mut lying = wire.clone();
        lying[21] = words;
        let result = take(&transform, &lying);
        match words {
            6 => assert!(result.is_ok()),
            // As long as the full ICV would be.
            10 => assert_eq!(result.unwrap_err(), DropReason::AhIcv),
            _ => assert_eq!(result.unwrap_err(), DropReason::AhLength),
        }
    }
}

#[test]
fn ah_may_be_as_long_as_the_full_icv() {
    let transform = ah(&mode(Mode::Transport, Family::V4, Family::V4));
    let mut own = vec![17, 10, 0, 0, 0, 0, 0x10, 1, 0, 0, 0, 1];
    own.extend([0; 16]);
    own.extend([0xee; 20]);
    let mut wire = ip(Family::V4, 51, &[&own[..], &[1; 40]].concat());
    let mut blank = wire.clone();
    blank[6..9].fill(0);
    blank[10..12].fill(0);
    let mac = mac(AuthAlgorithm::HmacSha256, &[9; 32], 16).unwrap();
    mac.write(&[&blank, &[0; 4]], &mut wire[32..48]);
    assert_eq!(
        take(&transform, &wire).unwrap().1,
        ip(Family::V4, 17, &[1; 40])
    );
    wire[48] ^= 1;
    assert_eq!(take(&transform, &wire).unwrap_err(), DropReason::AhIcv);
}

#[test]
fn ah_inside_esp_fails() {
    for family in [Family::V4, Family::V6] {
        let params = mode(Mode::Transport, family, family);
        let (inside, outside) = (ah(&params), esp(&params, gcm(), 0));
        let inner = ip(family, 17, &[1; 40]);
        let alone = send(&inside, &inner).unwrap();
        assert!(take(&inside, &alone).is_ok());
        let mut buffer = PacketBuf::copy_of(&send(&outside, &alone).unwrap());
        let scratch = &mut Scratch::default();
        let inbound = Inbound::locate(&buffer, 0).unwrap();
        let opened = outside
            .open(&mut buffer, &inbound, Sequence(1), scratch)
            .unwrap();
        let Ok(Delivery::Next(next)) = outside.unwrap(&mut buffer, &inbound, &opened) else {
            panic!("transport mode");
        };
        let result = inside.open(&mut buffer, &next, Sequence(1), scratch);
        assert_eq!(result, Err(DropReason::AhIcv));
    }
}

#[test]
fn beet_reserved_byte_is_a_leftover() {
    let transform = esp(&mode(Mode::Beet, Family::V4, Family::V4), gcm(), 0);
    // A pseudo header of eight bytes begins at the source address, one of four at the destination.
    for (options, leftover) in [(8, 3), (4, 4)] {
        let mut inner = ip(Family::V4, 17, &vec![1; options + 30]);
        inner[0] = 0x45 + u8::try_from(options / 4).unwrap();
        let mut buffer = PacketBuf::copy_of(&inner);
        let place = transform.place(&mut buffer, &ROUTE).unwrap();
        assert_eq!(buffer[place.payload_at + 3], leftover);
    }
}

#[test]
fn oversize() {
    let v4 = |bytes: usize| ip(Family::V4, 17, &vec![0; bytes - 20]);
    let transform = esp(&tunnel(), gcm(), 0);
    assert_eq!(
        send(&transform, &v4(65_535)).unwrap_err(),
        DropReason::OutOversize
    );
    assert_eq!(
        send(&ah(&tunnel()), &v4(65_535)).unwrap_err(),
        DropReason::OutOversize
    );
    let longest = (65_000..65_535)
        .rev()
        .find(|bytes| send(&transform, &v4(*bytes)).is_ok());
    let wire = send(&transform, &v4(longest.unwrap())).unwrap();
    assert!(wire.len() > 65_525);
    assert_eq!(take(&transform, &wire).unwrap().1, v4(longest.unwrap()));

    let encap = Encap {
        kind: 2,
        sport: 4500,
        dport: 4500,
    };
    for outer in [Family::V4, Family::V6] {
        let esp = Protocol::Esp(Esp::new(SPI, gcm(), 0));
        let in_udp = Transform::new(&mode(Mode::Tunnel, outer, Family::V4), esp, Some(encap));
        assert_eq!(
            send(&in_udp, &v4(65_530)).unwrap_err(),
            DropReason::OutOversize
        );
        let wire = send(&in_udp, &v4(60_000)).unwrap();
        assert_eq!(take(&in_udp, &wire).unwrap().1, v4(60_000));
    }
}

/// TFC padding of any size goes no further than the path's MTU, or the room there is.
#[test]
fn padding_is_bounded() {
    let transform = esp(&tunnel(), cbc(), u32::MAX);
    let wire = send(&transform, &ip(Family::V4, 17, &[1; 40])).unwrap();
    assert!(wire.len() <= 1500, "{}", wire.len());
    let route = Route {
        outer_mtu: u32::MAX,
        ..ROUTE
    };
    let mut buffer = PacketBuf::copy_of(&ip(Family::V4, 17, &[1; 40]));
    let place = transform.place(&mut buffer, &route).unwrap();
    let scratch = &mut Scratch::default();
    let refused = transform.seal(&mut buffer, &place, Sequence(1), &route, scratch);
    assert_eq!(refused, Err(DropReason::OutNoRoom));
}

#[test]
fn tunnels_in_tunnels_run_out_of_room() {
    let transform = esp(&mode(Mode::Tunnel, Family::V6, Family::V6), gcm(), 0);
    let mut buffer = PacketBuf::with_capacity(2000);
    buffer.fill(&ip(Family::V6, 17, &[1; 100]));
    let scratch = &mut Scratch::default();
    let mut depth = 0;
    let reason = loop {
        let sealed = transform
            .place(&mut buffer, &ROUTE)
            .and_then(|place| transform.seal(&mut buffer, &place, Sequence(1), &ROUTE, scratch));
        match sealed {
            Ok(()) => depth += 1,
            Err(reason) => break reason,
        }
    };
    assert_eq!(reason, DropReason::OutNoRoom);
    assert!(depth >= 6, "{depth}");
}

#[test]
fn decompression_is_bounded() {
    let params = mode(Mode::Transport, Family::V4, Family::V4);
    let mut deflate = Deflate::default();
    let mut squeezed = |bytes: usize| {
        let mut out = vec![0; bytes + 100];
        let length = deflate.compress(&vec![0; bytes], &mut out).unwrap();
        out.truncate(length);
        ip(Family::V4, 108, &[&[17, 0, 0x10, 2], &out[..]].concat())
    };
    let (most, more) = (squeezed(65_400), squeezed(65_401));
    let bomb = squeezed(10_000_000);
    let transform = comp(&params, &V7_2);
    assert_eq!(take(&transform, &most).unwrap().1.len(), 65_420);
    assert_eq!(take(&transform, &more).unwrap_err(), DropReason::CompData);
    assert_eq!(
        take(&transform, &bomb[..60_000.min(bomb.len())]).unwrap_err(),
        DropReason::CompData
    );
    for bytes in 20..24 {
        let mut short = most[..bytes].to_vec();
        ip4::finish(&mut short).unwrap();
        assert_eq!(
            take(&transform, &short).unwrap_err(),
            DropReason::InHeaderShort
        );
    }
    assert_eq!(
        take(&transform, &ip(Family::V4, 108, &[17, 0, 0x10, 2])).unwrap_err(),
        DropReason::CompData
    );
}

#[test]
fn ipcomp_growth_of_one() {
    let params = mode(Mode::Transport, Family::V4, Family::V4);
    let mut deflate = Deflate::default();
    // Plain text that deflate makes shorter by one to three bytes.
    for bytes in 90..400usize {
        let plain: Vec<u8> = (0..bytes)
            .map(|i| (i * i % 251 * 7 % 256).to_be_bytes()[7])
            .collect();
        let mut plain = plain;
        plain[40..50].copy_from_slice(&[5; 10]);
        let mut out = vec![0; bytes + 100];
        let length = deflate.compress(&plain, &mut out).unwrap();
        let Some(gain @ 1..4) = bytes.checked_sub(length) else {
            continue;
        };
        out.truncate(length);
        let wire = ip(Family::V4, 108, &[&[17, 0, 0x10, 2], &out[..]].concat());
        assert!(take(&comp(&params, &V7_2), &wire).is_ok(), "{gain}");
        let older = take(&comp(&params, &dataplane::profile::V6_12), &wire);
        assert_eq!(older.unwrap_err(), DropReason::CompGrew);
        return;
    }
    panic!("no such text");
}

#[test]
fn beet_option_length_wraps() {
    let params = mode(Mode::Beet, Family::V4, Family::V4);
    let transform = esp(&params, gcm(), 0);
    let with = |header: [u8; 4]| {
        let body = [&header[..], &[1; 300], &[0, 94]].concat();
        take(&transform, &authentic(Family::V4, &gcm(), &body))
    };
    // 40 bytes of options are the most that a header has.
    assert!(with([17, 4, 0, 0]).is_ok());
    for (units, pad, reason) in [
        (30, 0, DropReason::InnerHeader),
        (31, 0, DropReason::BeetHeader),
        (255, 0, DropReason::BeetHeader),
        (1, 1, DropReason::BeetHeader),
        (0, 255, DropReason::BeetHeader),
        (31, 252, DropReason::BeetHeader),
    ] {
        match with([17, units, pad, 0]) {
            Err(refused) => assert_eq!(refused, reason, "{units} {pad}"),
            // The wrapped length happens to make a header.
            Ok(_) => assert!(usize::from(units) * 8 > 40),
        }
    }
}

#[test]
fn extension_headers_that_lie() {
    let params = mode(Mode::Transport, Family::V6, Family::V6);
    for transform in [esp(&params, gcm(), 0), ah(&params)] {
        for kind in [0, 43, 60] {
            for units in [1, 2, 255] {
                let mut packet = ip(Family::V6, kind, &[17, units, 1, 4, 0, 0, 0, 0]);
                assert!(send(&transform, &packet).is_err(), "{kind} {units}");
                packet[40] = 50;
                assert!(take(&transform, &packet).is_err());
            }
        }
        // As many headers as there is room for.
        let chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(8000);
        assert!(send(&transform, &ip(Family::V6, 60, &chain)).is_err());
        assert!(take(&transform, &ip(Family::V6, 60, &chain)).is_err());
    }
}

/// All transforms, for packets that nobody thought of.
fn everything() -> Vec<Transform> {
    let mut all = Vec::new();
    for params in [
        mode(Mode::Transport, Family::V4, Family::V4),
        mode(Mode::Transport, Family::V6, Family::V6),
        mode(Mode::Tunnel, Family::V4, Family::V6),
        mode(Mode::Tunnel, Family::V6, Family::V4),
        mode(Mode::Beet, Family::V4, Family::V4),
        mode(Mode::Beet, Family::V6, Family::V4),
        mode(Mode::Beet, Family::V4, Family::V6),
    ] {
        all.push(esp(&params, gcm(), 0));
        all.push(esp(&params, cbc(), 100));
        all.push(ah(&params));
        if params.mode != Mode::Beet {
            all.push(comp(&params, &V7_2));
        }
    }
    all
}

/// A header that is likely to parse, then anything.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop::sample::select(vec![0u8, 4, 17, 41, 43, 44, 50, 51, 60, 94, 108, 58]);
    let anything = proptest::collection::vec(any::<u8>(), 0..300);
    (any::<bool>(), protocol, anything, 5u8..=15).prop_map(|(v6, protocol, rest, words)| {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut packet = ip(family, protocol, &rest);
        if !v6 {
            packet[0] = 0x40 | words;
        }
        packet
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), plausible()]) {
        for transform in everything() {
            let _ = take(&transform, &bytes);
            let _ = send(&transform, &bytes);
        }
    }

    /// Nothing that is not authentic comes through; what routers may change does not matter to ESP.
    #[test]
    fn a_flipped_bit_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        for transform in [esp(&tunnel(), gcm(), 0), esp(&tunnel(), cbc(), 0), ah(&tunnel())] {
            let wire = send(&transform, &ip(Family::V4, 17, &[1; 50])).unwrap();
            let mut spoiled = wire.clone();
            let at = 20 + at.index(wire.len() - 20);
            spoiled[at] ^= 1 << bit;
            prop_assert!(take(&transform, &spoiled).is_err(), "{}", at);
        }
    }

    #[test]
    fn what_is_sealed_opens(v6: bool, payload in proptest::collection::vec(any::<u8>(), 1..1400), tos: u8) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut inner = ip(family, 17, &payload);
        match family {
            Family::V4 => ip4::set_tos(&mut inner, tos).unwrap(),
            Family::V6 => ip6::set_traffic_class(&mut inner, tos).unwrap(),
        }
        for (kind, outer) in [(Mode::Tunnel, Family::V4), (Mode::Tunnel, Family::V6), (Mode::Transport, family)] {
            let params = mode(kind, outer, family);
            let tfc = if kind == Mode::Tunnel { 300 } else { 0 };
            for transform in [esp(&params, gcm(), 0), esp(&params, cbc(), tfc), ah(&params), comp(&params, &V7_2)] {
                let wire = send(&transform, &inner).unwrap();
                let first = Inbound::locate(&wire, 0).unwrap().protocol;
                if matches!(first, 50 | 51 | 108) {
                    prop_assert_eq!(&take(&transform, &wire).unwrap().1, &inner);
                }
            }
        }
    }
}
