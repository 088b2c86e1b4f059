//! Finding the policy for a flow.
//!
//! Per direction and family: the destination prefixes that policies name; off
//! each of them the source prefixes that occur with it; off each such pair a
//! [`Cell`] of policies. A lookup asks which known prefixes cover either
//! address (a hash probe per prefix length that occurs), then visits only the
//! pairs that exist. A change touches one node on each side and one cell.
//!
//! The result is Linux's (`xfrm_policy_lookup_bytype`): the lowest priority
//! number, and among equals what `super::order` says.

mod cell;
mod prefix;

use hashbrown::HashMap;
use xfrm_proto::consts::*;

use super::flow::Flow;
use super::order::List;
use super::policy::{Policy, hash_state, prefix};
use cell::Cell;
use prefix::Prefixes;

/// What a lookup is after.
pub(super) struct Find<'a> {
    pub(super) flow: &'a Flow,
    pub(super) kind: u8,
    pub(super) if_id: u32,
}

/// The best policy of each lookup list so far.
pub(super) struct Best {
    /// The lowest priority number so far; higher ones need not be considered.
    priority: u32,
    lists: [Option<(u32, u64, u32)>; List::COUNT],
}

impl Best {
    const fn new() -> Self {
        Self {
            priority: u32::MAX,
            lists: [None; List::COUNT],
        }
    }

    fn consider(&mut self, list: List, priority: u32, rank: u64, slot: u32) {
        if priority > self.priority {
            return;
        }
        self.priority = priority;
        if let Some(best) = self.lists.get_mut(list as usize)
            && best.is_none_or(|(p, r, _)| (priority, rank) < (p, r))
        {
            *best = Some((priority, rank, slot));
        }
    }
}

/// The cells of a destination prefix, by the number of the source prefix: one, or a map.
#[derive(Debug, Default)]
struct Cells {
    one: Option<(u32, Cell)>,
    many: Option<Box<HashMap<u32, Cell, foldhash::fast::FixedState>>>,
}

impl Cells {
    fn get(&self, src: u32) -> Option<&Cell> {
        match (&self.many, &self.one) {
            (Some(many), _) => many.get(&src),
            (None, Some((only, cell))) if *only == src => Some(cell),
            _ => None,
        }
    }

    fn get_mut(&mut self, src: u32) -> Option<&mut Cell> {
        match (&mut self.many, &mut self.one) {
            (Some(many), _) => many.get_mut(&src),
            (None, Some((only, cell))) if *only == src => Some(cell),
            _ => None,
        }
    }

    fn get_or_make(&mut self, src: u32) -> &mut Cell {
        if self.many.is_none()
            && let Some((only, cell)) = self.one.take_if(|(only, _)| *only != src)
        {
            let mut many = HashMap::with_hasher(hash_state());
            many.insert(only, cell);
            self.many = Some(Box::new(many));
        }
        match &mut self.many {
            Some(many) => many.entry(src).or_default(),
            None => &mut self.one.get_or_insert_with(|| (src, Cell::Empty)).1,
        }
    }

    fn forget_if_empty(&mut self, src: u32) {
        if self.get(src).is_some_and(Cell::is_empty) {
            match &mut self.many {
                Some(many) => drop(many.remove(&src)),
                None => self.one = None,
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        let many = self.many.as_ref().map_or(0, |many| {
            size_of_val(&**many)
                + many.allocation_size()
                + many.values().map(Cell::heap_bytes).sum::<usize>()
        });
        many + self.one.as_ref().map_or(0, |(_, cell)| cell.heap_bytes())
    }
}

#[derive(Debug)]
struct Destination {
    /// No policy below has a lower priority number.
    best: u32,
    cells: Cells,
}

impl Default for Destination {
    fn default() -> Self {
        Self {
            best: u32::MAX,
            cells: Cells::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Class {
    dst: Prefixes<Destination>,
    src: Prefixes<()>,
}

/// The index over all policies but sockets' own.
#[derive(Debug, Default)]
pub(super) struct Index {
    classes: [Class; 6],
}

fn class_number(dir: u8, family: u16) -> usize {
    usize::from(dir) * 2 + usize::from(family != AF_INET)
}

/// Most prefix lengths that can cover one address.
const MOST_COVERING: usize = 129;

impl Index {
    /// Adds the policy in `slot` and notes in it where it is.
    pub(super) fn insert<'a>(
        &mut self,
        slot: u32,
        policy: &'a Policy,
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) -> Option<(u32, u32)> {
        let sel = &policy.key.selector;
        let class = self
            .classes
            .get_mut(class_number(policy.key.dir, sel.family))?;
        let dst_bits = prefix(sel.daddr, sel.family, sel.prefixlen_d);
        let src_bits = prefix(sel.saddr, sel.family, sel.prefixlen_s);
        let dst = class.dst.take(dst_bits, sel.prefixlen_d);
        let src = class.src.take(src_bits, sel.prefixlen_s);
        let node = class.dst.node_mut(dst)?;
        node.best = node.best.min(policy.priority);
        node.cells.get_or_make(src).insert(slot, policy, fetch);
        Some((dst, src))
    }

    /// Removes the policy in `slot`.
    pub(super) fn remove(&mut self, slot: u32, policy: &Policy) {
        let class = class_number(policy.key.dir, policy.key.selector.family);
        let Some(class) = self.classes.get_mut(class) else {
            return;
        };
        let (dst, src) = (policy.place.dst_node, policy.place.src_node);
        if let Some(node) = class.dst.node_mut(dst) {
            if let Some(cell) = node.cells.get_mut(src) {
                cell.remove(slot, policy, (policy.priority, policy.place.rank));
            }
            node.cells.forget_if_empty(src);
        }
        class.dst.release(dst);
        class.src.release(src);
    }

    /// Tells that the policy in `slot` had another priority and rank before.
    pub(super) fn reorder<'a>(
        &mut self,
        slot: u32,
        policy: &'a Policy,
        before: (u32, u64),
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) {
        let class = class_number(policy.key.dir, policy.key.selector.family);
        let Some(node) = self
            .classes
            .get_mut(class)
            .and_then(|class| class.dst.node_mut(policy.place.dst_node))
        else {
            return;
        };
        node.best = node.best.min(policy.priority);
        if let Some(cell) = node.cells.get_mut(policy.place.src_node)
            && cell.keeps_order()
        {
            cell.remove(slot, policy, before);
            cell.insert(slot, policy, fetch);
        }
    }

    /// The slot of the policy for a flow in a direction.
    pub(super) fn find<'a>(
        &self,
        dir: u8,
        find: &Find<'_>,
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) -> Option<u32> {
        let flow = find.flow;
        let class = self.classes.get(class_number(dir, flow.family))?;
        let mut sources = [0u32; MOST_COVERING];
        let mut count = 0;
        let src_bits = prefix(flow.saddr, flow.family, 128);
        for (number, place) in class.src.covering(src_bits).zip(&mut sources) {
            *place = number;
            count += 1;
        }
        let sources = sources.get(..count).unwrap_or_default();
        let mut best = Best::new();
        for dst in class.dst.covering(prefix(flow.daddr, flow.family, 128)) {
            let Some(node) = class.dst.node(dst).filter(|n| n.best <= best.priority) else {
                continue;
            };
            for cell in sources.iter().filter_map(|&src| node.cells.get(src)) {
                cell.find(find, &mut best, &fetch);
            }
        }
        let of_lists = best.lists.into_iter().flatten();
        of_lists
            .filter_map(|(priority, _, slot)| Some((priority, fetch(slot)?.place.age, slot)))
            .min()
            .map(|(_, _, slot)| slot)
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let of_class = |class: &Class| {
            class.dst.heap_bytes()
                + class.src.heap_bytes()
                + class
                    .dst
                    .data()
                    .map(|node| node.cells.heap_bytes())
                    .sum::<usize>()
        };
        self.classes.iter().map(of_class).sum()
    }
}
