//! Which of two policies comes first.
//!
//! Lookup takes the lowest priority number. Among equals Linux takes the
//! oldest, but what "oldest" is has two answers. It keeps matching policies in
//! up to five lists per flow: one for selectors whose prefixes reach the hash
//! thresholds, and four for the others, by which of both addresses is narrow.
//! Within a list, a policy that UPDPOLICY replaced at the same priority keeps
//! its predecessor's place (its *rank*). Between lists the time of the last
//! insertion or replacement decides (its *age*).
//!
//! Two policies that match one flow are in the same list exactly if their
//! `List` is the same: exact ones share a hash bucket, the others share tree
//! nodes, because the nodes of a tree are disjoint. So the tree itself need
//! not be modelled. What that leaves out: when a shorter prefix later merges
//! two nodes, Linux sorts one of them by age anew.
//!
//! Source: `net/xfrm/xfrm_policy.c xfrm_policy_insert_list`,
//! `xfrm_policy_inexact_alloc_chain`, `xfrm_policy_eval_candidates`,
//! `xfrm_hash_rebuild`.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, Selector, SpdHthresh};

/// The lookup list of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum List {
    /// Both prefixes reach the thresholds.
    #[default]
    Exact,
    /// Both addresses are narrow.
    Both,
    /// Only the source is.
    Source,
    /// Only the destination is.
    Destination,
    /// Neither is.
    Any,
}

impl List {
    pub(super) const COUNT: usize = 5;
    pub(super) const ALL: [Self; Self::COUNT] = [
        Self::Exact,
        Self::Both,
        Self::Source,
        Self::Destination,
        Self::Any,
    ];
}

/// From which prefix lengths on selectors are hashed (`policy_hthresh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// For IPv4.
    pub v4: SpdHthresh,
    /// For IPv6.
    pub v6: SpdHthresh,
}

impl Default for Thresholds {
    fn default() -> Self {
        let both = |bits| SpdHthresh {
            lbits: bits,
            rbits: bits,
        };
        Self {
            v4: both(32),
            v6: both(128),
        }
    }
}

impl Thresholds {
    /// The lookup list of a selector in a direction.
    pub(super) fn list(&self, sel: &Selector, dir: u8) -> List {
        let bits = match sel.family {
            AF_INET => self.v4,
            _ => self.v6,
        };
        // Local is the source of what leaves and the destination of what arrives.
        let (dbits, sbits) = match dir {
            XFRM_POLICY_OUT => (bits.rbits, bits.lbits),
            _ => (bits.lbits, bits.rbits),
        };
        if sel.prefixlen_d >= dbits && sel.prefixlen_s >= sbits {
            return List::Exact;
        }
        let narrow_d = narrow(sel.daddr, sel.family, sel.prefixlen_d);
        let narrow_s = narrow(sel.saddr, sel.family, sel.prefixlen_s);
        match (narrow_d, narrow_s) {
            (true, true) => List::Both,
            (false, true) => List::Source,
            (true, false) => List::Destination,
            (false, false) => List::Any,
        }
    }
}

/// `!xfrm_pol_inexact_addr_use_any_list`: the wildcard address is never narrow,
/// whatever its prefix length.
fn narrow(addr: Address, family: u16, prefix_bits: u8) -> bool {
    let least = match family {
        AF_INET => 16,
        _ => 48,
    };
    prefix_bits >= least && !addr.is_any(family)
}
