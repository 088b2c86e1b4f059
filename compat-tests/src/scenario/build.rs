//! SAs and policies to start from, and to vary.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use crate::message::Message;

/// 10.1.0.1
pub(super) const LEFT: Address = Address::v4(10, 1, 0, 1);
/// 10.1.0.2
pub(super) const RIGHT: Address = Address::v4(10, 1, 0, 2);

/// fd00::n
pub(super) const fn v6(n: u8) -> Address {
    Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
}

/// `struct xfrm_algo` with a key of `key.len() * 8` bits.
pub(super) fn algo(name: &str, key: &[u8]) -> Vec<u8> {
    algo_bits(name, key.len() as u32 * 8, key)
}

/// `struct xfrm_algo` that claims `bits` of key.
pub(super) fn algo_bits(name: &str, bits: u32, key: &[u8]) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(64, 0);
    out.extend_from_slice(&bits.to_ne_bytes());
    out.extend_from_slice(key);
    out
}

/// `struct xfrm_algo_auth` or `xfrm_algo_aead`.
pub(super) fn algo_icv(name: &str, icv_bits: u32, key: &[u8]) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(64, 0);
    out.extend_from_slice(&(key.len() as u32 * 8).to_ne_bytes());
    out.extend_from_slice(&icv_bits.to_ne_bytes());
    out.extend_from_slice(key);
    out
}

/// Key bytes 1, 2, 3, ...
pub(super) fn key(bytes: usize) -> Vec<u8> {
    (1..=bytes).map(|byte| byte as u8).collect()
}

/// Limits that never strike.
pub(super) const NO_LIMITS: LifetimeCfg = LifetimeCfg {
    soft_byte_limit: XFRM_INF,
    hard_byte_limit: XFRM_INF,
    soft_packet_limit: XFRM_INF,
    hard_packet_limit: XFRM_INF,
    soft_add_expires_seconds: 0,
    hard_add_expires_seconds: 0,
    soft_use_expires_seconds: 0,
    hard_use_expires_seconds: 0,
};

/// An SA as a client describes it: fixed structure and attributes in order.
#[derive(Clone, Debug)]
pub struct Sa {
    /// The fixed structure.
    pub info: UserSaInfo,
    /// Types and payloads.
    pub attrs: Vec<(u16, Vec<u8>)>,
}

impl Sa {
    /// ESP, 10.1.0.1 to 10.1.0.2, SPI 0x1000, transport mode, no algorithm yet.
    pub(super) fn bare(proto: u8) -> Self {
        let info = UserSaInfo {
            id: XfrmId {
                daddr: RIGHT,
                spi: BeU32::new(0x1000),
                proto,
                pad: [0; 3],
            },
            saddr: LEFT,
            lft: NO_LIMITS,
            family: AF_INET,
            ..UserSaInfo::default()
        };
        Self {
            info,
            attrs: Vec::new(),
        }
    }

    /// ESP with AES-GCM.
    pub(super) fn esp() -> Self {
        Self::bare(IPPROTO_ESP).attr(XFRMA_ALG_AEAD, algo_icv("rfc4106(gcm(aes))", 128, &key(20)))
    }

    /// AH with HMAC-SHA-1.
    pub(super) fn ah() -> Self {
        Self::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH, algo("hmac(sha1)", &key(20)))
    }

    /// IPCOMP with deflate.
    pub(super) fn comp() -> Self {
        Self::bare(IPPROTO_COMP).attr(XFRMA_ALG_COMP, algo("deflate", &[]))
    }

    /// The same between IPv6 addresses.
    pub(super) fn over_v6(self) -> Self {
        self.info(|info| {
            info.family = AF_INET6;
            info.saddr = v6(1);
            info.id.daddr = v6(2);
        })
    }

    /// Another SPI.
    pub(super) fn spi(self, spi: u32) -> Self {
        self.info(|info| info.id.spi = BeU32::new(spi))
    }

    /// Another mode.
    pub(super) fn mode(self, mode: u8) -> Self {
        self.info(|info| info.mode = mode)
    }

    /// Changes the fixed structure.
    pub(super) fn info(mut self, change: impl FnOnce(&mut UserSaInfo)) -> Self {
        change(&mut self.info);
        self
    }

    /// Appends an attribute.
    pub(super) fn attr(mut self, kind: u16, payload: impl AsRef<[u8]>) -> Self {
        self.attrs.push((kind, payload.as_ref().to_vec()));
        self
    }

    /// Appends a structure as an attribute.
    pub(super) fn pod<T: Pod>(self, kind: u16, value: &T) -> Self {
        self.attr(kind, value.as_bytes())
    }

    /// Appends a `u32` attribute.
    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, value.to_ne_bytes())
    }

    /// Takes an attribute away.
    pub(super) fn without(mut self, kind: u16) -> Self {
        self.attrs.retain(|attr| attr.0 != kind);
        self
    }

    /// A message of type `kind` that carries it.
    pub(super) fn message(&self, kind: u16) -> Message {
        let attrs = self.attrs.iter();
        attrs.fold(
            Message::with(kind, &self.info),
            |message, (kind, payload)| message.attr(*kind, payload),
        )
    }

    /// NEWSA.
    pub(super) fn new_sa(&self) -> Message {
        self.message(XFRM_MSG_NEWSA)
    }

    /// UPDSA.
    pub(super) fn upd_sa(&self) -> Message {
        self.message(XFRM_MSG_UPDSA)
    }

    /// What identifies it.
    pub(super) fn id(&self) -> UserSaId {
        UserSaId {
            daddr: self.info.id.daddr,
            spi: self.info.id.spi,
            family: self.info.family,
            proto: self.info.id.proto,
            pad: 0,
        }
    }

    /// GETSA or DELSA of it, with its mark and source address.
    pub(super) fn by_id(&self, kind: u16) -> Message {
        let mut message = Message::with(kind, &self.id());
        if let Some((_, mark)) = self.attrs.iter().find(|attr| attr.0 == XFRMA_MARK) {
            message = message.attr(XFRMA_MARK, mark);
        }
        message.pod(XFRMA_SRCADDR, &self.info.saddr)
    }
}
