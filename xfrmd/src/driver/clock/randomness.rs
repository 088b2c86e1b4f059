//! The random numbers that the engine is given.

use dataplane::Entropy;
use dataplane::SeededEntropy;

use crate::driver::host;

/// Where random numbers come from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Source {
    /// The host.
    #[default]
    Host,
    /// A seed, for runs that are to be alike. Nothing is secret then.
    Seed(u64),
}

impl Source {
    /// A stream of its own for each `user`: packet threads must not depend on who is first.
    pub(crate) fn stream(self, user: u64) -> Randomness {
        match self {
            Self::Host => Randomness::Host(HostEntropy::default()),
            Self::Seed(seed) => {
                let mut mixed = SeededEntropy::new(seed);
                Randomness::Seeded(SeededEntropy::new(
                    mixed.u64() ^ user.wrapping_mul(0xd134_2543_de82_ef95),
                ))
            }
        }
    }

    /// After a restart there must be other numbers than before it.
    pub(crate) fn of_generation(self, generation: u32) -> Self {
        match self {
            Self::Seed(seed) if generation > 0 => {
                Self::Seed(seed ^ u64::from(generation).rotate_left(32))
            }
            same => same,
        }
    }
}

/// Random numbers.
#[expect(
    clippy::large_enum_variant,
    reason = "there are few, and the usual one is the large one"
)]
pub(crate) enum Randomness {
    Host(HostEntropy),
    Seeded(SeededEntropy),
}

impl Entropy for Randomness {
    fn u64(&mut self) -> u64 {
        match self {
            Self::Host(host) => host.u64(),
            Self::Seeded(seeded) => seeded.u64(),
        }
    }
}

/// The host's random numbers, a few hundred bytes at a time.
pub(crate) struct HostEntropy {
    buffer: [u8; 512],
    used: usize,
}

impl Default for HostEntropy {
    fn default() -> Self {
        Self {
            buffer: [0; 512],
            used: 512,
        }
    }
}

impl Entropy for HostEntropy {
    fn u64(&mut self) -> u64 {
        if self.used + 8 > self.buffer.len() {
            host::random(&mut self.buffer);
            self.used = 0;
        }
        let bytes = self
            .buffer
            .get(self.used..)
            .and_then(<[u8]>::first_chunk)
            .copied()
            .unwrap_or_default();
        self.used += 8;
        u64::from_ne_bytes(bytes)
    }
}
