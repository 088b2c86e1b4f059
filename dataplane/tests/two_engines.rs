//! Two engines joined in memory: what one sends, the other takes, over a wire that loses,
//! repeats and reorders, while SAs are replaced under way. Nothing that came through the wire in
//! time is lost, nothing is accepted twice, and every counter is accounted for.
//!
//! For a long run: `XFRMD_SOAK_PACKETS=20000000 cargo test --release -p dataplane --test two_engines`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use std::collections::{BTreeMap, VecDeque};

use dataplane::mib::Counter;
use dataplane::netns::{Context, Limits};
use dataplane::packet::{PacketBuf, ip4};
use dataplane::path::{InputMeta, OneRoute, OutputMeta, PathInfo, Received, Verdict, Worker};
use dataplane::profile::V7_2;
use dataplane::sad::SaId;
use dataplane::sad::construct::SaRequest;
use dataplane::spd::{Policy, Templates};
use dataplane::{BootNanos, Entropy, Netns, Now, SeededEntropy, WallSecs};
use xfrm_proto::algo::AlgoBlob;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{
    Address, LifetimeCfg, ReplayStateEsn, Selector, UserPolicyInfo, UserSaInfo, UserTmpl,
};
use zerocopy::IntoBytes;

/// Packets of both directions, unless `XFRMD_SOAK_PACKETS` says another number.
const PACKETS: u64 = if cfg!(debug_assertions) {
    100_000
} else {
    2_000_000
};
/// SAs are replaced after so many packets of one direction.
const REKEY: u64 = 5_000;
/// A packet is overtaken by no more than this many, so that the window still takes it.
const MOST_DELAY: usize = 40;
const WINDOW: u32 = 64;
const LEFT: Address = Address::v4(192, 0, 2, 1);
const RIGHT: Address = Address::v4(192, 0, 2, 2);

struct Engine {
    netns: Netns,
    worker: Worker,
    here: OneRoute,
    /// First bytes of addresses behind it, and behind the other one.
    nets: [u8; 2],
    entropy: SeededEntropy,
    acqseq: u32,
    /// The SA that sends, and those that receive, newest last.
    sending: Option<SaId>,
    receiving: VecDeque<SaId>,
    accepted: BTreeMap<u64, u32>,
}

/// An algorithm with a key of this SA's own.
fn blob(name: &str, key_bytes: usize, icv_bits: u32, spi: u32) -> AlgoBlob {
    let mut key = vec![0; key_bytes];
    key[..4].copy_from_slice(&spi.to_be_bytes());
    AlgoBlob::new(name, &key, icv_bits)
}

impl Engine {
    fn new(own: Address, nets: [u8; 2], seed: u64) -> Self {
        Self {
            netns: Netns::new(&V7_2, Limits::default()),
            worker: Worker::new(0, Box::new(SeededEntropy::new(seed))),
            here: OneRoute {
                local: own,
                path: PathInfo {
                    mtu: 1500,
                    hop_limit: 64,
                },
            },
            nets,
            entropy: SeededEntropy::new(seed + 1),
            acqseq: 0,
            sending: None,
            receiving: VecDeque::new(),
            accepted: BTreeMap::new(),
        }
    }

    fn add_sa(&mut self, now: Now, ends: [Address; 2], spi: u32) -> SaId {
        let [saddr, daddr] = ends;
        let mut request = SaRequest {
            info: UserSaInfo {
                lft: LifetimeCfg::UNLIMITED,
                family: AF_INET,
                mode: XFRM_MODE_TUNNEL,
                saddr,
                reqid: 1,
                flags: XFRM_STATE_ESN,
                ..UserSaInfo::default()
            },
            ..SaRequest::default()
        };
        request.info.id.daddr = daddr;
        request.info.id.spi = spi.into();
        request.info.id.proto = IPPROTO_ESP;
        // Each pair of SAs another algorithm.
        match spi / 2 % 3 {
            0 => request.aead = Some(blob("rfc4106(gcm(aes))", 20, 128, spi)),
            1 => request.aead = Some(blob("rfc7539esp(chacha20,poly1305)", 36, 128, spi)),
            _ => {
                request.crypt = Some(blob("cbc(aes)", 16, 0, spi));
                request.auth = Some(blob("hmac(sha256)", 32, 128, spi));
            }
        }
        let head = ReplayStateEsn {
            bmp_len: WINDOW / 32,
            replay_window: WINDOW,
            ..ReplayStateEsn::default()
        };
        let mut esn = head.as_bytes().to_vec();
        esn.resize(esn.len() + WINDOW as usize / 8, 0);
        request.params.esn = Some(&esn);
        let cx = Context {
            now,
            entropy: &mut self.entropy,
            acqseq: &mut self.acqseq,
        };
        let sa = self.netns.sad.construct(&cx, &self.netns.sysctls, request);
        self.netns.sad.add(sa.unwrap(), now).unwrap()
    }

    fn add_policy(&mut self, now: Now, dir: u8, nets: [u8; 2], ends: [Address; 2]) {
        let [saddr, daddr] = ends;
        let mut template = UserTmpl {
            family: AF_INET,
            saddr,
            reqid: 1,
            mode: XFRM_MODE_TUNNEL,
            aalgos: u32::MAX,
            ealgos: u32::MAX,
            calgos: u32::MAX,
            ..UserTmpl::default()
        };
        template.id.daddr = daddr;
        template.id.proto = IPPROTO_ESP;
        let info = UserPolicyInfo {
            sel: Selector {
                saddr: Address::v4(nets[0], 0, 0, 0),
                daddr: Address::v4(nets[1], 0, 0, 0),
                prefixlen_s: 8,
                prefixlen_d: 8,
                family: AF_INET,
                ..Selector::default()
            },
            dir,
            lft: LifetimeCfg::UNLIMITED,
            ..UserPolicyInfo::default()
        };
        let policy = Policy::new(&info, XFRM_POLICY_TYPE_MAIN, Templates::new([template]));
        self.netns.spd.insert(policy, true, now).unwrap();
    }

    /// Sends packet `number`; what goes onto the wire.
    fn send(&mut self, now: Now, number: u64) -> Vec<u8> {
        let mut inner = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        inner.extend([
            self.nets[0],
            0,
            0,
            1,
            self.nets[1],
            0,
            0,
            (number % 7) as u8,
        ]);
        inner.extend([0x10, 0, 0x20, (number % 5) as u8, 0, 0, 0, 0]);
        inner.extend(number.to_be_bytes());
        inner.resize(inner.len() + (number * 37 % 1300) as usize, number as u8);
        ip4::finish(&mut inner).unwrap();
        let mut packet = PacketBuf::copy_of(&inner);
        let meta = OutputMeta {
            mark: 0,
            if_id: 0,
            ifindex: 1,
            socket: None,
            forwarded: true,
            bypasses: false,
            loopback: false,
            mtu: 1500,
            hop_limit: 64,
        };
        let mut wire = Vec::new();
        let mut sink = |packet: &mut PacketBuf, _: &_| wire.push(packet.to_vec());
        let verdict =
            self.worker
                .output(&self.netns, now, &mut packet, &meta, &self.here, &mut sink);
        assert_eq!(verdict, Verdict::Sent(1));
        wire.pop().unwrap()
    }

    /// Takes what comes from the wire.
    fn take(&mut self, now: Now, bytes: &[u8]) {
        let mut packet = PacketBuf::copy_of(bytes);
        let mut meta = InputMeta::default();
        let received = self
            .worker
            .receive(&self.netns, now, &mut packet, &mut meta, &self.here);
        match received {
            Received::Forward => {
                let number = u64::from_be_bytes(*packet[28..].first_chunk().unwrap());
                *self.accepted.entry(number).or_default() += 1;
            }
            Received::Dropped(_) => {}
            other => panic!("{other:?}"),
        }
        assert!(!self.worker.has_requests());
    }
}

/// One direction of the wire.
#[derive(Default)]
struct Wire {
    /// Packets under way, with the step at which they arrive.
    under_way: Vec<(u64, u64, Vec<u8>)>,
    lost: u64,
    repeated: u64,
}

impl Wire {
    fn carry(&mut self, dice: &mut SeededEntropy, step: u64, number: u64, bytes: Vec<u8>) {
        let roll = dice.u32();
        if roll.is_multiple_of(50) {
            self.lost += 1;
            return;
        }
        let delay = |dice: &mut SeededEntropy| u64::from(dice.u32()) % MOST_DELAY as u64;
        if roll.is_multiple_of(31) {
            self.repeated += 1;
            let at = step + delay(dice);
            self.under_way.push((at, number, bytes.clone()));
        }
        let at = if roll.is_multiple_of(3) {
            step + delay(dice)
        } else {
            step
        };
        self.under_way.push((at, number, bytes));
    }

    fn arrivals(&mut self, step: u64) -> Vec<Vec<u8>> {
        let mut due: Vec<_> = self
            .under_way
            .extract_if(.., |entry| entry.0 <= step)
            .collect();
        due.sort_by_key(|entry| entry.0);
        due.into_iter().map(|(_, _, bytes)| bytes).collect()
    }
}

/// Gives `from` a new SA to `to`. The old one goes when the next comes, long after its last packet.
fn rekey(now: Now, from: &mut Engine, to: &mut Engine, spi: u32) {
    let ends = [from.here.local, to.here.local];
    let receiving = to.add_sa(now, ends, spi);
    to.receiving.push_back(receiving);
    if to.receiving.len() > 2 {
        let oldest = to.receiving.pop_front().unwrap();
        to.netns.sad.delete(oldest).unwrap();
    }
    let sending = from.add_sa(now, ends, spi);
    if let Some(old) = from.sending.replace(sending) {
        from.netns.sad.delete(old).unwrap();
    }
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice() {
    let mut left = Engine::new(LEFT, [10, 20], 100);
    let mut right = Engine::new(RIGHT, [20, 10], 200);
    let at = |step: u64| Now {
        boot: BootNanos(step * 1_000_000),
        real: WallSecs(1_700_000_000 + step / 1000),
    };
    for (own, other) in [(&mut left, RIGHT), (&mut right, LEFT)] {
        let (ends, nets) = ([own.here.local, other], own.nets);
        own.add_policy(at(0), XFRM_POLICY_OUT, nets, ends);
        let back = ([nets[1], nets[0]], [ends[1], ends[0]]);
        own.add_policy(at(0), XFRM_POLICY_FWD, back.0, back.1);
    }
    let mut dice = SeededEntropy::new(7);
    let (mut there, mut back) = (Wire::default(), Wire::default());
    let mut spi = 0x1000;
    let packets = std::env::var("XFRMD_SOAK_PACKETS").map_or(PACKETS, |text| text.parse().unwrap());
    let end = packets / 2;
    for step in 0..end + MOST_DELAY as u64 {
        let now = at(step);
        if step.is_multiple_of(REKEY) {
            rekey(now, &mut left, &mut right, spi);
            rekey(now, &mut right, &mut left, spi + 1);
            spi += 2;
        }
        if step < end {
            there.carry(&mut dice, step, step, left.send(now, step));
            back.carry(&mut dice, step, step, right.send(now, step));
        }
        for bytes in there.arrivals(step) {
            right.take(now, &bytes);
        }
        for bytes in back.arrivals(step) {
            left.take(now, &bytes);
        }
    }
    for (engine, wire) in [(&right, &there), (&left, &back)] {
        assert!(wire.under_way.is_empty());
        assert_eq!(engine.accepted.len() as u64, end - wire.lost);
        assert!(engine.accepted.values().all(|&times| times == 1));
        for &counter in Counter::ALL {
            let expected = match counter {
                Counter::InStateSeqError => wire.repeated,
                _ => 0,
            };
            assert_eq!(engine.netns.mib.value(counter), expected, "{counter:?}");
        }
        let (lost, repeated) = (wire.lost, wire.repeated);
        println!("{end} packets, {lost} lost, {repeated} repeated, {spi:#x} the last SPI");
    }
}
