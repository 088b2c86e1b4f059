//! What a packet thread has of its own.
//!
//! Nothing here is shared: a namespace may have any number of workers. Per
//! packet nothing is allocated once buffers have grown to the largest packet.

use crate::entropy::Entropy;
use crate::path::request::Request;
use crate::transform::Scratch;

/// One packet thread.
pub struct Worker {
    #[expect(dead_code, reason = "output comes next")]
    /// The CPU that it runs on, as SA_PCPU numbers them.
    pub(super) cpu: u32,
    #[expect(dead_code, reason = "output comes next")]
    pub(super) entropy: Box<dyn Entropy + Send>,
    #[expect(dead_code, reason = "output comes next")]
    pub(super) scratch: Scratch,
    /// What the control thread has to do, in order.
    pub(super) requests: Vec<Request>,
}

impl Worker {
    /// A worker for a CPU. `entropy` makes IVs and identifications: two workers may not have
    /// the same sequence.
    #[must_use]
    pub fn new(cpu: u32, entropy: Box<dyn Entropy + Send>) -> Self {
        Self {
            cpu,
            entropy,
            scratch: Scratch::default(),
            requests: Vec::new(),
        }
    }

    /// Whether the control thread has something to do.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// What packets have asked for, in order.
    pub fn drain_requests(&mut self) -> impl Iterator<Item = Request> + '_ {
        self.requests.drain(..)
    }
}
