//! IPTFS SAs on a wire. `ip` does not know the mode, so a program of ours makes them.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, UserPolicyInfo, UserSaInfo, UserTmpl};
use zerocopy::IntoBytes;

use crate::cases::{A, B, Pair, echo, is_protected, ping, transfer};
use crate::namespaces::Wire;

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[("iptfs_carries_and_cuts", carries)];

const SITES: [&str; 2] = ["10.1.0.0", "10.2.0.0"];
const SITE_BITS: u8 = 24;
/// Of each outer packet, behind its IP header.
const OUTER_BYTES: u32 = 1000;
const HEADER_BYTES: u32 = 20;
const REQID: u32 = 1;

fn address(text: &str) -> Address {
    let mut address = Address::ANY;
    let octets = text.parse::<Ipv4Addr>().unwrap().octets();
    address.0[..4].copy_from_slice(&octets);
    address
}

fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (4 + value.len()) as u16;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends a request, which must succeed.
fn request(kind: u16, body: &[&[u8]]) {
    const NETLINK_XFRM: i32 = 6;
    const REQUEST_ACK_CREATE_EXCL: u16 = 1 | 4 | 0x200 | 0x400;
    let body = body.concat();
    let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_ACK_CREATE_EXCL.to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_XFRM) };
    assert!(fd >= 0);
    let fd = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    let to = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
    let mut answer = [0; 1000];
    recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    let code = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(code, 0, "message {kind}");
}

/// Of this program, started again under `xfrmd run`: SAs and policies of A (0) or B (1).
pub(crate) fn configure(own: usize) {
    let ends = [A, B];
    for (from, to) in [(0, 1), (1, 0)] {
        let mut sa = UserSaInfo {
            saddr: address(ends[from]),
            family: AF_INET,
            mode: XFRM_MODE_IPTFS,
            reqid: REQID,
            ..UserSaInfo::default()
        };
        sa.id.daddr = address(ends[to]);
        sa.id.spi.set(0x100 * (from as u32 + 1));
        sa.id.proto = IPPROTO_ESP;
        for limit in [
            &mut sa.lft.soft_byte_limit,
            &mut sa.lft.hard_byte_limit,
            &mut sa.lft.soft_packet_limit,
            &mut sa.lft.hard_packet_limit,
        ] {
            *limit = u64::MAX;
        }
        let mut aead = b"rfc4106(gcm(aes))".to_vec();
        aead.resize(64, 0);
        aead.extend(160_u32.to_ne_bytes());
        aead.extend(128_u32.to_ne_bytes());
        aead.extend(1..=20_u8);
        let mut more = attr(XFRMA_ALG_AEAD, &aead);
        if from == own {
            more.extend(attr(XFRMA_SA_DIR, &[XFRM_SA_DIR_OUT]));
            more.extend(attr(XFRMA_IPTFS_PKT_SIZE, &OUTER_BYTES.to_ne_bytes()));
        } else {
            sa.replay_window = 32;
            more.extend(attr(XFRMA_SA_DIR, &[XFRM_SA_DIR_IN]));
        }
        request(XFRM_MSG_NEWSA, &[sa.as_bytes(), &more]);
    }
    for (dir, from, to) in [
        (XFRM_POLICY_OUT, own, 1 - own),
        (XFRM_POLICY_IN, 1 - own, own),
    ] {
        let mut policy = UserPolicyInfo {
            dir,
            ..UserPolicyInfo::default()
        };
        policy.sel.family = AF_INET;
        policy.sel.saddr = address(SITES[from]);
        policy.sel.daddr = address(SITES[to]);
        (policy.sel.prefixlen_s, policy.sel.prefixlen_d) = (SITE_BITS, SITE_BITS);
        for limit in [
            &mut policy.lft.soft_byte_limit,
            &mut policy.lft.hard_byte_limit,
            &mut policy.lft.soft_packet_limit,
            &mut policy.lft.hard_packet_limit,
        ] {
            *limit = u64::MAX;
        }
        let mut template = UserTmpl {
            family: AF_INET,
            saddr: address(ends[from]),
            reqid: REQID,
            mode: XFRM_MODE_IPTFS,
            aalgos: u32::MAX,
            ealgos: u32::MAX,
            calgos: u32::MAX,
            ..UserTmpl::default()
        };
        template.id.daddr = address(ends[to]);
        template.id.proto = IPPROTO_ESP;
        let template = attr(XFRMA_TMPL, template.as_bytes());
        request(XFRM_MSG_NEWPOLICY, &[policy.as_bytes(), &template]);
    }
}

fn carries() {
    let mut pair = Pair::new();
    for (namespace, own, other, via) in [(&pair.a, 1, 2, B), (&pair.b, 2, 1, A)] {
        namespace.sh(&format!(
            "ip addr add 10.{own}.0.1/24 dev lo; \
             ip route add 10.{other}.0.0/24 via {via} src 10.{own}.0.1"
        ));
    }
    let me = std::env::current_exe().unwrap();
    for (shell, own) in [(&mut pair.xb, 1), (&mut pair.xa, 0)] {
        shell.sh(&format!("{} iptfs {own} > /dev/null", me.display()));
    }
    let wire = Wire::listen(&pair.a, "v0");
    ping(&pair.a, "10.2.0.1");
    ping(&pair.b, "10.1.0.1");
    echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 100);
    echo(&pair.b, &pair.a, "0.0.0.0:0", "10.1.0.1:0", 5000);
    transfer(&pair.a, &pair.b, "10.2.0.1:0", 1_000_000);
    let packets = wire.stop();
    is_protected(&packets);
    // Whatever is inside, what is outside is as long as was said.
    let longest = packets
        .iter()
        .filter(|it| it[9] == 50)
        .map(|it| u32::from(u16::from_be_bytes([it[2], it[3]])) - HEADER_BYTES);
    let lengths: std::collections::BTreeSet<u32> = longest.collect();
    assert!(*lengths.last().unwrap() <= OUTER_BYTES, "{lengths:?}");
    assert!(*lengths.last().unwrap() > OUTER_BYTES - 20, "{lengths:?}");
    for name in ["XfrmInIptfsError", "XfrmOutNoQueueSpace"] {
        assert_eq!(pair.xb.counter(name), 0, "{name}");
    }
}
