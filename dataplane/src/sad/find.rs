//! Looking SAs up.
//!
//! QUIRK: marks_match_one_way. A lookup brings a mark value; an SA is found
//! when the value, cut by the *SA's* mask, is the SA's value. Which SA wins
//! among several is decided by their order in the chain.
//!
//! Source: `net/xfrm/xfrm_state.c __xfrm_state_lookup,
//! __xfrm_state_lookup_byaddr, __xfrm_state_locate, __find_acq_core,
//! __xfrm_find_acq_byseq`.

use xfrm_proto::uapi::Address;

use super::sa::{has_spi, mark_key};
use super::{
    LarvalKey, Lifecycle, Sa, SaId, Sad, SourceKey, SpiKey, TemplateKey, hash_of, holds_at,
    larval_seq,
};

/// What a larval SA is searched by.
#[derive(Clone, Copy, Debug)]
pub(super) struct LarvalQuery {
    pub(super) mark: u32,
    pub(super) family: u16,
    pub(super) mode: u8,
    pub(super) reqid: u32,
    pub(super) pcpu: u32,
    pub(super) proto: u8,
    pub(super) daddr: Address,
    pub(super) saddr: Address,
}

impl Sad {
    /// The SA of an SPI (`xfrm_state_lookup`). SAs with SPI 0 are never found.
    #[must_use]
    pub fn lookup(
        &self,
        mark: u32,
        daddr: Address,
        spi: u32,
        proto: u8,
        family: u16,
    ) -> Option<SaId> {
        let key = SpiKey {
            daddr: daddr.for_family(family),
            spi,
            proto,
            family,
        };
        let same = |p| holds_at(&self.slots, p, |sa| SpiKey::of(sa) == Some(key));
        self.by_spi
            .chain(hash_of(&self.hasher, &key), same)
            .map(SaId)
            .find(|&id| self.get(id).is_some_and(|sa| sa.matches_mark(mark)))
    }

    /// The SA between two addresses (`xfrm_state_lookup_byaddr`).
    #[must_use]
    pub fn lookup_by_source(
        &self,
        mark: u32,
        daddr: Address,
        saddr: Address,
        proto: u8,
        family: u16,
    ) -> Option<SaId> {
        let key = SourceKey {
            daddr: daddr.for_family(family),
            saddr: saddr.for_family(family),
            proto,
            family,
        };
        self.source_chain(key)
            .find(|&id| self.get(id).is_some_and(|sa| sa.matches_mark(mark)))
    }

    /// The SA in the SAD that has the identity of `sa` (`__xfrm_state_locate`).
    pub(super) fn locate(&self, sa: &Sa) -> Option<SaId> {
        let mark = mark_key(sa.mark);
        if has_spi(sa.id.proto) {
            let spi = sa.id.spi.get();
            self.lookup(mark, sa.id.daddr, spi, sa.id.proto, sa.family)
        } else {
            self.lookup_by_source(mark, sa.id.daddr, sa.saddr, sa.id.proto, sa.family)
        }
    }

    pub(super) fn source_chain(&self, key: SourceKey) -> impl Iterator<Item = SaId> + '_ {
        let same = move |p| holds_at(&self.slots, p, |sa| SourceKey::of(sa) == key);
        self.by_source
            .chain(hash_of(&self.hasher, &key), same)
            .map(SaId)
    }

    pub(super) fn template_chain(&self, key: TemplateKey) -> impl Iterator<Item = SaId> + '_ {
        let same = move |p| holds_at(&self.slots, p, |sa| TemplateKey::of(sa) == key);
        self.by_template
            .chain(hash_of(&self.hasher, &key), same)
            .map(SaId)
    }

    /// A larval SA without SPI (`__find_acq_core`).
    pub(super) fn find_larval(&self, query: &LarvalQuery) -> Option<SaId> {
        let source = SourceKey {
            daddr: query.daddr.for_family(query.family),
            saddr: query.saddr.for_family(query.family),
            proto: query.proto,
            family: query.family,
        };
        let template = TemplateKey {
            source,
            reqid: query.reqid,
            mode: query.mode,
        };
        let key = LarvalKey {
            template,
            pcpu: query.pcpu,
        };
        let same = |p| holds_at(&self.slots, p, |sa| LarvalKey::of(sa) == Some(key));
        self.larval
            .chain(hash_of(&self.hasher, &key), same)
            .map(SaId)
            .find(|&id| self.get(id).is_some_and(|sa| sa.matches_mark(query.mark)))
    }

    /// A larval SA by the number of its acquire (`__xfrm_find_acq_byseq`).
    pub(super) fn find_larval_by_seq(&self, mark: u32, seq: u32, pcpu: u32) -> Option<SaId> {
        let same = |p| holds_at(&self.slots, p, |sa| larval_seq(sa) == Some(seq));
        self.larval_by_seq
            .chain(hash_of(&self.hasher, &seq), same)
            .map(SaId)
            .find(|&id| {
                self.get(id).is_some_and(|sa| {
                    sa.matches_mark(mark) && sa.pcpu == pcpu && sa.state == Lifecycle::Larval
                })
            })
    }
}
