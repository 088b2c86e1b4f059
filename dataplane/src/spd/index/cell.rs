//! The policies of one pair of prefixes.
//!
//! Usually one, and always few unless they differ in ports, protocols, marks,
//! interfaces or interface ids: those are sorted into *shapes*, by which of
//! these fields they look at and through which masks. A shape answers with one
//! hash probe, so a million policies that differ only in ports cost no more
//! than ten.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::{Best, Find};
use crate::spd::order::List;
use crate::spd::policy::Policy;

type State = foldhash::fast::FixedState;

/// Beyond this many the cell sorts its policies into shapes.
const FEW: usize = 8;

/// The policies of a cell.
#[derive(Debug, Default)]
pub(super) enum Cell {
    #[default]
    Empty,
    One(Single),
    Few(Box<[u32; FEW]>, u8),
    Many(Box<Shapes>),
}

/// A policy that has its prefixes to itself, with what most lookups need to know of it: the
/// policy itself is far away in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Single {
    rank: u64,
    slot: u32,
    priority: u32,
    if_id: u32,
    kind: u8,
    list: List,
    proto: u8,
    /// It looks at no mark and no interface.
    plain: bool,
    /// Value and mask.
    dport: (u16, u16),
    sport: (u16, u16),
}

impl Single {
    fn new(slot: u32, policy: &Policy) -> Self {
        let sel = &policy.key.selector;
        Self {
            proto: sel.proto,
            dport: (sel.dport.get(), sel.dport_mask.get()),
            sport: (sel.sport.get(), sel.sport_mask.get()),
            rank: policy.place.rank,
            slot,
            priority: policy.priority,
            if_id: policy.key.if_id,
            kind: policy.key.kind,
            list: policy.place.list,
            plain: policy.key.mark.m == 0 && sel.ifindex == 0,
        }
    }

    /// Whether it is for the flow, unless its mark or interface says otherwise.
    #[inline]
    const fn may_match(&self, find: &Find<'_>) -> bool {
        let flow = find.flow;
        self.kind == find.kind
            && self.if_id == find.if_id
            && (self.proto == 0 || self.proto == flow.proto)
            && (flow.dport ^ self.dport.0) & self.dport.1 == 0
            && (flow.sport ^ self.sport.0) & self.sport.1 == 0
    }
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
    mask: u32,
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

fn mask_of(policy: &Policy) -> Mask {
    let sel = &policy.key.selector;
    Mask {
        dport: sel.dport_mask.get(),
        sport: sel.sport_mask.get(),
        proto: sel.proto != 0,
        ifindex: sel.ifindex != 0,
        mark: policy.key.mark.m,
    }
}

impl Cell {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Adds `slot`, which holds `policy`.
    pub(super) fn insert<'a>(
        &mut self,
        slot: u32,
        policy: &'a Policy,
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) {
        match self {
            Self::Empty => *self = Self::One(Single::new(slot, policy)),
            Self::One(first) => {
                let mut slots = Box::new([0; FEW]);
                for (place, slot) in slots.iter_mut().zip([first.slot, slot]) {
                    *place = slot;
                }
                *self = Self::Few(slots, 2);
            }
            Self::Few(slots, len) => {
                if let Some(place) = slots.get_mut(usize::from(*len)) {
                    *place = slot;
                    *len += 1;
                    return;
                }
                let mut shapes = Box::new(Shapes::new());
                for &slot in slots.iter() {
                    if let Some(policy) = fetch(slot) {
                        shapes.insert(slot, policy);
                    }
                }
                shapes.insert(slot, policy);
                *self = Self::Many(shapes);
            }
            Self::Many(shapes) => shapes.insert(slot, policy),
        }
    }

    /// Removes `slot`, which holds `policy`; `order` is the priority and rank it came with.
    pub(super) fn remove(&mut self, slot: u32, policy: &Policy, order: (u32, u64)) {
        match self {
            Self::Empty => {}
            Self::One(_) => *self = Self::Empty,
            Self::Few(slots, len) => {
                let (mut used, all) = (0, usize::from(*len));
                for at in 0..all {
                    if let Some(&kept) = slots.get(at).filter(|&&s| s != slot)
                        && let Some(place) = slots.get_mut(usize::from(used))
                    {
                        *place = kept;
                        used += 1;
                    }
                }
                *len = used;
                if used == 0 {
                    *self = Self::Empty;
                }
            }
            Self::Many(shapes) => {
                shapes.remove(policy, order);
                if shapes.len == 0 {
                    *self = Self::Empty;
                }
            }
        }
    }

    /// Whether the order of its policies is kept here, and not read from them.
    pub(super) fn keeps_order(&self) -> bool {
        matches!(self, Self::One(_) | Self::Many(_))
    }

    pub(super) fn find<'a>(
        &self,
        find: &Find<'_>,
        best: &mut Best,
        fetch: &impl Fn(u32) -> Option<&'a Policy>,
    ) {
        let mut consider = |slot: u32| {
            if let Some(policy) = fetch(slot)
                && policy.matches(find.flow, find.kind, find.if_id)
            {
                best.consider(policy.place.list, policy.priority, policy.place.rank, slot);
            }
        };
        match self {
            Self::Empty => {}
            Self::One(single) if !single.may_match(find) => {}
            Self::One(single) if single.plain => {
                best.consider(single.list, single.priority, single.rank, single.slot);
            }
            Self::One(single) => consider(single.slot),
            Self::Few(slots, len) => {
                slots
                    .iter()
                    .take(usize::from(*len))
                    .for_each(|&slot| consider(slot));
            }
            Self::Many(shapes) => shapes.find(find, best),
        }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Empty | Self::One(_) => 0,
            Self::Few(..) => size_of::<[u32; FEW]>(),
            Self::Many(shapes) => {
                size_of::<Shapes>()
                    + shapes.table.allocation_size()
                    + shapes.numbers.allocation_size()
            }
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

    fn values(&self, policy: &Policy) -> Option<Values> {
        let key = &policy.key;
        let sel = &key.selector;
        let list = policy.place.list;
        let mask = *self.numbers.get(&(mask_of(policy), list))?;
        Some(Values {
            mask,
            if_id: key.if_id,
            ifindex: sel.ifindex,
            mark: key.mark.v,
            dport: sel.dport.get() & sel.dport_mask.get(),
            sport: sel.sport.get() & sel.sport_mask.get(),
            proto: sel.proto,
            kind: key.kind,
            list,
        })
    }

    fn insert(&mut self, slot: u32, policy: &Policy) {
        let (mask, list) = (mask_of(policy), policy.place.list);
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
            shape.best = shape.best.min(policy.priority);
        }
        let Some(values) = self.values(policy) else {
            return;
        };
        self.len += 1;
        let (priority, rank) = (policy.priority, policy.place.rank);
        match self.table.entry(values) {
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

    fn remove(&mut self, policy: &Policy, order: (u32, u64)) {
        let Some(values) = self.values(policy) else {
            return;
        };
        let hashbrown::hash_map::Entry::Occupied(mut entry) = self.table.entry(values) else {
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
        if let Some(shape) = self.shapes.get_mut(values.mask as usize) {
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
                mask: number,
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
                    best.consider(shape.list, priority, rank, slot);
                }
                Some(Bucket::Many(slots)) => {
                    if let Some((&(priority, rank), &slot)) = slots.first_key_value() {
                        best.consider(shape.list, priority, rank, slot);
                    }
                }
            }
        }
    }
}
