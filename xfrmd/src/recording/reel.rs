//! Writing a recording: who numbers what happens, and the control plane's part of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dataplane::{BootNanos, Now};

use super::format::{
    ANSWER, END, HAPPENED, HEAD, Head, INNER, Kept, NETLINK, NUMBERS_EACH, OUTER, OWN, To,
    write_answer, write_recall, write_step,
};
use super::keys;
use super::pcapng::{
    Block, COOKED_BYTES, EPB_PACKETID, LINK_COOKED, LINK_NETLINK, OPT_COMMENT, netlink_header,
    section,
};
use crate::tape::{Heard, Step, Tape};

/// The largest packet with its header; Wireshark takes no larger ones.
const MOST_BYTES: u32 = 262_144;
/// Records of kept state in one block, so that none is too large for others who read the file.
const KEPT_EACH: usize = 64;

/// Where blocks go. Whoever hands them over does not wait.
pub trait Sink: Send + Sync {
    /// Takes blocks; false if they are lost because there are too many, which blocks that `must` be
    /// there never are.
    fn take(&self, blocks: &[u8], must: bool) -> bool;
}

/// A recording in memory; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    /// All that has been written, which is then no longer there.
    #[must_use]
    pub fn take_bytes(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Memory {
    fn take(&self, blocks: &[u8], _must: bool) -> bool {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend_from_slice(blocks);
        true
    }
}

/// A recording that is being made.
pub struct Reel {
    last: AtomicU64,
    keys: bool,
    /// When it began: boot time, and nanoseconds since 1970.
    began: (BootNanos, u64),
    sink: Box<dyn Sink>,
}

impl Reel {
    /// Begins one. `nanos` since 1970 is what the clock shows at `boot`: times in the file go on from
    /// there as boot time does, also where that is virtual.
    #[must_use]
    pub fn begin(head: &Head, boot: BootNanos, nanos: u64, sink: Box<dyn Sink>) -> Arc<Self> {
        let reel = Self {
            last: AtomicU64::new(0),
            keys: head.keys,
            began: (boot, nanos),
            sink,
        };
        let mut out = Vec::new();
        let interfaces = [
            (LINK_NETLINK, "netlink", "NETLINK_XFRM"),
            (LINK_COOKED, "outer", "packets as they are on the wire"),
            (LINK_COOKED, "inner", "packets as the host has them"),
        ];
        debug_assert_eq!([NETLINK, OUTER, INNER], [0, 1, 2]);
        section(&mut out, MOST_BYTES, Some(&head.comment()), &interfaces);
        let mut block = Block::begin(&mut out, OWN);
        block.option(HEAD, &head.encode());
        block.end();
        reel.sink.take(&out, true);
        Arc::new(reel)
    }

    /// Goes on with one whose daemon was killed, the `generation`th time, with what it had kept; keys
    /// are in that.
    #[must_use]
    pub fn go_on(
        head: &Head,
        boot: BootNanos,
        nanos: u64,
        sink: Box<dyn Sink>,
        (generation, kept): (u64, &[Kept<'_>]),
    ) -> Arc<Self> {
        let reel = Self::begin(head, boot, nanos, sink);
        let number = generation.saturating_mul(NUMBERS_EACH);
        reel.last.store(number, Ordering::SeqCst);
        let mut out = Vec::new();
        for some in kept.chunks(KEPT_EACH) {
            let mut block = Block::begin(&mut out, OWN);
            some.iter().for_each(|kept| kept.put(&mut block));
            block.end();
        }
        let mut option = Vec::new();
        write_recall(&mut option, number, head.limits);
        let mut block = Block::begin(&mut out, OWN);
        block.option(HAPPENED, &option);
        block.end();
        reel.sink.take(&out, true);
        reel
    }

    /// Ends it: whoever reads it knows that nothing is missing.
    pub fn end(&self) {
        let mut out = Vec::new();
        let mut block = Block::begin(&mut out, OWN);
        let last = self.last.load(Ordering::SeqCst);
        block.option(END, &last.to_ne_bytes());
        block.end();
        self.sink.take(&out, true);
    }

    /// The number of what happens now.
    pub(super) fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// What the clock shows at a boot time.
    pub(super) fn nanos(&self, boot: BootNanos) -> u64 {
        let (began, nanos) = self.began;
        nanos.saturating_add(boot.0.saturating_sub(began.0))
    }

    /// Writes a step of the control plane and what came of it.
    pub(super) fn step<'a>(
        &self,
        boot: BootNanos,
        step: &Step<'_>,
        drawn: &[u64],
        fate: &str,
        answers: impl IntoIterator<Item = (To, &'a [u8])>,
    ) {
        let nanos = self.nanos(boot);
        let number = self.number();
        let mut out = Vec::new();
        let mut option = Vec::new();
        write_step(&mut option, number, step, drawn, fate);
        if let Step::Request { bytes, .. } = step {
            self.message(&mut out, (nanos, true), bytes, (HAPPENED, &option), number);
        } else {
            let mut block = Block::begin(&mut out, OWN);
            block.option(HAPPENED, &option);
            block.end();
        }
        for (to, bytes) in answers {
            option.clear();
            write_answer(&mut option, number, to);
            self.message(&mut out, (nanos, false), bytes, (ANSWER, &option), number);
        }
        self.sink.take(&out, true);
    }

    /// Whether keys are recorded.
    pub(super) const fn has_keys(&self) -> bool {
        self.keys
    }

    pub(super) fn sink(&self) -> &dyn Sink {
        &*self.sink
    }

    /// Appends a netlink message as a packet, and its options.
    fn message(
        &self,
        out: &mut Vec<u8>,
        (nanos, to_kernel): (u64, bool),
        bytes: &[u8],
        (code, option): (u16, &[u8]),
        number: u64,
    ) {
        let len = COOKED_BYTES + bytes.len();
        let mut block = Block::packet(out, NETLINK, nanos, [len, len]);
        block.put(&netlink_header(to_kernel));
        let zeroed = if self.keys {
            block.put(bytes);
            false
        } else {
            let mut bytes = bytes.to_vec();
            let zeroed = keys::zero(&mut bytes);
            block.put(&bytes);
            zeroed
        };
        block.pad();
        if zeroed {
            block.option(OPT_COMMENT, b"keys left out");
        }
        block.option(EPB_PACKETID, &number.to_ne_bytes());
        block.option(code, option);
        block.end();
    }
}

/// Records what an emulator is asked.
pub struct ControlTape {
    reel: Arc<Reel>,
    boot: BootNanos,
}

impl ControlTape {
    /// For [`Emulator::record`](crate::emulator::Emulator::record).
    #[must_use]
    pub fn new(reel: Arc<Reel>) -> Self {
        let boot = reel.began.0;
        Self { reel, boot }
    }
}

fn time(step: &Step<'_>) -> Option<Now> {
    match *step {
        Step::Request { now, .. }
        | Step::SocketPolicy { now, .. }
        | Step::Timers { now, .. }
        | Step::Inquiries { now, .. } => Some(now),
        _ => None,
    }
}

impl Tape for ControlTape {
    fn hear(&mut self, step: &Step<'_>, heard: Heard<'_>) {
        self.boot = time(step).map_or(self.boot, |now| now.boot);
        let fate = match heard.errno {
            0 => String::new(),
            errno => format!("errno {errno}"),
        };
        let answers = heard.datagrams().map(|datagram| {
            let to = To::Client(datagram.netns, datagram.to);
            (to, datagram.bytes)
        });
        self.reel.step(self.boot, step, heard.drawn, &fate, answers);
    }
}
