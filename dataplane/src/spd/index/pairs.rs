//! From two addresses to the cells of all prefix pairs that cover them.
//!
//! A *table* finds prefix pairs by the first few bits of both prefixes, its
//! *cuts*: all pairs that agree in these bits have the same hash, and a lookup
//! scans them: a few lie in the hash table one by one, more are a *crowd* in a
//! place of its own. A pair lives in the finest table whose cuts its prefixes
//! reach. A crowd that grows beyond [`CROWD`] moves what it can to a table with
//! longer cuts, made for it if need be. So a lookup is one hash probe and a
//! short scan per table, and there are few tables: one for host pairs, one or
//! two for prefixes of mixed lengths.
//!
//! This is tuple-space search with merged tuples (Daly et al., TupleMerge,
//! 2019). Keeping a hash table for every pair of prefix lengths, or the
//! sources below each destination, was tried: among 100,000 mixed prefixes
//! either made some 150 probes a lookup where this makes two.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;
use xfrm_proto::uapi::Address;

use super::cell::{Cell, Rule};
use super::{Best, Find};
use crate::spd::policy::{Policy, hash_state};

/// Pairs that a crowd may have before a finer table is looked for: few in tests, which would see
/// none otherwise.
const CROWD: usize = if cfg!(test) { 6 } else { 32 };
/// Pairs that share their first bits and still lie in the table one by one: a lookup waits for all
/// of them at once, and for a crowd twice.
const APART: usize = 4;
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
    fn hash<B: Bits>(self, dst: B, src: B) -> u64 {
        let mut hasher = hash_state().build_hasher();
        dst.first(self.dst).feed(&mut hasher);
        src.first(self.src).feed(&mut hasher);
        hasher.finish()
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

/// What a table holds.
#[derive(Debug)]
enum Bucket<B> {
    /// One of the few pairs that share their first bits.
    One(Entry<B>),
    /// All pairs that do.
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

impl<B: Bits> Bucket<B> {
    /// Whether that pair is in it.
    fn has(&self, pair: &Pair<B>) -> bool {
        self.entries().iter().any(|entry| entry.pair == *pair)
    }

    /// Whether its pairs share the first bits of these addresses.
    fn is_of(&self, cuts: Cuts, dst: B, src: B) -> bool {
        self.entries().first().is_some_and(|entry| {
            entry.pair.dst.first(cuts.dst) == dst.first(cuts.dst)
                && entry.pair.src.first(cuts.src) == src.first(cuts.src)
        })
    }

    fn hash(&self, cuts: Cuts) -> u64 {
        let first = self.entries().first();
        first.map_or(0, |entry| cuts.hash(entry.pair.dst, entry.pair.src))
    }
}

#[derive(Debug)]
struct Table<B> {
    cuts: Cuts,
    /// Their entries are not empty. The table holds them itself: its tags are few enough to stay
    /// in the cache, so that a lookup waits for memory once.
    buckets: HashTable<Bucket<B>>,
    /// No policy of the table has a lower priority number.
    best: u32,
}

impl<B: Bits> Table<B> {
    fn new(cuts: Cuts) -> Self {
        Self {
            cuts,
            buckets: HashTable::new(),
            best: u32::MAX,
        }
    }

    fn entry_mut(&mut self, pair: &Pair<B>) -> Option<&mut Entry<B>> {
        if !pair.reaches(self.cuts) {
            return None;
        }
        let hash = self.cuts.hash(pair.dst, pair.src);
        let bucket = self.buckets.find_mut(hash, |bucket| bucket.has(pair))?;
        bucket.entries_mut().iter_mut().find(|e| e.pair == *pair)
    }

    /// Adds an entry; if its crowd is then too large, returns those that finer cuts would serve
    /// better, taken out again.
    fn add(&mut self, entry: Entry<B>) -> Option<(Cuts, Vec<Entry<B>>)> {
        self.best = self.best.min(entry.best);
        let cuts = self.cuts;
        let (dst, src) = (entry.pair.dst, entry.pair.src);
        let hash = cuts.hash(dst, src);
        let alike = |bucket: &Bucket<B>| bucket.is_of(cuts, dst, src);
        let rehash = |bucket: &Bucket<B>| bucket.hash(cuts);
        let crowd = |bucket: &Bucket<B>| matches!(bucket, Bucket::Many(_)) && alike(bucket);
        if let Some(Bucket::Many(crowd)) = self.buckets.find_mut(hash, crowd) {
            crowd.entries.push(entry);
            let crowded = crowd.entries.len() > crowd.limit;
            let moved = crowded.then(|| crowd.refine(cuts)).flatten();
            if crowd.entries.is_empty() {
                self.drop_bucket(hash, |bucket| bucket.entries().is_empty());
            }
            return moved;
        }
        let apart = self.buckets.iter_hash(hash).filter(|b| alike(b)).count();
        let bucket = if apart < APART {
            Bucket::One(entry)
        } else {
            let mut entries = vec![entry];
            while let Ok(bucket) = self.buckets.find_entry(hash, alike) {
                if let Bucket::One(entry) = bucket.remove().0 {
                    entries.push(entry);
                }
            }
            Bucket::Many(Crowd {
                entries,
                limit: CROWD,
            })
        };
        self.buckets.insert_unique(hash, bucket, rehash);
        None
    }

    /// Takes an entry out, if it is here.
    fn take(&mut self, pair: &Pair<B>) {
        let hash = self.cuts.hash(pair.dst, pair.src);
        let emptied = match self.buckets.find_mut(hash, |bucket| bucket.has(pair)) {
            Some(Bucket::Many(crowd)) => {
                crowd.entries.retain(|entry| entry.pair != *pair);
                crowd.entries.is_empty()
            }
            Some(Bucket::One(_)) => return self.drop_bucket(hash, |bucket| bucket.has(pair)),
            None => false,
        };
        if emptied {
            self.drop_bucket(hash, |bucket| bucket.entries().is_empty());
        }
    }

    fn drop_bucket(&mut self, hash: u64, is_it: impl FnMut(&Bucket<B>) -> bool) {
        if let Ok(bucket) = self.buckets.find_entry(hash, is_it) {
            bucket.remove();
        }
        if self.buckets.is_empty() {
            self.best = u32::MAX;
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
    pub(super) fn insert(&mut self, slot: u32, policy: &Policy) {
        let pair = Pair::of(policy);
        let rule = Rule::of(slot, policy);
        for table in &mut self.tables {
            if let Some(entry) = table.entry_mut(&pair) {
                entry.cell.insert(rule);
                entry.best = entry.best.min(policy.priority);
                table.best = table.best.min(policy.priority);
                return;
            }
        }
        self.add(Entry {
            pair,
            best: policy.priority,
            cell: Cell::One(rule),
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
    pub(super) fn reorder(&mut self, slot: u32, policy: &Policy, before: (u32, u64)) {
        let pair = Pair::of(policy);
        for table in &mut self.tables {
            if let Some(entry) = table.entry_mut(&pair) {
                entry.cell.remove(slot, policy, before);
                entry.cell.insert(Rule::of(slot, policy));
                entry.best = entry.best.min(policy.priority);
                table.best = table.best.min(policy.priority);
                return;
            }
        }
    }

    /// Shows `best` the policies for a flow.
    pub(super) fn find(&self, find: &Find<'_>, best: &mut Best) {
        let (dst, src) = (B::of(find.flow.daddr), B::of(find.flow.saddr));
        for table in &self.tables {
            if table.buckets.is_empty() || table.best > best.priority {
                continue;
            }
            let buckets = table.buckets.iter_hash(table.cuts.hash(dst, src));
            for entry in buckets.flat_map(Bucket::entries) {
                if entry.best <= best.priority && entry.pair.covers(dst, src) {
                    entry.cell.find(find, best);
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
            table.buckets.allocation_size() + table.buckets.iter().map(of_bucket).sum::<usize>()
        };
        self.tables.iter().map(of_table).sum()
    }
}

const fn order_of(policy: &Policy) -> (u32, u64) {
    (policy.priority, policy.place.rank)
}
