//! Any packets to an engine, in both directions: as they come, sealed by SAs that hide nothing
//! (null cipher, null MAC), sent out, with time passing in between.
//!
//! `cargo +nightly fuzz run packets`. The first byte picks the release; then the input is cut
//! into steps: what to do, how to seal, two bytes of length, the packet.
#![no_main]

use dataplane::netns::{Context, Limits};
use dataplane::packet::{PacketBuf, ip4};
use dataplane::path::{
    Destination, Host, InputMeta, OutputMeta, Owner, PathInfo, Received, RouteQuery, Routes,
    Verdict, Worker,
};
use dataplane::sad::construct::SaRequest;
use dataplane::spd::{Flow, Policy, SocketKey, Templates};
use dataplane::{BootNanos, Netns, Now, Profile, SeededEntropy, WallSecs};
use libfuzzer_sys::fuzz_target;
use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, BeU16, EncapTmpl, LifetimeCfg, Selector, UserPolicyInfo, UserSaInfo, UserTmpl,
};

const OWN: Address = Address::v4(192, 0, 2, 2);
const PEER: Address = Address::v4(192, 0, 2, 1);

struct Here;

impl Routes for Here {
    fn generation(&self) -> u64 {
        0
    }

    fn route(&self, query: &RouteQuery) -> Result<PathInfo, i32> {
        let mtu = 300 + 40 * u32::from(query.daddr.0[3]);
        Ok(PathInfo { mtu, hop_limit: 64 })
    }

    fn source(&self, _query: &RouteQuery) -> Result<Address, i32> {
        Ok(OWN)
    }
}

impl Host for Here {
    fn destination(&self, _family: u16, address: Address) -> Option<Destination> {
        let ifindex = i32::from(address.0[0] & 3);
        (address.0[0] != 9).then_some(Destination { is_local: address.0[1] == 0, ifindex })
    }

    fn owner(&self, flow: &Flow) -> Option<Owner> {
        let encap = (flow.dport & 3).min(2);
        Some(Owner { socket: SocketKey(1), encap })
    }
}

/// SAs 1 to 12 from the peer: ESP, AH and IPCOMP in each mode, some of them encapsulated, with
/// windows or limits; and one of each to it.
fn add_sas(netns: &mut Netns, cx: &mut Context<'_>) {
    let protos = [IPPROTO_ESP, IPPROTO_AH, IPPROTO_COMP];
    let modes = [XFRM_MODE_TUNNEL, XFRM_MODE_TRANSPORT, XFRM_MODE_BEET, XFRM_MODE_IPTFS];
    for (saddr, daddr, first) in [(PEER, OWN, 1), (OWN, PEER, 0x101)] {
        for nth in 0..12u32 {
            let mut request = SaRequest {
                info: UserSaInfo {
                    lft: LifetimeCfg::UNLIMITED,
                    family: AF_INET,
                    saddr,
                    mode: modes[nth as usize / 3],
                    reqid: 1 + nth / 3,
                    replay_window: if nth % 2 == 0 { 32 } else { 0 },
                    ..UserSaInfo::default()
                },
                ..SaRequest::default()
            };
            request.info.id.daddr = daddr;
            request.info.id.spi = (first + nth).into();
            request.info.id.proto = protos[nth as usize % 3];
            match request.info.id.proto {
                IPPROTO_ESP => {
                    request.crypt = Some(AlgoBlob::new("ecb(cipher_null)", &[], 0));
                    request.auth = Some(AlgoBlob::new("digest_null", &[], 0));
                }
                IPPROTO_AH => request.auth = Some(AlgoBlob::new("digest_null", &[], 0)),
                _ => request.comp = Some(AlgoBlob::new("deflate", &[], 0)),
            }
            if nth == 3 {
                request.encap = Some(EncapTmpl {
                    kind: UDP_ENCAP_ESPINUDP,
                    sport: BeU16::new(4500),
                    dport: BeU16::new(4500),
                    ..EncapTmpl::default()
                });
                request.info.lft.soft_packet_limit = 2;
                request.info.lft.hard_packet_limit = 9;
            }
            if request.info.mode == XFRM_MODE_IPTFS {
                request.dir = if first == 1 { XFRM_SA_DIR_IN } else { XFRM_SA_DIR_OUT };
                request.info.replay_window = 0;
            }
            let sa = netns.sad.construct(cx, &netns.sysctls, request);
            if let Ok(sa) = sa {
                let _ = netns.sad.add(sa, cx.now);
            }
        }
    }
}

/// Policies for addresses that begin with 10, 11, 12 and 13, for each mode.
fn add_policies(netns: &mut Netns, now: Now) {
    for dir in [XFRM_POLICY_IN, XFRM_POLICY_FWD, XFRM_POLICY_OUT] {
        for (net, mode) in (10u8..).zip([XFRM_MODE_TUNNEL, XFRM_MODE_TRANSPORT, XFRM_MODE_BEET]) {
            let (saddr, daddr) = if dir == XFRM_POLICY_OUT { (OWN, PEER) } else { (PEER, OWN) };
            let mut template = UserTmpl {
                family: AF_INET,
                saddr,
                reqid: u32::from(net) - 9,
                mode,
                aalgos: u32::MAX,
                ealgos: u32::MAX,
                calgos: u32::MAX,
                optional: u8::from(net == 12),
                ..UserTmpl::default()
            };
            template.id.daddr = daddr;
            template.id.proto = IPPROTO_ESP;
            let info = UserPolicyInfo {
                sel: Selector {
                    daddr: Address::v4(net, 0, 0, 0),
                    prefixlen_d: 8,
                    family: AF_INET,
                    ..Selector::default()
                },
                dir,
                lft: LifetimeCfg::UNLIMITED,
                ..UserPolicyInfo::default()
            };
            let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::new([template]));
            let _ = netns.spd.insert(policy, true, now);
        }
    }
}

/// A packet from the peer whose payload has passed the SA that `how` picks.
fn seal(how: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
    let spi = u32::from(how & 15);
    let next = match how >> 4 & 3 {
        0 => IPPROTO_IPIP,
        1 => IPPROTO_IPV6,
        2 => IPPROTO_UDP,
        _ => payload.first().copied().unwrap_or(IPPROTO_ESP),
    };
    let mut packet = vec![0x45, how, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    match spi % 3 {
        1 => {
            packet[9] = IPPROTO_ESP;
            packet.extend(spi.to_be_bytes());
            packet.extend(seq.to_be_bytes());
            packet.extend(payload);
            let pad = (payload.len() + 2).wrapping_neg() % 4;
            packet.extend((1..=pad).map(|nth| nth as u8));
            packet.extend([pad as u8, next]);
        }
        2 => {
            packet[9] = IPPROTO_AH;
            packet.extend([next, 1, 0, 0]);
            packet.extend(spi.to_be_bytes());
            packet.extend(seq.to_be_bytes());
            packet.extend(payload);
        }
        _ => {
            packet[9] = IPPROTO_COMP;
            packet.extend([next, 0, 0, spi as u8]);
            packet.extend(payload);
        }
    }
    let _ = ip4::finish(&mut packet);
    packet
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, mut rest)) = input.split_first() else { return };
    let profile = Profile::ALL[usize::from(first) % Profile::ALL.len()];
    let mut netns = Netns::new(profile, Limits { max_sas: 100, max_policies: 100 });
    netns.listeners.acquire = true;
    netns.listeners.aevents = first & 64 != 0;
    netns.sysctls.larval_drop = i32::from(first >> 7);
    let mut worker = Worker::new(0, Box::new(SeededEntropy::new(3)));
    let (mut entropy, mut acqseq, mut millis) = (SeededEntropy::new(1), 0, 0u64);
    let mut begun = false;
    let mut packet = PacketBuf::with_capacity(66_000);
    for seq in 1u32.. {
        let [what, how, low, high, after @ ..] = rest else { break };
        let now = Now {
            boot: BootNanos(millis * 1_000_000),
            real: WallSecs(1_700_000_000 + millis / 1000),
        };
        let mut cx = Context { now, entropy: &mut entropy, acqseq: &mut acqseq };
        if !std::mem::replace(&mut begun, true) {
            add_sas(&mut netns, &mut cx);
            add_policies(&mut netns, now);
        }
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (bytes, next) = after.split_at(len);
        rest = next;
        let sealed = match what >> 4 & 3 {
            0 => bytes.to_vec(),
            1 => seal(*how, seq, bytes),
            2 => seal(*how, seq, &seal(how.rotate_left(4), seq, bytes)),
            _ => seal(*how, u32::from(*low), bytes),
        };
        if !packet.fill(&sealed) {
            continue;
        }
        let mut left = 0;
        let mut sink = |_: &mut PacketBuf, _: &_| left += 1;
        match what & 7 {
            0..=3 => {
                let mut meta = InputMeta { mark: u32::from(what >> 6), ..InputMeta::default() };
                let got = worker.receive_alone(&mut netns, &mut cx, &mut packet, &mut meta, &Here);
                assert!(meta.path.len() <= XFRM_MAX_DEPTH);
                assert!(got != Received::Local || !packet.is_empty());
            }
            4..=6 => {
                let meta = OutputMeta {
                    mark: 0,
                    if_id: 0,
                    ifindex: 1,
                    socket: None,
                    forwarded: what & 8 != 0,
                    bypasses: false,
                    loopback: false,
                    mtu: 1500,
                    hop_limit: 64,
                };
                let verdict =
                    worker.output_alone(&mut netns, &mut cx, &mut packet, &meta, &Here, &mut sink);
                assert!(!matches!(verdict, Verdict::Sent(pieces) if pieces != left));
            }
            _ => {
                millis += u64::from(*how) * u64::from(*low);
                worker.timeout_alone(&mut netns, &mut cx, &Here, &mut sink);
            }
        }
        while netns.poll_event().is_some() {}
        let _ = netns.learn_mtu(&sealed, 0, &Here);
    }
});
