use dataplane::Profile;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    NlMsgHdr, Selector, UserAcquire, UserPolicyId, UserPolicyInfo, UserSaId, UserSaInfo,
    UserSpiInfo, UserTmpl, XfrmId,
};
use zerocopy::IntoBytes;

use super::key::KEYS;
use super::kind::{KINDS, no_memory, vocabulary};
use super::scenario::{read, rule};
use super::*;

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let header = NlMsgHdr {
        len: u32::try_from(16 + body.len()).unwrap(),
        kind,
        flags,
        ..NlMsgHdr::default()
    };
    [header.as_bytes(), body].concat()
}

fn sa(spi: u32, reqid: u32, dst: [u8; 4]) -> UserSaInfo {
    let [a, b, c, d] = dst;
    UserSaInfo {
        id: XfrmId {
            daddr: xfrm_proto::uapi::Address::v4(a, b, c, d),
            spi: spi.into(),
            ..XfrmId::default()
        },
        reqid,
        family: AF_INET,
        ..UserSaInfo::default()
    }
}

fn new_sa(spi: u32) -> Subject {
    let info = sa(spi, 7, [10, 0, 0, 2]);
    Subject::of(&message(XFRM_MSG_NEWSA, NLM_F_REQUEST, info.as_bytes()))
}

fn plan(faults: &[&str]) -> Plan {
    let mut plan = Plan::new(3);
    for fault in faults {
        plan.add(rule(fault).unwrap()).unwrap();
    }
    plan
}

/// Which of so many NEWSAs are struck.
fn strikes(plan: &mut Plan, count: u32) -> Vec<u32> {
    let struck = |spi: &u32| !plan.request(&new_sa(*spi)).is_empty();
    (1..=count).filter(struck).collect()
}

#[test]
fn a_rule_strikes_its_share() {
    let cases: [(&str, &[u32]); 7] = [
        ("", &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("nth=3", &[3]),
        ("nth=3 times=2", &[3, 4]),
        ("times=2", &[1, 2]),
        ("every=4", &[4, 8]),
        ("nth=3 every=2 times=2", &[4, 6]),
        ("probability=0", &[]),
    ];
    for (share, expected) in cases {
        let mut plan = plan(&[&format!("netlink.no-memory {share}")]);
        assert_eq!(strikes(&mut plan, 9), expected, "{share}");
    }
}

#[test]
fn chance_is_the_seeds_and_the_names() {
    let of = |seed: u64, name: &str| {
        let mut plan = plan(&[&format!("netlink.reply-lost probability=0.5 name={name}")]);
        plan.set_seed(seed);
        strikes(&mut plan, 200)
    };
    let all = of(3, "a");
    assert!((60..140).contains(&all.len()), "{}", all.len());
    assert_eq!(of(3, "a"), all);
    assert_ne!(of(4, "a"), all);
    assert_ne!(of(3, "b"), all);
    // Another rule beside it changes nothing.
    let mut both = plan(&[
        "netlink.reply-lost probability=0.5 name=b",
        "netlink.reply-late delay=1s probability=0.5 name=a",
    ]);
    let struck: Vec<u32> = (1..=200)
        .filter(|&spi| both.request(&new_sa(spi)).iter().any(|it| it.rule == "a"))
        .collect();
    assert_eq!(struck, all);
}

#[test]
fn rules_look_at_types_spis_destinations_and_reqids() {
    let info = sa(0x100, 7, [10, 0, 0, 2]);
    let id = UserSaId {
        daddr: info.id.daddr,
        spi: 0x100.into(),
        family: AF_INET,
        ..UserSaId::default()
    };
    let sel = Selector {
        daddr: info.id.daddr,
        family: AF_INET,
        ..Selector::default()
    };
    let template = UserTmpl {
        reqid: 7,
        family: AF_INET,
        id: sa(0, 0, [192, 168, 0, 9]).id,
        ..UserTmpl::default()
    };
    let header = [68_u16.to_ne_bytes(), XFRMA_TMPL.to_ne_bytes()].concat();
    let attribute = [&header, template.as_bytes()].concat();
    let policy = UserPolicyInfo {
        sel,
        ..UserPolicyInfo::default()
    };
    let policy = [policy.as_bytes(), &attribute].concat();
    let policy_id = UserPolicyId {
        sel,
        ..UserPolicyId::default()
    };
    let acquire = UserAcquire {
        sel,
        ..UserAcquire::default()
    };
    let acquire = [acquire.as_bytes(), &attribute].concat();
    let spi = UserSpiInfo {
        info: sa(0, 7, [10, 0, 0, 2]),
        ..UserSpiInfo::default()
    };
    let all: [(u16, &[u8]); 7] = [
        (XFRM_MSG_NEWSA, info.as_bytes()),
        (XFRM_MSG_DELSA, id.as_bytes()),
        (XFRM_MSG_NEWPOLICY, &policy),
        (XFRM_MSG_DELPOLICY, policy_id.as_bytes()),
        (XFRM_MSG_ACQUIRE, &acquire),
        (XFRM_MSG_ALLOCSPI, spi.as_bytes()),
        (XFRM_MSG_FLUSHSA, &[0]),
    ];
    let cases: [(&str, &[u16]); 8] = [
        ("message=newsa", &[XFRM_MSG_NEWSA]),
        (
            "message=XFRM_MSG_DELSA,FLUSHSA",
            &[XFRM_MSG_DELSA, XFRM_MSG_FLUSHSA],
        ),
        ("spi=0x100", &[XFRM_MSG_NEWSA, XFRM_MSG_DELSA]),
        ("spi=257", &[]),
        (
            "reqid=7",
            &[
                XFRM_MSG_NEWSA,
                XFRM_MSG_NEWPOLICY,
                XFRM_MSG_ACQUIRE,
                XFRM_MSG_ALLOCSPI,
            ],
        ),
        (
            "dst=10.0.0.0/30",
            &[
                XFRM_MSG_NEWSA,
                XFRM_MSG_DELSA,
                XFRM_MSG_NEWPOLICY,
                XFRM_MSG_DELPOLICY,
                XFRM_MSG_ACQUIRE,
                XFRM_MSG_ALLOCSPI,
            ],
        ),
        ("dst=192.168.0.9", &[XFRM_MSG_NEWPOLICY, XFRM_MSG_ACQUIRE]),
        ("dst=fd00::/8", &[]),
    ];
    for (wanted, expected) in cases {
        let mut plan = plan(&[&format!("netlink.reply-lost {wanted}")]);
        let struck = all.iter().filter(|(kind, body)| {
            let subject = Subject::of(&message(*kind, NLM_F_REQUEST, body));
            !plan.request(&subject).is_empty()
        });
        let struck: Vec<u16> = struck.map(|(kind, _)| *kind).collect();
        assert_eq!(struck, expected, "{wanted}");
    }
    let shown = Subject::of(&message(XFRM_MSG_NEWSA, 0, info.as_bytes())).to_string();
    assert_eq!(shown, "NEWSA spi 0x00000100 dst 10.0.0.2 reqid 7");
}

#[test]
fn short_and_senseless_messages_are_about_nothing() {
    let info = sa(0x100, 7, [10, 0, 0, 2]);
    let whole = message(XFRM_MSG_NEWSA, 0, info.as_bytes());
    for len in 0..whole.len() {
        assert!(!Subject::of(&whole[..len]).to_string().is_empty());
    }
    for kind in 0..0x40 {
        let subject = Subject::of(&message(kind, 0, &[0xff; 400]));
        assert!(!subject.to_string().is_empty());
    }
}

#[test]
fn rules_for_dumps_see_only_dumps() {
    let mut plan = plan(&["netlink.dump-cut", "netlink.no-memory"]);
    let dump = Subject::of(&message(XFRM_MSG_GETSA, NLM_F_REQUEST | NLM_F_DUMP, &[]));
    let struck: Vec<String> = plan.request(&dump).into_iter().map(|it| it.rule).collect();
    assert_eq!(struck, ["netlink.dump-cut", "netlink.no-memory"]);
    let other = Subject::of(&message(XFRM_MSG_DELSA, NLM_F_REQUEST | NLM_F_DUMP, &[]));
    assert_eq!(plan.request(&other), []);
    assert_eq!(plan.event(&dump), []);
}

#[test]
fn packets_are_told_apart_by_direction_spi_and_length() {
    let met = |fault: &str| {
        let mut plan = plan(&[fault]);
        let packets = [
            (Direction::In, Some(1), 1400),
            (Direction::In, None, 100),
            (Direction::Out, Some(1), 100),
            (Direction::Out, Some(2), 1401),
        ];
        packets.map(|(direction, spi, bytes)| {
            !plan.packet(direction, spi, bytes, &"a packet").is_empty()
        })
    };
    assert_eq!(met("packet.lost"), [true; 4]);
    assert_eq!(met("packet.lost direction=in"), [true, true, false, false]);
    assert_eq!(met("packet.lost spi=1"), [true, false, true, false]);
    assert_eq!(met("packet.too-big mtu=1400"), [false, false, false, true]);
}

/// QUIRK of Linux, which looks only whether it has got a larval SA.
#[test]
fn an_spi_without_memory_is_not_found() {
    let [oldest, .., newest] = Profile::ALL;
    let refused = no_memory(XFRM_MSG_ALLOCSPI, newest);
    assert_eq!(refused.errno, errno::ENOENT);
    assert_eq!(
        refused.extack.text.as_deref(),
        Some("Target ACQUIRE not found")
    );
    assert_eq!(no_memory(XFRM_MSG_ALLOCSPI, oldest).extack.text, None);
    assert_eq!(no_memory(XFRM_MSG_NEWSA, newest).errno, errno::ENOMEM);
    let mut plan = plan(&["netlink.no-memory"]);
    let deletion = Subject::of(&message(XFRM_MSG_DELSA, NLM_F_REQUEST, &[0; 24]));
    assert_eq!(plan.request(&deletion), []);
    assert_eq!(plan.rules()[0].seen, 0);
}

#[test]
fn a_file_says_what_a_command_line_says() {
    let file = "seed = 0x7\n\
                [[fault]]\nkind = \"netlink.error\"\nmessage = [\"NEWSA\", \"UPDSA\"]\nspi = 0x100\n\
                nth = 3\nerrno = \"ENOMEM\"\nextack = \"no \\\"room\\\"\"\n\
                [[fault]]\nkind = \"packet.lost\"\nname = \"wire\"\nprobability = 0.01\n";
    let plan = read(file).unwrap();
    assert_eq!(plan.seed(), 7);
    let line =
        "netlink.error errno=ENOMEM spi=256 nth=3 message=NEWSA,UPDSA extack=\"no \\\"room\\\"\"";
    let [first, second] = plan.rules() else {
        panic!("{plan:?}")
    };
    let said = rule(line).unwrap();
    assert_eq!(
        (&first.matching, &first.share),
        (&said.matching, &said.share)
    );
    assert_eq!(first.effect, said.effect);
    assert_eq!(said.text, line);
    assert_eq!(second.name, "wire");
    assert_eq!(second.share.probability, Some(0.01));
    let Effect::Error {
        errno,
        extack,
        after,
    } = &first.effect
    else {
        panic!("{first:?}")
    };
    assert_eq!(
        (*errno, extack.as_deref(), *after),
        (12, Some("no \"room\""), false)
    );
}

#[test]
fn a_plan_goes_on_where_it_was() {
    let mut plan = plan(&[
        "netlink.error errno=ENOMEM nth=3 extack=\"a \\\\ b\"",
        "packet.late delay=1.5s name=slow probability=0.25",
        "netlink.error errno=5",
    ]);
    strikes(&mut plan, 2);
    let mut again = Plan::from_json(&plan.to_json()).unwrap();
    assert_eq!(again, plan);
    assert_eq!(again.rules()[2].name, "netlink.error-2");
    let struck = again.request(&new_sa(1));
    assert_eq!(struck.len(), 2);
    assert_eq!(struck[0].nth, 3);
    assert_eq!(Plan::from_json(&serde_json::Value::Null), None);
}

#[test]
fn mistakes_in_a_file_have_their_lines() {
    let wrong = [
        ("sead = 1", 1, "`seed` is probably meant"),
        ("\nseed = -1", 2, "`seed` is a number"),
        ("fault = 3", 1, "faults are tables"),
        ("fault = [3]", 1, "faults are tables"),
        ("[[fault]]\nnth = 1", 2, "without `kind`"),
        ("seed = 1\n[[fault]]", 2, "without `kind`"),
        (
            "[[fault]]\nkind = \"packet.lots\"",
            2,
            "`packet.lost` is probably meant",
        ),
        (
            "[[fault]]\nkind = \"packet.lost\"\n\ntims = 1",
            4,
            "`times` is probably meant",
        ),
        (
            "[[fault]]\nkind = \"packet.lost\"\nerrno = 5",
            3,
            "of packet.lost",
        ),
        (
            "[[fault]]\nkind = \"packet.lost\"\nnth = 0",
            3,
            "`nth` is a number, 1 or more",
        ),
        (
            "[[fault]]\nkind = \"packet.lost\"\nnth = true",
            3,
            "`nth` is a number, 1 or more",
        ),
        (
            "[[fault]]\nkind = \"packet.lost\"\nprobability = 1.5",
            3,
            "from 0 to 1",
        ),
        (
            "[[fault]]\nkind = \"packet.late\"\ndelay = 5",
            3,
            "`delay` is a time",
        ),
        (
            "[[fault]]\nkind = \"packet.late\"",
            2,
            "packet.late needs `delay`",
        ),
        (
            "[[fault]]\nkind = \"netlink.error\"\nerrno = \"EWHAT\"",
            3,
            "`errno` is an errno",
        ),
        (
            "[[fault]]\nkind = \"netlink.overrun\"\nmessage = \"NEWSAS\"",
            3,
            "a message type",
        ),
        (
            "[[fault]]\nkind = \"netlink.overrun\"\ndst = \"10.0.0.0/33\"",
            3,
            "`dst` is",
        ),
        (
            "[[fault]]\nkind = \"packet.lost\"\nname = \"a\"\n[[fault]]\nkind = \"packet.lost\"\nname = \"a\"",
            5,
            "two faults `a`",
        ),
        ("seed = 1\nseed = 2", 2, "duplicate"),
        ("seed = 1\n[[fault]\n", 2, ""),
    ];
    for (text, line, what) in wrong {
        let found = read(text).unwrap_err();
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].line, line, "{text}: {found:?}");
        assert!(found[0].what.contains(what), "{text}: {found:?}");
    }
    let both = read("sead = 1\n[[fault]]\nkind = \"packet.lots\"\n").unwrap_err();
    assert_eq!(both.iter().map(|it| it.line).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn mistakes_on_a_command_line_are_named() {
    for (text, what) in [
        ("", "no kind"),
        ("nth=3", "comes first"),
        ("packet.lost nth", "has no value"),
        ("packet.lost nth=", "`nth` is a number"),
        ("packet.lost nth=1 nth=2", "said twice"),
        ("netlink.error errno=5 extack=\"open", "has no end"),
        ("netlink.error", "needs `errno`"),
    ] {
        let found = rule(text).unwrap_err();
        assert!(found.contains(what), "{text}: {found}");
    }
}

#[test]
fn names_are_given_once() {
    let mut plan = plan(&["packet.lost", "packet.lost", "packet.lost name=x"]);
    let names: Vec<&str> = plan.rules().iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["packet.lost", "packet.lost-2", "x"]);
    assert_eq!(
        plan.add(rule("packet.twice name=x").unwrap()),
        Err("x".to_owned())
    );
    assert!(plan.remove("packet.lost") && !plan.remove("packet.lost"));
    plan.clear();
    assert!(!plan.concerns(Place::Packet));
}

/// Each kind can be said, and is what it says it is.
#[test]
fn the_table_is_whole() {
    for kind in KINDS {
        let values = kind.needs().map(|key| match key {
            "errno" => "errno=EIO",
            "delay" => "delay=10ms",
            "mtu" => "mtu=1400",
            other => panic!("{other}"),
        });
        let said = std::iter::once(kind.name).chain(values).collect::<Vec<_>>();
        let rule = rule(&said.join(" ")).unwrap();
        assert_eq!(
            (rule.effect.name(), rule.effect.place()),
            (kind.name, kind.place)
        );
        for key in kind.keys() {
            assert!(KEYS.iter().any(|it| it.name == key), "{key}");
        }
    }
}

#[test]
fn the_document_has_the_tables() {
    let document = include_str!("../../../docs/faults.md");
    assert!(document.contains(&vocabulary()), "cargo run -- fault kinds");
}

#[test]
fn the_example_can_be_read() {
    let example = include_str!("../../../docs/faults.toml");
    let plan = read(example).unwrap();
    assert!(plan.rules().len() > 3);
}
