//! Packets cost no allocation once a worker's memory has grown: counted, not believed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use dataplane::crypto::{AeadAlgorithm, AuthAlgorithm, CipherAlgorithm, EspTransform, mac};
use dataplane::drop_reason::DropReason;
use dataplane::netns::Limits;
use dataplane::packet::{Family, PacketBuf, ip4};
use dataplane::path::{
    Departure, InputMeta, OneRoute, OutputMeta, PathInfo, Received, Verdict, Worker,
};
use dataplane::profile::V7_2;
use dataplane::sad::construct::SaRequest;
use dataplane::sad::sa::IptfsConfig;
use dataplane::spd::{Policy, Templates};
use dataplane::time::BootNanos;
use dataplane::transform::ah::{Ah, AhParams};
use dataplane::transform::esp::Esp;
use dataplane::transform::ipcomp::IpComp;
use dataplane::transform::iptfs::{Popped, Receive, ReceiveParams, Send, SendParams, Sink};
use dataplane::transform::{
    Inbound, Mode, ModeParams, Protocol, Route, Scratch, Sequence, Transform,
};
use dataplane::{Context, Netns, Now, SeededEntropy};
use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, LifetimeCfg, Selector, UserPolicyInfo, UserSaInfo, UserTmpl};

struct Counting;

thread_local! {
    /// Of this thread: the test harness has a life of its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes on the heap.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; a counter beside it changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        HELD.set(HELD.get().wrapping_add(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Inner packets through an IPTFS queue and back, aggregated, split, and with payloads swapped.
#[test]
fn aggregation_allocates_nothing() {
    let config = IptfsConfig {
        drop_time_usecs: 1_000_000,
        reorder_window: 3,
        dont_frag: false,
        init_delay_usecs: 0,
        max_queue_bytes: 1 << 20,
        packet_bytes: 0,
    };
    let mut send = Send::new(SendParams {
        config,
        header_bytes: 40,
        icv_bytes: 16,
        block_bytes: 4,
    });
    let mut receive = Receive::new(&ReceiveParams { config, flags: 0 });
    let mut inner = [100usize, 4000, 600, 700, 1400].map(|bytes| {
        let mut packet = vec![0x45];
        packet.resize(bytes, 0);
        ip4::finish(&mut packet).unwrap();
        packet
    });
    let mut buffers = [0; 2].map(|_| PacketBuf::with_capacity(2048));
    let mut sink = Counted(0);
    let mut sequence = 0;
    let mut round = || {
        for packet in &mut inner {
            send.push(packet, (), 1500, BootNanos(0)).unwrap();
        }
        let mut is_first = true;
        loop {
            let mut filled = 0;
            for buffer in &mut buffers {
                match send.pop(BootNanos(0), |()| 1500, buffer) {
                    Some(popped) => assert_eq!(popped, Popped::Payload(&())),
                    None => break,
                }
                filled += 1;
            }
            // Two at a time, the second first, but for the very first that a receiver sees.
            for at in if is_first { [0, 1] } else { [1, 0] } {
                if at < filled {
                    let number = Sequence(sequence + at as u64 + 1);
                    receive.take(&mut buffers[at], number, BootNanos(0), &mut sink);
                }
            }
            is_first = false;
            sequence += filled as u64;
            if filled == 0 {
                break;
            }
        }
    };
    (0..3).for_each(|_| round());
    let before = ALLOCATIONS.get();
    (0..100).for_each(|_| round());
    let after = ALLOCATIONS.get();
    assert_eq!(after - before, 0);
    assert_eq!(sink.0, 103 * inner.len());
}

struct Counted(usize);

impl Sink for Counted {
    fn packet(&mut self, _packet: &mut [u8]) {
        self.0 += 1;
    }

    fn dropped(&mut self, reason: DropReason) {
        panic!("{reason:?}");
    }
}

#[test]
fn transforms_allocate_nothing() {
    let params = ModeParams {
        mode: Mode::Tunnel,
        family: Family::V4,
        selector_family: Some(Family::V4),
        src: Address::v4(10, 0, 0, 1),
        dst: Address::v4(10, 0, 0, 2),
        selector_src: Address::ANY,
        selector_dst: Address::ANY,
        flags: 0,
        extra_flags: 0,
    };
    let mut entropy = SeededEntropy::new(1);
    let gcm = EspTransform::aead(AeadAlgorithm::AesGcm, &[1; 20], 16, false, &mut entropy);
    let cipher = (CipherAlgorithm::AesCbc, &[1; 16][..]);
    let auth = (AuthAlgorithm::HmacSha1, &[1; 20][..]);
    let cbc = EspTransform::authenc(cipher, auth, 12, false, &mut entropy);
    let ah = AhParams {
        spi: 1,
        family: Family::V4,
        full_icv_bytes: 32,
        align4: false,
        esn: false,
    };
    let mac = mac(AuthAlgorithm::HmacSha256, &[1; 32], 16).unwrap();
    let protocols = [
        Protocol::Esp(Esp::new(1, gcm.unwrap(), 200)),
        Protocol::Esp(Esp::new(1, cbc.unwrap(), 0)),
        Protocol::Ah(Ah::new(&ah, mac)),
        Protocol::IpComp(IpComp::new(1, 90, &V7_2)),
    ];
    let mut inner = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2,
    ];
    inner.extend([0x61; 600]);
    ip4::finish(&mut inner).unwrap();

    let route = Route {
        hop_limit: 64,
        outer_mtu: 1500,
        inner_mtu: 1400,
        ident: 1,
    };
    let mut buffer = PacketBuf::with_capacity(2048);
    let mut scratch = Scratch::default();
    for protocol in protocols {
        let transform = Transform::new(&params, protocol, None);
        let mut round = |number: u64| {
            buffer.fill(&inner);
            let place = transform.place(&mut buffer, &route).unwrap();
            let sequence = Sequence(number);
            transform
                .seal(&mut buffer, &place, sequence, &route, &mut scratch)
                .unwrap();
            let inbound = Inbound::locate(&buffer, 0).unwrap();
            let opened = transform
                .open(&mut buffer, &inbound, sequence, &mut scratch)
                .unwrap();
            transform.unwrap(&mut buffer, &inbound, &opened).unwrap();
            ip4::receive(&mut buffer).unwrap();
            assert_eq!(*buffer, *inner);
        };
        round(1);
        let before = ALLOCATIONS.get();
        (2..100).for_each(&mut round);
        let after = ALLOCATIONS.get();
        assert_eq!(after - before, 0, "{:?}", transform.protocol());
    }
}

/// The host that packets go to, and come from.
const HOST: OneRoute = OneRoute {
    local: Address::v4(192, 0, 2, 2),
    path: PathInfo {
        mtu: 1500,
        hop_limit: 64,
    },
};

/// An SA of AES-128-GCM from 192.0.2.1 to 192.0.2.2.
fn tunnel(spi: u32) -> SaRequest<'static> {
    let mut request = SaRequest {
        info: UserSaInfo {
            lft: LifetimeCfg::UNLIMITED,
            family: AF_INET,
            mode: XFRM_MODE_TUNNEL,
            saddr: Address::v4(192, 0, 2, 1),
            ..UserSaInfo::default()
        },
        aead: Some(AlgoBlob::new("rfc4106(gcm(aes))", &[1; 20], 128)),
        ..SaRequest::default()
    };
    request.info.id.daddr = Address::v4(192, 0, 2, 2);
    request.info.id.spi = spi.into();
    request.info.id.proto = IPPROTO_ESP;
    request
}

/// An SA takes at most 1.5 KiB, once packets have passed it, indices included.
#[test]
fn an_sa_in_use_is_small() {
    // Tables double: this many fill them as a million would.
    const SAS: u32 = 125_000;
    const MOST_BYTES: usize = 1536;
    let before = HELD.get();
    let mut netns = Netns::new(&V7_2, Limits::default());
    let mut entropy = SeededEntropy::new(1);
    for spi in 1..=SAS {
        let cx = Context {
            now: Now::default(),
            entropy: &mut entropy,
            acqseq: &mut 0,
        };
        let sa = netns
            .sad
            .construct(&cx, &netns.sysctls, tunnel(spi))
            .unwrap();
        netns.sad.add(sa, Now::default()).unwrap();
    }
    for (_, sa) in netns.sad.iter() {
        assert!(sa.transform(&V7_2, &mut entropy).is_some());
    }
    let each = HELD.get().wrapping_sub(before) / SAS as usize;
    println!("{each} bytes an SA");
    assert!(each <= MOST_BYTES, "{each} bytes an SA");
}

/// The whole way out: policy, SA, counters, transform, fragments. And the whole way in again:
/// fragments, SA, window, transform, sec path, policy.
#[test]
fn a_worker_allocates_nothing() {
    let mut netns = Netns::new(&V7_2, Limits::default());
    let now = Now::default();
    let request = tunnel(1);
    let mut template = UserTmpl {
        family: AF_INET,
        saddr: request.info.saddr,
        mode: XFRM_MODE_TUNNEL,
        ..UserTmpl::default()
    };
    template.id = request.info.id;
    let cx = Context {
        now,
        entropy: &mut SeededEntropy::new(1),
        acqseq: &mut 0,
    };
    let sa = netns.sad.construct(&cx, &netns.sysctls, request).unwrap();
    netns.sad.add(sa, now).unwrap();
    let info = UserPolicyInfo {
        sel: Selector {
            family: AF_INET,
            ..Selector::default()
        },
        dir: XFRM_POLICY_OUT,
        ..UserPolicyInfo::default()
    };
    template.aalgos = u32::MAX;
    template.ealgos = u32::MAX;
    template.calgos = u32::MAX;
    for dir in [XFRM_POLICY_OUT, XFRM_POLICY_FWD] {
        let info = UserPolicyInfo { dir, ..info };
        let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::new([template]));
        netns.spd.insert(policy, true, now).unwrap();
    }

    let meta = OutputMeta {
        mark: 0,
        if_id: 0,
        ifindex: 2,
        socket: None,
        forwarded: true,
        bypasses: false,
        loopback: false,
        mtu: 1500,
        hop_limit: 64,
    };
    let mut worker = Worker::new(0, Box::new(SeededEntropy::new(2)));
    let mut buffer = PacketBuf::with_capacity(2048);
    let mut arriving = PacketBuf::with_capacity(2048);
    let mut inner = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2,
    ];
    for bytes in [600, 1500] {
        inner.resize(bytes, 0x61);
        ip4::finish(&mut inner).unwrap();
        let mut round = |flow: u8| {
            inner[19] = flow;
            ip4::finish(&mut inner).unwrap();
            buffer.fill(&inner);
            let mut pieces = 0;
            let mut sink = |packet: &mut PacketBuf, _: &Departure| {
                pieces += 1;
                arriving.fill(packet);
            };
            let verdict = worker.output(&netns, now, &mut buffer, &meta, &HOST, &mut sink);
            assert_eq!(verdict, Verdict::Sent(pieces));
            if pieces == 1 {
                let mut meta = InputMeta::default();
                if flow.is_multiple_of(2) {
                    let received = worker.receive(&netns, now, &mut arriving, &mut meta, &HOST);
                    assert_eq!(received, Received::Forward);
                } else {
                    let mut done =
                        |_: &mut PacketBuf, received| assert_eq!(received, Received::Forward);
                    let all = std::slice::from_mut(&mut arriving);
                    worker.receive_batch(&netns, now, all, &meta, &HOST, &mut done);
                }
                assert_eq!(*arriving, *inner);
            }
        };
        round(1);
        let before = ALLOCATIONS.get();
        // New flows are remembered in what is there already.
        (0..100).for_each(&mut round);
        let after = ALLOCATIONS.get();
        assert_eq!(after - before, 0, "{bytes} bytes");
    }
}
