//! Packets that are too long.

use super::*;

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
fn transport_mode_packets_with_df_are_too_big_behind_it() {
    let mut host = Host::new();
    let transport = UserTmpl {
        mode: XFRM_MODE_TRANSPORT,
        ..template()
    };
    host.add_policy(policy(&[transport]));
    host.add_sa(1, |sa| {
        sa.info.mode = XFRM_MODE_TRANSPORT;
        sa.info.saddr = Address::v4(10, 1, 0, 1);
        sa.info.id.daddr = Address::v4(10, 2, 0, 1);
    });
    assert_eq!(host.send(&with_df(udp(1, 1400))), Verdict::Sent(1));
    let too_big = Verdict::TooBig { mtu: 1500 };
    assert_eq!(host.send(&with_df(udp(1, 1465))), too_big);
    assert_eq!(host.send(&udp(1, 1465)), Verdict::Sent(2));
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
    assert_eq!(host.send(&udp6(INNER - 47)), too_big);
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
