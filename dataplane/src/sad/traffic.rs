//! What packets change of an SA.
//!
//! Packets pass under a shared borrow of the namespace, so everything here is
//! atomic. What Linux changes under `x->lock` is changed field by field: one worker
//! sees exactly Linux's order, several on the same SA may together pass a limit by as
//! many packets as there are workers.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_state_check_expire`, `struct xfrm_state`.

use xfrm_proto::uapi::{LifetimeCfg, LifetimeCur, Stats};

use crate::replay::{Numbers, Refusal};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::time::{BootNanos, WallSecs};
use crate::transform::Sequence;

/// Counters of one SA.
///
/// What each packet writes comes first and fills a cache line of [`super::Sa`], which begins with
/// another one of what is only read.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Traffic {
    /// The number sent last.
    numbers: Numbers,
    bytes: AtomicU64,
    /// Packets beside those that have been numbered since `origin`.
    packets: AtomicU64,
    origin: u64,
    last_used: AtomicU64,
    use_time: AtomicU64,
    add_time: u64,
    /// Port and second of the last MAPPING where these are limited (`x->new_mapping`), 0 before it.
    mapping: AtomicU64,
    replay_window: AtomicU32,
    replay: AtomicU32,
    integrity_failed: AtomicU32,
    /// A soft limit has been told (`x->km.dying`).
    dying: AtomicBool,
    /// A hard limit in bytes or packets is reached (`XFRM_STATE_EXPIRED`).
    expired: AtomicBool,
    /// The release notes the last use.
    pub(super) notes_last_use: bool,
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
        Self {
            add_time,
            ..Self::default()
        }
    }

    /// What a clone of the SA begins with.
    pub(super) fn of_clone(&self, esn: bool, may_wrap: bool) -> Self {
        let mut clone = Self {
            numbers: Numbers::new(self.last_sent(), esn, may_wrap),
            ..Self::default()
        };
        clone.set_lifetime(self.lifetime());
        clone.last_used = AtomicU64::new(self.last_used());
        clone
    }

    /// Bytes, packets and times so far.
    #[must_use]
    pub fn lifetime(&self) -> LifetimeCur {
        LifetimeCur {
            bytes: self.bytes.load(Ordering::Relaxed),
            packets: self.packets(),
            add_time: self.add_time,
            use_time: self.use_time.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set_lifetime(&mut self, lifetime: LifetimeCur) {
        *self.bytes.get_mut() = lifetime.bytes;
        *self.packets.get_mut() = lifetime.packets;
        self.origin = self.numbers.last().0;
        self.add_time = lifetime.add_time;
        *self.use_time.get_mut() = lifetime.use_time;
    }

    #[inline]
    fn packets(&self) -> u64 {
        let numbered = self.numbers.last().0.wrapping_sub(self.origin);
        self.packets.load(Ordering::Relaxed).wrapping_add(numbered)
    }

    /// The number sent last.
    #[must_use]
    pub fn last_sent(&self) -> Sequence {
        self.numbers.last()
    }

    /// Has numbers count on from another one.
    pub(super) fn set_numbers(&mut self, change: impl FnOnce(&mut Numbers)) {
        *self.packets.get_mut() = self.packets();
        change(&mut self.numbers);
        self.origin = self.numbers.last().0;
    }

    /// Whether there is no number left.
    #[must_use]
    pub fn has_no_number(&self) -> bool {
        self.numbers.are_used_up()
    }

    /// Numbers and counts packets that leave, and gives the first number; `None`, and nothing
    /// counted, when there are not as many left.
    #[inline]
    pub fn number(&self, packets: u64, bytes: u64, now: WallSecs) -> Option<Sequence> {
        let first = self.numbers.take(packets)?;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.note_use(now);
        Some(first)
    }

    #[inline]
    fn note_use(&self, now: WallSecs) {
        if self.notes_last_use && self.last_used() != now.0 {
            self.last_used.store(now.0, Ordering::Relaxed);
        }
    }

    pub(super) const fn set_add_time(&mut self, secs: u64) {
        self.add_time = secs;
    }

    /// Wall-clock second of addition.
    #[must_use]
    pub const fn add_time(&self) -> u64 {
        self.add_time
    }

    /// Wall-clock second of the first packet, 0 before it.
    #[must_use]
    pub fn use_time(&self) -> u64 {
        self.use_time.load(Ordering::Relaxed)
    }

    /// Errors so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            replay_window: self.replay_window.load(Ordering::Relaxed),
            replay: self.replay.load(Ordering::Relaxed),
            integrity_failed: self.integrity_failed.load(Ordering::Relaxed),
        }
    }

    /// Wall-clock second of the last packet, 0 before the first.
    #[must_use]
    pub fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Whether a soft limit has been told.
    #[must_use]
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Relaxed)
    }

    pub(super) fn set_dying(&mut self, dying: bool) {
        *self.dying.get_mut() = dying;
    }

    pub(super) fn set_expired(&mut self, expired: bool) {
        *self.expired.get_mut() = expired;
    }

    /// Whether a hard limit in bytes or packets is reached.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Whether a hard limit in bytes or packets leaves nothing.
    #[inline]
    #[must_use]
    pub fn is_used_up(&self, lft: &LifetimeCfg) -> bool {
        self.bytes.load(Ordering::Relaxed) >= lft.hard_byte_limit
            || self.packets() >= lft.hard_packet_limit
    }

    /// Marks as used, and holds the counters against the limits (`xfrm_state_check_expire`).
    ///
    /// `Soft` is said once, to whoever finds it first; so is `Hard`.
    ///
    /// QUIRK: limits_are_tested_before_counting.
    #[inline]
    pub fn check(&self, lft: &LifetimeCfg, now: WallSecs) -> Limit {
        if self.use_time.load(Ordering::Relaxed) == 0 {
            self.use_time.store(now.0, Ordering::Relaxed);
        }
        if self.is_used_up(lft) {
            self.expired.store(true, Ordering::Relaxed);
            return Limit::Hard;
        }
        let soft = self.bytes.load(Ordering::Relaxed) >= lft.soft_byte_limit
            || self.packets() >= lft.soft_packet_limit;
        if soft && !self.is_dying() && !self.dying.swap(true, Ordering::Relaxed) {
            return Limit::Soft;
        }
        Limit::Within
    }

    /// Marks as used, if all limits are so far away that none is reached by as many packets of
    /// as many bytes in all; otherwise they are to be checked one by one.
    #[inline]
    pub fn admits_all(&self, lft: &LifetimeCfg, packets: u64, bytes: u64, now: WallSecs) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let packets = self.packets().saturating_add(packets);
        let all = self.numbers.are_plenty()
            && bytes < lft.hard_byte_limit.min(lft.soft_byte_limit)
            && packets < lft.hard_packet_limit.min(lft.soft_packet_limit);
        if all && self.use_time.load(Ordering::Relaxed) == 0 {
            self.use_time.store(now.0, Ordering::Relaxed);
        }
        all
    }

    /// Counts packets that passed and have no number of this SA's.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64, now: WallSecs) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.note_use(now);
    }

    /// Whether a MAPPING from `port` is to be told, where one of the same port is told every
    /// `rate_secs` (`km_new_mapping`).
    pub fn mapping_is_due(&self, now: BootNanos, port: u16, rate_secs: u32) -> bool {
        let secs = now.0 / 1_000_000_000;
        let told = self.mapping.load(Ordering::Relaxed);
        let (told_secs, told_port) = (told >> 16, told & 0xffff);
        let same = told != 0 && told_port == u64::from(port);
        if same && secs.saturating_sub(told_secs) <= u64::from(rate_secs) {
            return false;
        }
        let told = secs << 16 | u64::from(port);
        self.mapping.store(told, Ordering::Relaxed);
        true
    }

    /// Counts a packet that the replay window refused.
    pub fn count_refusal(&self, refusal: Refusal) {
        match refusal {
            Refusal::Zero => {}
            Refusal::Window => {
                self.replay_window.fetch_add(1, Ordering::Relaxed);
            }
            Refusal::Replay => {
                self.replay.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Counts a packet whose ICV was wrong.
    pub fn count_integrity_failure(&self) {
        self.integrity_failed.fetch_add(1, Ordering::Relaxed);
    }
}
