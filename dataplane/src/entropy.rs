//! Randomness, as an argument.

/// A source of random numbers.
pub trait Entropy {
    /// 64 random bits.
    fn u64(&mut self) -> u64;

    /// 32 random bits.
    fn u32(&mut self) -> u32 {
        (self.u64() >> 32) as u32
    }

    /// A number in `0..bound` (0 for a bound of 0), as Linux's `get_random_u32_below` draws it.
    fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.u32()) * u64::from(bound)) >> 32) as u32
    }
}

/// A repeatable source: `SplitMix64`. For tests and for runs that must replay.
#[derive(Clone, Debug)]
pub struct SeededEntropy(u64);

impl SeededEntropy {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Entropy for SeededEntropy {
    fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
