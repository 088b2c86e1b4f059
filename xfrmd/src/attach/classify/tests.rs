//! Against a naive model: the policies themselves, in order.

use std::collections::BTreeMap;

use dataplane::spd::{Flow, Templates, selector_matches};
use xfrm_proto::uapi::{BeU16, Mark, UserPolicyInfo, UserTmpl};

use super::*;

/// What a host that follows the edits has.
#[derive(Default)]
struct Host {
    sets: BTreeMap<u32, Vec<Key>>,
}

impl Host {
    fn follow(&mut self, edits: Vec<Edit>) {
        for edit in edits {
            match edit {
                Edit::NewSet(id, _) => assert!(self.sets.insert(id, Vec::new()).is_none()),
                Edit::DropSet(id, _) => drop(self.sets.remove(&id).unwrap()),
                Edit::Add(id, key) => {
                    let keys = self.sets.get_mut(&id).unwrap();
                    assert!(!keys.contains(&key), "twice");
                    keys.push(key);
                }
                Edit::Remove(id, key) => {
                    let keys = self.sets.get_mut(&id).unwrap();
                    let at = keys.iter().position(|it| *it == key).expect("not there");
                    keys.remove(at);
                }
                Edit::Order => {}
            }
        }
    }

    /// What the first band with a match says.
    fn verdict(&self, classifier: &Classifier, flow: &Flow) -> Option<Verdict> {
        let matching = |band: &&Band| {
            band.sets.iter().any(|(shape, set)| {
                let key = key_of(shape, flow);
                key.is_some_and(|key| self.sets[&set.id].contains(&key))
            })
        };
        classifier.bands().iter().find(matching).map(Band::verdict)
    }
}

/// What the host's packet filter makes of a packet.
fn key_of(shape: &Shape, flow: &Flow) -> Option<Key> {
    if shape.is_v6 != (flow.family == AF_INET6) {
        return None;
    }
    let bytes = shape.address_bytes();
    let mut key = masked(flow.saddr, shape.source_bits, bytes);
    key.extend(masked(flow.daddr, shape.destination_bits, bytes));
    if shape.protocol {
        key.extend([flow.proto, 0, 0, 0]);
    }
    if shape.ports != [0; 4] {
        let ([a, b], [c, d]) = (flow.sport.to_be_bytes(), flow.dport.to_be_bytes());
        let field = match flow.proto {
            IPPROTO_ICMP | IPPROTO_ICMPV6 => [b, d, 0, 0],
            _ => [a, b, c, d],
        };
        key.extend(
            field
                .iter()
                .zip(shape.ports)
                .map(|(byte, mask)| byte & mask),
        );
    }
    if shape.interface {
        key.extend(flow.ifindex.to_ne_bytes());
    }
    if shape.mark != 0 {
        key.extend((flow.mark & shape.mark).to_ne_bytes());
    }
    Some(key.into())
}

/// A small deterministic generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u8) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[1] % limit
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.below(values.len().try_into().unwrap()))]
    }

    fn address(&mut self) -> Address {
        Address::v4(10, self.below(2), self.below(2), self.below(3))
    }

    fn port(&mut self) -> u16 {
        self.of(&[0, 3, 8, 80, 500])
    }

    fn protocol(&mut self) -> u8 {
        self.of(&[IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ESP])
    }

    fn policy(&mut self) -> Policy {
        let mask = |dice: &mut Self| dice.of(&[0, 0, 0xffff, 0xfff0]);
        let sel = Selector {
            saddr: self.address(),
            daddr: self.address(),
            sport: BeU16::new(self.port()),
            sport_mask: BeU16::new(mask(self)),
            dport: BeU16::new(self.port()),
            dport_mask: BeU16::new(mask(self)),
            family: self.of(&[AF_INET, AF_INET, AF_INET6, 0]),
            prefixlen_s: self.of(&[0, 16, 24, 32]),
            prefixlen_d: self.of(&[0, 16, 24, 32]),
            proto: self.of(&[0, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ESP]),
            ifindex: self.of(&[0, 0, 2]),
            ..Selector::default()
        };
        let info = UserPolicyInfo {
            sel,
            priority: self.below(6).into(),
            action: self.of(&[XFRM_POLICY_ALLOW, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK]),
            dir: XFRM_POLICY_OUT,
            ..UserPolicyInfo::default()
        };
        let templates = self.of(&[0, 1]);
        let templates = Templates::new((0..templates).map(|_| UserTmpl::default()));
        let mut policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, templates);
        if self.below(4) == 0 {
            policy.key.mark = Mark { v: 1, m: 3 };
        }
        policy
    }

    fn flow(&mut self) -> Flow {
        let flow = Flow {
            family: AF_INET,
            daddr: self.address(),
            saddr: self.address(),
            proto: self.protocol(),
            ifindex: self.of(&[1, 2]),
            mark: self.of(&[0, 1, 5]),
            ..Flow::default()
        };
        match flow.proto {
            IPPROTO_ESP => flow,
            _ => Flow {
                sport: self.port()
                    & if flow.proto == IPPROTO_ICMP {
                        0xff
                    } else {
                        0xffff
                    },
                dport: self.port()
                    & if flow.proto == IPPROTO_ICMP {
                        0xff
                    } else {
                        0xffff
                    },
                ..flow
            },
        }
    }
}

fn naive(policies: &BTreeMap<u32, Policy>, flow: &Flow) -> Option<Verdict> {
    let matching = policies.values().filter(|policy| {
        let mark = policy.key.mark;
        flow.mark & mark.m == mark.v && selector_matches(&policy.key.selector, flow)
    });
    matching
        .map(|policy| (policy.priority, Verdict::of(policy)))
        .min()
        .map(|(_, verdict)| verdict)
}

#[test]
fn classifies_as_a_list_of_policies_does() {
    let mut matched = 0;
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut host = Host::default();
        let mut classifier = Classifier::default();
        let mut policies = BTreeMap::new();
        for _ in 0..60 {
            let index = u32::from(dice.below(20));
            if dice.below(3) == 0 {
                policies.remove(&index);
            } else {
                policies.insert(index, dice.policy());
            }
            classifier.set(index, policies.get(&index));
            if dice.below(3) != 0 {
                continue;
            }
            host.follow(classifier.take_edits());
            for _ in 0..40 {
                let flow = dice.flow();
                let expected = naive(&policies, &flow);
                matched += usize::from(expected.is_some());
                assert_eq!(
                    host.verdict(&classifier, &flow),
                    expected,
                    "seed {seed}, {flow:?}"
                );
            }
        }
        for index in 0..20 {
            classifier.set(index, None);
        }
        host.follow(classifier.take_edits());
        assert!(classifier.is_empty() && classifier.bands().is_empty() && host.sets.is_empty());
    }
    assert!(matched > 5_000, "{matched}");
}

#[test]
fn policies_that_do_the_same_are_one_band() {
    let mut classifier = Classifier::default();
    let mut dice = Dice(1);
    for index in 0..100 {
        let mut policy = dice.policy();
        policy.action = XFRM_POLICY_BLOCK;
        policy.priority = 1000 - index;
        policy.key.selector = Selector {
            family: AF_INET,
            prefixlen_d: 32,
            daddr: Address::v4(10, 0, 0, index.to_le_bytes()[0]),
            ..Selector::default()
        };
        policy.key.mark = Mark::default();
        classifier.set(index, Some(&policy));
    }
    let edits = classifier.take_edits();
    assert_eq!(classifier.bands().len(), 1);
    let orders = edits.iter().filter(|edit| **edit == Edit::Order).count();
    assert_eq!((edits.len(), orders), (102, 1));
}
