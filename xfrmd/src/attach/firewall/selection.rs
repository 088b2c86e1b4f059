//! A rule for a set of policies: which packets it is for, and what becomes of them.

use xfrm_proto::consts::*;

use super::super::classify::{Shape, Verdict, prefix_mask};
use super::super::nft::{Base, Meta, NFPROTO_IPV4, NFPROTO_IPV6, REG, Rule, Then};
use super::{BLOCK, CAPTURE, IN_BLOCKED, TYPE_OWN, UNPROTECTED};

/// Goes on only with packets that a policy of the set is for: the fields in the order of its keys.
pub(super) fn select(rule: &mut Rule<'_, '_>, shape: &Shape, (dir, kind): (u8, u8), set: &str) {
    let (nfproto, source_at, destination_at) = if shape.is_v6 {
        (NFPROTO_IPV6, 8, 24)
    } else {
        (NFPROTO_IPV4, 12, 16)
    };
    rule.meta(Meta::Nfproto, REG);
    rule.equals(REG, &[nfproto]);
    let bytes = shape.address_bytes();
    let words = |bytes: usize| u32::try_from(bytes / 4).unwrap_or(0);
    let mut register = REG;
    for (at, bits) in [
        (source_at, shape.source_bits),
        (destination_at, shape.destination_bits),
    ] {
        if bits == 0 {
            continue;
        }
        rule.payload(Base::Network, at, 4 * words(bytes), register);
        if usize::from(bits) < 8 * bytes {
            rule.bitwise(register, &prefix_mask(bits, bytes), &vec![0; bytes]);
        }
        register += words(bytes);
    }
    if shape.protocol {
        rule.meta(Meta::L4Protocol, register);
        register += 1;
    }
    if shape.ports != [0; 4] {
        rule.payload(Base::Transport, 0, 4, register);
        if shape.ports != [0xff; 4] {
            rule.bitwise(register, &shape.ports, &[0; 4]);
        }
        register += 1;
    }
    if shape.interface {
        let which = if dir == XFRM_POLICY_OUT {
            Meta::OutputInterface
        } else {
            Meta::InputInterface
        };
        rule.meta(which, register);
        register += 1;
    }
    if shape.mark != 0 {
        if (dir, kind) == (XFRM_POLICY_IN, TYPE_OWN) {
            rule.socket_mark(register);
        } else {
            rule.meta(Meta::Mark, register);
        }
        rule.bitwise(register, &shape.mark.to_ne_bytes(), &[0; 4]);
    }
    if shape.key_bytes() > 0 {
        rule.lookup(set, REG);
    }
}

/// What is done to a packet that a policy of a set is for.
pub(super) fn decide(rule: &mut Rule<'_, '_>, (dir, kind): (u8, u8), verdict: Verdict) {
    let out = dir == XFRM_POLICY_OUT;
    match verdict {
        // Beside a socket's own policy no other is asked.
        Verdict::Bypass if kind == TYPE_OWN => rule.then(Then::Accept),
        Verdict::Bypass => rule.then(Then::Return),
        Verdict::Protect if out => rule.then(Then::Goto(CAPTURE)),
        Verdict::Protect => {
            rule.count(UNPROTECTED);
            rule.then(Then::Drop);
        }
        Verdict::Block if out => rule.then(Then::Goto(BLOCK)),
        Verdict::Block => {
            rule.count(IN_BLOCKED);
            rule.then(Then::Drop);
        }
    }
}
