//! What a sequence is made of: requests that are valid more often than not,
//! about few hosts, SPIs, selectors and marks, so that they meet; then some
//! of them are damaged.

use dataplane::{Entropy, SeededEntropy};
use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::sequence::{Sequence, Step};
use crate::message::Message;
use crate::scenario::Sa;
use crate::scenario::build::*;

/// The sequence of a seed.
pub(super) fn sequence(seed: u64, count: u32) -> Sequence {
    let mut generator = Generator {
        entropy: SeededEntropy::new(seed),
        sas: Vec::new(),
        policies: Vec::new(),
        seq: 1000,
    };
    let mut steps = Vec::new();
    let mut left = count;
    while left > 0 {
        let several = if generator.one_in(12) {
            2 + generator.below(3)
        } else {
            1
        }
        .min(left);
        left -= several;
        steps.push(generator.step(several));
    }
    Sequence { steps }
}

struct Generator {
    entropy: SeededEntropy,
    sas: Vec<Sa>,
    policies: Vec<Policy>,
    seq: u32,
}

const HOSTS: [u8; 3] = [1, 2, 3];
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
    fn below(&mut self, bound: u32) -> u32 {
        self.entropy.below(bound)
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u32) as usize]
    }

    /// Mostly one of `all`, now and then any byte.
    fn pick_byte(&mut self, all: &[u8]) -> u8 {
        if self.one_in(30) {
            self.below(256) as u8
        } else {
            self.pick(all)
        }
    }

    fn step(&mut self, several: u32) -> Step {
        let mut datagram = Vec::new();
        for _ in 0..several {
            datagram.resize(align4(datagram.len()), 0);
            let message = self.message();
            let message = self.with_header(message);
            let mut bytes = message.bytes();
            if self.one_in(8) {
                self.damage(&mut bytes);
            }
            datagram.extend_from_slice(&bytes);
        }
        tame(&mut datagram);
        let socket = match self.below(40) {
            0..30 => 0,
            30..36 => 1,
            36..39 => 2,
            _ => 3,
        };
        let recv_bytes = match self.below(30) {
            0..2 => 0,
            2..5 => 4096,
            5 => 1500,
            6..8 => 16384,
            _ => 65536,
        };
        Step {
            socket,
            recv_bytes,
            datagram,
        }
    }

    fn with_header(&mut self, message: Message) -> Message {
        self.seq += 1;
        let seq = if self.one_in(30) {
            self.entropy.u32()
        } else {
            self.seq
        };
        let message = message.seq(seq);
        let message = if self.one_in(6) {
            message.pid(self.entropy.u32())
        } else {
            message
        };
        match self.below(60) {
            0 => {
                let flags = self.entropy.u32() as u16;
                message.flags(flags)
            }
            1..6 => message.flags(NLM_F_REQUEST),
            _ => message,
        }
    }

    fn message(&mut self) -> Message {
        match self.below(140) {
            0..22 => self.new_sa(XFRM_MSG_NEWSA),
            22..34 => self.new_sa(XFRM_MSG_UPDSA),
            34..41 => self.sa_lookup(XFRM_MSG_DELSA),
            41..46 => self.sa_lookup(XFRM_MSG_GETSA),
            46..49 => self.dump_sa(),
            49..57 => self.alloc_spi(),
            57..61 => self.expire(),
            61..62 => self.flush_sa(),
            62..67 => self.aevent(XFRM_MSG_NEWAE),
            67..71 => self.aevent(XFRM_MSG_GETAE),
            71..87 => self.new_policy(XFRM_MSG_NEWPOLICY),
            87..97 => self.new_policy(XFRM_MSG_UPDPOLICY),
            97..103 => self.policy_lookup(XFRM_MSG_DELPOLICY),
            103..108 => self.policy_lookup(XFRM_MSG_GETPOLICY),
            108..110 => Message::dump(XFRM_MSG_GETPOLICY),
            110..111 => self.flush_policy(),
            111..115 => self.policy_expire(),
            115..118 => self.acquire(),
            118..124 => self.migrate(),
            124..130 => self.migrate_state(),
            130..131 => Message::new(XFRM_MSG_GETSADINFO).put(&[self.below(9) as u8; 4]),
            131..132 => Message::new(XFRM_MSG_GETSPDINFO).put(&[self.below(9) as u8; 4]),
            132..133 => self.thresholds(),
            133..135 => self.default_policy(),
            _ => self.anything(),
        }
    }

    fn family(&mut self) -> u16 {
        match self.below(40) {
            0 => self.below(12) as u16,
            1..12 => AF_INET6,
            _ => AF_INET,
        }
    }

    fn address(&mut self, family: u16) -> Address {
        let host = self.pick(&HOSTS);
        match (family, self.below(30)) {
            (_, 0) => Address::ANY,
            (AF_INET6, _) => v6(host),
            _ => Address::v4(10, 1, 0, host),
        }
    }

    fn mark(&mut self) -> Mark {
        let pool = [
            (0, 0),
            (1, 1),
            (1, 15),
            (0x21, 0xff),
            (3, u32::MAX),
            (9, 1),
            (5, 0),
        ];
        let (v, m) = self.pick(&pool);
        Mark { v, m }
    }

    fn selector(&mut self, family: u16) -> Selector {
        let mut sel = match self.below(6) {
            0..3 => Selector {
                family,
                ..Selector::default()
            },
            3 => Selector::default(),
            _ => {
                let family = if self.one_in(12) {
                    self.family()
                } else {
                    family
                };
                let full = if family == AF_INET6 { 128 } else { 32 };
                let bits = [full, full, full, 24, 16, 0];
                Selector {
                    daddr: self.address(family),
                    saddr: self.address(family),
                    family,
                    prefixlen_d: self.pick_byte(&bits),
                    prefixlen_s: self.pick_byte(&bits),
                    ..Selector::default()
                }
            }
        };
        if self.one_in(5) {
            sel.proto = self.pick_byte(&[6, 17, 1, 58]);
            sel.sport = BeU16::new(self.below(3) as u16);
            sel.sport_mask = BeU16::new(self.pick(&[0, 0xffff, 0xff]));
            sel.dport = BeU16::new(self.below(3) as u16);
            sel.dport_mask = BeU16::new(self.pick(&[0, 0xffff]));
        }
        if self.one_in(20) {
            sel.ifindex = self.below(3) as i32;
            sel.user = self.below(2);
            sel.pad[0] = self.below(2) as u8;
        }
        sel
    }

    fn limits(&mut self) -> LifetimeCfg {
        // Nothing that strikes while a sequence runs.
        let time = [0, 0, 5000, 6000, u64::MAX];
        let count = [XFRM_INF, XFRM_INF, 0, 5, 1 << 40];
        if self.one_in(3) {
            LifetimeCfg {
                soft_byte_limit: self.pick(&count),
                hard_byte_limit: self.pick(&count),
                soft_packet_limit: self.pick(&count),
                hard_packet_limit: self.pick(&count),
                soft_add_expires_seconds: self.pick(&time),
                hard_add_expires_seconds: self.pick(&time),
                soft_use_expires_seconds: self.pick(&time),
                hard_use_expires_seconds: self.pick(&time),
            }
        } else {
            NO_LIMITS
        }
    }

    fn algorithm(&mut self, of: &[u16]) -> (u16, Vec<u8>) {
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

    fn fresh_sa(&mut self) -> Sa {
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

    fn decorated(&mut self, mut sa: Sa) -> Sa {
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

    fn encap(&mut self) -> EncapTmpl {
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

    fn replay(&mut self) -> ReplayState {
        let pool = [0, 0, 1, u32::MAX];
        ReplayState {
            oseq: self.pick(&pool),
            seq: self.pick(&pool),
            bitmap: self.pick(&pool),
        }
    }

    fn replay_esn(&mut self) -> Vec<u8> {
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

    fn current(&mut self) -> LifetimeCur {
        let pool = [0, 1, 1000];
        LifetimeCur {
            bytes: self.pick(&pool),
            packets: self.pick(&pool),
            add_time: self.pick(&pool),
            use_time: self.pick(&pool),
        }
    }

    fn offload(&mut self) -> UserOffload {
        UserOffload {
            ifindex: self.below(3) as i32,
            flags: self.pick_byte(&[0, 1, 2, 3, 4, 6]),
            pad: [0; 3],
        }
    }

    fn any_attribute(&mut self) -> (u16, Vec<u8>) {
        let kind = self.below(46) as u16;
        let len = ATTR_MIN.get(usize::from(kind)).copied().unwrap_or(4);
        let len = if self.one_in(4) {
            self.below(90) as usize
        } else {
            len
        };
        let fill = self.pick(&[0, 1, 2, 255]);
        let mut payload = vec![0; len];
        for byte in &mut payload {
            if fill == 255 || self.one_in(4) {
                *byte = fill;
            }
        }
        (kind, payload)
    }

    /// An SA that was talked of before, or a new one.
    fn sa(&mut self, fresh_one_in: u32) -> Sa {
        if self.sas.is_empty() || self.one_in(fresh_one_in) {
            let sa = self.fresh_sa();
            self.sas.push(sa.clone());
            return sa;
        }
        let recent = self.sas.len().min(12) as u32;
        let index = self.sas.len() - 1 - self.below(recent) as usize;
        self.sas[index].clone()
    }

    fn new_sa(&mut self, kind: u16) -> Message {
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

    fn sa_lookup(&mut self, kind: u16) -> Message {
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

    fn dump_sa(&mut self) -> Message {
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

    fn alloc_spi(&mut self) -> Message {
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

    fn expire(&mut self) -> Message {
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

    fn flush_sa(&mut self) -> Message {
        let proto = self.pick_byte(&[0, 50, 51, 108, 255]);
        Message::with(XFRM_MSG_FLUSHSA, &UserSaFlush { proto })
    }

    fn aevent(&mut self, kind: u16) -> Message {
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

    fn tmpl(&mut self, family: u16) -> UserTmpl {
        let family = if self.one_in(8) {
            self.family()
        } else {
            family
        };
        let mut tmpl = UserTmpl {
            family,
            saddr: self.address(family),
            reqid: self.pick(&[0, 1, 2]),
            mode: self.pick_byte(&[0, 1, 1, 1, 4]),
            optional: u8::from(self.one_in(6)),
            share: u8::from(self.one_in(9)),
            ..tmpl(0, 0)
        };
        tmpl.id.daddr = self.address(family);
        tmpl.id.proto = self.pick_byte(&[50, 50, 50, 51, 108, 60]);
        if self.one_in(9) {
            tmpl.id.spi = BeU32::new(0x1000);
            tmpl.aalgos = self.entropy.u32();
        }
        tmpl
    }

    fn fresh_policy(&mut self) -> Policy {
        let family = self.family();
        let mut policy = Policy::new(self.pick_byte(&[0, 1, 1, 2]));
        policy.info.sel = self.selector(family);
        if policy.info.sel.family == 0 && !self.one_in(5) {
            policy.info.sel.family = family;
        }
        policy.info.lft = self.limits();
        policy.info.priority = self.below(3);
        policy.info.action = u8::from(self.one_in(6));
        if self.one_in(8) {
            policy.info.index =
                self.below(6) * 8 + u32::from(policy.info.dir) + u32::from(self.one_in(9));
        }
        if self.one_in(9) {
            policy.info.flags = self.below(8) as u8;
            policy.info.share = self.pick_byte(&[0, 1, 2, 3]);
        }
        let count = self.pick(&[0, 1, 1, 1, 2, 3]);
        if count > 0 {
            let tmpls: Vec<_> = (0..count).map(|_| self.tmpl(family)).collect();
            policy = policy.tmpls(&tmpls);
        }
        if self.one_in(6) {
            policy = policy.kind(self.pick_byte(&[0, 1]));
        }
        if self.one_in(6) {
            policy = policy.pod(XFRMA_MARK, &self.mark());
        }
        if self.one_in(6) {
            policy = policy.u32(XFRMA_IF_ID, self.below(3));
        }
        if self.one_in(20) {
            let (kind, payload) = self.any_attribute();
            policy = policy.attr(kind, payload);
        }
        policy
    }

    fn policy(&mut self, fresh_one_in: u32) -> Policy {
        if self.policies.is_empty() || self.one_in(fresh_one_in) {
            let policy = self.fresh_policy();
            self.policies.push(policy.clone());
            return policy;
        }
        let recent = self.policies.len().min(12) as u32;
        let index = self.policies.len() - 1 - self.below(recent) as usize;
        self.policies[index].clone()
    }

    fn new_policy(&mut self, kind: u16) -> Message {
        let mut policy = self.policy(2);
        if self.one_in(3) {
            let other = self.fresh_policy();
            match self.below(6) {
                0 => policy.info.priority = other.info.priority,
                1 => policy.info.lft = other.info.lft,
                2 => policy.info.index = other.info.index,
                3 => policy.info.action = other.info.action,
                4 => policy.attrs = other.attrs,
                _ => policy.info.dir = other.info.dir,
            }
        }
        policy.message(kind)
    }

    fn policy_lookup(&mut self, kind: u16) -> Message {
        let policy = self.policy(9);
        if self.one_in(3) {
            let index = self.below(24) * 8 + u32::from(policy.info.dir);
            let message = by_index(kind, policy.info.dir, index);
            let attrs = policy.attrs.iter().filter(|attr| attr.0 != XFRMA_TMPL);
            return attrs.fold(message, |message, (kind, payload)| {
                message.attr(*kind, payload)
            });
        }
        policy.by_selector(kind)
    }

    fn flush_policy(&mut self) -> Message {
        let message = Message::new(XFRM_MSG_FLUSHPOLICY);
        let kind = self.pick_byte(&[0, 1]);
        if self.one_in(2) {
            message.pod(XFRMA_POLICY_TYPE, &policy_type(kind))
        } else {
            message
        }
    }

    fn policy_expire(&mut self) -> Message {
        let policy = self.policy(9);
        let expire = UserPolExpire {
            pol: policy.info,
            hard: self.pick_byte(&[0, 0, 1]),
            pad: [0; 7],
        };
        let attrs = policy.attrs.iter().filter(|attr| attr.0 != XFRMA_TMPL);
        let message = Message::with(XFRM_MSG_POLEXPIRE, &expire);
        attrs.fold(message, |message, (kind, payload)| {
            message.attr(*kind, payload)
        })
    }

    fn acquire(&mut self) -> Message {
        let policy = self.policy(2);
        let family = policy.info.sel.family;
        let acquire = UserAcquire {
            id: XfrmId {
                daddr: self.address(family),
                spi: BeU32::new(self.below(2)),
                proto: self.pick_byte(&[50, 51]),
                pad: [0; 3],
            },
            saddr: self.address(family),
            sel: if self.one_in(3) {
                self.selector(family)
            } else {
                policy.info.sel
            },
            policy: policy.info,
            aalgos: self.below(9),
            ealgos: self.below(9),
            calgos: self.below(9),
            seq: self.below(9),
        };
        let attrs = policy.attrs.iter();
        let message = Message::with(XFRM_MSG_ACQUIRE, &acquire);
        attrs.fold(message, |message, (kind, payload)| {
            message.attr(*kind, payload)
        })
    }

    fn migrate(&mut self) -> Message {
        let policy = self.policy(20);
        let tmpls: Vec<UserTmpl> = policy
            .attrs
            .iter()
            .filter(|attr| attr.0 == XFRMA_TMPL)
            .flat_map(|attr| {
                attr.1
                    .chunks_exact(64)
                    .filter_map(UserTmpl::read)
                    .collect::<Vec<_>>()
            })
            .collect();
        let count = 1 + usize::from(self.one_in(4));
        let mut bytes = Vec::new();
        for n in 0..count {
            let tmpl = tmpls.get(n).copied().unwrap_or_else(|| self.tmpl(AF_INET));
            let family = if self.one_in(8) {
                self.family()
            } else {
                tmpl.family
            };
            let entry = UserMigrate {
                old_daddr: tmpl.id.daddr,
                old_saddr: tmpl.saddr,
                new_daddr: self.address(family),
                new_saddr: self.address(family),
                proto: if self.one_in(9) {
                    self.pick_byte(&[50, 51, 108])
                } else {
                    tmpl.id.proto
                },
                mode: if self.one_in(9) {
                    self.pick_byte(&[0, 1, 4])
                } else {
                    tmpl.mode
                },
                reserved: 0,
                reqid: self.pick(&[0, 0, tmpl.reqid, 1]),
                old_family: tmpl.family,
                new_family: family,
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        let mut message = policy
            .by_selector(XFRM_MSG_MIGRATE)
            .attr(XFRMA_MIGRATE, bytes);
        if self.one_in(5) {
            message = message.pod(XFRMA_ENCAP, &self.encap());
        } else if self.one_in(9) && count == 1 {
            message = message.pod(
                XFRMA_KMADDRESS,
                &UserKmAddress {
                    local: v6(1),
                    remote: v6(2),
                    ..UserKmAddress::default()
                },
            );
        }
        message
    }

    fn migrate_state(&mut self) -> Message {
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

    fn thresholds(&mut self) -> Message {
        let message = Message::new(XFRM_MSG_NEWSPDINFO).put(&[0; 4]);
        let (left, right) = (self.pick_byte(&[0, 24, 32]), self.pick_byte(&[0, 24, 32]));
        message.attr(3 + self.below(2) as u16, [left, right])
    }

    fn default_policy(&mut self) -> Message {
        let kind = self.pick(&[XFRM_MSG_SETDEFAULT, XFRM_MSG_GETDEFAULT]);
        let mut byte = || self.pick_byte(&[0, 1, 2, 3]);
        Message::with(
            kind,
            &UserPolicyDefault {
                input: byte(),
                fwd: byte(),
                out: byte(),
            },
        )
    }

    fn anything(&mut self) -> Message {
        let kind = self.below(0x30) as u16;
        let len = self.below(320) as usize;
        let fill = self.pick(&[0, 1, 2, 10, 50, 255]);
        let mut message = Message::new(kind).raw(&vec![fill; len]);
        for _ in 0..self.below(4) {
            let (kind, payload) = self.any_attribute();
            message = message.attr(kind, payload);
        }
        message
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        match self.below(8) {
            0..4 => {
                for _ in 0..=self.below(3) {
                    let len = bytes.len() as u32;
                    if len > 16 {
                        let at = 16 + self.below(len - 16) as usize;
                        bytes[at] = match self.below(4) {
                            0 => bytes[at] ^ (1 << self.below(8)),
                            1 => 0,
                            2 => 255,
                            _ => self.below(256) as u8,
                        };
                    }
                }
            }
            4 => {
                let len = self.below(bytes.len() as u32 + 1) as usize;
                bytes.truncate(len.max(16));
                let len = (bytes.len() as u32).to_ne_bytes();
                bytes[..4].copy_from_slice(&len);
            }
            5 => {
                let (kind, payload) = self.any_attribute();
                bytes.resize(align4(bytes.len()), 0);
                bytes.extend_from_slice(&(payload.len() as u16 + 4).to_ne_bytes());
                bytes.extend_from_slice(&kind.to_ne_bytes());
                bytes.extend_from_slice(&payload);
                let len = (bytes.len() as u32).to_ne_bytes();
                bytes[..4].copy_from_slice(&len);
            }
            6 => {
                let extra = 1 + self.below(8) as usize;
                bytes.resize(bytes.len() + extra, self.below(256) as u8);
                let len = (bytes.len() as u32).to_ne_bytes();
                bytes[..4].copy_from_slice(&len);
            }
            _ => {
                let at = self.below(8) as usize;
                bytes[at] ^= 1 << self.below(4);
            }
        }
    }
}

/// Takes out what two honest runs may answer differently: SPIs drawn from a
/// range, and IPCOMP tunnels, whose hidden SA goes when a worker gets to it.
fn tame(datagram: &mut [u8]) {
    let mut at = 0;
    let parts: Vec<(u16, usize, usize)> = messages(datagram)
        .map(|(header, message)| {
            let part = (header.kind, at, message.len());
            at += align4(message.len());
            part
        })
        .collect();
    for (kind, start, len) in parts {
        let message = &mut datagram[start..start + len];
        match kind {
            XFRM_MSG_NEWSA | XFRM_MSG_UPDSA if len >= 16 + 224 => {
                let body = &mut message[16..];
                if body[76] == IPPROTO_COMP && body[214] == XFRM_MODE_TUNNEL {
                    body[214] = XFRM_MODE_TRANSPORT;
                }
            }
            XFRM_MSG_ALLOCSPI if len >= 16 + 232 => {
                let body = &mut message[16..];
                let word = |at: usize| {
                    u32::from_ne_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
                };
                if word(224) < word(228) {
                    body.copy_within(224..228, 228);
                }
            }
            _ => {}
        }
    }
}
