//! The policies of one pair of prefixes.
//!
//! Usually one, and always few unless they differ in ports, protocols, marks,
//! interfaces or interface ids: those are sorted into *shapes*, by which of
//! these fields they look at and through which masks. A shape answers with one
//! hash probe, so a million policies that differ only in ports cost no more
//! than ten.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use xfrm_proto::uapi::Mark;

use super::{Best, Find};
use crate::spd::order::List;
use crate::spd::policy::Policy;

type State = foldhash::fast::FixedState;

/// Beyond this many the cell sorts its policies into shapes.
const FEW: usize = 8;

/// What a lookup must know of a policy beside its prefixes: it reads no policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    rank: u64,
    slot: u32,
    priority: u32,
    if_id: u32,
    ifindex: i32,
    mark: Mark,
    dport: u16,
    dport_mask: u16,
    sport: u16,
    sport_mask: u16,
    proto: u8,
    kind: u8,
    list: List,
}

impl Rule {
    /// The policy in `slot`.
    pub(super) fn of(slot: u32, policy: &Policy) -> Self {
        let key = &policy.key;
        let sel = &key.selector;
        Self {
            rank: policy.place.rank,
            slot,
            priority: policy.priority,
            if_id: key.if_id,
            ifindex: sel.ifindex,
            mark: key.mark,
            dport: sel.dport.get() & sel.dport_mask.get(),
            dport_mask: sel.dport_mask.get(),
            sport: sel.sport.get() & sel.sport_mask.get(),
            sport_mask: sel.sport_mask.get(),
            proto: sel.proto,
            kind: key.kind,
            list: policy.place.list,
        }
    }

    /// `xfrm_policy_match` without the addresses.
    fn matches(&self, find: &Find<'_>) -> bool {
        let flow = find.flow;
        self.kind == find.kind
            && self.if_id == find.if_id
            && flow.mark & self.mark.m == self.mark.v
            && flow.dport & self.dport_mask == self.dport
            && flow.sport & self.sport_mask == self.sport
            && (self.proto == 0 || self.proto == flow.proto)
            && (self.ifindex == 0 || self.ifindex == flow.ifindex)
    }

    const fn mask(&self) -> Mask {
        Mask {
            dport: self.dport_mask,
            sport: self.sport_mask,
            proto: self.proto != 0,
            ifindex: self.ifindex != 0,
            mark: self.mark.m,
        }
    }

    const fn values(&self, shape: u32) -> Values {
        Values {
            shape,
            if_id: self.if_id,
            ifindex: self.ifindex,
            mark: self.mark.v,
            dport: self.dport,
            sport: self.sport,
            proto: self.proto,
            kind: self.kind,
            list: self.list,
        }
    }
}

/// The policies of a cell.
#[derive(Debug, Default)]
pub(super) enum Cell {
    #[default]
    Empty,
    One(Rule),
    Few(Vec<Rule>),
    Many(Box<Shapes>),
}

/// Which fields beside the prefixes a policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mask {
    dport: u16,
    sport: u16,
    proto: bool,
    ifindex: bool,
    mark: u32,
}

/// What it wants to see there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Values {
    shape: u32,
    if_id: u32,
    ifindex: i32,
    mark: u32,
    dport: u16,
    sport: u16,
    proto: u8,
    kind: u8,
    list: List,
}

#[derive(Debug)]
struct Shape {
    mask: Mask,
    list: List,
    users: u32,
    /// No policy of the shape has a lower priority number.
    best: u32,
}

/// Policies with equal values, best first.
#[derive(Debug)]
enum Bucket {
    One(u32, u64, u32),
    Many(BTreeMap<(u32, u64), u32>),
}

#[derive(Debug)]
pub(super) struct Shapes {
    shapes: Vec<Shape>,
    numbers: HashMap<(Mask, List), u32, State>,
    table: HashMap<Values, Bucket, State>,
    len: usize,
}

impl Cell {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Adds a policy.
    pub(super) fn insert(&mut self, rule: Rule) {
        match self {
            Self::Empty => *self = Self::One(rule),
            Self::One(first) => *self = Self::Few(vec![*first, rule]),
            Self::Few(rules) if rules.len() < FEW => rules.push(rule),
            Self::Few(rules) => {
                let mut shapes = Box::new(Shapes::new());
                rules.iter().for_each(|&rule| shapes.insert(rule));
                shapes.insert(rule);
                *self = Self::Many(shapes);
            }
            Self::Many(shapes) => shapes.insert(rule),
        }
    }

    /// Removes the policy in `slot`; `order` is the priority and rank it came with.
    pub(super) fn remove(&mut self, slot: u32, policy: &Policy, order: (u32, u64)) {
        let emptied = match self {
            Self::Empty => false,
            Self::One(_) => true,
            Self::Few(rules) => {
                rules.retain(|rule| rule.slot != slot);
                rules.is_empty()
            }
            Self::Many(shapes) => {
                shapes.remove(&Rule::of(slot, policy), order);
                shapes.len == 0
            }
        };
        if emptied {
            *self = Self::Empty;
        }
    }

    /// Shows `best` the policies that match.
    pub(super) fn find(&self, find: &Find<'_>, best: &mut Best) {
        match self {
            Self::Empty => {}
            Self::One(rule) => best.consider(rule, find),
            Self::Few(rules) => rules.iter().for_each(|rule| best.consider(rule, find)),
            Self::Many(shapes) => shapes.find(find, best),
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Empty | Self::One(_) => 0,
            Self::Few(rules) => rules.capacity() * size_of::<Rule>(),
            Self::Many(shapes) => {
                size_of::<Shapes>()
                    + shapes.table.allocation_size()
                    + shapes.numbers.allocation_size()
            }
        }
    }
}

impl Best {
    fn consider(&mut self, rule: &Rule, find: &Find<'_>) {
        if rule.matches(find) {
            self.offer(rule.list, rule.priority, rule.rank, rule.slot);
        }
    }
}

impl Shapes {
    fn new() -> Self {
        Self {
            shapes: Vec::new(),
            numbers: HashMap::with_hasher(crate::spd::policy::hash_state()),
            table: HashMap::with_hasher(crate::spd::policy::hash_state()),
            len: 0,
        }
    }

    fn insert(&mut self, rule: Rule) {
        let (mask, list) = (rule.mask(), rule.list);
        let number = *self.numbers.entry((mask, list)).or_insert_with(|| {
            self.shapes.push(Shape {
                mask,
                list,
                users: 0,
                best: u32::MAX,
            });
            u32::try_from(self.shapes.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(shape) = self.shapes.get_mut(number as usize) {
            shape.users += 1;
            shape.best = shape.best.min(rule.priority);
        }
        self.len += 1;
        let Rule {
            priority,
            rank,
            slot,
            ..
        } = rule;
        match self.table.entry(rule.values(number)) {
            hashbrown::hash_map::Entry::Vacant(entry) => {
                entry.insert(Bucket::One(priority, rank, slot));
            }
            hashbrown::hash_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                Bucket::Many(slots) => {
                    slots.insert((priority, rank), slot);
                }
                &mut Bucket::One(p, r, s) => {
                    let slots = [((p, r), s), ((priority, rank), slot)];
                    entry.insert(Bucket::Many(slots.into()));
                }
            },
        }
    }

    fn remove(&mut self, rule: &Rule, order: (u32, u64)) {
        let Some(&number) = self.numbers.get(&(rule.mask(), rule.list)) else {
            return;
        };
        let hashbrown::hash_map::Entry::Occupied(mut entry) = self.table.entry(rule.values(number))
        else {
            return;
        };
        self.len -= 1;
        let emptied = match entry.get_mut() {
            Bucket::One(..) => true,
            Bucket::Many(slots) => {
                slots.remove(&order);
                slots.is_empty()
            }
        };
        if emptied {
            entry.remove();
        }
        if let Some(shape) = self.shapes.get_mut(number as usize) {
            shape.users -= 1;
            if shape.users == 0 {
                shape.best = u32::MAX;
            }
        }
    }

    fn find(&self, find: &Find<'_>, best: &mut Best) {
        let flow = find.flow;
        for (number, shape) in (0u32..).zip(&self.shapes) {
            let mask = &shape.mask;
            if shape.users == 0 || shape.best > best.priority {
                continue;
            }
            let values = Values {
                shape: number,
                if_id: find.if_id,
                ifindex: if mask.ifindex { flow.ifindex } else { 0 },
                mark: flow.mark & mask.mark,
                dport: flow.dport & mask.dport,
                sport: flow.sport & mask.sport,
                proto: if mask.proto { flow.proto } else { 0 },
                kind: find.kind,
                list: shape.list,
            };
            // A policy for protocol 0 or interface 0 is in another shape.
            if mask.proto && flow.proto == 0 || mask.ifindex && flow.ifindex == 0 {
                continue;
            }
            match self.table.get(&values) {
                None => {}
                Some(&Bucket::One(priority, rank, slot)) => {
                    best.offer(shape.list, priority, rank, slot);
                }
                Some(Bucket::Many(slots)) => {
                    if let Some((&(priority, rank), &slot)) = slots.first_key_value() {
                        best.offer(shape.list, priority, rank, slot);
                    }
                }
            }
        }
    }
}
