//! Facts that leave the engine on their own account: timers, and later packets.
//!
//! An event owns a snapshot of what it tells about, because the SA or policy
//! may be gone by the time somebody reads it.

use xfrm_proto::uapi::{Mark, UserExpire};

use crate::spd::Policy;

/// A fact to tell key managers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An SA reached a soft or hard limit (`km_state_expired`).
    SaExpire(Box<SaExpire>),
    /// A policy reached one (`km_policy_expired`).
    PolicyExpire(Box<PolicyExpire>),
}

/// The content of an EXPIRE message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaExpire {
    /// The SA as it was, and whether the limit was a hard one.
    pub body: UserExpire,
    /// Its mark, zero for none.
    pub mark: Mark,
    /// Its `XFRMA_IF_ID`, 0 for none.
    pub if_id: u32,
    /// Its CPU, `u32::MAX` for none.
    pub pcpu: u32,
    /// Its direction, 0 for none.
    pub dir: u8,
}

/// The content of a POLEXPIRE message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyExpire {
    /// The policy as it was.
    pub policy: Policy,
    /// Whether the limit was a hard one.
    pub hard: bool,
}
