//! The replay window of an SA: behind a lock, and in front of it a word that lets packets in order pass.
//!
//! A packet looks at the window twice, before its crypto and after it. Most are newer than all that
//! have come, and for these the first look needs no lock: the word says from where on
//! numbers are new. It is written by whoever has held the lock, so that it says no less
//! than a look a moment ago would have; the second look decides.

use std::ops::{Deref, DerefMut};

use crate::replay::ReplayWindow;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::transform::Sequence;

/// A window and its lock.
#[derive(Debug)]
pub(super) struct Window {
    /// [`ReplayWindow::newest`], or [`NOTHING_IS_NEW`].
    newest: AtomicU64,
    locked: Mutex<ReplayWindow>,
}

/// No low half is above this one.
const NOTHING_IS_NEW: u64 = u32::MAX as u64;

impl Window {
    pub(super) fn new(window: ReplayWindow) -> Self {
        Self {
            newest: AtomicU64::new(word_of(&window)),
            locked: Mutex::new(window),
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> WindowGuard<'_> {
        WindowGuard {
            newest: &self.newest,
            window: self.locked.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The whole number of a packet that is newer than all that have come, found without the lock;
    /// `None` says nothing.
    #[inline]
    pub(super) fn newer(&self, low: u32) -> Option<Sequence> {
        let newest = Sequence(self.newest.load(Ordering::Relaxed));
        (low > newest.low()).then(|| Sequence::new(newest.high(), low))
    }
}

fn word_of(window: &ReplayWindow) -> u64 {
    window.newest().map_or(NOTHING_IS_NEW, |newest| newest.0)
}

/// The window of an SA, locked.
#[derive(Debug)]
pub struct WindowGuard<'a> {
    newest: &'a AtomicU64,
    window: MutexGuard<'a, ReplayWindow>,
}

impl Deref for WindowGuard<'_> {
    type Target = ReplayWindow;

    #[inline]
    fn deref(&self) -> &ReplayWindow {
        &self.window
    }
}

impl DerefMut for WindowGuard<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut ReplayWindow {
        &mut self.window
    }
}

impl Drop for WindowGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.newest.store(word_of(&self.window), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Ring;
    use proptest::prelude::*;

    fn ring(window: u32) -> Box<Ring> {
        Box::new(Ring {
            window,
            bitmap: vec![0; 4].into(),
            ..Ring::default()
        })
    }

    fn any_window() -> impl Strategy<Value = ReplayWindow> {
        (0..3, 0u32..=128).prop_map(|(kind, bits)| match kind {
            0 => ReplayWindow::Legacy {
                window: u8::try_from(bits / 4).unwrap(),
                seq: 0,
                bitmap: 0,
            },
            1 => ReplayWindow::Bitmap(ring(bits)),
            _ => ReplayWindow::Esn(ring(bits)),
        })
    }

    proptest! {
        /// Whatever has come: what passes without the lock would have passed with it, as the same number.
        #[test]
        fn what_is_newer_would_pass_the_window(
            start in any_window(),
            steps in proptest::collection::vec(prop_oneof![0u32..300, any::<u32>()], 1..60)
        ) {
            let window = Window::new(start);
            let mut low = 0u32;
            for step in steps {
                low = low.wrapping_add(step);
                if let Some(sequence) = window.newer(low) {
                    let locked = window.lock();
                    prop_assert_eq!(locked.check(low), Ok(()));
                    prop_assert_eq!(locked.infer(low), sequence);
                }
                let mut locked = window.lock();
                if locked.check(low).is_ok() {
                    locked.advance(low);
                }
                drop(locked);
                prop_assert_eq!(window.newer(low), None);
            }
        }
    }
}
