//! Sums of products in the field of POLYVAL, reduced once.

use std::arch::x86_64::*;

use super::vector::*;
use super::{POWERS, Schedule};

/// A sum of products that have not been reduced, of two blocks each.
pub(super) struct Sum {
    pub(super) low: __m256i,
    pub(super) middle: __m256i,
    pub(super) high: __m256i,
}

impl Sum {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new() -> Self {
        let zero = _mm256_setzero_si256();
        Self {
            low: zero,
            middle: zero,
            high: zero,
        }
    }

    /// Adds two blocks times the next two powers.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    pub(super) fn add_next(&mut self, blocks: __m256i, powers: &mut &[u128]) {
        if let Some((two, others)) = powers.split_first_chunk() {
            self.add(blocks, load_numbers(two));
            *powers = others;
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    pub(super) fn add(&mut self, blocks: __m256i, powers: __m256i) {
        let low = _mm256_clmulepi64_epi128::<0x00>(blocks, powers);
        let high = _mm256_clmulepi64_epi128::<0x11>(blocks, powers);
        let one = _mm256_clmulepi64_epi128::<0x01>(blocks, powers);
        let other = _mm256_clmulepi64_epi128::<0x10>(blocks, powers);
        self.low = _mm256_xor_si256(self.low, low);
        self.high = _mm256_xor_si256(self.high, high);
        self.middle = _mm256_xor_si256(self.middle, _mm256_xor_si256(one, other));
    }

    /// Karatsuba: three products, for powers whose halves have been added up beforehand.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    pub(super) fn add_folded(&mut self, blocks: __m256i, powers: __m256i, halves: __m256i) {
        let low = _mm256_clmulepi64_epi128::<0x00>(blocks, powers);
        let high = _mm256_clmulepi64_epi128::<0x11>(blocks, powers);
        let middle = _mm256_clmulepi64_epi128::<0x00>(added_halves(blocks), halves);
        self.low = _mm256_xor_si256(self.low, low);
        self.high = _mm256_xor_si256(self.high, high);
        self.middle = _mm256_xor_si256(self.middle, middle);
    }

    /// What [`Sum::add_folded`] has left in the middle.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn unfolded(mut self) -> Self {
        let outer = _mm256_xor_si256(self.low, self.high);
        self.middle = _mm256_xor_si256(self.middle, outer);
        self
    }

    /// The sum of both halves, modulo the polynomial of POLYVAL, divided by x^128.
    #[inline]
    #[target_feature(enable = "avx2,pclmulqdq")]
    pub(super) fn reduced(self) -> __m128i {
        let added = |it| _mm_xor_si128(low_half(it), high_half(it));
        reduced(added(self.low), added(self.middle), added(self.high))
    }
}

/// `low + middle * x^64 + high * x^128`, reduced.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
pub(super) fn reduced(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    // x^127 + x^126 + x^121 without its factor x^64.
    let polynomial = of_number(0xc2 << 56);
    let turned = |it| _mm_shuffle_epi32::<0x4e>(it);
    let folded = _mm_clmulepi64_si128::<0x00>(low, polynomial);
    let middle = _mm_xor_si128(_mm_xor_si128(middle, turned(low)), folded);
    let folded = _mm_clmulepi64_si128::<0x00>(middle, polynomial);
    _mm_xor_si128(_mm_xor_si128(high, turned(middle)), folded)
}

/// A product, as POLYVAL's `dot`.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
pub(super) fn product(a: __m128i, b: __m128i) -> __m128i {
    let one = _mm_clmulepi64_si128::<0x01>(a, b);
    let other = _mm_clmulepi64_si128::<0x10>(a, b);
    reduced(
        _mm_clmulepi64_si128::<0x00>(a, b),
        _mm_xor_si128(one, other),
        _mm_clmulepi64_si128::<0x11>(a, b),
    )
}

/// The powers for the 8 blocks of a group, and the sums of their halves.
pub(super) struct GroupPowers {
    pub(super) powers: [__m256i; 4],
    pub(super) halves: [__m256i; 4],
}

impl GroupPowers {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn of(keys: &Schedule) -> Self {
        let zero = _mm256_setzero_si256();
        let [mut powers, mut halves] = [[zero; 4]; 2];
        let numbers = keys.powers.get(POWERS - 8..).unwrap_or_default();
        let (pairs, _) = numbers.as_chunks();
        for ((power, half), two) in powers.iter_mut().zip(&mut halves).zip(pairs) {
            *power = load_numbers(two);
            *half = added_halves(*power);
        }
        Self { powers, halves }
    }
}

/// In the low 64 bits of each half: its low and its high 64 bits, added up.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn added_halves(it: __m256i) -> __m256i {
    _mm256_xor_si256(it, _mm256_shuffle_epi32::<0x4e>(it))
}
