//! Messages as text: all bytes of a message are in it, so that two messages
//! with the same text are the same.
//!
//! The fixed structure and every attribute is a line: name, a reading of it,
//! its bytes in hex, where `.12.` stands for twelve zero bytes.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use crate::align4;
use crate::consts::*;
use crate::uapi::*;

/// The name of a message type.
#[must_use]
pub fn kind_name(kind: u16) -> String {
    const NAMES: [&str; 26] = [
        "NEWSA",
        "DELSA",
        "GETSA",
        "NEWPOLICY",
        "DELPOLICY",
        "GETPOLICY",
        "ALLOCSPI",
        "ACQUIRE",
        "EXPIRE",
        "UPDPOLICY",
        "UPDSA",
        "POLEXPIRE",
        "FLUSHSA",
        "FLUSHPOLICY",
        "NEWAE",
        "GETAE",
        "REPORT",
        "MIGRATE",
        "NEWSADINFO",
        "GETSADINFO",
        "NEWSPDINFO",
        "GETSPDINFO",
        "MAPPING",
        "SETDEFAULT",
        "GETDEFAULT",
        "MIGRATE_STATE",
    ];
    match kind {
        NLMSG_ERROR => "ERROR".into(),
        NLMSG_DONE => "DONE".into(),
        _ => kind
            .checked_sub(XFRM_MSG_BASE)
            .and_then(|index| NAMES.get(usize::from(index)))
            .map_or_else(|| format!("TYPE_{kind:#x}"), |name| (*name).to_owned()),
    }
}

/// The name of an `XFRMA_*` attribute.
#[must_use]
pub fn attr_name(kind: u16) -> Option<&'static str> {
    const NAMES: [&str; 42] = [
        "UNSPEC",
        "ALG_AUTH",
        "ALG_CRYPT",
        "ALG_COMP",
        "ENCAP",
        "TMPL",
        "SA",
        "POLICY",
        "SEC_CTX",
        "LTIME_VAL",
        "REPLAY_VAL",
        "REPLAY_THRESH",
        "ETIMER_THRESH",
        "SRCADDR",
        "COADDR",
        "LASTUSED",
        "POLICY_TYPE",
        "MIGRATE",
        "ALG_AEAD",
        "KMADDRESS",
        "ALG_AUTH_TRUNC",
        "MARK",
        "TFCPAD",
        "REPLAY_ESN_VAL",
        "SA_EXTRA_FLAGS",
        "PROTO",
        "ADDRESS_FILTER",
        "PAD",
        "OFFLOAD_DEV",
        "SET_MARK",
        "SET_MARK_MASK",
        "IF_ID",
        "MTIMER_THRESH",
        "SA_DIR",
        "NAT_KEEPALIVE_INTERVAL",
        "SA_PCPU",
        "IPTFS_DROP_TIME",
        "IPTFS_REORDER_WINDOW",
        "IPTFS_DONT_FRAG",
        "IPTFS_INIT_DELAY",
        "IPTFS_MAX_QSIZE",
        "IPTFS_PKT_SIZE",
    ];
    NAMES.get(usize::from(kind)).copied()
}

/// Bytes of the fixed structure of a message that the kernel sends.
#[must_use]
pub fn fixed_bytes(kind: u16) -> usize {
    match kind {
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA => UserSaInfo::SIZE,
        XFRM_MSG_DELSA | XFRM_MSG_GETSA => UserSaId::SIZE,
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY => UserPolicyInfo::SIZE,
        XFRM_MSG_DELPOLICY | XFRM_MSG_GETPOLICY | XFRM_MSG_MIGRATE => UserPolicyId::SIZE,
        XFRM_MSG_ALLOCSPI => UserSpiInfo::SIZE,
        XFRM_MSG_ACQUIRE => UserAcquire::SIZE,
        XFRM_MSG_EXPIRE => UserExpire::SIZE,
        XFRM_MSG_POLEXPIRE => UserPolExpire::SIZE,
        XFRM_MSG_FLUSHSA => 4,
        XFRM_MSG_NEWAE | XFRM_MSG_GETAE => AeventId::SIZE,
        XFRM_MSG_REPORT => UserReport::SIZE,
        XFRM_MSG_NEWSADINFO | XFRM_MSG_GETSADINFO | XFRM_MSG_NEWSPDINFO | XFRM_MSG_GETSPDINFO => 4,
        XFRM_MSG_MAPPING => UserMapping::SIZE,
        XFRM_MSG_SETDEFAULT | XFRM_MSG_GETDEFAULT => 4,
        XFRM_MSG_MIGRATE_STATE => UserMigrateState::SIZE,
        _ => 0,
    }
}

/// Hex in which runs of at least four zero bytes are counted.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    let mut rest = bytes;
    while let [first, others @ ..] = rest {
        let zeroes = rest.iter().take_while(|&&byte| byte == 0).count();
        if zeroes >= 4 {
            let _ = write!(out, ".{zeroes}.");
            rest = rest.get(zeroes..).unwrap_or_default();
        } else {
            let _ = write!(out, "{first:02x}");
            rest = others;
        }
    }
    out
}

/// A message as lines of text.
#[must_use]
pub fn message(bytes: &[u8]) -> Vec<String> {
    let Some(header) = NlMsgHdr::read(bytes) else {
        return vec![format!("short {}", hex(bytes))];
    };
    let body = bytes.get(NLMSG_HDRLEN..).unwrap_or_default();
    let mut head = format!(
        "{} len {} flags {:#x} seq {} pid {}",
        kind_name(header.kind),
        header.len,
        header.flags,
        header.seq,
        header.pid
    );
    match header.kind {
        NLMSG_ERROR => error(&header, body, head),
        NLMSG_DONE => {
            let errno = body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
            let _ = write!(head, " errno {}", errno.unwrap_or_default());
            let mut lines = vec![head];
            tlvs(body.get(4..).unwrap_or_default(), &mut lines);
            lines
        }
        kind => {
            let fixed = body
                .get(..fixed_bytes(kind).min(body.len()))
                .unwrap_or_default();
            let mut lines = vec![head];
            if !fixed.is_empty() {
                lines.push(format!("{}| {}", reading(kind, fixed), hex(fixed)));
            }
            attrs(
                body.get(fixed.len()..).unwrap_or_default(),
                kind,
                &mut lines,
            );
            lines
        }
    }
}

fn error(header: &NlMsgHdr, body: &[u8], mut head: String) -> Vec<String> {
    let errno = body
        .first_chunk()
        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    let echoed = body.get(4..).unwrap_or_default();
    let Some(request) = NlMsgHdr::read(echoed) else {
        return vec![head, format!("short {}", hex(body))];
    };
    let _ = write!(
        head,
        " errno {errno} for {} len {} flags {:#x} seq {} pid {}",
        kind_name(request.kind),
        request.len,
        request.flags,
        request.seq,
        request.pid
    );
    let mut lines = vec![head];
    let capped = header.flags & NLM_F_CAPPED != 0;
    let end = if capped {
        NLMSG_HDRLEN
    } else {
        align4(usize::try_from(request.len).unwrap_or(0)).min(echoed.len())
    };
    if let Some(body) = echoed
        .get(NLMSG_HDRLEN..end)
        .filter(|body| !body.is_empty())
    {
        lines.push(format!("echo | {}", hex(body)));
    }
    tlvs(echoed.get(end..).unwrap_or_default(), &mut lines);
    lines
}

fn tlvs(bytes: &[u8], lines: &mut Vec<String>) {
    for (kind, payload, padding) in Attributes(bytes) {
        let line = match (kind, payload) {
            (Some(NLMSGERR_ATTR_MSG), [text @ .., 0]) => {
                format!("text {:?}", String::from_utf8_lossy(text))
            }
            (Some(NLMSGERR_ATTR_OFFS), &[a, b, c, d]) => {
                format!("offset {}", u32::from_ne_bytes([a, b, c, d]))
            }
            (Some(kind), _) => format!("tlv {kind:#x} {}", hex(payload)),
            (None, _) => format!("leftover {}", hex(payload)),
        };
        lines.push(line + &odd_padding(padding));
    }
}

fn attrs(bytes: &[u8], kind: u16, lines: &mut Vec<String>) {
    let own_space = matches!(kind, XFRM_MSG_NEWSADINFO | XFRM_MSG_NEWSPDINFO);
    for (attr, payload, padding) in Attributes(bytes) {
        let line = match attr {
            Some(attr) => {
                let name = attr_name(attr)
                    .filter(|_| !own_space)
                    .map_or_else(|| format!("attr {attr:#x}"), str::to_owned);
                let reading = attr_reading(attr, payload).filter(|_| !own_space);
                format!(
                    "{name} {}{} | {}",
                    payload.len(),
                    reading.map(|text| format!(" {text}")).unwrap_or_default(),
                    hex(payload)
                )
            }
            None => format!("leftover {}", hex(payload)),
        };
        lines.push(line + &odd_padding(padding));
    }
}

fn odd_padding(padding: &[u8]) -> String {
    if padding.iter().all(|&byte| byte == 0) {
        String::new()
    } else {
        format!(" padding {}", hex(padding))
    }
}

/// Walks attributes: type, payload, padding; type `None` for what is left over.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (Option<u16>, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let header = NlAttr::read(self.0);
        let Some((header, payload)) =
            header.and_then(|h| Some((h, self.0.get(NLA_HDRLEN..usize::from(h.len))?)))
        else {
            return Some((None, std::mem::take(&mut self.0), &[]));
        };
        let end = usize::from(header.len);
        let next = align4(end).min(self.0.len());
        let padding = self.0.get(end..next).unwrap_or_default();
        self.0 = self.0.get(next..).unwrap_or_default();
        Some((Some(header.kind), payload, padding))
    }
}

/// An address of a family, or all its bytes when the family is none.
fn address(address: Address, family: u16) -> String {
    let [a, b, c, d, ..] = address.0;
    match family {
        AF_INET => format!("{a}.{b}.{c}.{d}"),
        _ => Ipv6Addr::from(address.0).to_string(),
    }
}

fn selector(sel: &Selector) -> String {
    let any = Selector {
        family: sel.family,
        ..Selector::default()
    };
    if *sel == any {
        return format!("sel[any family {}]", sel.family);
    }
    format!(
        "sel[{}/{}>{}/{} proto {} ports {}/{:#x}>{}/{:#x} family {} if {}]",
        address(sel.saddr, sel.family),
        sel.prefixlen_s,
        address(sel.daddr, sel.family),
        sel.prefixlen_d,
        sel.proto,
        sel.sport,
        sel.sport_mask,
        sel.dport,
        sel.dport_mask,
        sel.family,
        sel.ifindex
    )
}

fn sa_info(sa: &UserSaInfo) -> String {
    format!(
        "sa {}>{} proto {} spi {:#x} reqid {} mode {} family {} seq {} window {} flags {:#x} {} {}",
        address(sa.saddr, sa.family),
        address(sa.id.daddr, sa.family),
        sa.id.proto,
        sa.id.spi,
        sa.reqid,
        sa.mode,
        sa.family,
        sa.seq,
        sa.replay_window,
        sa.flags,
        selector(&sa.sel),
        lifetime(&sa.lft),
    )
}

fn lifetime(lft: &LifetimeCfg) -> String {
    if *lft == LifetimeCfg::UNLIMITED {
        return "lft[none]".into();
    }
    format!(
        "lft[bytes {:x}/{:x} packets {:x}/{:x} add {}/{} use {}/{}]",
        lft.soft_byte_limit,
        lft.hard_byte_limit,
        lft.soft_packet_limit,
        lft.hard_packet_limit,
        lft.soft_add_expires_seconds,
        lft.hard_add_expires_seconds,
        lft.soft_use_expires_seconds,
        lft.hard_use_expires_seconds
    )
}

fn sa_id(id: &UserSaId) -> String {
    format!(
        "id {} proto {} spi {:#x} family {}",
        address(id.daddr, id.family),
        id.proto,
        id.spi,
        id.family
    )
}

fn policy_info(policy: &UserPolicyInfo) -> String {
    format!(
        "policy dir {} action {} index {} priority {} flags {:#x} {} {}",
        policy.dir,
        policy.action,
        policy.index,
        policy.priority,
        policy.flags,
        selector(&policy.sel),
        lifetime(&policy.lft)
    )
}

fn policy_id(id: &UserPolicyId) -> String {
    format!(
        "policy dir {} index {} {}",
        id.dir,
        id.index,
        selector(&id.sel)
    )
}

fn reading(kind: u16, fixed: &[u8]) -> String {
    let text = match kind {
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA => UserSaInfo::read(fixed).map(|sa| sa_info(&sa)),
        XFRM_MSG_EXPIRE => UserExpire::read(fixed)
            .map(|expire| format!("hard {} {}", expire.hard, sa_info(&expire.state))),
        XFRM_MSG_ALLOCSPI => UserSpiInfo::read(fixed)
            .map(|spi| format!("spi {:#x}-{:#x} {}", spi.min, spi.max, sa_info(&spi.info))),
        XFRM_MSG_DELSA | XFRM_MSG_GETSA => UserSaId::read(fixed).map(|id| sa_id(&id)),
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY => {
            UserPolicyInfo::read(fixed).map(|policy| policy_info(&policy))
        }
        XFRM_MSG_POLEXPIRE => UserPolExpire::read(fixed)
            .map(|expire| format!("hard {} {}", expire.hard, policy_info(&expire.pol))),
        XFRM_MSG_DELPOLICY | XFRM_MSG_GETPOLICY | XFRM_MSG_MIGRATE => {
            UserPolicyId::read(fixed).map(|id| policy_id(&id))
        }
        XFRM_MSG_NEWAE | XFRM_MSG_GETAE => AeventId::read(fixed).map(|ae| {
            format!(
                "ae {} saddr {} flags {:#x} reqid {}",
                sa_id(&ae.sa_id),
                address(ae.saddr, ae.sa_id.family),
                ae.flags,
                ae.reqid
            )
        }),
        XFRM_MSG_ACQUIRE => UserAcquire::read(fixed).map(|acquire| {
            let family = acquire.sel.family;
            format!(
                "acquire {}>{} proto {} spi {:#x} algos {:x} {:x} {:x} seq {} {} {}",
                address(acquire.saddr, family),
                address(acquire.id.daddr, family),
                acquire.id.proto,
                acquire.id.spi,
                acquire.aalgos,
                acquire.ealgos,
                acquire.calgos,
                acquire.seq,
                selector(&acquire.sel),
                policy_info(&acquire.policy)
            )
        }),
        XFRM_MSG_MIGRATE_STATE => UserMigrateState::read(fixed).map(|m| {
            format!(
                "migrate {} to {}>{} family {} mark {:x}/{:x} reqid {} flags {:#x} {}",
                sa_id(&m.id),
                address(m.new_saddr, m.new_family),
                address(m.new_daddr, m.new_family),
                m.new_family,
                m.old_mark.v,
                m.old_mark.m,
                m.new_reqid,
                m.flags,
                selector(&m.new_sel)
            )
        }),
        _ => None,
    };
    text.map(|text| text + " ").unwrap_or_default()
}

fn attr_reading(kind: u16, payload: &[u8]) -> Option<String> {
    let name = || {
        let name = payload.get(..64)?.split(|&byte| byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let word = |at: usize| Some(u32::from_ne_bytes(*payload.get(at..)?.first_chunk()?));
    match kind {
        XFRMA_ALG_AUTH | XFRMA_ALG_CRYPT | XFRMA_ALG_COMP => {
            Some(format!("{} key {}", name()?, word(64)?))
        }
        XFRMA_ALG_AEAD | XFRMA_ALG_AUTH_TRUNC => {
            Some(format!("{} key {} icv {}", name()?, word(64)?, word(68)?))
        }
        XFRMA_TMPL => Some(
            payload
                .chunks_exact(UserTmpl::SIZE)
                .filter_map(UserTmpl::read)
                .map(|tmpl| {
                    format!(
                        "[{}>{} proto {} spi {:#x} reqid {} mode {} family {} optional {}]",
                        address(tmpl.saddr, tmpl.family),
                        address(tmpl.id.daddr, tmpl.family),
                        tmpl.id.proto,
                        tmpl.id.spi,
                        tmpl.reqid,
                        tmpl.mode,
                        tmpl.family,
                        tmpl.optional
                    )
                })
                .collect::<Vec<_>>()
                .join(" "),
        ),
        XFRMA_SA => UserSaInfo::read(payload).map(|sa| sa_info(&sa)),
        XFRMA_POLICY => UserPolicyInfo::read(payload).map(|policy| policy_info(&policy)),
        XFRMA_REPLAY_ESN_VAL => ReplayStateEsn::read(payload).map(|esn| {
            format!(
                "bmp_len {} oseq {:x}:{:x} seq {:x}:{:x} window {}",
                esn.bmp_len, esn.oseq_hi, esn.oseq, esn.seq_hi, esn.seq, esn.replay_window
            )
        }),
        XFRMA_MIGRATE => Some(
            payload
                .chunks_exact(UserMigrate::SIZE)
                .filter_map(UserMigrate::read)
                .map(|m| {
                    format!(
                        "[{}>{} to {}>{} proto {} mode {} reqid {}]",
                        address(m.old_saddr, m.old_family),
                        address(m.old_daddr, m.old_family),
                        address(m.new_saddr, m.new_family),
                        address(m.new_daddr, m.new_family),
                        m.proto,
                        m.mode,
                        m.reqid
                    )
                })
                .collect::<Vec<_>>()
                .join(" "),
        ),
        _ if payload.len() == 4 => word(0).map(|value| value.to_string()),
        _ => None,
    }
}
