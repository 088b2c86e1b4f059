//! Requests about SAs.

use dataplane::Entropy;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::Generator;
use crate::message::Message;
use crate::scenario::Sa;
use crate::scenario::build::*;

const ALGORITHMS: [(u16, &str, u32, usize); 22] = [
    (XFRMA_ALG_AEAD, "rfc4106(gcm(aes))", 128, 20),
    (XFRMA_ALG_AEAD, "rfc4106(gcm(aes))", 96, 36),
    (XFRMA_ALG_AEAD, "rfc4309(ccm(aes))", 64, 19),
    (XFRMA_ALG_AEAD, "rfc4543(gcm(aes))", 128, 20),
    (XFRMA_ALG_AEAD, "rfc7539esp(chacha20,poly1305)", 128, 36),
    (XFRMA_ALG_CRYPT, "cbc(aes)", 0, 16),
    (XFRMA_ALG_CRYPT, "aes", 0, 32),
    (XFRMA_ALG_CRYPT, "rfc3686(ctr(aes))", 0, 20),
    (XFRMA_ALG_CRYPT, "ecb(cipher_null)", 0, 0),
    (XFRMA_ALG_CRYPT, "cbc(des3_ede)", 0, 24),
    (XFRMA_ALG_CRYPT, "cbc(camellia)", 0, 24),
    (XFRMA_ALG_AUTH, "hmac(sha1)", 0, 20),
    (XFRMA_ALG_AUTH, "sha256", 0, 32),
    (XFRMA_ALG_AUTH, "digest_null", 0, 0),
    (XFRMA_ALG_AUTH, "xcbc(aes)", 0, 16),
    (XFRMA_ALG_AUTH_TRUNC, "hmac(sha256)", 128, 32),
    (XFRMA_ALG_AUTH_TRUNC, "hmac(sha512)", 256, 64),
    (XFRMA_ALG_AUTH_TRUNC, "cmac(aes)", 96, 16),
    (XFRMA_ALG_AUTH_TRUNC, "md5", 0, 16),
    (XFRMA_ALG_AUTH_TRUNC, "hmac(sha1)", 200, 20),
    (XFRMA_ALG_COMP, "deflate", 0, 0),
    (XFRMA_ALG_COMP, "lzs", 0, 0),
];

impl Generator {
    pub(super) fn algorithm(&mut self, of: &[u16]) -> (u16, Vec<u8>) {
        loop {
            let (kind, name, icv, bytes) = self.pick(&ALGORITHMS);
            if !of.contains(&kind) && !self.one_in(200) {
                continue;
            }
            let bytes = if self.one_in(25) {
                self.below(40) as usize
            } else {
                bytes
            };
            let icv = if self.one_in(25) {
                self.pick(&[0, 64, 96, 128, 160, 999])
            } else {
                icv
            };
            let start = self.below(3) as u8;
            let key: Vec<u8> = (0..bytes).map(|n| n as u8 + start).collect();
            let payload = match kind {
                XFRMA_ALG_AEAD | XFRMA_ALG_AUTH_TRUNC => algo_icv(name, icv, &key),
                _ => algo(name, &key),
            };
            return (kind, payload);
        }
    }

    pub(super) fn fresh_sa(&mut self) -> Sa {
        let proto = match self.below(40) {
            0..24 => IPPROTO_ESP,
            24..33 => IPPROTO_AH,
            33..36 => IPPROTO_COMP,
            36..38 => IPPROTO_DSTOPTS,
            38 => IPPROTO_ROUTING,
            _ => self.below(256) as u8,
        };
        let routed = matches!(proto, IPPROTO_DSTOPTS | IPPROTO_ROUTING);
        let family = if routed && !self.one_in(5) {
            AF_INET6
        } else {
            self.family()
        };
        let spi = if routed && !self.one_in(9) {
            0
        } else {
            self.pick(&[0x1000, 0x1001, 0x1002, 0x1003, 0, 7])
        };
        let mut sa = Sa::bare(proto).spi(spi);
        sa.info.family = family;
        sa.info.saddr = self.address(family);
        sa.info.id.daddr = self.address(family);
        sa.info.sel = self.selector(family);
        sa.info.lft = self.limits();
        sa.info.reqid = self.pick(&[0, 0, 1, 2]);
        sa.info.seq = self.pick(&[0, 0, 0, 1, 2]);
        sa.info.mode = if routed && !self.one_in(5) {
            2
        } else {
            self.pick_byte(&[0, 0, 1, 1, 1, 4, 5, 2])
        };
        if self.one_in(6) {
            sa.info.flags = self.entropy.u32() as u8 & self.entropy.u32() as u8;
        }
        if self.one_in(6) {
            sa.info.replay_window = self.pick_byte(&[1, 32, 33, 64]);
        }
        let wanted: &[u16] = match proto {
            IPPROTO_ESP if self.one_in(2) => &[XFRMA_ALG_AEAD],
            IPPROTO_ESP => &[XFRMA_ALG_CRYPT],
            IPPROTO_AH => &[XFRMA_ALG_AUTH, XFRMA_ALG_AUTH_TRUNC],
            IPPROTO_COMP => &[XFRMA_ALG_COMP],
            _ => &[],
        };
        if !wanted.is_empty() {
            let (kind, payload) = self.algorithm(wanted);
            sa = sa.attr(kind, payload);
            if kind == XFRMA_ALG_CRYPT && !self.one_in(3) {
                let (kind, payload) = self.algorithm(&[XFRMA_ALG_AUTH, XFRMA_ALG_AUTH_TRUNC]);
                sa = sa.attr(kind, payload);
            }
        }
        if routed && !self.one_in(9) {
            sa = sa.attr(XFRMA_COADDR, v6(9).0);
        }
        self.decorated(sa)
    }

    pub(super) fn decorated(&mut self, mut sa: Sa) -> Sa {
        if self.one_in(2) {
            return sa;
        }
        for _ in 0..=self.below(4) {
            sa = match self.below(24) {
                0..2 => sa.pod(XFRMA_ENCAP, &self.encap()),
                2..5 => sa.pod(XFRMA_MARK, &self.mark()),
                5..7 => sa.u32(XFRMA_IF_ID, self.below(3)),
                7..11 => {
                    let dir = self.pick_byte(&[1, 2]);
                    sa.attr(XFRMA_SA_DIR, [dir])
                }
                11 => sa.u32(XFRMA_SA_PCPU, self.pick(&[0, 1, u32::MAX])),
                12 => sa.u32(XFRMA_TFCPAD, self.pick(&[0, 1, 100, 70000])),
                13 => sa.attr(XFRMA_COADDR, [self.below(2) as u8; 16]),
                14 => sa
                    .u32(XFRMA_SET_MARK, self.below(3))
                    .u32(XFRMA_SET_MARK_MASK, self.below(3)),
                15 => sa.u32(XFRMA_SA_EXTRA_FLAGS, self.below(5)),
                16 => sa.pod(XFRMA_REPLAY_VAL, &self.replay()),
                17..19 => {
                    if !self.one_in(4) {
                        sa.info.flags |= XFRM_STATE_ESN;
                        sa.info.replay_window = 0;
                    }
                    sa.attr(XFRMA_REPLAY_ESN_VAL, self.replay_esn())
                }
                19 => sa
                    .u32(XFRMA_REPLAY_THRESH, self.below(4))
                    .u32(XFRMA_ETIMER_THRESH, self.below(400)),
                20 => sa.pod(XFRMA_LTIME_VAL, &self.current()),
                21 => sa.pod(XFRMA_OFFLOAD_DEV, &self.offload()),
                22 => sa.u32(XFRMA_NAT_KEEPALIVE_INTERVAL, self.below(30)),
                _ => {
                    let (kind, payload) = self.any_attribute();
                    sa.attr(kind, payload)
                }
            };
        }
        sa
    }

    pub(super) fn encap(&mut self) -> EncapTmpl {
        EncapTmpl {
            kind: if self.one_in(8) {
                self.below(9) as u16
            } else {
                2
            },
            sport: BeU16::new(4500 + self.below(2) as u16),
            dport: BeU16::new(4500),
            pad: [0; 2],
            oa: Address::ANY,
        }
    }

    pub(super) fn replay(&mut self) -> ReplayState {
        let pool = [0, 0, 1, u32::MAX];
        ReplayState {
            oseq: self.pick(&pool),
            seq: self.pick(&pool),
            bitmap: self.pick(&pool),
        }
    }

    pub(super) fn replay_esn(&mut self) -> Vec<u8> {
        let bmp_len = self.pick(&[0, 0, 1, 2, 2, 128, 129]);
        let pool = [0, 0, 0, 1, u32::MAX];
        let esn = ReplayStateEsn {
            bmp_len,
            oseq: self.pick(&pool),
            seq: self.pick(&pool),
            oseq_hi: self.pick(&pool),
            seq_hi: self.pick(&pool),
            replay_window: self.pick(&[0, 32, 64, 65, bmp_len * 32]),
        };
        let mut out = esn.as_bytes().to_vec();
        let words = if self.one_in(9) {
            self.below(4)
        } else {
            bmp_len
        };
        out.resize(24 + words as usize * 4, self.below(3) as u8);
        out
    }

    pub(super) fn current(&mut self) -> LifetimeCur {
        let pool = [0, 1, 1000];
        LifetimeCur {
            bytes: self.pick(&pool),
            packets: self.pick(&pool),
            add_time: self.pick(&pool),
            use_time: self.pick(&pool),
        }
    }

    pub(super) fn offload(&mut self) -> UserOffload {
        UserOffload {
            ifindex: self.below(3) as i32,
            flags: self.pick_byte(&[0, 1, 2, 3, 4, 6]),
            pad: [0; 3],
        }
    }

    /// An SA that was talked of before, or a new one.
    pub(super) fn sa(&mut self, fresh_one_in: u32) -> Sa {
        if self.sas.is_empty() || self.one_in(fresh_one_in) {
            let sa = self.fresh_sa();
            self.sas.push(sa.clone());
            return sa;
        }
        let recent = self.sas.len().min(12) as u32;
        let index = self.sas.len() - 1 - self.below(recent) as usize;
        self.sas[index].clone()
    }

    pub(super) fn new_sa(&mut self, kind: u16) -> Message {
        let fresh = if kind == XFRM_MSG_NEWSA { 2 } else { 6 };
        let mut sa = self.sa(fresh);
        if self.one_in(3) {
            let other = self.fresh_sa();
            match self.below(10) {
                0 => sa.info.lft = other.info.lft,
                1 => sa.info.sel = other.info.sel,
                2 => sa.info.id.spi = other.info.id.spi,
                3 => sa.info.id.daddr = other.info.id.daddr,
                4 => sa.info.reqid = other.info.reqid,
                5 => sa.info.mode = other.info.mode,
                6 => sa.info.seq = other.info.seq,
                7 => sa.info.saddr = other.info.saddr,
                _ => sa = self.decorated(sa),
            }
        }
        sa.message(kind)
    }

    pub(super) fn sa_lookup(&mut self, kind: u16) -> Message {
        let sa = self.sa(9);
        let message = Message::with(kind, &sa.id());
        let mark = sa
            .attrs
            .iter()
            .find(|attr| attr.0 == XFRMA_MARK)
            .map(|attr| attr.1.clone());
        let message = match mark {
            Some(mark) if !self.one_in(5) => message.attr(XFRMA_MARK, mark),
            _ if self.one_in(9) => message.pod(XFRMA_MARK, &self.mark()),
            _ => message,
        };
        if self.one_in(4) {
            message.pod(XFRMA_SRCADDR, &sa.info.saddr)
        } else {
            message
        }
    }

    pub(super) fn dump_sa(&mut self) -> Message {
        let message = Message::dump(XFRM_MSG_GETSA);
        match self.below(4) {
            0 => message.attr(XFRMA_PROTO, [self.pick_byte(&[0, 50, 51, 108, 255, 60])]),
            1 => {
                let family = self.family();
                let filter = AddressFilter {
                    saddr: self.address(family),
                    daddr: self.address(family),
                    family,
                    splen: self.pick_byte(&[0, 32, 24, 128, 33]),
                    dplen: self.pick_byte(&[0, 32, 24, 128, 33]),
                };
                message.pod(XFRMA_ADDRESS_FILTER, &filter)
            }
            _ => message,
        }
    }

    pub(super) fn alloc_spi(&mut self) -> Message {
        let mut sa = self.fresh_sa();
        sa.attrs
            .retain(|attr| attr.0 > XFRMA_ALG_COMP && attr.0 != XFRMA_ALG_AEAD);
        let spi = self.pick(&[0x1000, 0x1001, 0x1002, 0x1003, 0, 9]);
        let message = alloc(&sa, spi, spi);
        sa.info.id.spi = BeU32::new(spi);
        // The SA that completes it comes soon.
        let mut complete = self.fresh_sa();
        complete.info.id = sa.info.id;
        complete.info.family = sa.info.family;
        complete.info.saddr = sa.info.saddr;
        self.sas.push(complete);
        message
    }

    pub(super) fn expire(&mut self) -> Message {
        let sa = self.sa(9);
        let expire = UserExpire {
            state: sa.info,
            hard: self.pick_byte(&[0, 0, 1]),
            pad: [0; 7],
        };
        let message = Message::with(XFRM_MSG_EXPIRE, &expire);
        match sa.attrs.iter().find(|attr| attr.0 == XFRMA_MARK) {
            Some(mark) => message.attr(XFRMA_MARK, &mark.1),
            None => message,
        }
    }

    pub(super) fn flush_sa(&mut self) -> Message {
        let proto = self.pick_byte(&[0, 50, 51, 108, 255]);
        Message::with(XFRM_MSG_FLUSHSA, &UserSaFlush { proto })
    }

    pub(super) fn aevent(&mut self, kind: u16) -> Message {
        let sa = self.sa(9);
        let flags = self.pick(&[0, 1, 2, 4, 8, 15, 0xff, u32::MAX]);
        let ae = AeventId {
            sa_id: sa.id(),
            saddr: sa.info.saddr,
            flags,
            reqid: sa.info.reqid,
        };
        let mut message = Message::with(kind, &ae);
        if let Some(mark) = sa.attrs.iter().find(|attr| attr.0 == XFRMA_MARK) {
            message = message.attr(XFRMA_MARK, &mark.1);
        }
        if kind == XFRM_MSG_GETAE {
            return message;
        }
        if !self.one_in(9) {
            message = message.flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE);
        }
        for _ in 0..=self.below(2) {
            message = match self.below(5) {
                0 => message.pod(XFRMA_LTIME_VAL, &self.current()),
                1 => message.pod(XFRMA_REPLAY_VAL, &self.replay()),
                2 => message.attr(XFRMA_REPLAY_ESN_VAL, self.replay_esn()),
                3 => message.u32(XFRMA_REPLAY_THRESH, self.below(9)),
                _ => message.u32(XFRMA_ETIMER_THRESH, self.below(999)),
            };
        }
        message
    }

    pub(super) fn migrate_state(&mut self) -> Message {
        let sa = self.sa(20);
        let family = if self.one_in(8) {
            self.family()
        } else {
            sa.info.family
        };
        let mark = sa
            .attrs
            .iter()
            .find(|attr| attr.0 == XFRMA_MARK)
            .and_then(|attr| Mark::read(&attr.1));
        let request = UserMigrateState {
            id: sa.id(),
            new_daddr: self.address(family),
            new_saddr: self.address(family),
            old_mark: mark.unwrap_or_default(),
            new_sel: if self.one_in(3) {
                self.selector(family)
            } else {
                sa.info.sel
            },
            new_reqid: self.pick(&[0, 1, 2]),
            flags: self.pick(&[0, 0, 0, 1, 2, 3, 4]),
            new_family: family,
            reserved: u16::from(self.one_in(30)),
        };
        let mut message = Message::with(XFRM_MSG_MIGRATE_STATE, &request);
        for _ in 0..self.below(3) {
            message = match self.below(8) {
                0 => message.pod(XFRMA_MARK, &self.mark()),
                1..4 => message.pod(XFRMA_ENCAP, &self.encap()),
                4 => message.u32(XFRMA_SET_MARK, self.below(3)),
                5 => message.u32(XFRMA_MTIMER_THRESH, self.below(9)),
                6 => message.u32(XFRMA_NAT_KEEPALIVE_INTERVAL, self.below(9)),
                _ => message.pod(XFRMA_OFFLOAD_DEV, &self.offload()),
            };
        }
        let moved = sa.info(|info| {
            info.id.daddr = request.new_daddr;
            info.saddr = request.new_saddr;
            info.family = family;
        });
        self.sas.push(moved);
        message
    }
}
