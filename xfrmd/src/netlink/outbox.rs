//! Datagrams on their way to clients: one buffer for all, reused.

use std::collections::VecDeque;
use std::ops::Range;

use crate::emulator::NetnsId;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To one socket.
    Port(u32),
    /// To every member of a group, 1 to 32.
    Group(u32),
}

/// A datagram to deliver.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The namespace to deliver it in.
    pub netns: NetnsId,
    /// The receiver or receivers.
    pub to: Destination,
    /// One or more messages.
    pub bytes: &'a [u8],
}

/// Datagrams that go the same way, oldest first: as many as follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The namespace to deliver them in.
    pub netns: NetnsId,
    /// The receiver or receivers.
    pub to: Destination,
    bytes: &'a [u8],
    ranges: &'a [Range<usize>],
}

impl<'a> Batch<'a> {
    /// Each datagram's messages.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.ranges
            .iter()
            .map(|range| bytes.get(range.clone()).unwrap_or_default())
    }
}

/// The queue.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    queue: VecDeque<(NetnsId, Destination, Range<usize>)>,
    batch: Vec<Range<usize>>,
}

impl Outbox {
    /// Appends a datagram of whatever `write` writes; nothing when it writes nothing.
    pub(crate) fn send(
        &mut self,
        netns: NetnsId,
        to: Destination,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.queue.is_empty() {
            self.bytes.clear();
        }
        let start = self.bytes.len();
        write(&mut self.bytes);
        if self.bytes.len() > start {
            self.queue.push_back((netns, to, start..self.bytes.len()));
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Those that have come after so many others.
    pub(crate) fn since(&self, count: usize) -> impl Iterator<Item = Datagram<'_>> {
        self.queue
            .range(count.min(self.len())..)
            .map(|(netns, to, range)| Datagram {
                netns: *netns,
                to: *to,
                bytes: self.bytes.get(range.clone()).unwrap_or_default(),
            })
    }

    pub(crate) fn pop(&mut self) -> Option<Datagram<'_>> {
        let (netns, to, range) = self.queue.pop_front()?;
        Some(Datagram {
            netns,
            to,
            bytes: self.bytes.get(range)?,
        })
    }
    pub(crate) fn pop_batch(&mut self) -> Option<Batch<'_>> {
        let (netns, to, first) = self.queue.pop_front()?;
        self.batch.clear();
        self.batch.push(first);
        while let Some((next_netns, next_to, _)) = self.queue.front()
            && (*next_netns, *next_to) == (netns, to)
            && let Some((_, _, range)) = self.queue.pop_front()
        {
            self.batch.push(range);
        }
        Some(Batch {
            netns,
            to,
            bytes: &self.bytes,
            ranges: &self.batch,
        })
    }
}
