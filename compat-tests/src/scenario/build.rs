//! SAs and policies to start from, and to vary.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use crate::message::Message;
use crate::session::{Open, Session};

/// 10.1.0.1
pub(crate) const LEFT: Address = Address::v4(10, 1, 0, 1);
/// 10.1.0.2
pub(crate) const RIGHT: Address = Address::v4(10, 1, 0, 2);

/// 10.9.0.1
pub(crate) const ELSEWHERE: Address = Address::v4(10, 9, 0, 1);

/// fd00::n
pub(crate) const fn v6(n: u8) -> Address {
    Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
}

/// `struct xfrm_algo` with a key of `key.len() * 8` bits.
pub(crate) fn algo(name: &str, key: &[u8]) -> Vec<u8> {
    algo_bits(name, key.len() as u32 * 8, key)
}

/// `struct xfrm_algo` that claims `bits` of key.
pub(crate) fn algo_bits(name: &str, bits: u32, key: &[u8]) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(64, 0);
    out.extend_from_slice(&bits.to_ne_bytes());
    out.extend_from_slice(key);
    out
}

/// `struct xfrm_algo_auth` or `xfrm_algo_aead`.
pub(crate) fn algo_icv(name: &str, icv_bits: u32, key: &[u8]) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(64, 0);
    out.extend_from_slice(&(key.len() as u32 * 8).to_ne_bytes());
    out.extend_from_slice(&icv_bits.to_ne_bytes());
    out.extend_from_slice(key);
    out
}

/// Key bytes 1, 2, 3, ...
pub(crate) fn key(bytes: usize) -> Vec<u8> {
    (1..=bytes).map(|byte| byte as u8).collect()
}

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
    pub(crate) fn bare(proto: u8) -> Self {
        let info = UserSaInfo {
            id: XfrmId {
                daddr: RIGHT,
                spi: BeU32::new(0x1000),
                proto,
                pad: [0; 3],
            },
            saddr: LEFT,
            lft: LifetimeCfg::UNLIMITED,
            family: AF_INET,
            ..UserSaInfo::default()
        };
        Self {
            info,
            attrs: Vec::new(),
        }
    }

    /// ESP with AES-GCM.
    pub(crate) fn esp() -> Self {
        Self::bare(IPPROTO_ESP).attr(XFRMA_ALG_AEAD, algo_icv("rfc4106(gcm(aes))", 128, &key(20)))
    }

    /// AH with HMAC-SHA-1.
    pub(crate) fn ah() -> Self {
        Self::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH, algo("hmac(sha1)", &key(20)))
    }

    /// IPCOMP with deflate.
    pub(crate) fn comp() -> Self {
        Self::bare(IPPROTO_COMP).attr(XFRMA_ALG_COMP, algo("deflate", &[]))
    }

    /// The same between IPv6 addresses.
    pub(crate) fn over_v6(self) -> Self {
        self.info(|info| {
            info.family = AF_INET6;
            info.saddr = v6(1);
            info.id.daddr = v6(2);
        })
    }

    /// Another SPI.
    pub(crate) fn spi(self, spi: u32) -> Self {
        self.info(|info| info.id.spi = BeU32::new(spi))
    }

    /// Another mode.
    pub(crate) fn mode(self, mode: u8) -> Self {
        self.info(|info| info.mode = mode)
    }

    /// Changes the fixed structure.
    pub(crate) fn info(mut self, change: impl FnOnce(&mut UserSaInfo)) -> Self {
        change(&mut self.info);
        self
    }

    /// Appends an attribute.
    pub(crate) fn attr(mut self, kind: u16, payload: impl AsRef<[u8]>) -> Self {
        self.attrs.push((kind, payload.as_ref().to_vec()));
        self
    }

    /// Appends a structure as an attribute.
    pub(crate) fn pod<T: Pod>(self, kind: u16, value: &T) -> Self {
        self.attr(kind, value.as_bytes())
    }

    /// Appends a `u32` attribute.
    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, value.to_ne_bytes())
    }

    /// Takes an attribute away.
    pub(crate) fn without(mut self, kind: u16) -> Self {
        self.attrs.retain(|attr| attr.0 != kind);
        self
    }

    /// A message of type `kind` that carries it.
    pub(crate) fn message(&self, kind: u16) -> Message {
        let attrs = self.attrs.iter();
        attrs.fold(
            Message::with(kind, &self.info),
            |message, (kind, payload)| message.attr(*kind, payload),
        )
    }

    /// NEWSA.
    pub(crate) fn new_sa(&self) -> Message {
        self.message(XFRM_MSG_NEWSA)
    }

    /// UPDSA.
    pub(crate) fn upd_sa(&self) -> Message {
        self.message(XFRM_MSG_UPDSA)
    }

    /// What identifies it.
    pub(crate) fn id(&self) -> UserSaId {
        UserSaId {
            daddr: self.info.id.daddr,
            spi: self.info.id.spi,
            family: self.info.family,
            proto: self.info.id.proto,
            pad: 0,
        }
    }

    /// GETSA or DELSA of it, with its mark and source address.
    pub(crate) fn by_id(&self, kind: u16) -> Message {
        let mut message = Message::with(kind, &self.id());
        if let Some((_, mark)) = self.attrs.iter().find(|attr| attr.0 == XFRMA_MARK) {
            message = message.attr(XFRMA_MARK, mark);
        }
        message.pod(XFRMA_SRCADDR, &self.info.saddr)
    }
}

/// A policy as a client describes it.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// The fixed structure.
    pub info: UserPolicyInfo,
    /// Types and payloads.
    pub attrs: Vec<(u16, Vec<u8>)>,
}

impl Policy {
    /// 10.1.0.1/32 to 10.1.0.2/32, no template.
    pub(crate) fn new(dir: u8) -> Self {
        let info = UserPolicyInfo {
            sel: host_selector(),
            lft: LifetimeCfg::UNLIMITED,
            dir,
            ..UserPolicyInfo::default()
        };
        Self {
            info,
            attrs: Vec::new(),
        }
    }

    /// The same for fd00::1/128 to fd00::2/128.
    pub(crate) fn over_v6(self) -> Self {
        self.info(|info| info.sel = host_selector_v6())
    }

    /// Changes the fixed structure.
    pub(crate) fn info(mut self, change: impl FnOnce(&mut UserPolicyInfo)) -> Self {
        change(&mut self.info);
        self
    }

    /// Appends templates.
    pub(crate) fn tmpls(self, tmpls: &[UserTmpl]) -> Self {
        let bytes: Vec<u8> = tmpls
            .iter()
            .flat_map(|tmpl| tmpl.as_bytes().to_vec())
            .collect();
        self.attr(XFRMA_TMPL, bytes)
    }

    /// Appends an attribute.
    pub(crate) fn attr(mut self, kind: u16, payload: impl AsRef<[u8]>) -> Self {
        self.attrs.push((kind, payload.as_ref().to_vec()));
        self
    }

    /// Appends a structure as an attribute.
    pub(crate) fn pod<T: Pod>(self, kind: u16, value: &T) -> Self {
        self.attr(kind, value.as_bytes())
    }

    /// Appends a `u32` attribute.
    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, value.to_ne_bytes())
    }

    /// Of a type, main or sub.
    pub(crate) fn kind(self, kind: u8) -> Self {
        self.pod(XFRMA_POLICY_TYPE, &policy_type(kind))
    }

    /// A message of type `kind` that carries it.
    pub(crate) fn message(&self, kind: u16) -> Message {
        let attrs = self.attrs.iter();
        attrs.fold(
            Message::with(kind, &self.info),
            |message, (kind, payload)| message.attr(*kind, payload),
        )
    }

    /// NEWPOLICY.
    pub(crate) fn new_policy(&self) -> Message {
        self.message(XFRM_MSG_NEWPOLICY)
    }

    /// UPDPOLICY.
    pub(crate) fn upd_policy(&self) -> Message {
        self.message(XFRM_MSG_UPDPOLICY)
    }

    /// GETPOLICY or DELPOLICY of its selector, with its attributes but for templates.
    pub(crate) fn by_selector(&self, kind: u16) -> Message {
        let id = UserPolicyId {
            sel: self.info.sel,
            index: 0,
            dir: self.info.dir,
            pad: [0; 3],
        };
        let attrs = self.attrs.iter().filter(|attr| attr.0 != XFRMA_TMPL);
        attrs.fold(Message::with(kind, &id), |message, (kind, payload)| {
            message.attr(*kind, payload)
        })
    }
}

/// GETPOLICY or DELPOLICY of an index.
pub(crate) fn by_index(kind: u16, dir: u8, index: u32) -> Message {
    let id = UserPolicyId {
        index,
        dir,
        ..UserPolicyId::default()
    };
    Message::with(kind, &id)
}

/// `XFRMA_POLICY_TYPE`
pub(crate) fn policy_type(kind: u8) -> UserPolicyType {
    UserPolicyType {
        kind,
        ..UserPolicyType::default()
    }
}

/// 10.1.0.1/32 to 10.1.0.2/32
pub(crate) fn host_selector() -> Selector {
    Selector {
        daddr: RIGHT,
        saddr: LEFT,
        family: AF_INET,
        prefixlen_d: 32,
        prefixlen_s: 32,
        ..Selector::default()
    }
}

/// fd00::1/128 to fd00::2/128
pub(crate) fn host_selector_v6() -> Selector {
    Selector {
        daddr: v6(2),
        saddr: v6(1),
        family: AF_INET6,
        prefixlen_d: 128,
        prefixlen_s: 128,
        ..Selector::default()
    }
}

/// An IPv4 selector of prefixes.
pub(crate) fn prefixes(saddr: Address, s: u8, daddr: Address, d: u8) -> Selector {
    Selector {
        daddr,
        saddr,
        family: AF_INET,
        prefixlen_d: d,
        prefixlen_s: s,
        ..Selector::default()
    }
}

/// A template: ESP, all algorithms, 10.1.0.1 to 10.1.0.2.
pub(crate) fn tmpl(mode: u8, reqid: u32) -> UserTmpl {
    UserTmpl {
        id: XfrmId {
            daddr: RIGHT,
            proto: IPPROTO_ESP,
            ..XfrmId::default()
        },
        family: AF_INET,
        saddr: LEFT,
        reqid,
        mode,
        aalgos: u32::MAX,
        ealgos: u32::MAX,
        calgos: u32::MAX,
        ..UserTmpl::default()
    }
}

/// An attribute's smallest payload, zeroes where nothing says more.
pub(crate) const ATTR_MIN: [usize; 42] = [
    0, 68, 68, 68, 24, 64, 224, 168, 8, 32, 12, 4, 4, 16, 16, 8, 6, 76, 72, 40, 72, 8, 4, 24, 4, 1,
    36, 0, 8, 4, 4, 4, 4, 1, 4, 4, 4, 2, 0, 4, 4, 4,
];

/// ALLOCSPI for an SA.
pub(crate) fn alloc(sa: &Sa, min: u32, max: u32) -> Message {
    let request = UserSpiInfo {
        info: sa.info,
        min,
        max,
    };
    let attrs = sa.attrs.iter();
    attrs.fold(
        Message::with(XFRM_MSG_ALLOCSPI, &request),
        |message, (kind, payload)| message.attr(*kind, payload),
    )
}

/// FLUSHSA of a protocol, 0 for all, unacknowledged.
pub(crate) fn flush_sa(proto: u8) -> Message {
    Message::with(XFRM_MSG_FLUSHSA, &UserSaFlush { proto }).flags(NLM_F_REQUEST)
}

/// FLUSHPOLICY of the main type, unacknowledged.
pub(crate) fn flush_policy() -> Message {
    Message::new(XFRM_MSG_FLUSHPOLICY).flags(NLM_F_REQUEST)
}

/// Tries each SA in an empty SAD; what is accepted is dumped and flushed.
pub(crate) fn try_sas(s: &mut Session<'_>, cases: impl IntoIterator<Item = (String, Sa)>) {
    let a = s.open("a", Open::new());
    for (label, sa) in cases {
        if s.request(a, &label, sa.new_sa()).is_ok() {
            s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
            s.request(a, "flush", flush_sa(0));
        }
    }
}

/// Tries each policy in an empty SPD; what is accepted is dumped and flushed.
pub(crate) fn try_policies(s: &mut Session<'_>, cases: impl IntoIterator<Item = (String, Policy)>) {
    let a = s.open("a", Open::new());
    for (label, policy) in cases {
        if s.request(a, &label, policy.new_policy()).is_ok() {
            s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
            s.request(a, "flush", flush_policy());
            let sub = flush_policy().pod(XFRMA_POLICY_TYPE, &policy_type(1));
            s.request(a, "flush sub", sub);
        }
    }
}

/// Labels cases.
pub(crate) fn labelled<T>(cases: impl IntoIterator<Item = (&'static str, T)>) -> Vec<(String, T)> {
    let cases = cases.into_iter();
    cases
        .map(|(label, case)| (label.to_owned(), case))
        .collect()
}

/// An ENCAP attribute with odd padding and original address.
pub(crate) fn encap_of(kind: u16) -> EncapTmpl {
    EncapTmpl {
        kind,
        sport: BeU16::new(4500),
        dport: BeU16::new(4501),
        pad: [7; 2],
        oa: Address([5; 16]),
    }
}

/// ENCAP from `port` to 4500.
pub(crate) fn encap_from(kind: u16, port: u16) -> EncapTmpl {
    EncapTmpl {
        kind,
        sport: BeU16::new(port),
        dport: BeU16::new(4500),
        pad: [0; 2],
        oa: Address::ANY,
    }
}

/// An SA with many attributes.
pub(crate) fn rich() -> Sa {
    Sa::bare(50)
        .mode(1)
        .attr(XFRMA_ALG_CRYPT, algo("aes", &key(16)))
        .attr(XFRMA_ALG_AUTH, algo("sha256", &key(32)))
        .u32(XFRMA_TFCPAD, 100)
        .u32(XFRMA_SET_MARK, 5)
        .attr(XFRMA_COADDR, [4; 16])
        .u32(XFRMA_SA_EXTRA_FLAGS, 2)
        .attr(XFRMA_SA_DIR, [2])
        .u32(XFRMA_SA_PCPU, 0)
        .u32(XFRMA_REPLAY_THRESH, 5)
        .attr(
            XFRMA_REPLAY_ESN_VAL,
            ReplayStateEsn {
                oseq: 9,
                ..ReplayStateEsn::default()
            }
            .as_bytes(),
        )
        .info(|i| {
            i.flags = XFRM_STATE_ESN | XFRM_STATE_NOECN;
            i.reqid = 5;
            i.seq = 6;
            i.lft.hard_byte_limit = 99;
            i.lft.soft_add_expires_seconds = 5000;
        })
}

/// Every combination of NETLINK_CAP_ACK and NETLINK_EXT_ACK.
pub(crate) const ACKS: [(&str, bool, bool); 4] = [
    ("neither", false, false),
    ("cap", true, false),
    ("ext", false, true),
    ("both", true, true),
];

/// `XFRMA_REPLAY_ESN_VAL` with `words` words of bitmap behind it.
pub(crate) fn replay_esn(bmp_len: u32, window: u32, words: usize) -> Vec<u8> {
    let esn = ReplayStateEsn {
        bmp_len,
        replay_window: window,
        ..ReplayStateEsn::default()
    };
    let mut out = esn.as_bytes().to_vec();
    out.extend((0..words * 4).map(|n| n as u8));
    out
}

/// Dumps the SAD.
pub(crate) fn dump_sad(s: &mut Session<'_>, a: crate::subject::Socket) {
    s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
}

/// Dumps the SPD.
pub(crate) fn dump_spd(s: &mut Session<'_>, a: crate::subject::Socket) {
    s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
}
