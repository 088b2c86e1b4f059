//! Outer packets back in the order of their sequence numbers.
//!
//! Source: `net/xfrm/xfrm_iptfs.c iptfs_input_reorder, __reorder_*, iptfs_set_window_drop_times`.
//! What comes too early waits until what is missing has come, has been missed for `drop_time`, or
//! is so far behind the newest that the window no longer holds it.
//!
//! Linux keeps an array of as many slots as the window has; here the slots are those in use, so
//! an SA whose packets come in order holds nothing.

use std::collections::VecDeque;

use super::KEPT_BYTES;
use crate::drop_reason::DropReason;
use crate::time::BootNanos;

/// Empty buffers that are kept for later.
const SPARE_BUFFERS: usize = 4;

/// A number behind the one that is wanted: slot 0 is the next.
struct Slot {
    payload: Option<Vec<u8>>,
    /// When what is missing in front of it is given up.
    drop_time: BootNanos,
}

/// The window of an SA.
pub struct Window {
    /// Packets that may wait.
    packets: usize,
    drop_nanos: u64,
    /// The number that is to come next, once one has come.
    want: Option<u64>,
    /// The last one is always occupied.
    slots: VecDeque<Slot>,
    spare: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window")
            .field("packets", &self.packets)
            .field("want", &self.want)
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl Window {
    /// A window that nothing has come to. With no packets it lets everything through as it comes.
    #[must_use]
    pub fn new(packets: u16, drop_nanos: u64) -> Self {
        Self {
            packets: usize::from(packets),
            drop_nanos,
            want: None,
            slots: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Bytes that wait.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let payloads = self.slots.iter().flat_map(|slot| &slot.payload);
        payloads.map(Vec::len).sum()
    }

    /// When [`Window::expire`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootNanos> {
        self.slots.front().map(|slot| slot.drop_time)
    }

    /// Takes a payload and hands on what is in order now, which may be none, this or more.
    ///
    /// # Errors
    /// One that comes too late, or again.
    pub fn take(
        &mut self,
        payload: &mut [u8],
        sequence: u64,
        now: BootNanos,
        hand_on: &mut impl FnMut(&mut [u8], u64),
    ) -> Result<(), DropReason> {
        if self.packets == 0 {
            hand_on(payload, sequence);
            return Ok(());
        }
        let want = *self.want.get_or_insert(sequence);
        let distance = sequence.checked_sub(want).ok_or(DropReason::IptfsLate)?;
        let Some(index) = distance.checked_sub(1) else {
            hand_on(payload, sequence);
            self.advance(sequence, hand_on);
            return Ok(());
        };
        match usize::try_from(index) {
            Ok(index) if index < self.packets => self.save(payload, index, now),
            _ => {
                let beyond = distance - self.packets as u64;
                let arrived = self.shift(beyond, want, hand_on);
                let saved = self.save(payload, self.packets - 1, now);
                if let Some(mut payload) = arrived {
                    let want = want.saturating_add(beyond);
                    hand_on(&mut payload, want);
                    self.put_aside(payload);
                    self.advance(want, hand_on);
                }
                saved
            }
        }
    }

    /// Gives up what has been missing too long, and hands on what waited for it.
    pub fn expire(&mut self, now: BootNanos, hand_on: &mut impl FnMut(&mut [u8], u64)) {
        while self.poll_timeout().is_some_and(|time| time <= now) {
            let Some(missing) = self.want else { return };
            self.advance(missing, hand_on);
        }
    }

    /// Number `sequence` has come or will not: hands on those that follow it without a gap.
    fn advance(&mut self, sequence: u64, hand_on: &mut impl FnMut(&mut [u8], u64)) {
        let mut want = sequence.saturating_add(1);
        while let Some(slot) = self.slots.pop_front() {
            let Some(mut payload) = slot.payload else {
                break;
            };
            hand_on(&mut payload, want);
            self.put_aside(payload);
            want = want.saturating_add(1);
        }
        self.want = Some(want);
    }

    /// Makes the window begin `beyond` numbers later, and gives the payload that is wanted then,
    /// if it has come.
    fn shift(
        &mut self,
        beyond: u64,
        want: u64,
        hand_on: &mut impl FnMut(&mut [u8], u64),
    ) -> Option<Vec<u8>> {
        self.want = Some(want.saturating_add(beyond));
        for number in 1..beyond {
            let slot = self.slots.pop_front()?;
            if let Some(mut payload) = slot.payload {
                hand_on(&mut payload, want.saturating_add(number));
                self.put_aside(payload);
            }
        }
        self.slots.pop_front()?.payload
    }

    fn save(&mut self, payload: &[u8], index: usize, now: BootNanos) -> Result<(), DropReason> {
        if self
            .slots
            .get(index)
            .is_some_and(|slot| slot.payload.is_some())
        {
            return Err(DropReason::IptfsDuplicate);
        }
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(payload);
        if let Some(slot) = self.slots.get_mut(index) {
            // Something newer waits already, and what is missing in front of that too.
            slot.payload = Some(copy);
            return Ok(());
        }
        let drop_time = now.plus_nanos(self.drop_nanos);
        while self.slots.len() < index {
            self.slots.push_back(Slot {
                payload: None,
                drop_time,
            });
        }
        self.slots.push_back(Slot {
            payload: Some(copy),
            drop_time,
        });
        Ok(())
    }

    fn put_aside(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS && buffer.capacity() <= KEPT_BYTES {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DROP: u64 = 1000;

    fn run(window: u16, arrivals: &[(u64, u64)]) -> (Vec<u64>, Window) {
        let mut window = Window::new(window, DROP);
        let mut out = Vec::new();
        for &(sequence, at) in arrivals {
            let mut payload = sequence.to_be_bytes();
            let mut hand_on = |payload: &mut [u8], number: u64| {
                assert_eq!(payload, number.to_be_bytes());
                out.push(number);
            };
            window.expire(BootNanos(at), &mut hand_on);
            let _ = window.take(&mut payload, sequence, BootNanos(at), &mut hand_on);
        }
        window.expire(BootNanos(u64::MAX), &mut |_, number| out.push(number));
        (out, window)
    }

    proptest! {
        /// Whatever comes leaves at most once and in order; what is displaced by less than the
        /// window, and soon enough, leaves.
        #[test]
        fn nothing_leaves_twice_or_out_of_order(
            window in 1u16..12,
            arrivals in proptest::collection::vec((0u64..40, 0u64..700), 1..80),
        ) {
            let mut at = 0;
            let arrivals: Vec<_> = arrivals.into_iter().map(|(sequence, later)| {
                at += later;
                (sequence, at)
            }).collect();
            let (out, window) = run(window, &arrivals);
            prop_assert!(out.is_sorted_by(|a, b| a < b), "{out:?}");
            prop_assert!(window.slots.is_empty());
            prop_assert!(window.spare.len() <= SPARE_BUFFERS);
        }

        #[test]
        fn what_the_window_holds_is_not_lost(
            window in 1usize..12,
            swaps in proptest::collection::vec((0usize..60, 0usize..12), 0..30),
        ) {
            let mut order: Vec<u64> = (1..60).collect();
            for (at, by) in swaps {
                let to = at + by % (window + 1);
                // Each number moves once at most, so none is displaced by more than the window.
                if to < order.len() && (at..=to).all(|i| order[i] == i as u64 + 1) && at != 0 {
                    order.swap(at, to);
                }
            }
            let arrivals: Vec<_> = order.iter().map(|&sequence| (sequence, 0)).collect();
            let (out, _) = run(u16::try_from(window).unwrap(), &arrivals);
            prop_assert_eq!(out, (1..60).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn several_gaps_are_given_up_one_after_the_other() {
        // Linux loses 7 here: docs/divergences.md.
        let (out, _) = run(
            10,
            &[(1, 0), (3, 0), (5, 500), (4, 1100), (6, 1400), (7, 1600)],
        );
        assert_eq!(out, [1, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_jump_over_all_numbers_is_no_work() {
        let (out, _) = run(
            u16::MAX,
            &[(1, 0), (u64::MAX - 1, 0), (u64::MAX, 0), (5, 0)],
        );
        assert_eq!(out, [1, u64::MAX - 1, u64::MAX]);
    }

    #[test]
    fn without_a_window_all_pass() {
        let (out, _) = run(0, &[(5, 0), (3, 0), (5, 0)]);
        assert_eq!(out, [5, 3, 5]);
    }
}
