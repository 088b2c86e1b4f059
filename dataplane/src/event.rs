//! Facts that leave the engine on their own account: timers and packets.
//!
//! An event owns a snapshot of what it tells about, because the SA or policy
//! may be gone by the time somebody reads it.

use xfrm_proto::uapi::{AeventId, LifetimeCur, Mark, UserAcquire, UserExpire, UserMapping};

use crate::sad::replay::ReplayValue;
use crate::security::SecurityContext;
use crate::spd::{Policy, Templates};

/// A fact to tell key managers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An SA reached a soft or hard limit (`km_state_expired`).
    SaExpire(Box<SaExpire>),
    /// A policy reached one (`km_policy_expired`).
    PolicyExpire(Box<PolicyExpire>),
    /// A flow needs an SA (`km_query`).
    Acquire(Box<Acquire>),
    /// An SA's counters went on by as much as its thresholds say (`xfrm_replay_notify`).
    Aevent(Box<Aevent>),
    /// Packets of an SA come from another address or port (`km_new_mapping`).
    Mapping(Box<UserMapping>),
}

/// The content of an ACQUIRE message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    /// The fixed part.
    pub body: UserAcquire,
    /// All templates of the policy.
    pub templates: Templates,
    /// Security context of the SA.
    pub security: Option<SecurityContext>,
    /// `XFRM_POLICY_TYPE_*` of the policy.
    pub kind: u8,
    /// Mark of the policy, zero for none.
    pub mark: Mark,
    /// Interface id of the policy, 0 for none.
    pub if_id: u32,
    /// The CPU that the SA is wanted for, `u32::MAX` for none.
    pub pcpu: u32,
}

/// The content of a NEWAE message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aevent {
    /// The fixed part; its flags say what moved the kernel to tell, or what GETAE wants to see.
    pub body: AeventId,
    /// Sequence numbers.
    pub replay: ReplayValue,
    /// Bytes, packets and times so far.
    pub lifetime: LifetimeCur,
    /// Packets between aevents.
    pub maxdiff: u32,
    /// Ticks between aevents.
    pub maxage: u32,
    /// Mark of the SA, zero for none.
    pub mark: Mark,
    /// Its interface id, 0 for none.
    pub if_id: u32,
    /// Its CPU, `u32::MAX` for none.
    pub pcpu: u32,
    /// Its direction, 0 for none.
    pub dir: u8,
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
