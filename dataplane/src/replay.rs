//! Sequence numbers as packets meet them: counting up on the way out, the
//! replay window on the way in.
//!
//! Source: `net/xfrm/xfrm_replay.c`. Three kinds of state, chosen when the SA
//! is made: the 32-bit window of the SA itself, a bitmap of up to 4,096 bits
//! (REPLAY_ESN_VAL without the ESN flag), and the same with 64-bit numbers.
//! A packet is checked before its crypto, checked again after it (others may
//! have come through in the meantime), then marked as seen.
//!
//! QUIRK: window_of_zero_checks_nothing. Nor does it follow the numbers.

use xfrm_proto::uapi::{ReplayState, ReplayStateEsn};

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

/// The numbers of one SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// `props.replay_window` of at most 32, and `x->replay`.
    Legacy {
        /// Bits in use.
        window: u32,
        /// Numbers and bitmap; bit 0 is the newest.
        state: ReplayState,
    },
    /// `x->replay_esn` without the ESN flag.
    Bitmap(Ring),
    /// With it.
    Esn(Ring),
}

/// `struct xfrm_replay_state_esn`: the bit of number `n` is `(n - 1) % window`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Numbers and window.
    pub head: ReplayStateEsn,
    /// Seen numbers.
    pub bitmap: Box<[u32]>,
}

impl Ring {
    /// The window, never more than there are bits.
    fn window(&self) -> u32 {
        let bits = u32::try_from(self.bitmap.len() * 32).unwrap_or(u32::MAX);
        self.head.replay_window.min(bits)
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
        let window = self.window().max(1);
        let newest = self.head.seq.wrapping_sub(1) % window;
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
        let window = self.window();
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
        self.head.seq = low;
    }

    /// The lowest number in the window, modulo 2^32.
    fn bottom(&self) -> u32 {
        self.head.seq.wrapping_sub(self.window()).wrapping_add(1)
    }

    /// Whether the window lies within one range of low halves.
    fn in_one_subspace(&self) -> bool {
        self.head.seq >= self.window().wrapping_sub(1)
    }

    /// The high half that a low half must have come with (`xfrm_replay_seqhi`).
    fn infer_high(&self, low: u32) -> u32 {
        let high = self.head.seq_hi;
        match (self.in_one_subspace(), low < self.bottom()) {
            (true, true) => high.wrapping_add(1),
            (false, false) => high.wrapping_sub(1),
            _ => high,
        }
    }
}

impl Replay {
    /// The number that a packet carries in full; the high half is 0 without ESN.
    #[must_use]
    pub fn infer(&self, low: u32) -> Sequence {
        match self {
            Self::Esn(ring) => Sequence::new(ring.infer_high(low), low),
            Self::Legacy { .. } | Self::Bitmap(_) => Sequence::new(0, low),
        }
    }

    /// Whether a number may still come (`xfrm_replay_check`).
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, low: u32) -> Result<(), Refusal> {
        match self {
            Self::Legacy { window: 0, .. } => Ok(()),
            Self::Legacy { window, state } => {
                if low == 0 {
                    return Err(Refusal::Zero);
                }
                if low > state.seq {
                    return Ok(());
                }
                let back = state.seq - low;
                if back >= *window {
                    return Err(Refusal::Window);
                }
                let seen = state.bitmap.unbounded_shr(back) & 1 != 0;
                if seen { Err(Refusal::Replay) } else { Ok(()) }
            }
            Self::Bitmap(ring) => {
                if ring.window() == 0 {
                    return Ok(());
                }
                if low == 0 {
                    return Err(Refusal::Zero);
                }
                if low > ring.head.seq {
                    return Ok(());
                }
                look_back(ring, ring.head.seq - low)
            }
            Self::Esn(ring) => {
                let window = ring.window();
                if window == 0 {
                    return Ok(());
                }
                let top = ring.head.seq;
                if low == 0 && ring.head.seq_hi == 0 && top < window - 1 {
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
            Self::Legacy { window, state } => {
                if low > state.seq {
                    let ahead = low - state.seq;
                    state.bitmap = if ahead < *window {
                        state.bitmap.unbounded_shl(ahead) | 1
                    } else {
                        1
                    };
                    state.seq = low;
                } else {
                    state.bitmap |= 1u32.unbounded_shl(state.seq - low);
                }
            }
            Self::Bitmap(ring) => {
                if ring.window() == 0 {
                    return;
                }
                match low.checked_sub(ring.head.seq) {
                    None | Some(0) => ring.set(ring.index(ring.head.seq - low)),
                    Some(ahead) => ring.slide(low, ahead),
                }
            }
            Self::Esn(ring) => {
                if ring.window() == 0 {
                    return;
                }
                let top = ring.head.seq;
                let wraps = ring.infer_high(low).wrapping_sub(ring.head.seq_hi);
                match wraps.cast_signed() {
                    0 if low > top => ring.slide(low, low - top),
                    1.. => {
                        ring.slide(low, low.wrapping_sub(top));
                        ring.head.seq_hi = ring.head.seq_hi.wrapping_add(1);
                    }
                    _ => ring.set(ring.index(top.wrapping_sub(low))),
                }
            }
        }
    }

    /// The next number to send (`xfrm_replay_overflow`); `None` when they are
    /// used up, and the state is as before.
    ///
    /// `may_wrap` is `XFRM_SA_XFLAG_OSEQ_MAY_WRAP`, which ESN does not ask.
    pub fn next_output(&mut self, may_wrap: bool) -> Option<Sequence> {
        match self {
            Self::Legacy {
                state: ReplayState { oseq, .. },
                ..
            }
            | Self::Bitmap(Ring {
                head: ReplayStateEsn { oseq, .. },
                ..
            }) => {
                let next = oseq.wrapping_add(1);
                if next == 0 && !may_wrap {
                    return None;
                }
                *oseq = next;
                Some(Sequence::new(0, next))
            }
            Self::Esn(ring) => {
                let next = Sequence::new(ring.head.oseq_hi, ring.head.oseq)
                    .0
                    .checked_add(1)?;
                let next = Sequence(next);
                (ring.head.oseq_hi, ring.head.oseq) = (next.high(), next.low());
                Some(next)
            }
        }
    }
}

fn look_back(ring: &Ring, back: u32) -> Result<(), Refusal> {
    if back >= ring.window() {
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

    fn legacy(window: u32) -> Replay {
        Replay::Legacy {
            window,
            state: ReplayState::default(),
        }
    }

    fn ring(window: u32, start: u64) -> Ring {
        let start = Sequence(start);
        Ring {
            head: ReplayStateEsn {
                bmp_len: window.div_ceil(32),
                seq: start.low(),
                seq_hi: start.high(),
                replay_window: window,
                ..ReplayStateEsn::default()
            },
            bitmap: vec![0; usize::try_from(window.div_ceil(32)).unwrap()].into(),
        }
    }

    fn receive(replay: &mut Replay, low: u32) -> Result<Sequence, Refusal> {
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
            Replay::Bitmap(ring(0, 0)),
            Replay::Esn(ring(0, 0)),
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
        assert_eq!(Replay::Bitmap(ring(64, 9)).check(0), Err(Refusal::Zero));
        assert_eq!(Replay::Esn(ring(64, 0)).check(0), Err(Refusal::Zero));
        // With a high half, a low half of 0 is one.
        let mut esn = Replay::Esn(ring(64, 0xffff_ffff));
        assert_eq!(receive(&mut esn, 0), Ok(Sequence(0x1_0000_0000)));
        assert_eq!(receive(&mut esn, 0), Err(Refusal::Replay));
    }

    #[test]
    fn old_and_seen_are_told_apart() {
        for mut replay in [
            legacy(32),
            Replay::Bitmap(ring(32, 0)),
            Replay::Esn(ring(32, 0)),
        ] {
            assert!(receive(&mut replay, 100).is_ok());
            assert_eq!(replay.check(100), Err(Refusal::Replay));
            assert_eq!(replay.check(69), Ok(()));
            match replay {
                // A number below an ESN window is one of the next high half.
                Replay::Esn(_) => assert_eq!(replay.check(68), Ok(())),
                _ => assert_eq!(replay.check(68), Err(Refusal::Window)),
            }
        }
    }

    #[test]
    fn first_packet_of_an_odd_window_may_come_twice() {
        let mut replay = Replay::Bitmap(ring(100, 0));
        assert!(receive(&mut replay, 1).is_ok());
        assert!(receive(&mut replay, 1).is_ok());
        assert_eq!(receive(&mut replay, 1), Err(Refusal::Replay));
        assert!(receive(&mut replay, 2).is_ok());
        assert_eq!(receive(&mut replay, 2), Err(Refusal::Replay));
    }

    #[test]
    fn a_forged_jump_is_caught_by_the_second_check() {
        let mut esn = Replay::Esn(ring(64, 0xffff_fff0));
        let sequence = esn.infer(0xffff_fff5);
        for low in [0xffff_ffff, 0x40] {
            assert!(receive(&mut esn, low).is_ok());
        }
        assert_eq!(esn.recheck(sequence), Err(Refusal::Window));
    }

    #[test]
    fn output_numbers_end() {
        let mut replay = Replay::Legacy {
            window: 0,
            state: ReplayState {
                oseq: u32::MAX - 1,
                ..ReplayState::default()
            },
        };
        assert_eq!(replay.next_output(false), Some(Sequence(0xffff_ffff)));
        assert_eq!(replay.next_output(false), None);
        assert_eq!(replay.next_output(false), None);
        assert_eq!(replay.next_output(true), Some(Sequence(0)));
        let mut esn = ring(32, 0);
        (esn.head.oseq, esn.head.oseq_hi) = (u32::MAX, 7);
        let mut esn = Replay::Esn(esn);
        assert_eq!(esn.next_output(false), Some(Sequence(8 << 32)));
        let mut last = ring(32, 0);
        (last.head.oseq, last.head.oseq_hi) = (u32::MAX, u32::MAX);
        let mut last = Replay::Esn(last);
        assert_eq!(last.next_output(true), None);
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
            let mut replay = Replay::Bitmap(ring(window, 0));
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
            let mut replay = Replay::Esn(ring(window, start));
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
            let head = ReplayStateEsn { replay_window: window, seq, seq_hi, ..ReplayStateEsn::default() };
            for make in [Replay::Bitmap, Replay::Esn] {
                let mut replay = make(Ring { head, bitmap: vec![u32::MAX; words].into() });
                let _ = receive(&mut replay, low);
                replay.advance(low);
            }
        }
    }
}
