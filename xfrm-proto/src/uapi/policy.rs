//! Structures of policies and templates.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, LifetimeCfg, LifetimeCur, Pod, Selector, XfrmId};

pod! {
    /// `struct xfrm_userpolicy_info`.
    UserPolicyInfo = 168 {
        /// Selector.
        sel: Selector,
        /// Limits.
        lft: LifetimeCfg,
        /// Counters.
        curlft: LifetimeCur,
        /// Lower numbers are looked at first.
        priority: u32,
        /// Index, direction in its low three bits.
        index: u32,
        /// `XFRM_POLICY_IN`, `_OUT`, `_FWD`.
        dir: u8,
        /// `XFRM_POLICY_ALLOW` or `_BLOCK`.
        action: u8,
        /// `XFRM_POLICY_LOCALOK`, ...
        flags: u8,
        /// `XFRM_SHARE_*`.
        share: u8,
        /// Padding.
        pad: [u8; 4],
    }
}
pod! {
    /// `struct xfrm_userpolicy_id`.
    UserPolicyId = 64 {
        /// Selector, when `index` is 0.
        sel: Selector,
        /// Index, or 0.
        index: u32,
        /// Direction.
        dir: u8,
        /// Padding.
        pad: [u8; 3],
    }
}
pod! {
    /// `struct xfrm_user_polexpire`.
    UserPolExpire = 176 {
        /// The policy.
        pol: UserPolicyInfo,
        /// 1 for a hard expiry.
        hard: u8,
        /// Padding.
        pad: [u8; 7],
    }
}
pod! {
    /// `struct xfrm_userpolicy_type`.
    UserPolicyType = 6 {
        /// `XFRM_POLICY_TYPE_*`.
        kind: u8,
        /// Padding.
        pad0: u8,
        /// Reserved.
        reserved1: u16,
        /// Reserved.
        reserved2: u8,
        /// Padding.
        pad1: u8,
    }
}
pod! {
    /// `struct xfrm_userpolicy_default`.
    UserPolicyDefault = 3 {
        /// Input.
        input: u8,
        /// Forward.
        fwd: u8,
        /// Output.
        out: u8,
    }
}
pod! {
    /// `struct xfrm_user_tmpl`.
    UserTmpl = 64 {
        /// Destination, SPI, protocol.
        id: XfrmId,
        /// Family of the addresses.
        family: u16,
        /// Padding.
        pad0: [u8; 2],
        /// Source.
        saddr: Address,
        /// Request id.
        reqid: u32,
        /// Mode.
        mode: u8,
        /// Share.
        share: u8,
        /// Not 0 when the template may be skipped.
        optional: u8,
        /// Padding.
        pad1: u8,
        /// Authentication algorithms, a bit each.
        aalgos: u32,
        /// Encryption algorithms, a bit each.
        ealgos: u32,
        /// Compression algorithms, a bit each.
        calgos: u32,
    }
}
pod! {
    /// `struct xfrm_user_acquire`.
    UserAcquire = 280 {
        /// The SA wanted.
        id: XfrmId,
        /// Its source.
        saddr: Address,
        /// The flow.
        sel: Selector,
        /// The policy that wants it.
        policy: UserPolicyInfo,
        /// Authentication algorithms.
        aalgos: u32,
        /// Encryption algorithms.
        ealgos: u32,
        /// Compression algorithms.
        calgos: u32,
        /// Larval sequence number.
        seq: u32,
    }
}
