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

use ::cbc::{Decryptor, Encryptor};
use cipher::array::Array;
use cipher::typenum::Unsigned;
use cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit,
    KeyInit,
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

    /// Encrypts the packets side by side, the longest first, each in a chain of its own.
    fn interleave(&self, lanes: &mut [&mut [Block<C>]]) {
        lanes.sort_unstable_by_key(|blocks| std::cmp::Reverse(blocks.len()));
        let mut chains: [Block<C>; LANES] = Default::default();
        let mut active = lanes.len();
        let steps = lanes.first().map_or(0, |longest| longest.len());
        for step in 0..steps {
            while active > 0 && lanes.get(active - 1).is_none_or(|l| l.len() <= step) {
                active -= 1;
            }
            let (Some(lanes), Some(chains)) = (lanes.get_mut(..active), chains.get_mut(..active))
            else {
                return;
            };
            for (chain, lane) in chains.iter_mut().zip(lanes.iter()) {
                if let Some(block) = lane.get(step) {
                    xor(chain, block);
                }
            }
            self.cipher.encrypt_blocks(chains);
            for (chain, lane) in chains.iter().zip(lanes) {
                if let Some(block) = lane.get_mut(step) {
                    block.clone_from(chain);
                }
            }
        }
    }
}

fn xor<N: cipher::array::ArraySize>(into: &mut Array<u8, N>, from: &Array<u8, N>) {
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
                self.interleave(lanes);
            }
        }
        Ok(())
    }
}
