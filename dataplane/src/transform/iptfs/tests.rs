//! Both sides, one against the other and against anything.

use proptest::prelude::*;
use xfrm_proto::consts::XFRM_STATE_DECAP_DSCP;

use super::*;
use crate::packet::{PacketBuf, ip4, ip6};
use crate::sad::sa::IptfsConfig;
use crate::time::BootNanos;
use crate::transform::Sequence;

const CONFIG: IptfsConfig = IptfsConfig {
    drop_time_usecs: 1_000_000,
    reorder_window: 3,
    dont_frag: false,
    init_delay_usecs: 1000,
    max_queue_bytes: 10 << 20,
    packet_bytes: 0,
};

/// GCM in an IPv4 tunnel.
const GCM: SendParams = SendParams {
    config: CONFIG,
    header_bytes: 20 + 8 + 8 + 4,
    icv_bytes: 16,
    block_bytes: 4,
};

/// CBC with HMAC-SHA-1 in an IPv4 tunnel.
const CBC: SendParams = SendParams {
    header_bytes: 20 + 8 + 16 + 4,
    icv_bytes: 12,
    block_bytes: 16,
    ..GCM
};

#[derive(Debug, Default, PartialEq, Eq)]
struct Out {
    packets: Vec<Vec<u8>>,
    dropped: Vec<DropReason>,
}

impl Sink for Out {
    fn packet(&mut self, packet: &mut [u8]) {
        self.packets.push(packet.to_vec());
    }

    fn dropped(&mut self, reason: DropReason) {
        self.dropped.push(reason);
    }
}

fn v4(bytes: usize, tos: u8) -> Vec<u8> {
    let mut packet = vec![0x45, tos];
    packet.resize(bytes, 0x11);
    ip4::finish(&mut packet).unwrap();
    packet
}

fn v6(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x60];
    packet.resize(bytes, 0x11);
    ip6::finish(&mut packet).unwrap();
    packet
}

fn payload(block_offset: u16, blocks: &[&[u8]]) -> Vec<u8> {
    let mut payload = Header::write(block_offset).to_vec();
    payload.extend(blocks.concat());
    payload
}

fn receiver(config: IptfsConfig, flags: u8) -> Receive {
    Receive::new(&ReceiveParams { config, flags })
}

/// What a receiver makes of payloads that come in order.
fn take(flags: u8, payloads: &[Vec<u8>]) -> Out {
    let mut receive = receiver(CONFIG, flags);
    let mut out = Out::default();
    for (number, payload) in payloads.iter().enumerate() {
        let sequence = Sequence(number as u64 + 1);
        receive.take(&mut payload.clone(), sequence, BootNanos(0), &mut out);
    }
    out
}

/// The payloads of packets that meet in a queue.
fn payloads(params: SendParams, mtu: u32, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut send = Send::new(params);
    for packet in packets {
        send.push(&mut packet.clone(), (), mtu, BootNanos(0))
            .unwrap();
    }
    let mut buffer = PacketBuf::with_capacity(crate::packet::buffer::MAX_PACKET);
    let mut made = Vec::new();
    let due = send.poll_timeout().unwrap_or_default();
    while let Some(popped) = send.pop(due, |()| mtu, &mut buffer) {
        assert_eq!(popped, Popped::Payload(&()));
        made.push(buffer.to_vec());
    }
    made
}

/// Bytes of an outer packet around a payload.
fn outer_bytes(params: &SendParams, payload: &[u8]) -> u32 {
    let encrypted = u32::try_from(payload.len() + 2).unwrap();
    let encrypted = encrypted.next_multiple_of(params.block_bytes);
    params.header_bytes - 4 + encrypted + params.icv_bytes
}

#[test]
fn iptfs_congestion_flags_are_refused() {
    let good = payload(0, &[&v4(40, 0)]);
    for flags in [1, 2, 0x80] {
        let mut bad = good.clone();
        bad[1] = flags;
        assert_eq!(take(0, &[bad]).dropped, [DropReason::IptfsFlags]);
    }
    let mut with_information = good.clone();
    with_information[0] = SUBTYPE_CONGESTION_CONTROL;
    with_information.splice(4..4, [7; 20]);
    assert_eq!(take(0, &[with_information]).packets, [v4(40, 0)]);
}

#[test]
fn iptfs_room_counts_whole_blocks_behind_the_header() {
    assert_eq!(GCM.payload_limit(1500), 1442);
    // Linux: 1438, in outer packets of 1512.
    assert_eq!(CBC.payload_limit(1500), 1434);
    assert_eq!(CBC.payload_limit(1496), 1422);
    for params in [GCM, CBC] {
        for mtu in 576..1600 {
            let limit = usize::try_from(params.payload_limit(mtu)).unwrap();
            let made = payloads(params, mtu, &[v4(4000, 0), v4(30, 0)]);
            assert!(made.iter().all(|made| made.len() <= limit + HEADER_BYTES));
            assert!(made.iter().all(|made| outer_bytes(&params, made) <= mtu));
        }
    }
}

#[test]
fn iptfs_narrow_path_is_endless() {
    for mtu in 0..60 {
        assert_eq!(GCM.payload_limit(mtu), u32::MAX, "{mtu}");
    }
    assert_eq!(GCM.payload_limit(68), 10);
    assert_eq!(payloads(GCM, 40, &[v4(4000, 0)]).len(), 1);
}

#[test]
fn iptfs_packet_size_forgets_the_trailer() {
    let mut params = GCM;
    params.config.packet_bytes = 100;
    assert_eq!(params.payload_limit(1500), 60);
    let made = payloads(params, 1500, &[v4(300, 0)]);
    assert_eq!(outer_bytes(&params, &made[0]), 120);
}

#[test]
fn iptfs_bad_block_takes_the_good_ones_along() {
    let (whole, long) = (v4(40, 0), v4(400, 0));
    let bad = [0x55; 20];
    let out = take(0, &[payload(0, &[&whole, &whole, &bad])]);
    assert_eq!(out.packets.len(), 0);
    assert_eq!(out.dropped, [DropReason::IptfsVersion]);
    let first = payload(0, &[&long[..100]]);
    let second = payload(300, &[&long[100..], &bad]);
    let out = take(0, &[first, second, payload(0, &[&whole])]);
    assert_eq!(out.packets, [whole]);
}

#[test]
fn inner_lengths_of_nothing_end() {
    let stated = |bytes: u16| {
        let mut packet = v4(40, 0);
        packet[2..4].copy_from_slice(&bytes.to_be_bytes());
        packet
    };
    let mut options = v4(40, 0);
    options[0] = 0x44;
    for bad in [stated(0), stated(1), stated(19), options] {
        let out = take(0, &[payload(0, &[&bad]), payload(0, &[&bad[..4]])]);
        assert_eq!(out.dropped, [DropReason::IptfsInner; 2], "{bad:x?}");
        assert!(out.packets.is_empty());
        // In two pieces, the first too short to say a length.
        let pieces = [payload(0, &[&bad[..3]]), payload(37, &[&bad[3..]])];
        assert!(take(0, &pieces).packets.len() <= 1);
    }
    // An IPv6 packet without payload is one.
    let out = take(0, &[payload(0, &[&v6(40), &v6(40)])]);
    assert_eq!(out.packets, [v6(40), v6(40)]);
}

#[test]
fn iptfs_all_is_padding_for_a_packet_under_way() {
    let (whole, long) = (v4(40, 0), v6(400));
    let begin = payload(0, &[&long[..100]]);
    let end = payload(300, &[&long[100..]]);
    let between = payload(0, &[&whole]);
    let out = take(0, &[begin, between, end]);
    assert_eq!(out.packets, [long]);
}

#[test]
fn iptfs_decap_dscp_clears_all_but_the_first() {
    let marked = [v4(40, 0xb9), v4(41, 0xb9), v4(90, 0x2a)];
    let first = payload(0, &[&marked[0], &marked[1], &marked[2][..50]]);
    let second = payload(40, &[&marked[2][50..], &marked[0]]);
    let tos = |flags| {
        let out = take(flags, &[first.clone(), second.clone()]);
        assert!(
            out.packets
                .iter()
                .all(|packet| { crate::packet::checksum::checksum(&packet[..20]) == 0 })
        );
        let tos = out.packets.iter().map(|packet| packet[1]);
        tos.collect::<Vec<_>>()
    };
    assert_eq!(tos(0), [0xb9, 0xb9, 0x2a, 0xb9]);
    assert_eq!(tos(XFRM_STATE_DECAP_DSCP), [0xb9, 0x01, 0x02, 0xb9]);
}

#[test]
fn a_stated_length_takes_no_memory() {
    let mut receive = receiver(CONFIG, 0);
    let mut head = v6(60);
    head[4..6].copy_from_slice(&[0xff, 0xff]);
    let mut out = Out::default();
    let mut begin = payload(0, &[&head]);
    receive.take(&mut begin, Sequence(1), BootNanos(0), &mut out);
    assert_eq!(out, Out::default());
    assert!(receive.held_bytes() < 200);
    receive.handle_timeout(BootNanos(1_000_000_000), &mut out);
    assert_eq!(out.dropped, [DropReason::IptfsTimeout]);
    assert_eq!(receive.held_bytes(), 0);
}

#[test]
fn packets_that_come_while_others_leave_wait_again() {
    let mut send = Send::new(GCM);
    let mut buffer = PacketBuf::with_capacity(2000);
    let push = |send: &mut Send<u8>, tag, now| {
        send.push(&mut v4(1000, 0), tag, 1500, BootNanos(now))
            .unwrap()
    };
    assert_eq!(push(&mut send, 1, 0), Some(BootNanos(1_000_000)));
    assert_eq!(push(&mut send, 2, 0), None);
    let popped = send.pop(BootNanos(1_000_000), |_| 1500, &mut buffer);
    assert_eq!(popped, Some(Popped::Payload(&1)));
    // Nobody else asks for a timer now: the packet must.
    assert_eq!(push(&mut send, 3, 1_000_000), Some(BootNanos(2_000_000)));
    let popped = send.pop(BootNanos(1_000_000), |_| 1500, &mut buffer);
    assert_eq!(popped, Some(Popped::Payload(&2)));
    assert_eq!(send.pop(BootNanos(1_000_000), |_| 1500, &mut buffer), None);
    assert_eq!(send.poll_timeout(), Some(BootNanos(2_000_000)));
    let popped = send.pop(BootNanos(2_000_000), |_| 1500, &mut buffer);
    assert_eq!(popped, Some(Popped::Payload(&3)));
}

#[test]
fn a_packet_that_cannot_be_sent_whole_is_not_sent_on() {
    let mut send = Send::new(GCM);
    let mut buffer = PacketBuf::with_capacity(2000);
    send.push(&mut v4(4000, 0), 1, 1500, BootNanos(0)).unwrap();
    send.push(&mut v4(40, 0), 2, 1500, BootNanos(0)).unwrap();
    let due = BootNanos(1_000_000);
    let popped = send.pop(due, |_| 1500, &mut buffer);
    assert_eq!(popped, Some(Popped::Payload(&1)));
    send.abandon_rest();
    let popped = send.pop(due, |_| 1500, &mut buffer);
    assert_eq!(popped, Some(Popped::Payload(&2)));
    assert_eq!(*buffer, *payload(0, &[&v4(40, 0)]));
    assert_eq!(send.pop(due, |_| 1500, &mut buffer), None);
}

fn inner() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => (20usize..120).prop_map(|bytes| v4(bytes, 0)),
        2 => (40usize..2000).prop_map(v6),
        1 => (2000usize..20_000).prop_map(|bytes| v4(bytes, 2)),
    ]
}

proptest! {
    /// Whatever waits in a queue, and however wide the path, comes out as it went in.
    #[test]
    fn what_goes_in_comes_out(
        packets in proptest::collection::vec(inner(), 1..20),
        mtu in 100u32..2000,
        packet_bytes in prop_oneof![Just(0u32), 60..400u32],
    ) {
        let mut params = GCM;
        params.config.packet_bytes = packet_bytes;
        let made = payloads(params, mtu, &packets);
        let out = take(0, &made);
        prop_assert_eq!(out.packets, packets);
        prop_assert_eq!(out.dropped, []);
    }

    /// With payloads lost, doubled and displaced within the window, every packet arrives none of
    /// whose payloads is lost, once and in order.
    #[test]
    fn what_is_not_lost_arrives(
        packets in proptest::collection::vec(inner(), 1..20),
        fates in proptest::collection::vec(0u8..20, 400),
    ) {
        let made = payloads(GCM, 576, &packets);
        let mut arrivals: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut lost = Vec::new();
        for (number, payload) in made.iter().enumerate() {
            let sequence = number as u64 + 1;
            match fates[number % fates.len()] {
                0 if number != 0 => lost.push(number),
                1 => arrivals.extend([(sequence, payload.clone()), (sequence, payload.clone())]),
                _ => arrivals.push((sequence, payload.clone())),
            }
        }
        let mut at = 1;
        while at + 1 < arrivals.len() {
            if fates[(at * 7) % fates.len()] < 6 {
                arrivals.swap(at, at + 1);
                at += 1;
            }
            at += 1;
        }
        // Which packets have a piece in a lost payload, by a receiver that sees all of it.
        let mut whole = receiver(IptfsConfig { reorder_window: 0, ..CONFIG }, 0);
        let mut wanted = Out::default();
        for (number, payload) in made.iter().enumerate() {
            if !lost.contains(&number) {
                let sequence = Sequence(number as u64 + 1);
                whole.take(&mut payload.clone(), sequence, BootNanos(0), &mut wanted);
            }
        }
        let mut receive = receiver(CONFIG, 0);
        let mut out = Out::default();
        for (sequence, mut payload) in arrivals {
            receive.take(&mut payload, Sequence(sequence), BootNanos(0), &mut out);
        }
        receive.handle_timeout(BootNanos(1_000_000_000), &mut out);
        prop_assert_eq!(&out.packets, &wanted.packets);
        if lost.is_empty() {
            prop_assert_eq!(out.packets, packets);
        }
    }

    /// Anything as payloads, at any time: no more comes out than went in, and no more is held.
    #[test]
    fn any_payload_is_taken(
        config in (0u16..5, any::<u32>()),
        steps in proptest::collection::vec(
            (hostile(), 0u64..12, 0u64..2_000_000_000),
            0..40,
        ),
    ) {
        let config = IptfsConfig { reorder_window: config.0, drop_time_usecs: config.1, ..CONFIG };
        let mut receive = receiver(config, XFRM_STATE_DECAP_DSCP);
        let mut now = BootNanos(0);
        let (mut went_in, mut out) = (0, Out::default());
        for (mut payload, sequence, later) in steps {
            now = now.plus_nanos(later);
            went_in += payload.len();
            receive.handle_timeout(now, &mut out);
            receive.take(&mut payload, Sequence(sequence), now, &mut out);
            let came_out: usize = out.packets.iter().map(Vec::len).sum();
            prop_assert!(came_out + receive.held_bytes() <= went_in);
        }
        // What one timer lets through may start the other.
        for _ in 0..2 {
            receive.handle_timeout(BootNanos(u64::MAX), &mut out);
        }
        prop_assert_eq!(receive.poll_timeout(), None);
    }
}

/// Payloads that go wrong in interesting places.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![
        (20usize..60).prop_map(|bytes| v4(bytes, 0)),
        (40usize..90).prop_map(v6),
        (20usize..60, 0usize..60).prop_map(|(bytes, cut)| v4(bytes, 0)[..cut.min(bytes)].to_vec()),
        (40usize..90, 0usize..90).prop_map(|(bytes, cut)| v6(bytes)[..cut.min(bytes)].to_vec()),
        proptest::collection::vec(any::<u8>(), 0..30),
        Just(vec![0; 7]),
    ];
    let header = (
        0u8..3,
        prop_oneof![9 => Just(0u8), 1 => any::<u8>()],
        0u16..120,
    );
    (header, proptest::collection::vec(block, 0..4), 0usize..200).prop_map(
        |((subtype, flags, offset), blocks, cut)| {
            let mut payload = vec![subtype, flags];
            payload.extend(offset.to_be_bytes());
            payload.extend(blocks.concat());
            payload.truncate(cut);
            payload
        },
    )
}
