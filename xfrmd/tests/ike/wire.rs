//! What the wire showed.

use crate::flow::SECRET;

const UDP: u8 = 17;
const ESP: u8 = 50;
const AH: u8 = 51;
const IPCOMP: u8 = 108;

/// Packets by what they are. Anything else than these is plaintext.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) esp: u64,
    pub(crate) esp_in_udp: u64,
    pub(crate) ah: u64,
    pub(crate) ipcomp: u64,
    pub(crate) ike: u64,
}

impl Seen {
    /// Counts packets; panics when it sees plaintext.
    #[track_caller]
    pub(crate) fn of(packets: &[Vec<u8>]) -> Self {
        let mut seen = Self::default();
        for packet in packets {
            let (protocol, payload) = match packet.first().map_or(0, |first| first >> 4) {
                4 => (packet[9], &packet[usize::from(packet[0] & 15) * 4..]),
                6 => (packet[6], &packet[40..]),
                _ => continue,
            };
            let neighbours = protocol == 58 && (133..=137).contains(&payload[0])
                || (protocol == 58 || protocol == 0) && packet[24] == 0xff;
            if neighbours && packet[0] >> 4 == 6 {
                continue;
            }
            *match protocol {
                ESP => &mut seen.esp,
                AH => &mut seen.ah,
                IPCOMP => &mut seen.ipcomp,
                UDP => seen.udp(payload),
                _ => panic!("on the wire: {packet:02x?}"),
            } += 1;
            let shows = packet.windows(16).any(|part| part == &SECRET[..16]);
            // AH protects it, and hides nothing.
            assert!(!shows || protocol == AH, "plaintext: {packet:02x?}");
        }
        seen
    }

    #[track_caller]
    fn udp(&mut self, payload: &[u8]) -> &mut u64 {
        let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
        let ports = [port(0), port(2)];
        if ports.contains(&4500) && payload[8..].len() >= 8 && payload[8..12] != [0; 4] {
            &mut self.esp_in_udp
        } else {
            assert!(
                ports.contains(&500) || ports.contains(&4500),
                "on the wire: {payload:02x?}"
            );
            &mut self.ike
        }
    }
}
