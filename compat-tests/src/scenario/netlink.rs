//! Netlink itself: acknowledgements, framing, dumps, groups, privileges.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("ack_forms", ack_forms),
    Scenario::new(
        "ack_echoes_what_was_rewritten",
        ack_echoes_what_was_rewritten,
    ),
    Scenario::new("ack_on_request_only", ack_on_request_only),
    Scenario::new("message_types", message_types),
    Scenario::new("message_lengths", message_lengths),
    Scenario::new("datagram_of_several", datagram_of_several),
    Scenario::new("malformed_framing", malformed_framing),
    Scenario::new("header_flags", header_flags),
    Scenario::new("port_id_and_seq_echo", port_id_and_seq_echo),
    Scenario::new("unprivileged", unprivileged),
    Scenario::new("groups", groups),
    Scenario::new("group_numbers", group_numbers),
];

fn ack_forms(s: &mut Session<'_>) {
    for (name, cap, ext) in ACKS {
        let a = s.open(name, Open::new().acks(cap, ext));
        let sa = Sa::esp();
        s.request(a, "success", sa.new_sa());
        s.request(a, "error without text", sa.new_sa());
        let odd = Sa::esp().info(|info| info.family = 3);
        s.request(a, "error with text", odd.new_sa());
        let short = sa.new_sa().attr(XFRMA_IF_ID, [1, 2]);
        s.request(a, "attribute too short", short);
        let wrong = sa.new_sa().attr(XFRMA_SA_DIR, [9]);
        s.request(a, "out of range", wrong);
        let wrong = sa.new_sa().attr(XFRMA_SA_DIR | NLA_F_NESTED, [1]);
        s.request(a, "nested", wrong);
        let wrong = sa.new_sa().attr(XFRMA_SA_DIR, [1, 0]);
        s.request(a, "strict length", wrong);
        let leftover = sa.by_id(XFRM_MSG_GETSA).raw(&[1, 2, 3]);
        s.request(a, "success with leftover bytes", leftover);
        let leftover = sa.new_sa().raw(&[0xff, 0, 1, 0, 5]);
        s.request(a, "error with leftover bytes", leftover);
        let unpadded = Message::new(XFRM_MSG_DELSA).raw(&[1, 2, 3]);
        s.request(a, "error echoing an unaligned request", unpadded);
        s.request(a, "delete", sa.by_id(XFRM_MSG_DELSA));
    }
}

fn ack_echoes_what_was_rewritten(s: &mut Session<'_>) {
    let a = s.open("a", Open::new().plain());
    let mut blob = algo_icv("x", 128, &key(20));
    blob[1..64].fill(b'x');
    for kind in [XFRMA_ALG_AEAD, XFRMA_ALG_AUTH_TRUNC, XFRMA_ALG_CRYPT] {
        let base = Sa::bare(IPPROTO_ESP).attr(kind, &blob);
        s.request(a, "unknown name", base.new_sa());
        s.request(a, "unknown name", base.upd_sa());
        s.request(a, "bad mode", base.clone().mode(9).new_sa());
        s.request(a, "bad protocol", base.info(|i| i.id.proto = 99).new_sa());
    }
    let two = |first: &[u8], second: &[u8]| {
        let base = Sa::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH_TRUNC, first);
        base.attr(XFRMA_ALG_AUTH, second).new_sa()
    };
    let mut long = blob.clone();
    long[66] = 9;
    s.request(a, "second too short", two(&blob, &long));
    s.request(a, "first too short", two(&long, &blob));
    let unset = UserTmpl {
        family: 0,
        ..tmpl(1, 1)
    };
    for tmpls in [[unset, tmpl(9, 1)], [tmpl(9, 1), unset]] {
        s.request(a, "templates", Policy::new(1).tmpls(&tmpls).new_policy());
        s.request(a, "templates", Policy::new(1).tmpls(&tmpls).upd_policy());
        let acquire = UserAcquire {
            policy: Policy::new(1).info,
            ..UserAcquire::default()
        };
        let bytes = tmpls.map(|tmpl| tmpl.as_bytes().to_vec()).concat();
        let acquire = Message::with(XFRM_MSG_ACQUIRE, &acquire).attr(XFRMA_TMPL, bytes);
        s.request(a, "templates", acquire);
    }
}

fn ack_on_request_only(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let sa = Sa::esp();
    s.request(a, "no ack wanted", sa.new_sa().flags(NLM_F_REQUEST));
    s.request(a, "error anyway", sa.new_sa().flags(NLM_F_REQUEST));
    s.request(
        a,
        "no request flag",
        sa.by_id(XFRM_MSG_DELSA).flags(NLM_F_ACK),
    );
    s.request(a, "no flags", sa.by_id(XFRM_MSG_DELSA).flags(0));
    s.request(
        a,
        "still there",
        sa.by_id(XFRM_MSG_GETSA).flags(NLM_F_REQUEST),
    );
    let alloc = alloc(&Sa::bare(IPPROTO_ESP), 0x900, 0x900);
    s.request(a, "reply without ack", alloc.flags(NLM_F_REQUEST));
    s.request(
        a,
        "dump with ack",
        Message::dump(XFRM_MSG_GETSA).flags(NLM_F_REQUEST | NLM_F_DUMP | NLM_F_ACK),
    );
}

fn message_types(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let nobody = s.open("nobody", Open::new().unprivileged());
    for kind in (0..0x14)
        .chain(0x1c..0x30)
        .chain([0x7f, 0xff, 0x100, 0x7fff, 0xffff])
    {
        let message = Message::new(kind).put(&[0; 512]);
        s.request(a, &format!("{kind:#x}"), message.clone());
        s.request(nobody, &format!("{kind:#x}"), message);
    }
}

fn message_lengths(s: &mut Session<'_>) {
    const MIN: [(u16, usize); 26] = [
        (0x10, 224),
        (0x11, 24),
        (0x12, 24),
        (0x13, 168),
        (0x14, 64),
        (0x15, 64),
        (0x16, 232),
        (0x17, 280),
        (0x18, 232),
        (0x19, 168),
        (0x1a, 224),
        (0x1b, 176),
        (0x1c, 1),
        (0x1d, 0),
        (0x1e, 48),
        (0x1f, 48),
        (0x20, 60),
        (0x21, 64),
        (0x22, 0),
        (0x23, 4),
        (0x24, 4),
        (0x25, 4),
        (0x26, 64),
        (0x27, 3),
        (0x28, 3),
        (0x29, 132),
    ];
    let a = s.open("a", Open::new());
    for (kind, min) in MIN {
        for len in [
            0,
            1,
            min.saturating_sub(4),
            min.saturating_sub(1),
            min,
            min + 1,
            min + 3,
        ] {
            let message = Message::new(kind).raw(&vec![0; len]);
            s.request(a, &format!("{len} of {min}"), message);
        }
    }
}

fn datagram_of_several(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let (one, two) = (Sa::esp(), Sa::esp().spi(0x1001));
    s.datagram(
        a,
        "all good",
        vec![one.new_sa(), two.new_sa(), one.by_id(XFRM_MSG_GETSA)],
    );
    s.datagram(
        a,
        "an error in the middle",
        vec![
            one.by_id(XFRM_MSG_DELSA),
            one.by_id(XFRM_MSG_DELSA),
            two.by_id(XFRM_MSG_DELSA),
        ],
    );
    s.datagram(
        a,
        "a dump in the middle",
        vec![
            one.new_sa(),
            Message::dump(XFRM_MSG_GETSA),
            two.new_sa(),
            Message::dump(XFRM_MSG_GETPOLICY),
        ],
    );
    let quiet = |sa: &Sa| sa.by_id(XFRM_MSG_DELSA).flags(NLM_F_REQUEST);
    s.datagram(
        a,
        "one ack for three",
        vec![quiet(&one), quiet(&two), Message::new(XFRM_MSG_FLUSHPOLICY)],
    );
    let noop = Message::new(NLMSG_NOOP);
    s.datagram(
        a,
        "control messages between",
        vec![
            noop.clone(),
            one.new_sa(),
            Message::new(NLMSG_DONE),
            two.new_sa(),
            noop,
        ],
    );
    let unaligned = Message::new(XFRM_MSG_FLUSHSA).raw(&[0]);
    s.datagram(
        a,
        "unaligned first",
        vec![unaligned.clone(), one.new_sa(), unaligned],
    );
}

fn malformed_framing(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let good = Sa::esp().new_sa().seq(77).bytes();
    let get = Sa::esp().by_id(XFRM_MSG_GETSA);
    let try_bytes = |s: &mut Session<'_>, label: &str, bytes: &[u8]| {
        s.send_bytes(a, label, bytes);
        s.drain(a);
        s.request(a, "is it there", get.clone());
        s.request(a, "flush", flush_sa(0));
    };
    for len in [0, 1, 3, 15] {
        try_bytes(s, &format!("{len} bytes"), &good[..len]);
    }
    for claims in [
        0u32,
        1,
        15,
        16,
        17,
        20,
        good.len() as u32 - 1,
        good.len() as u32 + 1,
        0x7fff_ffff,
        0xffff_ffff,
    ] {
        let mut bytes = good.clone();
        bytes[..4].copy_from_slice(&claims.to_ne_bytes());
        try_bytes(s, &format!("claims {claims} of {}", good.len()), &bytes);
        let mut behind = Message::new(XFRM_MSG_FLUSHPOLICY).seq(78).bytes();
        behind.extend_from_slice(&bytes);
        try_bytes(s, &format!("behind another, claims {claims}"), &behind);
        bytes.extend_from_slice(&Message::new(XFRM_MSG_FLUSHPOLICY).seq(79).bytes());
        try_bytes(s, &format!("before another, claims {claims}"), &bytes);
    }
    let mut junk = good.clone();
    junk.extend_from_slice(&[9; 7]);
    try_bytes(s, "junk behind", &junk);
    junk.truncate(good.len());
    junk.truncate(good.len() - 1);
    let short = (junk.len() as u32).to_ne_bytes();
    junk[..4].copy_from_slice(&short);
    try_bytes(s, "unaligned end of datagram", &junk);
}

fn header_flags(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let b = s.open("b", Open::new().all_groups());
    for bit in 0..16 {
        let flags = NLM_F_REQUEST | NLM_F_ACK | (1 << bit);
        let label = format!("flags {flags:#x}");
        s.request(a, &label, Sa::esp().new_sa().flags(flags));
        s.request(a, &label, Sa::esp().new_sa().flags(flags));
        s.request(a, &label, Sa::esp().by_id(XFRM_MSG_DELSA).flags(flags));
        s.request(a, &label, Policy::new(1).new_policy().flags(flags));
        s.request(
            a,
            &label,
            Policy::new(1).by_selector(XFRM_MSG_DELPOLICY).flags(flags),
        );
        s.request(
            a,
            &label,
            Message::new(XFRM_MSG_GETSADINFO).put(&[0; 4]).flags(flags),
        );
        s.drain(b);
    }
}

fn port_id_and_seq_echo(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp();
    let policy = Policy::new(XFRM_POLICY_OUT);
    let odd = |message: Message| message.pid(4711).seq(0xdead_beef);
    s.request(a, "", odd(sa.new_sa()));
    s.request(a, "", odd(sa.by_id(XFRM_MSG_GETSA)));
    s.request(a, "", odd(sa.upd_sa()));
    let ae = AeventId {
        sa_id: sa.id(),
        ..AeventId::default()
    };
    s.request(a, "", odd(Message::with(XFRM_MSG_GETAE, &ae)));
    s.request(a, "pid 0", Message::with(XFRM_MSG_GETAE, &ae));
    let set = Message::with(XFRM_MSG_NEWAE, &ae).flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE);
    s.request(a, "", odd(set.u32(XFRMA_REPLAY_THRESH, 3)));
    s.request(a, "", odd(alloc(&Sa::bare(IPPROTO_ESP), 0x800, 0x800)));
    s.request(a, "", odd(Message::dump(XFRM_MSG_GETSA)));
    s.request(a, "", odd(policy.new_policy()));
    s.request(a, "", odd(policy.by_selector(XFRM_MSG_GETPOLICY)));
    s.request(a, "", odd(policy.upd_policy()));
    s.request(a, "", odd(Message::dump(XFRM_MSG_GETPOLICY)));
    let expire = UserPolExpire {
        pol: policy.info,
        hard: 0,
        pad: [0; 7],
    };
    s.request(a, "", odd(Message::with(XFRM_MSG_POLEXPIRE, &expire)));
    s.request(a, "", odd(policy.by_selector(XFRM_MSG_DELPOLICY)));
    let expire = UserExpire {
        state: sa.info,
        hard: 0,
        pad: [0; 7],
    };
    s.request(a, "", odd(Message::with(XFRM_MSG_EXPIRE, &expire)));
    for kind in [XFRM_MSG_GETSADINFO, XFRM_MSG_GETSPDINFO] {
        s.request(a, "", odd(Message::new(kind).put(&[1, 2, 3, 4])));
    }
    for kind in [XFRM_MSG_SETDEFAULT, XFRM_MSG_GETDEFAULT] {
        s.request(
            a,
            "",
            odd(Message::with(kind, &UserPolicyDefault::default())),
        );
    }
    s.request(a, "", odd(sa.by_id(XFRM_MSG_DELSA)));
    s.request(a, "", odd(flush_sa(0)));
}

fn unprivileged(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let nobody = s.open("nobody", Open::new().unprivileged());
    s.request(a, "", Sa::esp().new_sa());
    for kind in 0x10..=0x2a {
        s.request(nobody, "", Message::new(kind).put(&[0; 300]));
    }
    s.request(nobody, "dump", Message::dump(XFRM_MSG_GETSA));
    s.request(nobody, "too short", Message::new(XFRM_MSG_NEWSA));
    s.request(nobody, "not for us", Message::new(5));
    s.request(
        nobody,
        "not a request",
        Message::new(XFRM_MSG_FLUSHSA).flags(NLM_F_ACK),
    );
    let _ = s.try_open("groupie", Open::new().unprivileged().all_groups());
    s.set_member(nobody, 3, true);
    let plain = s.open("plain", Open::new().plain().unprivileged());
    s.request(plain, "echo", Sa::esp().new_sa());
}

fn groups(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let mut members = Vec::new();
    for group in 1..=8 {
        members.push(s.open(&format!("g{group}"), Open::new().groups(1 << (group - 1))));
    }
    let own = s.open("own", Open::new().all_groups());
    s.open("high", Open::new().groups(0xffff_ff00));
    let sa = Sa::esp();
    let policy = Policy::new(XFRM_POLICY_OUT);
    for from in [a, own] {
        s.request(from, "", sa.new_sa());
        s.request(from, "", policy.new_policy());
        let ae = AeventId {
            sa_id: sa.id(),
            ..AeventId::default()
        };
        let set =
            Message::with(XFRM_MSG_NEWAE, &ae).flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE);
        s.request(from, "", set.u32(XFRMA_REPLAY_THRESH, 3));
        let expire = UserPolExpire {
            pol: policy.info,
            hard: 1,
            pad: [0; 7],
        };
        s.request(from, "", Message::with(XFRM_MSG_POLEXPIRE, &expire));
        let expire = UserExpire {
            state: sa.info,
            hard: 1,
            pad: [0; 7],
        };
        s.request(from, "", Message::with(XFRM_MSG_EXPIRE, &expire));
        s.request(
            from,
            "",
            Message::with(
                XFRM_MSG_SETDEFAULT,
                &UserPolicyDefault {
                    input: 1,
                    fwd: 1,
                    out: 1,
                },
            ),
        );
    }
    s.set_member(members[2], 3, false);
    s.set_member(members[3], 3, true);
    s.request(a, "g3 has left, g4 has joined", sa.new_sa());
    s.close(members[3]);
    s.request(a, "g4 is closed", sa.by_id(XFRM_MSG_DELSA));
}

fn group_numbers(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for group in [0, 1, 8, 9, 31, 32, 33, 64, u32::MAX] {
        s.set_member(a, group, true);
        s.set_member(a, group, false);
    }
}
