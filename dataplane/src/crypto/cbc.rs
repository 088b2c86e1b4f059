//! Cipher block chaining, of one packet or of several at once.
//!
//! **IV.** The IV is the encryption, under the packet's own key, of a block that
//! never repeats and that nobody knows: a random block of the SA XOR the
//! sequence number (NIST SP 800-38A appendix C; Linux's `crypto/echainiv.c` has
//! the same end). That is what CBC with a zero IV makes of that block in front
//! of the body, so IV and body are one run.
//!
//! **Several packets.** Encryption is serial within a packet, and a pipelined AES
//! idles through most of it. [`Cipher::encrypt_batch`] therefore takes one block
//! of each of up to [`LANES`] packets at a time. 1,424 bytes of AES-128, ns a
//! packet: 937 alone, 246 with 4 packets, 127 with 8, 122 with 16.

use std::cmp::Reverse;

use ::cbc::{Decryptor, Encryptor};
use cipher::array::{Array, ArraySize};
use cipher::typenum::Unsigned;
use cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt,
    BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser, InnerIvInit, KeyInit, ParBlocks,
};

use super::BadKey;
use super::cipher::Cipher;
use super::transform::{Refusal, Seal};

/// Packets whose blocks are encrypted side by side.
const LANES: usize = 16;

/// CBC under one key.
pub(super) struct Cbc<C: BlockCipherEncrypt> {
    cipher: C,
    iv_seed: [u64; 2],
}

impl<C> Cbc<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync + 'static,
{
    pub(super) fn boxed(key: &[u8], iv_seed: [u64; 2]) -> Result<Box<dyn Cipher>, BadKey> {
        let cipher = C::new_from_slice(key).map_err(|_| BadKey)?;
        Ok(Box::new(Self { cipher, iv_seed }))
    }
}

impl<C: BlockCipherEncrypt> Cbc<C> {
    /// Puts the block whose encryption is the IV into the IV's place; IV and body as blocks.
    fn prepare<'a>(
        &self,
        seq: u64,
        encrypted: &'a mut [u8],
    ) -> Result<&'a mut [Block<C>], Refusal> {
        let (blocks, rest) = Array::slice_as_chunks_mut(encrypted);
        if !rest.is_empty() {
            return Err(Refusal::Length);
        }
        let (iv, _) = blocks.split_first_mut().ok_or(Refusal::Length)?;
        let [a, b] = self.iv_seed;
        let unique = (u128::from(a ^ seq) << 64) | u128::from(b);
        iv.iter_mut()
            .zip(unique.to_be_bytes())
            .for_each(|(i, u)| *i = u);
        Ok(blocks)
    }
}

/// Chains encrypted side by side, the longest first; each starts from zeros.
struct Interleave<'a, 'b, N: ArraySize> {
    lanes: &'a mut [&'b mut [Array<u8, N>]],
}

impl<N: ArraySize> BlockSizeUser for Interleave<'_, '_, N> {
    type BlockSize = N;
}

impl<N: ArraySize> BlockCipherEncClosure for Interleave<'_, '_, N> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = N>>(self, backend: &B) {
        let steps = self.lanes.first().map_or(0, |longest| longest.len());
        let mut active = self.lanes.len();
        for step in 0..steps {
            let ended = |lane: &&mut [_]| lane.len() <= step;
            while active > 0 && self.lanes.get(active - 1).is_none_or(ended) {
                active -= 1;
            }
            let lanes = self.lanes.get_mut(..active).unwrap_or_default();
            if (2..=LANES).contains(&B::ParBlocksSize::USIZE) {
                for lanes in lanes.chunks_mut(B::ParBlocksSize::USIZE) {
                    let mut blocks = ParBlocks::<B>::default();
                    for (block, lane) in blocks.iter_mut().zip(lanes.iter_mut()) {
                        if let Some(chained) = chained(lane, step) {
                            *block = chained;
                        }
                    }
                    backend.encrypt_par_blocks((&mut blocks).into());
                    for (block, lane) in blocks.iter().zip(lanes) {
                        if let Some(encrypted) = lane.get_mut(step) {
                            encrypted.clone_from(block);
                        }
                    }
                }
            } else {
                // VAES code takes 30 blocks and more or one; the CPU overlaps those that do
                // not depend on each other.
                for lane in lanes {
                    let Some(mut block) = chained(lane, step) else {
                        continue;
                    };
                    backend.encrypt_block_inplace(&mut block);
                    if let Some(encrypted) = lane.get_mut(step) {
                        *encrypted = block;
                    }
                }
            }
        }
    }
}

/// Block `step` of a chain, XOR what the one before it became.
#[inline(always)]
fn chained<N: ArraySize>(lane: &[Array<u8, N>], step: usize) -> Option<Array<u8, N>> {
    let (done, rest) = lane.split_at_checked(step)?;
    let mut block = rest.first()?.clone();
    if let Some(previous) = done.last() {
        xor(&mut block, previous);
    }
    Some(block)
}

#[inline(always)]
fn xor<N: ArraySize>(into: &mut Array<u8, N>, from: &Array<u8, N>) {
    into.iter_mut().zip(from).for_each(|(i, f)| *i ^= f);
}

impl<C> Cipher for Cbc<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync,
{
    fn iv_bytes(&self) -> usize {
        C::BlockSize::USIZE
    }

    fn block_bytes(&self) -> usize {
        C::BlockSize::USIZE
    }

    fn encrypt(&self, seq: u64, encrypted: &mut [u8]) -> Result<(), Refusal> {
        let blocks = self.prepare(seq, encrypted)?;
        Encryptor::inner_iv_init(&self.cipher, &Block::<C>::default()).encrypt_blocks(blocks);
        Ok(())
    }

    fn decrypt(&self, encrypted: &mut [u8]) -> Result<(), Refusal> {
        let (blocks, rest) = Array::slice_as_chunks_mut(encrypted);
        let (iv, body) = blocks.split_first_mut().ok_or(Refusal::Length)?;
        if !rest.is_empty() {
            return Err(Refusal::Length);
        }
        Decryptor::inner_iv_init(&self.cipher, iv).decrypt_blocks(body);
        Ok(())
    }

    fn encrypt_batch(&self, batch: &mut [Seal<'_>], icv_bytes: usize) -> Result<(), Refusal> {
        for group in batch.chunks_mut(LANES) {
            let count = group.len();
            let mut lanes: [&mut [Block<C>]; LANES] = Default::default();
            for (lane, job) in lanes.iter_mut().zip(group) {
                *lane = self.prepare(job.seq, job.encrypted(icv_bytes)?)?;
            }
            if let Some(lanes) = lanes.get_mut(..count) {
                lanes.sort_unstable_by_key(|blocks| Reverse(blocks.len()));
                self.cipher.encrypt_with_backend(Interleave { lanes });
            }
        }
        Ok(())
    }
}
