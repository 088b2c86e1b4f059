//! SAs that are not there yet, and packets that wait for them.

use super::*;

#[test]
fn an_acquire_asks_for_the_one_flow() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let missing = dropped(DropReason::OutNoStates, 0);
    for port in [7, 7, 8] {
        assert_eq!(host.send(&udp(port, 8)), missing);
    }
    assert_eq!(host.counters(), [("OutNoStates".to_owned(), 3)].into());
    let events = host.events();
    let [Event::Acquire(acquire)] = &events[..] else {
        panic!("{events:?}");
    };
    let body = &acquire.body;
    assert_eq!(
        (body.id.daddr, body.saddr, body.id.spi.get()),
        (REMOTE, LOCAL, 0)
    );
    assert_eq!(body.sel.daddr, Address::v4(10, 2, 0, 1));
    assert_eq!((body.sel.prefixlen_d, body.sel.prefixlen_s), (32, 32));
    assert_eq!(
        (body.sel.dport.get(), body.sel.dport_mask.get()),
        (7, 0xffff)
    );
    assert_eq!((body.sel.sport.get(), body.sel.proto), (4000, 17));
    assert_eq!((body.sel.ifindex, body.seq), (2, 1));
    assert_eq!((body.policy.dir, body.aalgos), (XFRM_POLICY_OUT, u32::MAX));
    assert_eq!(acquire.templates.len(), 1);
    let larval = host.netns.sad.iter().next().unwrap().1.info();
    assert_eq!((larval.seq, larval.reqid), (1, 1));
    assert_eq!(larval.lft.hard_add_expires_seconds, 30);
    // The policy is used only by what it lets pass.
    host.wait(29_500);
    assert_eq!(names(&host.events()), Vec::<String>::new());
    host.wait(600);
    assert_eq!(names(&host.events()), ["expire hard 1"]);
    assert!(host.netns.sad.is_empty());
    assert_eq!(host.send(&udp(7, 8)), missing);
    assert_eq!(names(&host.events()), ["acquire 2"]);
}

#[test]
fn unresolved_send_succeeds() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    assert_eq!(host.send(&udp(7, 8)), dropped(DropReason::OutNoStates, 0));
    assert!(host.sent.is_empty());
    assert_eq!(host.counters(), [("OutNoStates".to_owned(), 1)].into());
}

#[test]
fn without_a_listener_there_is_no_larval_sa() {
    let mut host = Host::new();
    host.netns.listeners.acquire = false;
    host.add_policy(policy(&[template()]));
    assert_eq!(host.send(&udp(7, 8)), dropped(DropReason::OutNoStates, 0));
    assert!(host.netns.sad.is_empty());
    assert!(host.events().is_empty());
}

#[test]
fn a_release_without_directions_makes_larval_sas_without() {
    for (profile, dir) in [(&crate::profile::V6_1, 0), (&V7_2, XFRM_SA_DIR_OUT)] {
        let mut host = Host::of(profile);
        host.add_policy(policy(&[template()]));
        host.send(&udp(7, 8));
        assert_eq!(host.netns.sad.iter().next().unwrap().1.dir, dir);
    }
}

#[test]
fn every_missing_template_is_asked_for_in_turn() {
    let second = UserTmpl {
        reqid: 2,
        mode: XFRM_MODE_TRANSPORT,
        ..template()
    };
    let mut host = Host::new();
    host.add_policy(policy(&[template(), second]));
    host.send(&udp(7, 8));
    host.send(&udp(7, 8));
    assert_eq!(names(&host.events()), ["acquire 1"]);
    host.add_sa(1, |sa| sa.info.seq = 1);
    host.send(&udp(7, 8));
    let events = host.events();
    let [Event::Acquire(acquire)] = &events[..] else {
        panic!("{events:?}");
    };
    // The second SA stands outside the first one's tunnel.
    assert_eq!((acquire.body.id.daddr, acquire.body.saddr), (REMOTE, LOCAL));
    assert_eq!(host.netns.sad.len(), 2);
}

#[test]
fn a_shared_sa_rests_while_a_cpu_waits_for_its_own() {
    let mut host = Host::new();
    let mut per_cpu = policy(&[template()]);
    per_cpu.flags = XFRM_POLICY_CPU_ACQUIRE;
    host.add_policy(per_cpu);
    let shared = host.add_sa(1, |_| {});
    assert_eq!(host.send(&udp(7, 8)), Verdict::Sent(1));
    host.open(&[shared]);
    let events = host.events();
    let [Event::Acquire(acquire)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(acquire.pcpu, 0);
    assert_eq!(host.send(&udp(7, 8)), dropped(DropReason::OutNoStates, 0));
    let own = host.add_sa(2, |sa| {
        sa.dir = XFRM_SA_DIR_OUT;
        sa.pcpu = Some(0);
        sa.info.seq = 1;
    });
    assert_eq!(host.send(&udp(7, 8)), Verdict::Sent(1));
    host.open(&[own]);
}

fn holding() -> Host {
    let mut host = Host::new();
    host.netns.sysctls.larval_drop = 0;
    host.add_policy(policy(&[template()]));
    host
}

#[test]
fn packets_wait_for_their_sa() {
    let mut host = holding();
    for port in 0..101 {
        assert_eq!(host.send(&udp(port, 8)), Verdict::Held);
    }
    let full = dropped(DropReason::OutHoldFull, errno::EAGAIN);
    assert_eq!(host.send(&udp(200, 8)), full);
    assert_eq!(names(&host.events()), ["acquire 1"]);
    // Looked at after 100 ms, 200, 400: at 0.1, 0.3, 0.7, 1.5 s.
    host.wait(600);
    let sa = host.add_sa(1, |sa| sa.info.seq = 1);
    assert!(host.sent.is_empty());
    host.wait(100);
    assert_eq!(host.sent.len(), 101);
    assert_eq!(host.open(&[sa]), udp(100, 8));
    assert_eq!(host.sa(sa).traffic.lifetime().packets, 101);
    assert!(host.counters().is_empty());
    assert_eq!(host.netns.poll_timeout(), None);
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
}

#[test]
fn held_packets_have_the_mark_of_their_policy() {
    let mut host = Host::new();
    host.netns.sysctls.larval_drop = 0;
    let marked = |v, m, priority| {
        let mut policy = policy(&[template()]);
        policy.key.mark = Mark { v, m };
        policy.priority = priority;
        policy
    };
    host.add_policy(marked(5, 0xff, 2));
    host.meta.mark = 0x105;
    assert_eq!(host.send(&udp(7, 8)), Verdict::Held);
    // A fresh packet meets this one; one that has waited shows 5 and does not.
    let mut block = marked(0x105, 0xfff, 1);
    block.action = XFRM_POLICY_BLOCK;
    host.add_policy(block);
    host.add_sa(1, |sa| sa.info.seq = 1);
    host.wait(1000);
    assert_eq!(host.sent.len(), 1);
    let blocked = dropped(DropReason::OutPolicyBlock, errno::EPERM);
    assert_eq!(host.send(&udp(7, 8)), blocked);
}

#[test]
fn packets_do_not_wait_for_ever() {
    let mut host = holding();
    host.netns.sysctls.acq_expires = 1000;
    host.send(&udp(1, 8));
    // 0.1 + 0.2 + .. + 51.2 + 102.4 s, and no wait after one of more than a minute.
    host.wait(204_600);
    assert!(
        host.netns
            .poll_timeout()
            .is_some_and(|due| due <= BootNanos(204_700_000_000))
    );
    host.wait(100);
    host.add_sa(1, |_| {});
    host.wait(300_000);
    assert!(host.sent.is_empty());
    assert_eq!(host.netns.take_held(host.now().boot).len(), 0);
}

#[test]
fn a_policy_that_goes_takes_its_packets_along() {
    let mut host = Host::new();
    host.netns.sysctls.larval_drop = 0;
    let id = host.add_policy(policy(&[template()]));
    host.send(&udp(1, 8));
    host.netns.spd.remove(id);
    host.netns.run_workers();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    host.wait(1000);
    assert!(host.sent.is_empty());
}

#[test]
fn a_policy_that_is_replaced_hands_its_packets_on() {
    let mut host = holding();
    host.send(&udp(1, 8));
    host.wait(200);
    let sa = host.add_sa(1, |_| {});
    let now = host.now();
    host.netns
        .spd
        .insert(policy(&[template()]), false, now)
        .unwrap();
    host.netns.run_workers();
    host.wait(1);
    assert_eq!(host.sent.len(), 1);
    host.open(&[sa]);
}

#[test]
fn a_forwarded_packet_waits_as_well() {
    let mut host = holding();
    let meta = OutputMeta {
        forwarded: true,
        ..host.meta
    };
    assert_eq!(host.send_with(&udp(1, 8), &meta), Verdict::Held);
}
