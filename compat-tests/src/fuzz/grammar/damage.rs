//! What is done to a request that was well formed, and what must not be left in one.

use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::reply::messages;

use super::Generator;

impl Generator {
    pub(super) fn damage(&mut self, bytes: &mut Vec<u8>) {
        match self.below(8) {
            0..4 => {
                for _ in 0..=self.below(3) {
                    let len = bytes.len() as u32;
                    if len > 16 {
                        let at = 16 + self.below(len - 16) as usize;
                        bytes[at] = match self.below(4) {
                            0 => bytes[at] ^ (1 << self.below(8)),
                            1 => 0,
                            2 => 255,
                            _ => self.below(256) as u8,
                        };
                    }
                }
            }
            4 => {
                let len = self.below(bytes.len() as u32 + 1) as usize;
                bytes.truncate(len.max(16));
                let len = (bytes.len() as u32).to_ne_bytes();
                bytes[..4].copy_from_slice(&len);
            }
            5 => {
                let (kind, payload) = self.any_attribute();
                bytes.resize(align4(bytes.len()), 0);
                bytes.extend_from_slice(&(payload.len() as u16 + 4).to_ne_bytes());
                bytes.extend_from_slice(&kind.to_ne_bytes());
                bytes.extend_from_slice(&payload);
                let len = (bytes.len() as u32).to_ne_bytes();
                bytes[..4].copy_from_slice(&len);
            }
            6 => {
                let extra = 1 + self.below(8) as usize;
                bytes.resize(bytes.len() + extra, self.below(256) as u8);
                let len = (bytes.len() as u32).to_ne_bytes();
                bytes[..4].copy_from_slice(&len);
            }
            _ => {
                let at = self.below(8) as usize;
                bytes[at] ^= 1 << self.below(4);
            }
        }
    }
}

/// Takes out what two honest runs may answer differently: SPIs drawn from a
/// range, and IPCOMP tunnels, whose hidden SA goes when a worker gets to it.
pub(super) fn tame(datagram: &mut [u8], survives_rebuild: bool) {
    let mut at = 0;
    let parts: Vec<(u16, usize, usize)> = messages(datagram)
        .map(|(header, message)| {
            let part = (header.kind, at, message.len());
            at += align4(message.len());
            part
        })
        .collect();
    for (kind, start, len) in parts {
        let message = &mut datagram[start..start + len];
        match kind {
            XFRM_MSG_NEWSPDINFO if !survives_rebuild => {
                message[4..6].copy_from_slice(&XFRM_MSG_GETSPDINFO.to_ne_bytes());
            }
            XFRM_MSG_NEWSA | XFRM_MSG_UPDSA if len >= 16 + 224 => {
                let body = &mut message[16..];
                if body[76] == IPPROTO_COMP && body[214] == XFRM_MODE_TUNNEL {
                    body[214] = XFRM_MODE_TRANSPORT;
                }
            }
            XFRM_MSG_ALLOCSPI if len >= 16 + 232 => {
                let body = &mut message[16..];
                let word = |at: usize| {
                    u32::from_ne_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
                };
                if word(224) < word(228) {
                    body.copy_within(224..228, 228);
                }
            }
            _ => {}
        }
    }
}
