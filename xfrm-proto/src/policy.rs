//! The attribute table: which length and range the kernel wants of each
//! attribute, and what it says when it does not get it.
//!
//! Source: `net/xfrm/xfrm_user.c xfrma_policy`, `xfrma_spd_policy`;
//! `lib/nlattr.c validate_nla`. Attributes below [`Table::strict_from`] are
//! checked liberally (longer is fine), the others strictly.

use crate::consts::*;
use crate::extack::{AttrRange, ExtAck, XfrmError};
use crate::uapi::{self, Pod};

/// What the kernel knows of an attribute's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrType {
    /// Opaque bytes, at least this many.
    Bytes(usize),
    /// `NLA_U8`.
    U8,
    /// `NLA_U16`.
    U16,
    /// `NLA_U32`.
    U32,
    /// `NLA_U64`.
    U64,
    /// `NLA_FLAG`: no payload.
    Flag,
}

impl AttrType {
    const fn exact_bytes(self) -> Option<usize> {
        match self {
            Self::Bytes(_) | Self::Flag => None,
            Self::U8 => Some(1),
            Self::U16 => Some(2),
            Self::U32 => Some(4),
            Self::U64 => Some(8),
        }
    }

    /// `NL_ATTR_TYPE_*`, for the error's copy of the policy.
    const fn code(self) -> u32 {
        match self {
            Self::Bytes(_) => 0,
            Self::Flag => 1,
            Self::U8 => 2,
            Self::U16 => 3,
            Self::U32 => 4,
            Self::U64 => 5,
        }
    }

    const fn max_value(self) -> u64 {
        match self {
            Self::Bytes(_) | Self::Flag => 0,
            Self::U8 => u8::MAX as u64,
            Self::U16 => u16::MAX as u64,
            Self::U32 => u32::MAX as u64,
            Self::U64 => u64::MAX,
        }
    }
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct AttrPolicy {
    /// Payload type.
    pub kind: AttrType,
    /// Lowest and highest value, where the kernel checks it.
    pub range: Option<(u64, u64)>,
}

/// An attribute space.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    entries: &'static [AttrPolicy],
    /// Higher types are ignored.
    pub max: u16,
    /// From this type on, lengths and flag bits are checked strictly.
    pub strict_from: u16,
}

const fn bytes(min: usize) -> AttrPolicy {
    AttrPolicy {
        kind: AttrType::Bytes(min),
        range: None,
    }
}

const fn int(kind: AttrType) -> AttrPolicy {
    AttrPolicy { kind, range: None }
}

const XFRMA: [AttrPolicy; XFRMA_MAX as usize + 1] = [
    bytes(0),
    bytes(68),
    bytes(68),
    bytes(68),
    bytes(uapi::EncapTmpl::SIZE),
    bytes(uapi::UserTmpl::SIZE),
    bytes(uapi::UserSaInfo::SIZE),
    bytes(uapi::UserPolicyInfo::SIZE),
    bytes(uapi::UserSecCtx::SIZE),
    bytes(uapi::LifetimeCur::SIZE),
    bytes(uapi::ReplayState::SIZE),
    int(AttrType::U32),
    int(AttrType::U32),
    bytes(16),
    bytes(16),
    int(AttrType::U64),
    bytes(uapi::UserPolicyType::SIZE),
    bytes(uapi::UserMigrate::SIZE),
    bytes(72),
    bytes(uapi::UserKmAddress::SIZE),
    bytes(72),
    bytes(uapi::Mark::SIZE),
    int(AttrType::U32),
    bytes(uapi::ReplayStateEsn::SIZE),
    int(AttrType::U32),
    int(AttrType::U8),
    bytes(uapi::AddressFilter::SIZE),
    bytes(0),
    bytes(uapi::UserOffload::SIZE),
    int(AttrType::U32),
    int(AttrType::U32),
    int(AttrType::U32),
    int(AttrType::U32),
    AttrPolicy {
        kind: AttrType::U8,
        range: Some((XFRM_SA_DIR_IN as u64, XFRM_SA_DIR_OUT as u64)),
    },
    int(AttrType::U32),
    int(AttrType::U32),
    int(AttrType::U32),
    int(AttrType::U16),
    int(AttrType::Flag),
    int(AttrType::U32),
    int(AttrType::U32),
    int(AttrType::U32),
];

const SPD: [AttrPolicy; 5] = [bytes(0), bytes(0), bytes(0), bytes(2), bytes(2)];

impl Table {
    /// The `XFRMA_*` space as a kernel knows it whose highest attribute is `max`.
    #[must_use]
    pub const fn xfrma(max: u16) -> Self {
        Self {
            entries: &XFRMA,
            max,
            strict_from: XFRMA_SA_DIR,
        }
    }

    /// The `XFRMA_SPD_*` space of NEWSPDINFO.
    #[must_use]
    pub const fn spd() -> Self {
        Self {
            entries: &SPD,
            max: XFRMA_SPD_IPV6_HTHRESH,
            strict_from: u16::MAX,
        }
    }

    /// Checks one attribute of type `kind` (flag bits stripped) as `validate_nla` does.
    ///
    /// `offset` is where the attribute starts in its message, for the error.
    ///
    /// # Errors
    /// ERANGE or EINVAL with the kernel's text.
    pub fn validate(
        &self,
        kind: u16,
        nested: bool,
        payload: &[u8],
        offset: u32,
    ) -> Result<(), XfrmError> {
        let Some(policy) = self.entries.get(usize::from(kind)) else {
            return Ok(());
        };
        let strict = kind >= self.strict_from;
        let fail = |errno, text| {
            let range = match policy.kind {
                AttrType::Bytes(_) => None,
                AttrType::Flag => Some(AttrRange {
                    kind: policy.kind.code(),
                    limits: None,
                }),
                _ => Some(AttrRange {
                    kind: policy.kind.code(),
                    limits: Some(policy.range.unwrap_or((0, policy.kind.max_value()))),
                }),
            };
            Err(XfrmError {
                errno,
                extack: ExtAck {
                    text: Some(text),
                    offset: Some(offset),
                    policy: range,
                    is_weak: false,
                },
            })
        };
        if strict
            && policy
                .kind
                .exact_bytes()
                .is_some_and(|want| want != payload.len())
        {
            return fail(errno::EINVAL, "invalid attribute length".into());
        }
        if strict && nested && !matches!(policy.kind, AttrType::Bytes(_)) {
            return fail(errno::EINVAL, "NLA_F_NESTED not expected".into());
        }
        let fits = match policy.kind {
            AttrType::Bytes(min) => payload.len() >= min,
            AttrType::Flag => payload.is_empty(),
            _ => policy
                .kind
                .exact_bytes()
                .is_some_and(|want| payload.len() >= want),
        };
        if !fits {
            return fail(errno::ERANGE, "Attribute failed policy validation".into());
        }
        if let (Some((low, high)), Some(&value)) = (policy.range, payload.first())
            && !(low..=high).contains(&u64::from(value))
        {
            return fail(errno::ERANGE, "integer out of range".into());
        }
        Ok(())
    }
}
