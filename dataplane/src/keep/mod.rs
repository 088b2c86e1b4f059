//! State that outlives the process: what a restarted engine goes on from.
//!
//! Everything that requests and timers change is written to a [`Shelf`] as an
//! *image*, one for each SA, policy and namespace, whenever it has changed
//! ([`Netns::keep`]). What packets change is not written but happens there: SAs, policies'
//! last uses and the MIB count in *words* that the shelf lends. So packets cost
//! the same as without, and nothing that they have done is ever forgotten:
//!
//! * a sequence number is taken in a word before its packet is sealed, and the random
//!   numbers that make IVs lie beside it: no number and no IV is given twice;
//! * a number that has come in is marked in words before its packet is handed on
//!   (`Traffic::keep_window`): nothing is accepted twice.
//!
//! What is not kept: packets that wait (for SAs, in IPTFS), what key managers were told
//! of sequence numbers (one aevent may come too many), key schedules and flows, which are made anew.
//!
//! An image is a few dozen bytes beside keys, of this very version; a shelf that
//! is handed to another version must refuse ([`FORMAT`]).

mod codec;

use zeroize::Zeroize;

pub use codec::{Reader, Writer};

use crate::mib::Counter;
use crate::netns::{Limits, Netns};
use crate::profile::Profile;
use crate::spd;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sysctl::Sysctls;

/// Changes with every change of what an image is.
pub const FORMAT: u32 = 2;

/// What an image is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// What belongs to no namespace; the emulator's.
    Machine,
    /// A namespace, and its MIB.
    Netns,
    /// An SA.
    Sa,
    /// A policy.
    Policy,
    /// Whatever the driver knows of a namespace.
    Driver,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Machine,
        Self::Netns,
        Self::Sa,
        Self::Policy,
        Self::Driver,
    ];
}

/// What an image is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// The namespace.
    pub netns: u32,
    /// What of it.
    pub kind: Kind,
    /// Which one.
    pub place: u32,
}

/// Where state is put.
///
/// What is put and removed counts from [`Shelf::commit`] on, all at once.
pub trait Shelf: Send {
    /// Words of 0 for a record that is put next, which lets go of those it had. `None` when there
    /// is no memory: then the record is not kept.
    fn lend(&mut self, record: Record, words: usize) -> Option<&'static [AtomicU64]>;

    /// Puts a record, or its next image; its words stay.
    fn put(&mut self, record: Record, image: &[u8]);

    /// Takes a record away, with its words; nobody counts in them any more.
    fn remove(&mut self, record: Record);

    /// Everything since the last time counts now.
    fn commit(&mut self);
}

/// A record as it is found.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// What it is of.
    pub record: Record,
    /// Its image.
    pub image: &'a [u8],
    /// Its words.
    pub words: &'static [AtomicU64],
}

/// A record makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable(pub Record);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Record { netns, kind, place } = self.0;
        write!(f, "{kind:?} {place} of namespace {netns} is damaged")
    }
}

impl std::error::Error for Unreadable {}

/// What a namespace has put on the shelf.
#[derive(Default)]
pub(crate) struct Keeping {
    image: Vec<u8>,
    /// The image of the namespace itself.
    own: Vec<u8>,
    /// What it was made of.
    of: Option<Own>,
}

/// What the image of a namespace is made of.
type Own = (Sysctls, spd::keep::Own, u32);

/// Room for almost any image, so that none leaves parts of keys behind when it grows.
const LONGEST_IMAGE: usize = 16 << 10;

impl Netns {
    /// Puts what has changed on the shelf, all of it the first time. Packets must not pass meanwhile.
    pub fn keep(&mut self, netns: u32, shelf: &mut dyn Shelf) {
        let Keeping { mut image, own, of } = std::mem::take(&mut self.keeping);
        image.reserve(LONGEST_IMAGE);
        self.sad.keep(netns, shelf, &mut image);
        self.spd.keep(netns, shelf, &mut image);
        image.clear();
        let spd = self.spd.own();
        let now_of = self.sad.own().map(|sad| (self.sysctls, spd, sad));
        if now_of.is_some() && now_of == of {
            self.keeping = Keeping { image, own, of };
            return;
        }
        let mut out = Writer::new(&mut image);
        out.bytes(self.profile.name.as_bytes());
        let sysctls = self.sysctls;
        for value in [
            sysctls.aevent_etime,
            sysctls.aevent_rseqth,
            sysctls.larval_drop.cast_unsigned(),
            sysctls.acq_expires,
        ] {
            out.int(value.into());
        }
        self.sad.write(&mut out);
        spd.write(&mut out);
        let record = Record {
            netns,
            kind: Kind::Netns,
            place: 0,
        };
        if own.is_empty()
            && let Some(words) = shelf.lend(record, Counter::ALL.len())
        {
            self.mib.move_to(words);
        }
        if image != own {
            shelf.put(record, &image);
        }
        self.keeping = Keeping {
            own: image,
            image: own,
            of: now_of,
        };
    }

    /// Takes everything from the shelf.
    pub fn forget(&mut self, netns: u32, shelf: &mut dyn Shelf) {
        self.sad.forget(netns, shelf);
        self.spd.forget(netns, shelf);
        shelf.remove(Record {
            netns,
            kind: Kind::Netns,
            place: 0,
        });
    }

    /// A namespace made of what [`Netns::keep`] put, be it as another release: what only one of both
    /// keeps is found anew, or not looked at.
    ///
    /// # Errors
    /// The first record that cannot be.
    pub fn recall(
        profile: &'static Profile,
        limits: Limits,
        records: &[Kept<'_>],
    ) -> Result<Self, Unreadable> {
        let mut netns = Self::new(profile, limits);
        let of = |kind| records.iter().filter(move |kept| kept.record.kind == kind);
        let mut release = profile;
        for kept in of(Kind::Netns) {
            release = netns.recall_own(kept).ok_or(Unreadable(kept.record))?;
        }
        netns.sad.recall(of(Kind::Sa))?;
        netns.spd.recall(of(Kind::Policy), release)?;
        Ok(netns)
    }

    /// Takes what belongs to the namespace itself; the release that put it.
    fn recall_own(&mut self, kept: &Kept<'_>) -> Option<&'static Profile> {
        let mut from = Reader::new(kept.image);
        let release = Profile::by_name(std::str::from_utf8(from.bytes()?).ok()?)?;
        self.sysctls.aevent_etime = from.u32()?;
        self.sysctls.aevent_rseqth = from.u32()?;
        self.sysctls.larval_drop = from.u32()?.cast_signed();
        self.sysctls.acq_expires = from.u32()?;
        self.sad.read(&mut from)?;
        self.spd.read(&mut from, release)?;
        from.end()?;
        if kept.words.len() != Counter::ALL.len() {
            return None;
        }
        self.mib.recall(kept.words);
        self.keeping.own = kept.image.to_vec();
        Some(release)
    }
}

/// Puts one record with an image that may hold keys.
pub(crate) fn put(
    shelf: &mut dyn Shelf,
    record: Record,
    image: &mut Vec<u8>,
    write: impl FnOnce(&mut Writer<'_>),
) {
    write(&mut Writer::new(image));
    shelf.put(record, image);
    image.as_mut_slice().zeroize();
    image.clear();
}

/// Copies words to others.
pub(crate) fn copy(from: &[AtomicU64], to: &[AtomicU64]) {
    for (to, from) in to.iter().zip(from) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
