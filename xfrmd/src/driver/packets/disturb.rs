//! Packets that meet faults, between the engine and the wire.
//!
//! What has left an SA, or has come from the wire, passes here while something is to go wrong with
//! packets; otherwise a look at a flag is all.

use std::fmt;
use std::sync::Arc;

use dataplane::BootNanos;
use dataplane::packet::PacketBuf;
use nix::poll::PollTimeout;
use xfrm_proto::consts::IPPROTO_UDP;
use xfrmd::faults::{Direction, Effect};

use crate::driver::clock;
use crate::driver::faults::Faults;
use crate::driver::observe::Sa;

/// After this time a packet is no longer kept for the next one.
const LONGEST_SWAP: u64 = 100_000_000;
/// Packets that are kept back at most, of a direction; more are lost, as in a router.
const MOST_KEPT: usize = 1024;

/// A packet that is kept back.
struct Kept<T> {
    due: BootNanos,
    /// It goes as soon as another has gone.
    swapped: bool,
    to: T,
    packet: PacketBuf,
}

/// One direction of a namespace; `T` is where its packets go.
pub(super) struct Disturbance<T> {
    direction: Direction,
    faults: Arc<Faults>,
    kept: Vec<Kept<T>>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    Lost,
    Twice,
    Kept { nanos: u64, swapped: bool },
}

impl<T: Copy> Disturbance<T> {
    pub(super) fn new(direction: Direction, faults: &Arc<Faults>) -> Self {
        Self {
            direction,
            faults: Arc::clone(faults),
            kept: Vec::new(),
        }
    }

    /// Whether packets have to pass here.
    pub(super) fn disturbs(&self) -> bool {
        self.faults.strike_packets() || !self.kept.is_empty()
    }

    /// How long until a packet that is kept back is due.
    pub(super) fn timeout(&self) -> Option<PollTimeout> {
        let due = self.kept.iter().map(|it| it.due).min()?;
        let nanos = due.0.saturating_sub(clock::uptime().0);
        let ms = i32::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i32::MAX);
        Some(PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX))
    }

    /// Packets that have been kept back long enough.
    pub(super) fn due(&mut self) -> Vec<(T, PacketBuf)> {
        if self.kept.is_empty() {
            return Vec::new();
        }
        let now = clock::uptime();
        let due = self.kept.extract_if(.., |it| it.due <= now);
        due.map(|it| (it.to, it.packet)).collect()
    }

    /// Lets those go on that do, in the order in which they do.
    pub(super) fn pass(
        &mut self,
        to: T,
        packets: &mut [PacketBuf],
        mut go: impl FnMut(T, &mut [PacketBuf]),
    ) {
        let fates: Vec<Fate> = packets.iter_mut().map(|it| self.fate(it)).collect();
        let mut rest = packets;
        for run in fates.chunk_by(|a, b| *a == Fate::Passes && *b == Fate::Passes) {
            let (these, others) = rest.split_at_mut(run.len());
            rest = others;
            match run.first() {
                Some(Fate::Passes) => {
                    // Only the first overtakes what is to change places.
                    let first = usize::from(self.kept.iter().any(|it| it.swapped));
                    let (first, others) = these.split_at_mut(first);
                    if !first.is_empty() {
                        go(to, first);
                        self.let_swapped_go(&mut go);
                    }
                    if !others.is_empty() {
                        go(to, others);
                    }
                }
                Some(Fate::Twice) => {
                    // Whoever takes the first may change it.
                    let mut copies: Vec<_> = these.iter().map(copy).collect();
                    go(to, these);
                    go(to, &mut copies);
                }
                Some(&Fate::Kept { nanos, swapped }) => {
                    self.keep_back(nanos, swapped, to, these);
                    continue;
                }
                Some(Fate::Lost) | None => continue,
            }
            self.let_swapped_go(&mut go);
        }
    }

    /// Those that waited for another one to go first.
    fn let_swapped_go(&mut self, go: &mut impl FnMut(T, &mut [PacketBuf])) {
        for mut it in self.kept.extract_if(.., |it| it.swapped) {
            go(it.to, std::slice::from_mut(&mut it.packet));
        }
    }

    fn keep_back(&mut self, nanos: u64, swapped: bool, to: T, packets: &[PacketBuf]) {
        let due = clock::uptime().plus_nanos(nanos);
        let room = MOST_KEPT.saturating_sub(self.kept.len());
        self.kept
            .extend(packets.iter().take(room).map(|packet| Kept {
                due,
                swapped,
                to,
                packet: copy(packet),
            }));
    }

    fn fate(&self, packet: &mut PacketBuf) -> Fate {
        let sa = Sa::of(packet);
        let spi = sa.as_ref().map(|sa| sa.spi);
        let shown = Shown {
            direction: self.direction,
            sa,
            bytes: packet.len(),
        };
        let struck = self
            .faults
            .packet(self.direction, spi, packet.len(), &shown);
        let mut fate = Fate::Passes;
        for strike in struck {
            match strike.effect {
                Effect::PacketLost | Effect::PacketTooBig => fate = Fate::Lost,
                Effect::PacketTwice => fate = Fate::Twice,
                Effect::PacketSwapped => {
                    fate = Fate::Kept {
                        nanos: LONGEST_SWAP,
                        swapped: true,
                    }
                }
                Effect::PacketLate(nanos) => {
                    fate = Fate::Kept {
                        nanos,
                        swapped: false,
                    }
                }
                Effect::PacketCorrupt => corrupt(packet, strike.random),
                _ => {}
            }
        }
        fate
    }
}

/// Another one, from the same place.
fn copy(packet: &PacketBuf) -> PacketBuf {
    let mut copy = PacketBuf::copy_of(packet);
    copy.set_origin(packet.origin());
    copy
}

/// Turns a bit over behind the sequence number.
fn corrupt(packet: &mut [u8], random: u64) {
    const SPI_AND_NUMBER: usize = 8;
    const UDP: usize = 8;
    let (header, protocol) = match packet {
        [first, _, _, _, _, _, _, _, _, protocol, ..] if *first >> 4 == 4 => {
            (usize::from(*first & 15) * 4, *protocol)
        }
        [first, _, _, _, _, _, next, ..] if *first >> 4 == 6 => (40, *next),
        _ => return,
    };
    let udp = if protocol == IPPROTO_UDP { UDP } else { 0 };
    let behind = packet
        .get_mut(header + udp + SPI_AND_NUMBER..)
        .unwrap_or_default();
    let bits = u64::try_from(behind.len() * 8).unwrap_or(0);
    let Some(bit) = random.checked_rem(bits) else {
        return;
    };
    let at = usize::try_from(bit / 8).unwrap_or(0);
    if let Some(byte) = behind.get_mut(at) {
        *byte ^= 1 << (bit % 8);
    }
}

/// A packet, as a log names it.
struct Shown {
    direction: Direction,
    sa: Option<Sa>,
    bytes: usize,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.direction {
            Direction::In => "in ",
            Direction::Out => "out ",
        })?;
        if let Some(sa) = &self.sa {
            write!(f, "{sa} ")?;
        }
        write!(f, "{} bytes", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::faults::keep;
    use xfrmd::faults::{Plan, scenario};

    fn disturbance(faults: &[&str]) -> Disturbance<()> {
        let mut plan = Plan::new(1);
        for fault in faults {
            plan.add(scenario::rule(fault).unwrap()).unwrap();
        }
        let faults = Faults::new(keep(&plan).unwrap());
        Disturbance::new(Direction::In, &Arc::new(faults))
    }

    /// ESP with this number.
    fn packet(number: u8) -> PacketBuf {
        let mut bytes = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 50, 0, 0];
        bytes.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, number]);
        bytes.resize(60, 0);
        PacketBuf::copy_of(&bytes)
    }

    /// Numbers of what passes when ten come at once.
    fn pass(disturbance: &mut Disturbance<()>) -> Vec<u8> {
        let mut packets: Vec<PacketBuf> = (0..10).map(packet).collect();
        let mut passed = Vec::new();
        disturbance.pass((), &mut packets, |(), packets| {
            passed.extend(packets.iter().map(|packet| packet[27]));
        });
        passed
    }

    #[test]
    fn packets_are_lost_doubled_and_swapped() {
        let cases: [(&str, &[u8]); 5] = [
            ("packet.lost every=2", &[0, 2, 4, 6, 8]),
            ("packet.twice nth=3", &[0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9]),
            ("packet.swapped nth=9", &[0, 1, 2, 3, 4, 5, 6, 7, 9, 8]),
            ("packet.late delay=1m nth=1 times=9", &[9]),
            ("packet.lost direction=out", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ];
        for (fault, expected) in cases {
            assert_eq!(pass(&mut disturbance(&[fault])), expected, "{fault}");
        }
    }

    #[test]
    fn what_is_kept_back_goes_when_it_is_due() {
        let mut late = disturbance(&["packet.late delay=0s nth=1"]);
        assert_eq!(pass(&mut late), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(late.disturbs() && late.timeout().is_some());
        let due = late.due();
        assert_eq!((due.len(), due[0].1[27]), (1, 0));
        // Behind the last one nothing comes.
        let mut last = disturbance(&["packet.swapped nth=10"]);
        assert_eq!(pass(&mut last), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(pass(&mut last)[..2], [0, 9]);
    }

    #[test]
    fn one_bit_is_another_behind_the_number() {
        for random in [0, 1, 255, 256, u64::MAX] {
            let mut changed = packet(1);
            corrupt(&mut changed, random);
            assert_eq!(changed[..28], packet(1)[..28]);
            let bits = |a: &[u8], b: &[u8]| -> u32 {
                a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
            };
            assert_eq!(bits(&changed, &packet(1)), 1);
        }
        for short in [&[][..], &[0x45], &[0x60; 30], &packet(1)[..28]] {
            let mut same = short.to_vec();
            corrupt(&mut same, 7);
            assert_eq!(same, short);
        }
    }
}
