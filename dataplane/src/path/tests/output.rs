//! Which policy and which SAs.

use super::*;

#[test]
fn without_a_policy_packets_go_as_they_are() {
    let mut host = Host::new();
    assert_eq!(host.send(&udp(1, 8)), Verdict::Plain);
    assert!(host.counters().is_empty());
}

#[test]
fn a_default_block_is_not_counted() {
    let mut host = Host::new();
    let mut defaults = host.netns.spd.defaults();
    defaults.out = XFRM_USERPOLICY_BLOCK;
    host.netns.spd.set_defaults(defaults);
    let blocked = dropped(DropReason::OutDefaultBlock, errno::EPERM);
    assert_eq!(host.send(&udp(1, 8)), blocked);
    assert!(host.counters().is_empty());
    let loopback = OutputMeta {
        loopback: true,
        ..host.meta
    };
    assert_eq!(host.send_with(&udp(1, 8), &loopback), Verdict::Plain);
}

#[test]
fn a_policy_that_blocks_is_counted_and_used() {
    let mut host = Host::new();
    let mut block = policy(&[]);
    block.action = XFRM_POLICY_BLOCK;
    let id = host.add_policy(block);
    host.wait(3000);
    let blocked = dropped(DropReason::OutPolicyBlock, errno::EPERM);
    assert_eq!(host.send(&udp(1, 8)), blocked);
    assert_eq!(host.counters(), [("OutPolBlock".to_owned(), 1)].into());
    let used = host.netns.spd.get(id).unwrap().used.secs();
    assert_eq!(used, host.now().real.0);
    let bypass = OutputMeta {
        bypasses: true,
        ..host.meta
    };
    assert_eq!(host.send_with(&udp(1, 8), &bypass), Verdict::Plain);
}

#[test]
fn a_policy_without_templates_lets_pass() {
    let mut host = Host::new();
    let id = host.add_policy(policy(&[]));
    assert_eq!(host.send(&udp(1, 8)), Verdict::Plain);
    assert_ne!(host.netns.spd.get(id).unwrap().used.secs(), 0);
}

#[test]
fn a_tunnel_carries_the_packet() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let sa = host.add_sa(0x100, |_| {});
    host.wait(2000);
    let packet = udp(1, 100);
    for number in 1..4 {
        assert_eq!(host.send(&packet), Verdict::Sent(1));
        assert_eq!(host.sa(sa).traffic.last_sent(), Sequence(number));
        assert_eq!(host.open(&[sa]), packet);
    }
    let outer = ip4::Header::parse(&host.sent[0].0).unwrap();
    assert_eq!((outer.src, outer.dst), ([192, 0, 2, 1], [192, 0, 2, 2]));
    assert_eq!(outer.ttl, 61);
    let cur = host.sa(sa).traffic.lifetime();
    assert_eq!((cur.packets, cur.bytes), (3, 3 * 128));
    assert_eq!(cur.use_time, host.now().real.0);
    assert_eq!(host.sa(sa).traffic.last_used(), host.now().real.0);
    assert!(host.counters().is_empty());
}

#[test]
fn the_youngest_sa_wins_unless_it_dies() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let first = host.add_sa(1, |_| {});
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    let same_second = host.add_sa(2, |_| {});
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    host.open(&[same_second]);
    host.wait(1500);
    let younger = host.add_sa(3, |sa| sa.info.lft.soft_packet_limit = 1);
    // It tells its soft limit with the second packet, which it still carries.
    for _ in 0..2 {
        assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
        host.open(&[younger]);
    }
    assert_eq!(names(&host.events()), ["expire hard 0"]);
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    host.open(&[same_second]);
    host.netns.sad.delete(same_second);
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    host.open(&[first]);
}

#[test]
fn sas_are_told_apart_by_mark_and_interface_and_selector() {
    let mut host = Host::new();
    host.add_policy(marked(policy(&[template()]), 5, 0xff));
    let wrong_interface = host.add_sa(1, |sa| sa.if_id = 9);
    let wrong_mark = host.add_sa(2, |sa| sa.mark = Mark { v: 6, m: 0xff });
    let wrong_flow = host.add_sa(3, |sa| {
        sa.info.sel.dport = 99.into();
        sa.info.sel.dport_mask = 0xffff.into();
    });
    let wild = host.add_sa(4, |sa| sa.info.flags = XFRM_STATE_WILDRECV);
    let meta = OutputMeta {
        mark: 5,
        ..host.meta
    };
    let missing = dropped(DropReason::OutNoStates, 0);
    assert_eq!(host.send_with(&udp(1, 8), &meta), missing);
    host.netns.sad.flush(0);
    let right = host.add_sa(5, |sa| sa.mark = Mark { v: 5, m: 0xf });
    assert_eq!(host.send_with(&udp(1, 8), &meta), Verdict::Sent(1));
    host.open(&[right]);
    assert_eq!(host.send(&udp(1, 8)), Verdict::Plain);
    for id in [wrong_interface, wrong_mark, wrong_flow, wild] {
        assert!(host.netns.sad.get(id).is_none() || id == right);
    }
}

#[test]
fn set_mark_is_the_packets_from_then_on() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| sa.smark = Mark { v: 0x30, m: 0xf0 });
    let meta = OutputMeta {
        mark: 0x1_00a5,
        ..host.meta
    };
    assert_eq!(host.send_with(&udp(1, 8), &meta), Verdict::Sent(1));
    assert_eq!(host.sent[0].1, 0x1_0035);
}

#[test]
fn wrong_direction_counts_twice() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |sa| sa.dir = XFRM_SA_DIR_IN);
    let refused = dropped(DropReason::OutDirection, errno::EINVAL);
    assert_eq!(host.send(&udp(1, 8)), refused);
    let expected = ["OutPolError", "OutStateDirError"].map(|name| (name.to_owned(), 1));
    assert_eq!(host.counters(), expected.into());
}

#[test]
fn six_templates_install_and_never_work() {
    let template_of = |reqid| UserTmpl {
        reqid,
        mode: XFRM_MODE_TRANSPORT,
        ..template()
    };
    let mut host = Host::new();
    let id = host.add_policy(policy(&[1, 2, 3, 4, 5, 6].map(template_of)));
    let refused = dropped(DropReason::OutDepth, errno::ENOBUFS);
    assert_eq!(host.send(&udp(1, 8)), refused);
    assert_eq!(host.counters(), [("OutPolError".to_owned(), 1)].into());
    host.netns.spd.remove(id);
    host.add_policy(policy(&[1, 2, 3, 4, 5].map(template_of)));
    let mut sas: Vec<SaId> = [1, 2, 3, 4, 5]
        .map(|reqid| {
            host.add_sa(reqid, |sa| {
                sa.info.reqid = reqid;
                sa.info.mode = XFRM_MODE_TRANSPORT;
                sa.info.saddr = Address::v4(10, 1, 0, 1);
                sa.info.id.daddr = Address::v4(10, 2, 0, 1);
            })
        })
        .into();
    let packet = udp(1, 50);
    assert_eq!(host.send(&packet), Verdict::Sent(1));
    sas.reverse();
    assert_eq!(host.open(&sas), packet);
}

#[test]
fn a_tunnel_within_a_tunnel() {
    let far = Address::v4(203, 0, 113, 9);
    let mut outer = UserTmpl {
        reqid: 2,
        ..template()
    };
    outer.id.daddr = far;
    let mut host = Host::new();
    host.add_policy(policy(&[template(), outer]));
    let inner_sa = host.add_sa(1, |_| {});
    let outer_sa = host.add_sa(2, |sa| {
        sa.info.reqid = 2;
        sa.info.id.daddr = far;
    });
    let packet = udp(1, 50);
    assert_eq!(host.send(&packet), Verdict::Sent(1));
    assert_eq!(host.open(&[outer_sa, inner_sa]), packet);
}

#[test]
fn optional_templates_may_have_no_sa() {
    let optional = UserTmpl {
        optional: 1,
        mode: XFRM_MODE_TRANSPORT,
        reqid: 7,
        ..template()
    };
    let mut host = Host::new();
    host.netns.listeners.acquire = false;
    let id = host.add_policy(policy(&[optional]));
    assert_eq!(host.send(&udp(1, 8)), Verdict::Plain);
    host.netns.spd.remove(id);
    host.add_policy(policy(&[optional, template()]));
    let sa = host.add_sa(1, |_| {});
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    assert_eq!(host.open(&[sa]), udp(1, 8));
    assert!(host.counters().is_empty());
}

#[test]
fn a_sub_policy_comes_before_the_main_one() {
    let inner = UserTmpl {
        mode: XFRM_MODE_TRANSPORT,
        reqid: 2,
        ..template()
    };
    let mut sub = policy(&[inner]);
    sub.key.kind = XFRM_POLICY_TYPE_SUB;
    sub.priority = 100;
    let mut host = Host::new();
    host.add_policy(sub);
    let main = host.add_policy(policy(&[template()]));
    let inner_sa = host.add_sa(2, |sa| {
        sa.info.reqid = 2;
        sa.info.mode = XFRM_MODE_TRANSPORT;
        sa.info.saddr = Address::v4(10, 1, 0, 1);
        sa.info.id.daddr = Address::v4(10, 2, 0, 1);
    });
    let outer_sa = host.add_sa(1, |_| {});
    assert_eq!(host.send(&udp(1, 30)), Verdict::Sent(1));
    assert_eq!(host.open(&[outer_sa, inner_sa]), udp(1, 30));
    let mut block = host.netns.spd.remove(main).unwrap();
    block.action = XFRM_POLICY_BLOCK;
    host.add_policy(block);
    let blocked = dropped(DropReason::OutPolicyBlock, errno::EPERM);
    assert_eq!(host.send(&udp(1, 30)), blocked);
}

#[test]
fn a_template_without_source_asks_the_host() {
    let wildcard = UserTmpl {
        saddr: Address::ANY,
        ..template()
    };
    let mut host = Host::new();
    host.add_policy(policy(&[wildcard]));
    let sa = host.add_sa(1, |_| {});
    assert_eq!(host.send(&udp(1, 8)), Verdict::Sent(1));
    host.open(&[sa]);
    host.routes.fails = Some(101);
    host.routes.generation += 1;
    assert_eq!(host.send(&udp(1, 8)), dropped(DropReason::OutSource, 101));
    assert_eq!(host.counters(), [("OutPolError".to_owned(), 1)].into());
}

#[test]
fn without_a_route_there_is_no_bundle() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    host.routes.fails = Some(101);
    assert_eq!(host.send(&udp(1, 8)), dropped(DropReason::OutRoute, 101));
    assert_eq!(
        host.counters(),
        [("OutBundleGenError".to_owned(), 1)].into()
    );
}

#[test]
fn a_template_with_the_spi_of_another_sa_is_an_error() {
    let mut with_spi = template();
    with_spi.id.spi = 9.into();
    let mut host = Host::new();
    host.add_policy(policy(&[with_spi]));
    host.add_sa(9, |sa| sa.info.reqid = 2);
    let refused = dropped(DropReason::OutSpiTaken, errno::EEXIST);
    assert_eq!(host.send(&udp(1, 8)), refused);
    assert!(host.events().is_empty());
}

#[test]
fn a_socket_policy_comes_first() {
    let socket = crate::spd::SocketKey(4);
    let mut host = Host::new();
    let mut block = policy(&[]);
    block.action = XFRM_POLICY_BLOCK;
    host.add_policy(block);
    let now = host.now().real;
    let own = |host: &mut Host, templates: &[UserTmpl]| {
        let spd = &mut host.netns.spd;
        spd.insert_socket_policy(socket, policy(templates), now)
            .unwrap();
    };
    own(&mut host, &[]);
    let meta = OutputMeta {
        socket: Some(socket),
        ..host.meta
    };
    assert_eq!(host.send_with(&udp(1, 8), &meta), Verdict::Plain);
    own(&mut host, &[template()]);
    let sa = host.add_sa(1, |_| {});
    assert_eq!(host.send_with(&udp(1, 8), &meta), Verdict::Sent(1));
    host.open(&[sa]);
    host.netns.spd.remove_socket_policies(socket);
    let blocked = dropped(DropReason::OutPolicyBlock, errno::EPERM);
    assert_eq!(host.send_with(&udp(1, 8), &meta), blocked);
}

#[test]
fn a_socket_policy_without_sa_is_eagain() {
    let socket = crate::spd::SocketKey(4);
    for larval_drop in [1, 0] {
        let mut host = Host::new();
        host.netns.sysctls.larval_drop = larval_drop;
        let now = host.now().real;
        let spd = &mut host.netns.spd;
        spd.insert_socket_policy(socket, policy(&[template()]), now)
            .unwrap();
        host.meta.socket = Some(socket);
        let waits = dropped(DropReason::OutSocketNoStates, errno::EAGAIN);
        assert_eq!(host.send(&udp(1, 8)), waits);
        assert_eq!(names(&host.events()), ["acquire 1"]);
        assert!(host.counters().is_empty());
    }
}

#[test]
fn what_does_not_parse_is_dropped() {
    let mut host = Host::new();
    let refused = dropped(DropReason::OutHeader, errno::EINVAL);
    assert_eq!(host.send(&[]), refused);
    let forwarded = OutputMeta {
        forwarded: true,
        ..host.meta
    };
    let refused = dropped(DropReason::ForwardHeader, errno::EINVAL);
    assert_eq!(host.send_with(&[0x60, 1], &forwarded), refused);
}

/// Changes of every table, each seen by the next packet of a flow that is remembered.
#[test]
fn a_remembered_flow_follows_the_tables() {
    let mut host = Host::new();
    let id = host.add_policy(policy(&[template()]));
    let first = host.add_sa(1, |_| {});
    let packet = udp(1, 8);
    assert_eq!(host.send(&packet), Verdict::Sent(1));
    let mut narrow = policy(&[]);
    narrow.action = XFRM_POLICY_BLOCK;
    narrow.key.selector.prefixlen_d = 24;
    let narrow = host.add_policy(narrow);
    // Equal priorities: the oldest wins.
    assert_eq!(host.send(&packet), Verdict::Sent(1));
    host.netns.spd.remove(id);
    let blocked = dropped(DropReason::OutPolicyBlock, errno::EPERM);
    assert_eq!(host.send(&packet), blocked);
    host.netns.spd.remove(narrow);
    assert_eq!(host.send(&packet), Verdict::Plain);
    host.add_policy(policy(&[template()]));
    assert_eq!(host.send(&packet), Verdict::Sent(1));
    host.netns.sad.delete(first);
    assert_eq!(host.send(&packet), dropped(DropReason::OutNoStates, 0));
    let second = host.add_sa(2, |_| {});
    assert_eq!(host.send(&packet), Verdict::Sent(1));
    host.open(&[second]);
    host.routes.mtu = 500;
    assert_eq!(host.send(&with_df(udp(1, 600))), Verdict::Sent(1));
    host.routes.generation += 1;
    assert!(matches!(
        host.send(&with_df(udp(1, 600))),
        Verdict::TooBig { .. }
    ));
}

/// A router's ICMP error about a packet from 10.2.0.1 to 10.1.0.1.
fn error_about_reply() -> Vec<u8> {
    let mut about = udp(4000, 8);
    let (source, destination) = ([10, 2, 0, 1], [10, 1, 0, 1]);
    about[12..16].copy_from_slice(&source);
    about[16..20].copy_from_slice(&destination);
    ip4::finish(&mut about).unwrap();
    let mut error = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
    error.extend([10, 1, 0, 9]);
    error.extend(source);
    error.extend([3, 1, 0, 0, 0, 0, 0, 0]);
    error.extend(about);
    ip4::finish(&mut error).unwrap();
    error
}

fn udp_policy(flags: u8) -> Policy {
    let mut policy = policy(&[template()]);
    policy.key.selector.proto = IPPROTO_UDP;
    policy.flags = flags;
    policy
}

#[test]
fn a_forwarded_error_follows_what_it_is_about() {
    let mut host = Host::new();
    host.meta.forwarded = true;
    host.add_policy(udp_policy(XFRM_POLICY_ICMP));
    let sa = host.add_sa(1, |_| {});
    let error = error_about_reply();
    assert_eq!(host.send(&error), Verdict::Sent(1));
    assert_eq!(host.open(&[sa]), error);
    // Not when it is this host's own.
    host.meta.forwarded = false;
    assert_eq!(host.send(&error), Verdict::Plain);
}

#[test]
fn errors_that_go_plain_are_counted() {
    let mut host = Host::new();
    host.meta.forwarded = true;
    host.add_policy(udp_policy(0));
    assert_eq!(host.send(&error_about_reply()), Verdict::Plain);
    assert_eq!(host.counters(), [("OutNoStates".to_owned(), 1)].into());
    assert_eq!(names(&host.events()), ["acquire 1"]);
    // With an SA, but a policy that is not for errors, nothing happens at all.
    let mut host = Host::new();
    host.meta.forwarded = true;
    host.add_policy(udp_policy(0));
    host.add_sa(1, |_| {});
    assert_eq!(host.send(&error_about_reply()), Verdict::Plain);
    assert!(host.counters().is_empty() && host.events().is_empty());
}
