//! IP Payload Compression (RFC 3173) with DEFLATE (RFC 2394).
//!
//! A payload that is short, or that does not get shorter, travels without a
//! header: in transport mode as if there were no SA, in tunnel mode as plain
//! IP in IP, which the receiver's hidden tunnel SA takes.
//!
//! Source: `net/xfrm/xfrm_ipcomp.c`.

use xfrm_proto::consts::IPPROTO_COMP;

use super::{Inbound, Opened, Place, Scratch};
use crate::drop_reason::DropReason;
use crate::packet::{PacketBuf, put};
use crate::profile::Profile;

const HEADER_BYTES: usize = 4;
/// The longest that a decompressed payload may be (`IPCOMP_SCRATCH_SIZE`).
const MAX_PLAIN_BYTES: usize = 65_400;

/// IPComp of one SA.
#[derive(Clone, Copy, Debug)]
pub struct IpComp {
    cpi: u16,
    /// Shorter payloads are left alone.
    threshold_bytes: usize,
    profile: &'static Profile,
}

impl IpComp {
    /// IPComp; the threshold is the algorithm's.
    #[must_use]
    pub const fn new(cpi: u16, threshold_bytes: usize, profile: &'static Profile) -> Self {
        Self {
            cpi,
            threshold_bytes,
            profile,
        }
    }

    /// Compresses (`ipcomp_output`).
    pub(super) fn seal(
        &self,
        packet: &mut PacketBuf,
        place: &Place,
        scratch: &mut Scratch,
    ) -> Result<(), DropReason> {
        let no_room = DropReason::OutNoRoom;
        let payload = packet.get(place.payload_at..).ok_or(no_room)?;
        if payload.len() < self.threshold_bytes {
            return Ok(());
        }
        // With its header it must not be longer than it was; releases before 7 want it shorter.
        let slack = usize::from(!self.profile.ipcomp_may_keep_length);
        let most = payload.len().saturating_sub(HEADER_BYTES + slack);
        let room = scratch.room(HEADER_BYTES + most);
        let next_header = *packet.get(place.next_header_at).ok_or(no_room)?;
        let [high, low] = self.cpi.to_be_bytes();
        put(room.bytes, 0, &[next_header, 0, high, low]).ok_or(no_room)?;
        let compressed = room
            .bytes
            .get_mut(HEADER_BYTES..)
            .and_then(|output| room.deflate.compress(payload, output));
        let Some(bytes) = compressed else {
            return Ok(());
        };
        let whole = room.bytes.get(..HEADER_BYTES + bytes).ok_or(no_room)?;
        packet
            .replace_tail(place.payload_at, whole)
            .ok_or(no_room)?;
        put(packet, place.next_header_at, &[IPPROTO_COMP]).ok_or(no_room)
    }

    /// Decompresses (`ipcomp_input`).
    pub(super) fn open(
        &self,
        packet: &mut PacketBuf,
        inbound: &Inbound,
        scratch: &mut Scratch,
    ) -> Result<Opened, DropReason> {
        let short = DropReason::CompShort;
        let (header, compressed) = packet
            .get(inbound.at..)
            .and_then(|rest| rest.split_first_chunk::<HEADER_BYTES>())
            .ok_or(short)?;
        let protocol = header[0];
        let room = scratch.room(MAX_PLAIN_BYTES);
        let bytes = room
            .deflate
            .decompress(compressed, room.bytes)
            .ok_or(DropReason::CompData)?;
        if bytes < compressed.len() + self.profile.ipcomp_least_growth_bytes {
            return Err(DropReason::CompGrew);
        }
        let plain = room.bytes.get(..bytes).ok_or(DropReason::CompData)?;
        packet
            .replace_tail(inbound.at, plain)
            .ok_or(DropReason::InNoRoom)?;
        Ok(Opened {
            at: inbound.at,
            protocol,
        })
    }
}
