//! When the choice of an SA for a template may come out differently.
//!
//! Linux gives each SA a number (`x->genid`) that goes up when another one may
//! have taken its place, and compares it for every packet that has a bundle
//! (`xfrm_bundle_ok`). Here a number stands for all SAs of some destinations
//! and request ids: it goes up whenever one of them comes, goes, or changes.

use std::hash::BuildHasher;

use xfrm_proto::uapi::Address;

use super::Sa;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const SHARDS: usize = 1024;

/// The numbers of one SAD.
#[derive(Debug)]
pub(crate) struct Choices {
    all: AtomicU64,
    shards: Box<[AtomicU32]>,
}

/// A destination and request id, as [`Choices`] knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard(usize);

impl Default for Choices {
    fn default() -> Self {
        Self {
            all: AtomicU64::new(0),
            shards: (0..SHARDS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl Choices {
    /// The shard of a template with these.
    pub(crate) fn shard(daddr: Address, family: u16, reqid: u32) -> Shard {
        let state = foldhash::fast::FixedState::with_seed(0x7361);
        let hash = state.hash_one((daddr.for_family(family), reqid));
        Shard(usize::try_from(hash >> 32).unwrap_or(0) % SHARDS)
    }

    /// An SA comes, goes, or changes.
    pub(crate) fn change(&self, sa: &Sa) {
        let Shard(at) = Self::shard(sa.id.daddr, sa.family, sa.reqid);
        if let Some(shard) = self.shards.get(at) {
            shard.fetch_add(1, Ordering::Relaxed);
        }
        self.all.fetch_add(1, Ordering::Release);
    }

    /// Goes up with every change.
    #[inline]
    pub(crate) fn all(&self) -> u64 {
        self.all.load(Ordering::Acquire)
    }

    /// Goes up with every change of a shard.
    pub(crate) fn of(&self, shard: Shard) -> u32 {
        let shard = self.shards.get(shard.0);
        shard.map_or(0, |shard| shard.load(Ordering::Relaxed))
    }
}
