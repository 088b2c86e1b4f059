//! Dumps: a walk over the SAD that goes on where it stopped.
//!
//! Youngest first. The walk remembers the age of what comes next, so SAs that
//! come and go meanwhile do not disturb it; those added after its start are not
//! seen.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_state_walk, __xfrm_state_filter_match`.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, AddressFilter};

use super::{Sa, Sad};

/// Which SAs to walk over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Protocol: 0 for all, 255 for AH, ESP and COMP.
    pub proto: u8,
    /// Addresses.
    pub addresses: Option<AddressFilter>,
}

/// A walk under way.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    filter: Filter,
    /// The oldest age rank that has been seen.
    seen: u64,
}

impl Walk {
    /// A walk from the beginning.
    #[must_use]
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            seen: u64::MAX,
        }
    }

    /// Goes on; `visit` says whether it has taken the SA or wants to be shown it again.
    pub fn run(&mut self, sad: &Sad, mut visit: impl FnMut(&Sa) -> bool) {
        for (&serial, &id) in sad.by_age.range(..self.seen).rev() {
            let Some(sa) = sad.get(id) else { continue };
            if self.filter.accepts(sa) && !visit(sa) {
                return;
            }
            self.seen = serial;
        }
        self.seen = 0;
    }
}

impl Filter {
    fn accepts(&self, sa: &Sa) -> bool {
        proto_matches(sa.id.proto, self.proto)
            && self.addresses.is_none_or(|filter| {
                let family_fits = match filter.family {
                    AF_INET | AF_INET6 => sa.family == filter.family,
                    _ => true,
                };
                family_fits
                    && prefix_equal(sa.saddr, filter.saddr, filter.splen)
                    && prefix_equal(sa.id.daddr, filter.daddr, filter.dplen)
            })
    }
}

/// `xfrm_id_proto_match`.
pub(super) fn proto_matches(proto: u8, wanted: u8) -> bool {
    wanted == 0
        || proto == wanted
        || (wanted == IPSEC_PROTO_ANY && matches!(proto, IPPROTO_AH | IPPROTO_ESP | IPPROTO_COMP))
}

/// Whether the first `bits` of two addresses agree (`addr_match`).
fn prefix_equal(a: Address, b: Address, bits: u8) -> bool {
    let differing = a.bits() ^ b.bits();
    differing.leading_zeros() >= u32::from(bits)
}
