//! Attributes on every message: lengths, strictness, junk, and what each
//! handler makes of each attribute.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};
use crate::subject::Socket;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("attr_lengths", attr_lengths),
    Scenario::new("attr_strictness", attr_strictness),
    Scenario::new("attr_order_and_junk", attr_order_and_junk),
    Scenario::new("attr_spd_space", attr_spd_space),
    Scenario::new("attrs_on_newsa", |s| on_sa(s, XFRM_MSG_NEWSA)),
    Scenario::new("attrs_on_newsa_out", attrs_on_newsa_out),
    Scenario::new("attrs_on_updsa", |s| on_sa(s, XFRM_MSG_UPDSA)),
    Scenario::new("attrs_on_delsa", |s| on_lookup(s, XFRM_MSG_DELSA)),
    Scenario::new("attrs_on_getsa", |s| on_lookup(s, XFRM_MSG_GETSA)),
    Scenario::new("attrs_on_getae", |s| on_lookup(s, XFRM_MSG_GETAE)),
    Scenario::new("attrs_on_newae", |s| on_lookup(s, XFRM_MSG_NEWAE)),
    Scenario::new("attrs_on_expire", |s| on_lookup(s, XFRM_MSG_EXPIRE)),
    Scenario::new("attrs_on_allocspi", attrs_on_allocspi),
    Scenario::new("attrs_on_newpolicy", |s| on_policy(s, XFRM_MSG_NEWPOLICY)),
    Scenario::new("attrs_on_updpolicy", |s| on_policy(s, XFRM_MSG_UPDPOLICY)),
    Scenario::new("attrs_on_delpolicy", |s| on_policy(s, XFRM_MSG_DELPOLICY)),
    Scenario::new("attrs_on_getpolicy", |s| on_policy(s, XFRM_MSG_GETPOLICY)),
    Scenario::new("attrs_on_polexpire", |s| on_policy(s, XFRM_MSG_POLEXPIRE)),
    Scenario::new("attrs_on_acquire", |s| on_policy(s, XFRM_MSG_ACQUIRE)),
    Scenario::new("attrs_on_migrate", |s| on_policy(s, XFRM_MSG_MIGRATE)),
    Scenario::new("attrs_on_migrate_state", attrs_on_migrate_state),
    Scenario::new("attrs_on_the_rest", attrs_on_the_rest),
];

const BEYOND: u16 = 46;

fn attr_lengths(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let get = Sa::esp().by_id(XFRM_MSG_GETSA);
    for kind in 0..=BEYOND {
        let min = ATTR_MIN.get(usize::from(kind)).copied().unwrap_or(4);
        let mut lengths = vec![0, min.saturating_sub(1), min, min + 1, min + 4];
        lengths.dedup();
        for len in lengths {
            s.request(
                a,
                &format!("attr {kind} of {len}"),
                get.clone().attr(kind, vec![0; len]),
            );
        }
    }
}

fn attr_strictness(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for kind in [
        1, 21, 25, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
    ] {
        for bits in [NLA_F_NESTED, 1 << 14, 3 << 14] {
            for len in [0, 1, 2, 3, 4, 5, 8] {
                let message = Sa::esp().new_sa().attr(kind | bits, vec![1; len]);
                s.request(a, &format!("attr {kind} bits {bits:#x} of {len}"), message);
                s.send(a, "flush", vec![flush_sa(0)]);
            }
        }
    }
    for dir in [0, 1, 2, 3, 255] {
        s.request(
            a,
            &format!("dir {dir}"),
            Sa::esp().new_sa().attr(XFRMA_SA_DIR, [dir]),
        );
        s.send(a, "flush", vec![flush_sa(0)]);
    }
}

fn attr_order_and_junk(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let try_one = |s: &mut Session<'_>, label: &str, message: Message| {
        if s.request(a, label, message).is_ok() {
            s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
            s.request(a, "flush", flush_sa(0));
        }
    };
    let new = || Sa::esp().new_sa();
    try_one(
        s,
        "last one wins",
        new().u32(XFRMA_IF_ID, 1).u32(XFRMA_IF_ID, 2),
    );
    try_one(
        s,
        "a bad one fails though a good one follows",
        new().attr(XFRMA_IF_ID, [1]).u32(XFRMA_IF_ID, 2),
    );
    try_one(
        s,
        "the first bad one is named",
        new().attr(XFRMA_MARK, [1]).attr(XFRMA_SA_DIR, [9]),
    );
    try_one(
        s,
        "the first bad one is named",
        new().attr(XFRMA_SA_DIR, [9]).attr(XFRMA_MARK, [1]),
    );
    try_one(s, "type 0", new().attr(0, [1, 2, 3, 4]).u32(XFRMA_IF_ID, 2));
    try_one(
        s,
        "type 16383",
        new().attr(0x3fff, [1, 2, 3, 4]).u32(XFRMA_IF_ID, 2),
    );
    try_one(s, "net byte order bit", new().u32(XFRMA_IF_ID | 1 << 14, 2));
    try_one(s, "nested bit", new().u32(XFRMA_IF_ID | NLA_F_NESTED, 2));
    for junk in 1..=9usize {
        try_one(
            s,
            &format!("{junk} bytes of zero"),
            new().raw(&vec![0; junk]),
        );
        try_one(
            s,
            &format!("{junk} bytes of 255"),
            new().raw(&vec![255; junk]),
        );
    }
    for claims in [0, 1, 3, 4, 5, 7, 8, 9, 12, 0xffff] {
        let message = new().attr_claiming(XFRMA_IF_ID, claims, &[5, 0, 0, 0]);
        try_one(s, &format!("claims {claims}"), message.clone());
        try_one(
            s,
            &format!("claims {claims}, more behind"),
            message.u32(XFRMA_TFCPAD, 7),
        );
    }
    try_one(s, "unpadded last attribute", new().raw(&[5, 0, 38, 0, 1]));
    let mut body = Sa::esp().info.as_bytes().to_vec();
    body.extend_from_slice(&[0; 8]);
    try_one(
        s,
        "body longer by an empty attribute header",
        Message::new(XFRM_MSG_NEWSA).raw(&body),
    );
    let error = Sa::esp().info(|info| info.family = 9).new_sa().raw(&[1, 2]);
    try_one(s, "error text wins over leftover", error);
    let error = Sa::esp().new_sa().attr(XFRMA_SA_DIR, [9]).raw(&[1, 2]);
    try_one(s, "policy failure before leftover", error);
    let leftover = Message::new(XFRM_MSG_DELSA)
        .put(Sa::esp().id().as_bytes())
        .raw(&[1, 2]);
    try_one(s, "errno without text and leftover", leftover);
}

fn attr_spd_space(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for kind in 0..=6 {
        for payload in [
            &[][..],
            &[1],
            &[20, 30],
            &[33, 1],
            &[1, 33],
            &[32, 32],
            &[129, 0],
            &[0, 129],
            &[128, 128, 9],
        ] {
            let label = format!("attr {kind} {payload:?}");
            let set = Message::new(XFRM_MSG_NEWSPDINFO)
                .put(&[0; 4])
                .attr(kind, payload);
            s.request(a, &label, set);
            s.request(
                a,
                &label,
                Message::new(XFRM_MSG_GETSPDINFO)
                    .put(&[9; 4])
                    .attr(kind, payload),
            );
        }
    }
    let both = Message::new(XFRM_MSG_NEWSPDINFO).put(&[0; 4]);
    s.request(
        a,
        "the second is bad",
        both.clone().attr(3, [8, 8]).attr(4, [8, 200]),
    );
    s.request(a, "get", Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]));
    s.request(a, "both", both.clone().attr(3, [8, 9]).attr(4, [64, 65]));
    s.request(a, "get", Message::new(XFRM_MSG_GETSPDINFO).put(&[0; 4]));
    s.request(a, "none", both.clone());
    s.request(a, "SA attribute", both.clone().attr(XFRMA_SA_DIR, [9]));
    s.request(a, "leftover", both.raw(&[1, 2, 3]));
}

/// Each attribute with zeroes and with ones, of its smallest length.
fn payloads(kind: u16) -> Vec<(String, Vec<u8>)> {
    let min = ATTR_MIN.get(usize::from(kind)).copied().unwrap_or(4);
    let one = |byte: u8| {
        let mut payload = vec![0; min];
        if let Some(first) = payload.first_mut() {
            *first = byte;
        }
        (format!("attr {kind} first byte {byte}"), payload)
    };
    let mut out = vec![one(0), one(1), one(2)];
    out.push((format!("attr {kind} all 255"), vec![255; min]));
    out.dedup_by(|a, b| a.1 == b.1);
    out
}

fn on_sa(s: &mut Session<'_>, kind: u16) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    for attr in 0..=BEYOND {
        for (label, payload) in payloads(attr) {
            if kind == XFRM_MSG_UPDSA {
                s.send(a, "old", vec![Sa::esp().new_sa().flags(NLM_F_REQUEST)]);
                s.drain_silently();
            }
            if s.request(a, &label, Sa::esp().message(kind).attr(attr, &payload))
                .is_ok()
            {
                s.request(
                    a,
                    "get",
                    Sa::esp().by_id(XFRM_MSG_GETSA).attr(attr, &payload),
                );
            }
            s.send(a, "flush", vec![flush_sa(0)]);
            s.drain_silently();
        }
    }
}

fn attrs_on_newsa_out(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for dir in [XFRM_SA_DIR_IN, XFRM_SA_DIR_OUT] {
        for attr in 0..=BEYOND {
            for (label, payload) in payloads(attr) {
                let sa = Sa::esp()
                    .mode(1)
                    .attr(XFRMA_SA_DIR, [dir])
                    .attr(attr, &payload);
                if s.request(a, &format!("dir {dir} {label}"), sa.new_sa())
                    .is_ok()
                {
                    s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
                }
                s.send(a, "flush", vec![flush_sa(0)]);
                s.drain_silently();
            }
        }
    }
}

fn lookup_request(kind: u16, sa: &Sa) -> Message {
    let ae = AeventId {
        sa_id: sa.id(),
        saddr: sa.info.saddr,
        flags: 0xffff,
        reqid: 9,
    };
    match kind {
        XFRM_MSG_GETAE => Message::with(kind, &ae),
        XFRM_MSG_NEWAE => Message::with(kind, &ae).flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE),
        XFRM_MSG_EXPIRE => Message::with(
            kind,
            &UserExpire {
                state: sa.info,
                hard: 0,
                pad: [3; 7],
            },
        ),
        _ => Message::with(kind, &sa.id()),
    }
}

fn on_lookup(s: &mut Session<'_>, kind: u16) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    for attr in 0..=BEYOND {
        for (label, payload) in payloads(attr) {
            s.send(
                a,
                "flush",
                vec![flush_sa(0), Sa::esp().new_sa().flags(NLM_F_REQUEST)],
            );
            s.drain_silently();
            s.request(
                a,
                &label,
                lookup_request(kind, &Sa::esp()).attr(attr, &payload),
            );
        }
    }
}

fn attrs_on_allocspi(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    for attr in 0..=BEYOND {
        for (label, payload) in payloads(attr) {
            s.request(
                a,
                &label,
                alloc(&Sa::bare(IPPROTO_ESP), 0x900, 0x900).attr(attr, &payload),
            );
            s.send(a, "flush", vec![flush_sa(0)]);
        }
    }
}

fn policy_request(kind: u16, policy: &Policy) -> Message {
    match kind {
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY => policy.message(kind),
        XFRM_MSG_POLEXPIRE => Message::with(
            kind,
            &UserPolExpire {
                pol: policy.info,
                hard: 0,
                pad: [3; 7],
            },
        ),
        XFRM_MSG_ACQUIRE => {
            let acquire = UserAcquire {
                id: XfrmId {
                    daddr: RIGHT,
                    proto: IPPROTO_ESP,
                    ..XfrmId::default()
                },
                saddr: LEFT,
                sel: policy.info.sel,
                policy: policy.info,
                aalgos: 1,
                ealgos: 2,
                calgos: 3,
                seq: 4,
            };
            Message::with(kind, &acquire)
        }
        _ => policy.by_selector(kind),
    }
}

fn on_policy(s: &mut Session<'_>, kind: u16) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let policy = Policy::new(XFRM_POLICY_OUT);
    let creates = matches!(kind, XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY);
    for attr in 0..=BEYOND {
        for (label, payload) in payloads(attr) {
            let sub = flush_policy().pod(XFRMA_POLICY_TYPE, &policy_type(1));
            s.send(a, "flush", vec![flush_policy(), sub]);
            if kind != XFRM_MSG_NEWPOLICY {
                s.send(a, "old", vec![policy.new_policy().flags(NLM_F_REQUEST)]);
            }
            s.drain_silently();
            let answer = s.request(
                a,
                &label,
                policy_request(kind, &policy).attr(attr, &payload),
            );
            if creates && answer.is_ok() {
                s.request(a, "dump", Message::dump(XFRM_MSG_GETPOLICY));
            }
        }
    }
}

fn attrs_on_migrate_state(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp();
    let migrate = UserMigrateState {
        id: sa.id(),
        new_daddr: Address::v4(10, 1, 0, 9),
        new_saddr: LEFT,
        new_family: AF_INET,
        ..UserMigrateState::default()
    };
    for attr in 0..=BEYOND {
        for (label, payload) in payloads(attr) {
            s.send(
                a,
                "flush",
                vec![flush_sa(0), sa.new_sa().flags(NLM_F_REQUEST)],
            );
            s.drain_silently();
            let request = Message::with(XFRM_MSG_MIGRATE_STATE, &migrate).attr(attr, &payload);
            if s.request(a, &label, request).is_ok() {
                s.request(a, "dump", Message::dump(XFRM_MSG_GETSA));
            }
        }
    }
}

fn rest(s: &mut Session<'_>, a: Socket, kind: u16, body: &[u8]) {
    for attr in 0..=BEYOND {
        for (label, payload) in payloads(attr) {
            s.request(a, &label, Message::new(kind).put(body).attr(attr, &payload));
        }
    }
}

fn attrs_on_the_rest(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    rest(s, a, XFRM_MSG_FLUSHSA, &[0; 4]);
    rest(s, a, XFRM_MSG_FLUSHPOLICY, &[]);
    rest(s, a, XFRM_MSG_GETSADINFO, &[7; 4]);
    rest(s, a, XFRM_MSG_GETSPDINFO, &[8; 4]);
    rest(s, a, XFRM_MSG_GETDEFAULT, &[9; 4]);
    rest(s, a, XFRM_MSG_SETDEFAULT, &[1; 4]);
    rest(s, a, XFRM_MSG_REPORT, &[0; 60]);
}
