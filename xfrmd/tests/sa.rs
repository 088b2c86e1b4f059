//! SAs as a client sees them: one test for each behaviour that surprises.
//!
//! Every expectation here was seen on Linux 6.1, 6.12 and 7.2.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use dataplane::{BootNanos, Now, Profile, SeededEntropy, WallSecs, profile};
use xfrm_proto::algo::NAME_BYTES;
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::AckOptions;
use xfrm_proto::policy::Table;
use xfrm_proto::reply::{Writer, messages};
use xfrm_proto::uapi::*;
use xfrmd::emulator::{Emulator, Inputs, NetnsId, Peer};

const PORT: u32 = 77;
const BOOT: u64 = 1_000;
const REAL: u64 = 1_700_000_000;

/// A client that listens to all groups.
struct Client {
    emulator: Emulator,
    netns: NetnsId,
    entropy: SeededEntropy,
    seconds: u64,
}

/// What came of a request: its errno, its text, and every other message.
struct Outcome {
    errno: i32,
    text: Option<String>,
    messages: Vec<Vec<u8>>,
}

impl Client {
    fn new(profile: &'static Profile) -> Self {
        let mut emulator = Emulator::new(profile, Default::default());
        let netns = emulator.create_netns();
        for group in 1..=8 {
            emulator.set_listeners(netns, group, 1);
        }
        Self {
            emulator,
            netns,
            entropy: SeededEntropy::new(1),
            seconds: 0,
        }
    }

    fn now(&self) -> Now {
        Now {
            boot: BootNanos((BOOT + self.seconds) * 1_000_000_000),
            real: WallSecs(REAL + self.seconds),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> Outcome {
        let mut datagram = Vec::new();
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut writer = Writer::begin(&mut datagram, kind, flags, 1, 5);
        writer.put(body);
        writer.end();
        let peer = Peer {
            netns: self.netns,
            port: PORT,
            options: AckOptions {
                cap_ack: true,
                ext_ack: true,
            },
            privileged: true,
            recv_bytes: 65536,
        };
        let inputs = Inputs {
            now: self.now(),
            entropy: &mut self.entropy,
        };
        self.emulator.handle_datagram(inputs, peer, &datagram);
        let mut outcome = Outcome {
            errno: 0,
            text: None,
            messages: Vec::new(),
        };
        self.collect(&mut outcome);
        while self.emulator.is_dumping(self.netns, PORT) {
            self.emulator.handle_recv(peer);
            self.collect(&mut outcome);
        }
        outcome
    }

    fn collect(&mut self, outcome: &mut Outcome) {
        while let Some(datagram) = self.emulator.poll_datagram() {
            for (header, message) in messages(datagram.bytes) {
                if matches!(header.kind, NLMSG_ERROR | NLMSG_DONE) {
                    outcome.errno = -i32::from_ne_bytes(message[16..20].try_into().unwrap());
                    let tlvs = if header.kind == NLMSG_DONE { 20 } else { 36 };
                    if header.flags & NLM_F_ACK_TLVS != 0 {
                        let attrs = Attrs::parse(message, tlvs, &Table::xfrma(0)).unwrap();
                        let text = &message[tlvs + 4..];
                        let end = text.iter().position(|&b| b == 0).unwrap();
                        outcome.text = Some(String::from_utf8(text[..end].to_vec()).unwrap());
                        assert!(!attrs.leftover);
                    }
                } else {
                    outcome.messages.push(message.to_vec());
                }
            }
        }
    }

    /// Lets seconds pass; the messages they bring.
    fn wait(&mut self, seconds: u64) -> Vec<Vec<u8>> {
        let mut outcome = self.send(XFRM_MSG_GETSADINFO, 0, &[0; 4]);
        outcome.messages.clear();
        for _ in 0..seconds {
            self.seconds += 1;
            let inputs = Inputs {
                now: self.now(),
                entropy: &mut self.entropy,
            };
            self.emulator.handle_timeout(inputs);
            self.collect(&mut outcome);
        }
        outcome.messages
    }

    fn ok(&mut self, kind: u16, body: &[u8]) -> Vec<Vec<u8>> {
        let outcome = self.send(kind, 0, body);
        assert_eq!((outcome.errno, outcome.text), (0, None));
        outcome.messages
    }

    fn fails(&mut self, kind: u16, body: &[u8]) -> (i32, Option<String>) {
        let outcome = self.send(kind, 0, body);
        assert_ne!(outcome.errno, 0);
        (outcome.errno, outcome.text)
    }

    fn dump(&mut self) -> Vec<Vec<u8>> {
        self.send(XFRM_MSG_GETSA, NLM_F_DUMP, &[]).messages
    }

    /// GETSA; the request id of what was found.
    fn find(&mut self, mark: u32) -> u32 {
        let mut body = sa_id(0x100, IPPROTO_ESP);
        attr(&mut body, XFRMA_MARK, &mark_bytes(mark, u32::MAX));
        let reply = self.ok(XFRM_MSG_GETSA, &body).remove(0);
        info_of(&reply).reqid
    }
}

fn bytes_of<T: Pod>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    Writer::attrs_only(&mut out).body(value);
    out
}

fn attr(body: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    Writer::attrs_only(body).attr(kind, payload);
}

fn mark_bytes(v: u32, m: u32) -> Vec<u8> {
    bytes_of(&Mark { v, m })
}

fn info() -> UserSaInfo {
    UserSaInfo {
        id: XfrmId {
            daddr: Address::v4(10, 0, 0, 2),
            spi: 0x100.into(),
            proto: IPPROTO_ESP,
            pad: [0; 3],
        },
        saddr: Address::v4(10, 0, 0, 1),
        lft: LifetimeCfg::UNLIMITED,
        family: AF_INET,
        mode: XFRM_MODE_TUNNEL,
        ..UserSaInfo::default()
    }
}

fn algorithm(name: &str, key: &[u8], icv_bits: Option<u32>) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.resize(NAME_BYTES, 0);
    out.extend_from_slice(&u32::try_from(key.len() * 8).unwrap().to_ne_bytes());
    out.extend(icv_bits.into_iter().flat_map(u32::to_ne_bytes));
    out.extend_from_slice(key);
    out
}

/// NEWSA of `info` with AES-GCM.
fn gcm(info: &UserSaInfo) -> Vec<u8> {
    let mut body = bytes_of(info);
    let blob = algorithm("rfc4106(gcm(aes))", &[7; 20], Some(128));
    attr(&mut body, XFRMA_ALG_AEAD, &blob);
    body
}

fn sa_id(spi: u32, proto: u8) -> Vec<u8> {
    bytes_of(&UserSaId {
        daddr: Address::v4(10, 0, 0, 2),
        spi: spi.into(),
        family: AF_INET,
        proto,
        pad: 0,
    })
}

fn encap(kind: u16) -> Vec<u8> {
    bytes_of(&EncapTmpl {
        kind,
        ..EncapTmpl::default()
    })
}

fn info_of(message: &[u8]) -> UserSaInfo {
    UserSaInfo::read(&message[16..]).unwrap()
}

fn attrs_of(message: &[u8], fixed: usize) -> Attrs<'_> {
    Attrs::parse(message, 16 + fixed, &Table::xfrma(XFRMA_MAX)).unwrap()
}

/// The SA attribute `kind` of a NEWSA or UPDSA.
fn sa_attr(message: &[u8], kind: u16) -> Option<Vec<u8>> {
    attrs_of(message, UserSaInfo::SIZE)
        .bytes(kind)
        .map(<[u8]>::to_vec)
}

fn kind_of(message: &[u8]) -> u16 {
    NlMsgHdr::read(message).unwrap().kind
}

#[test]
fn marks_match_one_way() {
    let mut client = Client::new(&profile::V7_2);
    let mut marked = gcm(&info());
    attr(&mut marked, XFRMA_MARK, &mark_bytes(1, 0xf));
    let unmarked = gcm(&UserSaInfo { reqid: 2, ..info() });
    client.ok(XFRM_MSG_NEWSA, &marked);
    client.ok(XFRM_MSG_NEWSA, &unmarked);
    assert_eq!(client.find(0x21), 2, "the younger one shadows");
    let flush = [0];
    client.ok(XFRM_MSG_FLUSHSA, &flush);
    client.ok(XFRM_MSG_NEWSA, &unmarked);
    assert_eq!(client.fails(XFRM_MSG_NEWSA, &marked).0, errno::EEXIST);
}

#[test]
fn growing_reverses_chains() {
    let mut client = Client::new(&profile::V7_2);
    let mut marked = gcm(&UserSaInfo { reqid: 1, ..info() });
    attr(&mut marked, XFRMA_MARK, &mark_bytes(1, 0xf));
    client.ok(XFRM_MSG_NEWSA, &marked);
    client.ok(
        XFRM_MSG_NEWSA,
        &gcm(&UserSaInfo {
            reqid: 1,
            mode: 0,
            ..info()
        }),
    );
    let found = |client: &mut Client| {
        let mut body = sa_id(0x100, IPPROTO_ESP);
        attr(&mut body, XFRMA_MARK, &mark_bytes(1, u32::MAX));
        info_of(&client.ok(XFRM_MSG_GETSA, &body)[0]).mode
    };
    assert_eq!(found(&mut client), 0);
    for spi in 0x200..0x207 {
        let mut other = info();
        other.id.spi = spi.into();
        client.ok(XFRM_MSG_NEWSA, &gcm(&other));
    }
    let sizes = client.ok(XFRM_MSG_GETSADINFO, &[0; 4]).remove(0);
    let attrs = Attrs::parse(&sizes, 20, &Table::spd()).unwrap();
    assert_eq!(attrs.pod::<SadHinfo>(XFRMA_SAD_HINFO).unwrap().sadhcnt, 16);
    assert_eq!(found(&mut client), 1);
}

#[test]
fn selector_family_is_inherited() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let mut unspec = info();
    unspec.id.spi = 0x101.into();
    unspec.flags = XFRM_STATE_AF_UNSPEC;
    client.ok(XFRM_MSG_NEWSA, &gcm(&unspec));
    let families: Vec<u16> = client
        .dump()
        .iter()
        .map(|m| info_of(m).sel.family)
        .collect();
    assert_eq!(families, [AF_UNSPEC, AF_INET]);
}

#[test]
fn auth_replaces_unnumbered_trunc() {
    for (profile, expected) in [
        (&profile::V6_12, "hmac(sha1)"),
        (&profile::V7_2, "cmac(aes)"),
    ] {
        let mut client = Client::new(profile);
        let mut ah = info();
        ah.id.proto = IPPROTO_AH;
        let mut body = bytes_of(&ah);
        let trunc = algorithm("cmac(aes)", &[1; 16], Some(96));
        attr(&mut body, XFRMA_ALG_AUTH_TRUNC, &trunc);
        attr(
            &mut body,
            XFRMA_ALG_AUTH,
            &algorithm("sha1", &[1; 20], None),
        );
        let event = client.ok(XFRM_MSG_NEWSA, &body).remove(0);
        let auth = sa_attr(&event, XFRMA_ALG_AUTH).unwrap();
        assert!(auth.starts_with(expected.as_bytes()));
    }
}

#[test]
fn bad_cipher_key_has_no_text() {
    let mut client = Client::new(&profile::V7_2);
    let mut body = bytes_of(&info());
    attr(
        &mut body,
        XFRMA_ALG_CRYPT,
        &algorithm("aes", &[1; 17], None),
    );
    assert_eq!(client.fails(XFRM_MSG_NEWSA, &body), (errno::EINVAL, None));
    let mut body = bytes_of(&info());
    let blob = algorithm("rfc4106(gcm(aes))", &[7; 21], Some(128));
    attr(&mut body, XFRMA_ALG_AEAD, &blob);
    let text = "Kernel was unable to initialize cryptographic operations";
    assert_eq!(
        client.fails(XFRM_MSG_NEWSA, &body),
        (errno::EINVAL, Some(text.into()))
    );
}

#[test]
fn update_cannot_add_or_remove_encap() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let mut with_encap = gcm(&info());
    attr(&mut with_encap, XFRMA_ENCAP, &encap(UDP_ENCAP_ESPINUDP));
    assert_eq!(
        client.fails(XFRM_MSG_UPDSA, &with_encap),
        (errno::EINVAL, None)
    );
}

#[test]
fn update_event_shows_the_request() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let mut body = bytes_of(&UserSaInfo { reqid: 9, ..info() });
    let other_key = algorithm("rfc4106(gcm(aes))", &[8; 20], Some(128));
    attr(&mut body, XFRMA_ALG_AEAD, &other_key);
    let event = client.ok(XFRM_MSG_UPDSA, &body).remove(0);
    assert_eq!(
        (kind_of(&event), info_of(&event).reqid),
        (XFRM_MSG_UPDSA, 9)
    );
    assert_eq!(sa_attr(&event, XFRMA_ALG_AEAD).unwrap(), other_key);
    let kept = client.dump().remove(0);
    assert_eq!(info_of(&kept).reqid, 0);
    assert_ne!(sa_attr(&kept, XFRMA_ALG_AEAD).unwrap(), other_key);
}

fn alloc_spi(min: u32, max: u32) -> Vec<u8> {
    let mut wanted = info();
    wanted.id.spi = 0.into();
    bytes_of(&UserSpiInfo {
        info: wanted,
        min,
        max,
    })
}

#[test]
fn larval_selector_has_no_family() {
    let mut client = Client::new(&profile::V7_2);
    let reply = client
        .ok(XFRM_MSG_ALLOCSPI, &alloc_spi(0x300, 0x3ff))
        .remove(0);
    let larval = info_of(&reply);
    assert_eq!((larval.sel.family, larval.sel.prefixlen_d), (AF_UNSPEC, 32));
    assert!((0x300..=0x3ff).contains(&larval.id.spi.get()));
    assert_eq!(larval.lft.hard_add_expires_seconds, 30);
    let events = client.wait(30);
    assert_eq!(events.len(), 1);
    assert_eq!(
        (kind_of(&events[0]), events[0][16 + 224]),
        (XFRM_MSG_EXPIRE, 1)
    );
    assert!(client.dump().is_empty());
}

#[test]
fn full_spi_range_is_empty() {
    let mut client = Client::new(&profile::V7_2);
    let text = "No SPI available in the requested range";
    assert_eq!(
        client.fails(XFRM_MSG_ALLOCSPI, &alloc_spi(0, u32::MAX)),
        (errno::ENOENT, Some(text.into()))
    );
    assert_eq!(client.dump().len(), 1, "the larval SA stays");
}

#[test]
fn update_takes_the_place_of_a_larval_sa_and_new_answers_it() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_ALLOCSPI, &alloc_spi(0x100, 0x100));
    assert_eq!(client.fails(XFRM_MSG_NEWSA, &gcm(&info())).0, errno::EEXIST);
    let events = client.ok(XFRM_MSG_UPDSA, &gcm(&info()));
    assert_eq!(
        events.iter().map(|m| kind_of(m)).collect::<Vec<_>>(),
        [XFRM_MSG_UPDSA]
    );
    assert_eq!(client.dump().len(), 1);
    client.fails(XFRM_MSG_ALLOCSPI, &alloc_spi(0, 0));
    assert_eq!(client.dump().len(), 2, "a larval SA without SPI");
    let mut other = info();
    other.id.spi = 0x101.into();
    client.ok(XFRM_MSG_NEWSA, &gcm(&other));
    assert_eq!(client.dump().len(), 2, "which the new SA has answered");
}

#[test]
fn protocol_255_has_an_spi() {
    let mut client = Client::new(&profile::V7_2);
    let any = sa_id(0x100, IPSEC_PROTO_ANY);
    assert_eq!(client.fails(XFRM_MSG_GETSA, &any), (errno::ESRCH, None));
    let other = sa_id(0x100, IPPROTO_IPIP);
    assert_eq!(client.fails(XFRM_MSG_GETSA, &other), (errno::EINVAL, None));
}

#[test]
fn esn_bitmap_may_be_left_out() {
    let mut client = Client::new(&profile::V7_2);
    let mut body = gcm(&UserSaInfo {
        flags: XFRM_STATE_ESN,
        ..info()
    });
    let esn = ReplayStateEsn {
        bmp_len: 2,
        replay_window: 64,
        ..ReplayStateEsn::default()
    };
    attr(&mut body, XFRMA_REPLAY_ESN_VAL, &bytes_of(&esn));
    let event = client.ok(XFRM_MSG_NEWSA, &body).remove(0);
    assert_eq!(sa_attr(&event, XFRMA_REPLAY_ESN_VAL).unwrap().len(), 24 + 8);
}

fn migrate_state(from: u8, to: u8) -> Vec<u8> {
    bytes_of(&UserMigrateState {
        id: UserSaId {
            daddr: Address::v4(10, 0, 0, from),
            spi: 0x100.into(),
            family: AF_INET,
            proto: IPPROTO_ESP,
            pad: 0,
        },
        new_daddr: Address::v4(10, 0, 0, to),
        new_saddr: Address::v4(10, 0, 0, 1),
        new_family: AF_INET,
        ..UserMigrateState::default()
    })
}

#[test]
fn a_cloned_context_grows() {
    static SELINUX: Profile = Profile {
        has_selinux: true,
        ..profile::V7_2
    };
    let mut client = Client::new(&SELINUX);
    let mut body = gcm(&info());
    let head = UserSecCtx {
        len: 12,
        exttype: XFRMA_SEC_CTX,
        ctx_alg: 1,
        ctx_doi: 1,
        ctx_len: 4,
    };
    let context = [bytes_of(&head), b"abcd".to_vec()].concat();
    attr(&mut body, XFRMA_SEC_CTX, &context);
    client.ok(XFRM_MSG_NEWSA, &body);
    let told = |client: &mut Client| sa_attr(&client.dump()[0], XFRMA_SEC_CTX).unwrap().len();
    assert_eq!(told(&mut client), 8 + 5);
    client.ok(XFRM_MSG_MIGRATE_STATE, &migrate_state(2, 3));
    assert_eq!(told(&mut client), 8 + 6);
}

#[test]
fn unheard_migration_warns() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let events = client.ok(XFRM_MSG_MIGRATE_STATE, &migrate_state(2, 3));
    assert_eq!(kind_of(&events[0]), XFRM_MSG_MIGRATE_STATE);
    client
        .emulator
        .set_listeners(client.netns, group::MIGRATE, 0);
    let outcome = client.send(XFRM_MSG_MIGRATE_STATE, 0, &migrate_state(3, 4));
    let text = "Failed to send migration notification";
    assert_eq!((outcome.errno, outcome.text.as_deref()), (0, Some(text)));
}

#[test]
fn migrate_without_encap_drops_it() {
    for (profile, keeps) in [(&profile::V6_12, true), (&profile::V7_2, false)] {
        let mut client = Client::new(profile);
        let mut body = gcm(&UserSaInfo { reqid: 7, ..info() });
        attr(&mut body, XFRMA_ENCAP, &encap(UDP_ENCAP_ESPINUDP));
        client.ok(XFRM_MSG_NEWSA, &body);
        let sel = Selector {
            family: AF_INET,
            ..Selector::default()
        };
        let mut policy = bytes_of(&UserPolicyInfo {
            sel,
            lft: info().lft,
            dir: XFRM_POLICY_OUT,
            ..UserPolicyInfo::default()
        });
        let template = UserTmpl {
            id: XfrmId {
                spi: 0.into(),
                ..info().id
            },
            family: AF_INET,
            saddr: info().saddr,
            reqid: 7,
            mode: XFRM_MODE_TUNNEL,
            ..UserTmpl::default()
        };
        attr(&mut policy, XFRMA_TMPL, &bytes_of(&template));
        client.ok(XFRM_MSG_NEWPOLICY, &policy);
        let mut request = bytes_of(&UserPolicyId {
            sel,
            dir: XFRM_POLICY_OUT,
            ..UserPolicyId::default()
        });
        let entry = UserMigrate {
            old_daddr: info().id.daddr,
            old_saddr: info().saddr,
            new_daddr: Address::v4(10, 0, 0, 9),
            new_saddr: info().saddr,
            proto: IPPROTO_ESP,
            mode: XFRM_MODE_TUNNEL,
            reqid: 7,
            old_family: AF_INET,
            new_family: AF_INET,
            ..UserMigrate::default()
        };
        attr(&mut request, XFRMA_MIGRATE, &bytes_of(&entry));
        client.ok(XFRM_MSG_MIGRATE, &request);
        let moved = client.dump().remove(0);
        assert_eq!(info_of(&moved).id.daddr, entry.new_daddr);
        assert_eq!(sa_attr(&moved, XFRMA_ENCAP).is_some(), keeps);
    }
}

fn aevent_id(flags: u32) -> Vec<u8> {
    bytes_of(&AeventId {
        sa_id: UserSaId::read(&sa_id(0x100, IPPROTO_ESP)).unwrap(),
        flags,
        ..AeventId::default()
    })
}

#[test]
fn etimer_is_set_in_ticks_and_told_in_tenths() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let told = |client: &mut Client| {
        let reply = client
            .ok(XFRM_MSG_GETAE, &aevent_id(XFRM_AE_ETHR))
            .remove(0);
        attrs_of(&reply, AeventId::SIZE)
            .u32(XFRMA_ETIMER_THRESH)
            .unwrap()
    };
    assert_eq!(told(&mut client), 10);
    let mut body = aevent_id(0);
    attr(&mut body, XFRMA_ETIMER_THRESH, &500_u32.to_ne_bytes());
    let outcome = client.send(XFRM_MSG_NEWAE, NLM_F_REPLACE, &body);
    assert_eq!(outcome.errno, 0);
    assert_eq!(told(&mut client), 500 * 10 / profile::V7_2.hz);
}

#[test]
fn getae_replies_with_the_requests_pid() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let pid = |message: &[u8]| NlMsgHdr::read(message).unwrap().pid;
    assert_eq!(pid(&client.ok(XFRM_MSG_GETAE, &aevent_id(0))[0]), 5);
    let get = sa_id(0x100, IPPROTO_ESP);
    assert_eq!(pid(&client.ok(XFRM_MSG_GETSA, &get)[0]), PORT);
}

#[test]
fn dump_attributes_follow_the_header() {
    let mut client = Client::new(&profile::V7_2);
    client.ok(XFRM_MSG_NEWSA, &gcm(&info()));
    let mut filter = Vec::new();
    attr(&mut filter, XFRMA_PROTO, &[IPPROTO_AH]);
    let dump = client.send(XFRM_MSG_GETSA, NLM_F_DUMP, &filter);
    assert!(dump.messages.is_empty());
    let behind_an_id = [sa_id(0, 0), filter].concat();
    let dump = client.send(XFRM_MSG_GETSA, NLM_F_DUMP, &behind_an_id);
    assert_eq!(dump.messages.len(), 1);
}

#[test]
fn big_sa_cannot_be_got() {
    let mut client = Client::new(&profile::V7_2);
    let mut ah = info();
    ah.id.proto = IPPROTO_AH;
    let get = sa_id(0x100, IPPROTO_AH);
    for (key_bytes, fits) in [(1684, true), (1688, false)] {
        let mut body = bytes_of(&ah);
        let blob = algorithm("hmac(sha1)", &vec![1; key_bytes], None);
        attr(&mut body, XFRMA_ALG_AUTH, &blob);
        client.ok(XFRM_MSG_NEWSA, &body);
        if fits {
            client.ok(XFRM_MSG_GETSA, &get);
        } else {
            assert_eq!(client.fails(XFRM_MSG_GETSA, &get).0, errno::EMSGSIZE);
        }
        client.ok(XFRM_MSG_DELSA, &get);
    }
}

#[test]
fn a_hard_limit_found_by_an_update_is_told_before_it() {
    let mut client = Client::new(&profile::V7_2);
    let mut used = gcm(&info());
    let curlft = LifetimeCur {
        bytes: 50,
        use_time: REAL,
        add_time: REAL,
        ..LifetimeCur::default()
    };
    attr(&mut used, XFRMA_LTIME_VAL, &bytes_of(&curlft));
    client.ok(XFRM_MSG_NEWSA, &used);
    let mut limited = info();
    limited.lft.hard_byte_limit = 50;
    let events = client.ok(XFRM_MSG_UPDSA, &gcm(&limited));
    let kinds: Vec<u16> = events.iter().map(|m| kind_of(m)).collect();
    assert_eq!(kinds, [XFRM_MSG_EXPIRE, XFRM_MSG_UPDSA]);
    assert!(client.dump().is_empty());
}

/// As seen on Linux 7.2: second, limits and what was told of each SA.
#[test]
fn limits_in_time() {
    let limits: [(u64, u64, u64, u64, bool); 9] = [
        (0, 1, 0, 0, false),
        (0, 2, 0, 0, false),
        (2, 4, 0, 0, false),
        (4, 2, 0, 0, false),
        (1, 1, 0, 0, false),
        (0, 0, 2, 3, true),
        (0, 0, 2, 3, false),
        (1, 0, 0, 0, false),
        (u64::MAX, 5, 0, 0, false),
    ];
    let mut client = Client::new(&profile::V7_2);
    for (spi, (soft_add, hard_add, soft_use, hard_use, used)) in (1_u32..).zip(limits) {
        let mut sa = info();
        sa.id.spi = spi.into();
        sa.lft.soft_add_expires_seconds = soft_add;
        sa.lft.hard_add_expires_seconds = hard_add;
        sa.lft.soft_use_expires_seconds = soft_use;
        sa.lft.hard_use_expires_seconds = hard_use;
        let mut body = gcm(&sa);
        if used {
            let curlft = LifetimeCur {
                bytes: 1,
                packets: 1,
                add_time: REAL,
                use_time: REAL,
            };
            attr(&mut body, XFRMA_LTIME_VAL, &bytes_of(&curlft));
        }
        client.ok(XFRM_MSG_NEWSA, &body);
    }
    let mut told = Vec::new();
    for second in 1..=6 {
        for message in client.wait(1) {
            let hard = message[16 + UserSaInfo::SIZE];
            told.push((second, info_of(&message).id.spi.get(), hard));
        }
    }
    assert_eq!(
        told,
        [
            (1, 1, 1),
            (1, 5, 1),
            (1, 8, 0),
            (1, 9, 0),
            (2, 2, 1),
            (2, 3, 0),
            (2, 4, 1),
            (2, 6, 0),
            (3, 6, 1),
            (4, 3, 1),
            (5, 9, 1),
        ]
    );
}

#[test]
fn a_compressing_tunnel_has_a_hidden_sa() {
    let mut client = Client::new(&profile::V7_2);
    let mut comp = info();
    comp.id.proto = IPPROTO_COMP;
    let mut body = bytes_of(&comp);
    attr(&mut body, XFRMA_ALG_COMP, &algorithm("deflate", &[], None));
    client.ok(XFRM_MSG_NEWSA, &body);
    let hidden = info_of(&client.dump()[1]);
    assert_eq!(
        (hidden.id.proto, hidden.id.spi.get()),
        (IPPROTO_IPIP, 0x0a00_0001)
    );
    let mut request = sa_id(0, IPPROTO_IPIP);
    attr(&mut request, XFRMA_SRCADDR, &info().saddr.0);
    let text = "SA is in use by tunnels";
    assert_eq!(
        client.fails(XFRM_MSG_DELSA, &request),
        (errno::EPERM, Some(text.into()))
    );
    assert!(client.ok(XFRM_MSG_FLUSHSA, &[IPPROTO_IPIP]).is_empty());
    client.ok(XFRM_MSG_DELSA, &sa_id(0x100, IPPROTO_COMP));
    assert!(client.dump().is_empty());
}

#[test]
fn a_dump_survives_what_happens_around_it() {
    let mut client = Client::new(&profile::V7_2);
    for spi in 0..40_u32 {
        let mut sa = info();
        sa.id.spi = (0x1000 + spi).into();
        client.ok(XFRM_MSG_NEWSA, &gcm(&sa));
    }
    let peer = Peer {
        netns: client.netns,
        port: PORT,
        options: AckOptions::default(),
        privileged: true,
        recv_bytes: 0,
    };
    let mut request = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    Writer::begin(&mut request, XFRM_MSG_GETSA, flags, 1, 0).end();
    let inputs = Inputs {
        now: client.now(),
        entropy: &mut client.entropy,
    };
    client.emulator.handle_datagram(inputs, peer, &request);
    let mut seen = Vec::new();
    let mut round = 0_u32;
    loop {
        while let Some(datagram) = client.emulator.poll_datagram() {
            let sas = messages(datagram.bytes).filter(|(header, _)| header.kind == XFRM_MSG_NEWSA);
            seen.extend(sas.map(|(_, message)| info_of(message).id.spi.get()));
        }
        if !client.emulator.is_dumping(client.netns, PORT) {
            break;
        }
        let mut netns = client.emulator.netns_mut(client.netns).unwrap();
        let spi = 0x1000 + round;
        let doomed = netns
            .sad
            .lookup(0, info().id.daddr, spi, IPPROTO_ESP, AF_INET);
        netns.sad.delete(doomed.unwrap());
        drop(netns);
        round += 1;
        client.emulator.handle_recv(peer);
    }
    let expected: Vec<u32> = (seen[seen.len() - 1]..0x1000 + 40).rev().collect();
    assert_eq!(seen, expected, "newest first, none twice, none left out");
}
