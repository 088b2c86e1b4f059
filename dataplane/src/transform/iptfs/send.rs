//! The sending side: a queue of inner packets, emptied into outer payloads.
//!
//! Source: `net/xfrm/xfrm_iptfs.c iptfs_output_collect, iptfs_delay_timer, iptfs_output_queued,
//! iptfs_first_skb`. The first packet that enters an empty queue starts a timer of `init_delay`;
//! when it fires, all that is there leaves, in order: one payload for as many packets as fit, or
//! several for one that does not fit, the last of which then takes what still fits behind it.
//! A packet is only ever split when it is the first of a payload.
//!
//! What the caller needs to know of a packet's route travels with it as a `T`: an outer packet
//! takes the route of its first inner one.

use std::collections::VecDeque;

use super::{Header, KEPT_BYTES};
use crate::drop_reason::DropReason;
use crate::packet::buffer::TAILROOM;
use crate::packet::{Family, PacketBuf, ip4, ip6};
use crate::sad::sa::IptfsConfig;
use crate::time::BootNanos;
use crate::transform::esp::Esp;

/// Of ESP: pad length and next header.
const TRAILER_BYTES: u32 = 2;
const AGGFRAG_BYTES: u32 = 4;
const NANOS_PER_USEC: u64 = 1000;
const ECN_MASK: u8 = 3;
/// ECT(0) and ECT(1): the bits that tell them from CE and from no ECN.
const ECN_ECT: [u8; 2] = [1, 2];

/// What of an SA concerns the sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendParams {
    /// The SA's settings.
    pub config: IptfsConfig,
    /// Bytes in front of the data blocks, AGGFRAG header included
    /// ([`Transform::header_bytes`](crate::transform::Transform::header_bytes)).
    pub header_bytes: u32,
    /// Of the integrity check value.
    pub icv_bytes: u32,
    /// Of the cipher, at least 4.
    pub block_bytes: u32,
}

impl SendParams {
    /// Bytes of data blocks that an outer packet has room for (`iptfs_get_cur_pmtu`).
    ///
    /// QUIRK: iptfs_packet_size_forgets_the_trailer. Trailer and ICV come on top of an SA's own
    /// packet size.
    #[must_use]
    pub fn payload_limit(&self, outer_mtu: u32) -> u32 {
        let of_path = room_of(
            outer_mtu,
            self.header_bytes,
            self.icv_bytes,
            self.block_bytes,
        );
        match self.config.packet_bytes.checked_sub(self.header_bytes) {
            None | Some(0) => of_path,
            Some(of_sa) => of_path.min(of_sa),
        }
    }
}

/// Bytes of data blocks that fit into a packet of an SA (`__iptfs_get_inner_mtu`).
pub(in crate::transform) fn room(outer_mtu: u32, header_bytes: u32, esp: &Esp) -> u32 {
    room_of(outer_mtu, header_bytes, esp.icv_bytes(), esp.block_bytes())
}

/// QUIRK: iptfs_room_counts_whole_blocks_behind_the_header. The AGGFRAG header is encrypted, but
/// counted in front of the blocks. With blocks of more than four bytes Linux's packets are
/// therefore mostly longer than the path is wide, and get lost; those are shorter here.
///
/// QUIRK: iptfs_narrow_path_is_endless. Where not even the headers fit, nothing is split.
fn room_of(outer_mtu: u32, header_bytes: u32, icv_bytes: u32, block_bytes: u32) -> u32 {
    let Some(left) = outer_mtu.checked_sub(header_bytes.saturating_add(icv_bytes)) else {
        return u32::MAX;
    };
    let whole_blocks = |bytes: u32| bytes & !(block_bytes - 1);
    let as_linux = whole_blocks(left).checked_sub(TRAILER_BYTES);
    let encrypted = whole_blocks(left.saturating_add(AGGFRAG_BYTES));
    let fitting = encrypted.checked_sub(TRAILER_BYTES + AGGFRAG_BYTES);
    match (as_linux, fitting) {
        (Some(as_linux), Some(fitting)) if fitting != 0 => as_linux.min(fitting),
        _ => u32::MAX,
    }
}

/// Why a packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The queue is full. Linux then refuses the rest of a packet that was segmented, too.
    Full,
    /// The SA does not split, and the packet is longer than this: what the sender is told
    /// (ICMP too big). Linux counts it only for packets that are forwarded.
    TooBig {
        /// The longest that would be taken.
        mtu: u32,
    },
}

impl PushError {
    /// The counter that moves.
    #[must_use]
    pub const fn reason(self) -> DropReason {
        match self {
            Self::Full => DropReason::IptfsQueueFull,
            Self::TooBig { .. } => DropReason::IptfsTooBig,
        }
    }
}

/// What [`Send::pop`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Popped<'a, T> {
    /// A payload is in the buffer; the outer packet goes where its first inner packet goes.
    Payload(&'a T),
    /// A packet died in the queue.
    Dropped(&'a T, DropReason),
}

struct Waiting<T> {
    bytes: usize,
    tag: T,
}

/// The sending side of an SA.
pub struct Send<T> {
    params: SendParams,
    /// Inner packets, one behind the other.
    data: VecDeque<u8>,
    packets: VecDeque<Waiting<T>>,
    /// Of `packets`, those that leave now.
    leaving: usize,
    /// Bytes of those that do not.
    queued_bytes: u64,
    /// When all leave.
    deadline: Option<BootNanos>,
    /// What the payload in the making began with, and how much of that is still in `data`.
    first: Option<T>,
    rest_bytes: usize,
}

impl<T> std::fmt::Debug for Send<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Send")
            .field("params", &self.params)
            .field("packets", &self.packets.len())
            .field("bytes", &self.data.len())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<T> Send<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(params: SendParams) -> Self {
        Self {
            params,
            data: VecDeque::new(),
            packets: VecDeque::new(),
            leaving: 0,
            queued_bytes: 0,
            deadline: None,
            first: None,
            rest_bytes: 0,
        }
    }

    /// Puts an inner packet into the queue; beyond 95 of a hundred of its bound the packet is
    /// marked (CE) if it may be. Gives the time when all leave, if this packet has set it.
    ///
    /// # Errors
    /// No room, or too long for an SA that does not split.
    pub fn push(
        &mut self,
        packet: &mut [u8],
        tag: T,
        outer_mtu: u32,
        now: BootNanos,
    ) -> Result<Option<BootNanos>, PushError> {
        let config = &self.params.config;
        if config.dont_frag {
            let mtu = self.params.payload_limit(outer_mtu);
            if packet.len() as u64 > u64::from(mtu) {
                return Err(PushError::TooBig { mtu });
            }
        }
        let bytes = self.queued_bytes + packet.len() as u64;
        if bytes > u64::from(config.max_queue_bytes) {
            return Err(PushError::Full);
        }
        if bytes > u64::from(config.max_queue_bytes) * 95 / 100 {
            mark_congestion(packet);
        }
        self.data.extend(&*packet);
        self.packets.push_back(Waiting {
            bytes: packet.len(),
            tag,
        });
        self.queued_bytes = bytes;
        if self.deadline.is_some() {
            return Ok(None);
        }
        let delay = u64::from(config.init_delay_usecs) * NANOS_PER_USEC;
        self.deadline = Some(now.plus_nanos(delay));
        Ok(self.deadline)
    }

    /// When [`Send::pop`] has something to give.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootNanos> {
        match self.is_leaving() {
            true => Some(BootNanos(0)),
            false => self.deadline,
        }
    }

    /// Whether payloads of an earlier moment have not been fetched.
    fn is_leaving(&self) -> bool {
        self.leaving != 0 || self.rest_bytes != 0
    }

    /// Puts the next payload that is due into `out`; to be called until it gives nothing.
    ///
    /// `outer_mtu` says how wide the path of a packet is (`child_mtu_cached`).
    pub fn pop(
        &mut self,
        now: BootNanos,
        outer_mtu: impl FnOnce(&T) -> u32,
        out: &mut PacketBuf,
    ) -> Option<Popped<'_, T>> {
        if !self.is_leaving() {
            self.shrink();
            if self.deadline.is_none_or(|deadline| deadline > now) {
                return None;
            }
            self.deadline = None;
            self.leaving = self.packets.len();
            self.queued_bytes = 0;
        }
        let block_offset = self.rest_bytes;
        if block_offset == 0 {
            let next = self.next_leaving()?;
            self.rest_bytes = next.bytes;
            self.first = Some(next.tag);
        }
        let room = self.params.payload_limit(outer_mtu(self.first.as_ref()?));
        let result = self.fill(block_offset, room, out);
        if result.is_err() {
            self.abandon_rest();
        }
        let first = self.first.as_ref()?;
        Some(match result {
            Ok(()) => Popped::Payload(first),
            Err(reason) => Popped::Dropped(first, reason),
        })
    }

    /// Forgets what is left of an inner packet of which a piece could not be sent: the others
    /// would be of no use.
    pub fn abandon_rest(&mut self) {
        self.data.drain(..self.rest_bytes);
        self.rest_bytes = 0;
    }

    fn next_leaving(&mut self) -> Option<Waiting<T>> {
        self.leaving = self.leaving.checked_sub(1)?;
        self.packets.pop_front()
    }

    /// Makes a payload of what is left of the packet under way, and of packets that fit behind it.
    fn fill(
        &mut self,
        block_offset: usize,
        room: u32,
        out: &mut PacketBuf,
    ) -> Result<(), DropReason> {
        let mut room = usize::try_from(room).unwrap_or(usize::MAX);
        if self.params.config.dont_frag && self.rest_bytes > room {
            // The path has become narrower since it was let in.
            return Err(DropReason::IptfsTooBig);
        }
        let header = Header::write(u16::try_from(block_offset).unwrap_or(u16::MAX));
        let piece = self.rest_bytes.min(room);
        if !out.fill(&header) || out.tailroom() < piece + TAILROOM {
            return Err(DropReason::OutNoRoom);
        }
        room = room.min(out.tailroom() - TAILROOM);
        self.move_to(out, piece).ok_or(DropReason::OutNoRoom)?;
        self.rest_bytes -= piece;
        room -= piece;
        while self.rest_bytes == 0 && self.packets.front().is_some_and(|next| next.bytes <= room) {
            let Some(next) = self.next_leaving() else {
                break;
            };
            self.move_to(out, next.bytes).ok_or(DropReason::OutNoRoom)?;
            room -= next.bytes;
        }
        Ok(())
    }

    fn move_to(&mut self, out: &mut PacketBuf, bytes: usize) -> Option<()> {
        let room = out.push_back(bytes)?;
        let (front, back) = self.data.as_slices();
        let from_front = bytes.min(front.len());
        let (first, second) = room.split_at_mut_checked(from_front)?;
        first.copy_from_slice(front.get(..from_front)?);
        second.copy_from_slice(back.get(..bytes - from_front)?);
        self.data.drain(..bytes);
        Some(())
    }

    /// Gives back what a long queue took.
    fn shrink(&mut self) {
        if self.packets.is_empty() && self.data.capacity() > KEPT_BYTES {
            self.data.shrink_to(KEPT_BYTES);
            self.packets
                .shrink_to(KEPT_BYTES / size_of::<Waiting<T>>().max(1));
        }
    }
}

/// `IP_ECN_set_ce`, `IP6_ECN_set_ce`.
fn mark_congestion(packet: &mut [u8]) {
    match Family::of(packet) {
        Some(Family::V4) => {
            if let Some(header) = ip4::Header::parse(packet)
                && ECN_ECT.contains(&(header.tos & ECN_MASK))
            {
                ip4::set_tos(packet, header.tos | ECN_MASK);
            }
        }
        Some(Family::V6) => {
            if let Some(header) = ip6::Header::parse(packet)
                && ECN_ECT.contains(&(header.traffic_class & ECN_MASK))
            {
                ip6::set_traffic_class(packet, header.traffic_class | ECN_MASK);
            }
        }
        None => {}
    }
}
