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
use std::sync::atomic::{AtomicU64, Ordering};

use dataplane::SeededEntropy;
use dataplane::crypto::{AeadAlgorithm, AuthAlgorithm, CipherAlgorithm, EspTransform, mac};
use dataplane::drop_reason::DropReason;
use dataplane::packet::{Family, PacketBuf, ip4};
use dataplane::profile::V7_2;
use dataplane::sad::sa::IptfsConfig;
use dataplane::time::BootNanos;
use dataplane::transform::ah::{Ah, AhParams};
use dataplane::transform::esp::Esp;
use dataplane::transform::ipcomp::IpComp;
use dataplane::transform::iptfs::{Popped, Receive, ReceiveParams, Send, SendParams, Sink};
use dataplane::transform::{
    Inbound, Mode, ModeParams, Protocol, Route, Scratch, Sequence, Transform,
};
use xfrm_proto::uapi::Address;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; a counter beside it changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test for all: what another one allocates meanwhile would count too.
#[test]
fn packets_cost_no_allocation() {
    transforms();
    aggregation();
}

/// Inner packets through an IPTFS queue and back, aggregated, split, and with payloads swapped.
fn aggregation() {
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
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..100).for_each(|_| round());
    let after = ALLOCATIONS.load(Ordering::Relaxed);
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

fn transforms() {
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
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (2..100).for_each(&mut round);
        let after = ALLOCATIONS.load(Ordering::Relaxed);
        assert_eq!(after - before, 0, "{:?}", transform.protocol());
    }
}
