//! What a sequence is made of: requests that are valid more often than not,
//! about few hosts, SPIs, selectors and marks, so that they meet; then some
//! of them are damaged.

mod damage;
mod policies;
mod sas;

use dataplane::{Entropy, SeededEntropy};
use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;

use super::sequence::{Sequence, Step};
use crate::message::Message;
use crate::scenario::Sa;
use crate::scenario::build::*;

/// The sequence of a seed.
///
/// Hash thresholds are only set where the kernel `survives_rebuild` of its policy tables.
pub(super) fn sequence(seed: u64, count: u32, survives_rebuild: bool) -> Sequence {
    let mut generator = Generator {
        entropy: SeededEntropy::new(seed),
        sas: Vec::new(),
        policies: Vec::new(),
        seq: 1000,
        survives_rebuild,
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
    survives_rebuild: bool,
}

const HOSTS: [u8; 3] = [1, 2, 3];

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
        damage::tame(&mut datagram, self.survives_rebuild);
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
            LifetimeCfg::UNLIMITED
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
}
