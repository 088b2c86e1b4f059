//! A policy as the database keeps it (`struct xfrm_policy`).

use std::hash::{BuildHasher, Hasher};

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, LifetimeCfg, LifetimeCur, Mark, Selector, UserPolicyInfo, UserTmpl,
};
use zerocopy::IntoBytes;

use super::flow::Flow;
use crate::security::SecurityContext;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::WallSecs;

/// What tells one policy from another: everything but what it does.
///
/// QUIRK: selector_identity_includes_padding_host_bits_and_user: selectors are
/// compared as 56 bytes, of which lookup uses fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyKey {
    /// The selector, byte for byte.
    pub selector: Selector,
    /// The mark, value and mask.
    pub mark: Mark,
    /// `XFRMA_IF_ID`.
    pub if_id: u32,
    /// `XFRM_POLICY_TYPE_*`.
    pub kind: u8,
    /// `XFRM_POLICY_IN`, `_OUT`, `_FWD`; 3 and 4 for a socket's.
    pub dir: u8,
    /// Whether it has a security context. Which one does not matter: without a policy of its
    /// own SELinux takes all for the kernel's.
    pub labelled: bool,
}

impl PolicyKey {
    pub(super) fn hash(&self) -> u32 {
        let mut hasher = hash_state().build_hasher();
        hasher.write(self.selector.as_bytes());
        hasher.write_u64(u64::from(self.mark.v) << 32 | u64::from(self.mark.m));
        hasher.write_u64(
            u64::from(self.if_id) << 24
                | u64::from(self.labelled) << 16
                | u64::from(self.kind) << 8
                | u64::from(self.dir),
        );
        (hasher.finish() >> 32) as u32
    }
}

/// The hash function of all tables here: the same in every run, so that runs repeat.
pub(super) fn hash_state() -> foldhash::fast::FixedState {
    foldhash::fast::FixedState::with_seed(0x7866_726d)
}

/// The templates of a policy: at most [`XFRM_MAX_DEPTH`]. The first lives with
/// the policy, because most have one and a request reads them together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    first: Option<UserTmpl>,
    rest: Box<[UserTmpl]>,
}

impl Templates {
    /// The templates of a request, as the kernel stores them: two holes zeroed.
    #[must_use]
    pub fn new(given: impl IntoIterator<Item = UserTmpl>) -> Self {
        let mut stored = given.into_iter().map(|tmpl| UserTmpl {
            pad0: [0; 2],
            pad1: 0,
            ..tmpl
        });
        Self {
            first: stored.next(),
            rest: stored.collect(),
        }
    }

    /// In order: innermost first on output.
    pub fn iter(&self) -> impl Iterator<Item = &UserTmpl> {
        self.first.iter().chain(&self.rest)
    }

    /// The same, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut UserTmpl> {
        self.first.iter_mut().chain(&mut self.rest)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// A security policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What identifies it.
    pub key: PolicyKey,
    /// `XFRM_POLICY_ALLOW` or `_BLOCK`.
    pub action: u8,
    /// `XFRM_POLICY_LOCALOK`, ...; any byte is kept.
    pub flags: u8,
    /// Lower numbers win.
    pub priority: u32,
    /// Number, direction in its low three bits; 0 until the database gives one.
    pub index: u32,
    /// What must be done to the packets.
    pub templates: Templates,
    /// Security context, if somebody keeps it.
    pub security: Option<SecurityContext>,
    /// Limits.
    pub lft: LifetimeCfg,
    /// Wall-clock second of addition.
    pub add_time: u64,
    /// Wall-clock second of last use.
    pub used: LastUse,
    /// Its place among the database's; the database's own.
    pub(super) place: Place,
}

/// The wall-clock second of something that packets do, 0 for never.
#[derive(Debug)]
pub struct LastUse(Word);

#[derive(Debug)]
enum Word {
    Own(AtomicU64),
    /// In memory that outlives the process.
    Lent(&'static AtomicU64),
}

impl Default for LastUse {
    fn default() -> Self {
        Self::at(0)
    }
}

impl LastUse {
    const fn at(secs: u64) -> Self {
        Self(Word::Own(AtomicU64::new(secs)))
    }

    fn word(&self) -> &AtomicU64 {
        match &self.0 {
            Word::Own(word) => word,
            Word::Lent(word) => word,
        }
    }

    /// Goes on in the first of `words`, from where it is.
    pub(super) fn move_to(&mut self, words: &'static [AtomicU64]) {
        if let [word, ..] = words {
            word.store(self.secs(), Ordering::Relaxed);
            self.0 = Word::Lent(word);
        }
    }

    /// Goes on from what the only one of `words` says.
    pub(super) fn recall(&mut self, words: &'static [AtomicU64]) -> Option<()> {
        let [word] = words else { return None };
        self.0 = Word::Lent(word);
        Some(())
    }

    /// Goes on in memory of its own.
    pub(super) fn take_back(&mut self) {
        *self = Self::at(self.secs());
    }

    /// Whether it is in memory of somebody else's.
    pub(super) const fn is_kept(&self) -> bool {
        matches!(self.0, Word::Lent(_))
    }

    /// The second.
    #[must_use]
    pub fn secs(&self) -> u64 {
        self.word().load(Ordering::Relaxed)
    }

    /// It happens now. Many packets a second write once.
    #[inline]
    pub fn note(&self, now: WallSecs) {
        if self.secs() != now.0 {
            self.word().store(now.0, Ordering::Relaxed);
        }
    }
}

impl Clone for LastUse {
    fn clone(&self) -> Self {
        Self::at(self.secs())
    }
}

impl PartialEq for LastUse {
    fn eq(&self, other: &Self) -> bool {
        self.secs() == other.secs()
    }
}

impl Eq for LastUse {}

/// Where a policy stands among the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Rises with every insertion and replacement (`pos`).
    pub(super) age: u64,
    /// Order among equal priorities of one lookup list.
    pub(super) rank: u64,
    /// The lookup list.
    pub(super) list: super::order::List,
}

impl Policy {
    /// A policy as a request describes it (`copy_from_user_policy`).
    ///
    /// The mark is masked by the database, not here. `share` is checked elsewhere and
    /// never kept.
    #[must_use]
    pub fn new(info: &UserPolicyInfo, kind: u8, templates: Templates) -> Self {
        Self {
            key: PolicyKey {
                selector: info.sel,
                mark: Mark::default(),
                if_id: 0,
                kind,
                dir: info.dir,
                labelled: false,
            },
            action: info.action,
            flags: info.flags,
            priority: info.priority,
            index: info.index,
            templates,
            security: None,
            lft: info.lft,
            add_time: 0,
            used: LastUse::default(),
            place: Place::default(),
        }
    }

    /// As messages show it (`copy_to_user_policy`).
    #[must_use]
    pub fn info(&self) -> UserPolicyInfo {
        UserPolicyInfo {
            sel: self.key.selector,
            lft: self.lft,
            curlft: LifetimeCur {
                bytes: 0,
                packets: 0,
                add_time: self.add_time,
                use_time: self.used.secs(),
            },
            priority: self.priority,
            index: self.index,
            dir: self.key.dir,
            action: self.action,
            flags: self.flags,
            share: XFRM_SHARE_ANY,
            pad: [0; 4],
        }
    }

    /// Whether it is for that flow (`xfrm_policy_match`).
    #[must_use]
    pub fn matches(&self, flow: &Flow, kind: u8, if_id: u32) -> bool {
        self.key.kind == kind && self.mismatch(flow, if_id).is_none()
    }

    /// Why it is not for that flow, its type apart.
    #[inline]
    #[must_use]
    pub fn mismatch(&self, flow: &Flow, if_id: u32) -> Option<Mismatch> {
        let mark = self.key.mark;
        if self.key.if_id != if_id {
            Some(Mismatch::IfId)
        } else if flow.mark & mark.m != mark.v {
            Some(Mismatch::Mark)
        } else {
            selector_mismatch(&self.key.selector, flow)
        }
    }

    /// Whether any timer can end it.
    pub(super) fn expires(&self) -> bool {
        let lft = &self.lft;
        lft.soft_add_expires_seconds
            | lft.hard_add_expires_seconds
            | lft.soft_use_expires_seconds
            | lft.hard_use_expires_seconds
            != 0
    }
}

/// Whether a selector is for that flow (`xfrm_selector_match`); family 0 is for both.
#[must_use]
pub fn selector_matches(sel: &Selector, flow: &Flow) -> bool {
    selector_mismatch(sel, flow).is_none()
}

/// Why a selector is not for that flow.
#[inline]
#[must_use]
pub fn selector_mismatch(sel: &Selector, flow: &Flow) -> Option<Mismatch> {
    let same =
        |one, other, bits| prefix(one, flow.family, bits) == prefix(other, flow.family, bits);
    let port = |value: u16, want: u16, mask: u16| (value ^ want) & mask == 0;
    if sel.family != flow.family && sel.family != AF_UNSPEC {
        Some(Mismatch::Family)
    } else if !same(flow.daddr, sel.daddr, sel.prefixlen_d) {
        Some(Mismatch::Destination)
    } else if !same(flow.saddr, sel.saddr, sel.prefixlen_s) {
        Some(Mismatch::Source)
    } else if !port(flow.dport, sel.dport.get(), sel.dport_mask.get()) {
        Some(Mismatch::DestinationPort)
    } else if !port(flow.sport, sel.sport.get(), sel.sport_mask.get()) {
        Some(Mismatch::SourcePort)
    } else if sel.proto != 0 && sel.proto != flow.proto {
        Some(Mismatch::Protocol)
    } else if sel.ifindex != 0 && sel.ifindex != flow.ifindex {
        Some(Mismatch::Interface)
    } else {
        None
    }
}

/// What of a policy or selector is not for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// `XFRMA_IF_ID`.
    IfId,
    /// The mark.
    Mark,
    /// The address family.
    Family,
    /// The destination.
    Destination,
    /// The source.
    Source,
    /// The destination port.
    DestinationPort,
    /// The source port.
    SourcePort,
    /// The protocol.
    Protocol,
    /// The interface.
    Interface,
}

impl Mismatch {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::IfId => "another interface id",
            Self::Mark => "another mark",
            Self::Family => "another address family",
            Self::Destination => "another destination",
            Self::Source => "another source",
            Self::DestinationPort => "another destination port",
            Self::SourcePort => "another source port",
            Self::Protocol => "another protocol",
            Self::Interface => "another interface",
        }
    }
}

/// The first `bits` of an address, at the top of the number.
pub(super) fn prefix(addr: Address, family: u16, bits: u8) -> u128 {
    let all = match family {
        AF_INET => u128::from(addr.v4_bits()) << 96,
        _ => addr.bits(),
    };
    match bits {
        0 => 0,
        _ => all & (u128::MAX << (128 - u32::from(bits.min(128)))),
    }
}
