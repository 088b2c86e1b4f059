use dataplane::profile::{V6_1, V7_2};
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::{LifetimeCfg, Selector, UserPolicyInfo, UserSaInfo, UserTmpl, XfrmId};

use super::*;

pub(crate) const A: [u8; 4] = [10, 0, 0, 1];
pub(crate) const B: [u8; 4] = [10, 0, 0, 2];

/// Nothing else has these bytes.
pub(crate) const KEY: [u8; 20] = *b"sentinel-of-20-bytes";

fn address([a, b, c, d]: [u8; 4]) -> xfrm_proto::uapi::Address {
    xfrm_proto::uapi::Address::v4(a, b, c, d)
}

/// An SA of AES-GCM in tunnel mode.
pub(crate) fn new_sa(from: [u8; 4], to: [u8; 4], spi: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = Writer::begin(&mut bytes, XFRM_MSG_NEWSA, flags, spi, 0);
    message.body(&UserSaInfo {
        id: XfrmId {
            daddr: address(to),
            spi: spi.into(),
            proto: IPPROTO_ESP,
            ..XfrmId::default()
        },
        saddr: address(from),
        family: AF_INET,
        mode: XFRM_MODE_TUNNEL,
        replay_window: 32,
        lft: LifetimeCfg::UNLIMITED,
        ..UserSaInfo::default()
    });
    let mut name = b"rfc4106(gcm(aes))".to_vec();
    name.resize(64, 0);
    let sizes = [160_u32.to_ne_bytes(), 128_u32.to_ne_bytes()].concat();
    message.attr_parts(XFRMA_ALG_AEAD, &[&name, &sizes, &KEY]);
    message.end();
    bytes
}

fn new_policy(dir: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = Writer::begin(&mut bytes, XFRM_MSG_NEWPOLICY, flags, 1, 0);
    message.body(&UserPolicyInfo {
        sel: Selector {
            family: AF_INET,
            ..Selector::default()
        },
        lft: LifetimeCfg::UNLIMITED,
        dir,
        ..UserPolicyInfo::default()
    });
    message.attr_pod(
        XFRMA_TMPL,
        &UserTmpl {
            id: XfrmId {
                daddr: address(to),
                proto: IPPROTO_ESP,
                ..XfrmId::default()
            },
            family: AF_INET,
            saddr: address(from),
            mode: XFRM_MODE_TUNNEL,
            aalgos: u32::MAX,
            ealgos: u32::MAX,
            calgos: u32::MAX,
            ..UserTmpl::default()
        },
    );
    message.end();
    bytes
}

pub(crate) fn packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend([A, B].concat());
    dataplane::packet::ip4::set_checksum(&mut packet);
    packet.resize(60, 0x77);
    packet
}

/// Two namespaces with a tunnel from the first to the second.
pub(crate) fn tunnel(mut linux: Instance) -> (Instance, [NetnsId; 2]) {
    let [a, b] = [A, B].map(|own| {
        let netns = linux.create_netns();
        linux.set_station(netns, Station::at([own.into()]));
        netns
    });
    let [at_a, at_b] = [a, b].map(|netns| linux.open(netns, &Open::default()).unwrap());
    for (socket, request) in [
        (at_a, new_sa(A, B, 0x100)),
        (at_b, new_sa(A, B, 0x100)),
        (at_a, new_policy(XFRM_POLICY_OUT, A, B)),
        (at_b, new_policy(XFRM_POLICY_IN, A, B)),
    ] {
        assert_eq!(linux.send(socket, &request).unwrap().errno(), Some(0));
    }
    (linux, [a, b])
}

#[test]
fn a_packet_goes_through_a_tunnel() {
    let (mut linux, [a, b]) = tunnel(Instance::new(&V7_2));
    let departed = linux.output(a, &packet()).unwrap();
    assert_eq!(departed.packets.len(), 1);
    assert_eq!(departed.packets[0][9], IPPROTO_ESP);
    let arrived = linux.input(b, &departed.packets[0]).unwrap();
    assert_eq!(arrived.packets, [packet()]);
    let again = linux.input(b, &departed.packets[0]).unwrap();
    assert_eq!(again.packets, [[0_u8; 0]; 0]);
    assert_eq!(linux.counter(b, "XfrmInStateSeqError"), 1);
    assert_eq!(linux.carry(a, b, &packet()).unwrap(), [packet()]);
}

#[test]
fn a_seed_decides() {
    let outer = |seed| {
        let (mut linux, [a, _]) = tunnel(Instance::new(&V7_2).seed(seed));
        linux.output(a, &packet()).unwrap().packets
    };
    assert_eq!(outer(5), outer(5));
    assert_ne!(outer(5), outer(6));
}

#[test]
fn a_dump_is_read_to_its_end_and_events_wait() {
    let mut linux = Instance::new(&V6_1);
    let netns = linux.create_netns();
    let groups = 1 << (group::SA - 1);
    let client = linux.open(netns, &Open::groups(groups)).unwrap();
    for spi in 1..=100 {
        let made = linux.send(client, &new_sa(A, B, spi)).unwrap();
        assert_eq!(made.errno(), Some(0));
    }
    let mut dump = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    Writer::begin(&mut dump, XFRM_MSG_GETSA, flags, 1, 0).end();
    let replies = linux.send(client, &dump).unwrap();
    assert_eq!(replies.len(), 101);
    assert_eq!(replies.errno(), Some(0));
    for _ in 0..100 {
        assert_eq!(linux.recv(client, 65536).unwrap().groups, groups);
    }
    assert_eq!(linux.recv(client, 65536), Err(errno::EAGAIN));
}

#[test]
fn sockets_are_bound_as_on_linux() {
    let mut linux = Instance::new(&V6_1);
    let netns = linux.create_netns();
    let first = linux.open(netns, &Open::default()).unwrap();
    let taken = Open {
        port: linux.port(first),
        ..Open::default()
    };
    assert_eq!(linux.open(netns, &taken), Err(libc::EADDRINUSE));
    linux.close(first);
    assert!(linux.open(netns, &taken).is_ok());
    assert_eq!(linux.send(first, &[0; 16]), Err(libc::EBADF));
    let unprivileged = Open {
        privileged: false,
        ..Open::groups(1)
    };
    assert_eq!(linux.open(netns, &unprivileged), Err(errno::EPERM));
}
