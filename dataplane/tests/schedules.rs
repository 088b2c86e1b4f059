//! Packet threads and a control thread in many orders: the engine itself, its locks and atomics
//! given to a scheduler that runs one thread at a time and switches wherever threads could meet.
//!
//! `cargo test -p dataplane --features shuttle --test schedules`, which `cargo xtask test` runs.
//! The orders are the same in every run; a failure prints the schedule that leads to it. What
//! the scheduler does not know is memory that is seen late: every order is sequentially consistent.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use dataplane::mib::Counter;
use dataplane::netns::{Context, Limits};
use dataplane::packet::{PacketBuf, ip4};
use dataplane::path::{
    InputMeta, OneRoute, OutputMeta, PathInfo, Received, Request, Verdict, Worker,
};
use dataplane::profile::V7_2;
use dataplane::sad::SaId;
use dataplane::sad::construct::SaRequest;
use dataplane::spd::{Policy, Templates};
use dataplane::{Event, Netns, Now, SeededEntropy};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::RwLock;
use shuttle::{Config, Runner, thread};
use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, LifetimeCfg, ReplayState, ReplayStateEsn, Selector, UserPolicyInfo, UserSaInfo,
    UserTmpl,
};
use zerocopy::IntoBytes;

const ORDERS: usize = 400;
const WORKERS: u32 = 3;
const EACH: u32 = 3;
const ALL: usize = (WORKERS * EACH) as usize;
const OWN: Address = Address::v4(192, 0, 2, 1);
const PEER: Address = Address::v4(192, 0, 2, 2);
/// It takes what is for `PEER`; the rest passes through.
const HERE: OneRoute = OneRoute {
    local: PEER,
    path: PathInfo {
        mtu: 1500,
        hop_limit: 64,
    },
};

/// Runs a scenario in many orders: some drawn at random, some with few switches at awkward
/// places (PCT).
fn in_many_orders(scenario: fn()) {
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config.silence_warnings = true;
        config
    };
    Runner::new(RandomScheduler::new_from_seed(1, ORDERS), config()).run(scenario);
    Runner::new(PctScheduler::new_from_seed(2, 3, ORDERS), config()).run(scenario);
}

fn empty() -> Netns {
    let limits = Limits {
        max_sas: 100,
        max_policies: 100,
    };
    Netns::new(&V7_2, limits)
}

/// What an SA begins with.
#[derive(Clone, Copy, Debug)]
enum Numbers<'a> {
    /// 0, and whatever comes is taken.
    Any,
    /// 0, and a window of 32.
    Window,
    /// This one was the last that was sent.
    After(u32),
    /// REPLAY_ESN_VAL.
    Esn(&'a [u8]),
}

fn tunnel(spi: u32) -> UserSaInfo {
    let mut info = UserSaInfo {
        lft: LifetimeCfg::UNLIMITED,
        family: AF_INET,
        mode: XFRM_MODE_TUNNEL,
        saddr: OWN,
        reqid: 1,
        ..UserSaInfo::default()
    };
    info.id.daddr = PEER;
    info.id.spi = spi.into();
    info.id.proto = IPPROTO_ESP;
    info
}

fn add_sa(netns: &mut Netns, info: UserSaInfo, numbers: Numbers<'_>) -> SaId {
    let mut request = SaRequest {
        info,
        ..SaRequest::default()
    };
    match numbers {
        Numbers::Any => {}
        Numbers::Window => request.info.replay_window = 32,
        Numbers::After(oseq) => {
            request.params.replay = Some(ReplayState {
                oseq,
                ..ReplayState::default()
            });
        }
        Numbers::Esn(esn) => {
            request.info.flags = XFRM_STATE_ESN;
            request.params.esn = Some(esn);
        }
    }
    request.aead = Some(AlgoBlob::new("rfc4106(gcm(aes))", &[7; 20], 128));
    let cx = Context {
        now: Now::default(),
        entropy: &mut SeededEntropy::new(1),
        acqseq: &mut 0,
    };
    let sa = netns.sad.construct(&cx, &netns.sysctls, request);
    netns.sad.add(sa.unwrap(), cx.now).unwrap()
}

/// ESN with a window of 64, and numbers that begin so many before the low half wraps.
fn esn_before_the_carry(left: u32) -> Vec<u8> {
    let head = ReplayStateEsn {
        bmp_len: 2,
        oseq: u32::MAX - left,
        seq: u32::MAX - left,
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    [head.as_bytes(), &[0; 8]].concat()
}

/// From 10/8 to 20/8 packets pass a tunnel of SAs with that reqid.
fn add_policy(netns: &mut Netns, dir: u8, reqid: u32) {
    let mut template = UserTmpl {
        family: AF_INET,
        saddr: OWN,
        reqid,
        mode: XFRM_MODE_TUNNEL,
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
        ..UserTmpl::default()
    };
    template.id.daddr = PEER;
    template.id.proto = IPPROTO_ESP;
    let info = UserPolicyInfo {
        sel: Selector {
            saddr: Address::v4(10, 0, 0, 0),
            daddr: Address::v4(20, 0, 0, 0),
            prefixlen_s: 8,
            prefixlen_d: 8,
            family: AF_INET,
            ..Selector::default()
        },
        dir,
        lft: LifetimeCfg::UNLIMITED,
        ..UserPolicyInfo::default()
    };
    let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::new([template]));
    netns.spd.insert(policy, false, Now::default()).unwrap();
}

fn worker(number: u32) -> Worker {
    Worker::new(number, Box::new(SeededEntropy::new(u64::from(number) + 9)))
}

fn inner() -> Vec<u8> {
    let mut inner = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 20, 0, 0, 1,
    ];
    inner.extend([0x10, 0, 0x20, 0, 0, 8, 0, 0]);
    ip4::finish(&mut inner).unwrap();
    inner
}

/// Sends one packet; what left.
fn send(worker: &mut Worker, netns: &Netns) -> (Verdict, Vec<Vec<u8>>) {
    let meta = OutputMeta {
        mark: 0,
        if_id: 0,
        ifindex: 1,
        socket: None,
        forwarded: true,
        bypasses: false,
        loopback: false,
        mtu: 1500,
        hop_limit: 64,
    };
    let mut packet = PacketBuf::copy_of(&inner());
    let mut left = Vec::new();
    let mut sink = |packet: &mut PacketBuf, _: &_| left.push(packet.to_vec());
    let now = Now::default();
    let verdict = worker.output(netns, now, &mut packet, &meta, &HERE, &mut sink);
    (verdict, left)
}

fn take(worker: &mut Worker, netns: &Netns, bytes: &[u8]) -> Received {
    let mut packet = PacketBuf::copy_of(bytes);
    let mut meta = InputMeta::default();
    worker.receive(netns, Now::default(), &mut packet, &mut meta, &HERE)
}

/// The same of packets in hand together.
fn take_all(worker: &mut Worker, netns: &Netns, packets: &[Vec<u8>]) -> Vec<Received> {
    let mut buffers: Vec<_> = packets.iter().map(|it| PacketBuf::copy_of(it)).collect();
    let (now, meta) = (Now::default(), InputMeta::default());
    let mut all = Vec::new();
    let mut done = |_: &mut PacketBuf, received| all.push(received);
    worker.receive_batch(netns, now, &mut buffers, &meta, &HERE, &mut done);
    all
}

fn word(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

fn spi_of(packet: &[u8]) -> u32 {
    word(packet, 20)
}

fn number_of(packet: &[u8]) -> u32 {
    word(packet, 24)
}

/// What all workers together have sent, each in its own order.
fn sent_by_workers(netns: &Arc<RwLock<Netns>>) -> Vec<Vec<Vec<u8>>> {
    let start = |number| {
        let netns = Arc::clone(netns);
        thread::spawn(move || {
            let mut worker = worker(number);
            let packets = (0..EACH).flat_map(|_| send(&mut worker, &netns.read().unwrap()).1);
            packets.collect::<Vec<_>>()
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(start).collect();
    workers.into_iter().map(|w| w.join().unwrap()).collect()
}

/// A receiver that lets in what the senders here send.
fn receiver(numbers: Numbers<'_>) -> Netns {
    let mut netns = empty();
    add_sa(&mut netns, tunnel(1), numbers);
    add_policy(&mut netns, XFRM_POLICY_FWD, 1);
    netns
}

fn sender(info: UserSaInfo, numbers: Numbers<'_>) -> Netns {
    let mut netns = empty();
    add_sa(&mut netns, info, numbers);
    add_policy(&mut netns, XFRM_POLICY_OUT, 1);
    netns
}

#[test]
fn numbers_are_given_once_across_the_carry() {
    in_many_orders(|| {
        let esn = esn_before_the_carry(4);
        let sender = Arc::new(RwLock::new(sender(tunnel(1), Numbers::Esn(&esn))));
        let sent = sent_by_workers(&sender);
        // Counted from the first one, because the low half wraps on the way.
        let place = |packet: &Vec<u8>| number_of(packet).wrapping_add(4);
        for own in &sent {
            assert!(own.is_sorted_by(|a, b| place(a) < place(b)));
        }
        let mut packets: Vec<_> = sent.concat();
        packets.sort_by_key(place);
        let numbers: BTreeSet<u32> = packets.iter().map(|packet| number_of(packet)).collect();
        assert_eq!((packets.len(), numbers.len()), (ALL, ALL));
        let sender = sender.read().unwrap();
        let sa = sender.sad.iter().next().unwrap().1;
        let first = u64::from(u32::MAX - 4);
        assert_eq!(sa.traffic.last_sent().0, first + ALL as u64);
        // High halves are in the ICV: who has counted along can open them all.
        let receiver = receiver(Numbers::Esn(&esn));
        for packet in &packets {
            let got = take(&mut worker(9), &receiver, packet);
            assert_eq!(got, Received::Forward, "{}", number_of(packet));
        }
    });
}

#[test]
fn the_last_numbers_are_given_once_and_then_none() {
    in_many_orders(|| {
        let sender = sender(tunnel(1), Numbers::After(u32::MAX - 4));
        let sender = Arc::new(RwLock::new(sender));
        let packets = sent_by_workers(&sender).concat();
        let numbers: BTreeSet<u32> = packets.iter().map(|packet| number_of(packet)).collect();
        assert_eq!(packets.len(), 4);
        assert!(numbers.into_iter().eq(u32::MAX - 3..=u32::MAX));
        let refused = sender.read().unwrap().mib.value(Counter::OutStateSeqError);
        assert_eq!(refused, ALL as u64 - 4);
    });
}

/// Each worker gets all packets, over a wire that repeats everything.
/// One by one, and all at once.
fn everything_arrives_thrice(numbers: Numbers<'_>) {
    let sender = sender(tunnel(1), numbers);
    let mut own = worker(9);
    let packets = (0..EACH).flat_map(|_| send(&mut own, &sender).1);
    let packets: Arc<Vec<_>> = Arc::new(packets.collect());
    let netns = Arc::new(RwLock::new(receiver(numbers)));
    let start = |number| {
        let (netns, packets) = (Arc::clone(&netns), Arc::clone(&packets));
        thread::spawn(move || {
            let mut worker = worker(number);
            let mut accepted = Vec::new();
            let received: Vec<_> = match number % 2 {
                0 => take_all(&mut worker, &netns.read().unwrap(), &packets),
                _ => packets
                    .iter()
                    .map(|packet| take(&mut worker, &netns.read().unwrap(), packet))
                    .collect(),
            };
            for (packet, received) in packets.iter().zip(received) {
                match received {
                    Received::Forward => accepted.push(number_of(packet)),
                    Received::Dropped(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            accepted
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(start).collect();
    let accepted = workers.into_iter().flat_map(|w| w.join().unwrap());
    let mut accepted: Vec<u32> = accepted.collect();
    accepted.sort_unstable();
    let mut expected: Vec<u32> = packets.iter().map(|packet| number_of(packet)).collect();
    expected.sort_unstable();
    assert_eq!(accepted, expected);
    let netns = netns.read().unwrap();
    let refused = netns.mib.value(Counter::InStateSeqError);
    assert_eq!(refused, u64::from(EACH * (WORKERS - 1)));
    let sa = netns.sad.iter().next().unwrap().1;
    assert_eq!(sa.traffic.lifetime().packets, u64::from(EACH));
}

#[test]
fn a_window_takes_each_number_once() {
    in_many_orders(|| everything_arrives_thrice(Numbers::Window));
}

#[test]
fn an_esn_window_takes_each_number_once_across_the_carry() {
    // Two before the carry, one after it.
    in_many_orders(|| everything_arrives_thrice(Numbers::Esn(&esn_before_the_carry(2))));
}

/// The tables, and the SPI that they say is next.
struct Published {
    netns: Netns,
    current: u32,
}

/// Workers send while `control` changes the tables, which says what SPI is right from then on.
fn packets_follow(control: fn(&mut Published, u32)) {
    let netns = sender(tunnel(1), Numbers::Any);
    let published = Arc::new(RwLock::new(Published { netns, current: 1 }));
    let start = |number| {
        let published = Arc::clone(&published);
        thread::spawn(move || {
            let mut worker = worker(number);
            for _ in 0..EACH {
                let published = published.read().unwrap();
                let (verdict, left) = send(&mut worker, &published.netns);
                assert_eq!(verdict, Verdict::Sent(1));
                assert_eq!(spi_of(&left[0]), published.current);
            }
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(start).collect();
    for step in 2..5 {
        control(&mut published.write().unwrap(), step);
    }
    workers.into_iter().for_each(|w| w.join().unwrap());
}

#[test]
fn packets_follow_the_sad() {
    in_many_orders(|| {
        packets_follow(|published, step| {
            let Published { netns, current } = published;
            let old = netns.sad.iter().next().unwrap().0;
            add_sa(netns, tunnel(step), Numbers::Any);
            netns.sad.delete(old).unwrap();
            *current = step;
        });
    });
}

#[test]
fn packets_follow_the_spd() {
    in_many_orders(|| {
        packets_follow(|published, step| {
            // Another SA, which nothing asks for until the policy is replaced.
            let mut info = tunnel(step);
            info.reqid = step;
            add_sa(&mut published.netns, info, Numbers::Any);
            add_policy(&mut published.netns, XFRM_POLICY_OUT, step);
            published.current = step;
        });
    });
}

/// Workers take the same packet again and again while `control` changes the tables, and says
/// whether it is to be let in from then on.
fn arrivals_follow(control: fn(&mut Netns, u32) -> bool) {
    let wire = send(&mut worker(9), &sender(tunnel(1), Numbers::Any)).1;
    let wire = Arc::new(wire);
    let published = Arc::new(RwLock::new((receiver(Numbers::Any), true)));
    let start = |number| {
        let (published, wire) = (Arc::clone(&published), Arc::clone(&wire));
        thread::spawn(move || {
            let mut worker = worker(number);
            for _ in 0..EACH {
                let published = published.read().unwrap();
                let got = take(&mut worker, &published.0, &wire[0]);
                assert_eq!(got == Received::Forward, published.1, "{got:?}");
            }
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(start).collect();
    for step in 0..4 {
        let mut published = published.write().unwrap();
        published.1 = control(&mut published.0, step);
    }
    workers.into_iter().for_each(|w| w.join().unwrap());
}

#[test]
fn arrivals_follow_the_sad() {
    in_many_orders(|| {
        arrivals_follow(|netns, step| {
            if step % 2 == 0 {
                let old = netns.sad.iter().next().unwrap().0;
                netns.sad.delete(old).unwrap();
            } else {
                add_sa(netns, tunnel(1), Numbers::Any);
            }
            step % 2 != 0
        });
    });
}

#[test]
fn arrivals_follow_the_spd() {
    in_many_orders(|| {
        arrivals_follow(|netns, step| {
            // A policy that wants another reqid, and the first again.
            let right = step % 2 != 0;
            add_policy(netns, XFRM_POLICY_FWD, if right { 1 } else { 7 });
            right
        });
    });
}

/// Sends, and has done what packets asked for, as the control thread would.
fn send_and_ask(worker: &mut Worker, netns: &RwLock<Netns>) -> usize {
    let left = send(worker, &netns.read().unwrap()).1.len();
    let requests: Vec<Request> = worker.drain_requests().collect();
    if !requests.is_empty() {
        let mut cx = Context {
            now: Now::default(),
            entropy: &mut SeededEntropy::new(1),
            acqseq: &mut 0,
        };
        netns.write().unwrap().handle_requests(&mut cx, requests);
    }
    left
}

#[test]
fn limits_are_told_once() {
    in_many_orders(|| {
        let mut info = tunnel(1);
        info.lft.soft_packet_limit = 2;
        info.lft.hard_packet_limit = 5;
        let netns = Arc::new(RwLock::new(sender(info, Numbers::Any)));
        let start = |number| {
            let netns = Arc::clone(&netns);
            thread::spawn(move || {
                let mut worker = worker(number);
                let left = (0..EACH).map(|_| send_and_ask(&mut worker, &netns));
                left.sum::<usize>()
            })
        };
        let workers: Vec<_> = (0..WORKERS).map(start).collect();
        let left: usize = workers.into_iter().map(|w| w.join().unwrap()).sum();
        // Each worker may be past the check when the last packet is counted.
        assert!((5..5 + WORKERS as usize).contains(&left), "{left}");
        let mut netns = netns.write().unwrap();
        let mut told = [0, 0];
        while let Some(event) = netns.poll_event() {
            match event {
                Event::SaExpire(expire) => told[usize::from(expire.body.hard)] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, [1, 1]);
        assert!(netns.sad.is_empty());
    });
}
