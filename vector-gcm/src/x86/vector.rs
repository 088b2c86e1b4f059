//! Vectors of two blocks: their halves, numbers, counters, and the way from memory and back.

use std::arch::x86_64::*;

/// Counters that are `ahead` of others.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn counted_on(counters: __m256i, ahead: i32) -> __m256i {
    _mm256_add_epi32(counters, _mm256_set_epi32(0, 0, 0, ahead, 0, 0, 0, ahead))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn both(low: __m128i, high: __m128i) -> __m256i {
    _mm256_set_m128i(high, low)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn low_half(it: __m256i) -> __m128i {
    _mm256_castsi256_si128(it)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn high_half(it: __m256i) -> __m128i {
    _mm256_extracti128_si256::<1>(it)
}

/// The same number in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn twice(number: u128) -> __m256i {
    _mm256_broadcastsi128_si256(of_number(number))
}

/// With the bytes the other way round.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn reversed(it: __m128i) -> __m128i {
    _mm_shuffle_epi8(it, of_number(REVERSAL))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn both_reversed(it: __m256i) -> __m256i {
    _mm256_shuffle_epi8(it, twice(REVERSAL))
}

pub(super) const REVERSAL: u128 = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;

#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::cast_possible_truncation, reason = "one half each")]
pub(super) fn of_number(number: u128) -> __m128i {
    _mm_set_epi64x((number >> 64) as i64, number as i64)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn to_number(it: __m128i) -> u128 {
    let low = _mm_cvtsi128_si64(it).cast_unsigned();
    let high = _mm_extract_epi64::<1>(it).cast_unsigned();
    u128::from(high) << 64 | u128::from(low)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(from: &[u8; 16]) -> __m128i {
    // SAFETY: there are as many bytes, and this load needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_two(from: &[u8; 32]) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// The first number in the low half.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_numbers(from: &[u128; 2]) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(to: &mut [u8; 16], it: __m128i) {
    // SAFETY: there is room for as many bytes, and this store needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), it) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_two(to: &mut [u8; 32], it: __m256i) {
    // SAFETY: as above.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), it) }
}
