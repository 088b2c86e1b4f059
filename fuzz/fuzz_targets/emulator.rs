//! Any bytes to a whole emulator: datagrams, receive calls and time.
//!
//! `cargo +nightly fuzz run emulator`. The input is cut into steps: a byte that
//! says what happens, two that say how much of the input is a datagram.
#![no_main]

use dataplane::netns::Limits;
use dataplane::{BootNanos, Now, Profile, SeededEntropy, WallSecs};
use libfuzzer_sys::fuzz_target;
use xfrm_proto::extack::AckOptions;
use xfrmd::emulator::{Emulator, Inputs, Peer};

fuzz_target!(|input: &[u8]| {
    let Some((&first, mut rest)) = input.split_first() else { return };
    let profile = Profile::ALL[usize::from(first) % Profile::ALL.len()];
    let mut emulator = Emulator::new(profile, Limits { max_sas: 1000, max_policies: 1000 });
    let netns = emulator.create_netns();
    for group in 1..=8 {
        emulator.set_listeners(netns, group, 1);
    }
    let mut entropy = SeededEntropy::new(1);
    let mut seconds = 1;
    while let [what, low, high, after @ ..] = rest {
        let now = Now {
            boot: BootNanos(seconds * 1_000_000_000),
            real: WallSecs(1_700_000_000 + seconds),
        };
        let options = AckOptions { cap_ack: what & 1 != 0, ext_ack: what & 2 != 0 };
        let port = 1 + u32::from(what >> 6);
        let peer = Peer { netns, port, options, privileged: true, recv_bytes: 0 };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (datagram, next) = after.split_at(len);
        rest = next;
        match what >> 2 & 7 {
            0..=4 => emulator.handle_datagram(Inputs { now, entropy: &mut entropy }, peer, datagram),
            5 => {
                emulator.handle_recv(peer);
            }
            6 => {
                seconds += u64::from(*low);
                emulator.handle_timeout(Inputs { now, entropy: &mut entropy });
            }
            _ => emulator.close_socket(netns, port),
        }
        while emulator.poll_datagram().is_some() {}
    }
});
