//! What two honest runs of a scenario may differ in, renamed or removed.
//!
//! * clock values that lie within the run become `CLOCK` plus, where a
//!   scenario asks for it, the seconds since it began;
//! * SPIs that the other side drew at random are numbered as they appear;
//! * the acquire sequence, which all namespaces of a kernel share, is numbered
//!   as it appears;
//! * the sizes of hash tables once they grow: a worker grows them when it gets
//!   to it;
//! * the SPI of the hidden IPv6 tunnel SA below an IPCOMP one counts up in the
//!   kernel, but whether it does depends on when a worker has freed the last;
//! * `XFRMA_PAD` goes: whether it is sent depends on the machine's alignment
//!   rules, not on the kernel's release. Lengths are corrected. The same goes
//!   for the padding in an error's copy of an attribute's policy;
//! * what Linux forgets to write: sequence number and port id of a NEWAE that
//!   traffic or a timer causes, the unused bytes of an IPv4 address in a MAPPING.
//!
//! Port ids and sequence numbers need nothing: scenarios choose them.

use std::collections::BTreeMap;

use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::decode::fixed_bytes;
use xfrm_proto::uapi::{NlAttr, NlMsgHdr, Pod, UserSaInfo};

/// Stands for a time within the run.
pub const CLOCK: u64 = 0xcccc_cccc_0000_0000;
/// Stands for a random SPI.
pub const SPI: u32 = 0x0a5b_1000;
/// Stands for the SPI of a hidden IPv6 tunnel SA.
pub const TUNNEL6_SPI: u32 = 0x4141_4141;
/// Stands for the size of a hash table that has grown or is about to.
pub const HASH_SIZE: u32 = 0x4a54_4a54;
/// Padding in front of 64-bit values.
const NL_POLICY_TYPE_ATTR_PAD: u16 = 11;
/// Entries that a table of the first size holds.
const FIRST_HASH_SIZE: u32 = 8;
/// Stands for an acquire sequence number.
pub const ACQSEQ: u32 = 0xac90_0000;

/// Renames what differs between honest runs.
#[derive(Debug)]
pub struct Normalizer {
    begin: u64,
    seconds_matter: bool,
    spis: BTreeMap<u32, u32>,
    acqseqs: Vec<u32>,
    /// The datagram came to a group.
    is_event: bool,
    /// The SPI of every NEWSA is a random one.
    pub learns_spis: bool,
    /// Hash tables have grown before: their sizes say nothing.
    pub ignores_hash_sizes: bool,
}

impl Normalizer {
    /// For a run that begins at wall-clock second `begin`.
    #[must_use]
    pub fn new(begin: u64, seconds_matter: bool) -> Self {
        Self {
            begin,
            seconds_matter,
            spis: BTreeMap::new(),
            acqseqs: Vec::new(),
            is_event: false,
            learns_spis: false,
            ignores_hash_sizes: false,
        }
    }

    /// This SPI keeps its name.
    pub fn keep_spi(&mut self, spi: u32) {
        self.spis.insert(spi, spi);
    }

    /// The SPI of this NEWSA is a random one.
    pub fn learn_spi(&mut self, message: &[u8]) {
        let body = message.get(NLMSG_HDRLEN..).unwrap_or_default();
        let Some(info) = UserSaInfo::read(body) else {
            return;
        };
        let renamed = self.spis.iter().filter(|(from, to)| from != to);
        let next = SPI.wrapping_add(count(renamed.count()));
        self.spis.entry(info.id.spi.get()).or_insert(next);
    }

    /// Renames everything in a datagram that came to these groups, 0 for a reply.
    #[must_use]
    pub fn datagram(&mut self, bytes: &[u8], groups: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        self.is_event = groups != 0;
        while let Some(header) = NlMsgHdr::read(rest) {
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let Some(message) = rest.get(..len).filter(|_| len >= NLMSG_HDRLEN) else {
                break;
            };
            let end = align4(len).min(rest.len());
            self.message(header, message, &mut out);
            out.extend_from_slice(rest.get(len..end).unwrap_or_default());
            rest = rest.get(end..).unwrap_or_default();
        }
        // What is left of a message that the receiver's buffer cut.
        self.fixed(rest, &mut out);
        out
    }

    fn message(&mut self, header: NlMsgHdr, bytes: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        if self.learns_spis && header.kind == XFRM_MSG_NEWSA {
            self.learn_spi(bytes);
        }
        if header.kind == NLMSG_ERROR {
            out.extend_from_slice(bytes);
            if header.flags & NLM_F_ACK_TLVS != 0 {
                let echoed = if header.flags & NLM_F_CAPPED == 0 {
                    let request = NlMsgHdr::read(bytes.get(20..).unwrap_or_default());
                    request.map_or(16, |it| usize::try_from(it.len).unwrap_or(0))
                } else {
                    NLMSG_HDRLEN
                };
                tlvs(out, start, 20 + align4(echoed.min(bytes.len())));
            }
            return;
        }
        self.fixed(bytes, out);
        if header.kind < NLMSG_MIN_TYPE {
            if header.kind == NLMSG_DONE && header.flags & NLM_F_ACK_TLVS != 0 {
                tlvs(out, start, 20);
            }
            return;
        }
        if matches!(header.kind, XFRM_MSG_NEWSADINFO | XFRM_MSG_NEWSPDINFO) {
            let body = out.get_mut(start + NLMSG_HDRLEN..).unwrap_or_default();
            hash_size(body, self.ignores_hash_sizes);
            return;
        }
        let attrs = start + NLMSG_HDRLEN + fixed_bytes(header.kind);
        self.attributes(out, attrs);
        let Some(message) = out.get_mut(start..) else {
            return;
        };
        if header.kind == XFRM_MSG_NEWAE
            && self.is_event
            && by_itself(message)
            && let Some(seq_and_pid) = message.get_mut(8..NLMSG_HDRLEN)
        {
            seq_and_pid.fill(0);
        }
        set_length(message);
    }

    /// Copies a message; what its fixed part holds is renamed.
    fn fixed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(bytes);
        let Some(header) = NlMsgHdr::read(bytes) else {
            return;
        };
        let body = out.get_mut(start + NLMSG_HDRLEN..).unwrap_or_default();
        match header.kind {
            XFRM_MSG_EXPIRE => {
                self.sa_info(body);
                let is_larval = body.get(72..76) == Some(&[0; 4]);
                if is_larval {
                    self.acqseq(body, 204);
                }
            }
            XFRM_MSG_NEWSA | XFRM_MSG_UPDSA | XFRM_MSG_ALLOCSPI => self.sa_info(body),
            XFRM_MSG_DELSA | XFRM_MSG_GETSA | XFRM_MSG_NEWAE | XFRM_MSG_GETAE => {
                self.spi(body, 16);
            }
            XFRM_MSG_MAPPING => {
                self.spi(body, 16);
                if body.get(20..22) == Some(&AF_INET.to_ne_bytes())
                    && let Some(unused) = body.get_mut(48..60)
                {
                    unused.fill(0);
                }
            }
            XFRM_MSG_MIGRATE_STATE => self.spi(body, 16),
            XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY | XFRM_MSG_POLEXPIRE => {
                self.policy_info(body, 0);
            }
            XFRM_MSG_ACQUIRE => {
                self.spi(body, 16);
                self.policy_info(body, 96);
                self.acqseq(body, 276);
            }
            _ => {}
        }
    }

    fn attributes(&mut self, out: &mut Vec<u8>, mut at: usize) {
        while let Some(header) = out.get(at..).and_then(NlAttr::read) {
            let len = usize::from(header.len);
            if len < NLA_HDRLEN || at + len > out.len() {
                return;
            }
            let end = (at + align4(len)).min(out.len());
            if header.kind == XFRMA_PAD && len == NLA_HDRLEN {
                out.drain(at..end);
                continue;
            }
            let Some(payload) = out.get_mut(at + NLA_HDRLEN..at + len) else {
                return;
            };
            match header.kind {
                XFRMA_SA => self.sa_info(payload),
                XFRMA_POLICY => self.policy_info(payload, 0),
                XFRMA_LTIME_VAL => {
                    self.clock(payload, 16);
                    self.clock(payload, 24);
                }
                XFRMA_LASTUSED => self.clock(payload, 0),
                _ => {}
            }
            at = end;
        }
    }

    fn sa_info(&self, bytes: &mut [u8]) {
        if bytes.get(76) == Some(&IPPROTO_IPV6)
            && let Some(spi) = bytes.get_mut(72..76)
        {
            spi.copy_from_slice(&TUNNEL6_SPI.to_be_bytes());
        }
        self.spi(bytes, 72);
        self.clock(bytes, 176);
        self.clock(bytes, 184);
    }

    fn policy_info(&self, bytes: &mut [u8], at: usize) {
        self.clock(bytes, at + 136);
        self.clock(bytes, at + 144);
    }

    fn spi(&self, bytes: &mut [u8], at: usize) {
        let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) else {
            return;
        };
        if let Some(name) = self.spis.get(&u32::from_be_bytes(*field)) {
            *field = name.to_be_bytes();
        }
    }

    fn acqseq(&mut self, bytes: &mut [u8], at: usize) {
        let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) else {
            return;
        };
        let seq = u32::from_ne_bytes(*field);
        if seq == 0 {
            return;
        }
        let known = self.acqseqs.iter().position(|&known| known == seq);
        let nth = known.unwrap_or_else(|| {
            self.acqseqs.push(seq);
            self.acqseqs.len() - 1
        });
        *field = ACQSEQ.wrapping_add(count(nth)).to_ne_bytes();
    }

    fn clock(&self, bytes: &mut [u8], at: usize) {
        let end = bytes.len().min(at + 8);
        let Some(cut) = bytes.get_mut(at..end) else {
            return;
        };
        let mut value = [0; 8];
        if let Some(read) = value.get_mut(..cut.len()) {
            read.copy_from_slice(cut);
        }
        let Some(field) = cut.first_chunk_mut::<8>() else {
            // The receiver's buffer ends within the field.
            cut.fill(0);
            return;
        };
        let value = u64::from_ne_bytes(value);
        if (self.begin.saturating_sub(2)..self.begin + 3600).contains(&value) {
            let seconds = if self.seconds_matter {
                value.saturating_sub(self.begin)
            } else {
                0
            };
            *field = (CLOCK + seconds).to_ne_bytes();
        }
    }
}

/// Whether traffic or a timer caused a NEWAE.
fn by_itself(message: &[u8]) -> bool {
    let flags = message
        .get(NLMSG_HDRLEN + 40..)
        .and_then(<[u8]>::first_chunk);
    let flags = flags.map(|flags| u32::from_ne_bytes(*flags));
    matches!(flags, Some(XFRM_AE_CR | XFRM_AE_CE))
}

/// `SAD_CNT, SAD_HINFO` or `SPD_INFO, SPD_HINFO`: entries, then the size.
fn hash_size(body: &mut [u8], always: bool) {
    let Some(info) = body.get(4..).and_then(NlAttr::read) else {
        return;
    };
    let end = 4 + align4(usize::from(info.len));
    let (words, _) = body.get(8..end).unwrap_or_default().as_chunks::<4>();
    let entries = words.iter().fold(0, |sum: u32, &word| {
        sum.saturating_add(u32::from_ne_bytes(word))
    });
    let Some(size) = body
        .get_mut(end + NLA_HDRLEN..)
        .and_then(<[u8]>::first_chunk_mut::<4>)
    else {
        return;
    };
    let first = [FIRST_HASH_SIZE - 1, FIRST_HASH_SIZE].contains(&u32::from_ne_bytes(*size));
    if always || entries > FIRST_HASH_SIZE || !first {
        *size = HASH_SIZE.to_ne_bytes();
    }
}

/// Takes the padding out of `NLMSGERR_ATTR_POLICY` among the TLVs of the message at `start`.
fn tlvs(out: &mut Vec<u8>, start: usize, first: usize) {
    let mut at = start + first;
    while let Some(header) = out.get(at..).and_then(NlAttr::read) {
        let len = usize::from(header.len);
        if len < NLA_HDRLEN || at + len > out.len() {
            break;
        }
        if header.kind == NLMSGERR_ATTR_POLICY | NLA_F_NESTED {
            let mut inner = at + NLA_HDRLEN;
            let mut end = at + len;
            while let Some(nested) = out.get(inner..end).and_then(NlAttr::read) {
                let step = align4(usize::from(nested.len).max(NLA_HDRLEN)).min(end - inner);
                if nested.kind == NL_POLICY_TYPE_ATTR_PAD {
                    out.drain(inner..inner + step);
                    end -= step;
                } else {
                    inner += step;
                }
            }
            let len = u16::try_from(end - at).unwrap_or(u16::MAX);
            if let Some(field) = out.get_mut(at..at + 2) {
                field.copy_from_slice(&len.to_ne_bytes());
            }
            at = end;
        } else {
            at = (at + align4(len)).min(out.len());
        }
    }
    set_length(out.get_mut(start..).unwrap_or_default());
}

/// Corrects the length of a message, all of which this is.
fn set_length(message: &mut [u8]) {
    let len = count(message.len());
    if let Some(field) = message.first_chunk_mut::<4>() {
        *field = len.to_ne_bytes();
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
