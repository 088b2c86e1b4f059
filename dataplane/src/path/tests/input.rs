//! Packets that arrive. Most of what they meet is compared with kernels by
//! `compat-tests/src/traffic`; here is what depends on numbers, and a model of the policy check.

use proptest::prelude::*;

use super::*;
use crate::packet::checksum::pseudo_header;
use crate::path::sec_path::SecPath;
use crate::path::{Destination, InputMeta, Owner, Received};
use crate::spd::Flow;

/// The host at 192.0.2.2, with the nets that policies protect behind it.
pub(super) struct Remote {
    pub(super) encap: u16,
}

impl crate::path::Host for Remote {
    fn destination(&self, _family: u16, address: Address) -> Option<Destination> {
        Some(Destination {
            is_local: address == REMOTE,
            ifindex: 1,
        })
    }

    fn owner(&self, _flow: &Flow) -> Option<Owner> {
        (self.encap != 0).then_some(Owner {
            socket: crate::spd::SocketKey(1),
            encap: self.encap,
        })
    }
}

impl Host {
    fn meet(&mut self, bytes: &[u8], meta: &mut InputMeta, encap: u16) -> Received {
        self.meet_packet(&mut PacketBuf::copy_of(bytes), meta, encap)
    }

    fn meet_packet(
        &mut self,
        packet: &mut PacketBuf,
        meta: &mut InputMeta,
        encap: u16,
    ) -> Received {
        let now = self.now();
        let mut cx = Context {
            now,
            entropy: &mut self.entropy,
            acqseq: &mut self.acqseq,
        };
        self.worker
            .receive_alone(&mut self.netns, &mut cx, packet, meta, &Remote { encap })
    }

    pub(super) fn take(&mut self, bytes: &[u8]) -> Received {
        self.meet(bytes, &mut InputMeta::default(), 0)
    }

    /// A policy for what comes out of the tunnel.
    pub(super) fn accept(&mut self, templates: &[UserTmpl]) {
        let mut policy = policy(templates);
        policy.key.dir = XFRM_POLICY_FWD;
        self.add_policy(policy);
    }
}

/// Null cipher, null MAC.
fn null(request: &mut SaRequest<'_>) {
    request.aead = None;
    request.crypt = Some(AlgoBlob::new("ecb(cipher_null)", &[], 0));
    request.auth = Some(AlgoBlob::new("digest_null", &[], 0));
}

/// ESP without cipher and MAC, from 192.0.2.1 to 192.0.2.2.
fn esp(spi: u32, seq: u32, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![
        0x45,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        64,
        IPPROTO_ESP,
        0,
        0,
        192,
        0,
        2,
        1,
        192,
        0,
        2,
        2,
    ];
    packet.extend(spi.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(payload);
    let pad = (payload.len() + 2).wrapping_neg() % 4;
    packet.extend((1..=pad).map(|nth| u8::try_from(nth).unwrap()));
    packet.extend([u8::try_from(pad).unwrap(), next]);
    ip4::finish(&mut packet).unwrap();
    packet
}

#[test]
fn transport_without_policy_passes() {
    let mut host = Host::new();
    host.add_sa(1, |request| {
        null(request);
        request.info.mode = XFRM_MODE_TRANSPORT;
    });
    host.add_sa(2, null);
    let datagram = udp(53, 4);
    assert_eq!(
        host.take(&esp(1, 1, IPPROTO_UDP, &datagram[20..])),
        Received::Local
    );
    let tunnelled = host.take(&esp(2, 1, IPPROTO_IPIP, &datagram));
    assert_eq!(tunnelled, Received::Dropped(DropReason::InNoPolicy));
    assert_eq!(host.counters(), BTreeMap::from([("InNoPols".into(), 1)]));
}

#[test]
fn an_optional_transport_template_matches_nothing() {
    let mut host = Host::new();
    host.accept(&[UserTmpl {
        optional: 1,
        mode: XFRM_MODE_TRANSPORT,
        ..template()
    }]);
    host.add_sa(1, null);
    assert_eq!(host.take(&udp(53, 4)), Received::Forward);
    let tunnelled = host.take(&esp(1, 1, IPPROTO_IPIP, &udp(53, 4)));
    assert_eq!(tunnelled, Received::Dropped(DropReason::InTemplate));
}

#[test]
fn destinations_are_not_compared() {
    let mut host = Host::new();
    let mut wanted = template();
    wanted.id.daddr = Address::v4(9, 9, 9, 9);
    host.accept(&[wanted]);
    host.add_sa(1, null);
    assert_eq!(
        host.take(&esp(1, 1, IPPROTO_IPIP, &udp(53, 4))),
        Received::Forward
    );
}

#[test]
fn forwarding_asks_the_main_input_policy() {
    let mut host = Host::new();
    let mut sub = policy(&[]);
    (sub.key.dir, sub.key.kind) = (XFRM_POLICY_FWD, XFRM_POLICY_TYPE_SUB);
    host.add_policy(sub);
    let mut main = policy(&[]);
    (main.key.dir, main.action) = (XFRM_POLICY_FWD, XFRM_POLICY_BLOCK);
    host.add_policy(main.clone());
    assert_eq!(host.take(&udp(53, 4)), Received::Forward);
    main.key.dir = XFRM_POLICY_IN;
    host.add_policy(main);
    assert_eq!(
        host.take(&udp(53, 4)),
        Received::Dropped(DropReason::InPolicyBlock)
    );
}

/// What is remembered of a flow is worth nothing for other SAs, nor once a table has changed.
#[test]
fn flows_that_were_let_in_are_asked_again() {
    let mut host = Host::new();
    let mut guard = policy(&[template()]);
    guard.key.dir = XFRM_POLICY_FWD;
    let id = host.add_policy(guard.clone());
    let sa = host.add_sa(1, null);
    host.add_sa(2, |request| {
        null(request);
        request.info.reqid = 9;
    });
    let by = |spi, seq| esp(spi, seq, IPPROTO_IPIP, &udp(53, 4));
    for seq in 1..4 {
        host.wait(1_000);
        assert_eq!(host.take(&by(1, seq)), Received::Forward);
        let used = host.netns.spd.get(id).unwrap().used.secs();
        assert_eq!(used, host.now().real.0);
    }
    let refused = Received::Dropped(DropReason::InTemplate);
    assert_eq!(host.take(&by(2, 1)), refused);
    assert_eq!(host.take(&udp(53, 4)), refused);

    let mut block = guard.clone();
    block.action = XFRM_POLICY_BLOCK;
    let now = host.now();
    host.netns.spd.insert(block, false, now).unwrap();
    let blocked = Received::Dropped(DropReason::InPolicyBlock);
    assert_eq!(host.take(&by(1, 4)), blocked);
    host.netns.spd.insert(guard, false, now).unwrap();
    assert_eq!(host.take(&by(1, 5)), Received::Forward);

    host.netns.sad.get_mut(sa).unwrap().sel = Selector {
        daddr: Address::v4(10, 9, 0, 0),
        prefixlen_d: 16,
        family: AF_INET,
        ..Selector::default()
    };
    let unfit = Received::Dropped(DropReason::InSelector);
    assert_eq!(host.take(&by(1, 6)), unfit);
    host.netns.sad.delete(sa);
    let unknown = Received::Dropped(DropReason::InNoStates);
    assert_eq!(host.take(&by(1, 7)), unknown);
}

#[test]
fn icmp_errors_for_this_host_are_not_understood() {
    let mut quoted = udp(53, 4);
    quoted[12..16].copy_from_slice(&[192, 0, 2, 2]);
    ip4::finish(&mut quoted).unwrap();
    let error = |to: [u8; 4]| {
        let mut packet = vec![
            0x45,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            64,
            IPPROTO_ICMP,
            0,
            0,
            9,
            9,
            9,
            9,
        ];
        packet.extend(to);
        packet.extend([3, 1, 0, 0, 0, 0, 0, 0]);
        packet.extend(&quoted);
        ip4::finish(&mut packet).unwrap();
        packet
    };
    let mut host = Host::new();
    host.add_sa(1, |request| {
        null(request);
        request.info.flags = XFRM_STATE_ICMP;
        request.info.sel = Selector {
            saddr: Address::v4(10, 2, 0, 1),
            daddr: REMOTE,
            prefixlen_s: 32,
            prefixlen_d: 32,
            family: AF_INET,
            ..Selector::default()
        };
    });
    let mut wanted = policy(&[template()]);
    wanted.key.selector = Selector {
        family: AF_INET,
        ..Selector::default()
    };
    for dir in [XFRM_POLICY_IN, XFRM_POLICY_FWD] {
        wanted.key.dir = dir;
        host.add_policy(wanted.clone());
    }
    let through = host.take(&esp(1, 1, IPPROTO_IPIP, &error([10, 1, 0, 1])));
    assert_eq!(through, Received::Forward);
    assert_eq!(host.counters(), BTreeMap::new());
    // The second look is at the packet in the error, and lets it pass; the first has counted.
    let here = host.take(&esp(1, 2, IPPROTO_IPIP, &error([192, 0, 2, 2])));
    assert_eq!(here, Received::Local);
    assert_eq!(
        host.counters(),
        BTreeMap::from([("InStateMismatch".into(), 1)])
    );
}

#[test]
fn old_sec_paths_do_not_compare_families() {
    let selector = Selector {
        family: AF_INET,
        ..Selector::default()
    };
    for (profile, expected) in [
        (&crate::profile::V6_1, Received::Forward),
        (&V7_2, Received::Dropped(DropReason::InSelector)),
    ] {
        let mut host = Host::of(profile);
        host.add_sa(1, |request| {
            null(request);
            request.info.sel = selector;
        });
        let mut any = policy(&[template()]);
        any.key.selector = Selector {
            family: AF_INET6,
            ..Selector::default()
        };
        any.key.dir = XFRM_POLICY_FWD;
        host.add_policy(any);
        assert_eq!(host.take(&esp(1, 1, IPPROTO_IPV6, &udp6(4))), expected);
    }
}

#[test]
fn short_esp_in_udp_vanishes() {
    let mut host = Host::new();
    let sa = host.add_sa(1, null);
    for (bytes, expected) in [
        (9, Received::Dropped(DropReason::InEncapShort)),
        (19, Received::Dropped(DropReason::InEncapShort)),
        (20, Received::Dropped(DropReason::InEncap)),
    ] {
        let mut packet = vec![
            0x45,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            64,
            IPPROTO_UDP,
            0,
            0,
            192,
            0,
            2,
            1,
            192,
            0,
            2,
            2,
        ];
        packet.extend([0x11, 0x94, 0x11, 0x94, 0, 8 + bytes, 0, 0]);
        packet.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        packet.resize(28 + usize::from(bytes), 0);
        ip4::finish(&mut packet).unwrap();
        let received = host.meet(&packet, &mut InputMeta::default(), UDP_ENCAP_ESPINUDP);
        assert_eq!(received, expected, "{bytes}");
    }
    assert_eq!(host.sa(sa).traffic.lifetime().packets, 0);
}

/// Null cipher, null MAC, in UDP.
fn null_in_udp(request: &mut SaRequest<'_>) {
    null(request);
    request.encap = Some(xfrm_proto::uapi::EncapTmpl {
        kind: UDP_ENCAP_ESPINUDP,
        sport: 4500.into(),
        dport: 4500.into(),
        ..Default::default()
    });
}

/// An ESP packet in UDP, from a port to 4500.
fn in_udp(port: u16, bare: &[u8]) -> Vec<u8> {
    let mut packet = bare[..20].to_vec();
    packet[9] = IPPROTO_UDP;
    packet.extend(port.to_be_bytes());
    packet.extend([0x11, 0x94]);
    packet.extend(u16::try_from(bare.len() - 12).unwrap().to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(&bare[20..]);
    ip4::finish(&mut packet).unwrap();
    packet
}

#[test]
fn checksums_are_right_behind_nat() {
    let mut host = Host::new();
    host.add_sa(1, |request| {
        null_in_udp(request);
        request.info.mode = XFRM_MODE_TRANSPORT;
    });
    // The sender summed an address of its own.
    let mut datagram = udp(53, 4);
    datagram[24..28].copy_from_slice(&[0, 12, 0x55, 0x55]);
    let mut packet = PacketBuf::copy_of(&in_udp(4500, &esp(1, 1, IPPROTO_UDP, &datagram[20..])));
    let mut meta = InputMeta::default();
    let received = host.meet_packet(&mut packet, &mut meta, UDP_ENCAP_ESPINUDP);
    assert_eq!(received, Received::Local);
    let sum = pseudo_header(&packet[12..20], IPPROTO_UDP, packet.len() - 20).bytes(&packet[20..]);
    assert_eq!(sum.finish(), 0);
}

#[test]
fn a_mapping_is_told_with_every_packet() {
    let mut host = Host::new();
    host.accept(&[template()]);
    let limited = |secs: u32| {
        move |request: &mut SaRequest<'_>| {
            null_in_udp(request);
            request.params.mapping_maxage_secs = Some(secs);
        }
    };
    host.add_sa(1, limited(0));
    host.add_sa(2, limited(10));
    let from =
        |port: u16, spi: u32, seq: u32| in_udp(port, &esp(spi, seq, IPPROTO_IPIP, &udp(53, 4)));
    let told = |host: &mut Host, port, spi, seq| {
        let mut meta = InputMeta::default();
        let received = host.meet(&from(port, spi, seq), &mut meta, UDP_ENCAP_ESPINUDP);
        assert_eq!(received, Received::Forward);
        host.events().len()
    };
    assert_eq!(told(&mut host, 4500, 1, 1), 0);
    for seq in 2..5 {
        assert_eq!(told(&mut host, 4501, 1, seq), 1);
    }
    let limited: Vec<_> = [4501, 4501, 4502, 4501]
        .map(|port| told(&mut host, port, 2, 1))
        .into();
    assert_eq!(limited, [1, 0, 1, 1]);
    host.wait(11_500);
    assert_eq!(told(&mut host, 4501, 2, 1), 1);
}

#[test]
fn fragments_of_different_ways_are_not_mixed() {
    let mut host = Host::new();
    host.add_sa(1, |request| {
        null(request);
        request.info.mode = XFRM_MODE_TRANSPORT;
    });
    host.add_sa(2, null);
    let mut wanted = policy(&[template()]);
    wanted.key.selector = Selector {
        family: AF_INET,
        ..Selector::default()
    };
    wanted.key.dir = XFRM_POLICY_IN;
    host.add_policy(wanted);
    let fragment = |at: u8, more: bool| {
        let mut packet = udp(53, 8);
        packet.truncate(28);
        packet[16..20].copy_from_slice(&[192, 0, 2, 2]);
        packet[4..6].copy_from_slice(&[7, 7]);
        packet[6] = if more { 0x20 } else { 0 };
        packet[7] = at;
        ip4::finish(&mut packet).unwrap();
        packet
    };
    assert_eq!(
        host.take(&esp(2, 1, IPPROTO_IPIP, &fragment(0, true))),
        Received::Kept
    );
    assert_eq!(
        host.take(&fragment(1, false)),
        Received::Kept,
        "plain: another packet"
    );
    assert_eq!(
        host.take(&esp(2, 2, IPPROTO_IPIP, &fragment(1, false))),
        Received::Local
    );
}

#[test]
fn ip_in_ip_counts_as_ipsec() {
    let mut host = Host::new();
    let plain = |proto: u8, inner: &[u8]| {
        let mut packet = udp(53, 0);
        packet.truncate(20);
        packet[9] = proto;
        packet[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        packet.extend(inner);
        ip4::finish(&mut packet).unwrap();
        packet
    };
    let unknown = Received::Dropped(DropReason::InNoStates);
    let (four, six) = (
        plain(IPPROTO_IPIP, &udp(53, 4)),
        plain(IPPROTO_IPV6, &udp6(4)),
    );
    assert_eq!(host.take(&four), unknown);
    assert_eq!(host.take(&six), unknown);
    // An IPComp tunnel brings an SA for what it did not compress, and that is a tunnel.
    host.add_sa(9, |request| {
        request.aead = None;
        request.comp = Some(AlgoBlob::new("deflate", &[], 0));
        request.info.id.proto = IPPROTO_COMP;
        request.info.flags = XFRM_STATE_AF_UNSPEC;
    });
    let through = Received::Dropped(DropReason::InNoPolicy);
    assert_eq!(host.take(&four), through);
    assert_eq!(host.take(&six), through);
}

#[test]
fn larval_and_expired_sas_take_nothing() {
    let mut host = Host::new();
    let id = host.add_sa(1, |request| {
        null(request);
        request.info.lft.hard_packet_limit = 1;
    });
    host.accept(&[template()]);
    let packet = esp(1, 1, IPPROTO_IPIP, &udp(53, 4));
    assert_eq!(host.take(&packet), Received::Forward);
    assert_eq!(host.take(&packet), Received::Dropped(DropReason::InExpired));
    assert_eq!(
        host.take(&packet),
        Received::Dropped(DropReason::InNoStates)
    );
    assert!(host.netns.sad.get(id).is_none());
}

/// An SA of the model: its reqid, and whether it is a tunnel.
type ModelSa = (u32, bool);

/// Whether SAs can be given to the templates, last template first, in order, so that none of the
/// templates and none of the tunnels is left over.
fn fits(sas: &[ModelSa], templates: &[ModelSa]) -> bool {
    match (sas.split_first(), templates.split_last()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((sa, sas)), wanted) => {
            let skipped = !sa.1 && fits(sas, templates);
            let given = wanted.is_some_and(|(last, rest)| last == sa && fits(sas, rest));
            skipped || given
        }
    }
}

proptest! {
    #[test]
    fn templates_are_matched_as_by_trying_everything(
        sas in proptest::collection::vec((1u32..4, any::<bool>()), 0..6),
        templates in proptest::collection::vec((1u32..4, any::<bool>()), 0..5),
    ) {
        let mut host = Host::new();
        let mode = |tunnel: bool| if tunnel { XFRM_MODE_TUNNEL } else { XFRM_MODE_TRANSPORT };
        let mut path = SecPath::default();
        for (spi, &(reqid, tunnel)) in (1..).zip(&sas) {
            let id = host.add_sa(spi, |request| {
                null(request);
                request.info.mode = mode(tunnel);
                request.info.reqid = reqid;
            });
            let handle = host.sa(id).handle(id);
            path.push(handle).unwrap();
        }
        let wanted: Vec<_> = templates
            .iter()
            .map(|&(reqid, tunnel)| UserTmpl { reqid, mode: mode(tunnel), ..template() })
            .collect();
        host.accept(&wanted);
        let mut meta = InputMeta { path, ..InputMeta::default() };
        let received = host.meet(&udp(53, 4), &mut meta, 0);
        let expected = if fits(&sas, &templates) {
            Received::Forward
        } else {
            Received::Dropped(DropReason::InTemplate)
        };
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn any_bytes_are_survived(
        bytes: Vec<u8>,
        packets in proptest::collection::vec((0u32..4, any::<u32>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..80)), 0..20),
    ) {
        let mut host = Host::new();
        host.accept(&[template()]);
        for (spi, mode) in [(1, XFRM_MODE_TUNNEL), (2, XFRM_MODE_TRANSPORT), (3, XFRM_MODE_BEET)] {
            host.add_sa(spi, |request| {
                null(request);
                request.info.mode = mode;
                request.info.replay_window = 32;
            });
        }
        host.take(&bytes);
        for (spi, seq, next, payload) in packets {
            let inner = esp(spi, seq, next, &payload);
            host.take(&esp(1, seq, IPPROTO_IPIP, &inner));
            host.take(&inner);
            host.take(&payload);
        }
    }
}
