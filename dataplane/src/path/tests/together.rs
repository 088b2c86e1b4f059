//! Packets in hand together come to what they come to one after the other.

use proptest::prelude::*;

use super::input::Remote;
use super::*;
use crate::packet::fragment::Fragmenter;
use crate::path::{InputMeta, Received};
use crate::sad::replay::EsnReplay;
use crate::transform::Route;

const SAS: u32 = 6;

/// A host with SAs of all kinds, and policies that take some of what they bring.
fn host() -> (Host, Vec<SaId>, [PolicyId; 2]) {
    let mut host = Host::new();
    let guard = |action, port: u16| {
        let mut guard = policy(&[template()]);
        (guard.key.dir, guard.action) = (XFRM_POLICY_FWD, action);
        guard.key.selector.dport = port.into();
        guard.key.selector.dport_mask = if port == 0 { 0 } else { 0xffff }.into();
        guard.priority = if port == 0 { 2 } else { 1 };
        guard
    };
    let policies = [
        host.add_policy(guard(XFRM_POLICY_ALLOW, 0)),
        host.add_policy(guard(XFRM_POLICY_BLOCK, 3)),
    ];
    let mut window = [0_u32; 6 + 2];
    window[0] = 2;
    (window[2], window[5]) = (60, 64);
    let esn: &'static [u8] = window.map(u32::to_ne_bytes).concat().leak();
    assert!(EsnReplay::read(esn).is_some());
    let sas = (1..=SAS).map(|spi| {
        host.add_sa(spi, |request| {
            request.info.replay_window = 32;
            match spi {
                2 => {
                    request.info.flags = XFRM_STATE_ESN;
                    request.params.esn = Some(esn);
                }
                3 => request.info.replay_window = 0,
                4 => request.info.lft.soft_packet_limit = 5,
                5 => request.info.lft.hard_packet_limit = 9,
                // Not what the policies want.
                6 => request.info.reqid = 9,
                _ => {}
            }
        })
    });
    let sas = sas.collect();
    (host, sas, policies)
}

/// One packet of a script.
#[derive(Clone, Copy, Debug)]
struct Packet {
    sa: usize,
    number: u32,
    port: u16,
    spoilt: bool,
    /// Sent in two fragments.
    cut: bool,
}

impl Packet {
    /// As it arrives, in one or two pieces.
    fn sealed(&self, host: &Host, sas: &[SaId]) -> Vec<Vec<u8>> {
        let sa = host.sa(sas[self.sa]);
        let transform = sa
            .transform(host.netns.profile, &mut SeededEntropy::new(3))
            .unwrap();
        let mut packet = PacketBuf::copy_of(&udp(self.port, usize::from(self.port) * 20));
        let route = Route {
            hop_limit: 64,
            outer_mtu: 1500,
            inner_mtu: u32::MAX,
            ident: 7,
        };
        let place = transform.place(&mut packet, &route).unwrap();
        let number = Sequence::new(0, self.number);
        transform
            .seal(&mut packet, &place, number, &route, &mut Scratch::default())
            .unwrap();
        if self.spoilt {
            let last = packet.len() - 1;
            packet[last] ^= 1;
        }
        let mut cutter = match self.cut {
            true => Fragmenter::new(&packet, 100, self.number).unwrap(),
            false => return vec![packet.to_vec()],
        };
        let mut part = PacketBuf::with_capacity(2_000);
        let mut parts = Vec::new();
        while cutter.next_into(&mut part) == Some(true) {
            parts.push(part.to_vec());
        }
        parts
    }
}

/// Mostly what comes next of an SA, sometimes another SA's, an old one, a spoilt one, fragments.
fn script() -> impl Strategy<Value = Vec<Packet>> {
    let step = (
        prop_oneof![6 => Just(None), 1 => (0..SAS as usize).prop_map(Some)],
        prop_oneof![8 => Just(1_i64), 2 => -40_i64..40],
        prop_oneof![4 => Just(1_u16), 1 => 1_u16..6],
        prop::bool::weighted(0.08),
        prop::bool::weighted(0.05),
    );
    proptest::collection::vec(step, 1..120).prop_map(|steps| {
        let (mut sa, mut number) = (0, [0_i64; SAS as usize]);
        // The window of the one with ESN has begun.
        number[1] = 60;
        let packets = steps.into_iter().map(|(other, step, port, spoilt, cut)| {
            sa = other.unwrap_or(sa);
            number[sa] = (number[sa] + step).max(0);
            Packet {
                sa,
                number: u32::try_from(number[sa]).unwrap(),
                port,
                spoilt,
                cut,
            }
        });
        packets.collect()
    })
}

/// All that a namespace shows of what packets have done.
fn shown(host: &mut Host, sas: &[SaId], policies: &[PolicyId]) -> String {
    let each = sas.iter().map(|id| {
        let sa = host.netns.sad.get(*id);
        sa.map(|sa| (sa.info(), sa.replay_value(), sa.traffic.last_used()))
    });
    let each: Vec<_> = each.collect();
    let policies = policies
        .iter()
        .map(|id| host.netns.spd.get(*id).map(|it| it.used.secs()));
    let policies: Vec<_> = policies.collect();
    let events = host.events();
    format!(
        "{each:?} {policies:?} {:?} {:?}",
        host.counters(),
        names(&events)
    )
}

proptest! {
    #[test]
    fn together_is_one_after_the_other(packets in script(), at_once in 1_usize..40) {
        let ((mut single, sas, policies), (mut together, ..)) = (host(), host());
        let arriving: Vec<_> = packets.iter().flat_map(|it| it.sealed(&single, &sas)).collect();
        let meta = InputMeta {
            mark: 5,
            ..InputMeta::default()
        };
        for group in arriving.chunks(at_once) {
            let now = single.now();
            let mut expected = Vec::new();
            for bytes in group {
                let mut packet = PacketBuf::copy_of(bytes);
                let received = single.worker.receive(
                    &single.netns, now, &mut packet, &mut meta.clone(), &Remote { encap: 0 },
                );
                expected.push((received, packet.to_vec()));
            }
            let mut buffers: Vec<_> = group.iter().map(|it| PacketBuf::copy_of(it)).collect();
            let mut came = Vec::new();
            together.worker.receive_batch(
                &together.netns, now, &mut buffers, &meta, &Remote { encap: 0 },
                &mut |packet, received| came.push((received, packet.to_vec())),
            );
            let passed = |all: &[(Received, Vec<u8>)]| -> Vec<_> {
                // What a refused packet holds is nobody's business.
                let is_here = |it: &Received| matches!(it, Received::Local | Received::Forward);
                all.iter().map(|(it, bytes)| (*it, is_here(it).then(|| bytes.clone()))).collect()
            };
            prop_assert_eq!(passed(&came), passed(&expected));
            for host in [&mut single, &mut together] {
                host.handle_requests();
            }
            prop_assert_eq!(shown(&mut together, &sas, &policies), shown(&mut single, &sas, &policies));
        }
    }
}

impl Host {
    /// Has what packets have asked for be done.
    fn handle_requests(&mut self) {
        let now = self.now();
        let mut cx = Context {
            now,
            entropy: &mut self.entropy,
            acqseq: &mut self.acqseq,
        };
        let requests = self.worker.drain_requests();
        self.netns.handle_requests(&mut cx, requests);
    }
}
