//! The security association database (`net/xfrm/xfrm_state.c`).
//!
//! A slab of SAs, an age order for dumps, and hash indices whose chains keep
//! Linux's order (newest first, until `buckets` turns them around). Every
//! operation costs the same at a thousand SAs and at a million.
//!
//! * [`sa`]: what an SA is. [`construct`], `init`: how one is made of a request.
//! * `find`: lookups. `choose`: the SA for a template, or the acquire of one. [`add`]: NEWSA and UPDSA. [`spi`]: larval SAs and ALLOCSPI.
//! * [`lifetime`]: limits in time. [`replay`]: sequence numbers, aevents.
//! * [`traffic`]: what packets count. `window`: which have come in. [`transform`]: what an SA does to them.
//! * `keep`: what outlives the process. [`walk`]: dumps. [`migrate`]: new addresses. [`tunnel`]: hidden IPCOMP tunnels.
//!
//! Invariant: what is in the slab is in the age order, in the buckets, and in
//! each index that its fields call for; identity fields change only through
//! functions here that keep the indices in step.

pub mod add;
mod buckets;
pub(crate) mod choices;
pub(crate) mod choose;
pub mod construct;
mod find;
mod index;
mod init;
mod keep;
pub mod lifetime;
pub mod migrate;
pub mod replay;
pub mod sa;
pub mod spi;
#[cfg(test)]
mod tests;
pub mod traffic;
pub mod transform;
pub mod tunnel;
pub mod walk;
mod window;

use std::collections::BTreeMap;
use std::hash::BuildHasher;

use xfrm_proto::consts::{IPPROTO_DSTOPTS, IPPROTO_ROUTING};
use xfrm_proto::uapi::{Address, SadHinfo};

use crate::event::SaExpire;
use crate::netns::Limits;
use crate::profile::Profile;
use buckets::Buckets;
use choices::Choices;
pub use choose::Misfit;
use index::Index;
use lifetime::Timers;
pub use sa::{Lifecycle, Sa, SaHandle, SaId};
use tunnel::Tunnels;
pub use window::WindowGuard;

type Hasher = foldhash::fast::RandomState;

/// The SAs of one namespace.
pub struct Sad {
    profile: &'static Profile,
    limits: Limits,
    hasher: Hasher,
    slots: Vec<Option<Box<Sa>>>,
    free: Vec<u32>,
    by_age: BTreeMap<u64, SaId>,
    next_serial: u64,
    buckets: Buckets,
    by_spi: Index,
    by_source: Index,
    by_template: Index,
    larval: Index,
    larval_by_seq: Index,
    by_spi_alone: Index,
    timers: Timers,
    tunnels: Tunnels,
    /// Counts what may change which SA serves a template.
    pub(crate) choices: Choices,
    /// Places of SAs that came, changed or went, once somebody keeps them.
    touched: Option<Vec<u32>>,
}

impl Sad {
    /// An empty database.
    #[must_use]
    pub fn new(profile: &'static Profile, limits: Limits) -> Self {
        Self {
            profile,
            limits,
            hasher: Hasher::default(),
            slots: Vec::new(),
            free: Vec::new(),
            by_age: BTreeMap::new(),
            next_serial: 1,
            buckets: Buckets::default(),
            by_spi: Index::default(),
            by_source: Index::default(),
            by_template: Index::default(),
            larval: Index::default(),
            larval_by_seq: Index::default(),
            by_spi_alone: Index::default(),
            timers: Timers::default(),
            tunnels: Tunnels::default(),
            choices: Choices::default(),
            touched: None,
        }
    }

    /// Changes how much it may hold; what it holds already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Does what Linux leaves to workers, which run once a request is through:
    /// growing the hash tables, letting go of SAs that were refused.
    pub fn run_workers(&mut self) {
        self.release_refused();
        if self.buckets.wants_growth() {
            self.grow_tables();
        }
    }

    /// Removes an SA; nobody is told.
    pub fn delete(&mut self, id: SaId) -> Option<Box<Sa>> {
        let sa = self.unlink(id)?;
        self.release_tunnel(&sa);
        Some(sa)
    }

    /// Removes the SAs of a protocol (0: all, 255: AH, ESP and COMP); how many there were.
    pub fn flush(&mut self, proto: u8) -> usize {
        let doomed: Vec<SaId> = self
            .iter()
            .filter(|(_, sa)| !sa.is_tunnel && walk::proto_matches(sa.id.proto, proto))
            .map(|(id, _)| id)
            .collect();
        for &id in &doomed {
            self.delete(id);
        }
        doomed.len()
    }

    /// An SA.
    #[must_use]
    pub fn get(&self, id: SaId) -> Option<&Sa> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    /// An SA, to change its counters and limits.
    pub fn get_mut(&mut self, id: SaId) -> Option<&mut Sa> {
        self.touch(id.0);
        let sa = self.slots.get_mut(id.0 as usize)?.as_deref_mut()?;
        self.choices.change(sa);
        Some(sa)
    }

    /// The SA of a handle, if it is still there.
    #[must_use]
    #[inline]
    pub fn by_handle(&self, handle: SaHandle) -> Option<&Sa> {
        self.get(handle.id).filter(|sa| sa.serial == handle.serial)
    }

    /// Removes an SA that has reached a hard limit; what there is to tell.
    pub(crate) fn expire(&mut self, handle: SaHandle) -> Option<SaExpire> {
        self.by_handle(handle)?;
        Some(self.delete(handle.id)?.expire(true))
    }

    /// Every SA, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (SaId, &Sa)> {
        self.by_age
            .values()
            .filter_map(|&id| Some((id, self.get(id)?)))
    }

    /// How many SAs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    /// Sizes of the hash tables, as Linux would have them.
    #[must_use]
    pub fn hash_info(&self) -> SadHinfo {
        SadHinfo {
            sadhcnt: self.buckets.len(),
            sadhmcnt: buckets::MOST_BUCKETS,
        }
    }

    fn is_full(&self) -> bool {
        self.len() >= self.limits.max_sas
    }

    /// Puts an SA into the slab, the order and the indices (`__xfrm_state_insert`, but for timers).
    fn link(&mut self, sa: Box<Sa>) -> SaId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.touch(place);
        self.link_at(place, sa)
    }

    /// The same, at a place that is free.
    fn link_at(&mut self, place: u32, mut sa: Box<Sa>) -> SaId {
        let id = SaId(place);
        sa.serial = self.next_serial;
        let is_mobility = matches!(sa.id.proto, IPPROTO_DSTOPTS | IPPROTO_ROUTING);
        sa.traffic
            .set_notes_last_use(self.profile.tells_last_use || is_mobility);
        self.next_serial += 1;
        self.choices.change(&sa);
        self.by_age.insert(sa.serial, id);
        let hash = buckets::hash_by_addresses(sa.id.daddr, sa.saddr, sa.reqid, sa.family);
        self.buckets.insert(place, hash, self.by_age.len());
        sa.traffic.set_rank(self.buckets.rank(place));
        let keys = Keys::of(&sa);
        if let Some(slot) = self.slots.get_mut(place as usize) {
            *slot = Some(sa);
        }
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_source
            .insert(hash_of(hasher, &keys.source), place, |p| {
                holds_at(slots, p, |sa| SourceKey::of(sa) == keys.source)
            });
        self.by_template
            .insert(hash_of(hasher, &keys.template), place, |p| {
                holds_at(slots, p, |sa| TemplateKey::of(sa) == keys.template)
            });
        if let Some(key) = keys.larval {
            self.larval.insert(hash_of(hasher, &key), place, |p| {
                holds_at(slots, p, |sa| LarvalKey::of(sa) == Some(key))
            });
        }
        if let Some(key) = keys.larval_seq {
            self.larval_by_seq
                .insert(hash_of(hasher, &key), place, |p| {
                    holds_at(slots, p, |sa| larval_seq(sa) == Some(key))
                });
        }
        self.link_spi(id);
        id
    }

    /// Puts an SA that has an SPI into the indices by SPI.
    fn link_spi(&mut self, id: SaId) {
        let Some(key) = self.get(id).and_then(SpiKey::of) else {
            return;
        };
        let slots = &self.slots;
        self.by_spi.insert(hash_of(&self.hasher, &key), id.0, |p| {
            holds_at(slots, p, |sa| SpiKey::of(sa) == Some(key))
        });
        let alone = key.alone();
        self.by_spi_alone
            .insert(hash_of(&self.hasher, &alone), id.0, |p| {
                holds_at(slots, p, |sa| SpiAlone::of(sa) == alone)
            });
    }

    /// Takes a larval SA that is to get an SPI out of the index of those that have none.
    fn unindex_larval(&mut self, id: SaId) -> Option<&mut Sa> {
        if let Some(key) = LarvalKey::of(self.get(id)?) {
            self.larval.remove(hash_of(&self.hasher, &key), id.0);
        }
        self.get_mut(id)
    }

    /// The reverse of [`Sad::link`] and of arming its timer.
    fn unlink(&mut self, id: SaId) -> Option<Box<Sa>> {
        self.disarm(id);
        let keys = Keys::of(self.get(id)?);
        let hasher = &self.hasher;
        self.by_source.remove(hash_of(hasher, &keys.source), id.0);
        self.by_template
            .remove(hash_of(hasher, &keys.template), id.0);
        if let Some(key) = keys.larval {
            self.larval.remove(hash_of(hasher, &key), id.0);
        }
        if let Some(key) = keys.larval_seq {
            self.larval_by_seq.remove(hash_of(hasher, &key), id.0);
        }
        if let Some(key) = keys.spi {
            self.by_spi.remove(hash_of(hasher, &key), id.0);
            let alone = key.alone();
            self.by_spi_alone.remove(hash_of(hasher, &alone), id.0);
        }
        self.buckets.remove(id.0);
        let mut sa = self.slots.get_mut(id.0 as usize)?.take()?;
        sa.traffic.take_back();
        self.by_age.remove(&sa.serial);
        self.choices.change(&sa);
        self.free.push(id.0);
        self.touch(id.0);
        Some(sa)
    }
}

/// What the indices know an SA by. Addresses are cut to what the family uses.
struct Keys {
    spi: Option<SpiKey>,
    source: SourceKey,
    template: TemplateKey,
    larval: Option<LarvalKey>,
    larval_seq: Option<u32>,
}

/// `state_byspi`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SpiKey {
    daddr: Address,
    spi: u32,
    proto: u8,
    family: u16,
}

/// An SPI whatever the destination: newer releases give each out once per protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SpiAlone {
    spi: u32,
    proto: u8,
}

/// `state_bysrc`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SourceKey {
    daddr: Address,
    saddr: Address,
    proto: u8,
    family: u16,
}

/// `state_bydst`, with mode and protocol, which every search of it compares.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct TemplateKey {
    source: SourceKey,
    reqid: u32,
    mode: u8,
}

/// Larval SAs without SPI, as `__find_acq_core` searches them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LarvalKey {
    template: TemplateKey,
    pcpu: u32,
}

impl Keys {
    fn of(sa: &Sa) -> Self {
        Self {
            spi: SpiKey::of(sa),
            source: SourceKey::of(sa),
            template: TemplateKey::of(sa),
            larval: LarvalKey::of(sa),
            larval_seq: larval_seq(sa),
        }
    }
}

impl SpiKey {
    fn of(sa: &Sa) -> Option<Self> {
        let spi = sa.id.spi.get();
        (spi != 0).then_some(Self {
            daddr: sa.id.daddr.for_family(sa.family),
            spi,
            proto: sa.id.proto,
            family: sa.family,
        })
    }
}

impl SpiKey {
    const fn alone(&self) -> SpiAlone {
        SpiAlone {
            spi: self.spi,
            proto: self.proto,
        }
    }
}

impl SpiAlone {
    const fn of(sa: &Sa) -> Self {
        Self {
            spi: sa.id.spi.get(),
            proto: sa.id.proto,
        }
    }
}

impl SourceKey {
    fn of(sa: &Sa) -> Self {
        Self {
            daddr: sa.id.daddr.for_family(sa.family),
            saddr: sa.saddr.for_family(sa.family),
            proto: sa.id.proto,
            family: sa.family,
        }
    }
}

impl TemplateKey {
    fn of(sa: &Sa) -> Self {
        Self {
            source: SourceKey::of(sa),
            reqid: sa.reqid,
            mode: sa.mode,
        }
    }
}

impl LarvalKey {
    fn of(sa: &Sa) -> Option<Self> {
        (sa.state == Lifecycle::Larval && sa.id.spi.get() == 0).then(|| Self {
            template: TemplateKey::of(sa),
            pcpu: sa.pcpu,
        })
    }
}

/// Number of the acquire that a larval SA waits for (`state_byseq`).
fn larval_seq(sa: &Sa) -> Option<u32> {
    (sa.state == Lifecycle::Larval && sa.seq != 0).then_some(sa.seq)
}

/// Whether `holds` of the SA at a place, if there is one.
fn holds_at(slots: &[Option<Box<Sa>>], place: u32, holds: impl FnOnce(&Sa) -> bool) -> bool {
    slots
        .get(place as usize)
        .and_then(Option::as_deref)
        .is_some_and(holds)
}

#[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
fn hash_of<K: std::hash::Hash>(hasher: &Hasher, key: &K) -> u32 {
    hasher.hash_one(key) as u32
}
