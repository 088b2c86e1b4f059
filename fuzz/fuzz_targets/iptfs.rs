//! Any payloads, in any order and at any time, to the receiving side of an IPTFS SA.
//!
//! The input is a window, then steps: a sequence number, an eighth of a second to let pass, a
//! length, and so many bytes of payload.
#![no_main]

use dataplane::DropReason;
use dataplane::sad::sa::IptfsConfig;
use dataplane::time::BootNanos;
use dataplane::transform::Sequence;
use dataplane::transform::iptfs::{Receive, ReceiveParams, Sink};
use libfuzzer_sys::fuzz_target;

/// Bytes that came out, in packets as long as they say.
struct Bytes(usize);

impl Sink for Bytes {
    fn packet(&mut self, packet: &mut [u8]) {
        let stated = match packet[0] >> 4 {
            4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            6 => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
            version => panic!("version {version}"),
        };
        assert_eq!(packet.len(), stated);
        self.0 += packet.len();
    }

    fn dropped(&mut self, _reason: DropReason) {}
}

fuzz_target!(|input: &[u8]| {
    let Some((&[window, flags], mut rest)) = input.split_first_chunk() else {
        return;
    };
    let config = IptfsConfig {
        drop_time_usecs: 1_000_000,
        reorder_window: u16::from(window),
        dont_frag: false,
        init_delay_usecs: 0,
        max_queue_bytes: 0,
        packet_bytes: 0,
    };
    let mut receive = Receive::new(&ReceiveParams { config, flags });
    let (mut now, mut went_in, mut taken, mut out) = (BootNanos(0), 0, 0, Bytes(0));
    while let Some((&[sequence, later, bytes], tail)) = rest.split_first_chunk() {
        let (payload, tail) = tail.split_at(tail.len().min(usize::from(bytes)));
        rest = tail;
        now = now.plus_nanos(u64::from(later) * 125_000_000);
        went_in += payload.len();
        taken += 1;
        receive.handle_timeout(now, &mut out);
        let sequence = Sequence(u64::from(sequence));
        receive.take(&mut payload.to_vec(), sequence, now, &mut out);
        assert!(out.0 + receive.held_bytes() <= went_in);
    }
    // Time alone ends everything: each gap that is given up, and what then was begun.
    for _ in 0..=2 * taken {
        let Some(due) = receive.poll_timeout() else { break };
        receive.handle_timeout(due, &mut out);
        assert!(out.0 + receive.held_bytes() <= went_in);
    }
    assert!(receive.poll_timeout().is_none());
});
