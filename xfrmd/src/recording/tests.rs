use std::sync::Arc;
use std::time::Duration;

use dataplane::netns::Limits;
use dataplane::packet::segment::Offload;
use dataplane::path::{Destination, OutputMeta, Owner, PathInfo, RouteQuery};
use dataplane::profile::{V6_1, V6_12, V7_2};
use dataplane::spd::{Flow, SocketKey};
use dataplane::sysctl::Sysctls;
use dataplane::{BootNanos, Now, SeededEntropy, WallSecs};
use proptest::prelude::*;
use xfrm_proto::consts::*;
use xfrm_proto::extack::AckOptions;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::Address;

use super::format::{Happened, Head, HostSaid, Kept, Passage, Source, To, What};
use super::read::Recording;
use super::reel::{ControlTape, Memory, Reel};
use super::replay::{Refusal, replay};
use super::{compare, format, keys, pcapng};
use crate::emulator::{self, Emulator, Inputs, NetnsId, Peer};
use crate::store::Store;
use crate::tape::{Asked, Step};
use crate::testing::tests::{A, B, KEY, new_sa, packet, tunnel};
use crate::testing::{Instance, Open};

/// Two namespaces with a tunnel, a few packets, an hour, and the file.
fn story(profile: &'static dataplane::Profile, keys: bool) -> Vec<u8> {
    let (mut linux, [a, b]) = tunnel(Instance::new(profile).seed(3).recorded(keys));
    for _ in 0..3 {
        assert_eq!(linux.carry(a, b, &packet()).unwrap(), [packet()]);
    }
    let outer = linux.output(a, &packet()).unwrap().packets.remove(0);
    linux.input(b, &outer).unwrap();
    linux.input(b, &outer).unwrap();
    let client = linux.open(a, &Open::default()).unwrap();
    let mut dump = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    Writer::begin(&mut dump, XFRM_MSG_GETSA, flags, 1, 0).end();
    linux.send(client, &dump).unwrap();
    linux.advance(Duration::from_secs(3600));
    linux.end_recording()
}

#[test]
fn what_was_recorded_happens_again() {
    for profile in [&V6_1, &V6_12, &V7_2] {
        let file = story(profile, true);
        let recording = Recording::read(&file).unwrap();
        assert_eq!((&recording.cut, recording.lost), (&None, 0));
        assert!(recording.has_packets());
        let outcomes = replay(&recording, profile).unwrap();
        assert_eq!(compare::with_replay(&recording, &outcomes), []);
        assert!(
            outcomes
                .iter()
                .any(|it| it.fate.contains("XfrmInStateSeqError"))
        );
    }
}

#[test]
fn another_kernel_differs_where_it_differs() {
    let file = story(&V7_2, true);
    let recording = Recording::read(&file).unwrap();
    let outcomes = replay(&recording, &V6_1).unwrap();
    let differences = compare::with_replay(&recording, &outcomes);
    // 7.2 tells in a dump when an SA was last used.
    let [dump] = &differences[..] else {
        panic!("{differences:#?}")
    };
    assert_eq!(dump.what, "GETSA from port 1002");
    assert!(
        dump.lines
            .iter()
            .any(|line| line.starts_with("-     LASTUSED"))
    );
}

#[test]
fn keys_are_left_out() {
    let holds = |file: &[u8], what: &[u8]| file.windows(what.len()).any(|it| it == what);
    assert!(holds(&story(&V7_2, true), &KEY));
    let file = story(&V7_2, false);
    assert!(!holds(&file, &KEY[..4]));
    let recording = Recording::read(&file).unwrap();
    assert_eq!(replay(&recording, &V7_2), Err(Refusal::NoKeys));
}

#[test]
fn the_control_plane_is_replayed_without_keys() {
    let mut linux = Instance::new(&V6_12).recorded(false);
    let netns = linux.create_netns();
    let client = linux.open(netns, &Open::groups(0xff)).unwrap();
    // An error has a copy of the request, if the socket wants it.
    let plain = Open {
        cap_ack: false,
        ..Open::default()
    };
    let copied = linux.open(netns, &plain).unwrap();
    assert_eq!(
        linux.send(client, &new_sa(A, B, 5)).unwrap().errno(),
        Some(0)
    );
    assert_eq!(
        linux.send(copied, &new_sa(A, B, 5)).unwrap().errno(),
        Some(17)
    );
    let file = linux.end_recording();
    assert!(!file.windows(4).any(|it| it == &KEY[..4]));
    let recording = Recording::read(&file).unwrap();
    let outcomes = replay(&recording, &V6_12).unwrap();
    assert_eq!(compare::with_replay(&recording, &outcomes), []);
}

/// Wherever a message is damaged: no key of it stays.
#[test]
fn keys_of_damaged_messages_are_left_out() {
    let whole = new_sa(A, B, 5);
    for at in 0..whole.len() {
        for value in [0, 1, 3, 4, 16, 0x7f, 0xff] {
            let mut message = whole.clone();
            message[at] = value;
            let judged = message.clone();
            keys::zero(&mut message);
            let key_at = whole.windows(20).position(|it| it == KEY).unwrap();
            if (key_at..key_at + 20).contains(&at) {
                continue;
            }
            // Unless it is no algorithm's attribute any more.
            let kind = u16::from_ne_bytes([judged[242], judged[243]]) & NLA_TYPE_MASK;
            let is_key = kind == XFRMA_ALG_AEAD && judged[4..6] == whole[4..6];
            if is_key {
                assert!(
                    !message.windows(8).any(|it| it == &KEY[..8]),
                    "{at} {value}"
                );
            }
        }
    }
    for len in 0..whole.len() {
        let mut message = whole[..len].to_vec();
        keys::zero(&mut message);
        assert!(!message.windows(4).any(|it| it == &KEY[..4]), "{len}");
    }
}

#[test]
fn a_file_that_is_cut_short_says_so() {
    let file = story(&V7_2, true);
    for len in 0..file.len() {
        match Recording::read(&file[..len]) {
            Err(damage) => assert!(damage.offset <= len, "{damage}"),
            Ok(recording) => {
                let cut = recording.cut.unwrap();
                assert!(cut.offset <= len, "{cut}");
            }
        }
    }
}

#[test]
fn what_there_is_of_a_file_is_replayed() {
    let file = story(&V7_2, true);
    let recording = Recording::read(&file[..file.len() * 2 / 3]).unwrap();
    assert!(recording.cut.is_some());
    let outcomes = replay(&recording, &V7_2).unwrap();
    assert_eq!(compare::with_replay(&recording, &outcomes), []);
}

/// What two daemons have written: one with a tunnel and packets, which is killed, and the one that
/// goes on for it and is asked for its SAs.
fn two_daemons() -> [Vec<u8>; 2] {
    let store = Store::open(Store::file().unwrap(), &V7_2).unwrap().0;
    let state = store.fd().try_clone_to_owned().unwrap();
    let mut linux = Instance::new(&V7_2).seed(3).recorded(true);
    linux.emulator().keep_on(Box::new(store));
    let (mut linux, [a, b]) = tunnel(linux);
    for _ in 0..5 {
        linux.carry(a, b, &packet()).unwrap();
    }
    let mut first = linux.end_recording();
    drop(linux);
    let end = pcapng::blocks(&first).last().unwrap().unwrap().offset;
    first.truncate(end);

    let (_store, found) = Store::open(state, &V7_2).unwrap();
    let records: Vec<_> = found.iter().map(|it| it.kept()).collect();
    let kept: Vec<Kept<'_>> = records.iter().map(|&it| it.into()).collect();
    let mut emulator = Emulator::recall(&V7_2, Limits::default(), &records).unwrap();
    let head = Head {
        source: Source::Instance,
        kernel: "7.2".into(),
        keys: true,
        ..head()
    };
    let memory = Memory::default();
    let boot = BootNanos(60_000_000_000);
    let reel = Reel::go_on(&head, boot, 1, Box::new(memory.clone()), (1, &kept));
    emulator.record(Box::new(ControlTape::new(Arc::clone(&reel))));
    let mut dump = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    Writer::begin(&mut dump, XFRM_MSG_GETSA, flags, 1, 0).end();
    for netns in [a, b] {
        let peer = Peer {
            netns,
            port: 7,
            options: AckOptions::default(),
            privileged: true,
            recv_bytes: 32768,
        };
        let real = WallSecs(1);
        let inputs = Inputs {
            now: Now { boot, real },
            entropy: &mut SeededEntropy::new(1),
        };
        emulator.handle_datagram(inputs, peer, &dump);
        while emulator.handle_recv(peer) {}
    }
    emulator.stop_recording();
    reel.end();
    let second = memory.take_bytes();
    [first, second]
}

/// Wherever the daemon was killed, and whatever had not been written: what is there happens again, and
/// what the next one did happens again with what it had found.
#[test]
fn a_recording_goes_on_where_a_daemon_was_killed() {
    let [first, second] = two_daemons();
    let cuts = (0..first.len()).step_by(211).chain([first.len()]);
    for len in cuts {
        let read = |at: u64, head: &mut [u8]| {
            let at = usize::try_from(at).ok()?;
            head.copy_from_slice(first.get(at..at + head.len())?);
            Some(())
        };
        let whole = pcapng::whole_blocks(len.try_into().unwrap(), read);
        let whole = usize::try_from(whole).unwrap();
        assert!(whole <= len && len < whole + 2000, "{whole} of {len}");
        let file = [&first[..whole], &second].concat();
        let recording = Recording::read(&file).unwrap();
        assert_eq!(
            (&recording.cut, recording.kills, recording.lost),
            (&None, 1, 0)
        );
        let outcomes = replay(&recording, &V7_2).unwrap();
        assert_eq!(compare::with_replay(&recording, &outcomes), [], "{len}");
    }
    // The dump shows what packets had done before.
    let file = [first, second].concat();
    let recording = Recording::read(&file).unwrap();
    for (profile, differences) in [(&V6_12, 0), (&V6_1, 2)] {
        let outcomes = replay(&recording, profile).unwrap();
        let found = compare::with_replay(&recording, &outcomes);
        assert_eq!(found.len(), differences, "{found:#?}");
        let lines = found.iter().flat_map(|it| &it.lines);
        let gone = lines.filter(|line| line.starts_with("-     LASTUSED"));
        assert!(gone.count() >= differences);
    }
}

#[test]
fn recordings_are_not_strung_together() {
    let file = story(&V7_2, true);
    let twice = [&file[..], &file].concat();
    let refused = Recording::read(&twice).unwrap_err();
    assert!(refused.offset >= file.len(), "{refused}");
    assert!(refused.what.contains("does not go on"), "{refused}");
}

#[test]
fn any_damage_is_survived() {
    for file in [story(&V7_2, true), two_daemons().concat()] {
        damage(&file);
    }
}

fn damage(file: &[u8]) {
    for at in (0..file.len()).step_by(7) {
        let mut damaged = file.to_vec();
        damaged[at] ^= 0x55;
        if let Ok(recording) = Recording::read(&damaged)
            && let Ok(outcomes) = replay(&recording, &V7_2)
        {
            let _ = compare::with_replay(&recording, &outcomes);
        }
    }
}

#[test]
fn a_newer_format_is_refused() {
    let file = story(&V7_2, true);
    let head = head().encode();
    let at = file
        .windows(2)
        .position(|it| it == format::HEAD.to_ne_bytes())
        .unwrap();
    assert_eq!(u64::from(file[at + 4]), format::VERSION);
    assert_eq!(u64::from(head[0]), format::VERSION);
    let mut newer = file;
    newer[at + 4] += 1;
    let refused = Recording::read(&newer).unwrap_err();
    assert!(refused.what.contains("take a newer one"), "{refused}");
    let refused = Recording::read(b"GIF89a, of all things").unwrap_err();
    assert_eq!(refused.to_string(), "at byte 0: this is no pcapng file");
}

#[test]
fn recordings_are_compared_by_what_was_meant() {
    let record = |seed, spi| {
        let mut linux = Instance::new(&V7_2).seed(seed).recorded(true);
        let netns = linux.create_netns();
        let client = linux.open(netns, &Open::default()).unwrap();
        linux.send(client, &new_sa(A, B, spi)).unwrap();
        linux.end_recording()
    };
    let compared = |a: &[u8], b: &[u8]| {
        let [a, b] = [a, b].map(|file| Recording::read(file).unwrap());
        compare::recordings(["a", "b"], [&a, &b])
    };
    assert_eq!(compared(&record(1, 0x100), &record(2, 0x200)), "");
    let (two, one) = (story(&V7_2, true), record(1, 0x100));
    assert!(compared(&two, &one).contains("\n-"));
}

fn head() -> Head {
    Head {
        source: Source::Kernel,
        kernel: "6.12".into(),
        keys: false,
        program: "0".into(),
        limits: Limits::default(),
        seed: Some(7),
    }
}

fn moment() -> impl Strategy<Value = Now> {
    (any::<u64>(), any::<u64>()).prop_map(|(boot, real)| Now {
        boot: BootNanos(boot),
        real: WallSecs(real),
    })
}

fn address() -> impl Strategy<Value = Address> {
    any::<[u8; 16]>().prop_map(Address)
}

fn peer() -> impl Strategy<Value = Peer> {
    (any::<[u32; 2]>(), any::<[bool; 3]>(), any::<usize>()).prop_map(
        |([netns, port], [cap_ack, ext_ack, privileged], recv_bytes)| Peer {
            netns: NetnsId(netns),
            port,
            options: AckOptions { cap_ack, ext_ack },
            privileged,
            recv_bytes,
        },
    )
}

fn step() -> impl Strategy<Value = Step<'static>> {
    let numbers = any::<[u32; 4]>();
    (
        0..12,
        moment(),
        peer(),
        numbers,
        any::<[u16; 2]>(),
        any::<Option<Vec<u8>>>(),
    )
        .prop_map(
            |(kind, now, peer, [a, b, c, d], [family, option_family], value)| {
                let netns = NetnsId(a);
                match kind {
                    0 => Step::Create { netns },
                    1 => Step::Destroy { netns },
                    2 => Step::Limits(Limits {
                        max_sas: a as usize,
                        max_policies: b as usize,
                    }),
                    3 => Step::Request {
                        now,
                        peer,
                        bytes: value.unwrap_or_default().into(),
                    },
                    4 => Step::Pull { peer },
                    5 => Step::Close { netns, port: b },
                    6 => Step::SocketPolicy {
                        now,
                        netns,
                        socket: SocketKey(b.into()),
                        family,
                        option_family,
                        value: value.map(Into::into),
                    },
                    7 => Step::Listeners {
                        netns,
                        group: b,
                        count: c,
                    },
                    8 => Step::Sysctls {
                        netns,
                        sysctls: Sysctls {
                            aevent_etime: a,
                            aevent_rseqth: b,
                            larval_drop: c.cast_signed(),
                            acq_expires: d,
                        },
                    },
                    9 => Step::Timers { now, netns },
                    10 => Step::Inquiries {
                        now,
                        asked: Asked {
                            netns,
                            worker: b,
                            upto: if c % 2 == 0 { u64::MAX } else { d.into() },
                        },
                    },
                    _ => Step::Release {
                        netns,
                        now: now.boot,
                    },
                }
            },
        )
}

fn passage() -> impl Strategy<Value = Passage> {
    let offload = any::<Option<(u16, Option<(u16, u16)>)>>();
    (
        0..6,
        moment(),
        any::<[u32; 4]>(),
        any::<[bool; 4]>(),
        any::<Option<u64>>(),
        offload,
    )
        .prop_map(
            |(kind, now, [mark, if_id, ifindex, mtu], flags, socket, offload)| match kind {
                0 => Passage::Begin { cpu: mark },
                1 => {
                    let [forwarded, bypasses, loopback, asks_mtu] = flags;
                    Passage::Output {
                        now,
                        meta: OutputMeta {
                            mark,
                            if_id,
                            ifindex: ifindex.cast_signed(),
                            socket: socket.map(SocketKey),
                            forwarded,
                            bypasses,
                            loopback,
                            mtu,
                            hop_limit: 64,
                        },
                        offload: offload.map(|(segment_bytes, checksum)| Offload {
                            segment_bytes,
                            checksum,
                        }),
                        asks_mtu,
                    }
                }
                2 => Passage::Input {
                    now,
                    mark,
                    if_id,
                    ifindex: ifindex.cast_signed(),
                    no_policy: flags[0],
                },
                3 => Passage::Inner { now },
                4 => Passage::Retry { now },
                _ => Passage::Iptfs { now },
            },
        )
}

fn host_said() -> impl Strategy<Value = HostSaid> {
    let words = any::<([u32; 3], [u16; 4], u8, bool, bool)>();
    (0..5, address(), address(), words).prop_map(
        |(kind, daddr, saddr, ([a, b, c], [family, sport, dport, encap], small, yes, local))| {
            let query = RouteQuery {
                family,
                daddr,
                saddr,
                ifindex: a.cast_signed(),
                mark: b,
            };
            let errno = c.cast_signed();
            match kind {
                0 => HostSaid::Generation(u64::from(a) << 32 | u64::from(b)),
                1 => {
                    let path = PathInfo {
                        mtu: c,
                        hop_limit: small,
                    };
                    HostSaid::Route(query, if yes { Ok(path) } else { Err(errno) })
                }
                2 => HostSaid::Source(query, if yes { Ok(daddr) } else { Err(errno) }),
                3 => {
                    let to = Destination {
                        is_local: local,
                        ifindex: errno,
                    };
                    HostSaid::Destination(family, daddr, yes.then_some(to))
                }
                _ => {
                    let flow = Flow {
                        family,
                        daddr,
                        saddr,
                        proto: small,
                        dport,
                        sport,
                        ifindex: errno,
                        mark: b,
                    };
                    let owner = Owner {
                        socket: SocketKey(c.into()),
                        encap,
                    };
                    HostSaid::Owner(flow, yes.then_some(owner))
                }
            }
        },
    )
}

/// All of it, since not all of it can be compared.
fn shown(what: &impl std::fmt::Debug) -> String {
    format!("{what:?}")
}

proptest! {
    #[test]
    fn a_step_comes_back(number: u64, step in step(), drawn: Vec<u64>, fate: String) {
        let mut bytes = Vec::new();
        format::write_step(&mut bytes, number, &step, &drawn, &fate);
        let payload = match &step {
            Step::Request { bytes, .. } => bytes.to_vec(),
            _ => Vec::new(),
        };
        let read = Happened::decode(&bytes, &payload).unwrap();
        let what = What::Step(step);
        prop_assert_eq!(shown(&read.what), shown(&what));
        prop_assert_eq!((read.number, &*read.drawn, &*read.fate), (number, &drawn[..], &*fate));
        for len in 0..bytes.len() {
            prop_assert!(Happened::decode(&bytes[..len], &payload).is_none());
        }
    }

    #[test]
    fn a_passage_comes_back(
        number: u64,
        ids: [u32; 2],
        passage in passage(),
        host in prop::collection::vec(host_said(), 0..4),
        drawn: Vec<u64>,
        payload: Vec<u8>,
    ) {
        let [netns, worker] = ids;
        let netns = NetnsId(netns);
        let mut said = Vec::new();
        for said_once in &host {
            format::host_said(&mut dataplane::keep::Writer::behind(&mut said), said_once);
        }
        let mut bytes = Vec::new();
        let count = host.len() as u64;
        let place = (number, netns, worker);
        format::write_passage(&mut bytes, place, &passage, (count, &said), &drawn, "");
        let read = Happened::decode(&bytes, &payload).unwrap();
        let bytes = payload.as_slice().into();
        let what = What::Passage { netns, worker, passage, host, bytes };
        prop_assert_eq!(shown(&read.what), shown(&what));
        prop_assert_eq!((read.number, &*read.drawn), (number, &drawn[..]));
    }

    #[test]
    fn an_answer_comes_back(number: u64, kind in 0..4, netns: u32, value: u32) {
        let netns = NetnsId(netns);
        let to = match kind {
            0 => To::Client(netns, emulator::Destination::Port(value)),
            1 => To::Client(netns, emulator::Destination::Group(value)),
            2 => To::Wire(value),
            _ => To::Host,
        };
        let mut bytes = Vec::new();
        format::write_answer(&mut bytes, number, to);
        prop_assert_eq!(format::decode_answer(&bytes), Some((number, to)));
    }

    #[test]
    fn any_option_is_survived(bytes: Vec<u8>) {
        let _ = Happened::decode(&bytes, &[]);
        let _ = format::decode_answer(&bytes);
        let _ = Head::decode(&bytes);
        let _ = Recording::read(&bytes);
    }
}

#[test]
fn a_head_comes_back() {
    assert_eq!(Head::decode(&head().encode()), Ok(head()));
}
