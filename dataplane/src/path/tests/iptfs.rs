//! IPTFS SAs from one host to another.

use super::*;
use crate::path::{Destination, InputMeta, Owner, Received, receive};
use crate::sad::construct::IptfsRequest;
use crate::spd::Flow;
use crate::transform::Route;
use crate::transform::iptfs::HEADER_BYTES;

const DELAY_MILLIS: u64 = 50;

/// Everything ends here.
struct Everywhere;

impl receive::Host for Everywhere {
    fn destination(&self, _family: u16, _address: Address) -> Option<Destination> {
        Some(Destination {
            is_local: true,
            ifindex: 1,
        })
    }

    fn owner(&self, _flow: &Flow) -> Option<Owner> {
        None
    }
}

fn add_iptfs(host: &mut Host, dir: u8, iptfs: IptfsRequest) -> SaId {
    host.add_sa(1, |sa| {
        sa.info.mode = XFRM_MODE_IPTFS;
        sa.info.replay_window = 32;
        sa.dir = dir;
        sa.iptfs = iptfs;
    })
}

fn sender(iptfs: IptfsRequest) -> (Host, SaId) {
    let mut host = Host::new();
    let template = UserTmpl {
        mode: XFRM_MODE_IPTFS,
        ..template()
    };
    host.add_policy(policy(&[template]));
    let sa = add_iptfs(&mut host, XFRM_SA_DIR_OUT, iptfs);
    (host, sa)
}

fn delayed() -> IptfsRequest {
    IptfsRequest {
        init_delay_usecs: Some(u32::try_from(DELAY_MILLIS * 1000).unwrap()),
        ..IptfsRequest::default()
    }
}

fn receiver() -> Host {
    receiver_with(IptfsRequest::default())
}

fn receiver_with(iptfs: IptfsRequest) -> Host {
    let mut host = Host::new();
    let template = UserTmpl {
        mode: XFRM_MODE_IPTFS,
        ..template()
    };
    let info = UserPolicyInfo {
        sel: Selector {
            family: AF_INET,
            ..Selector::default()
        },
        dir: XFRM_POLICY_IN,
        lft: LifetimeCfg::UNLIMITED,
        ..UserPolicyInfo::default()
    };
    let templates = Templates::new([template]);
    host.add_policy(Policy::new(&info, XFRM_POLICY_TYPE_MAIN, templates));
    add_iptfs(&mut host, XFRM_SA_DIR_IN, iptfs);
    host
}

impl Host {
    fn arrive(&mut self, bytes: &[u8]) -> (Received, Vec<(Vec<u8>, Received)>) {
        let mut packet = PacketBuf::copy_of(bytes);
        let received = self.take_in(&mut packet, &mut InputMeta::default());
        (received, self.inner())
    }

    fn take_in(&mut self, packet: &mut PacketBuf, meta: &mut InputMeta) -> Received {
        let mut cx = Context {
            now: self.now(),
            entropy: &mut self.entropy,
            acqseq: &mut self.acqseq,
        };
        self.worker
            .receive_alone(&mut self.netns, &mut cx, packet, meta, &Everywhere)
    }

    /// What has come out of payloads, and what became of it.
    fn inner(&mut self) -> Vec<(Vec<u8>, Received)> {
        let mut all = Vec::new();
        let mut packet = PacketBuf::with_capacity(70_000);
        let mut meta = InputMeta::default();
        while self.worker.next_inner(&mut packet, &mut meta) {
            assert!(!meta.path.is_empty());
            let received = self.take_in(&mut packet, &mut meta);
            all.push((packet.to_vec(), received));
        }
        all
    }

    fn take_sent(&mut self) -> Vec<Vec<u8>> {
        self.sent.drain(..).map(|(packet, _)| packet).collect()
    }
}

fn local(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Received)> {
    let local = |packet: &Vec<u8>| (packet.clone(), Received::Local);
    packets.iter().map(local).collect()
}

#[test]
fn packets_meet_in_the_queue() {
    let (mut a, _) = sender(delayed());
    let packets = [udp(1, 30), udp(2, 40), udp(3, 50)];
    for packet in &packets {
        assert_eq!(a.send(packet), Verdict::Queued);
    }
    assert!(a.sent.is_empty());
    let due = a.netns.poll_timeout().unwrap();
    assert_eq!(due, BootNanos(DELAY_MILLIS * 1_000_000));
    a.wait(DELAY_MILLIS);
    let sent = a.take_sent();
    assert_eq!(sent.len(), 1);

    let mut b = receiver();
    assert_eq!(b.arrive(&sent[0]), (Received::Inner, local(&packets)));
    assert_eq!(b.counters(), BTreeMap::new());
    a.wait(1000);
    assert!(a.sent.is_empty());
}

#[test]
fn without_a_delay_packets_leave_at_once() {
    let (mut a, sa) = sender(IptfsRequest::default());
    let small = udp(1, 30);
    assert_eq!(a.send(&small), Verdict::Sent(1));
    let large = udp(2, 4000);
    assert_eq!(a.send(&large), Verdict::Sent(3));
    assert_eq!(a.sa(sa).traffic.lifetime().packets, 4);
    let mut b = receiver();
    let mut got = Vec::new();
    for outer in a.take_sent() {
        assert!(outer.len() <= 1500);
        let header = ip4::Header::parse(&outer).unwrap();
        assert_eq!((header.tos, header.fragment, header.ident), (0, ip4::DF, 0));
        got.extend(b.arrive(&outer).1);
    }
    assert_eq!(got, local(&[small, large]));
}

#[test]
fn what_is_missing_is_given_up_in_time() {
    let (mut a, _) = sender(IptfsRequest::default());
    let packets: Vec<_> = (1..=3).map(|port| udp(port, 30)).collect();
    for packet in &packets {
        a.send(packet);
    }
    let sent = a.take_sent();
    let mut b = receiver();
    assert_eq!(b.arrive(&sent[0]).1.len(), 1);
    assert_eq!(b.arrive(&sent[2]), (Received::Inner, Vec::new()));
    b.wait(900);
    assert_eq!(b.inner(), []);
    b.wait(200);
    assert_eq!(b.inner(), local(&packets[2..]));
    assert_eq!(b.arrive(&sent[1]), (Received::Inner, Vec::new()));
    assert_eq!(b.counters(), BTreeMap::new());
    assert!(b.netns.poll_timeout().is_none());
}

#[test]
fn a_full_queue_refuses() {
    let (mut a, _) = sender(IptfsRequest {
        max_queue_bytes: Some(100),
        ..delayed()
    });
    assert_eq!(a.send(&udp(1, 30)), Verdict::Queued);
    assert_eq!(a.send(&udp(1, 30)), dropped(DropReason::IptfsQueueFull, 0));
    assert_eq!(
        a.counters(),
        BTreeMap::from([("OutNoQueueSpace".into(), 1)])
    );
}

#[test]
fn iptfs_counts_only_forwarded_packets_as_too_big() {
    let (mut a, _) = sender(IptfsRequest {
        dont_frag: true,
        packet_bytes: Some(500),
        ..IptfsRequest::default()
    });
    let too_big = Verdict::TooBig { mtu: 460 };
    assert_eq!(a.send(&udp(1, 460 - 28)), Verdict::Sent(1));
    assert_eq!(
        a.send(&udp(1, 461 - 28)),
        dropped(DropReason::IptfsTooBig, 0)
    );
    assert_eq!(a.counters(), BTreeMap::new());
    let forwarded = OutputMeta {
        forwarded: true,
        ..a.meta
    };
    assert_eq!(a.send_with(&udp(1, 461 - 28), &forwarded), too_big);
    assert_eq!(a.counters(), BTreeMap::from([("OutError".into(), 1)]));
}

#[test]
fn what_waits_goes_with_the_sa() {
    let (mut a, sa) = sender(delayed());
    assert_eq!(a.send(&udp(1, 30)), Verdict::Queued);
    let key = (a.sa(sa).id, a.sa(sa).family);
    a.netns.sad.delete(sa);
    assert!(
        a.netns
            .sad
            .lookup(0, key.0.daddr, 1, IPPROTO_ESP, key.1)
            .is_none()
    );
    a.wait(2 * DELAY_MILLIS);
    assert!(a.sent.is_empty());
    assert_eq!(a.counters(), BTreeMap::new());
}

/// An inner packet that the same SA protects again meets the SA while nothing of it is held.
#[test]
fn an_sa_inside_itself_ends() {
    let (mut a, sa) = sender(IptfsRequest::default());
    a.send(&udp(1, 30));
    let mut packet = a.take_sent().remove(0);
    let transform = a
        .sa(sa)
        .transform(a.netns.profile, &mut SeededEntropy::new(3));
    for sequence in 2..20 {
        let mut outer = PacketBuf::with_capacity(70_000);
        outer.fill(&[0; HEADER_BYTES]);
        outer
            .push_back(packet.len())
            .unwrap()
            .copy_from_slice(&packet);
        let route = Route {
            hop_limit: 64,
            outer_mtu: 1500,
            inner_mtu: u32::MAX,
            ident: 0,
        };
        let transform = transform.unwrap();
        let place = transform.place(&mut outer, &route).unwrap();
        let mut scratch = Scratch::default();
        let sequence = Sequence(sequence);
        transform
            .seal(&mut outer, &place, sequence, &route, &mut scratch)
            .unwrap();
        packet = outer.to_vec();
    }
    // With a window the packets inside, whose numbers are lower, would come too late.
    let mut b = receiver_with(IptfsRequest {
        reorder_window: Some(0),
        ..IptfsRequest::default()
    });
    let (_, inner) = b.arrive(&packet);
    let last = inner.last().map(|(_, received)| *received);
    assert_eq!(last, Some(Received::Dropped(DropReason::InDepth)));
    assert_eq!(inner.len(), 6);
}
