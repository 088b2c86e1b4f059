//! Linux's hash buckets, as far as clients see them.
//!
//! SAD_HINFO tells how many buckets there are: eight at first, doubled by a
//! worker once there are more SAs than buckets and a new SA does not get a
//! bucket (of the hash by addresses and reqid) for itself. To answer the same
//! the hash has to be the same.
//!
//! QUIRK: growing_reverses_chains. Moving SAs to the larger tables one by one
//! turns the order within chains around; which of two SAs with equal key and
//! overlapping marks a lookup finds changes with it. [`Buckets::grow`] gives
//! the order afterwards.
//!
//! Source: `net/xfrm/xfrm_hash.h __xfrm_dst_hash`; `net/xfrm/xfrm_state.c
//! xfrm_hash_grow_check, xfrm_hash_resize`; Bob Jenkins's `lookup3`.

use xfrm_proto::consts::{AF_INET, AF_INET6};
use xfrm_proto::uapi::Address;

/// `xfrm_state_hashmax`.
pub(super) const MOST_BUCKETS: u32 = 1 << 20;

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Hash by addresses and reqid, not yet cut to a bucket.
    hash: u32,
    /// Position in chains: higher is nearer to the head.
    rank: u64,
}

/// Occupation of the buckets.
pub(super) struct Buckets {
    occupation: Vec<u32>,
    entries: Vec<Entry>,
    next_rank: u64,
    wants_growth: bool,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            occupation: vec![0; 8],
            entries: Vec::new(),
            next_rank: 0,
            wants_growth: false,
        }
    }
}

impl Buckets {
    /// As many as they had become; nothing is in them.
    pub(super) fn begin_with(&mut self, buckets: u32) -> Option<()> {
        if !buckets.is_power_of_two() || !(8..=MOST_BUCKETS).contains(&buckets) {
            return None;
        }
        self.occupation = vec![0; usize::try_from(buckets).ok()?];
        Some(())
    }

    /// Sets what was noted of each place, when all are in.
    pub(super) fn set_ranks(&mut self, ranks: impl Iterator<Item = (u32, u64)>) {
        self.wants_growth = false;
        for (place, rank) in ranks {
            if let Some(entry) = self.entries.get_mut(place as usize) {
                entry.rank = rank;
            }
            self.next_rank = self.next_rank.max(rank.saturating_add(1));
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.occupation.len()).unwrap_or(MOST_BUCKETS)
    }

    /// Counts the SA at `place` in; `total` is the number of SAs with it.
    pub(super) fn insert(&mut self, place: u32, hash: u32, total: usize) {
        let slot = place as usize;
        if self.entries.len() <= slot {
            self.entries.resize(slot + 1, Entry::default());
        }
        let rank = self.next_rank;
        self.next_rank += 1;
        if let Some(entry) = self.entries.get_mut(slot) {
            *entry = Entry { hash, rank };
        }
        let buckets = self.occupation.len();
        let mut collides = false;
        if let Some(count) = self.bucket(hash) {
            collides = *count > 0;
            *count += 1;
        }
        if collides && self.len() < MOST_BUCKETS && total >= buckets {
            self.wants_growth = true;
        }
    }

    /// Counts the SA at `place` out.
    pub(super) fn remove(&mut self, place: u32) {
        let hash = self.entries.get(place as usize).map(|e| e.hash);
        if let Some(count) = hash.and_then(|h| self.bucket(h)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Whether the worker has something to do.
    pub(super) fn wants_growth(&self) -> bool {
        self.wants_growth
    }

    /// Doubles the buckets for the SAs at `places`; [`Buckets::rank`] has changed afterwards.
    pub(super) fn grow(&mut self, places: impl Iterator<Item = u32>) {
        self.wants_growth = false;
        let mask = self.len() - 1;
        let mut moves: Vec<(u32, u64, u32)> = places
            .filter_map(|place| {
                let entry = self.entries.get(place as usize)?;
                Some((entry.hash & mask, entry.rank, place))
            })
            .collect();
        moves.sort_unstable_by(|a, b| b.cmp(a));
        let doubled = self.occupation.len() * 2;
        self.occupation.clear();
        self.occupation.resize(doubled, 0);
        for (rank, (_, _, place)) in (0..).zip(&moves) {
            let Some(entry) = self.entries.get_mut(*place as usize) else {
                continue;
            };
            entry.rank = rank;
            let hash = entry.hash;
            if let Some(count) = self.bucket(hash) {
                *count += 1;
            }
        }
        self.next_rank = moves.len() as u64;
    }

    /// Where the SA at `place` stands in its chains: higher is nearer to the head.
    pub(super) fn rank(&self, place: u32) -> u64 {
        self.entries.get(place as usize).map_or(0, |e| e.rank)
    }

    fn bucket(&mut self, hash: u32) -> Option<&mut u32> {
        let mask = self.occupation.len() - 1;
        self.occupation.get_mut(hash as usize & mask)
    }
}

/// `__xfrm_dst_hash`, not yet cut to the number of buckets.
pub(super) fn hash_by_addresses(daddr: Address, saddr: Address, reqid: u32, family: u16) -> u32 {
    let addresses = match family {
        AF_INET => {
            let [d, ..] = words(daddr);
            let [s, ..] = words(saddr);
            d.wrapping_add(s).swap_bytes()
        }
        AF_INET6 => jhash4(words(daddr)) ^ jhash4(words(saddr)),
        _ => 0,
    };
    let hash = u32::from(family) ^ reqid ^ addresses;
    hash ^ (hash >> 16)
}

/// An address as an x86 or arm64 kernel sees it: little-endian words.
fn words(address: Address) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.0;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_le_bytes)
}

/// `jhash2` of four words and initial value 0.
fn jhash4(words: [u32; 4]) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(16);
    let [w0, w1, w2, w3] = words;
    let mut a = start.wrapping_add(w0);
    let mut b = start.wrapping_add(w1);
    let mut c = start.wrapping_add(w2);
    for (rotate_c, rotate_a, rotate_b) in [(4, 6, 8), (16, 19, 4)] {
        a = a.wrapping_sub(c) ^ c.rotate_left(rotate_c);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(rotate_a);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(rotate_b);
        b = b.wrapping_add(a);
    }
    a = a.wrapping_add(w3);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
