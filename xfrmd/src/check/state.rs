//! SAs and policies as dumps tell them, without keys.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::WallSecs;
use xfrm_proto::algo::NAME_BYTES;
use xfrm_proto::align4;
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::policy::Table;
use xfrm_proto::uapi::{
    Address, Mark, NlMsgHdr, Pod, ReplayState, ReplayStateEsn, Selector, UserPolicyInfo,
    UserPolicyType, UserSaInfo, UserTmpl,
};

/// A namespace's SAs and policies at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The moment.
    pub now: WallSecs,
    /// In the order of the dump: the youngest first.
    pub sas: Vec<Sa>,
    /// In the order of the dump: the newest first, sockets' own included.
    pub policies: Vec<Policy>,
}

/// A dump that makes no sense, and the offset where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub usize);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the message at byte {} makes no sense", self.0)
    }
}

impl std::error::Error for Malformed {}

/// An SA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sa {
    /// The fixed part.
    pub info: UserSaInfo,
    /// Which marks find it.
    pub mark: Mark,
    /// XFRM interface.
    pub if_id: u32,
    /// CPU that it is for.
    pub cpu: Option<u32>,
    /// `XFRM_SA_DIR_*`, if it says.
    pub direction: Option<u8>,
    /// `XFRM_SA_XFLAG_*`.
    pub extra_flags: u32,
    /// Kernel name of the cipher, if it has one.
    pub cipher: Option<String>,
    /// Kernel name of the integrity algorithm.
    pub integrity: Option<String>,
    /// Kernel name of the algorithm that does both.
    pub combined: Option<String>,
    /// Kernel name of the compression.
    pub compression: Option<String>,
    /// Last number sent.
    pub sent: u64,
    /// Highest number received.
    pub received: u64,
    /// Packets in its replay window.
    pub window: u32,
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The fixed part.
    pub info: UserPolicyInfo,
    /// What it wants, innermost first.
    pub templates: Vec<UserTmpl>,
    /// Marks that it is for.
    pub mark: Mark,
    /// XFRM interface.
    pub if_id: u32,
    /// `XFRM_POLICY_TYPE_*`.
    pub kind: u8,
}

impl State {
    /// Reads messages of dumps: NEWSA and NEWPOLICY, whatever else there is between them.
    ///
    /// # Errors
    /// A message that was cut, or has attributes that no kernel makes.
    pub fn read(dumps: &[u8], now: WallSecs) -> Result<Self, Malformed> {
        let mut state = Self {
            now,
            ..Self::default()
        };
        let mut at = 0;
        while let Some(rest) = dumps.get(at..).filter(|rest| !rest.is_empty()) {
            let header = NlMsgHdr::read(rest).ok_or(Malformed(at))?;
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let message = rest.get(..len).filter(|it| it.len() >= NLMSG_HDRLEN);
            let message = message.ok_or(Malformed(at))?;
            match header.kind {
                XFRM_MSG_NEWSA => state.sas.push(Sa::read(message).ok_or(Malformed(at))?),
                XFRM_MSG_NEWPOLICY => {
                    let policy = Policy::read(message).ok_or(Malformed(at))?;
                    state.policies.push(policy);
                }
                _ => {}
            }
            at += align4(len);
        }
        Ok(state)
    }
}

/// Fixed part and attributes of a message.
fn parts<T: Pod>(message: &[u8]) -> Option<(T, Attrs<'_>)> {
    let info = T::read(message.get(NLMSG_HDRLEN..)?)?;
    let start = align4(NLMSG_HDRLEN + T::SIZE);
    let attrs = Attrs::parse(message, start, &Table::xfrma(XFRMA_MAX)).ok()?;
    Some((info, attrs))
}

/// The name of an algorithm; the key behind it is not looked at.
fn algorithm(attrs: &Attrs<'_>, kind: u16) -> Option<String> {
    let name = attrs.bytes(kind)?.first_chunk::<NAME_BYTES>()?;
    let name = name.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

impl Sa {
    fn read(message: &[u8]) -> Option<Self> {
        let (info, attrs) = parts::<UserSaInfo>(message)?;
        let short: ReplayState = attrs.pod(XFRMA_REPLAY_VAL).unwrap_or_default();
        let (mut sent, mut received) = (u64::from(short.oseq), u64::from(short.seq));
        let mut window = u32::from(info.replay_window);
        if let Some(long) = attrs.pod::<ReplayStateEsn>(XFRMA_REPLAY_ESN_VAL) {
            let both = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
            sent = both(long.oseq_hi, long.oseq);
            received = both(long.seq_hi, long.seq);
            window = long.replay_window;
        }
        let integrity = algorithm(&attrs, XFRMA_ALG_AUTH_TRUNC);
        Some(Self {
            info,
            mark: attrs.pod(XFRMA_MARK).unwrap_or_default(),
            if_id: attrs.u32(XFRMA_IF_ID).unwrap_or(0),
            cpu: attrs.u32(XFRMA_SA_PCPU),
            direction: attrs.u8(XFRMA_SA_DIR),
            extra_flags: attrs.u32(XFRMA_SA_EXTRA_FLAGS).unwrap_or(0),
            cipher: algorithm(&attrs, XFRMA_ALG_CRYPT),
            integrity: integrity.or_else(|| algorithm(&attrs, XFRMA_ALG_AUTH)),
            combined: algorithm(&attrs, XFRMA_ALG_AEAD),
            compression: algorithm(&attrs, XFRMA_ALG_COMP),
            sent,
            received,
            window,
        })
    }

    /// Made by a key manager: AH, ESP or IPComp. (The SAs that Linux adds under IPComp are not.)
    #[must_use]
    pub fn is_negotiated(&self) -> bool {
        matches!(self.info.id.proto, IPPROTO_AH | IPPROTO_ESP | IPPROTO_COMP)
    }

    /// Reserved or asked for, and without keys yet: nothing else lacks every algorithm.
    #[must_use]
    pub fn is_larval(&self) -> bool {
        self.is_negotiated()
            && self.cipher.is_none()
            && self.integrity.is_none()
            && self.combined.is_none()
            && self.compression.is_none()
    }

    /// Whether its sequence numbers have 64 bits.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.info.flags & XFRM_STATE_ESN != 0
    }

    /// Source and destination.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.info.saddr, self.info.id.daddr].map(|it| address(it, self.info.family))
    }
}

impl Policy {
    fn read(message: &[u8]) -> Option<Self> {
        let (info, attrs) = parts::<UserPolicyInfo>(message)?;
        let kind = attrs.pod::<UserPolicyType>(XFRMA_POLICY_TYPE);
        Some(Self {
            info,
            templates: attrs.array(XFRMA_TMPL).collect(),
            mark: attrs.pod(XFRMA_MARK).unwrap_or_default(),
            if_id: attrs.u32(XFRMA_IF_ID).unwrap_or(0),
            kind: kind.map_or(XFRM_POLICY_TYPE_MAIN, |it| it.kind),
        })
    }

    /// Whether it is a socket's own.
    #[must_use]
    pub fn is_sockets(&self) -> bool {
        self.info.dir >= XFRM_POLICY_MAX
    }

    /// `XFRM_POLICY_IN`, `_OUT` or `_FWD`.
    #[must_use]
    pub fn direction(&self) -> u8 {
        self.info.dir % XFRM_POLICY_MAX
    }

    /// Whether packets pass it only with SAs.
    #[must_use]
    pub fn protects(&self) -> bool {
        self.info.action == XFRM_POLICY_ALLOW && self.templates.iter().any(|it| it.optional == 0)
    }

    /// Whether packets pass it as they are.
    #[must_use]
    pub fn passes_plaintext(&self) -> bool {
        self.info.action == XFRM_POLICY_ALLOW && self.templates.is_empty()
    }

    /// The name of its direction.
    #[must_use]
    pub fn direction_name(&self) -> &'static str {
        match self.direction() {
            XFRM_POLICY_IN => "in",
            XFRM_POLICY_OUT => "out",
            _ => "fwd",
        }
    }

    /// Source and destination prefix.
    #[must_use]
    pub fn prefixes(&self) -> [String; 2] {
        let Selector {
            saddr,
            daddr,
            prefixlen_s,
            prefixlen_d,
            family,
            ..
        } = self.info.sel;
        [(saddr, prefixlen_s), (daddr, prefixlen_d)]
            .map(|(it, len)| format!("{}/{len}", address(it, family)))
    }
}

/// An address of a family.
pub(super) fn address(address: Address, family: u16) -> IpAddr {
    if family == AF_INET6 {
        return Ipv6Addr::from(address.0).into();
    }
    let [a, b, c, d, ..] = address.0;
    Ipv4Addr::new(a, b, c, d).into()
}

/// A protocol's name, or its number.
pub(super) fn protocol(number: u8) -> String {
    match number {
        IPPROTO_ESP => "esp".to_owned(),
        IPPROTO_AH => "ah".to_owned(),
        IPPROTO_COMP => "comp".to_owned(),
        other => format!("proto {other}"),
    }
}

impl fmt::Display for Sa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [source, destination] = self.addresses();
        let id = &self.info.id;
        let (name, spi) = (protocol(id.proto), id.spi.get());
        write!(f, "{name} {source} > {destination} spi {spi:#010x}")?;
        if self.info.reqid != 0 {
            write!(f, " reqid {}", self.info.reqid)?;
        }
        if self.mark != Mark::default() {
            write!(f, " mark {:#x}/{:#x}", self.mark.v, self.mark.m)?;
        }
        if self.if_id != 0 {
            write!(f, " if_id {}", self.if_id)?;
        }
        Ok(())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [source, destination] = self.prefixes();
        let info = &self.info;
        if self.is_sockets() {
            f.write_str("socket ")?;
        }
        write!(f, "{} {source} > {destination}", self.direction_name())?;
        if info.sel.proto != 0 {
            write!(f, " proto {}", info.sel.proto)?;
        }
        write!(f, " priority {} index {}", info.priority, info.index)
    }
}
