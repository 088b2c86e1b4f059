//! The fixed structures of NETLINK_XFRM, byte for byte as x86-64 and arm64
//! kernels lay them out. Padding is explicit, because Linux compares and
//! echoes some of it. Integers are in host byte order unless their type says
//! otherwise ([`BeU16`], [`BeU32`]).
//!
//! Every structure reads from any alignment with [`Pod::read`], which copies.
//! Source: `include/uapi/linux/xfrm.h`, `include/uapi/linux/netlink.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::consts::XFRM_INF;

/// A 16-bit big-endian integer, alignment 1.
pub type BeU16 = zerocopy::big_endian::U16;
/// A 32-bit big-endian integer, alignment 1.
pub type BeU32 = zerocopy::big_endian::U32;

/// A structure that is nothing but its bytes.
pub trait Pod: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + Default {
    /// Size on the wire.
    const SIZE: usize = size_of::<Self>();

    /// Copies the structure from the front of `bytes`; `None` when they are too few.
    #[must_use]
    fn read(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(value, _)| value)
    }
}

macro_rules! pod {
    ($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        impl Pod for $name {}
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

mod policy;
pub use policy::*;

/// An IPv4 (first four bytes) or IPv6 address: `xfrm_address_t`, network order.
///
/// Which of both it is, a family field beside it says.
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Address(pub [u8; 16]);
impl Pod for Address {}

// As two numbers, for which a hash function needs one multiplication.
impl std::hash::Hash for Address {
    #[inline]
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let [low, high] = self.halves();
        state.write_u64(low);
        state.write_u64(high);
    }
}

impl Address {
    /// The wildcard address.
    pub const ANY: Self = Self([0; 16]);

    /// All of it as two numbers, for comparing and hashing.
    #[must_use]
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "one half each")]
    pub const fn halves(&self) -> [u64; 2] {
        let bits = u128::from_le_bytes(self.0);
        [bits as u64, (bits >> 64) as u64]
    }

    /// An IPv4 address; the other twelve bytes are zero.
    #[must_use]
    pub const fn v4(a: u8, b: u8, c: u8, d: u8) -> Self {
        // One number, so that it is written as wide as it is read again.
        Self((u32::from_le_bytes([a, b, c, d]) as u128).to_le_bytes())
    }

    /// The IPv4 part, in host byte order.
    #[must_use]
    pub const fn v4_bits(self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// All 128 bits as a number, first byte most significant.
    #[must_use]
    pub const fn bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    /// Whether it is the wildcard (`xfrm_addr_any`: never, for a family that is neither).
    #[must_use]
    pub const fn is_any(self, family: u16) -> bool {
        match family {
            crate::consts::AF_INET => self.v4_bits() == 0,
            crate::consts::AF_INET6 => self.bits() == 0,
            _ => false,
        }
    }

    /// Equality in the bytes that `family` uses (`xfrm_addr_equal`: IPv4 unless IPv6).
    #[must_use]
    pub const fn equal(self, other: Self, family: u16) -> bool {
        match family {
            crate::consts::AF_INET6 => self.bits() == other.bits(),
            _ => self.v4_bits() == other.v4_bits(),
        }
    }

    /// The address with the bytes that `family` does not use cleared, for use as a key.
    #[must_use]
    pub const fn for_family(self, family: u16) -> Self {
        match family {
            crate::consts::AF_INET6 => self,
            _ => {
                let [a, b, c, d, ..] = self.0;
                Self::v4(a, b, c, d)
            }
        }
    }
}

impl From<std::net::IpAddr> for Address {
    fn from(addr: std::net::IpAddr) -> Self {
        match addr {
            std::net::IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                Self::v4(a, b, c, d)
            }
            std::net::IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

pod! {
    /// `struct nlmsghdr`.
    NlMsgHdr = 16 {
        /// Length of the message, this header included.
        len: u32,
        /// Message type.
        kind: u16,
        /// `NLM_F_*`.
        flags: u16,
        /// Sequence number, the requester's own.
        seq: u32,
        /// Port id.
        pid: u32,
    }
}
pod! {
    /// `struct nlattr`.
    NlAttr = 4 {
        /// Length of the attribute, this header included, padding excluded.
        len: u16,
        /// Type and the two flag bits.
        kind: u16,
    }
}
pod! {
    /// `struct xfrm_id`: what identifies an SA on the wire.
    XfrmId = 24 {
        /// Destination.
        daddr: Address,
        /// SPI.
        spi: BeU32,
        /// IP protocol of the SA: AH, ESP, COMP, ...
        proto: u8,
        /// Padding.
        pad: [u8; 3],
    }
}
pod! {
    /// `struct xfrm_sec_ctx` header, `xfrm_user_sec_ctx`.
    UserSecCtx = 8 {
        /// Length of structure and context.
        len: u16,
        /// Exttype.
        exttype: u16,
        /// Algorithm.
        ctx_alg: u8,
        /// Domain of interpretation.
        ctx_doi: u8,
        /// Length of the context behind it.
        ctx_len: u16,
    }
}
pod! {
    /// `struct xfrm_selector`: which flows an SA or policy is for.
    Selector = 56 {
        /// Destination prefix.
        daddr: Address,
        /// Source prefix.
        saddr: Address,
        /// Destination port.
        dport: BeU16,
        /// Bits of it that count.
        dport_mask: BeU16,
        /// Source port.
        sport: BeU16,
        /// Bits of it that count.
        sport_mask: BeU16,
        /// Address family.
        family: u16,
        /// Destination prefix length.
        prefixlen_d: u8,
        /// Source prefix length.
        prefixlen_s: u8,
        /// IP protocol, 0 for any.
        proto: u8,
        /// Padding, part of a policy's identity all the same.
        pad: [u8; 3],
        /// Interface, 0 for any.
        ifindex: i32,
        /// User id; stored and compared, never looked up.
        user: u32,
    }
}
pod! {
    /// `struct xfrm_lifetime_cfg`.
    LifetimeCfg = 64 {
        /// Soft limit in bytes.
        soft_byte_limit: u64,
        /// Hard limit in bytes.
        hard_byte_limit: u64,
        /// Soft limit in packets.
        soft_packet_limit: u64,
        /// Hard limit in packets.
        hard_packet_limit: u64,
        /// Seconds from addition to soft expiry, 0 for never.
        soft_add_expires_seconds: u64,
        /// Seconds from addition to hard expiry, 0 for never.
        hard_add_expires_seconds: u64,
        /// Seconds from first use to soft expiry, 0 for never.
        soft_use_expires_seconds: u64,
        /// Seconds from first use to hard expiry, 0 for never.
        hard_use_expires_seconds: u64,
    }
}

impl LifetimeCfg {
    /// Limits that never strike.
    pub const UNLIMITED: Self = Self {
        soft_byte_limit: XFRM_INF,
        hard_byte_limit: XFRM_INF,
        soft_packet_limit: XFRM_INF,
        hard_packet_limit: XFRM_INF,
        soft_add_expires_seconds: 0,
        hard_add_expires_seconds: 0,
        soft_use_expires_seconds: 0,
        hard_use_expires_seconds: 0,
    };
}

pod! {
    /// `struct xfrm_lifetime_cur`.
    LifetimeCur = 32 {
        /// Bytes so far.
        bytes: u64,
        /// Packets so far.
        packets: u64,
        /// Wall-clock second of addition.
        add_time: u64,
        /// Wall-clock second of first use, 0 before.
        use_time: u64,
    }
}
pod! {
    /// `struct xfrm_replay_state`.
    ReplayState = 12 {
        /// Last sequence number sent.
        oseq: u32,
        /// Highest sequence number received.
        seq: u32,
        /// Which of the 32 below it were received.
        bitmap: u32,
    }
}
pod! {
    /// `struct xfrm_replay_state_esn`; `bmp_len` words of bitmap follow.
    ReplayStateEsn = 24 {
        /// Words of bitmap behind the structure.
        bmp_len: u32,
        /// Last sequence number sent, low half.
        oseq: u32,
        /// Highest received, low half.
        seq: u32,
        /// Last sent, high half.
        oseq_hi: u32,
        /// Highest received, high half.
        seq_hi: u32,
        /// Window in packets.
        replay_window: u32,
    }
}
pod! {
    /// `struct xfrm_stats`.
    Stats = 12 {
        /// Packets below the replay window.
        replay_window: u32,
        /// Packets seen before.
        replay: u32,
        /// Packets that failed their integrity check.
        integrity_failed: u32,
    }
}
pod! {
    /// `struct xfrm_usersa_info`.
    UserSaInfo = 224 {
        /// Selector.
        sel: Selector,
        /// Destination, SPI, protocol.
        id: XfrmId,
        /// Source.
        saddr: Address,
        /// Limits.
        lft: LifetimeCfg,
        /// Counters.
        curlft: LifetimeCur,
        /// Error counters.
        stats: Stats,
        /// Larval sequence number (`km.seq`).
        seq: u32,
        /// Request id that templates refer to.
        reqid: u32,
        /// Outer address family.
        family: u16,
        /// `XFRM_MODE_*`.
        mode: u8,
        /// Legacy replay window in packets.
        replay_window: u8,
        /// `XFRM_STATE_*`.
        flags: u8,
        /// Padding.
        pad: [u8; 7],
    }
}
pod! {
    /// `struct xfrm_userspi_info`.
    UserSpiInfo = 232 {
        /// The SA to allocate for.
        info: UserSaInfo,
        /// Lowest SPI, host order.
        min: u32,
        /// Highest SPI, host order.
        max: u32,
    }
}
pod! {
    /// `struct xfrm_user_expire`.
    UserExpire = 232 {
        /// The SA.
        state: UserSaInfo,
        /// 1 for a hard expiry.
        hard: u8,
        /// Padding.
        pad: [u8; 7],
    }
}
pod! {
    /// `struct xfrm_usersa_id`.
    UserSaId = 24 {
        /// Destination.
        daddr: Address,
        /// SPI.
        spi: BeU32,
        /// Address family.
        family: u16,
        /// Protocol.
        proto: u8,
        /// Padding.
        pad: u8,
    }
}
pod! {
    /// `struct xfrm_aevent_id`.
    AeventId = 48 {
        /// The SA.
        sa_id: UserSaId,
        /// Source.
        saddr: Address,
        /// `XFRM_AE_*`.
        flags: u32,
        /// Request id.
        reqid: u32,
    }
}
pod! {
    /// `struct xfrm_usersa_flush`.
    UserSaFlush = 1 {
        /// Protocol, 0 for all.
        proto: u8,
    }
}
pod! {
    /// `struct xfrm_encap_tmpl`.
    EncapTmpl = 24 {
        /// `UDP_ENCAP_*`, host order.
        kind: u16,
        /// Source port.
        sport: BeU16,
        /// Destination port.
        dport: BeU16,
        /// Padding.
        pad: [u8; 2],
        /// Original address.
        oa: Address,
    }
}
pod! {
    /// `struct xfrm_mark`.
    Mark = 8 {
        /// Value.
        v: u32,
        /// Mask.
        m: u32,
    }
}
pod! {
    /// `struct xfrm_user_report`.
    UserReport = 60 {
        /// Protocol.
        proto: u8,
        /// Padding.
        pad: [u8; 3],
        /// Selector.
        sel: Selector,
    }
}
pod! {
    /// `struct xfrm_user_kmaddress`.
    UserKmAddress = 40 {
        /// Local address of the key manager.
        local: Address,
        /// Remote one.
        remote: Address,
        /// Reserved.
        reserved: u32,
        /// Family.
        family: u16,
        /// Padding.
        pad: [u8; 2],
    }
}
pod! {
    /// `struct xfrm_user_migrate`.
    UserMigrate = 76 {
        /// Old destination.
        old_daddr: Address,
        /// Old source.
        old_saddr: Address,
        /// New destination.
        new_daddr: Address,
        /// New source.
        new_saddr: Address,
        /// Protocol.
        proto: u8,
        /// Mode.
        mode: u8,
        /// Reserved.
        reserved: u16,
        /// Request id.
        reqid: u32,
        /// Family of the old addresses.
        old_family: u16,
        /// Family of the new ones.
        new_family: u16,
    }
}
pod! {
    /// `struct xfrm_user_migrate_state`.
    UserMigrateState = 132 {
        /// The SA.
        id: UserSaId,
        /// New destination.
        new_daddr: Address,
        /// New source.
        new_saddr: Address,
        /// Mark that the SA is found by.
        old_mark: Mark,
        /// New selector.
        new_sel: Selector,
        /// New request id.
        new_reqid: u32,
        /// `XFRM_MIGRATE_STATE_*`.
        flags: u32,
        /// Family of the new addresses.
        new_family: u16,
        /// Must be 0.
        reserved: u16,
    }
}
pod! {
    /// `struct xfrm_user_mapping`.
    UserMapping = 64 {
        /// The SA.
        id: UserSaId,
        /// Request id.
        reqid: u32,
        /// Source it has.
        old_saddr: Address,
        /// Source seen.
        new_saddr: Address,
        /// Port it has.
        old_sport: BeU16,
        /// Port seen.
        new_sport: BeU16,
    }
}
pod! {
    /// `struct xfrm_user_offload`.
    UserOffload = 8 {
        /// Device.
        ifindex: i32,
        /// `XFRM_OFFLOAD_*`.
        flags: u8,
        /// Padding.
        pad: [u8; 3],
    }
}
pod! {
    /// `struct xfrm_address_filter`.
    AddressFilter = 36 {
        /// Source prefix.
        saddr: Address,
        /// Destination prefix.
        daddr: Address,
        /// Family.
        family: u16,
        /// Source prefix length.
        splen: u8,
        /// Destination prefix length.
        dplen: u8,
    }
}
pod! {
    /// `struct xfrmu_sadhinfo`.
    SadHinfo = 8 {
        /// Buckets.
        sadhcnt: u32,
        /// Most buckets.
        sadhmcnt: u32,
    }
}
pod! {
    /// `struct xfrmu_spdinfo`.
    SpdInfo = 24 {
        /// Input policies.
        incnt: u32,
        /// Output policies.
        outcnt: u32,
        /// Forward policies.
        fwdcnt: u32,
        /// Input socket policies.
        inscnt: u32,
        /// Output socket policies.
        outscnt: u32,
        /// Forward socket policies, always 0.
        fwdscnt: u32,
    }
}
pod! {
    /// `struct xfrmu_spdhinfo`.
    SpdHinfo = 8 {
        /// Hash mask.
        spdhcnt: u32,
        /// Most buckets.
        spdhmcnt: u32,
    }
}
pod! {
    /// `struct xfrmu_spdhthresh`.
    SpdHthresh = 2 {
        /// Local prefix bits.
        lbits: u8,
        /// Remote prefix bits.
        rbits: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn offsets_are_the_kernels() {
        assert_eq!(offset_of!(Selector, family), 40);
        assert_eq!(offset_of!(Selector, ifindex), 48);
        assert_eq!(offset_of!(UserSaInfo, id), 56);
        assert_eq!(offset_of!(UserSaInfo, stats), 192);
        assert_eq!(offset_of!(UserSaInfo, family), 212);
        assert_eq!(offset_of!(UserSaInfo, flags), 216);
        assert_eq!(offset_of!(UserPolicyInfo, priority), 152);
        assert_eq!(offset_of!(UserPolicyInfo, share), 163);
        assert_eq!(offset_of!(UserAcquire, policy), 96);
        assert_eq!(offset_of!(UserAcquire, seq), 276);
        assert_eq!(offset_of!(UserTmpl, reqid), 44);
        assert_eq!(offset_of!(UserTmpl, optional), 50);
        assert_eq!(offset_of!(UserMigrateState, old_mark), 56);
        assert_eq!(offset_of!(UserMigrateState, new_reqid), 120);
        assert_eq!(offset_of!(AeventId, flags), 40);
        assert_eq!(offset_of!(UserMapping, old_sport), 60);
    }

    #[test]
    fn short_input_reads_as_none() {
        assert!(UserSaInfo::read(&[0; 223]).is_none());
        assert!(UserSaInfo::read(&[0; 225]).is_some());
    }
}
