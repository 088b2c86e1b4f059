//! From two addresses to the cells of all prefix pairs that cover them.
//!
//! A *table* finds prefix pairs by the first few bits of both prefixes, its
//! *cuts*: all pairs that agree in these bits share a bucket, which is scanned.
//! A pair lives in the finest table whose cuts its prefixes reach. A bucket
//! that grows beyond [`CROWD`] moves what it can to a table with longer cuts,
//! made for it if need be. So a lookup is one hash probe and a short scan per
//! table, and there are few tables: one for host pairs, one or two for
//! prefixes of mixed lengths.
//!
//! This is tuple-space search with merged tuples (Daly et al., TupleMerge,
//! 2019). Keeping a hash table for every pair of prefix lengths, or the
//! sources below each destination, was tried: among 100,000 mixed prefixes
//! either made some 150 probes a lookup where this makes two.

use std::hash::{BuildHasher, Hasher};

use xfrm_proto::uapi::Address;

use super::cell::Cell;
use super::{Best, Find};
use crate::spd::policy::{Policy, hash_state};
use crate::spd::slots::SlotTable;

/// Pairs that a bucket may hold before it is looked at for a finer table.
const CROWD: usize = 16;
/// Tables that are probed together.
const SWEEP: usize = 16;
/// Cuts are multiples of this many bits.
const STEP: u8 = 4;

/// An address as a number, first bit on top.
pub(super) trait Bits: Copy + Eq + std::fmt::Debug {
    /// The address.
    fn of(addr: Address) -> Self;
    /// Its first `len` bits.
    fn first(self, len: u8) -> Self;
    /// For hashing.
    fn feed(self, hasher: &mut impl Hasher);
}

impl Bits for u32 {
    fn of(addr: Address) -> Self {
        addr.v4_bits()
    }

    fn first(self, len: u8) -> Self {
        self & Self::MAX
            .checked_shl(32 - u32::from(len.min(32)))
            .unwrap_or(0)
    }

    fn feed(self, hasher: &mut impl Hasher) {
        hasher.write_u32(self);
    }
}

impl Bits for u128 {
    fn of(addr: Address) -> Self {
        addr.bits()
    }

    fn first(self, len: u8) -> Self {
        self & Self::MAX
            .checked_shl(128 - u32::from(len.min(128)))
            .unwrap_or(0)
    }

    fn feed(self, hasher: &mut impl Hasher) {
        hasher.write_u128(self);
    }
}

/// A destination and a source prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair<B> {
    dst: B,
    src: B,
    dst_len: u8,
    src_len: u8,
}

impl<B: Bits> Pair<B> {
    pub(super) fn of(policy: &Policy) -> Self {
        let sel = &policy.key.selector;
        Self {
            dst: B::of(sel.daddr).first(sel.prefixlen_d),
            src: B::of(sel.saddr).first(sel.prefixlen_s),
            dst_len: sel.prefixlen_d,
            src_len: sel.prefixlen_s,
        }
    }

    fn covers(&self, dst: B, src: B) -> bool {
        dst.first(self.dst_len) == self.dst && src.first(self.src_len) == self.src
    }

    /// The longest cuts that it reaches.
    const fn cuts(&self) -> Cuts {
        Cuts {
            dst: self.dst_len / STEP * STEP,
            src: self.src_len / STEP * STEP,
        }
    }

    const fn reaches(&self, cuts: Cuts) -> bool {
        self.dst_len >= cuts.dst && self.src_len >= cuts.src
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cuts {
    dst: u8,
    src: u8,
}

impl Cuts {
    fn hash<B: Bits>(self, dst: B, src: B) -> u32 {
        let mut hasher = hash_state().build_hasher();
        dst.first(self.dst).feed(&mut hasher);
        src.first(self.src).feed(&mut hasher);
        (hasher.finish() >> 32) as u32
    }

    const fn bits(self) -> usize {
        self.dst as usize + self.src as usize
    }
}

#[derive(Debug)]
struct Entry<B> {
    pair: Pair<B>,
    /// No policy of the cell has a lower priority number.
    best: u32,
    cell: Cell,
}

/// The pairs that share their first bits.
#[derive(Debug)]
enum Bucket<B> {
    One(Entry<B>),
    Many(Crowd<B>),
}

#[derive(Debug)]
struct Crowd<B> {
    entries: Vec<Entry<B>>,
    /// Beyond this many a finer table is looked for.
    limit: usize,
}

impl<B> Bucket<B> {
    fn entries(&self) -> &[Entry<B>] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(crowd) => &crowd.entries,
        }
    }

    fn entries_mut(&mut self) -> &mut [Entry<B>] {
        match self {
            Self::One(entry) => std::slice::from_mut(entry),
            Self::Many(crowd) => &mut crowd.entries,
        }
    }
}

#[derive(Debug)]
struct Table<B> {
    cuts: Cuts,
    index: SlotTable,
    buckets: Vec<Option<Bucket<B>>>,
    free: Vec<u32>,
    /// No policy of the table has a lower priority number.
    best: u32,
}

impl<B: Bits> Table<B> {
    fn new(cuts: Cuts) -> Self {
        Self {
            cuts,
            index: SlotTable::default(),
            buckets: Vec::new(),
            free: Vec::new(),
            best: u32::MAX,
        }
    }

    fn is_empty(&self) -> bool {
        self.buckets.len() == self.free.len()
    }

    fn bucket(&self, number: u32) -> Option<&Bucket<B>> {
        self.buckets.get(number as usize)?.as_ref()
    }

    /// The bucket of these addresses.
    fn find(&self, dst: B, src: B) -> Option<u32> {
        let Cuts { dst: d, src: s } = self.cuts;
        self.index.find(self.cuts.hash(dst, src), |number| {
            let first = self.bucket(number).and_then(|b| b.entries().first());
            first.is_some_and(|entry| {
                entry.pair.dst.first(d) == dst.first(d) && entry.pair.src.first(s) == src.first(s)
            })
        })
    }

    /// Shows `best` the policies of a bucket for a flow.
    #[inline]
    fn find_in<'a>(
        &self,
        number: u32,
        dst: B,
        src: B,
        find: &Find<'_>,
        best: &mut Best,
        fetch: &impl Fn(u32) -> Option<&'a Policy>,
    ) {
        if self.best > best.priority {
            return;
        }
        let bucket = self.bucket(number);
        for entry in bucket.map(Bucket::entries).unwrap_or_default() {
            if entry.best <= best.priority && entry.pair.covers(dst, src) {
                entry.cell.find(find, best, fetch);
            }
        }
    }

    fn entry_mut(&mut self, pair: &Pair<B>) -> Option<&mut Entry<B>> {
        if !pair.reaches(self.cuts) {
            return None;
        }
        let number = self.find(pair.dst, pair.src)?;
        let bucket = self.buckets.get_mut(number as usize)?.as_mut()?;
        bucket.entries_mut().iter_mut().find(|e| e.pair == *pair)
    }

    /// Adds an entry; if its bucket is then too large, returns those that finer cuts would
    /// serve better, taken out again.
    fn add(&mut self, entry: Entry<B>) -> Option<(Cuts, Vec<Entry<B>>)> {
        self.best = self.best.min(entry.best);
        let (dst, src) = (entry.pair.dst, entry.pair.src);
        let Some(number) = self.find(dst, src) else {
            let bucket = Some(Bucket::One(entry));
            let number = match self.free.pop() {
                Some(number) => {
                    if let Some(place) = self.buckets.get_mut(number as usize) {
                        *place = bucket;
                    }
                    number
                }
                None => {
                    self.buckets.push(bucket);
                    u32::try_from(self.buckets.len() - 1).unwrap_or(u32::MAX)
                }
            };
            self.index.insert(self.cuts.hash(dst, src), number);
            return None;
        };
        let place = self.buckets.get_mut(number as usize)?;
        let mut crowd = match place.take()? {
            Bucket::One(first) => Crowd {
                entries: vec![first],
                limit: CROWD,
            },
            Bucket::Many(crowd) => crowd,
        };
        crowd.entries.push(entry);
        let moved = (crowd.entries.len() > crowd.limit).then(|| crowd.refine(self.cuts));
        let emptied = crowd.entries.is_empty();
        *place = Some(Bucket::Many(crowd));
        if emptied {
            self.drop_bucket(number, dst, src);
        }
        moved.flatten()
    }

    fn drop_bucket(&mut self, number: u32, dst: B, src: B) {
        self.index.remove(self.cuts.hash(dst, src), number);
        if let Some(place) = self.buckets.get_mut(number as usize) {
            *place = None;
        }
        self.free.push(number);
        if self.is_empty() {
            self.best = u32::MAX;
        }
    }

    /// Takes an entry out, if it is here.
    fn take(&mut self, pair: &Pair<B>) {
        let Some(number) = self.find(pair.dst, pair.src) else {
            return;
        };
        let place = self.buckets.get_mut(number as usize);
        let emptied = match place.and_then(Option::as_mut) {
            Some(Bucket::Many(crowd)) => {
                crowd.entries.retain(|entry| entry.pair != *pair);
                crowd.entries.is_empty()
            }
            Some(Bucket::One(entry)) => entry.pair == *pair,
            None => false,
        };
        if emptied {
            self.drop_bucket(number, pair.dst, pair.src);
        }
    }
}

impl<B: Bits> Crowd<B> {
    /// Takes out what slightly longer cuts than `cuts` would serve, whichever side serves
    /// most; if that is not a good part of the entries, they stay together until there are
    /// twice as many.
    fn refine(&mut self, cuts: Cuts) -> Option<(Cuts, Vec<Entry<B>>)> {
        let longer = |dst, src| Cuts {
            dst: cuts.dst + dst,
            src: cuts.src + src,
        };
        let movable = |to: Cuts| self.entries.iter().filter(|e| e.pair.reaches(to)).count();
        let (count, to) = [longer(STEP, STEP), longer(STEP, 0), longer(0, STEP)]
            .map(|to| (movable(to), to))
            .into_iter()
            .max_by_key(|&(count, to)| (count, to.bits()))?;
        if count * 4 < self.entries.len() {
            self.limit = self.entries.len() * 2;
            return None;
        }
        let moved: Vec<_> = self
            .entries
            .extract_if(.., |entry| entry.pair.reaches(to))
            .collect();
        // As long as all of them reach.
        let reached = moved.iter().map(|entry| entry.pair.cuts());
        let to = reached.reduce(|a, b| Cuts {
            dst: a.dst.min(b.dst),
            src: a.src.min(b.src),
        })?;
        Some((to, moved))
    }
}

/// All prefix pairs of a direction and family.
#[derive(Debug)]
pub(super) struct Pairs<B> {
    /// Finest first.
    tables: Vec<Table<B>>,
}

impl<B: Bits> Default for Pairs<B> {
    fn default() -> Self {
        Self {
            tables: vec![Table::new(Cuts { dst: 0, src: 0 })],
        }
    }
}

impl<B: Bits> Pairs<B> {
    /// Adds the policy in `slot`.
    pub(super) fn insert<'a>(
        &mut self,
        slot: u32,
        policy: &'a Policy,
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) {
        let pair = Pair::of(policy);
        for table in &mut self.tables {
            if let Some(entry) = table.entry_mut(&pair) {
                entry.cell.insert(slot, policy, fetch);
                entry.best = entry.best.min(policy.priority);
                table.best = table.best.min(policy.priority);
                return;
            }
        }
        let mut cell = Cell::Empty;
        cell.insert(slot, policy, fetch);
        self.add(Entry {
            pair,
            best: policy.priority,
            cell,
        });
    }

    fn add(&mut self, entry: Entry<B>) {
        let table = self.tables.iter_mut().find(|t| entry.pair.reaches(t.cuts));
        let Some((cuts, moved)) = table.and_then(|table| table.add(entry)) else {
            return;
        };
        if !self.tables.iter().any(|table| table.cuts == cuts) {
            let finer = |table: &Table<B>| table.cuts.bits() >= cuts.bits();
            let at = self.tables.partition_point(finer);
            self.tables.insert(at, Table::new(cuts));
        }
        for entry in moved {
            self.add(entry);
        }
    }

    /// Removes the policy in `slot`.
    pub(super) fn remove(&mut self, slot: u32, policy: &Policy) {
        let pair = Pair::of(policy);
        for table in &mut self.tables {
            if let Some(entry) = table.entry_mut(&pair) {
                entry.cell.remove(slot, policy, order_of(policy));
                if entry.cell.is_empty() {
                    table.take(&pair);
                }
                return;
            }
        }
    }

    /// Tells that the policy in `slot` had another priority and rank before.
    pub(super) fn reorder<'a>(
        &mut self,
        slot: u32,
        policy: &'a Policy,
        before: (u32, u64),
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) {
        let pair = Pair::of(policy);
        for table in &mut self.tables {
            if let Some(entry) = table.entry_mut(&pair) {
                if entry.cell.keeps_order() {
                    entry.cell.remove(slot, policy, before);
                    entry.cell.insert(slot, policy, fetch);
                }
                entry.best = entry.best.min(policy.priority);
                table.best = table.best.min(policy.priority);
                return;
            }
        }
    }

    /// Shows `best` the policies for a flow.
    pub(super) fn find<'a>(
        &self,
        find: &Find<'_>,
        best: &mut Best,
        fetch: impl Fn(u32) -> Option<&'a Policy>,
    ) {
        let (dst, src) = (B::of(find.flow.daddr), B::of(find.flow.saddr));
        for tables in self.tables.chunks(SWEEP) {
            // First all probes, then all buckets: the memory that they wait for does not depend
            // on each other, so they wait together.
            let mut hits = [(0, 0); SWEEP];
            let mut free = hits.iter_mut();
            for (at, table) in tables.iter().enumerate() {
                if table.is_empty() || table.best > best.priority {
                    continue;
                }
                for number in table.index.with_hash(table.cuts.hash(dst, src)) {
                    match free.next() {
                        Some(hit) => *hit = (at, number),
                        // Hashes that collide: rare enough to be slow.
                        None => table.find_in(number, dst, src, find, best, &fetch),
                    }
                }
            }
            let left = free.len();
            for &(at, number) in hits.iter().take(SWEEP - left) {
                if let Some(table) = tables.get(at) {
                    table.find_in(number, dst, src, find, best, &fetch);
                }
            }
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let of_bucket = |bucket: &Bucket<B>| {
            let crowd = match bucket {
                Bucket::One(_) => 0,
                Bucket::Many(crowd) => crowd.entries.capacity() * size_of::<Entry<B>>(),
            };
            let cells = bucket.entries().iter().map(|entry| entry.cell.heap_bytes());
            crowd + cells.sum::<usize>()
        };
        let of_table = |table: &Table<B>| {
            table.index.heap_bytes()
                + table.buckets.capacity() * size_of::<Option<Bucket<B>>>()
                + table.free.capacity() * size_of::<u32>()
                + table.buckets.iter().flatten().map(of_bucket).sum::<usize>()
        };
        self.tables.iter().map(of_table).sum()
    }
}

const fn order_of(policy: &Policy) -> (u32, u64) {
    (policy.priority, policy.place.rank)
}
