//! The receiving side: data blocks, and inner packets put together again.
//!
//! Source: `net/xfrm/xfrm_iptfs.c iptfs_input, iptfs_input_ordered, iptfs_reassem_cont,
//! __input_process_payload, iptfs_drop_timer`.
//!
//! One inner packet is under way at most. Of its beginning as little may have come that its
//! length is not known yet (a runt): six bytes have it. What it says about its length is believed,
//! but nothing is allocated before the bytes are there.

use std::cmp::Ordering;

use xfrm_proto::consts::XFRM_STATE_DECAP_DSCP;

use super::reorder::Window;
use super::{Header, KEPT_BYTES, Sink};
use crate::drop_reason::DropReason;
use crate::packet::{Family, be16, ip4, ip6};
use crate::sad::sa::IptfsConfig;
use crate::time::BootNanos;
use crate::transform::Sequence;

/// Bytes of a packet that tell its length, of either family.
const RUNT_BYTES: usize = 6;
const NANOS_PER_USEC: u64 = 1000;
const ECN_MASK: u8 = 3;

/// What of an SA concerns the receiving side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveParams {
    /// The SA's settings.
    pub config: IptfsConfig,
    /// `XFRM_STATE_*`.
    pub flags: u8,
}

/// The receiving side of an SA.
pub struct Receive {
    window: Window,
    assembly: Assembly,
}

impl std::fmt::Debug for Receive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receive")
            .field("window", &self.window)
            .field("under_way", &self.assembly.state)
            .finish_non_exhaustive()
    }
}

impl Receive {
    /// A receiver that nothing has come to.
    #[must_use]
    pub fn new(params: &ReceiveParams) -> Self {
        let config = &params.config;
        let drop_nanos = u64::from(config.drop_time_usecs) * NANOS_PER_USEC;
        Self {
            window: Window::new(config.reorder_window, drop_nanos),
            assembly: Assembly {
                state: State::Idle,
                packet: Vec::new(),
                want: 0,
                deadline: None,
                drop_nanos,
                takes_dscp: params.flags & XFRM_STATE_DECAP_DSCP != 0,
                keeps_dscp: false,
            },
        }
    }

    /// Takes what ESP left of an outer packet: an AGGFRAG header and data blocks.
    ///
    /// What the payload is said to be (next header) is not asked: QUIRK:
    /// iptfs_takes_any_next_header.
    pub fn take(
        &mut self,
        payload: &mut [u8],
        sequence: Sequence,
        now: BootNanos,
        sink: &mut impl Sink,
    ) {
        let assembly = &mut self.assembly;
        let mut in_order = |payload: &mut [u8], sequence: u64| {
            if let Err(reason) = assembly.take(payload, sequence, now, sink) {
                sink.dropped(reason);
            }
        };
        let taken = self.window.take(payload, sequence.0, now, &mut in_order);
        if let Err(reason) = taken {
            sink.dropped(reason);
        }
    }

    /// Bytes that wait for others.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.window.held_bytes() + self.assembly.packet.len()
    }

    /// When [`Receive::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootNanos> {
        let times = [self.window.poll_timeout(), self.assembly.deadline];
        times.into_iter().flatten().min()
    }

    /// Gives up what has been missing for too long.
    pub fn handle_timeout(&mut self, now: BootNanos, sink: &mut impl Sink) {
        let is_over = |time: Option<BootNanos>| time.is_some_and(|time| time <= now);
        let window_is_over = is_over(self.window.poll_timeout());
        // What the window gives up would have continued the packet under way.
        if window_is_over || is_over(self.assembly.deadline) {
            if matches!(self.assembly.state, State::Partial { .. }) {
                self.assembly.forget();
                sink.dropped(DropReason::IptfsTimeout);
            }
            self.assembly.deadline = None;
        }
        let assembly = &mut self.assembly;
        self.window.expire(now, &mut |payload, sequence| {
            if let Err(reason) = assembly.take(payload, sequence, now, sink) {
                sink.dropped(reason);
            }
        });
    }
}

/// What has come of an inner packet that ends in a later payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none.
    Idle,
    /// Fewer than six bytes.
    Runt,
    /// So many are to be there in the end.
    Partial { total_bytes: usize },
}

/// The inner packet that is under way.
struct Assembly {
    state: State,
    /// What has come of it.
    packet: Vec<u8>,
    /// Sequence number of the payload that continues it.
    want: u64,
    /// When it is given up.
    deadline: Option<BootNanos>,
    drop_nanos: u64,
    /// The SA has DECAP_DSCP.
    takes_dscp: bool,
    /// The packet under way has its DSCP none the less.
    keeps_dscp: bool,
}

/// What a payload had for the packet under way.
enum Resumed {
    /// Some of it, perhaps the rest.
    Continued { complete: bool },
    /// Nothing, and nothing else either.
    Elsewhere,
    /// Not what it should have had.
    Failed(DropReason),
}

/// What begins at some offset of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// An inner packet of so many bytes, which may end in a later payload.
    Packet { bytes: usize },
    /// The beginning of one, too short to say how long it is.
    Runt,
    /// Nothing more.
    Padding,
}

impl Block {
    /// What `rest`, the rest of a payload, begins with; it is not empty.
    fn first_of(rest: &[u8]) -> Result<Self, DropReason> {
        let version = rest.first().map_or(0, |byte| byte >> 4);
        match version {
            0 => Ok(Self::Padding),
            4 if rest.len() < 4 => Ok(Self::Runt),
            6 if rest.len() < RUNT_BYTES => Ok(Self::Runt),
            4 => {
                let bytes = stated_bytes(rest).ok_or(DropReason::IptfsInner)?;
                let header_bytes = rest.first().map_or(0, |byte| usize::from(byte & 15) * 4);
                if header_bytes < ip4::HEADER_BYTES || bytes < header_bytes {
                    return Err(DropReason::IptfsInner);
                }
                Ok(Self::Packet { bytes })
            }
            6 => {
                let bytes = stated_bytes(rest).ok_or(DropReason::IptfsInner)?;
                Ok(Self::Packet { bytes })
            }
            _ => Err(DropReason::IptfsVersion),
        }
    }
}

/// Length that an IP packet states of itself; `None` when it is too short to.
fn stated_bytes(packet: &[u8]) -> Option<usize> {
    match Family::of(packet)? {
        Family::V4 => be16(packet, 2).map(usize::from),
        Family::V6 => be16(packet, 4).map(|bytes| usize::from(bytes) + ip6::HEADER_BYTES),
    }
}

impl Assembly {
    /// Takes a payload in its turn.
    fn take(
        &mut self,
        payload: &mut [u8],
        sequence: u64,
        now: BootNanos,
        sink: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let header = Header::parse(payload)?;
        let blocks = payload.get_mut(header.bytes..).unwrap_or_default();
        let under_way = self.state != State::Idle;
        let mut at = 0;
        let mut is_complete = false;
        if under_way || header.block_offset != 0 {
            at = header.block_offset.min(blocks.len());
            match self.resume(blocks, header.block_offset, sequence, now) {
                Resumed::Continued { complete } => is_complete = complete,
                Resumed::Elsewhere => return Ok(()),
                Resumed::Failed(reason) => {
                    self.forget();
                    sink.dropped(reason);
                }
            }
        }
        // QUIRK: iptfs_bad_block_takes_the_good_ones_along. Linux collects what a payload holds,
        // and hands on nothing when something in it is wrong.
        if let Err(reason) = check(blocks.get(at..).unwrap_or_default()) {
            if is_complete {
                self.forget();
            }
            return Err(reason);
        }
        if is_complete {
            if self.takes_dscp && !self.keeps_dscp {
                clear_dscp(&mut self.packet);
            }
            sink.packet(&mut self.packet);
            self.forget();
        }
        self.split(
            blocks.get_mut(at..).unwrap_or_default(),
            sequence,
            now,
            sink,
        );
        Ok(())
    }

    /// Takes what `blocks` begin with, up to `offset`, for the packet under way.
    fn resume(&mut self, blocks: &[u8], offset: usize, sequence: u64, now: BootNanos) -> Resumed {
        if self.state == State::Idle {
            return Resumed::Continued { complete: false };
        }
        match sequence.cmp(&self.want) {
            // Without a window packets come in any order.
            Ordering::Less => return Resumed::Elsewhere,
            Ordering::Greater => return Resumed::Failed(DropReason::IptfsLost),
            Ordering::Equal => {}
        }
        if offset == 0 {
            // QUIRK: iptfs_all_is_padding_for_a_packet_under_way. RFC 9347 2.2.3 lets padding stand
            // between the pieces; Linux does not look whether it is padding.
            self.want = self.want.saturating_add(1);
            return Resumed::Elsewhere;
        }
        let state = match self.state {
            State::Runt => match self.length_of_runt(blocks, offset) {
                Some(total_bytes) => {
                    self.deadline = Some(now.plus_nanos(self.drop_nanos));
                    State::Partial { total_bytes }
                }
                None => return Resumed::Failed(DropReason::IptfsFragment),
            },
            state => state,
        };
        let State::Partial { total_bytes } = state else {
            return Resumed::Continued { complete: false };
        };
        let missing = total_bytes.saturating_sub(self.packet.len());
        if offset < missing {
            return Resumed::Failed(DropReason::IptfsFragment);
        }
        let piece = blocks.get(..missing).unwrap_or(blocks);
        self.packet.extend_from_slice(piece);
        self.state = state;
        self.want = self.want.saturating_add(1);
        Resumed::Continued {
            complete: piece.len() == missing,
        }
    }

    /// Length of a packet of whose beginning `blocks` has the rest.
    fn length_of_runt(&self, blocks: &[u8], offset: usize) -> Option<usize> {
        let mut begin = [0; RUNT_BYTES];
        let (here, there) = begin.split_at_mut_checked(self.packet.len())?;
        here.copy_from_slice(&self.packet);
        if offset < there.len() {
            return None;
        }
        there.copy_from_slice(blocks.get(..there.len())?);
        let family = Family::of(&begin)?;
        stated_bytes(&begin).filter(|&bytes| bytes >= family.header_bytes())
    }

    /// Hands on the packets that `blocks` holds, and keeps the beginning of one that goes on.
    fn split(
        &mut self,
        mut blocks: &mut [u8],
        sequence: u64,
        now: BootNanos,
        sink: &mut impl Sink,
    ) {
        let mut is_first = true;
        while let Ok(block) = Block::first_of(blocks) {
            match block {
                Block::Packet { bytes } if bytes <= blocks.len() => {
                    let (packet, rest) = std::mem::take(&mut blocks).split_at_mut(bytes);
                    if self.takes_dscp && !is_first {
                        clear_dscp(packet);
                    }
                    sink.packet(packet);
                    blocks = rest;
                }
                Block::Packet { bytes } => {
                    self.start(State::Partial { total_bytes: bytes }, blocks, sequence);
                    self.keeps_dscp = is_first && has_header(blocks);
                    self.deadline = Some(now.plus_nanos(self.drop_nanos));
                    return;
                }
                Block::Runt => return self.start(State::Runt, blocks, sequence),
                Block::Padding => return,
            }
            is_first = false;
        }
    }

    fn start(&mut self, state: State, beginning: &[u8], sequence: u64) {
        self.forget();
        self.state = state;
        self.keeps_dscp = false;
        self.packet.extend_from_slice(beginning);
        self.want = sequence.saturating_add(1);
    }

    /// There is no packet under way any more.
    fn forget(&mut self) {
        self.state = State::Idle;
        self.deadline = None;
        self.packet.clear();
        if self.packet.capacity() > KEPT_BYTES {
            self.packet.shrink_to(KEPT_BYTES);
        }
    }
}

/// Whether `blocks` are what they have to be, to their end or to padding.
fn check(mut blocks: &[u8]) -> Result<(), DropReason> {
    loop {
        match Block::first_of(blocks)? {
            Block::Packet { bytes } if bytes < blocks.len() => {
                blocks = blocks.get(bytes..).unwrap_or_default();
            }
            _ => return Ok(()),
        }
    }
}

/// Whether the IP header that `packet` begins with is all there.
fn has_header(packet: &[u8]) -> bool {
    match Family::of(packet) {
        Some(Family::V4) => ip4::Header::parse(packet).is_some(),
        Some(Family::V6) => packet.len() >= ip6::HEADER_BYTES,
        None => false,
    }
}

/// QUIRK: iptfs_decap_dscp_clears_all_but_the_first. What Linux copies is not the outer packet's
/// DSCP: the packet that begins first in a payload has its own left, the others get none. CE of
/// the outer packet is never copied.
fn clear_dscp(packet: &mut [u8]) {
    match Family::of(packet) {
        Some(Family::V4) => {
            if let Some(header) = ip4::Header::parse(packet) {
                ip4::set_tos(packet, header.tos & ECN_MASK);
            }
        }
        Some(Family::V6) => {
            if let Some(header) = ip6::Header::parse(packet) {
                ip6::set_traffic_class(packet, header.traffic_class & ECN_MASK);
            }
        }
        None => {}
    }
}
