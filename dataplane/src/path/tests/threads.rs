//! Workers and the control thread at the same time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};

use super::*;

const WORKERS: u32 = 3;
const PACKETS: usize = 400;

fn sequence_of(packet: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    (word(20), word(24))
}

/// Sends `PACKETS` from each worker, with `control` running beside them until they are done.
fn run(netns: &RwLock<Netns>, control: impl Fn(&mut Netns, u32) + Sync) -> Vec<(u32, u32)> {
    let sent = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    let meta = Host::new().meta;
    std::thread::scope(|scope| {
        let worker = |number: u32| {
            let (sent, netns) = (&sent, &netns);
            scope.spawn(move || {
                let entropy = SeededEntropy::new(u64::from(number));
                let mut worker = Worker::new(number, Box::new(entropy));
                let routes = OneRoute {
                    mtu: 1500,
                    fails: None,
                    generation: 0,
                };
                for _ in 0..PACKETS {
                    let mut packet = PacketBuf::copy_of(&udp(1, 8));
                    let netns = netns.read().unwrap();
                    let mut out = Vec::new();
                    let mut sink = |packet: &mut PacketBuf, _: &_| out.push(sequence_of(packet));
                    let now = Now::default();
                    let verdict =
                        worker.output(&netns, now, &mut packet, &meta, &routes, &mut sink);
                    // What was sent had an SA that was there at the time.
                    for &(spi, _) in &out {
                        let daddr = REMOTE;
                        let found = netns.sad.lookup(0, daddr, spi, IPPROTO_ESP, AF_INET);
                        assert!(found.is_some(), "{verdict:?} {spi}");
                    }
                    sent.lock().unwrap().extend(out);
                }
            })
        };
        let workers: Vec<_> = (0..WORKERS).map(worker).collect();
        let controller = scope.spawn(|| {
            for step in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                control(&mut netns.write().unwrap(), step);
                std::thread::yield_now();
            }
        });
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        done.store(true, Ordering::Relaxed);
        controller.join().unwrap();
    });
    sent.into_inner().unwrap()
}

#[test]
fn no_number_is_sent_twice() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let replay = xfrm_proto::uapi::ReplayState {
        oseq: u32::MAX - 1000,
        ..Default::default()
    };
    let id = host.add_sa(1, |sa| sa.params.replay = Some(replay));
    let netns = RwLock::new(host.netns);
    let sent = run(&netns, |_, _| {});
    // All numbers up to the end, each once; the others were refused.
    assert_eq!(sent.len(), 1000);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), 1000);
    let netns = netns.into_inner().unwrap();
    let refused = u64::from(WORKERS) * PACKETS as u64 - 1000;
    assert_eq!(netns.mib.value(Counter::OutStateSeqError), refused);
    assert_eq!(netns.sad.get(id).unwrap().traffic.lifetime().packets, 1000);
}

#[test]
fn packets_follow_the_tables_of_their_moment() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    let netns = RwLock::new(host.netns);
    // A new SA, then the old one goes: there is always one.
    let sent = run(&netns, |netns, step| {
        let mut request = SaRequest {
            info: UserSaInfo {
                lft: LifetimeCfg::UNLIMITED,
                family: AF_INET,
                mode: XFRM_MODE_TUNNEL,
                saddr: LOCAL,
                reqid: 1,
                ..UserSaInfo::default()
            },
            aead: Some(AlgoBlob::new("rfc4106(gcm(aes))", &[7; 20], 128)),
            ..SaRequest::default()
        };
        request.info.id.daddr = REMOTE;
        request.info.id.spi = (step + 2).into();
        request.info.id.proto = IPPROTO_ESP;
        let cx = Context {
            now: Now::default(),
            entropy: &mut SeededEntropy::new(1),
            acqseq: &mut 0,
        };
        let old = netns.sad.iter().next().unwrap().0;
        let sa = netns.sad.construct(&cx, &netns.sysctls, request).unwrap();
        netns.sad.add(sa, Now::default()).unwrap();
        netns.sad.delete(old);
    });
    assert_eq!(sent.len(), usize::try_from(WORKERS).unwrap() * PACKETS);
    assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), sent.len());
}

#[test]
fn a_limit_is_passed_by_no_more_packets_than_there_are_workers() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| {
        sa.info.lft.soft_packet_limit = 50;
        sa.info.lft.hard_packet_limit = 500;
    });
    let netns = RwLock::new(host.netns);
    let sent = run(&netns, |_, _| {}).len();
    let most = 500 + usize::try_from(WORKERS).unwrap();
    assert!((500..most).contains(&sent), "{sent}");
}

#[test]
fn a_window_takes_each_number_once() {
    let mut host = Host::new();
    let id = host.add_sa(1, |sa| sa.info.replay_window = 32);
    let sa = host.sa(id);
    let taken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                for low in 1..2000 {
                    let sequence = sa.window().infer(low);
                    if sa.window().check(low).is_err() {
                        continue;
                    }
                    std::thread::yield_now();
                    let mut window = sa.window();
                    if window.recheck(sequence).is_ok() {
                        window.advance(low);
                        taken.lock().unwrap().push(low);
                    }
                }
            });
        }
    });
    let taken = taken.into_inner().unwrap();
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len());
}
