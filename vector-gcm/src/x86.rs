//! The instructions.
//!
//! **GHASH** is computed as POLYVAL (RFC 8452 appendix A): on blocks with their bytes turned around,
//! under a key multiplied by x. A product is then three or four carry-less multiplications and
//! one reduction of two more, which is linear: products of several blocks with several powers
//! of the key are added before it.
//!
//! **Blocks** are 8 at a time as long as there are as many ([`body`]); what is left (0 to 8, the last
//! perhaps not whole) goes with the block that masks the tag ([`tail`]), in code made for each count.
//! Blocks lie in vectors of two in the order of the text. Counters are kept as numbers, low byte first,
//! so that adding to them is one instruction.

use std::arch::asm;
use std::arch::x86_64::*;

mod hash;
mod vector;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::Aad;
use hash::{GroupPowers, Sum, product};
use vector::*;

/// Rounds of AES-128 and of AES-256.
const SHORT: usize = 10;
const LONG: usize = 14;

/// Bytes of the blocks that are taken together.
const GROUP_BYTES: usize = 128;
/// Powers of the hash key: the tag of a tail takes the associated data, 8 blocks and the lengths.
const POWERS: usize = 10;

/// What a key is expanded to.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Schedule {
    first: u128,
    middle: [u128; LONG - 1],
    last: u128,
    /// Of the hash key, the highest first; then a zero, beside the first power in a vector.
    powers: [u128; POWERS + 1],
}

/// Keys of either length.
pub(crate) struct Keys {
    schedule: Schedule,
    is_long: bool,
}

impl Keys {
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("vpclmulqdq");
        let is_long = match key.len() {
            16 => false,
            32 => true,
            _ => return None,
        };
        if !there {
            return None;
        }
        // SAFETY: the processor has the instructions.
        let schedule = unsafe {
            match is_long {
                false => expand::<SHORT>(key),
                true => expand::<LONG>(key),
            }
        };
        Some(Self { schedule, is_long })
    }

    /// Encrypts; the tag as a big-endian number.
    #[inline]
    pub(crate) fn seal(&self, nonce: u128, aad: Aad, body: &mut [u8]) -> u128 {
        let schedule = &self.schedule;
        // SAFETY: there are no keys on a processor without the instructions.
        unsafe {
            match self.is_long {
                false => crypt::<SHORT, true>(schedule, nonce, aad, body),
                true => crypt::<LONG, true>(schedule, nonce, aad, body),
            }
        }
    }

    /// Decrypts; the tag that would be right, as a big-endian number.
    #[inline]
    pub(crate) fn open(&self, nonce: u128, aad: Aad, body: &mut [u8]) -> u128 {
        let schedule = &self.schedule;
        // SAFETY: as above.
        unsafe {
            match self.is_long {
                false => crypt::<SHORT, false>(schedule, nonce, aad, body),
                true => crypt::<LONG, false>(schedule, nonce, aad, body),
            }
        }
    }
}

/// AES on some pairs of blocks.
macro_rules! encrypt {
    ($rounds:expr, $keys:expr, $pairs:ident) => {
        let key = twice($keys.first);
        for pair in &mut $pairs {
            *pair = _mm256_xor_si256(*pair, key);
        }
        for key in $keys.middle.iter().take($rounds - 1) {
            let key = twice(*key);
            for pair in &mut $pairs {
                *pair = _mm256_aesenc_epi128(*pair, key);
            }
        }
        let key = twice($keys.last);
        for pair in &mut $pairs {
            *pair = _mm256_aesenclast_epi128(*pair, key);
        }
    };
}

/// Round keys (FIPS 197 5.2) and powers of the hash key.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn expand<const ROUNDS: usize>(key: &[u8]) -> Schedule {
    let (chunks, _) = key.as_chunks::<4>();
    let key_words = chunks.len();
    let mut words = [0_u32; 4 * (LONG + 1)];
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u32::from_le_bytes(*chunk);
    }
    let mut constant = 1_u32;
    for at in key_words..4 * (ROUNDS + 1) {
        let [mut before, far] = [at - 1, at - key_words].map(|at| words.get(at).map_or(0, |w| *w));
        if at % key_words == 0 {
            before = substituted(before).rotate_right(8) ^ constant;
            constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
        } else if key_words == 8 && at % 8 == 4 {
            before = substituted(before);
        }
        if let Some(word) = words.get_mut(at) {
            *word = before ^ far;
        }
    }
    let mut schedule = Schedule {
        first: 0,
        middle: [0; LONG - 1],
        last: 0,
        powers: [0; POWERS + 1],
    };
    let (quads, _) = words.as_chunks::<4>();
    for (at, &[a, b, c, d]) in quads.iter().enumerate().take(ROUNDS + 1) {
        let low = u128::from(b) << 32 | u128::from(a);
        let key = (u128::from(d) << 32 | u128::from(c)) << 64 | low;
        match at {
            0 => schedule.first = key,
            _ if at == ROUNDS => schedule.last = key,
            _ => schedule
                .middle
                .iter_mut()
                .skip(at - 1)
                .take(1)
                .for_each(|k| *k = key),
        }
    }
    words.zeroize();

    let mut hash_key = [_mm256_setzero_si256()];
    encrypt!(ROUNDS, schedule, hash_key);
    let [hash_key] = hash_key;
    let hash_key = to_number(reversed(_mm256_castsi256_si128(hash_key)));
    // Times x, in the field of POLYVAL.
    let carry = 0_u128.wrapping_sub(hash_key >> 127);
    let hash_key = of_number(hash_key << 1 ^ carry & (0xc2 << 120 | 1));
    let mut power = hash_key;
    for place in schedule.powers.iter_mut().rev().skip(1) {
        *place = to_number(power);
        power = product(power, hash_key);
    }
    schedule
}

/// The S-box on each byte.
#[inline]
#[target_feature(enable = "avx2,aes")]
fn substituted(word: u32) -> u32 {
    let word = _mm_set1_epi32(word.cast_signed());
    _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(word)).cast_unsigned()
}

/// Encrypts or decrypts; the tag as a big-endian number.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn crypt<const ROUNDS: usize, const SEAL: bool>(
    keys: &Schedule,
    nonce: u128,
    aad: Aad,
    bytes: &mut [u8],
) -> u128 {
    let bits = (bytes.len() as u64).wrapping_mul(8);
    let lengths = of_number(u128::from(aad.bits) << 64 | u128::from(bits));
    let mask_block = of_number(nonce << 32 | 1);
    let aad = of_number(aad.block);
    let next = _mm_add_epi32(mask_block, of_number(1));
    let mut text = Text {
        counters: both(next, _mm_add_epi32(next, of_number(1))),
        before: aad,
        carry: _mm_setzero_si128(),
    };
    let (groups, rest) = bytes.as_chunks_mut::<GROUP_BYTES>();
    if !groups.is_empty() {
        body::<ROUNDS, SEAL>(keys, &mut text, groups);
    }
    let end = (keys, &text, mask_block, lengths);
    let tag = match rest.len().div_ceil(16) {
        0 => tail::<ROUNDS, SEAL, 0, 1>(end, rest),
        1 => tail::<ROUNDS, SEAL, 1, 1>(end, rest),
        2 => tail::<ROUNDS, SEAL, 2, 2>(end, rest),
        3 => tail::<ROUNDS, SEAL, 3, 2>(end, rest),
        4 => tail::<ROUNDS, SEAL, 4, 3>(end, rest),
        5 => tail::<ROUNDS, SEAL, 5, 3>(end, rest),
        6 => tail::<ROUNDS, SEAL, 6, 4>(end, rest),
        7 => tail::<ROUNDS, SEAL, 7, 4>(end, rest),
        _ => tail::<ROUNDS, SEAL, 8, 5>(end, rest),
    };
    to_number(tag)
}

/// Where in a text it goes on.
struct Text {
    /// The next two counters.
    counters: __m256i,
    /// A block in front of what comes next that has not been hashed.
    before: __m128i,
    /// The hash of what has.
    carry: __m128i,
}

/// A round of AES on four pairs of blocks, in step with the hash.
///
/// The compiler would put one pair's rounds behind the other's, to need fewer registers, and the
/// processor would wait for each.
macro_rules! round {
    ($key:expr, $sum:ident, $a:ident, $b:ident, $c:ident, $d:ident) => {
        let key = twice(*$key);
        $a = _mm256_aesenc_epi128($a, key);
        $b = _mm256_aesenc_epi128($b, key);
        $c = _mm256_aesenc_epi128($c, key);
        $d = _mm256_aesenc_epi128($d, key);
        // SAFETY: no instruction at all, but all of these have to be there now.
        unsafe {
            asm!(
                "/* {0} {1} {2} {3} {4} {5} {6} */",
                inout(ymm_reg) $a,
                inout(ymm_reg) $b,
                inout(ymm_reg) $c,
                inout(ymm_reg) $d,
                inout(ymm_reg) $sum.low,
                inout(ymm_reg) $sum.middle,
                inout(ymm_reg) $sum.high,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    };
}

/// Takes 8 blocks at a time.
///
/// What is hashed while they are encrypted: the same blocks if they come encrypted, else those
/// of the group before. So neither waits for the other.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn body<const ROUNDS: usize, const SEAL: bool>(
    keys: &Schedule,
    text: &mut Text,
    groups: &mut [[u8; GROUP_BYTES]],
) {
    let [.., first_power, _] = &keys.powers;
    let [k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11, k12, k13] = &keys.middle;
    let GroupPowers {
        powers: [p1, p2, p3, p4],
        halves: [h1, h2, h3, h4],
    } = GroupPowers::of(keys);
    let zero = _mm256_setzero_si256();
    let before = product(text.before, of_number(*first_power));
    // In the first round there is nothing to hash.
    let (mut hash, mut later) = match SEAL {
        true => (_mm_setzero_si128(), before),
        false => (before, _mm_setzero_si128()),
    };
    let (mut x1, mut x2, mut x3, mut x4) = (zero, zero, zero, zero);
    let mut counters = text.counters;
    for group in groups {
        let (pieces, _) = group.as_chunks_mut::<32>();
        let [piece1, piece2, piece3, piece4] = pieces else {
            break;
        };
        let (i1, i2) = (load_two(piece1), load_two(piece2));
        let (i3, i4) = (load_two(piece3), load_two(piece4));
        if !SEAL {
            (x1, x2) = (both_reversed(i1), both_reversed(i2));
            (x3, x4) = (both_reversed(i3), both_reversed(i4));
        }
        let key = twice(keys.first);
        let mut a = _mm256_xor_si256(both_reversed(counters), key);
        let mut b = _mm256_xor_si256(both_reversed(counted_on(counters, 2)), key);
        let mut c = _mm256_xor_si256(both_reversed(counted_on(counters, 4)), key);
        let mut d = _mm256_xor_si256(both_reversed(counted_on(counters, 6)), key);
        counters = counted_on(counters, 8);
        let mut sum = Sum::new();
        round!(k1, sum, a, b, c, d);
        sum.add_folded(x2, p2, h2);
        round!(k2, sum, a, b, c, d);
        sum.add_folded(x3, p3, h3);
        round!(k3, sum, a, b, c, d);
        sum.add_folded(x4, p4, h4);
        round!(k4, sum, a, b, c, d);
        x1 = _mm256_xor_si256(x1, _mm256_zextsi128_si256(hash));
        sum.add_folded(x1, p1, h1);
        round!(k5, sum, a, b, c, d);
        sum = sum.unfolded();
        round!(k6, sum, a, b, c, d);
        round!(k7, sum, a, b, c, d);
        round!(k8, sum, a, b, c, d);
        round!(k9, sum, a, b, c, d);
        if ROUNDS == LONG {
            round!(k10, sum, a, b, c, d);
            round!(k11, sum, a, b, c, d);
            round!(k12, sum, a, b, c, d);
            round!(k13, sum, a, b, c, d);
        }
        hash = _mm_xor_si128(sum.reduced(), later);
        later = _mm_setzero_si128();
        // The last round ends with the key; text and key may as well be added up before.
        let key = twice(keys.last);
        let o1 = _mm256_aesenclast_epi128(a, _mm256_xor_si256(key, i1));
        let o2 = _mm256_aesenclast_epi128(b, _mm256_xor_si256(key, i2));
        let o3 = _mm256_aesenclast_epi128(c, _mm256_xor_si256(key, i3));
        let o4 = _mm256_aesenclast_epi128(d, _mm256_xor_si256(key, i4));
        store_two(piece1, o1);
        store_two(piece2, o2);
        store_two(piece3, o3);
        store_two(piece4, o4);
        if SEAL {
            (x1, x2) = (both_reversed(o1), both_reversed(o2));
            (x3, x4) = (both_reversed(o3), both_reversed(o4));
        }
    }
    if SEAL {
        let mut sum = Sum::new();
        sum.add_folded(x2, p2, h2);
        sum.add_folded(x3, p3, h3);
        sum.add_folded(x4, p4, h4);
        x1 = _mm256_xor_si256(x1, _mm256_zextsi128_si256(hash));
        sum.add_folded(x1, p1, h1);
        hash = sum.unfolded().reduced();
    }
    *text = Text {
        counters,
        before: _mm_setzero_si128(),
        carry: hash,
    };
}

/// Takes what is left, `BLOCKS` blocks of which the last may be short; the tag.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn tail<const ROUNDS: usize, const SEAL: bool, const BLOCKS: usize, const PAIRS: usize>(
    (keys, text, mask_block, lengths): (&Schedule, &Text, __m128i, __m128i),
    rest: &mut [u8],
) -> __m128i {
    // The tag's mask and the first block; the second and third; ...
    let mut stream = [_mm256_setzero_si256(); PAIRS];
    for (pair, ahead) in stream.iter_mut().zip([-1, 1, 3, 5, 7]) {
        *pair = both_reversed(match ahead {
            -1 => both(mask_block, low_half(text.counters)),
            ahead => counted_on(text.counters, ahead),
        });
    }
    encrypt!(ROUNDS, keys, stream);

    // Hashed are: what is in front and the first block; the second and third; ...; the last block
    // and the lengths, or, if their number is odd, the lengths alone.
    let mut sum = Sum::new();
    let mut powers = keys.powers.get(POWERS - 2 - BLOCKS..).unwrap_or_default();
    let mut rest = rest;
    for (at, stream) in stream.into_iter().enumerate() {
        // Under the stream's halves.
        let [low, high] = [(2 * at).checked_sub(1), Some(2 * at)];
        let is_last = |block: Option<usize>| block == BLOCKS.checked_sub(1);
        let pair = if low.is_some() && 2 * at + 1 < BLOCKS {
            two_in_place::<SEAL>(first_bytes(&mut rest, 32), stream)
        } else {
            let before = match low {
                None => text.before,
                low if is_last(low) => last_in_place::<SEAL>(rest, low_half(stream)),
                _ => in_place::<SEAL>(first_bytes(&mut rest, 16), low_half(stream)),
            };
            let mut after = match high {
                _ if 2 * at >= BLOCKS => lengths,
                high if is_last(high) => last_in_place::<SEAL>(rest, high_half(stream)),
                _ => in_place::<SEAL>(first_bytes(&mut rest, 16), high_half(stream)),
            };
            if at == 0 {
                after = _mm_xor_si128(after, text.carry);
            }
            both(before, after)
        };
        sum.add_next(pair, &mut powers);
    }
    if BLOCKS % 2 == 1 {
        sum.add_next(both(lengths, _mm_setzero_si128()), &mut powers);
    }
    let mask = stream.first().map_or(mask_block, |first| low_half(*first));
    // As a number: the first byte is the highest.
    _mm_xor_si128(sum.reduced(), reversed(mask))
}

/// Takes so many bytes from the front, or all that there are.
#[inline]
fn first_bytes<'a>(rest: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let all = std::mem::take(rest);
    let (first, others) = all.split_at_mut(all.len().min(count));
    *rest = others;
    first
}

/// Encrypts or decrypts two blocks; what is hashed of them.
#[inline]
#[target_feature(enable = "avx2")]
fn two_in_place<const SEAL: bool>(bytes: &mut [u8], stream: __m256i) -> __m256i {
    let Some(bytes) = bytes.first_chunk_mut() else {
        return _mm256_setzero_si256();
    };
    let input = load_two(bytes);
    let output = _mm256_xor_si256(input, stream);
    store_two(bytes, output);
    both_reversed(if SEAL { output } else { input })
}

/// Encrypts or decrypts a whole block; what is hashed of it.
#[inline]
#[target_feature(enable = "avx2")]
fn in_place<const SEAL: bool>(bytes: &mut [u8], stream: __m128i) -> __m128i {
    let Some(bytes) = bytes.first_chunk_mut() else {
        return _mm_setzero_si128();
    };
    let input = load(bytes);
    let output = _mm_xor_si128(input, stream);
    store(bytes, output);
    reversed(if SEAL { output } else { input })
}

/// Encrypts or decrypts the last block, of 1 to 16 bytes; what is hashed of it.
#[inline]
#[target_feature(enable = "avx2")]
fn last_in_place<const SEAL: bool>(bytes: &mut [u8], stream: __m128i) -> __m128i {
    if bytes.len() == 16 {
        return in_place::<SEAL>(bytes, stream);
    }
    // A copy would be written in narrower pieces than it is read in, for which the processor waits.
    let input = short_number(bytes);
    let is_there = (1_u128 << (8 * bytes.len())).wrapping_sub(1);
    let output = (input ^ to_number(stream)) & is_there;
    put_short_number(bytes, output);
    let hashed = if SEAL { output } else { input };
    of_number(hashed.swap_bytes())
}

/// Fewer than 16 bytes as a number, the first byte the lowest.
#[inline]
fn short_number(bytes: &[u8]) -> u128 {
    let (mut number, mut shift) = (0, 0);
    let (words, rest) = bytes.as_chunks();
    for word in words {
        number |= u128::from(u32::from_le_bytes(*word)) << shift;
        shift += 32;
    }
    for byte in rest {
        number |= u128::from(*byte) << shift;
        shift += 8;
    }
    number
}

/// The reverse of [`short_number`].
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lowest word or byte is wanted"
)]
fn put_short_number(bytes: &mut [u8], number: u128) {
    let mut number = number;
    let (words, rest) = bytes.as_chunks_mut();
    for word in words {
        *word = (number as u32).to_le_bytes();
        number >>= 32;
    }
    for byte in rest {
        *byte = number as u8;
        number >>= 8;
    }
}
