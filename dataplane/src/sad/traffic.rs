//! What packets change of an SA.
//!
//! Packets pass under a shared borrow of the namespace, so everything here is
//! atomic. What Linux changes under `x->lock` is changed field by field: one worker
//! sees exactly Linux's order, several on the same SA may together pass a limit by as
//! many packets as there are workers.
//!
//! All of it is words, which may lie in memory that outlives the process
//! ([`crate::keep`]): a number is taken there before its packet is sealed, and marked there
//! as seen before its packet is handed on, so that whoever goes on from there
//! neither gives a number twice nor accepts one twice.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_state_check_expire`, `struct xfrm_state`.

use xfrm_proto::uapi::{LifetimeCfg, LifetimeCur, Stats};

use crate::entropy::Entropy;
use crate::keep;
use crate::replay::{Numbers, Refusal, ReplayWindow};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::{BootNanos, WallSecs};
use crate::transform::Sequence;

/// Words of an SA, its replay window's bitmap apart.
pub(crate) const WORDS: usize = OWN_WORDS + 2;
/// Of these, those that an SA has that is not kept.
const OWN_WORDS: usize = 14;

/// The number sent last.
const SENT: usize = 0;
const BYTES: usize = 1;
/// Packets beside those that have been numbered since `ORIGIN`.
const PACKETS: usize = 2;
const ORIGIN: usize = 3;
const LAST_USED: usize = 4;
/// [`DYING`] and the others.
const FLAGS: usize = 5;
const USE_TIME: usize = 6;
const ADD_TIME: usize = 7;
/// Port and second of the last MAPPING where these are limited (`x->new_mapping`), 0 before it.
const MAPPING: usize = 8;
const REFUSED_WINDOW: usize = 9;
const REFUSED_REPLAY: usize = 10;
const INTEGRITY_FAILED: usize = 11;
/// What makes its IVs, 0 before the first packet.
const IV: usize = 12;
/// [`ReplayWindow::top`].
const WINDOW: usize = 14;
/// Where it stands in the chains of Linux's hash tables.
const RANK: usize = 15;

/// A soft limit has been told (`x->km.dying`).
const DYING: u64 = 1;
/// A hard limit in bytes or packets is reached (`XFRM_STATE_EXPIRED`).
const EXPIRED: u64 = 2;
/// [`Numbers::bounded`].
const BOUNDED: u64 = 4;
/// The release notes the last use.
const NOTES_LAST_USE: u64 = 8;

/// Counters of one SA.
///
/// What each packet writes comes first and fills a cache line of [`super::Sa`], which begins with
/// another one of what is only read.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Traffic {
    /// Where the words are instead of here, and the replay window's bitmap behind them.
    lent: Option<&'static [AtomicU64]>,
    own: [AtomicU64; OWN_WORDS],
}

/// What a packet finds an SA's limits to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Not reached.
    Within,
    /// A soft one is reached, and has not been told.
    Soft,
    /// A hard one is reached; the SA is no longer valid.
    Hard,
}

impl Traffic {
    pub(super) fn added_at(add_time: u64) -> Self {
        let traffic = Self::default();
        traffic.set(ADD_TIME, add_time);
        traffic
    }

    /// What a clone of the SA begins with.
    pub(super) fn of_clone(&self, esn: bool, may_wrap: bool) -> Self {
        let mut clone = Self::default();
        clone.set_sent(self.last_sent(), esn, may_wrap);
        clone.set_lifetime(self.lifetime());
        clone.set(LAST_USED, self.last_used());
        clone
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        self.lent.unwrap_or(&self.own)
    }

    #[inline]
    fn value(&self, at: usize) -> u64 {
        self.words()
            .get(at)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.words().get(at) {
            word.store(value, Ordering::Relaxed);
        }
    }

    #[inline]
    fn add(&self, at: usize, value: u64) {
        if let Some(word) = self.words().get(at) {
            word.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Bytes, packets and times so far.
    #[must_use]
    pub fn lifetime(&self) -> LifetimeCur {
        LifetimeCur {
            bytes: self.value(BYTES),
            packets: self.packets(),
            add_time: self.value(ADD_TIME),
            use_time: self.value(USE_TIME),
        }
    }

    pub(super) fn set_lifetime(&mut self, lifetime: LifetimeCur) {
        self.set(BYTES, lifetime.bytes);
        self.set(PACKETS, lifetime.packets);
        self.set(ORIGIN, self.last_sent().0);
        self.set(ADD_TIME, lifetime.add_time);
        self.set(USE_TIME, lifetime.use_time);
    }

    #[inline]
    fn packets(&self) -> u64 {
        let numbered = self.last_sent().0.wrapping_sub(self.value(ORIGIN));
        self.value(PACKETS).wrapping_add(numbered)
    }

    /// The number sent last.
    #[must_use]
    pub fn last_sent(&self) -> Sequence {
        Sequence(self.value(SENT))
    }

    /// Has numbers count on from another one.
    pub(super) fn set_sent(&mut self, last: Sequence, esn: bool, may_wrap: bool) {
        self.set(PACKETS, self.packets());
        self.set(ORIGIN, last.0);
        self.set(SENT, last.0);
        self.bound(esn, may_wrap);
    }

    /// Works out how far numbers go from here.
    pub(super) fn bound(&mut self, esn: bool, may_wrap: bool) {
        self.put_flag(BOUNDED, Numbers::of(esn, may_wrap).bounded);
    }

    fn put_flag(&self, flag: u64, is_set: bool) {
        let others = self.value(FLAGS) & !flag;
        self.set(FLAGS, others | if is_set { flag } else { 0 });
    }

    fn has(&self, flag: u64) -> bool {
        self.value(FLAGS) & flag != 0
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            bounded: self.has(BOUNDED),
        }
    }

    /// Whether the release notes the last use; another may have done so before.
    pub(super) fn set_notes_last_use(&mut self, notes: bool) {
        self.put_flag(NOTES_LAST_USE, notes);
        if !notes {
            self.set(LAST_USED, 0);
        }
    }

    /// Whether there is no number left.
    #[must_use]
    pub fn has_no_number(&self) -> bool {
        self.numbers().are_used_up(self.last_sent())
    }

    /// Numbers and counts packets that leave, and gives the first number; `None`, and nothing
    /// counted, when there are not as many left.
    #[inline]
    pub fn number(&self, packets: u64, bytes: u64, now: WallSecs) -> Option<Sequence> {
        let first = self.numbers().take(self.words().get(SENT)?, packets)?;
        self.add(BYTES, bytes);
        self.note_use(now);
        Some(first)
    }

    #[inline]
    fn note_use(&self, now: WallSecs) {
        if self.has(NOTES_LAST_USE) && self.last_used() != now.0 {
            self.set(LAST_USED, now.0);
        }
    }

    pub(super) fn set_add_time(&mut self, secs: u64) {
        self.set(ADD_TIME, secs);
    }

    /// Wall-clock second of addition.
    #[must_use]
    pub fn add_time(&self) -> u64 {
        self.value(ADD_TIME)
    }

    /// Wall-clock second of the first packet, 0 before it.
    #[must_use]
    pub fn use_time(&self) -> u64 {
        self.value(USE_TIME)
    }

    /// Errors so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // As the kernel's counters, which are 32 bits wide.
        let count = |at| Sequence(self.value(at)).low();
        Stats {
            replay_window: count(REFUSED_WINDOW),
            replay: count(REFUSED_REPLAY),
            integrity_failed: count(INTEGRITY_FAILED),
        }
    }

    /// Wall-clock second of the last packet, 0 before the first.
    #[must_use]
    pub fn last_used(&self) -> u64 {
        self.value(LAST_USED)
    }

    /// Whether a soft limit has been told.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.has(DYING)
    }

    pub(super) fn set_dying(&mut self, dying: bool) {
        self.put_flag(DYING, dying);
    }

    pub(super) fn set_expired(&mut self, expired: bool) {
        self.put_flag(EXPIRED, expired);
    }

    /// Whether a hard limit in bytes or packets is reached.
    #[inline]
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.has(EXPIRED)
    }

    /// Raises a flag; whether it was.
    #[cold]
    fn raise(&self, flag: u64) -> bool {
        let flags = self.words().get(FLAGS);
        flags.is_some_and(|flags| flags.fetch_or(flag, Ordering::Relaxed) & flag != 0)
    }

    /// Whether a hard limit in bytes or packets leaves nothing.
    #[inline]
    #[must_use]
    pub fn is_used_up(&self, lft: &LifetimeCfg) -> bool {
        self.value(BYTES) >= lft.hard_byte_limit || self.packets() >= lft.hard_packet_limit
    }

    /// Marks as used, and holds the counters against the limits (`xfrm_state_check_expire`).
    ///
    /// `Soft` is said once, to whoever finds it first; so is `Hard`.
    ///
    /// QUIRK: limits_are_tested_before_counting.
    #[inline]
    pub fn check(&self, lft: &LifetimeCfg, now: WallSecs) -> Limit {
        if self.use_time() == 0 {
            self.set(USE_TIME, now.0);
        }
        if self.is_used_up(lft) {
            self.raise(EXPIRED);
            return Limit::Hard;
        }
        let soft =
            self.value(BYTES) >= lft.soft_byte_limit || self.packets() >= lft.soft_packet_limit;
        if soft && !self.is_dying() && !self.raise(DYING) {
            return Limit::Soft;
        }
        Limit::Within
    }

    /// Marks as used, if all limits are so far away that none is reached by as many packets of
    /// as many bytes in all; otherwise they are to be checked one by one.
    #[inline]
    pub fn admits_all(&self, lft: &LifetimeCfg, packets: u64, bytes: u64, now: WallSecs) -> bool {
        let bytes = self.value(BYTES).saturating_add(bytes);
        let packets = self.packets().saturating_add(packets);
        let all = self.numbers().are_plenty(self.last_sent().0)
            && bytes < lft.hard_byte_limit.min(lft.soft_byte_limit)
            && packets < lft.hard_packet_limit.min(lft.soft_packet_limit);
        if all && self.use_time() == 0 {
            self.set(USE_TIME, now.0);
        }
        all
    }

    /// Counts packets that passed and have no number of this SA's.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64, now: WallSecs) {
        self.add(BYTES, bytes);
        self.add(PACKETS, packets);
        self.note_use(now);
    }

    /// Whether a MAPPING from `port` is to be told, where one of the same port is told every
    /// `rate_secs` (`km_new_mapping`).
    pub fn mapping_is_due(&self, now: BootNanos, port: u16, rate_secs: u32) -> bool {
        let secs = now.0 / 1_000_000_000;
        let told = self.value(MAPPING);
        let (told_secs, told_port) = (told >> 16, told & 0xffff);
        let same = told != 0 && told_port == u64::from(port);
        if same && secs.saturating_sub(told_secs) <= u64::from(rate_secs) {
            return false;
        }
        self.set(MAPPING, secs << 16 | u64::from(port));
        true
    }

    /// Counts a packet that the replay window refused.
    pub fn count_refusal(&self, refusal: Refusal) {
        match refusal {
            Refusal::Zero => {}
            Refusal::Window => self.add(REFUSED_WINDOW, 1),
            Refusal::Replay => self.add(REFUSED_REPLAY, 1),
        }
    }

    /// Counts a packet whose ICV was wrong.
    pub fn count_integrity_failure(&self) {
        self.add(INTEGRITY_FAILED, 1);
    }

    /// The random numbers that make its IVs: drawn once, whoever draws them.
    pub(super) fn iv_seeds<'a>(&'a self, entropy: &'a mut dyn Entropy) -> IvSeeds<'a> {
        let words = self.words().get(IV..WINDOW).unwrap_or_default();
        IvSeeds {
            entropy,
            words: words.iter(),
        }
    }

    /// Words for an SA with a window like that, where it is kept.
    pub(crate) fn words_wanted(window: &ReplayWindow) -> usize {
        WORDS + window.bits().count()
    }

    /// Goes on counting in `words`, from where it is.
    pub(crate) fn move_to(&mut self, words: &'static [AtomicU64]) {
        keep::copy(self.words(), words);
        self.lent = Some(words);
    }

    /// Goes on from what `words` say, which are as many as are wanted.
    pub(crate) fn recall(&mut self, words: &'static [AtomicU64], window: &mut ReplayWindow) {
        self.lent = Some(words);
        let bitmap = words.iter().skip(WORDS);
        let bits = bitmap.map(|word| word.load(Ordering::Relaxed));
        window.recall(self.value(WINDOW), bits);
    }

    /// Goes on counting in memory of its own.
    pub(super) fn take_back(&mut self) {
        if let Some(words) = self.lent.take() {
            keep::copy(words, &self.own);
        }
    }

    /// Whether it counts in memory of somebody else's.
    pub(crate) const fn is_kept(&self) -> bool {
        self.lent.is_some()
    }

    /// Has what is kept of the replay window follow it.
    ///
    /// The highest number goes first. Whoever goes on from there after half of this refuses what
    /// never came, but accepts nothing twice: the packet in hand has not been handed on.
    #[inline]
    pub(crate) fn keep_window(&self, window: &ReplayWindow) {
        let Some(words) = self.lent else { return };
        let [kept, _, bitmap @ ..] = words.get(WINDOW..).unwrap_or_default() else {
            return;
        };
        let put = |word: &AtomicU64, value| {
            if word.load(Ordering::Relaxed) != value {
                word.store(value, Ordering::Release);
            }
        };
        put(kept, window.top());
        for (word, value) in bitmap.iter().zip(window.bits()) {
            put(word, value);
        }
    }

    /// Where it stands in its chains.
    pub(super) fn rank(&self) -> u64 {
        self.value(RANK)
    }

    /// Notes that.
    pub(super) fn set_rank(&self, rank: u64) {
        self.set(RANK, rank);
    }
}

/// Random numbers of an SA: those drawn before, else new ones.
pub(super) struct IvSeeds<'a> {
    entropy: &'a mut dyn Entropy,
    words: std::slice::Iter<'a, AtomicU64>,
}

impl Entropy for IvSeeds<'_> {
    fn u64(&mut self) -> u64 {
        let fresh = self.entropy.u64();
        let Some(word) = self.words.next() else {
            return fresh;
        };
        // 0 stands for none.
        let fresh = fresh.max(1);
        match word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => fresh,
            Err(drawn) => drawn,
        }
    }
}
