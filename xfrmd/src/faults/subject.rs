//! What a message is about: its type, and the SA or policy that it names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, AeventId, NlMsgHdr, Pod, Selector, UserAcquire, UserExpire, UserMapping,
    UserMigrateState, UserPolExpire, UserPolicyId, UserPolicyInfo, UserSaId, UserSaInfo,
    UserSpiInfo, UserTmpl,
};

use super::Matching;

/// Message types by the kernel's names, without `XFRM_MSG_`.
pub const MESSAGES: [(&str, u16); 26] = [
    ("NEWSA", XFRM_MSG_NEWSA),
    ("DELSA", XFRM_MSG_DELSA),
    ("GETSA", XFRM_MSG_GETSA),
    ("NEWPOLICY", XFRM_MSG_NEWPOLICY),
    ("DELPOLICY", XFRM_MSG_DELPOLICY),
    ("GETPOLICY", XFRM_MSG_GETPOLICY),
    ("ALLOCSPI", XFRM_MSG_ALLOCSPI),
    ("ACQUIRE", XFRM_MSG_ACQUIRE),
    ("EXPIRE", XFRM_MSG_EXPIRE),
    ("UPDPOLICY", XFRM_MSG_UPDPOLICY),
    ("UPDSA", XFRM_MSG_UPDSA),
    ("POLEXPIRE", XFRM_MSG_POLEXPIRE),
    ("FLUSHSA", XFRM_MSG_FLUSHSA),
    ("FLUSHPOLICY", XFRM_MSG_FLUSHPOLICY),
    ("NEWAE", XFRM_MSG_NEWAE),
    ("GETAE", XFRM_MSG_GETAE),
    ("REPORT", XFRM_MSG_REPORT),
    ("MIGRATE", XFRM_MSG_MIGRATE),
    ("NEWSADINFO", XFRM_MSG_NEWSADINFO),
    ("GETSADINFO", XFRM_MSG_GETSADINFO),
    ("NEWSPDINFO", XFRM_MSG_NEWSPDINFO),
    ("GETSPDINFO", XFRM_MSG_GETSPDINFO),
    ("MAPPING", XFRM_MSG_MAPPING),
    ("SETDEFAULT", XFRM_MSG_SETDEFAULT),
    ("GETDEFAULT", XFRM_MSG_GETDEFAULT),
    ("MIGRATE_STATE", XFRM_MSG_MIGRATE_STATE),
];

/// A message type by its name.
#[must_use]
pub fn message(name: &str) -> Option<u16> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("XFRM_MSG_").unwrap_or(&name);
    let found = MESSAGES.iter().find(|(known, _)| *known == name);
    found.map(|&(_, kind)| kind)
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It has come from the wire.
    In,
    /// It is about to go there.
    Out,
}

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    family: u16,
    address: Address,
    bits: u8,
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(drop)?;
        let (family, most) = if address.is_ipv4() {
            (AF_INET, 32)
        } else {
            (AF_INET6, 128)
        };
        let bits = bits.map_or(Ok(most), str::parse).map_err(drop)?;
        if bits > most {
            return Err(());
        }
        Ok(Self {
            family,
            address: address.into(),
            bits,
        })
    }
}

impl Prefix {
    fn has(&self, family: u16, address: Address) -> bool {
        let differs = self.address.bits() ^ address.bits();
        let below = 128 - u32::from(self.bits);
        // Without a family (a template's selector) the bytes decide.
        (family == self.family || family == AF_UNSPEC)
            && differs.checked_shr(below).unwrap_or(0) == 0
    }
}

/// A message, and what it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its type.
    pub kind: u16,
    /// Whether it begins a dump.
    pub is_dump: bool,
    spi: Option<u32>,
    reqid: Option<u32>,
    /// Destinations, with their families.
    destinations: Vec<(u16, Address)>,
}

impl Subject {
    /// Reads a message, header included.
    #[must_use]
    pub fn of(message: &[u8]) -> Self {
        let header = NlMsgHdr::read(message).unwrap_or_default();
        let body = message.get(NLMSG_HDRLEN..).unwrap_or_default();
        let dumps = header.flags & NLM_F_DUMP == NLM_F_DUMP
            && matches!(header.kind, XFRM_MSG_GETSA | XFRM_MSG_GETPOLICY);
        let mut subject = Self {
            kind: header.kind,
            is_dump: dumps,
            ..Self::default()
        };
        if !dumps {
            // What is too short says nothing.
            let _ = subject.read(body);
        }
        subject
    }

    fn read(&mut self, body: &[u8]) -> Option<()> {
        match self.kind {
            XFRM_MSG_NEWSA | XFRM_MSG_UPDSA => self.sa(&UserSaInfo::read(body)?),
            XFRM_MSG_ALLOCSPI => {
                self.sa(&UserSpiInfo::read(body)?.info);
                self.spi = None;
            }
            XFRM_MSG_EXPIRE => self.sa(&UserExpire::read(body)?.state),
            XFRM_MSG_GETSA | XFRM_MSG_DELSA => self.id(&UserSaId::read(body)?),
            XFRM_MSG_NEWAE | XFRM_MSG_GETAE => {
                let id = AeventId::read(body)?;
                self.id(&id.sa_id);
                self.reqid = (id.reqid != 0).then_some(id.reqid);
            }
            XFRM_MSG_MAPPING => {
                let mapping = UserMapping::read(body)?;
                self.id(&mapping.id);
                self.reqid = Some(mapping.reqid);
            }
            XFRM_MSG_MIGRATE_STATE => {
                let migration = UserMigrateState::read(body)?;
                self.id(&migration.id);
                self.reqid = Some(migration.new_reqid);
            }
            XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY => {
                self.selector(&UserPolicyInfo::read(body)?.sel);
                self.templates(body.get(UserPolicyInfo::SIZE..)?);
            }
            XFRM_MSG_POLEXPIRE => {
                self.selector(&UserPolExpire::read(body)?.pol.sel);
                self.templates(body.get(UserPolExpire::SIZE..)?);
            }
            XFRM_MSG_GETPOLICY | XFRM_MSG_DELPOLICY | XFRM_MSG_MIGRATE => {
                self.selector(&UserPolicyId::read(body)?.sel);
            }
            XFRM_MSG_ACQUIRE => {
                let acquire = UserAcquire::read(body)?;
                self.selector(&acquire.sel);
                self.destinations.push((AF_UNSPEC, acquire.id.daddr));
                self.templates(body.get(UserAcquire::SIZE..)?);
            }
            _ => {}
        }
        Some(())
    }

    fn sa(&mut self, info: &UserSaInfo) {
        self.spi = Some(info.id.spi.get());
        self.reqid = Some(info.reqid);
        self.destinations.push((info.family, info.id.daddr));
    }

    fn id(&mut self, id: &UserSaId) {
        self.spi = Some(id.spi.get());
        self.destinations.push((id.family, id.daddr));
    }

    fn selector(&mut self, selector: &Selector) {
        self.destinations.push((selector.family, selector.daddr));
    }

    /// The first template's, which is what key managers mean by a policy's.
    fn templates(&mut self, mut attributes: &[u8]) {
        while let Some(header) = xfrm_proto::uapi::NlAttr::read(attributes) {
            let bytes = usize::from(header.len);
            let Some(value) = attributes.get(NLA_HDRLEN..bytes) else {
                return;
            };
            if header.kind & NLA_TYPE_MASK == XFRMA_TMPL
                && let Some(template) = UserTmpl::read(value)
            {
                self.reqid = Some(template.reqid);
                self.destinations.push((template.family, template.id.daddr));
            }
            attributes = attributes
                .get(xfrm_proto::align4(bytes)..)
                .unwrap_or_default();
        }
    }

    /// Whether a rule looks at it.
    pub(super) fn fits(&self, wanted: &Matching) -> bool {
        let has = |prefix: Prefix| {
            let mut all = self.destinations.iter();
            all.any(|&(family, address)| prefix.has(family, address))
        };
        (wanted.messages.is_empty() || wanted.messages.contains(&self.kind))
            && (wanted.spi.is_none() || wanted.spi == self.spi)
            && (wanted.reqid.is_none() || wanted.reqid == self.reqid)
            && wanted.dst.is_none_or(has)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MESSAGES.iter().find(|(_, kind)| *kind == self.kind) {
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "type {:#x}", self.kind)?,
        }
        if self.is_dump {
            f.write_str(" dump")?;
        }
        if let Some(spi) = self.spi {
            write!(f, " spi {spi:#010x}")?;
        }
        if let Some(&(family, address)) = self.destinations.first() {
            let Address([a, b, c, d, ..]) = address;
            let shown: IpAddr = match family {
                AF_INET6 => address.0.into(),
                _ => [a, b, c, d].into(),
            };
            write!(f, " dst {shown}")?;
        }
        match self.reqid {
            Some(reqid) => write!(f, " reqid {reqid}"),
            None => Ok(()),
        }
    }
}
