//! Who watches a packet on its way in: nobody, or somebody who wants to know
//! what would become of it.

use crate::path::check::Question;
use crate::path::sec_path::SecPath;
use crate::sad::Sa;

/// Watches a packet, and may keep it from leaving traces.
pub(super) trait Witness {
    /// Whether what happens is counted, and changes anything.
    const COUNTS: bool;

    /// The packet meets an SA; the SA to take in its place, if one is to be.
    fn meet(&mut self, sa: &Sa) -> Option<Box<Sa>>;

    /// The packet is about to be held against policies.
    fn check(&mut self, question: &Question<'_>, path: &SecPath);
}

/// The packet is real.
pub(super) struct Nobody;

impl Witness for Nobody {
    const COUNTS: bool = true;

    #[inline]
    fn meet(&mut self, _sa: &Sa) -> Option<Box<Sa>> {
        None
    }

    #[inline]
    fn check(&mut self, _question: &Question<'_>, _path: &SecPath) {}
}
