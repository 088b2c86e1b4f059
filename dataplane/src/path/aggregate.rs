//! IPTFS SAs on the packet path: packets wait in an SA's queue, and payloads in its window.
//!
//! What waits belongs to the SA and goes with it. Its timers are asked for as
//! [`Request::IptfsTimer`]; whoever finds one due in [`Netns::take_iptfs`] calls
//! [`Worker::run_iptfs`].
//!
//! A payload may hold many inner packets, or end one that began earlier. They
//! wait at the worker, in [`Worker::next_inner`], and enter anew one by one: an
//! inner packet may be protected again, by the same SA even.
//!
//! An inner packet has mark and interface of the outer packet that came last.
//! Linux gives it those of the one in which it began, which differ only when the
//! SA's packets come in different ways.
//!
//! Source: `net/xfrm/xfrm_iptfs.c iptfs_output_collect, iptfs_delay_timer, iptfs_input,
//! iptfs_drop_timer`; `net/xfrm/xfrm_input.c xfrm_input` (`encap_type` -2).

use std::collections::{BTreeSet, VecDeque};

use crate::drop_reason::DropReason;
use crate::netns::Netns;
use crate::packet::PacketBuf;
use crate::packet::buffer::MAX_PACKET;
use crate::path::bundle::{Bundle, Step};
use crate::path::output::{OutputMeta, Sink, Verdict};
use crate::path::receive::InputMeta;
use crate::path::request::Request;
use crate::path::worker::{Tools, Worker};
use crate::sad::sa::IptfsConfig;
use crate::sad::{Sa, SaHandle};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::time::{BootNanos, Now};
use crate::transform::iptfs::{self, Popped, PushError, Receive, ReceiveParams, Send};
use crate::transform::{Sequence, Transform};

/// Timers of IPTFS SAs.
pub(crate) type IptfsTimers = BTreeSet<(BootNanos, SaHandle)>;

/// What an IPTFS SA has beside its transform.
#[derive(Debug)]
pub(crate) struct Iptfs {
    send: Mutex<Send<Passage>>,
    incoming: Mutex<Incoming>,
}

/// The way of a packet that waits to be sent.
#[derive(Clone, Copy, Debug)]
struct Passage {
    bundle: Bundle,
    /// Which of its SAs the packet waits at.
    at: usize,
    mark: u32,
}

impl Passage {
    fn step(&self) -> Option<&Step> {
        self.bundle.steps().get(self.at)
    }

    fn outer_mtu(&self) -> u32 {
        self.step().map_or(0, |step| step.outer_mtu)
    }
}

#[derive(Debug)]
struct Incoming {
    receive: Receive,
    /// Of the newest payload.
    meta: InputMeta,
    /// The timer that has been asked for.
    timer: Option<BootNanos>,
}

impl Incoming {
    /// The timer to ask for, if there is none in time.
    fn set_timer(&mut self) -> Option<BootNanos> {
        let due = self.receive.poll_timeout()?;
        if self.timer.is_some_and(|timer| timer <= due) {
            return None;
        }
        self.timer = Some(due);
        Some(due)
    }
}

impl Iptfs {
    /// `None` for a transform of another mode.
    pub(crate) fn new(transform: &Transform, config: &IptfsConfig, flags: u8) -> Option<Self> {
        let receive = Receive::new(&ReceiveParams {
            config: *config,
            flags,
        });
        Some(Self {
            send: Mutex::new(Send::new(transform.iptfs_send_params(config)?)),
            incoming: Mutex::new(Incoming {
                receive,
                meta: InputMeta::default(),
                timer: None,
            }),
        })
    }

    fn send(&self) -> MutexGuard<'_, Send<Passage>> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Inner packets that wait at a worker, as bytes: a payload may hold thousands of them.
#[derive(Default)]
pub(super) struct Inner {
    data: VecDeque<u8>,
    lengths: VecDeque<usize>,
    /// How many packets came with what.
    batches: VecDeque<(InputMeta, usize)>,
}

impl Inner {
    fn push_batch(&mut self, meta: InputMeta, packets: usize) {
        if packets != 0 {
            self.batches.push_back((meta, packets));
        }
    }

    /// Moves the next one into the buffer; false when there is none.
    fn next(&mut self, packet: &mut PacketBuf, meta: &mut InputMeta) -> bool {
        let Some((with, left)) = self.batches.front_mut() else {
            return false;
        };
        *meta = *with;
        *left -= 1;
        if *left == 0 {
            self.batches.pop_front();
        }
        let bytes = self.lengths.pop_front().unwrap_or(0);
        let (front, back) = self.data.as_slices();
        let in_front = front.get(..bytes).unwrap_or(front);
        let behind = back.get(..bytes - in_front.len()).unwrap_or_default();
        let fits = packet.fill(in_front);
        match packet.push_back(behind.len()) {
            Some(room) if fits => room.copy_from_slice(behind),
            _ => packet.truncate(0),
        }
        self.data.drain(..bytes);
        if self.data.is_empty() && self.data.capacity() > MAX_PACKET {
            self.data.shrink_to(MAX_PACKET);
            self.lengths.shrink_to(MAX_PACKET / size_of::<usize>());
        }
        true
    }
}

/// Takes what comes out of a payload.
struct Inbox<'a> {
    netns: &'a Netns,
    inner: &'a mut Inner,
    packets: usize,
}

impl iptfs::Sink for Inbox<'_> {
    fn packet(&mut self, packet: &mut [u8]) {
        self.inner.data.extend(&*packet);
        self.inner.lengths.push_back(packet.len());
        self.packets += 1;
    }

    fn dropped(&mut self, reason: DropReason) {
        count(self.netns, reason);
    }
}

fn count(netns: &Netns, reason: DropReason) {
    if let Some(counter) = reason.counter() {
        netns.mib.count(counter);
    }
}

impl Netns {
    /// IPTFS SAs that have a timer due: [`Worker::run_iptfs`] is for them.
    pub fn take_iptfs(&mut self, now: BootNanos) -> Vec<SaHandle> {
        let mut due = Vec::new();
        while let Some(&(time, sa)) = self.iptfs_timers.first()
            && time <= now
        {
            self.iptfs_timers.pop_first();
            due.push(sa);
        }
        due
    }
}

impl Worker {
    /// Does what an IPTFS SA's timers are for: what is due to be sent goes to the sink, and what
    /// has been missed for too long is given up, so that what waited for it is in
    /// [`Worker::next_inner`].
    pub fn run_iptfs(&mut self, netns: &Netns, now: Now, handle: SaHandle, sink: &mut Sink<'_>) {
        let Some(iptfs) = netns.sad.by_handle(handle).and_then(Sa::iptfs) else {
            return;
        };
        self.tools.empty_queue(netns, now, iptfs, sink);
        let mut incoming = iptfs.incoming();
        if incoming.timer.is_some_and(|timer| timer <= now.boot) {
            incoming.timer = None;
        }
        self.open_payloads(netns, handle, &mut incoming, |receive, inbox| {
            receive.handle_timeout(now.boot, inbox);
        });
    }

    /// Whether packets came out of IPTFS SAs.
    #[must_use]
    pub fn has_inner(&self) -> bool {
        !self.inner.batches.is_empty()
    }

    /// Moves the next packet that came out of an IPTFS SA into the buffer, to be received
    /// ([`Worker::receive`]) with what is in `meta`; false when there is none. The buffer must
    /// have room for any packet.
    pub fn next_inner(&mut self, packet: &mut PacketBuf, meta: &mut InputMeta) -> bool {
        self.inner.next(packet, meta)
    }

    /// Takes what ESP left of an outer packet.
    pub(super) fn take_payload(
        &mut self,
        netns: &Netns,
        now: Now,
        payload: &mut PacketBuf,
        from: (SaHandle, Sequence),
        meta: &InputMeta,
    ) {
        let (handle, sequence) = from;
        let Some(iptfs) = netns.sad.by_handle(handle).and_then(Sa::iptfs) else {
            return;
        };
        let mut incoming = iptfs.incoming();
        incoming.meta = *meta;
        self.open_payloads(netns, handle, &mut incoming, |receive, inbox| {
            receive.take(payload, sequence, now.boot, inbox);
        });
    }

    fn open_payloads(
        &mut self,
        netns: &Netns,
        handle: SaHandle,
        incoming: &mut Incoming,
        run: impl FnOnce(&mut Receive, &mut Inbox<'_>),
    ) {
        let mut inbox = Inbox {
            netns,
            inner: &mut self.inner,
            packets: 0,
        };
        run(&mut incoming.receive, &mut inbox);
        let packets = inbox.packets;
        self.inner.push_batch(incoming.meta, packets);
        if let Some(due) = incoming.set_timer() {
            self.tools.requests.push(Request::IptfsTimer(due, handle));
        }
    }
}

impl Tools {
    /// Puts a packet into the queue of the SA at step `at` of its bundle.
    #[inline(never)]
    pub(super) fn enqueue(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        meta: &OutputMeta,
        passage: (&Bundle, usize, u32),
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let (&bundle, at, mark) = passage;
        let passage = Passage { bundle, at, mark };
        let gone = Verdict::Dropped {
            reason: DropReason::OutInvalid,
            errno: 0,
        };
        let Some(step) = passage.step() else {
            return gone;
        };
        let Some(iptfs) = netns.sad.by_handle(step.sa).and_then(Sa::iptfs) else {
            count(netns, DropReason::OutInvalid);
            return gone;
        };
        let pushed = iptfs.send().push(packet, passage, step.outer_mtu, now.boot);
        match pushed {
            Err(error) => return refuse(netns, meta, error),
            Ok(Some(due)) if due <= now.boot => {
                let sent = self.empty_queue(netns, now, iptfs, sink);
                return Verdict::Sent(sent);
            }
            Ok(Some(due)) => self.requests.push(Request::IptfsTimer(due, step.sa)),
            Ok(None) => {}
        }
        Verdict::Queued
    }

    /// Sends the payloads that are due; how many packets that made.
    fn empty_queue(
        &mut self,
        netns: &Netns,
        now: Now,
        iptfs: &Iptfs,
        sink: &mut Sink<'_>,
    ) -> usize {
        let buffer = self.payload.take();
        let mut payload = buffer.unwrap_or_else(|| Box::new(PacketBuf::with_capacity(MAX_PACKET)));
        let mut sent = 0;
        while let Some(sealed) = self.next_payload(netns, now, iptfs, &mut payload) {
            let Ok(mut passage) = sealed else { continue };
            passage.at += 1;
            if let Verdict::Sent(packets) = self.go_on(netns, now, &mut payload, &passage, sink) {
                sent += packets;
            }
        }
        self.payload = Some(payload);
        sent
    }

    /// Takes the next payload from the queue through its SA. The queue stays locked meanwhile,
    /// because payloads have to leave in the order of their sequence numbers.
    fn next_payload(
        &mut self,
        netns: &Netns,
        now: Now,
        iptfs: &Iptfs,
        payload: &mut PacketBuf,
    ) -> Option<Result<Passage, ()>> {
        let mut send = iptfs.send();
        let mut passage = match send.pop(now.boot, Passage::outer_mtu, payload)? {
            Popped::Payload(passage) => *passage,
            Popped::Dropped(_, reason) => {
                count(netns, reason);
                return Some(Err(()));
            }
        };
        let step = *passage.step()?;
        let passed = self.pass(netns, now, payload, &step, &mut passage.mark);
        Some(match passed {
            Ok(()) => Ok(passage),
            Err((reason, _)) => {
                count(netns, reason);
                send.abandon_rest();
                Err(())
            }
        })
    }

    /// Takes an outer packet through what is left of its bundle.
    fn go_on(
        &mut self,
        netns: &Netns,
        now: Now,
        packet: &mut PacketBuf,
        passage: &Passage,
        sink: &mut Sink<'_>,
    ) -> Verdict {
        let meta = OutputMeta::of_own(passage.mark);
        self.pass_from(
            netns,
            now,
            packet,
            (&passage.bundle, passage.at),
            &meta,
            sink,
        )
    }
}

/// QUIRK: iptfs_counts_only_forwarded_packets_as_too_big. Linux counts where the packet's
/// interface is known, and a local packet has none yet. Its sender hears of success, and of the
/// error only in its socket's error queue.
fn refuse(netns: &Netns, meta: &OutputMeta, error: PushError) -> Verdict {
    match error {
        PushError::Full => {
            count(netns, error.reason());
            Verdict::Dropped {
                reason: error.reason(),
                errno: 0,
            }
        }
        PushError::TooBig { mtu } if meta.forwarded => {
            count(netns, error.reason());
            Verdict::TooBig { mtu }
        }
        PushError::TooBig { .. } => Verdict::Dropped {
            reason: error.reason(),
            errno: 0,
        },
    }
}
