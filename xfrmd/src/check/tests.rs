//! Each finding: a state that has it, and one that nearly has it.

use xfrm_proto::reply::Writer;

use super::*;
use dataplane::WallSecs;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, LifetimeCfg, Mark, Selector, UserPolicyType, UserTmpl};

const A: Address = Address::v4(10, 0, 0, 1);
const B: Address = Address::v4(10, 0, 0, 2);
const NOW: u64 = 1_000_000;

/// An SA as a careful key manager makes it.
fn sa(source: Address, destination: Address, spi: u32) -> Sa {
    let mut sa = Sa {
        cipher: Some("cbc(aes)".into()),
        integrity: Some("hmac(sha256)".into()),
        window: 32,
        ..Sa::default()
    };
    sa.info.saddr = source;
    sa.info.id.daddr = destination;
    sa.info.id.spi = spi.into();
    sa.info.id.proto = IPPROTO_ESP;
    sa.info.family = AF_INET;
    sa.info.mode = XFRM_MODE_TUNNEL;
    sa.info.reqid = 7;
    sa.info.curlft.add_time = NOW - 100;
    sa.info.lft = LifetimeCfg {
        soft_byte_limit: XFRM_INF,
        hard_byte_limit: XFRM_INF,
        soft_packet_limit: XFRM_INF,
        hard_packet_limit: XFRM_INF,
        soft_add_expires_seconds: 3000,
        hard_add_expires_seconds: 3600,
        ..LifetimeCfg::default()
    };
    sa
}

fn selector(source: Address, destination: Address) -> Selector {
    Selector {
        saddr: source,
        daddr: destination,
        prefixlen_s: 32,
        prefixlen_d: 32,
        family: AF_INET,
        ..Selector::default()
    }
}

fn policy(direction: u8, source: Address, destination: Address) -> Policy {
    let mut policy = Policy::default();
    policy.info.sel = selector(source, destination);
    policy.info.dir = direction;
    policy.info.priority = 100;
    policy.info.index = 8 + u32::from(direction);
    let mut template = UserTmpl {
        family: AF_INET,
        saddr: source,
        reqid: 7,
        mode: XFRM_MODE_TUNNEL,
        ..UserTmpl::default()
    };
    template.id.daddr = destination;
    template.id.proto = IPPROTO_ESP;
    policy.templates.push(template);
    policy
}

/// A tunnel with nothing wrong.
fn tunnel() -> State {
    State {
        now: WallSecs(NOW),
        sas: vec![sa(A, B, 0x100), sa(B, A, 0x200)],
        policies: vec![
            policy(XFRM_POLICY_OUT, A, B),
            policy(XFRM_POLICY_IN, B, A),
            policy(XFRM_POLICY_FWD, B, A),
        ],
    }
}

fn kinds(state: &State) -> Vec<Kind> {
    let all = findings(state, &Scope::default());
    all.iter().map(|finding| finding.kind).collect()
}

/// The tunnel after a change.
fn changed(change: impl FnOnce(&mut State)) -> Vec<Kind> {
    let mut state = tunnel();
    change(&mut state);
    kinds(&state)
}

#[test]
fn a_tunnel_with_nothing_wrong_has_no_findings() {
    assert_eq!(kinds(&tunnel()), []);
    assert_eq!(kinds(&State::default()), []);
}

#[test]
fn what_is_left_is_a_finding_only_where_nothing_should_be() {
    let mut state = tunnel();
    state.policies.truncate(1);
    let mut sockets = policy(XFRM_POLICY_MAX + XFRM_POLICY_OUT, A, B);
    sockets.templates.clear();
    state.policies.push(sockets);
    let scope = Scope {
        ignored: Vec::new(),
        expects_nothing: true,
    };
    let found = findings(&state, &scope);
    let left = found.iter().filter(|it| it.kind == Kind::LeftBehind);
    // Two SAs and a policy; a socket's own goes with its socket.
    assert_eq!(left.count(), 3);
    assert!(!kinds(&state).contains(&Kind::LeftBehind));
    assert!(findings(&State::default(), &scope).is_empty());
    let scope = Scope {
        ignored: Kind::ALL.to_vec(),
        ..scope
    };
    assert!(findings(&state, &scope).is_empty());
}

#[test]
fn an_sa_without_the_way_back() {
    let one_way = [Kind::OneWaySa, Kind::PolicyWithoutSa, Kind::PolicyWithoutSa];
    assert_eq!(changed(|it| it.sas.truncate(1)), one_way);
    // The way back of somebody else is none.
    let other = changed(|it| it.sas[1].info.reqid = 8);
    assert_eq!(other.iter().filter(|&&it| it == Kind::OneWaySa).count(), 2);
    // A larval one will be.
    let larval = changed(|it| {
        let mut larval = sa(A, B, 0);
        (larval.cipher, larval.integrity) = (None, None);
        larval.info.curlft.add_time = NOW;
        it.sas.push(larval);
    });
    assert_eq!(larval, []);
}

#[test]
fn an_sa_that_was_replaced_and_stays() {
    let with_older = |hard| {
        changed(|it| {
            let mut older = sa(A, B, 0x101);
            older.info.curlft.add_time = NOW - 500;
            older.info.lft.soft_add_expires_seconds = 0;
            older.info.lft.hard_add_expires_seconds = hard;
            if hard != 0 {
                older.info.lft.soft_add_expires_seconds = hard - 100;
            }
            it.sas.push(older);
        })
    };
    assert_eq!(with_older(0), [Kind::SupersededSa]);
    assert_eq!(with_older(3600), []);
    // Those of other CPUs are not older ones.
    let per_cpu = changed(|it| {
        let mut other = sa(A, B, 0x101);
        other.info.curlft.add_time = NOW - 500;
        other.info.lft = LifetimeCfg::UNLIMITED;
        other.cpu = Some(1);
        it.sas.push(other);
    });
    assert_eq!(per_cpu, []);
}

#[test]
fn an_sa_that_no_policy_asks_for() {
    let others = [
        Kind::SaWithoutPolicy,
        Kind::SaWithoutPolicy,
        Kind::PolicyWithoutSa,
    ];
    assert_eq!(changed(|it| it.policies.clear()), others[..2]);
    assert_eq!(
        changed(|it| it.policies.retain(|it| it.info.dir == XFRM_POLICY_OUT)),
        [Kind::SaWithoutPolicy]
    );
    // What tells an SA from the one that is wanted.
    let out = |change: fn(&mut Sa)| {
        changed(|it| {
            it.policies.truncate(1);
            it.sas.push(sa(A, B, 0x300));
            it.sas.remove(0);
            change(&mut it.sas[1]);
        })
    };
    let fits = [Kind::SaWithoutPolicy];
    assert_eq!(out(|_| {}), fits);
    for change in [
        (|it| it.mark = Mark { v: 1, m: 1 }) as fn(&mut Sa),
        |it| it.if_id = 3,
        |it| it.direction = Some(XFRM_SA_DIR_IN),
    ] {
        assert_eq!(out(change), others);
    }
    assert_eq!(out(|it| it.direction = Some(XFRM_SA_DIR_OUT)), fits);
    // Those that Linux adds for IPComp are nobody's.
    let ipip = changed(|it| {
        let mut ipip = sa(A, B, 0x0a00_0001);
        ipip.info.id.proto = IPPROTO_IPIP;
        (ipip.cipher, ipip.integrity) = (None, None);
        it.sas.push(ipip);
    });
    assert_eq!(ipip, []);
}

#[test]
fn transport_mode_is_between_the_flow_s_ends() {
    let transport = |destination: Address, bits: u8| {
        changed(|it| {
            for sa in &mut it.sas {
                sa.info.mode = XFRM_MODE_TRANSPORT;
            }
            for policy in &mut it.policies {
                policy.templates[0].mode = XFRM_MODE_TRANSPORT;
                policy.templates[0].saddr = Address::ANY;
                policy.templates[0].id.daddr = Address::ANY;
            }
            it.policies[0].info.sel.daddr = destination;
            it.policies[0].info.sel.prefixlen_d = bits;
        })
    };
    assert_eq!(transport(B, 32), []);
    assert_eq!(transport(Address::v4(10, 0, 0, 0), 24), []);
    assert_eq!(
        transport(Address::v4(10, 0, 1, 0), 24),
        [Kind::SaWithoutPolicy, Kind::PolicyWithoutSa]
    );
}

#[test]
fn the_second_of_two_templates_is_between_the_tunnel_s_ends() {
    let both = |state: &mut State| {
        let inner = Address::v4(192, 168, 0, 1);
        for (place, spi) in [(0, 0x101), (1, 0x201)] {
            let mut comp = state.sas[place].clone();
            comp.info.id.proto = IPPROTO_COMP;
            comp.info.id.spi = spi.into();
            (comp.cipher, comp.integrity) = (None, None);
            comp.compression = Some("deflate".into());
            state.sas[place].info.mode = XFRM_MODE_TRANSPORT;
            state.sas.push(comp);
        }
        for policy in &mut state.policies {
            policy.info.sel.daddr = inner;
            let mut comp = policy.templates[0];
            comp.id.proto = IPPROTO_COMP;
            policy.templates[0].mode = XFRM_MODE_TRANSPORT;
            policy.templates.insert(0, comp);
        }
    };
    assert_eq!(changed(both), []);
    let without_tunnel = changed(|it| {
        both(it);
        it.policies.iter_mut().for_each(|it| {
            it.templates.remove(0);
        });
    });
    assert_eq!(
        without_tunnel
            .iter()
            .filter(|&&it| it == Kind::PolicyWithoutSa)
            .count(),
        3
    );
}

#[test]
fn a_policy_whose_sa_is_missing() {
    let without = |change: fn(&mut Policy)| {
        changed(|it| {
            it.sas.clear();
            it.policies.truncate(1);
            change(&mut it.policies[0]);
        })
    };
    assert_eq!(without(|_| {}), [Kind::PolicyWithoutSa]);
    assert_eq!(without(|it| it.templates[0].optional = 1), []);
    assert_eq!(without(|it| it.info.action = XFRM_POLICY_BLOCK), []);
    assert_eq!(without(|it| it.templates.clear()), []);
    // A larval SA protects nothing yet.
    let larval = changed(|it| {
        it.policies.truncate(1);
        it.sas.truncate(1);
        (it.sas[0].cipher, it.sas[0].integrity) = (None, None);
        it.sas[0].info.curlft.add_time = NOW;
    });
    assert_eq!(larval, [Kind::PolicyWithoutSa]);
}

#[test]
fn an_spi_that_two_sas_share() {
    let with = |mark: Mark, destination: Address| {
        changed(|it| {
            let mut twin = sa(A, destination, 0x100);
            twin.mark = mark;
            it.sas.push(twin);
            it.sas[0].mark = Mark { v: 1, m: 0xff };
            it.policies[0].mark = Mark { v: 1, m: 0xff };
        })
        .into_iter()
        .filter(|&kind| kind == Kind::DuplicateSpi)
        .count()
    };
    assert_eq!(with(Mark { v: 0x101, m: 0xfff }, B), 2);
    assert_eq!(with(Mark::default(), B), 2);
    assert_eq!(with(Mark { v: 2, m: 0xff }, B), 0);
    assert_eq!(with(Mark::default(), Address::v4(10, 0, 0, 3)), 0);
}

#[test]
fn a_larval_sa_that_nobody_fills_in() {
    let larval = |spi, age| {
        changed(|it| {
            let mut larval = sa(A, B, spi);
            (larval.cipher, larval.integrity) = (None, None);
            larval.info.lft.soft_add_expires_seconds = 0;
            larval.info.curlft.add_time = NOW - age;
            it.sas.push(larval);
        })
    };
    assert_eq!(larval(0, 10), [Kind::UnresolvedLarval]);
    assert_eq!(larval(0x300, 25), [Kind::UnresolvedLarval]);
    assert_eq!(larval(0, 9), []);
}

#[test]
fn sequence_numbers_that_come_to_an_end() {
    const NINE_TENTHS: u64 = (u32::MAX / 10 * 9) as u64;
    let with = |change: &dyn Fn(&mut Sa)| changed(|it| change(&mut it.sas[0]));
    let end = [Kind::SequenceNearEnd];
    assert_eq!(with(&|sa| sa.sent = NINE_TENTHS + 1), end);
    assert_eq!(with(&|sa| sa.sent = NINE_TENTHS), []);
    assert_eq!(with(&|sa| sa.received = NINE_TENTHS + 1), end);
    let wraps = |sa: &mut Sa| {
        sa.sent = NINE_TENTHS + 1;
        sa.extra_flags = XFRM_SA_XFLAG_OSEQ_MAY_WRAP;
    };
    assert_eq!(with(&wraps), []);
    let extended = |sent: u64| {
        with(&move |sa| {
            sa.info.flags = XFRM_STATE_ESN;
            sa.sent = sent;
        })
    };
    assert_eq!(extended(u64::from(u32::MAX)), []);
    assert_eq!(extended(u64::MAX / 100 * 91), end);
}

#[test]
fn limits_without_a_warning() {
    type Change = fn(&mut LifetimeCfg);
    let limits: [(Change, Change); 4] = [
        (
            |it| it.soft_add_expires_seconds = 3600,
            |it| it.soft_add_expires_seconds = 3599,
        ),
        (
            |it| it.hard_use_expires_seconds = 60,
            |it| {
                it.hard_use_expires_seconds = 60;
                it.soft_use_expires_seconds = 50;
            },
        ),
        (
            |it| it.hard_byte_limit = 1000,
            |it| {
                it.hard_byte_limit = 1000;
                it.soft_byte_limit = 999;
            },
        ),
        (
            |it| {
                it.hard_packet_limit = 1000;
                it.soft_packet_limit = 1001;
            },
            |it| it.soft_packet_limit = 1000,
        ),
    ];
    let with = |change: Change| changed(|it| change(&mut it.sas[0].info.lft));
    for (bad, good) in limits {
        assert_eq!(with(bad), [Kind::NoRekeyMargin]);
        assert_eq!(with(good), []);
    }
}

#[test]
fn algorithms_that_rfc_8221_does_not_want() {
    let with = |change: fn(&mut Sa)| changed(|it| change(&mut it.sas[0]));
    let weak = [Kind::WeakAlgorithm];
    assert_eq!(with(|sa| sa.cipher = Some("cbc(des3_ede)".into())), weak);
    assert_eq!(with(|sa| sa.cipher = Some("cbc(des)".into())), weak);
    assert_eq!(with(|sa| sa.integrity = Some("hmac(md5)".into())), weak);
    assert_eq!(with(|sa| sa.integrity = Some("hmac(sha1)".into())), []);
    assert_eq!(with(|sa| sa.integrity = None), weak);
    assert_eq!(with(|sa| sa.integrity = Some("digest_null".into())), weak);
    let combined = |sa: &mut Sa| {
        (sa.cipher, sa.integrity) = (None, None);
        sa.combined = Some("rfc4106(gcm(aes))".into());
    };
    assert_eq!(with(combined), []);
    let null = |sa: &mut Sa| sa.cipher = Some("ecb(cipher_null)".into());
    assert_eq!(with(null), []);
}

#[test]
fn packets_that_could_be_replayed() {
    let window = [Kind::NoReplayWindow];
    assert_eq!(changed(|it| it.sas[1].window = 0), window);
    assert_eq!(changed(|it| it.sas[0].window = 0), []);
    // Without policies only what it says of itself or has received tells its direction.
    let alone = |change: fn(&mut Sa)| {
        let found = changed(|it| {
            it.policies.clear();
            it.sas[1].window = 0;
            change(&mut it.sas[1]);
        });
        found.contains(&Kind::NoReplayWindow)
    };
    assert!(alone(|it| it.direction = Some(XFRM_SA_DIR_IN)));
    assert!(alone(|it| it.received = 1));
    assert!(!alone(|it| it.direction = Some(XFRM_SA_DIR_OUT)));
    assert!(!alone(|_| {}));
}

#[test]
fn protection_behind_plaintext() {
    let with = |change: &dyn Fn(&mut Policy)| {
        changed(|it| {
            let mut clear = policy(XFRM_POLICY_OUT, A, B);
            clear.templates.clear();
            clear.info.priority = 50;
            clear.info.index = 1;
            clear.info.sel.prefixlen_s = 0;
            clear.info.sel.prefixlen_d = 31;
            change(&mut clear);
            it.policies.push(clear);
        })
    };
    let shadowed = [Kind::ShadowedPolicy];
    assert_eq!(with(&|_| {}), shadowed);
    assert_eq!(with(&|it| it.info.priority = 101), []);
    assert_eq!(with(&|it| it.info.dir = XFRM_POLICY_IN), []);
    assert_eq!(with(&|it| it.info.action = XFRM_POLICY_BLOCK), []);
    assert_eq!(with(&|it| it.info.sel.proto = IPPROTO_UDP), []);
    assert_eq!(with(&|it| it.info.sel.daddr = Address::v4(10, 0, 0, 4)), []);
    assert_eq!(with(&|it| it.info.sel.dport_mask = u16::MAX.into()), []);
    assert_eq!(with(&|it| it.mark = Mark { v: 1, m: 1 }), []);
    assert_eq!(with(&|it| it.if_id = 1), []);
    assert_eq!(with(&|it| it.kind = XFRM_POLICY_TYPE_SUB), []);
    assert_eq!(with(&|it| it.info.dir += XFRM_POLICY_MAX), []);
    // Of the same priority the older one counts.
    let same = |index| {
        with(&move |it| {
            it.info.priority = 100;
            it.info.index = index;
        })
    };
    assert_eq!(same(1), shadowed);
    assert_eq!(same(17), []);
}

#[test]
fn dumps_are_read_without_keys() {
    let mut dump = Vec::new();
    let wanted = sa(A, B, 0x100);
    let mut writer = Writer::begin(&mut dump, XFRM_MSG_NEWSA, NLM_F_MULTI, 1, 2);
    writer.body(&wanted.info);
    let algorithm = |name: &str| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(64, 0);
        bytes.extend_from_slice(&256_u32.to_ne_bytes());
        bytes
    };
    let key = b"the key that nobody may ever see";
    writer.attr(XFRMA_ALG_CRYPT, &[&algorithm("cbc(aes)")[..], key].concat());
    let truncated = [&algorithm("hmac(sha256)")[..], &128_u32.to_ne_bytes(), key].concat();
    writer.attr(XFRMA_ALG_AUTH_TRUNC, &truncated);
    writer.attr(XFRMA_REPLAY_VAL, &[9, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    writer.end();
    let sas = dump.len();
    let mut writer = Writer::begin(&mut dump, XFRM_MSG_NEWPOLICY, NLM_F_MULTI, 1, 2);
    let wish = policy(XFRM_POLICY_OUT, A, B);
    writer.body(&wish.info);
    writer.attr_pod(XFRMA_TMPL, &wish.templates[0]);
    writer.attr_pod(XFRMA_POLICY_TYPE, &UserPolicyType::default());
    writer.end();
    let state = State::read(&dump, WallSecs(NOW)).unwrap();
    let expected = Sa {
        sent: 9,
        received: 8,
        window: 0,
        ..wanted
    };
    assert_eq!(state.sas, [expected]);
    assert_eq!(state.policies, [wish]);
    let shown = format!("{state:?} {:?}", findings(&state, &Scope::default()));
    assert!(!shown.contains("nobody may") && !shown.contains("110, 111, 98, 111, 100, 121"));
    for end in 1..dump.len() {
        let cut = State::read(&dump[..end], WallSecs(NOW));
        assert_eq!(cut.is_ok(), end == sas, "{end}");
    }
}

#[test]
fn kinds_have_names() {
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
    }
    let unknown = "leaks".parse::<Kind>().unwrap_err();
    assert!(unknown.contains("left-behind"), "{unknown}");
}
