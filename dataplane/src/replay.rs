//! Sequence numbers as packets meet them: counting up on the way out, the
//! replay window on the way in.
//!
//! Source: `net/xfrm/xfrm_replay.c`. Three kinds of window, chosen when the SA
//! is made: the 32-bit one of the SA itself, a bitmap of up to 4,096 bits
//! (REPLAY_ESN_VAL without the ESN flag), and the same with 64-bit numbers.
//! A packet is checked before its crypto, checked again after it (others may
//! have come through in the meantime), then marked as seen. An SA keeps its
//! window behind a lock ([`crate::sad::Sa::window`]) and its output number in
//! an atomic that [`Numbers`] bounds; messages read from these and write to them.
//!
//! QUIRK: window_of_zero_checks_nothing. Nor does it follow the numbers.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::transform::Sequence;

/// Why a number is refused; each has its own statistic in the SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Number 0 (`XfrmInStateSeqError` alone).
    Zero,
    /// Below the window, or its high half is no longer what it was (`stats.replay_window`).
    Window,
    /// Seen before (`stats.replay`).
    Replay,
}

/// Which numbers have come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayWindow {
    /// `props.replay_window` of at most 32, and `x->replay`.
    Legacy {
        /// Bits in use.
        window: u8,
        /// The highest number.
        seq: u32,
        /// Seen numbers; bit 0 is the newest.
        bitmap: u32,
    },
    /// `x->replay_esn` without the ESN flag.
    Bitmap(Box<Ring>),
    /// With it.
    Esn(Box<Ring>),
}

/// `struct xfrm_replay_state_esn`: the bit of number `n` is `(n - 1) % window`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The highest number.
    pub seq: u32,
    /// Its high half.
    pub seq_hi: u32,
    /// What a client gave as high half of the output number, which has none without ESN: kept
    /// and told. With ESN the SA's [`Numbers`] have it.
    pub idle_oseq_hi: u32,
    /// Bits in use.
    pub window: u32,
    /// Seen numbers.
    pub bitmap: Box<[u32]>,
}

impl Ring {
    /// The window, never more than there are bits.
    fn bits(&self) -> u32 {
        let bits = u32::try_from(self.bitmap.len() * 32).unwrap_or(u32::MAX);
        self.window.min(bits)
    }

    /// Word and bit of an index below the window.
    fn bit(index: u32) -> (usize, u32) {
        let word = usize::try_from(index / 32).unwrap_or(usize::MAX);
        (word, 1 << (index % 32))
    }

    fn set(&mut self, index: u32) {
        let (word, bit) = Self::bit(index);
        if let Some(word) = self.bitmap.get_mut(word) {
            *word |= bit;
        }
    }

    fn clear(&mut self, index: u32) {
        let (word, bit) = Self::bit(index);
        if let Some(word) = self.bitmap.get_mut(word) {
            *word &= !bit;
        }
    }

    /// The index of the number `back` before the newest, `back` below the window.
    fn index(&self, back: u32) -> u32 {
        let window = self.bits().max(1);
        let newest = self.seq.wrapping_sub(1) % window;
        (newest + window - back % window) % window
    }

    fn seen(&self, back: u32) -> bool {
        let (word, bit) = Self::bit(self.index(back));
        self.bitmap.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Moves the window up by `ahead`, which makes `low` the newest, and marks it.
    ///
    /// QUIRK: first_packet_of_an_odd_window_may_come_twice. The bit is counted from the old
    /// newest number, and before the first packet that is -1 modulo 2^32: unless the window
    /// divides 2^32, the bit is not the one that the next check looks at.
    fn slide(&mut self, low: u32, ahead: u32) {
        let window = self.bits();
        let newest = self.index(0);
        if ahead < window {
            for step in 1..ahead {
                self.clear((newest + step) % window);
            }
        } else {
            let words = usize::try_from(window.div_ceil(32)).unwrap_or(0);
            self.bitmap
                .iter_mut()
                .take(words)
                .for_each(|word| *word = 0);
        }
        self.set(newest.wrapping_add(ahead) % window);
        self.seq = low;
    }

    /// The lowest number in the window, modulo 2^32.
    fn bottom(&self) -> u32 {
        self.seq.wrapping_sub(self.bits()).wrapping_add(1)
    }

    /// Whether the window lies within one range of low halves.
    fn in_one_subspace(&self) -> bool {
        self.seq >= self.bits().wrapping_sub(1)
    }

    /// The high half that a low half must have come with (`xfrm_replay_seqhi`).
    fn infer_high(&self, low: u32) -> u32 {
        let high = self.seq_hi;
        match (self.in_one_subspace(), low < self.bottom()) {
            (true, true) => high.wrapping_add(1),
            (false, false) => high.wrapping_sub(1),
            _ => high,
        }
    }
}

impl ReplayWindow {
    /// The number that a packet carries in full; the high half is 0 without ESN.
    #[must_use]
    pub fn infer(&self, low: u32) -> Sequence {
        match self {
            Self::Esn(ring) => Sequence::new(ring.infer_high(low), low),
            Self::Legacy { .. } | Self::Bitmap(_) => Sequence::new(0, low),
        }
    }

    /// The highest number and, of a window of 32 bits, what of it was seen, in one word.
    pub(crate) fn top(&self) -> u64 {
        match self {
            Self::Legacy { seq, bitmap, .. } => u64::from(*seq) << 32 | u64::from(*bitmap),
            Self::Bitmap(ring) | Self::Esn(ring) => Sequence::new(ring.seq_hi, ring.seq).0,
        }
    }

    /// The bitmap beside it, two words in one.
    pub(crate) fn bits(&self) -> impl Iterator<Item = u64> + '_ {
        let bitmap = match self {
            Self::Legacy { .. } => &[],
            Self::Bitmap(ring) | Self::Esn(ring) => &*ring.bitmap,
        };
        let word = |pair: &[u32], at| u64::from(pair.get(at).copied().unwrap_or(0));
        bitmap
            .chunks(2)
            .map(move |pair| word(pair, 1) << 32 | word(pair, 0))
    }

    /// The reverse of [`ReplayWindow::top`] and [`ReplayWindow::bits`].
    pub(crate) fn recall(&mut self, top: u64, mut bits: impl Iterator<Item = u64>) {
        match self {
            Self::Legacy { seq, bitmap, .. } => {
                (*seq, *bitmap) = (Sequence(top).high(), Sequence(top).low());
            }
            Self::Bitmap(ring) | Self::Esn(ring) => {
                (ring.seq_hi, ring.seq) = (Sequence(top).high(), Sequence(top).low());
                for pair in ring.bitmap.chunks_mut(2) {
                    let both = Sequence(bits.next().unwrap_or(0));
                    for (word, value) in pair.iter_mut().zip([both.low(), both.high()]) {
                        *word = value;
                    }
                }
            }
        }
    }

    /// Whether it looks at numbers at all.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Self::Legacy { window, .. } => *window != 0,
            Self::Bitmap(ring) | Self::Esn(ring) => ring.bits() != 0,
        }
    }

    /// The highest number so far, if any low half above its own is a newer number with the same high
    /// half. `None` says nothing.
    #[must_use]
    #[inline]
    pub(crate) fn newest(&self) -> Option<Sequence> {
        match self {
            Self::Legacy { window, seq, .. } => (*window != 0).then_some(Sequence::new(0, *seq)),
            Self::Bitmap(ring) => (ring.bits() != 0).then_some(Sequence::new(0, ring.seq)),
            Self::Esn(ring) => {
                let is_plain = ring.bits() != 0 && ring.in_one_subspace();
                is_plain.then_some(Sequence::new(ring.seq_hi, ring.seq))
            }
        }
    }

    /// Whether a number may still come (`xfrm_replay_check`).
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, low: u32) -> Result<(), Refusal> {
        match self {
            Self::Legacy { window: 0, .. } => Ok(()),
            Self::Legacy {
                window,
                seq,
                bitmap,
            } => {
                if low == 0 {
                    return Err(Refusal::Zero);
                }
                if low > *seq {
                    return Ok(());
                }
                let back = *seq - low;
                if back >= u32::from(*window) {
                    return Err(Refusal::Window);
                }
                let seen = bitmap.unbounded_shr(back) & 1 != 0;
                if seen { Err(Refusal::Replay) } else { Ok(()) }
            }
            Self::Bitmap(ring) => {
                if ring.bits() == 0 {
                    return Ok(());
                }
                if low == 0 {
                    return Err(Refusal::Zero);
                }
                if low > ring.seq {
                    return Ok(());
                }
                look_back(ring, ring.seq - low)
            }
            Self::Esn(ring) => {
                let window = ring.bits();
                if window == 0 {
                    return Ok(());
                }
                let top = ring.seq;
                if low == 0 && ring.seq_hi == 0 && top < window - 1 {
                    return Err(Refusal::Zero);
                }
                let bottom = ring.bottom();
                let newer = if ring.in_one_subspace() {
                    low > top || low < bottom
                } else {
                    low > top && low < bottom
                };
                if newer {
                    return Ok(());
                }
                look_back(ring, top.wrapping_sub(low))
            }
        }
    }

    /// The check after crypto: that, and the high half is what the crypto used
    /// (`xfrm_replay_recheck`).
    ///
    /// # Errors
    /// Why not.
    pub fn recheck(&self, sequence: Sequence) -> Result<(), Refusal> {
        if self.infer(sequence.low()) != sequence {
            return Err(Refusal::Window);
        }
        self.check(sequence.low())
    }

    /// Marks a number that passed (`xfrm_replay_advance`).
    pub fn advance(&mut self, low: u32) {
        match self {
            Self::Legacy { window: 0, .. } => {}
            Self::Legacy {
                window,
                seq,
                bitmap,
            } => {
                if low > *seq {
                    let ahead = low - *seq;
                    *bitmap = if ahead < u32::from(*window) {
                        bitmap.unbounded_shl(ahead) | 1
                    } else {
                        1
                    };
                    *seq = low;
                } else {
                    *bitmap |= 1u32.unbounded_shl(*seq - low);
                }
            }
            Self::Bitmap(ring) => {
                if ring.bits() == 0 {
                    return;
                }
                match low.checked_sub(ring.seq) {
                    None | Some(0) => ring.set(ring.index(ring.seq - low)),
                    Some(ahead) => ring.slide(low, ahead),
                }
            }
            Self::Esn(ring) => {
                if ring.bits() == 0 {
                    return;
                }
                let top = ring.seq;
                let wraps = ring.infer_high(low).wrapping_sub(ring.seq_hi);
                match wraps.cast_signed() {
                    0 if low > top => ring.slide(low, low - top),
                    1.. => {
                        ring.slide(low, low.wrapping_sub(top));
                        ring.seq_hi = ring.seq_hi.wrapping_add(1);
                    }
                    _ => ring.set(ring.index(top.wrapping_sub(low))),
                }
            }
        }
    }
}

/// Where numbers are counted without looking at the end: more than all workers together can take
/// between looking and counting.
const NEAR_END: u64 = 1 << 24;

/// How far the number that an SA sent last may go; the number itself is the SA's
/// ([`crate::sad::traffic::Traffic`]).
///
/// Without ESN the low half is `oseq`, and the high half makes IVs differ: it
/// goes up when the low half wraps (`XFRM_SA_XFLAG_OSEQ_MAY_WRAP`) or is set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// They end where the low half does.
    pub bounded: bool,
}

impl Numbers {
    /// Of an SA; `may_wrap` is `XFRM_SA_XFLAG_OSEQ_MAY_WRAP`, which ESN does not ask.
    #[must_use]
    pub const fn of(esn: bool, may_wrap: bool) -> Self {
        Self {
            bounded: !esn && !may_wrap,
        }
    }

    /// Nothing beyond this is sent.
    const fn end(self, last: u64) -> u64 {
        if self.bounded {
            last | 0xffff_ffff
        } else {
            u64::MAX
        }
    }

    /// Whether there is no number left.
    #[must_use]
    pub const fn are_used_up(self, last: Sequence) -> bool {
        last.0 >= self.end(last.0)
    }

    /// Whether there are as many left after `last` as anybody takes at once.
    #[inline]
    pub(crate) const fn are_plenty(self, last: u64) -> bool {
        last < self.end(last).saturating_sub(NEAR_END)
    }

    /// Takes `count` numbers and gives the first (`xfrm_replay_overflow`); `None`, and none
    /// taken, when there are not as many left.
    #[inline]
    pub fn take(self, sent: &AtomicU64, count: u64) -> Option<Sequence> {
        if self.are_plenty(sent.load(Ordering::Relaxed)) {
            return Some(Sequence(sent.fetch_add(count, Ordering::Relaxed) + 1));
        }
        self.take_near_end(sent, count)
    }

    #[cold]
    fn take_near_end(self, sent: &AtomicU64, count: u64) -> Option<Sequence> {
        let next = |last: u64| {
            last.checked_add(count)
                .filter(|next| *next <= self.end(last))
        };
        let last = sent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        Some(Sequence(last.ok()? + 1))
    }

    /// The number that follows `last` when `oseq` and, with ESN, `oseq_hi` are set.
    #[must_use]
    pub fn set(last: Sequence, low: u32, high: u32, esn: bool) -> Sequence {
        let high = match esn {
            true => high,
            false => last.high().wrapping_add(u32::from(low < last.low())),
        };
        Sequence::new(high, low)
    }
}

fn look_back(ring: &Ring, back: u32) -> Result<(), Refusal> {
    if back >= ring.bits() {
        Err(Refusal::Window)
    } else if ring.seen(back) {
        Err(Refusal::Replay)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn legacy(window: u32) -> ReplayWindow {
        ReplayWindow::Legacy {
            window: u8::try_from(window).unwrap(),
            seq: 0,
            bitmap: 0,
        }
    }

    fn ring(window: u32, start: u64) -> Box<Ring> {
        let start = Sequence(start);
        Box::new(Ring {
            seq: start.low(),
            seq_hi: start.high(),
            idle_oseq_hi: 0,
            window,
            bitmap: vec![0; usize::try_from(window.div_ceil(32)).unwrap()].into(),
        })
    }

    #[test]
    fn a_window_is_recalled() {
        let mut odd = ring(96, 0x5_0000_0000);
        odd.bitmap = [1, 2, 3].into();
        let legacy = ReplayWindow::Legacy {
            window: 32,
            seq: 0xffff_fff0,
            bitmap: 0xdead_beef,
        };
        for window in [
            legacy,
            ReplayWindow::Bitmap(odd.clone()),
            ReplayWindow::Esn(odd),
        ] {
            let mut empty = window.clone();
            empty.recall(0, std::iter::empty());
            assert_ne!(empty, window);
            empty.recall(window.top(), window.bits());
            assert_eq!(empty, window);
        }
    }

    fn receive(replay: &mut ReplayWindow, low: u32) -> Result<Sequence, Refusal> {
        replay.check(low)?;
        let sequence = replay.infer(low);
        replay.recheck(sequence)?;
        replay.advance(low);
        Ok(sequence)
    }

    /// What a window means: a set of numbers and the highest of them.
    struct Model {
        window: u64,
        top: u64,
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn receive(&mut self, number: u64) -> bool {
            let fits = number != 0 && number + self.window > self.top && self.seen.insert(number);
            self.top = if fits { self.top.max(number) } else { self.top };
            fits
        }
    }

    #[test]
    fn window_of_zero_checks_nothing() {
        for mut replay in [
            legacy(0),
            ReplayWindow::Bitmap(ring(0, 0)),
            ReplayWindow::Esn(ring(0, 0)),
        ] {
            let before = replay.clone();
            for low in [0, 5, 5, 1, u32::MAX] {
                assert_eq!(replay.check(low), Ok(()));
                replay.advance(low);
            }
            assert_eq!(replay, before);
        }
    }

    #[test]
    fn zero_is_never_a_number() {
        assert_eq!(legacy(32).check(0), Err(Refusal::Zero));
        assert_eq!(
            ReplayWindow::Bitmap(ring(64, 9)).check(0),
            Err(Refusal::Zero)
        );
        assert_eq!(ReplayWindow::Esn(ring(64, 0)).check(0), Err(Refusal::Zero));
        // With a high half, a low half of 0 is one.
        let mut esn = ReplayWindow::Esn(ring(64, 0xffff_ffff));
        assert_eq!(receive(&mut esn, 0), Ok(Sequence(0x1_0000_0000)));
        assert_eq!(receive(&mut esn, 0), Err(Refusal::Replay));
    }

    #[test]
    fn old_and_seen_are_told_apart() {
        for mut replay in [
            legacy(32),
            ReplayWindow::Bitmap(ring(32, 0)),
            ReplayWindow::Esn(ring(32, 0)),
        ] {
            assert!(receive(&mut replay, 100).is_ok());
            assert_eq!(replay.check(100), Err(Refusal::Replay));
            assert_eq!(replay.check(69), Ok(()));
            match replay {
                // A number below an ESN window is one of the next high half.
                ReplayWindow::Esn(_) => assert_eq!(replay.check(68), Ok(())),
                _ => assert_eq!(replay.check(68), Err(Refusal::Window)),
            }
        }
    }

    #[test]
    fn first_packet_of_an_odd_window_may_come_twice() {
        let mut replay = ReplayWindow::Bitmap(ring(100, 0));
        assert!(receive(&mut replay, 1).is_ok());
        assert!(receive(&mut replay, 1).is_ok());
        assert_eq!(receive(&mut replay, 1), Err(Refusal::Replay));
        assert!(receive(&mut replay, 2).is_ok());
        assert_eq!(receive(&mut replay, 2), Err(Refusal::Replay));
    }

    #[test]
    fn a_forged_jump_is_caught_by_the_second_check() {
        let mut esn = ReplayWindow::Esn(ring(64, 0xffff_fff0));
        let sequence = esn.infer(0xffff_fff5);
        for low in [0xffff_ffff, 0x40] {
            assert!(receive(&mut esn, low).is_ok());
        }
        assert_eq!(esn.recheck(sequence), Err(Refusal::Window));
    }

    #[test]
    fn output_numbers_end() {
        let begin =
            |last: Sequence, esn, may_wrap| (Numbers::of(esn, may_wrap), AtomicU64::new(last.0));
        let (numbers, sent) = begin(Sequence(0xffff_fffd), false, false);
        assert_eq!(numbers.take(&sent, 3), None);
        assert_eq!(numbers.take(&sent, 2), Some(Sequence(0xffff_fffe)));
        assert_eq!(numbers.take(&sent, 1), None);
        assert_eq!(sent.into_inner(), 0xffff_ffff);
        let (wraps, sent) = begin(Sequence(0xffff_ffff), false, true);
        assert_eq!(wraps.take(&sent, 1).map(Sequence::low), Some(0));
        let (esn, sent) = begin(Sequence::new(7, u32::MAX), true, false);
        assert_eq!(esn.take(&sent, 1), Some(Sequence(8 << 32)));
        let (last, sent) = begin(Sequence(u64::MAX - 1), true, true);
        assert_eq!(last.take(&sent, 1), Some(Sequence(u64::MAX)));
        assert_eq!(last.take(&sent, 1), None);
    }

    /// What makes IVs is not used twice when a client sets the number back.
    #[test]
    fn a_number_set_back_has_another_high_half() {
        let set = |last, low| Numbers::set(last, low, 0, false);
        let up = set(Sequence(100), 120);
        assert_eq!(up, Sequence(120));
        let back = set(Sequence(121), 3);
        assert_eq!(back, Sequence::new(1, 3));
        let end = set(back, u32::MAX);
        assert!(Numbers::of(false, false).are_used_up(end));
    }

    /// Numbers that wander about `start`, with replays and jumps.
    fn walk(start: u64) -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![8 => -40i64..40, 2 => -5000i64..5000];
        proptest::collection::vec(step, 1..200).prop_map(move |steps| {
            let mut at = start;
            let mut numbers = Vec::new();
            for step in steps {
                at = at.saturating_add_signed(step).max(1);
                numbers.push(at);
            }
            numbers
        })
    }

    proptest! {
        #[test]
        fn a_legacy_window_is_a_set(window in 1u32..=32, numbers in walk(50)) {
            let mut replay = legacy(window);
            let mut model = Model { window: u64::from(window), top: 0, seen: BTreeSet::new() };
            for number in numbers {
                let low = u32::try_from(number).unwrap();
                prop_assert_eq!(receive(&mut replay, low).is_ok(), model.receive(number));
            }
        }

        #[test]
        fn a_bitmap_is_a_set(window in 0u32..=12, numbers in walk(50)) {
            let window = 1 << window;
            let mut replay = ReplayWindow::Bitmap(ring(window, 0));
            let mut model = Model { window: u64::from(window), top: 0, seen: BTreeSet::new() };
            for number in numbers {
                let low = u32::try_from(number).unwrap();
                prop_assert_eq!(receive(&mut replay, low).is_ok(), model.receive(number));
            }
        }

        /// Numbers below the window stand for the next high half: the model gets those as such.
        #[test]
        fn an_esn_window_is_a_set(window in 5u32..=12, (start, numbers) in prop_oneof![Just(50u64), Just(0xffff_ffe0), Just(0x3_0000_0004), Just(0x7_8000_0000)].prop_flat_map(|start| (Just(start), walk(start)))) {
            let window = 1 << window;
            let mut replay = ReplayWindow::Esn(ring(window, start));
            let mut model = Model { window: u64::from(window), top: start, seen: BTreeSet::new() };
            for number in numbers {
                let in_reach = number + u64::from(window) > model.top && number < model.top + (1 << 31);
                if !in_reach {
                    continue;
                }
                let sequence = receive(&mut replay, Sequence(number).low());
                prop_assert_eq!(sequence.is_ok(), model.receive(number), "{:#x} at top {:#x}", number, model.top);
                if let Ok(sequence) = sequence {
                    prop_assert_eq!(sequence.0, number);
                }
            }
        }

        #[test]
        fn any_state_is_survived(window: u32, words in 0usize..130, seq: u32, seq_hi: u32, low: u32) {
            for make in [ReplayWindow::Bitmap, ReplayWindow::Esn] {
                let mut replay = make(Box::new(Ring { seq, seq_hi, idle_oseq_hi: 0, window, bitmap: vec![u32::MAX; words].into() }));
                let _ = receive(&mut replay, low);
                replay.advance(low);
            }
        }
    }
}
