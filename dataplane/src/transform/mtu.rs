//! How long a packet may be before it enters an SA.
//!
//! Source: `net/xfrm/xfrm_state.c xfrm_state_mtu`, and for a chain of SAs
//! `net/xfrm/xfrm_policy.c xfrm_bundle_ok`, which asks them from the outermost in.

use super::esp::Esp;
use super::iptfs;
use super::mode::{Mode, ModeTransform};
use crate::packet::Family;

/// ESP: what is left after headers and ICV, in whole blocks, less the two
/// bytes of trailer. Transport and BEET count the IP header outside the blocks.
pub(super) fn esp(mtu: u32, header_bytes: u32, mode: &ModeTransform, esp: &Esp) -> u32 {
    let params = mode.params();
    let outside = match params.mode {
        Mode::Transport | Mode::Beet => u32::try_from(params.family.header_bytes()).unwrap_or(0),
        Mode::Tunnel | Mode::RouteOptimization => 0,
        Mode::Iptfs { splits: true } => return longest(params.family),
        Mode::Iptfs { splits: false } => return iptfs::room(mtu, header_bytes, esp),
    };
    let overhead = header_bytes + esp.icv_bytes() + outside;
    let payload = mtu.saturating_sub(overhead) & !(esp.block_bytes() - 1);
    match payload {
        0..=2 => 1,
        payload => payload + outside - 2,
    }
}

/// What IPTFS splits as it likes has only the limit of its family (`IP_MAX_MTU`, `IP6_MAX_MTU`).
const fn longest(family: Family) -> u32 {
    match family {
        Family::V4 => 0xfff0,
        Family::V6 => 0xffff + 40,
    }
}

/// AH, IPComp and route optimization: what is left after the header.
pub(super) const fn other(mtu: u32, header_bytes: u32) -> u32 {
    match mtu.saturating_sub(header_bytes) {
        0 => 1,
        left => left,
    }
}
