//! NEWAE and GETAE.

use xfrm_proto::consts::*;
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use super::build::*;
use super::{Sa, Scenario};
use crate::message::Message;
use crate::session::{Open, Session};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("ae_get", get),
    Scenario::new("ae_set", set),
    Scenario::new("ae_set_checks", set_checks),
    Scenario::new("ae_set_esn", set_esn),
    Scenario::new("ae_thresholds", thresholds),
];

fn ae(sa: &Sa, flags: u32) -> AeventId {
    AeventId {
        sa_id: sa.id(),
        saddr: v6(9),
        flags,
        reqid: 77,
    }
}

fn setting(sa: &Sa) -> Message {
    Message::with(XFRM_MSG_NEWAE, &ae(sa, 0)).flags(NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE)
}

fn get(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let all = [
        Sa::esp().info(|i| i.reqid = 4),
        Sa::ah()
            .over_v6()
            .u32(XFRMA_IF_ID, 5)
            .info(|i| i.replay_window = 20),
        Sa::comp().pod(XFRMA_MARK, &Mark { v: 1, m: 1 }),
        Sa::esp()
            .spi(9)
            .attr(XFRMA_SA_DIR, [1])
            .u32(XFRMA_SA_PCPU, 0),
    ];
    for sa in &all {
        s.request(a, "", sa.new_sa());
        for flags in [0, 1, 2, 4, 8, 9, 16, 32, 64, 0xff, u32::MAX] {
            let mut message = Message::with(XFRM_MSG_GETAE, &ae(sa, flags));
            if sa.info.id.proto == 108 {
                message = message.pod(XFRMA_MARK, &Mark { v: 1, m: 1 });
            }
            s.request(a, &format!("flags {flags:#x}"), message);
        }
    }
    s.request(
        a,
        "no such SA",
        Message::with(XFRM_MSG_GETAE, &ae(&Sa::esp().spi(5), 0)),
    );
    s.request(
        a,
        "by address",
        Message::with(XFRM_MSG_GETAE, &ae(&Sa::bare(60), 0)),
    );
}

fn set(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp();
    s.request(a, "", sa.new_sa());
    let ltime = LifetimeCur {
        bytes: 1,
        packets: 2,
        add_time: 3,
        use_time: 4,
    };
    let replay = ReplayState {
        oseq: 5,
        seq: 6,
        bitmap: 7,
    };
    let parts: [(&str, u16, Vec<u8>); 5] = [
        ("LTIME_VAL", XFRMA_LTIME_VAL, ltime.as_bytes().to_vec()),
        ("REPLAY_VAL", XFRMA_REPLAY_VAL, replay.as_bytes().to_vec()),
        ("REPLAY_THRESH", XFRMA_REPLAY_THRESH, vec![9, 0, 0, 0]),
        ("ETIMER_THRESH", XFRMA_ETIMER_THRESH, vec![200, 0, 0, 0]),
        ("REPLAY_ESN_VAL", XFRMA_REPLAY_ESN_VAL, vec![0; 24]),
    ];
    for (label, kind, payload) in &parts {
        s.request(a, label, setting(&sa).attr(*kind, payload).pid(5));
        s.request(a, "get", Message::with(XFRM_MSG_GETAE, &ae(&sa, 0xff)));
        s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    }
    let everything = parts
        .iter()
        .fold(setting(&sa), |m, (_, kind, payload)| m.attr(*kind, payload));
    s.request(a, "everything", everything);
    s.request(a, "get", Message::with(XFRM_MSG_GETAE, &ae(&sa, 0xff)));
}

fn set_checks(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let sa = Sa::esp();
    s.request(a, "no SA", setting(&sa).u32(XFRMA_REPLAY_THRESH, 1));
    s.request(a, "", sa.new_sa());
    s.request(a, "nothing to set", setting(&sa));
    s.request(a, "nothing to set, no replace", setting(&sa).flags(5));
    s.request(
        a,
        "no replace",
        setting(&sa).flags(5).u32(XFRMA_REPLAY_THRESH, 1),
    );
    s.request(
        a,
        "create and replace",
        setting(&sa).flags(0x505).u32(XFRMA_REPLAY_THRESH, 1),
    );
    s.request(
        a,
        "wrong mark",
        setting(&sa)
            .u32(XFRMA_REPLAY_THRESH, 1)
            .pod(XFRMA_MARK, &Mark { v: 1, m: 1 }),
    );
    s.request(a, "", alloc(&Sa::bare(51), 0x900, 0x900));
    s.request(
        a,
        "larval",
        setting(&Sa::ah().spi(0x900)).u32(XFRMA_REPLAY_THRESH, 1),
    );
    s.request(
        a,
        "zeroes",
        setting(&sa)
            .u32(XFRMA_REPLAY_THRESH, 0)
            .u32(XFRMA_ETIMER_THRESH, 0),
    );
    s.request(a, "get", Message::with(XFRM_MSG_GETAE, &ae(&sa, 0xff)));
    s.request(
        a,
        "ones",
        setting(&sa)
            .u32(XFRMA_REPLAY_THRESH, u32::MAX)
            .u32(XFRMA_ETIMER_THRESH, 1_000_000),
    );
    s.request(a, "get", Message::with(XFRM_MSG_GETAE, &ae(&sa, 0xff)));
}

fn esn(bmp_len: u32, replay_window: u32, words: usize) -> Vec<u8> {
    let esn = ReplayStateEsn {
        bmp_len,
        oseq: 1,
        seq: 2,
        oseq_hi: 3,
        seq_hi: 4,
        replay_window,
    };
    let mut out = esn.as_bytes().to_vec();
    out.extend(vec![0x5a; words * 4]);
    out
}

fn set_esn(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    s.open("b", Open::new().all_groups());
    let value = ReplayStateEsn {
        bmp_len: 2,
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    for flag in [XFRM_STATE_ESN, 0] {
        let sa = Sa::esp()
            .spi(0x100 + u32::from(flag))
            .info(|i| i.flags = flag)
            .attr(XFRMA_REPLAY_ESN_VAL, value.as_bytes());
        s.request(a, "", sa.new_sa());
        for (bmp_len, window, words) in [
            (2, 64, 2),
            (2, 10, 2),
            (2, 0, 2),
            (2, 65, 2),
            (1, 32, 1),
            (3, 64, 3),
            (2, 64, 1),
            (2, 64, 0),
            (2, 64, 3),
            (0x4000_0002, 1, 2),
            (0, 0, 0),
            (129, 1, 129),
        ] {
            s.request(
                a,
                &format!("{bmp_len} {window} {words}"),
                setting(&sa).attr(XFRMA_REPLAY_ESN_VAL, esn(bmp_len, window, words)),
            );
        }
        s.request(
            a,
            "legacy value",
            setting(&sa).attr(XFRMA_REPLAY_VAL, [9; 12]),
        );
        s.request(a, "get", Message::with(XFRM_MSG_GETAE, &ae(&sa, 0xff)));
        s.request(a, "get", sa.by_id(XFRM_MSG_GETSA));
    }
    s.request(a, "", Sa::ah().new_sa());
    s.request(
        a,
        "ESN value on a legacy SA",
        setting(&Sa::ah()).attr(XFRMA_REPLAY_ESN_VAL, esn(1, 1, 1)),
    );
    s.request(a, "get", Sa::ah().by_id(XFRM_MSG_GETSA));
}

fn thresholds(s: &mut Session<'_>) {
    let a = s.open("a", Open::new());
    let read = |s: &mut Session<'_>, sa: &Sa| {
        s.request(a, "get", Message::with(XFRM_MSG_GETAE, &ae(sa, 0xff)));
    };
    s.request(a, "", Sa::esp().new_sa());
    read(s, &Sa::esp());
    s.set_sysctl("xfrm_aevent_etime", 50);
    s.set_sysctl("xfrm_aevent_rseqth", 7);
    s.request(a, "", Sa::ah().new_sa());
    read(s, &Sa::ah());
    read(s, &Sa::esp());
    let own = Sa::comp()
        .u32(XFRMA_REPLAY_THRESH, 3)
        .u32(XFRMA_ETIMER_THRESH, 100);
    s.request(a, "", own.new_sa());
    read(s, &own);
    s.set_sysctl("xfrm_aevent_etime", 0);
    s.set_sysctl("xfrm_aevent_rseqth", 0);
    s.request(a, "", Sa::esp().spi(7).new_sa());
    read(s, &Sa::esp().spi(7));
    s.request(a, "", alloc(&Sa::bare(51), 0x900, 0x900));
    read(s, &Sa::ah().spi(0x900));
}
