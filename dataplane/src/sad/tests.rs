//! The database against a list, searched from end to end as Linux searches its chains.

use proptest::prelude::*;
use xfrm_proto::algo::{AlgoBlob, Key};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, LifetimeCfg, Mark, Selector, UserPolicyInfo, UserSaInfo, UserTmpl,
};

use super::choose::{Choice, Wanted};
use super::construct::SaRequest;
use super::sa::{ANY_CPU, mark_key};
use super::*;
use crate::SeededEntropy;
use crate::netns::Context;
use crate::profile::V7_2;
use crate::spd::{Flow, Policy, Templates, selector_matches};
use crate::sysctl::Sysctls;
use crate::time::{BootNanos, Now, WallSecs};

/// Every SA in the order of a chain that has them all.
#[derive(Default)]
struct Model {
    chain: Vec<SaHandle>,
    buckets: u32,
}

impl Model {
    /// Takes over which SAs there are; where they are in the chain is the model's own matter.
    fn follow(&mut self, sad: &Sad) {
        self.chain.retain(|&handle| sad.by_handle(handle).is_some());
        for (id, sa) in sad.iter() {
            let handle = sa.handle(id);
            if !self.chain.contains(&handle) {
                self.chain.insert(0, handle);
            }
        }
    }

    /// Larger tables are filled from the last bucket to the first, each SA at the head.
    fn grow(&mut self, sad: &Sad) {
        let (old, new) = (self.buckets, sad.hash_info().sadhcnt);
        self.buckets = new;
        if old == 0 || old == new {
            return;
        }
        let before = std::mem::take(&mut self.chain);
        for bucket in (0..old).rev() {
            let is_there = |handle: &&SaHandle| {
                let sa = sad.by_handle(**handle).unwrap();
                let hash = buckets::hash_by_addresses(sa.id.daddr, sa.saddr, sa.reqid, sa.family);
                hash % old == bucket
            };
            for &handle in before.iter().filter(is_there) {
                self.chain.insert(0, handle);
            }
        }
    }

    fn find<'a>(&'a self, sad: &'a Sad, fits: impl Fn(&Sa) -> bool + 'a) -> Option<SaId> {
        let all = self.chain.iter();
        let found = all.filter(|handle| fits(sad.by_handle(**handle).unwrap()));
        found.map(|handle| handle.id).next()
    }

    /// `__xfrm_state_lookup`.
    fn lookup(&self, sad: &Sad, key: &Lookup) -> Option<SaId> {
        let key = *key;
        self.find(sad, move |sa| {
            key.spi != 0
                && sa.id.spi.get() == key.spi
                && sa.id.proto == key.proto
                && sa.family == key.family
                && sa.id.daddr.equal(key.daddr, key.family)
                && key.mark & sa.mark.m == sa.mark.v
        })
    }

    /// `__xfrm_state_lookup_byaddr`.
    fn lookup_by_source(&self, sad: &Sad, key: &Lookup) -> Option<SaId> {
        let key = *key;
        self.find(sad, move |sa| {
            sa.id.proto == key.proto
                && sa.family == key.family
                && sa.id.daddr.equal(key.daddr, key.family)
                && sa.saddr.equal(key.saddr, key.family)
                && key.mark & sa.mark.m == sa.mark.v
        })
    }

    /// `xfrm_state_find`.
    fn choose(&self, sad: &Sad, wanted: &Wanted<'_>, listened: bool) -> Choice {
        let template = wanted.template;
        let mark = mark_key(wanted.policy.key.mark);
        let spi = template.id.spi.get();
        let (mut best, mut waiting, mut expired) = (None::<(SaId, &Sa)>, false, false);
        for from in [wanted.saddr, Address::ANY] {
            if best.is_some() || waiting {
                break;
            }
            for &handle in &self.chain {
                let sa = sad.by_handle(handle).unwrap();
                let named = sa.family == template.family
                    && sa.id.proto == template.id.proto
                    && sa.reqid == template.reqid
                    && sa.mode == template.mode
                    && sa.id.daddr.equal(wanted.daddr, sa.family)
                    && sa.saddr.equal(from, sa.family)
                    && mark & sa.mark.m == sa.mark.v
                    && sa.if_id == wanted.policy.key.if_id
                    && sa.flags & XFRM_STATE_WILDRECV == 0
                    && (spi == 0 || sa.id.spi.get() == spi);
                if !named {
                    continue;
                }
                if sa.state == Lifecycle::Larval {
                    waiting |= best.is_none() || sa.pcpu == wanted.cpu;
                    continue;
                }
                if sa.sel.family != AF_UNSPEC && !selector_matches(&sa.sel, wanted.flow) {
                    continue;
                }
                if sa.traffic.is_expired() {
                    expired = true;
                    continue;
                }
                if sa.pcpu != ANY_CPU && sa.pcpu != wanted.cpu {
                    continue;
                }
                let is_better = |(_, best): &(SaId, &Sa)| {
                    if best.pcpu == ANY_CPU && sa.pcpu == wanted.cpu {
                        return true;
                    }
                    match (best.traffic.is_dying(), sa.traffic.is_dying()) {
                        (true, false) => true,
                        (false, true) => false,
                        _ => best.traffic.add_time() < sa.traffic.add_time(),
                    }
                };
                if best.as_ref().is_none_or(is_better) {
                    best = Some((handle.id, sa));
                }
            }
        }
        let per_cpu = wanted.policy.flags & XFRM_POLICY_CPU_ACQUIRE != 0;
        let key = Lookup {
            mark,
            spi,
            daddr: wanted.daddr,
            saddr: wanted.saddr,
            proto: template.id.proto,
            family: template.family,
        };
        match best {
            Some((id, sa)) if !per_cpu || sa.pcpu == wanted.cpu => {
                Choice::Sa { id, acquire: false }
            }
            _ if waiting => Choice::Waiting,
            _ if expired => Choice::None,
            _ if spi != 0 && self.lookup(sad, &key).is_some() => Choice::SpiTaken,
            _ if !listened => Choice::None,
            Some((id, _)) => Choice::Sa { id, acquire: true },
            None => Choice::Acquire,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Lookup {
    mark: u32,
    daddr: Address,
    saddr: Address,
    spi: u32,
    proto: u8,
    family: u16,
}

/// What an SA, a template or a lookup is about; few of each, so that they meet.
#[derive(Clone, Copy, Debug)]
struct Subject {
    ends: (Address, Address),
    family: u16,
    proto: u8,
    spi: u32,
    reqid: u32,
    mode: u8,
    mark: Mark,
    if_id: u32,
    pcpu: u32,
    dport: u16,
}

impl Subject {
    /// Two of three are about what an SA is about that is there, so that SAs compete.
    fn or_like(self, sad: &Sad, model: &Model, nth: u64) -> Self {
        let at = usize::try_from(nth).unwrap();
        match model.chain.get(at / 3 % model.chain.len().max(1)) {
            Some(&handle) if at % 3 != 0 => {
                let sa = sad.by_handle(handle).unwrap();
                Self {
                    ends: (sa.saddr, sa.id.daddr),
                    family: sa.family,
                    proto: sa.id.proto,
                    reqid: sa.reqid,
                    mode: sa.mode,
                    if_id: sa.if_id,
                    ..self
                }
            }
            _ => self,
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Add(Subject),
    Update(Subject),
    Delete(usize),
    /// What packets leave behind at an SA.
    Wear(usize, bool),
    Lookup(Subject),
    Choose(Subject, u8),
}

fn subject() -> impl Strategy<Value = Subject> {
    let mark = prop_oneof![
        2 => Just(Mark::default()),
        1 => (0u32..3, 0u32..4).prop_map(|(v, m)| Mark { v, m }),
    ];
    let pcpu = prop_oneof![3 => Just(ANY_CPU), 1 => 0u32..2];
    let addresses = (
        0u8..3,
        0u8..3,
        prop_oneof![3 => Just(AF_INET), 1 => Just(AF_INET6)],
    );
    let proto = prop_oneof![3 => Just(IPPROTO_ESP), 1 => Just(IPPROTO_AH)];
    let template = (
        0u32..4,
        0u32..2,
        prop_oneof![Just(XFRM_MODE_TUNNEL), Just(0u8)],
    );
    (addresses, proto, template, mark, 0u32..5, pcpu, 0u16..3).prop_map(
        |((to, from, family), proto, (spi, reqid, mode), mark, if_id, pcpu, dport)| {
            // Host 0 is any host.
            let address = |nth: u8| match nth {
                0 => Address::ANY,
                nth => Address::v4(10, 0, 0, nth),
            };
            Subject {
                ends: (address(from), address(to.max(1))),
                family,
                proto,
                spi: 0x100 + spi,
                reqid,
                mode,
                mark,
                if_id: if_id / 4,
                pcpu,
                dport: 80 * (dport / 2),
            }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => subject().prop_map(Op::Add),
        2 => subject().prop_map(Op::Update),
        2 => any::<usize>().prop_map(Op::Delete),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(nth, hard)| Op::Wear(nth, hard)),
        8 => subject().prop_map(Op::Lookup),
        8 => (subject(), 0u8..8).prop_map(|(subject, how)| Op::Choose(subject, how)),
    ]
}

fn request(subject: &Subject) -> SaRequest<'static> {
    let mut name = [0; 64];
    name[..10].copy_from_slice(b"hmac(sha1)");
    let auth = AlgoBlob {
        name,
        key_bits: 160,
        icv_bits: 0,
        key: Key::new(&[7; 20]),
    };
    let crypt = AlgoBlob::new("ecb(cipher_null)", &[], 0);
    let limits = LifetimeCfg {
        soft_byte_limit: XFRM_INF,
        hard_byte_limit: XFRM_INF,
        soft_packet_limit: 1,
        hard_packet_limit: 2,
        ..LifetimeCfg::default()
    };
    let mut info = UserSaInfo {
        sel: Selector {
            dport: subject.dport.into(),
            dport_mask: if subject.dport == 0 { 0 } else { 0xffff }.into(),
            ..Selector::default()
        },
        lft: limits,
        family: subject.family,
        saddr: subject.ends.0,
        reqid: subject.reqid,
        mode: subject.mode,
        ..UserSaInfo::default()
    };
    info.id.daddr = subject.ends.1;
    info.id.spi = subject.spi.into();
    info.id.proto = subject.proto;
    SaRequest {
        info,
        auth: Some(auth),
        crypt: (subject.proto == IPPROTO_ESP).then_some(crypt),
        mark: subject.mark,
        if_id: subject.if_id,
        pcpu: (subject.pcpu != ANY_CPU).then_some(subject.pcpu),
        ..SaRequest::default()
    }
}

/// A policy with one template that names the subject, and a packet for it.
fn wanted(subject: &Subject, how: u8) -> (Policy, UserTmpl, Flow) {
    let mut template = UserTmpl {
        family: subject.family,
        saddr: subject.ends.0,
        reqid: subject.reqid,
        mode: subject.mode,
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
        ..UserTmpl::default()
    };
    template.id.daddr = subject.ends.1;
    template.id.proto = subject.proto;
    template.id.spi = if how & 1 == 0 { 0 } else { subject.spi }.into();
    let info = UserPolicyInfo {
        dir: XFRM_POLICY_OUT,
        flags: if how & 2 == 0 {
            0
        } else {
            XFRM_POLICY_CPU_ACQUIRE
        },
        ..UserPolicyInfo::default()
    };
    let mut policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::new([template]));
    policy.key.mark = subject.mark;
    policy.key.if_id = subject.if_id;
    let flow = Flow {
        family: subject.family,
        daddr: subject.ends.1,
        saddr: Address::v4(10, 0, 0, 1),
        proto: IPPROTO_UDP,
        dport: 80,
        ..Flow::default()
    };
    (policy, template, flow)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn finds_what_a_list_finds(ops in proptest::collection::vec(op(), 1..120)) {
        let mut sad = Sad::new(&V7_2, Limits::default());
        let sysctls = Sysctls::default();
        let mut model = Model { buckets: sad.hash_info().sadhcnt, ..Model::default() };
        let (mut entropy, mut acqseq) = (SeededEntropy::new(1), 0);
        for (nth, op) in (0u64..).zip(ops) {
            // Some are added in the same second.
            let now = Now { boot: BootNanos(nth), real: WallSecs(1000 + nth / 3) };
            let mut cx = Context { now, entropy: &mut entropy, acqseq: &mut acqseq };
            match op {
                Op::Add(subject) | Op::Update(subject) => {
                    let subject = subject.or_like(&sad, &model, nth);
                    let sa = sad.construct(&cx, &sysctls, request(&subject)).unwrap();
                    let key = Lookup {
                        mark: mark_key(subject.mark),
                        daddr: subject.ends.1,
                        saddr: subject.ends.0,
                        spi: subject.spi,
                        proto: subject.proto,
                        family: subject.family,
                    };
                    let taken = model.lookup(&sad, &key).is_some();
                    let done = match op {
                        Op::Add(_) => sad.add(sa, now).is_ok() != taken,
                        _ => sad.update(sa, now).is_ok() == taken,
                    };
                    prop_assert!(done, "{:?}", key);
                }
                Op::Delete(at) if !sad.is_empty() => {
                    let id = model.chain[at % model.chain.len()].id;
                    prop_assert!(sad.delete(id).is_some());
                }
                Op::Wear(at, hard) if !sad.is_empty() => {
                    let sa = sad.by_handle(model.chain[at % model.chain.len()]).unwrap();
                    sa.traffic.count(if hard { 2 } else { 1 }, 0, now.real);
                    sa.traffic.check(&sa.lft, now.real);
                }
                Op::Delete(_) | Op::Wear(..) => {}
                Op::Lookup(subject) => {
                    let key = Lookup {
                        mark: subject.mark.v,
                        daddr: subject.ends.1,
                        saddr: subject.ends.0,
                        spi: subject.spi,
                        proto: subject.proto,
                        family: subject.family,
                    };
                    let Lookup { mark, daddr, saddr, spi, proto, family } = key;
                    let found = sad.lookup(mark, daddr, spi, proto, family);
                    prop_assert_eq!(found, model.lookup(&sad, &key), "{:?}", key);
                    let found = sad.lookup_by_source(mark, daddr, saddr, proto, family);
                    prop_assert_eq!(found, model.lookup_by_source(&sad, &key), "{:?}", key);
                }
                Op::Choose(subject, how) => {
                    let subject = subject.or_like(&sad, &model, nth);
                    let (policy, template, flow) = wanted(&subject, how);
                    let wanted = Wanted {
                        policy: &policy,
                        template: &template,
                        daddr: subject.ends.1,
                        saddr: subject.ends.0,
                        flow: &flow,
                        cpu: 0,
                    };
                    let listened = how & 4 == 0;
                    let choice = sad.choose(&wanted, listened);
                    prop_assert_eq!(choice, model.choose(&sad, &wanted, listened), "{:?}", subject);
                    if let Choice::Acquire | Choice::Sa { acquire: true, .. } = choice {
                        let for_cpu = choice != Choice::Acquire;
                        prop_assert!(sad.acquire(&mut cx, &sysctls, &wanted, for_cpu).is_some());
                    }
                }
            }
            model.follow(&sad);
            sad.run_workers();
            model.grow(&sad);
            prop_assert_eq!(model.chain.len(), sad.len());
        }
    }
}
