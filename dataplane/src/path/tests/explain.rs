//! What is explained is what happens, and explaining changes nothing.

use super::input::Remote;
use super::*;
use crate::path::explain::{Explanation, Found, Objection, Outcome};
use crate::path::{InputMeta, Received};
use crate::sad::Misfit;
use crate::spd::{Flow, Mismatch};

impl Host {
    fn explain(&mut self, bytes: &[u8]) -> Explanation {
        let flow = Flow::of_packet(bytes, 0, 2, true).unwrap();
        let meta = self.meta;
        let (netns, routes) = (&self.netns, &self.routes);
        self.worker
            .explain_output(netns, &flow, Some(bytes), &meta, routes)
    }

    fn explain_arrival(&mut self, bytes: &[u8]) -> Explanation {
        let now = self.now();
        let mut worker = Worker::new(0, Box::new(SeededEntropy::new(4)));
        let mut packet = PacketBuf::copy_of(bytes);
        let mut meta = InputMeta::default();
        let remote = Remote { encap: 0 };
        worker.explain_input(&self.netns, now, &mut packet, &mut meta, &remote)
    }
}

#[test]
fn a_missing_sa_is_explained_and_not_asked_for() {
    let mut host = Host::new();
    let mut other = policy(&[]);
    other.key.selector.dport = 53.into();
    other.key.selector.dport_mask = 0xffff.into();
    host.add_policy(other);
    let mut wanted = policy(&[template()]);
    wanted.priority = 7;
    host.add_policy(wanted);
    host.add_sa(1, |request| request.info.reqid = 2);

    let told = host.explain(&udp(80, 9));
    let seen: Vec<_> = told
        .considered
        .iter()
        .map(|one| (one.policy.priority, one.mismatch, one.chosen))
        .collect();
    assert_eq!(
        seen,
        [(0, Some(Mismatch::DestinationPort), false), (7, None, true)]
    );
    let [tried] = &told.tried[..] else {
        panic!("{told:?}")
    };
    assert_eq!(tried.found, Found::Acquire);
    let [candidate] = &tried.candidates[..] else {
        panic!("{tried:?}")
    };
    assert_eq!(candidate.misfit, Some(Misfit::Reqid));
    assert_eq!(
        told.outcome,
        Outcome::Drop {
            reason: DropReason::OutNoStates,
            errno: 0
        }
    );
    assert_eq!(told.counter(), Some(Counter::OutNoStates));
    assert!(host.counters().is_empty() && host.events().is_empty());
    assert_eq!(host.netns.sad.len(), 1);
    assert!(!host.worker.has_requests());

    assert_eq!(host.send(&udp(80, 9)), dropped(DropReason::OutNoStates, 0));
    assert_eq!(host.explain(&udp(80, 9)).tried[0].found, Found::Waiting);
}

#[test]
fn limits_and_sizes_are_explained() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let sa = host.add_sa(1, |request| request.info.lft.hard_packet_limit = 1);
    let Outcome::Protect { mtu } = host.explain(&udp(80, 9)).outcome else {
        panic!("not protected")
    };
    host.meta.forwarded = true;
    let big = with_df(udp(80, 1472));
    assert_eq!(host.explain(&big).outcome, Outcome::TooBig { mtu });
    assert_eq!(host.send(&big), Verdict::TooBig { mtu });
    assert_eq!(host.sa(sa).traffic.lifetime().packets, 0);
    assert_eq!(host.send(&udp(80, 9)), Verdict::Sent(1));
    let expected = DropReason::OutExpired;
    let Outcome::Drop { reason, errno } = host.explain(&udp(80, 9)).outcome else {
        panic!("not dropped")
    };
    assert_eq!(reason, expected);
    assert_eq!(host.send(&udp(80, 9)), dropped(expected, errno));
}

#[test]
fn an_arrival_is_explained_as_often_as_one_likes() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |request| request.info.replay_window = 32);
    host.accept(&[template()]);
    assert_eq!(host.send(&udp(80, 9)), Verdict::Sent(1));
    let wire = host.sent[0].0.clone();
    let uses = host.netns.spd.in_order(XFRM_POLICY_FWD)[0];
    for _ in 0..2 {
        let told = host.explain_arrival(&wire);
        assert_eq!(told.outcome, Outcome::Forward);
        assert_eq!(told.passed.len(), 1);
        assert_eq!((told.dir, told.flow.dport), (XFRM_POLICY_FWD, 80));
        assert!(told.considered[0].chosen);
    }
    assert_eq!(host.netns.spd.get(uses).unwrap().used.secs(), 0);
    assert_eq!(host.take(&wire), Received::Forward);
    let replayed = DropReason::InReplay;
    let told = host.explain_arrival(&wire);
    assert_eq!(
        told.outcome,
        Outcome::Drop {
            reason: replayed,
            errno: 0
        }
    );
    assert!(host.counters().is_empty());
    assert_eq!(host.take(&wire), Received::Dropped(replayed));
    assert_eq!(
        host.explain_arrival(&udp(80, 9)).counter(),
        Some(Counter::InTmplMismatch)
    );
}

/// What comes out of an SA, before a policy that wants something else.
fn refused(change: impl FnOnce(&mut UserTmpl)) -> Explanation {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    let mut wanted = template();
    change(&mut wanted);
    host.add_sa(1, |_| {});
    host.accept(&[wanted]);
    assert_eq!(host.send(&udp(80, 9)), Verdict::Sent(1));
    let wire = host.sent[0].0.clone();
    let told = host.explain_arrival(&wire);
    assert!(host.counters().is_empty());
    let Outcome::Drop { reason, .. } = told.outcome else {
        panic!("{told:?}")
    };
    assert_eq!(host.take(&wire), Received::Dropped(reason));
    assert_eq!(told.checks.last().unwrap().refusal, Some(reason));
    told
}

#[test]
fn each_objection_of_a_template_is_explained() {
    type Change = fn(&mut UserTmpl);
    let cases: [(Objection, Change); 6] = [
        (Objection::Protocol, |wanted| wanted.id.proto = IPPROTO_AH),
        (Objection::Spi, |wanted| wanted.id.spi = 2.into()),
        (Objection::Reqid, |wanted| wanted.reqid = 7),
        (Objection::Mode, |wanted| wanted.mode = XFRM_MODE_BEET),
        (Objection::Algorithm, |wanted| wanted.aalgos = 0),
        (Objection::Source, |wanted| wanted.saddr = REMOTE),
    ];
    for (objection, change) in cases {
        let told = refused(change);
        assert_eq!(told.counter(), Some(Counter::InTmplMismatch));
        let [check] = &told.checks[..] else {
            panic!("{told:?}")
        };
        assert_eq!((check.dir, check.flow.dport), (XFRM_POLICY_FWD, 80));
        let met = told.passed[0];
        assert_eq!(check.selectors, [(met, None)]);
        let [examined] = &check.templates[..] else {
            panic!("{check:?}")
        };
        assert_eq!(examined.sas, [(met, Some(objection))]);
        assert_eq!(examined.served_by(), None);
    }
}

#[test]
fn a_selector_that_is_not_for_the_packet_is_explained() {
    let mut sender = Host::new();
    sender.add_policy(policy(&[template()]));
    sender.add_sa(1, |_| {});
    assert_eq!(sender.send(&udp(80, 9)), Verdict::Sent(1));
    let mut host = Host::new();
    host.add_sa(1, |request| {
        request.info.sel = Selector {
            dport: 22.into(),
            dport_mask: 0xffff.into(),
            family: AF_INET,
            ..Selector::default()
        };
    });
    host.accept(&[template()]);
    let wire = sender.sent[0].0.clone();
    let told = host.explain_arrival(&wire);
    assert_eq!(told.counter(), Some(Counter::InStateMismatch));
    let check = &told.checks[0];
    let expected = [(told.passed[0], Some(Mismatch::DestinationPort))];
    assert_eq!(check.selectors, expected);
    assert!(check.templates.is_empty());
    assert_eq!(host.take(&wire), Received::Dropped(DropReason::InSelector));
}

#[test]
fn a_tunnel_that_no_template_names_is_explained() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    host.accept(&[]);
    assert_eq!(host.send(&udp(80, 9)), Verdict::Sent(1));
    let wire = host.sent[0].0.clone();
    let told = host.explain_arrival(&wire);
    let check = &told.checks[0];
    assert_eq!(check.unnamed, told.passed);
    assert_eq!(check.refusal, Some(DropReason::InTemplate));
    assert_eq!(host.take(&wire), Received::Dropped(DropReason::InTemplate));
}

#[test]
fn a_template_that_is_served_is_explained() {
    let mut host = Host::new();
    host.add_policy(policy(&[template()]));
    host.add_sa(1, |_| {});
    host.accept(&[template()]);
    assert_eq!(host.send(&udp(80, 9)), Verdict::Sent(1));
    let wire = host.sent[0].0.clone();
    let told = host.explain_arrival(&wire);
    let check = &told.checks[0];
    assert_eq!(check.refusal, None);
    assert_eq!(check.templates[0].served_by(), Some(told.passed[0]));
}
