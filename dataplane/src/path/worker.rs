//! What a packet thread has of its own.
//!
//! Nothing here is shared: a namespace may have any number of workers. Per
//! packet nothing is allocated once buffers have grown to the largest packet.

use crate::entropy::Entropy;
use crate::packet::PacketBuf;
use crate::packet::reassembly::{Limits, Reassembler};
use crate::path::admitted::Admitted;
use crate::path::aggregate::Inner;
use crate::path::arrivals::Arrivals;
use crate::path::flows::Flows;
use crate::path::request::Request;
use crate::transform::Scratch;

/// One packet thread's part of one namespace.
pub struct Worker {
    pub(super) flows: Flows,
    pub(super) arrivals: Arrivals,
    pub(super) admitted: Admitted,
    pub(super) tools: Tools,
    /// What has come out of IPTFS SAs.
    pub(super) inner: Inner,
}

/// What a packet needs on its way, whatever flow it is of.
pub(super) struct Tools {
    /// The CPU that it runs on, as SA_PCPU numbers them.
    pub(super) cpu: u32,
    pub(super) entropy: Box<dyn Entropy + Send>,
    pub(super) scratch: Scratch,
    /// Identification of the next outer header that needs one.
    pub(super) ident: u16,
    /// A fragment on its way out.
    pub(super) part: Option<Box<PacketBuf>>,
    /// A payload of an IPTFS SA on its way out.
    pub(super) payload: Option<Box<PacketBuf>>,
    /// Pieces of a large packet on their way out.
    pub(super) segments: Vec<PacketBuf>,
    /// Fragments that have come in.
    pub(super) reassembler: Reassembler,
    /// What the control thread has to do, in order.
    pub(super) requests: Vec<Request>,
}

impl Worker {
    /// A worker for a CPU. `entropy` makes IVs and identifications: two workers may not have
    /// the same sequence.
    #[must_use]
    pub fn new(cpu: u32, mut entropy: Box<dyn Entropy + Send>) -> Self {
        let [high, low, ..] = entropy.u32().to_be_bytes();
        Self {
            flows: Flows::default(),
            arrivals: Arrivals::default(),
            admitted: Admitted::default(),
            inner: Inner::default(),
            tools: Tools {
                cpu,
                entropy,
                scratch: Scratch::default(),
                ident: u16::from_be_bytes([high, low]),
                part: None,
                payload: None,
                segments: Vec::new(),
                reassembler: Reassembler::new(Limits::default()),
                requests: Vec::new(),
            },
        }
    }

    /// Whether the control thread has something to do.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.tools.requests.is_empty()
    }

    /// What packets have asked for, in order.
    pub fn drain_requests(&mut self) -> impl Iterator<Item = Request> + '_ {
        self.tools.requests.drain(..)
    }
}
