//! The SAs that brought a packet in (`struct sec_path`).

use xfrm_proto::consts::XFRM_MAX_DEPTH;

use crate::sad::{Sa, SaHandle, Sad};

/// SAs in the order in which the packet passed them, first the outermost.
///
/// It stays with the packet when a tunnel has given back another one, and ends
/// when the packet leaves again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecPath {
    sas: [SaHandle; XFRM_MAX_DEPTH],
    len: usize,
    /// The first so many have been held against a policy already (`verified_cnt`).
    pub(super) verified: usize,
}

impl SecPath {
    /// Whether no SA brought it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many SAs brought it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Appends one; `None` when it is as long as it may be.
    pub(super) fn push(&mut self, sa: SaHandle) -> Option<()> {
        *self.sas.get_mut(self.len)? = sa;
        self.len += 1;
        Some(())
    }

    /// The SAs from the one at `first` on; one that is gone is `None`.
    pub(super) fn iter<'a>(
        &'a self,
        sad: &'a Sad,
        first: usize,
    ) -> impl DoubleEndedIterator<Item = Option<&'a Sa>> {
        let handles = self.sas.get(first..self.len).unwrap_or_default().iter();
        handles.map(|handle| sad.by_handle(*handle))
    }

    /// Numbers of the SAs, which no others ever have, then zeros.
    #[inline(always)]
    pub(super) fn serials(&self) -> [u64; XFRM_MAX_DEPTH] {
        self.sas.map(SaHandle::serial)
    }

    /// The SA that the packet passed last.
    pub(super) fn last<'a>(&self, sad: &'a Sad) -> Option<&'a Sa> {
        sad.by_handle(*self.sas.get(self.len.checked_sub(1)?)?)
    }

    /// Tells the fragments of one path from those of another; 0 for no path.
    pub(super) fn tag(&self) -> u64 {
        use std::hash::{BuildHasher, Hash};
        if self.is_empty() {
            return 0;
        }
        let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
        self.sas.hash(&mut hasher);
        std::hash::Hasher::finish(&hasher)
    }
}
