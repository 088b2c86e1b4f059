//! Limits in bytes and packets, sequence numbers, aevents.

use super::*;

#[test]
fn limits_are_tested_before_counting() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let sa = host.add_sa(1, |sa| {
        sa.info.lft.soft_packet_limit = 1;
        sa.info.lft.hard_packet_limit = 3;
    });
    for _ in 0..3 {
        assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    }
    assert_eq!(names(&host.events()), ["expire hard 0"]);
    let expired = dropped(DropReason::OutExpired, errno::EINVAL);
    assert_eq!(host.send(&udp(1, 8)), expired);
    let events = host.events();
    let [Event::SaExpire(expire)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((expire.body.hard, expire.body.state.curlft.packets), (1, 3));
    assert!(host.netns.sad.get(sa).is_none());
    assert_eq!(host.counters(), [("OutStateExpired".to_owned(), 1)].into());
    assert_eq!(host.send(&udp(1, 8)), dropped(DropReason::OutNoStates, 0));
    assert_eq!(names(&host.events()), ["acquire 1"]);
}

#[test]
fn bytes_are_those_of_the_payload() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    // Each packet counts 20 + 8 + 72 bytes.
    host.add_sa(1, |sa| sa.info.lft.hard_byte_limit = 201);
    for _ in 0..3 {
        assert_eq!(host.send(&udp(1, 72)), Verdict::Sent(1));
    }
    let expired = dropped(DropReason::OutExpired, errno::EINVAL);
    assert_eq!(host.send(&udp(1, 72)), expired);
}

#[test]
fn packets_in_hand_meet_limits_one_by_one() {
    for (soft, hard, through) in [(XFRM_INF, XFRM_INF, 12), (4, 9, 9)] {
        let mut host = Host::new();
        host.add_policy(policy(&[template()]));
        let sa = host.add_sa(1, |sa| {
            sa.info.lft.soft_packet_limit = soft;
            sa.info.lft.hard_packet_limit = hard;
        });
        let mut packets = vec![PacketBuf::copy_of(&udp(1, 72)); 12];
        let mut verdicts = Vec::new();
        let (now, meta, routes) = (host.now(), &host.meta, &host.routes);
        host.worker.output_batch(
            &host.netns,
            now,
            &mut packets,
            meta,
            routes,
            &mut |_, _| {},
            &mut |verdict| verdicts.push(verdict),
        );
        let (sent, refused) = verdicts.split_at(through);
        assert!(sent.iter().all(|verdict| *verdict == Verdict::Sent(1)));
        let gone = dropped(DropReason::OutNoStates, 0);
        match refused {
            [] => assert_eq!(through, 12),
            [first, rest @ ..] => {
                assert_eq!(*first, dropped(DropReason::OutExpired, errno::EINVAL));
                assert!(rest.iter().all(|verdict| *verdict == gone));
            }
        }
        let traffic = &host.sa(sa).traffic;
        assert_eq!(traffic.lifetime().packets, through as u64);
        assert_eq!(traffic.lifetime().bytes, 100 * through as u64);
        assert_eq!(traffic.use_time(), now.real.0);
        assert_eq!(traffic.last_sent().0, through as u64);
    }
}

#[test]
fn an_expired_sa_is_not_chosen_while_its_request_waits() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| sa.info.lft.hard_packet_limit = 1);
    let (now, meta) = (host.now(), host.meta);
    let mut send = || {
        let mut packet = PacketBuf::copy_of(&udp(1, 8));
        let (worker, netns, routes) = (&mut host.worker, &host.netns, &host.routes);
        worker.output(netns, now, &mut packet, &meta, routes, &mut |_, _| {})
    };
    assert_eq!(send(), Verdict::Sent(1));
    assert_eq!(send(), dropped(DropReason::OutExpired, errno::EINVAL));
    // There is one, but it is over: nothing is acquired yet.
    assert_eq!(send(), dropped(DropReason::OutNoStates, 0));
    assert_eq!(host.worker.drain_requests().count(), 1);
}

#[test]
fn sequence_numbers_end() {
    let replay = xfrm_proto::uapi::ReplayState {
        oseq: u32::MAX - 1,
        ..Default::default()
    };
    for may_wrap in [false, true] {
        let mut host = Host::new();
        host.add_policy(policy(&[template()]));
        let sa = host.add_sa(1, |sa| {
            sa.params.replay = Some(replay);
            sa.extra_flags = u32::from(may_wrap) * XFRM_SA_XFLAG_OSEQ_MAY_WRAP;
        });
        assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
        let verdict = host.send(&udp(1, 8));
        if may_wrap {
            assert_eq!(verdict, Verdict::Sent(1));
            assert_eq!(host.sa(sa).traffic.last_sent(), Sequence::new(1, 0));
        } else {
            let over = dropped(DropReason::OutSequence, errno::EOVERFLOW);
            assert_eq!(verdict, over);
            assert_eq!(host.counters(), [("OutStateSeqError".to_owned(), 1)].into());
            assert_eq!(host.sa(sa).traffic.lifetime().packets, 1);
        }
    }
}

#[test]
fn esn_counts_on() {
    let mut attr = Vec::new();
    for word in [1u32, u32::MAX, 0, 4, 0, 0] {
        attr.extend(word.to_ne_bytes());
    }
    attr.extend([0; 4]);
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let sa = host.add_sa(1, |sa| {
        sa.info.flags = XFRM_STATE_ESN;
        sa.dir = XFRM_SA_DIR_OUT;
        sa.params.esn = Some(attr.leak());
    });
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    assert_eq!(host.sa(sa).traffic.last_sent(), Sequence::new(5, 0));
    assert_eq!(host.open(&[sa]), udp(1, 8));
}

#[test]
fn an_aevent_every_two_packets() {
    let mut host = Host::new();
    host.netns.listeners.aevents = true;
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    for _ in 0..5 {
        host.send(&udp(1, 8));
    }
    let events = host.events();
    assert_eq!(names(&events), ["aevent 0x10", "aevent 0x10"]);
    let Event::Aevent(aevent) = &events[0] else {
        panic!()
    };
    // The packet that brings it about is numbered, but not counted yet.
    assert_eq!(aevent.lifetime.packets, 1);
    // A second after the last one the fifth packet is told too.
    host.wait(900);
    assert!(host.events().is_empty());
    host.wait(100);
    assert_eq!(names(&host.events()), ["aevent 0x20"]);
    // Then nothing changes: the timer stops, and the next packet is told at once.
    host.wait(3000);
    assert!(host.events().is_empty());
    host.send(&udp(1, 8));
    assert_eq!(names(&host.events()), ["aevent 0x20"]);
}

#[test]
fn nobody_listens_to_aevents() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    for _ in 0..9 {
        host.send(&udp(1, 8));
    }
    assert!(host.events().is_empty());
}

#[test]
fn an_aevent_threshold_of_none_leaves_it_to_the_timer() {
    let mut host = Host::new();
    host.netns.listeners.aevents = true;
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| {
        sa.params.maxdiff = Some(0);
        sa.params.maxage = Some(50);
    });
    host.wait(100);
    host.send(&udp(1, 8));
    assert!(host.events().is_empty());
    // 50 ticks of 4 ms, from when the SA was added.
    host.wait(100);
    assert_eq!(names(&host.events()), ["aevent 0x20"]);
}

#[test]
fn aead_ivs_never_repeat_when_the_number_is_set_back() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let id = host.add_sa(1, |_| {});
    let mut ivs = std::collections::BTreeSet::new();
    for _ in 0..3 {
        for _ in 0..4 {
            host.send(&udp(1, 8));
            let sent = &host.sent.last().unwrap().0;
            assert!(ivs.insert(sent[28..36].to_vec()));
        }
        let params = crate::sad::replay::AeventParams {
            replay: Some(Default::default()),
            ..Default::default()
        };
        params.apply(host.netns.sad.get_mut(id).unwrap());
    }
}
