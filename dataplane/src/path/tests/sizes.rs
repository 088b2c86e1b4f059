//! Packets that are too long.

use super::*;
use crate::packet::checksum::{addresses, pseudo_header};
use crate::packet::segment::Offload;
use crate::path::Departure;

/// GCM in an IPv4 tunnel: 1500 leaves 1446.
const INNER: usize = 1446;

fn tunnel() -> Host {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    host
}

#[test]
fn what_fits_goes_in_one_piece() {
    let mut host = tunnel();
    assert_eq!(host.send(&with_df(udp(1, INNER - 28))), Verdict::Sent(1));
    let sent = &host.sent[0].0;
    assert!(sent.len() <= 1500);
    assert_eq!(ip4::Header::parse(sent).unwrap().fragment, ip4::DF);
}

#[test]
fn a_local_packet_with_df_is_counted() {
    let mut host = tunnel();
    let too_big = Verdict::TooBig { mtu: 1446 };
    assert_eq!(host.send(&with_df(udp(1, INNER - 27))), too_big);
    assert_eq!(
        host.counters(),
        [("OutStateModeError".to_owned(), 1)].into()
    );
}

#[test]
fn a_forwarded_packet_with_df_is_not() {
    let mut host = tunnel();
    host.meta.forwarded = true;
    let too_big = Verdict::TooBig { mtu: 1446 };
    assert_eq!(host.send(&with_df(udp(1, INNER - 27))), too_big);
    assert!(host.counters().is_empty());
}

#[test]
fn ipv4_without_df_enters_whole() {
    let mut host = tunnel();
    let packet = udp(1, INNER - 27);
    assert_eq!(host.send(&packet), Verdict::Sent(2));
    let parts: Vec<_> = host
        .sent
        .iter()
        .map(|(part, _)| ip4::Header::parse(part).unwrap())
        .collect();
    assert_eq!(parts[0].fragment, ip4::MF);
    assert_eq!(parts[0].ident, parts[1].ident);
    assert_ne!(parts[1].fragment & ip4::OFFSET_MASK, 0);
    assert!(host.sent.iter().all(|(part, _)| part.len() <= 1500));
}

#[test]
fn ipv6_is_never_cut_on_its_way() {
    let mut host = Host::new();
    let mut v6 = policy(&[template()]);
    v6.key.selector = Selector {
        family: AF_INET6,
        ..Selector::default()
    };
    host.add_policy(v6);
    let sa = host.add_sa(1, |sa| sa.info.sel.family = AF_INET6);
    assert_eq!(host.send(&udp6(INNER - 48)), Verdict::Sent(1));
    assert_eq!(host.open(&[sa]), udp6(INNER - 48));
    let too_big = Verdict::TooBig { mtu: 1446 };
    host.meta.forwarded = true;
    assert_eq!(host.send(&udp6(INNER - 47)), too_big);
    assert!(host.counters().is_empty());
}

#[test]
fn the_mtu_of_the_packets_own_route_counts_too() {
    let mut host = tunnel();
    host.meta.mtu = 1200;
    host.meta.forwarded = true;
    let too_big = Verdict::TooBig { mtu: 1200 };
    assert_eq!(host.send(&with_df(udp(1, 1173))), too_big);
}

#[test]
fn two_tunnels_leave_less() {
    let outer = UserTmpl {
        reqid: 2,
        ..template()
    };
    let mut host = Host::new();
    host.add_policy(policy(&[template(), outer]));
    host.add_sa(1, |_| {});
    host.add_sa(2, |sa| sa.info.reqid = 2);
    host.meta.forwarded = true;
    // 1500 leaves 1446, and that leaves 1390.
    let too_big = Verdict::TooBig { mtu: 1390 };
    assert_eq!(host.send(&with_df(udp(1, 1400))), too_big);
    assert_eq!(host.send(&with_df(udp(1, 1390 - 28))), Verdict::Sent(1));
    assert!(host.sent[0].0.len() <= 1500);
}

fn tcp(payload: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1,
    ];
    packet.extend([
        0x0f, 0xa0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ]);
    packet.extend((0..payload).map(|byte| u8::try_from(byte % 251).unwrap()));
    ip4::finish(&mut packet).unwrap();
    packet
}

fn send_offloaded(host: &mut Host, bytes: &[u8], offload: Offload) -> Verdict {
    let mut packet = PacketBuf::copy_of(bytes);
    let sent = &mut host.sent;
    let mut sink = |packet: &mut PacketBuf, to: &Departure| sent.push((packet.to_vec(), to.mark));
    let now = Now::default();
    let (netns, meta, routes) = (&host.netns, &host.meta, &host.routes);
    host.worker
        .output_offloaded(netns, now, &mut packet, meta, offload, routes, &mut sink)
}

fn cbc(host: &mut Host) -> SaId {
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| {
        sa.aead = None;
        sa.crypt = Some(AlgoBlob::new("cbc(aes)", &[7; 16], 0));
        sa.auth_trunc = Some(AlgoBlob::new("hmac(sha256)", &[8; 32], 128));
    })
}

#[test]
fn a_large_packet_is_cut_before_esp() {
    let gcm = |host: &mut Host| {
        host.add_policy(policy(&[template()]));
        host.add_sa(1, |_| {})
    };
    for make in [gcm, cbc] {
        let mut host = Host::new();
        let sa = make(&mut host);
        let offload = Offload {
            segment_bytes: 1000,
            checksum: Some((20, 16)),
        };
        assert_eq!(
            send_offloaded(&mut host, &tcp(40_500), offload),
            Verdict::Sent(41)
        );
        assert_eq!(host.sa(sa).traffic.lifetime().packets, 41);
        let mut whole = Vec::new();
        for (number, (sent, _)) in host.sent.clone().into_iter().enumerate() {
            host.sent.push((sent, 0));
            let segment = host.open(&[sa]);
            let header = ip4::Header::parse(&segment).unwrap();
            assert_eq!(usize::from(header.ident), 7 + number);
            let sum = pseudo_header(addresses(&segment).unwrap(), 6, segment.len() - 20);
            assert_eq!(sum.bytes(&segment[20..]).finish(), 0);
            whole.extend_from_slice(&segment[40..]);
        }
        assert_eq!(whole, tcp(40_500)[40..]);
    }
}

#[test]
fn segments_stop_at_the_first_that_is_refused() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| sa.info.lft.hard_packet_limit = 5);
    let offload = Offload {
        segment_bytes: 1000,
        checksum: None,
    };
    let expired = dropped(DropReason::OutExpired, errno::EINVAL);
    assert_eq!(send_offloaded(&mut host, &tcp(9_000), offload), expired);
    assert_eq!(host.sent.len(), 5);
    assert_eq!(host.counters(), [("OutStateExpired".to_owned(), 1)].into());
    let large = Offload {
        segment_bytes: 1450,
        checksum: None,
    };
    let mut host = tunnel();
    let too_big = Verdict::TooBig { mtu: 1446 };
    assert_eq!(send_offloaded(&mut host, &tcp(9_000), large), too_big);
    assert!(host.sent.is_empty());
    let unfit = dropped(DropReason::OutSegments, errno::EINVAL);
    assert_eq!(send_offloaded(&mut host, &tcp(0), large), unfit);
}

#[test]
fn a_missing_checksum_is_filled_in() {
    let mut host = tunnel();
    let sa = host.netns.sad.iter().next().unwrap().0;
    let mut packet = tcp(100);
    let sum = pseudo_header(addresses(&packet).unwrap(), 6, 120).finish();
    packet[36..38].copy_from_slice(&(!sum).to_be_bytes());
    let offload = Offload {
        segment_bytes: 0,
        checksum: Some((20, 16)),
    };
    assert_eq!(
        send_offloaded(&mut host, &packet, offload),
        Verdict::Sent(1)
    );
    let opened = host.open(&[sa]);
    let sum = pseudo_header(addresses(&opened).unwrap(), 6, 120);
    assert_eq!(sum.bytes(&opened[20..]).finish(), 0);
    let lie = Offload {
        segment_bytes: 0,
        checksum: Some((200, 16)),
    };
    let refused = dropped(DropReason::OutChecksum, errno::EINVAL);
    assert_eq!(send_offloaded(&mut host, &packet, lie), refused);
    assert_eq!(host.counters(), [("OutError".to_owned(), 1)].into());
}

#[test]
fn a_batch_is_what_its_packets_are() {
    let packets: Vec<Vec<u8>> = (0..40u16)
        .map(|number| match number {
            7 => vec![0x45],
            20..25 => udp(number, 50),
            _ => udp(1, usize::from(number) * 30),
        })
        .collect();
    let mut one = Host::new();
    let mut many = Host::new();
    let sas = [cbc(&mut one), cbc(&mut many)];
    let alone: Vec<Verdict> = packets.iter().map(|packet| one.send(packet)).collect();
    let mut buffers: Vec<PacketBuf> = packets
        .iter()
        .map(|packet| PacketBuf::copy_of(packet))
        .collect();
    let mut together = Vec::new();
    let sent = &mut many.sent;
    let mut sink = |packet: &mut PacketBuf, to: &Departure| sent.push((packet.to_vec(), to.mark));
    let mut done = |verdict| together.push(verdict);
    let (netns, meta, routes) = (&many.netns, &many.meta, &many.routes);
    many.worker.output_batch(
        netns,
        Now::default(),
        &mut buffers,
        meta,
        routes,
        &mut sink,
        &mut done,
    );
    assert_eq!(alone, together);
    assert_eq!(one.sent.len(), many.sent.len());
    let opened = [(&mut one, sas[0]), (&mut many, sas[1])].map(|(host, sa)| {
        let sent: Vec<_> = host.sent.drain(..).collect();
        let mut opened = Vec::new();
        for packet in sent.into_iter().filter(|(packet, _)| packet[6] & 0x3f == 0) {
            host.sent = vec![packet];
            opened.push(host.open(&[sa]));
        }
        opened
    });
    assert_eq!(opened[0], opened[1]);
}

#[test]
fn a_local_packet_in_transport_mode_is_too_big_before_it_is_numbered() {
    let mut host = Host::new();
    let transport = UserTmpl {
        mode: XFRM_MODE_TRANSPORT,
        ..template()
    };
    host.add_policy(policy(&[transport]));
    let id = host.add_sa(1, |sa| {
        sa.info.mode = XFRM_MODE_TRANSPORT;
        sa.info.saddr = Address::v4(10, 1, 0, 1);
        sa.info.id.daddr = Address::v4(10, 2, 0, 1);
    });
    let too_big = Verdict::TooBig { mtu: 1466 };
    assert_eq!(host.send(&with_df(udp(1, 1466 - 27))), too_big);
    assert_eq!(host.sa(id).traffic.last_sent(), Sequence(0));
    assert_eq!(host.send(&with_df(udp(1, 1466 - 28))), Verdict::Sent(1));
    assert!(host.sent[0].0.len() <= 1500);
    // Without DF it is the sealed packet that is cut.
    assert_eq!(host.send(&udp(1, 1466)), Verdict::Sent(2));
}

/// A policy for all of IPv6, and its SA in tunnel mode.
fn v6_tunnel(host: &mut Host) -> SaId {
    let mut policy = policy(&[template()]);
    policy.key.selector = Selector {
        family: AF_INET6,
        ..Selector::default()
    };
    host.add_policy(policy);
    host.add_sa(1, |request| request.info.flags |= XFRM_STATE_AF_UNSPEC)
}

#[test]
fn a_local_ipv6_datagram_is_cut_before_its_tunnel() {
    let mut host = Host::new();
    let sa = v6_tunnel(&mut host);
    let whole = udp6(3000);
    assert_eq!(host.send(&whole), Verdict::Sent(3));
    assert_eq!(host.sa(sa).traffic.lifetime().packets, 3);
    let mut payload = Vec::new();
    for nth in 0..3 {
        let sent = host.sent.remove(0);
        assert!(sent.0.len() <= 1500, "{nth}");
        host.sent.push(sent);
        let inner = host.open(&[sa]);
        assert_eq!(inner[6], ip6::FRAGMENT);
        payload.extend_from_slice(&inner[48..]);
    }
    assert_eq!(payload, whole[40..]);
}

#[test]
fn local_tcp_and_forwarded_packets_of_ipv6_are_too_big() {
    let mut host = Host::new();
    v6_tunnel(&mut host);
    let mut tcp = udp6(1472);
    tcp[6] = IPPROTO_TCP;
    let Verdict::TooBig { mtu } = host.send(&tcp) else {
        panic!("it went")
    };
    host.meta.forwarded = true;
    assert_eq!(host.send(&udp6(1472)), Verdict::TooBig { mtu });
    assert!(host.sent.is_empty());
}
