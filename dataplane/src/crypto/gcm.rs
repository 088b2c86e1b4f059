//! AES-GCM and GMAC over `RustCrypto`'s AES and GHASH (NIST SP 800-38D 7).
//!
//! It takes the cases that `ring` has no AEAD for: 192-bit keys, ICVs of 8 and
//! 12 bytes (which can only be checked by computing the full one, and `ring`
//! gives none to whoever opens), and authentication alone. Nonces are 12 bytes.

use cipher::typenum::U16;
use cipher::{
    Block, BlockCipherEncrypt, BlockSizeUser, InnerIvInit, KeyInit, StreamCipher,
    StreamCipherCoreWrapper,
};
use ctr::{CtrCore, flavors::Ctr32BE};
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::BadKey;
use super::aead::{IV_BYTES, Primitive, split_icv};
use super::transform::Refusal;

type Tag = [u8; 16];

/// AES-GCM under one key.
pub(super) struct Gcm<C> {
    aes: C,
    ghash: GHash,
    salt: [u8; 4],
    icv_bytes: usize,
}

impl<C> Gcm<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    /// With ICVs of the tag's first `icv_bytes`.
    pub(super) fn new(key: &[u8], salt: [u8; 4], icv_bytes: usize) -> Result<Self, BadKey> {
        let aes = C::new_from_slice(key).map_err(|_| BadKey)?;
        let mut hash_key = Block::<C>::default();
        aes.encrypt_block(&mut hash_key);
        let ghash = GHash::new(&hash_key);
        hash_key.zeroize();
        Ok(Self {
            aes,
            ghash,
            salt,
            icv_bytes,
        })
    }

    /// The keystream from the body's first block on, and the block before it,
    /// which masks the tag.
    fn keystream(
        &self,
        iv: [u8; IV_BYTES],
    ) -> (StreamCipherCoreWrapper<CtrCore<&C, Ctr32BE>>, Tag) {
        let [s0, s1, s2, s3] = self.salt;
        let [i0, i1, i2, i3, i4, i5, i6, i7] = iv;
        let first = [s0, s1, s2, s3, i0, i1, i2, i3, i4, i5, i6, i7, 0, 0, 0, 1];
        let core = CtrCore::inner_iv_init(&self.aes, &first.into());
        let mut stream = StreamCipherCoreWrapper::from_core(core);
        let mut mask = [0; 16];
        stream.apply_keystream(&mut mask);
        (stream, mask)
    }

    /// The tag over what `ghash` has taken of the associated data, and `ciphertext`.
    fn tag(&self, mut ghash: GHash, aad_bytes: usize, ciphertext: &[u8], mask: Tag) -> Tag {
        ghash.update_padded(ciphertext);
        let bits = |bytes: usize| (bytes as u64).wrapping_mul(8).to_be_bytes();
        let mut lengths = [0; 16];
        let (aad_bits, body_bits) = lengths.split_at_mut(8);
        aad_bits.copy_from_slice(&bits(aad_bytes));
        body_bits.copy_from_slice(&bits(ciphertext.len()));
        ghash.update(&[lengths.into()]);
        let mut tag: Tag = ghash.finalize().into();
        tag.iter_mut().zip(mask).for_each(|(t, m)| *t ^= m);
        tag
    }

    fn tag_of(&self, aad: &[u8], ciphertext: &[u8], mask: Tag) -> Tag {
        let mut ghash = self.ghash.clone();
        ghash.update_padded(aad);
        self.tag(ghash, aad.len(), ciphertext, mask)
    }

    fn verify(&self, tag: &Tag, icv: &[u8]) -> Result<(), Refusal> {
        let expected = tag.get(..self.icv_bytes).ok_or(Refusal::Length)?;
        match bool::from(expected.ct_eq(icv)) {
            true => Ok(()),
            false => Err(Refusal::Integrity),
        }
    }
}

impl<C> Primitive for Gcm<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn icv_bytes(&self) -> usize {
        self.icv_bytes
    }

    fn seal(
        &self,
        iv: &[u8; IV_BYTES],
        aad: &[u8],
        body: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), Refusal> {
        let (mut stream, mask) = self.keystream(*iv);
        stream.apply_keystream(body);
        write(&self.tag_of(aad, body, mask), icv);
        Ok(())
    }

    fn open(&self, iv: &[u8; IV_BYTES], aad: &[u8], sealed: &mut [u8]) -> Result<(), Refusal> {
        let (body, icv) = split_icv(sealed, self.icv_bytes)?;
        let (mut stream, mask) = self.keystream(*iv);
        self.verify(&self.tag_of(aad, body, mask), icv)?;
        stream.apply_keystream(body);
        Ok(())
    }
}

/// Copies what fits.
fn write(from: &[u8], to: &mut [u8]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t = *f);
}

/// AES-GMAC: SPI, sequence number, IV and body are all associated data.
pub(super) struct Gmac<C>(pub(super) Gcm<C>);

impl<C> Gmac<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    fn tag(&self, iv: [u8; IV_BYTES], aad: &[u8], body: &[u8]) -> Tag {
        let Self(gcm) = self;
        let mut ghash = gcm.ghash.clone();
        // One string to GHASH: 16 bytes of header and IV, or 20 with ESN, whose last 4 share a
        // block with the body's start.
        let mut prefix = [0; 32];
        let prefix_bytes = aad.len() + IV_BYTES;
        prefix
            .iter_mut()
            .zip(aad.iter().chain(&iv))
            .for_each(|(p, byte)| *p = *byte);
        let (first, second) = prefix.split_at_mut(16);
        ghash.update_padded(first);
        let over = prefix_bytes.saturating_sub(16);
        let mut rest = body;
        if over > 0 {
            let (_, room) = second.split_at_mut_checked(over).unwrap_or_default();
            let (joined, behind) = body.split_at(body.len().min(room.len()));
            write(joined, room);
            ghash.update_padded(second);
            rest = behind;
        }
        ghash.update_padded(rest);
        let (_, mask) = gcm.keystream(iv);
        gcm.tag(ghash, prefix_bytes + body.len(), &[], mask)
    }
}

impl<C> Primitive for Gmac<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn icv_bytes(&self) -> usize {
        self.0.icv_bytes
    }

    fn seal(
        &self,
        iv: &[u8; IV_BYTES],
        aad: &[u8],
        body: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), Refusal> {
        write(&self.tag(*iv, aad, body), icv);
        Ok(())
    }

    fn open(&self, iv: &[u8; IV_BYTES], aad: &[u8], sealed: &mut [u8]) -> Result<(), Refusal> {
        let (body, icv) = split_icv(sealed, self.0.icv_bytes)?;
        self.0.verify(&self.tag(*iv, aad, body), icv)
    }
}
