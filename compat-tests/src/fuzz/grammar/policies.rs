//! Requests about policies.

use dataplane::Entropy;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::Generator;
use crate::message::Message;
use crate::scenario::build::*;

impl Generator {
    pub(super) fn tmpl(&mut self, family: u16) -> UserTmpl {
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

    pub(super) fn fresh_policy(&mut self) -> Policy {
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

    pub(super) fn policy(&mut self, fresh_one_in: u32) -> Policy {
        if self.policies.is_empty() || self.one_in(fresh_one_in) {
            let policy = self.fresh_policy();
            self.policies.push(policy.clone());
            return policy;
        }
        let recent = self.policies.len().min(12) as u32;
        let index = self.policies.len() - 1 - self.below(recent) as usize;
        self.policies[index].clone()
    }

    pub(super) fn new_policy(&mut self, kind: u16) -> Message {
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

    pub(super) fn policy_lookup(&mut self, kind: u16) -> Message {
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

    pub(super) fn flush_policy(&mut self) -> Message {
        let message = Message::new(XFRM_MSG_FLUSHPOLICY);
        let kind = self.pick_byte(&[0, 1]);
        if self.one_in(2) {
            message.pod(XFRMA_POLICY_TYPE, &policy_type(kind))
        } else {
            message
        }
    }

    pub(super) fn policy_expire(&mut self) -> Message {
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

    pub(super) fn acquire(&mut self) -> Message {
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

    pub(super) fn migrate(&mut self) -> Message {
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

    pub(super) fn thresholds(&mut self) -> Message {
        let message = Message::new(XFRM_MSG_NEWSPDINFO).put(&[0; 4]);
        let (left, right) = (self.pick_byte(&[0, 24, 32]), self.pick_byte(&[0, 24, 32]));
        message.attr(3 + self.below(2) as u16, [left, right])
    }

    pub(super) fn default_policy(&mut self) -> Message {
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
}
