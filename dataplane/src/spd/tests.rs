//! The database against a naive model: Linux's lists, walked one by one.

use proptest::prelude::*;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, BeU16, LifetimeCfg, Mark, Selector, SpdHthresh, UserMigrate, UserPolicyInfo, UserTmpl,
};

use super::order::List;
use std::collections::VecDeque;

use super::*;
use crate::event::Event;
use crate::netns::Context;
use crate::profile::V7_2;
use crate::time::BootNanos;

/// A lookup list as Linux keeps it: by priority, changed by insertion at a place.
#[derive(Default)]
struct Chain(Vec<Entry>);

#[derive(Clone)]
struct Entry {
    key: PolicyKey,
    priority: u32,
    pos: u64,
    tag: u32,
}

impl Entry {
    fn policy(&self) -> Policy {
        let info = UserPolicyInfo {
            sel: self.key.selector,
            priority: self.priority,
            dir: self.key.dir,
            ..UserPolicyInfo::default()
        };
        let mut policy = Policy::new(&info, self.key.kind, Templates::default());
        policy.key = self.key;
        policy.lft.soft_byte_limit = u64::from(self.tag);
        policy
    }
}

/// `xfrm_policy_insert_list`: where the new entry goes, and whom it replaces.
fn insert(chain: &mut Chain, new: Entry) {
    let mut behind = None;
    let mut replaced = None;
    for (at, old) in chain.0.iter().enumerate() {
        if old.key == new.key {
            replaced = Some(at);
            if new.priority > old.priority {
                continue;
            }
        } else if new.priority >= old.priority {
            behind = Some(at);
            continue;
        }
        if replaced.is_some() {
            break;
        }
    }
    let key = new.key;
    let pos = new.pos;
    chain.0.insert(behind.map_or(0, |at| at + 1), new);
    chain.0.retain(|old| old.key != key || old.pos == pos);
}

#[derive(Default)]
struct Model {
    chains: [Chain; List::COUNT],
    pos: u64,
    thresholds: Thresholds,
}

impl Model {
    fn insert(&mut self, mut entry: Entry) {
        self.pos += 1;
        entry.pos = self.pos;
        let list = self.thresholds.list(&entry.key.selector, entry.key.dir);
        insert(&mut self.chains[list as usize], entry);
    }

    fn remove(&mut self, key: &PolicyKey) {
        for chain in &mut self.chains {
            chain.0.retain(|entry| entry.key != *key);
        }
    }

    fn rebuild(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
        let mut all: Vec<Entry> = self.chains.iter_mut().flat_map(|c| c.0.drain(..)).collect();
        all.sort_by_key(|entry| entry.pos);
        for entry in all {
            let list = thresholds.list(&entry.key.selector, entry.key.dir);
            insert(&mut self.chains[list as usize], entry);
        }
    }

    /// `xfrm_policy_lookup_bytype` with `xfrm_policy_eval_candidates`.
    fn lookup(&self, flow: &Flow, dir: u8, kind: u8, if_id: u32) -> Option<u32> {
        let mut prefer: Option<&Entry> = None;
        for chain in &self.chains {
            for entry in &chain.0 {
                if prefer.is_some_and(|p| entry.priority > p.priority) {
                    break;
                }
                if entry.key.dir == dir && entry.policy().matches(flow, kind, if_id) {
                    match prefer {
                        Some(p) if p.priority == entry.priority && p.pos < entry.pos => {}
                        _ => prefer = Some(entry),
                    }
                    break;
                }
            }
        }
        prefer.map(|entry| entry.tag)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(PolicyKey, u32),
    Remove(PolicyKey),
    Thresholds(u8, u8),
    Lookup(Flow, u8, u8, u32),
}

fn address() -> impl Strategy<Value = (u16, Address)> {
    // Few addresses, so that prefixes nest and selectors repeat; some with host bits.
    prop_oneof![
        4 => (0u8..2, 0u8..3).prop_map(|(a, b)| (AF_INET, Address::v4(10, 64 * a, 0, b))),
        1 => Just((AF_INET, Address::ANY)),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    let bits = || {
        prop_oneof![
            Just(0u8),
            Just(8),
            Just(15),
            Just(16),
            Just(24),
            Just(31),
            Just(32)
        ]
    };
    let port = || prop_oneof![3 => Just((0u16, 0u16)), 1 => (0u16..3, Just(0xffff)), 1 => (0u16..3, Just(2))];
    (
        address(),
        address(),
        bits(),
        bits(),
        port(),
        port(),
        0u8..3,
        0i32..2,
        0u32..2,
    )
        .prop_map(
            |(daddr, saddr, plen_d, plen_s, dport, sport, proto, ifindex, user)| Selector {
                daddr: daddr.1,
                saddr: saddr.1,
                dport: BeU16::new(dport.0),
                dport_mask: BeU16::new(dport.1),
                sport: BeU16::new(sport.0),
                sport_mask: BeU16::new(sport.1),
                family: AF_INET,
                prefixlen_d: plen_d,
                prefixlen_s: plen_s,
                proto,
                ifindex,
                user,
                ..Selector::default()
            },
        )
}

/// Selectors of one pair of hosts, so that cells grow.
fn crowded_selector() -> impl Strategy<Value = Selector> {
    (0u16..6, 0u16..4, 0u8..3, 0u32..3).prop_map(|(dport, mask, proto, user)| Selector {
        daddr: Address::v4(10, 0, 0, 1),
        saddr: Address::v4(10, 64, 0, 1),
        dport: BeU16::new(dport),
        dport_mask: BeU16::new(mask),
        family: AF_INET,
        prefixlen_d: 32,
        prefixlen_s: 24,
        proto,
        user,
        ..Selector::default()
    })
}

fn key() -> impl Strategy<Value = PolicyKey> {
    let mark = prop_oneof![
        3 => Just(Mark::default()),
        1 => (0u32..2).prop_map(|v| Mark { v, m: 1 }),
    ];
    let selector = prop_oneof![selector(), crowded_selector()];
    (selector, mark, 0u32..5, 0u8..5, 0u8..2).prop_map(|(selector, mark, if_id, kind, dir)| {
        PolicyKey {
            selector,
            mark,
            if_id: if_id / 4,
            kind: kind / 4,
            dir,
            labelled: false,
        }
    })
}

fn flow() -> impl Strategy<Value = Flow> {
    (
        address(),
        address(),
        0u8..3,
        0u16..4,
        0u16..4,
        0i32..3,
        0u32..2,
    )
        .prop_map(|(daddr, saddr, proto, dport, sport, ifindex, mark)| Flow {
            family: AF_INET,
            daddr: daddr.1,
            saddr: saddr.1,
            proto,
            dport,
            sport,
            ifindex,
            mark,
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (key(), 0u32..3).prop_map(|(key, priority)| Op::Insert(key, priority)),
        3 => key().prop_map(Op::Remove),
        1 => (0u8..33, 0u8..33).prop_map(|(l, r)| Op::Thresholds(l, r)),
        12 => (flow(), 0u8..2, 0u8..5, 0u32..5)
            .prop_map(|(flow, dir, kind, if_id)| Op::Lookup(flow, dir, kind / 4, if_id / 4)),
    ]
}

fn now() -> Now {
    Now::default()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn finds_what_linux_finds(ops in proptest::collection::vec(op(), 1..250)) {
        let mut spd = Spd::new(&V7_2, Limits::default());
        let mut model = Model::default();
        // Once inserted keys are replaced and removed more often than chance would have it.
        let mut known: Vec<PolicyKey> = Vec::new();
        for (tag, op) in (0u32..).zip(ops) {
            match op {
                Op::Insert(mut key, priority) => {
                    if tag % 3 == 0 && !known.is_empty() {
                        key = known[tag as usize % known.len()];
                    }
                    known.push(key);
                    let entry = Entry { key, priority, pos: 0, tag };
                    spd.insert(entry.policy(), false, now()).unwrap();
                    model.insert(entry);
                }
                Op::Remove(mut key) => {
                    if !known.is_empty() {
                        key = known[tag as usize % known.len()];
                    }
                    if let Some(id) = spd.by_key(&key) {
                        spd.remove(id);
                    }
                    model.remove(&key);
                }
                Op::Thresholds(lbits, rbits) => {
                    let v4 = SpdHthresh { lbits, rbits };
                    let thresholds = Thresholds { v4, ..spd.thresholds() };
                    spd.set_thresholds(thresholds);
                    model.rebuild(thresholds);
                }
                Op::Lookup(flow, dir, kind, if_id) => {
                    let found = spd
                        .lookup_type(&flow, dir, kind, if_id)
                        .map(|id| spd.get(id).unwrap().lft.soft_byte_limit);
                    let expected = model.lookup(&flow, dir, kind, if_id).map(u64::from);
                    prop_assert_eq!(found, expected, "{:?}", flow);
                }
            }
            let count: usize = model.chains.iter().map(|chain| chain.0.len()).sum();
            prop_assert_eq!(spd.store.len(), count);
        }
    }
}

fn policy(change: impl FnOnce(&mut UserPolicyInfo)) -> Policy {
    let mut info = UserPolicyInfo {
        sel: Selector {
            daddr: Address::v4(10, 0, 0, 1),
            saddr: Address::v4(10, 0, 0, 2),
            family: AF_INET,
            prefixlen_d: 32,
            prefixlen_s: 32,
            ..Selector::default()
        },
        dir: XFRM_POLICY_OUT,
        ..UserPolicyInfo::default()
    };
    change(&mut info);
    Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::default())
}

fn spd() -> Spd {
    Spd::new(&V7_2, Limits::default())
}

fn index_of(spd: &mut Spd, policy: Policy) -> u32 {
    let id = spd.insert(policy, true, now()).unwrap();
    spd.get(id).unwrap().index
}

#[test]
fn indices_count_up_across_directions() {
    let mut spd = spd();
    let dirs = [XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_POLICY_FWD];
    let indices = dirs.map(|dir| index_of(&mut spd, policy(|p| p.dir = dir)));
    assert_eq!(indices, [8, 9, 18]);
}

#[test]
fn a_taken_index_is_generated_anew() {
    let mut spd = spd();
    let first = index_of(&mut spd, policy(|p| p.index = 1 + 8 * 50));
    assert_eq!(first, 401);
    let second = index_of(&mut spd, policy(|p| (p.index, p.sel.user) = (401, 1)));
    assert_eq!(second, 1);
}

#[test]
fn selector_identity_includes_padding_host_bits_and_user() {
    let mut spd = spd();
    index_of(&mut spd, policy(|p| p.sel.prefixlen_d = 24));
    index_of(
        &mut spd,
        policy(|p| (p.sel.prefixlen_d, p.sel.daddr) = (24, Address::v4(10, 0, 0, 9))),
    );
    index_of(
        &mut spd,
        policy(|p| (p.sel.prefixlen_d, p.sel.pad) = (24, [0, 0, 1])),
    );
    index_of(
        &mut spd,
        policy(|p| (p.sel.prefixlen_d, p.sel.user) = (24, 7)),
    );
    assert_eq!(spd.counts().outcnt, 4);
}

#[test]
fn priority_is_not_identity() {
    let mut spd = spd();
    index_of(&mut spd, policy(|p| p.priority = 1));
    let again = spd.insert(policy(|p| p.priority = 2), true, now());
    assert_eq!(again.unwrap_err().errno, errno::EEXIST);
}

#[test]
fn an_unmasked_mark_finds_nothing() {
    let mut spd = spd();
    let mut marked = policy(|_| ());
    marked.key.mark = Mark { v: 0x1ff, m: 0xff };
    let key = marked.key;
    spd.insert(marked, true, now()).unwrap();
    assert_eq!(spd.by_key(&key), None);
    let masked = PolicyKey {
        mark: Mark { v: 0xff, m: 0xff },
        ..key
    };
    assert!(spd.by_key(&masked).is_some());
}

#[test]
fn spd_hash_count_is_a_mask() {
    let mut spd = spd();
    assert_eq!(spd.hash_info().spdhcnt, 7);
    // Seven in each direction: 21 policies, but no table of a direction is full.
    for user in 0..7 {
        for dir in 0..3 {
            index_of(&mut spd, policy(|p| (p.dir, p.sel.user) = (dir, user)));
        }
    }
    assert_eq!(spd.hash_info().spdhcnt, 7);
    index_of(&mut spd, policy(|p| p.sel.user = 7));
    assert_eq!(spd.hash_info().spdhcnt, 15);
}

fn walked(spd: &Spd, walk: &Walk) -> Vec<u32> {
    let mut seen = Vec::new();
    while let Some(policy) = spd.at(walk) {
        seen.push(policy.key.selector.user);
        spd.advance(walk);
    }
    seen
}

#[test]
fn a_walk_survives_what_happens_around_it() {
    let mut spd = spd();
    let numbered = |user| policy(|p| p.sel.user = user);
    for user in 0..6 {
        index_of(&mut spd, numbered(user));
    }
    let walk = spd.walk();
    spd.advance(&walk);
    // It stands before 4: that and its successor go, 2 becomes the newest, 9 is new.
    for user in [4, 3] {
        let id = spd.by_key(&numbered(user).key).unwrap();
        spd.remove(id);
    }
    spd.insert(numbered(2), false, now()).unwrap();
    index_of(&mut spd, numbered(9));
    assert_eq!(walked(&spd, &walk), [1, 0]);
    let walk = spd.walk();
    assert_eq!(walked(&spd, &walk), [9, 2, 5, 1, 0]);
    let walk = spd.walk();
    assert_eq!(spd.flush(XFRM_POLICY_TYPE_MAIN), 5);
    index_of(&mut spd, numbered(1));
    assert_eq!(walked(&spd, &walk), [0u32; 0]);
}

#[test]
fn a_socket_has_policies_of_its_own() {
    let mut spd = spd();
    let (one, two) = (SocketKey(1), SocketKey(2));
    let secs = WallSecs(5);
    let id = spd.insert_socket_policy(one, policy(|_| ()), secs).unwrap();
    assert_eq!(spd.get(id).unwrap().index, 4);
    spd.insert_socket_policy(one, policy(|p| p.dir = XFRM_POLICY_IN), secs)
        .unwrap();
    index_of(&mut spd, policy(|_| ()));
    // Replacing takes a new index.
    let id = spd.insert_socket_policy(one, policy(|_| ()), secs).unwrap();
    assert_eq!(spd.get(id).unwrap().index, 28);
    spd.clone_socket_policies(one, two);
    let counts = spd.counts();
    assert_eq!((counts.inscnt, counts.outscnt, counts.outcnt), (2, 2, 1));

    let flow = Flow {
        family: AF_INET,
        daddr: Address::v4(10, 0, 0, 1),
        saddr: Address::v4(10, 0, 0, 2),
        ..Flow::default()
    };
    assert_eq!(spd.lookup_socket(one, XFRM_POLICY_OUT, &flow, 0), Some(id));
    assert_eq!(spd.flush(XFRM_POLICY_TYPE_MAIN), 1);
    spd.remove_socket_policies(one);
    let counts = spd.counts();
    assert_eq!((counts.inscnt, counts.outscnt, counts.outcnt), (1, 1, 0));
    assert_eq!(spd.lookup_socket(one, XFRM_POLICY_OUT, &flow, 0), None);
}

#[test]
fn an_accepted_socket_repeats_the_index_of_its_listener() {
    let mut spd = spd();
    let listener = SocketKey(1);
    spd.insert_socket_policy(listener, policy(|_| ()), WallSecs(5))
        .unwrap();
    spd.clone_socket_policies(listener, SocketKey(2));
    let walk = spd.walk();
    let first = spd.at(&walk).unwrap().index;
    spd.advance(&walk);
    assert_eq!(spd.at(&walk).unwrap().index, first);
}

/// What the timers do with a policy within `secs` seconds: second, and whether hard.
fn expiries(lft: LifetimeCfg, used: Option<u64>, secs: u64) -> Vec<(u64, bool)> {
    let mut spd = spd();
    let start = Now {
        boot: BootNanos(0),
        real: WallSecs(1000),
    };
    let id = spd.insert(policy(|p| p.lft = lft), true, start).unwrap();
    if let Some(after) = used {
        spd.mark_used(id, WallSecs(1000 + after));
    }
    let mut events = VecDeque::new();
    let mut seen = Vec::new();
    while let Some(boot) = spd.poll_timeout() {
        let second = boot.0 / 1_000_000_000;
        if second > secs {
            break;
        }
        let mut cx = Context {
            now: Now {
                boot,
                real: WallSecs(1000 + second),
            },
            entropy: &mut crate::SeededEntropy::new(1),
            acqseq: &mut 0,
        };
        spd.handle_timeout(&mut cx, &mut events);
        seen.extend(events.drain(..).map(|event| match event {
            Event::PolicyExpire(expiry) => (second, expiry.hard),
            _ => unreachable!(),
        }));
    }
    seen
}

// 30 seconds are far enough away for the wheel's steps of two seconds.
#[test]
fn soft_limits_repeat_and_hard_ones_delete() {
    let lft = LifetimeCfg {
        soft_add_expires_seconds: 3,
        hard_add_expires_seconds: 40,
        ..LifetimeCfg::default()
    };
    assert_eq!(
        expiries(lft, None, 100),
        [(3, false), (34, false), (40, true)]
    );
}

#[test]
fn use_limits_count_from_addition_until_first_use() {
    let lft = LifetimeCfg {
        hard_use_expires_seconds: 5,
        ..LifetimeCfg::default()
    };
    assert_eq!(expiries(lft, None, 100), [(5, true)]);
    assert_eq!(expiries(lft, Some(10), 100), [(15, true)]);
}

#[test]
fn absurd_lifetimes_wrap_and_expire_at_once() {
    let lft = LifetimeCfg {
        hard_add_expires_seconds: u64::MAX,
        ..LifetimeCfg::default()
    };
    assert_eq!(expiries(lft, None, 100), [(1, true)]);
}

#[test]
fn migrate_takes_protocol_255_for_any() {
    let mut spd = spd();
    let plain = policy(|_| ());
    let id = spd.insert(plain.clone(), true, now()).unwrap();
    spd.insert(policy(|p| p.sel.ifindex = 1), true, now())
        .unwrap();
    let entries = [UserMigrate {
        new_daddr: Address::v4(1, 1, 1, 1),
        new_saddr: Address::v4(1, 1, 1, 2),
        new_family: AF_INET,
        ..Default::default()
    }];
    let sel = Selector {
        proto: 255,
        ifindex: 2,
        ..plain.key.selector
    };
    let migration = Migration {
        sel: &sel,
        dir: XFRM_POLICY_OUT,
        kind: XFRM_POLICY_TYPE_MAIN,
        if_id: 0,
        entries: &entries,
    };
    assert_eq!(spd.find_migrated(&migration), Ok(id));
}

#[test]
fn migrate_matches_any_transport_template() {
    let mut spd = spd();
    let of_mode = |mode| UserTmpl {
        id: xfrm_proto::uapi::XfrmId {
            daddr: Address::v4(9, 9, 9, 9),
            proto: IPPROTO_ESP,
            ..Default::default()
        },
        mode,
        ..UserTmpl::default()
    };
    for (mode, expected) in [
        (XFRM_MODE_TRANSPORT, Ok(())),
        (XFRM_MODE_TUNNEL, Err(XfrmError::new(errno::ENODATA))),
    ] {
        let mut templated = policy(|_| ());
        templated.templates = Templates::new([of_mode(mode)]);
        let id = spd.insert(templated, false, now()).unwrap();
        let entry = UserMigrate {
            old_daddr: Address::v4(1, 1, 1, 1),
            old_family: AF_INET,
            proto: IPPROTO_ESP,
            mode,
            ..UserMigrate::default()
        };
        assert_eq!(spd.migrate(id, &[entry]), expected);
        let daddr = spd
            .get(id)
            .unwrap()
            .templates
            .iter()
            .next()
            .unwrap()
            .id
            .daddr;
        assert_eq!(daddr, Address::v4(9, 9, 9, 9));
    }
}

#[test]
fn on_6_1_a_hashed_policy_beats_an_older_prefix() {
    let mut spd = Spd::new(&crate::profile::V6_1, Limits::default());
    let host = policy(|_| ());
    let net = policy(|p| p.sel.prefixlen_d = 24);
    let better = policy(|p| (p.sel.prefixlen_d, p.sel.proto) = (16, 99));
    let flow = Flow {
        family: AF_INET,
        daddr: host.key.selector.daddr,
        saddr: host.key.selector.saddr,
        ..Flow::default()
    };
    let winner = |spd: &Spd| {
        let id = spd.lookup(&flow, XFRM_POLICY_OUT, 0).unwrap();
        spd.get(id).unwrap().key.selector.prefixlen_d
    };
    spd.insert(host, true, now()).unwrap();
    spd.insert(net.clone(), true, now()).unwrap();
    assert_eq!(winner(&spd), 24);
    // Any prefix before it in the list takes its number away, even for other flows.
    let mut worse = net.clone();
    worse.priority = 1;
    spd.insert(worse.clone(), false, now()).unwrap();
    let id = spd.insert(better, true, now()).unwrap();
    spd.insert(net.clone(), false, now()).unwrap();
    assert_eq!(winner(&spd), 32);
    // Deleting that gives no new numbers, replacing does.
    spd.remove(id);
    assert_eq!(winner(&spd), 32);
    spd.insert(net, false, now()).unwrap();
    assert_eq!(winner(&spd), 24);
}
