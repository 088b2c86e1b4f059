//! Encryption without authentication: CBC of ten block ciphers, AES in counter
//! mode (RFC 3686), and none (RFC 2410).

use aes::{Aes128, Aes128Enc, Aes192, Aes192Enc, Aes256, Aes256Enc};
use cipher::typenum::U16;
use cipher::{
    BlockCipherEncrypt, BlockSizeUser, InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper,
};
use ctr::{CtrCore, flavors::Ctr32BE};
use zeroize::Zeroizing;

use super::BadKey;
use super::cbc::Cbc;
use super::transform::{Refusal, Seal};

/// A cipher; where it has keys of several lengths, the key's length chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherAlgorithm {
    /// `ecb(cipher_null)`.
    Null,
    /// `cbc(aes)`.
    AesCbc,
    /// `cbc(des)`.
    DesCbc,
    /// `cbc(des3_ede)`.
    TripleDesCbc,
    /// `cbc(cast5)`.
    Cast5Cbc,
    /// `cbc(blowfish)`.
    BlowfishCbc,
    /// `cbc(serpent)`.
    SerpentCbc,
    /// `cbc(camellia)`.
    CamelliaCbc,
    /// `cbc(twofish)`.
    TwofishCbc,
    /// `cbc(sm4)`.
    Sm4Cbc,
    /// `rfc3686(ctr(aes))`.
    AesCtr,
}

impl CipherAlgorithm {
    /// The algorithm of that name in Linux's table.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "ecb(cipher_null)" => Self::Null,
            "cbc(aes)" => Self::AesCbc,
            "cbc(des)" => Self::DesCbc,
            "cbc(des3_ede)" => Self::TripleDesCbc,
            "cbc(cast5)" => Self::Cast5Cbc,
            "cbc(blowfish)" => Self::BlowfishCbc,
            "cbc(serpent)" => Self::SerpentCbc,
            "cbc(camellia)" => Self::CamelliaCbc,
            "cbc(twofish)" => Self::TwofishCbc,
            "cbc(sm4)" => Self::Sm4Cbc,
            "rfc3686(ctr(aes))" => Self::AesCtr,
            _ => return None,
        })
    }
}

/// A cipher under one key. `encrypted` is IV and body.
pub(super) trait Cipher: Send + Sync {
    fn iv_bytes(&self) -> usize;

    fn block_bytes(&self) -> usize;

    /// Makes the IV from `seq`, which never repeats, and encrypts the body.
    fn encrypt(&self, seq: u64, encrypted: &mut [u8]) -> Result<(), Refusal>;

    fn decrypt(&self, encrypted: &mut [u8]) -> Result<(), Refusal>;

    /// [`Self::encrypt`] on each packet, whose last `icv_bytes` are left alone.
    fn encrypt_batch(&self, batch: &mut [Seal<'_>], icv_bytes: usize) -> Result<(), Refusal> {
        batch
            .iter_mut()
            .try_for_each(|job| self.encrypt(job.seq, job.encrypted(icv_bytes)?))
    }
}

/// The cipher of `algorithm`.
pub(super) fn new(
    algorithm: CipherAlgorithm,
    key: &[u8],
    iv_seed: [u64; 2],
) -> Result<Box<dyn Cipher>, BadKey> {
    match algorithm {
        CipherAlgorithm::Null if key.is_empty() => Ok(Box::new(Null)),
        CipherAlgorithm::Null => Err(BadKey),
        CipherAlgorithm::AesCbc => match key.len() {
            16 => Cbc::<Aes128>::boxed(key, iv_seed),
            24 => Cbc::<Aes192>::boxed(key, iv_seed),
            _ => Cbc::<Aes256>::boxed(key, iv_seed),
        },
        CipherAlgorithm::DesCbc => Cbc::<des::Des>::boxed(key, iv_seed),
        CipherAlgorithm::TripleDesCbc => Cbc::<des::TdesEde3>::boxed(key, iv_seed),
        CipherAlgorithm::Cast5Cbc => Cbc::<cast5::Cast5>::boxed(key, iv_seed),
        CipherAlgorithm::BlowfishCbc => Cbc::<blowfish::Blowfish>::boxed(key, iv_seed),
        CipherAlgorithm::SerpentCbc => {
            Cbc::<serpent::Serpent>::boxed(&serpent_key(key)?[..], iv_seed)
        }
        CipherAlgorithm::CamelliaCbc => match key.len() {
            16 => Cbc::<camellia::Camellia128>::boxed(key, iv_seed),
            24 => Cbc::<camellia::Camellia192>::boxed(key, iv_seed),
            _ => Cbc::<camellia::Camellia256>::boxed(key, iv_seed),
        },
        CipherAlgorithm::TwofishCbc => Cbc::<twofish::Twofish>::boxed(key, iv_seed),
        CipherAlgorithm::Sm4Cbc => Cbc::<sm4::Sm4>::boxed(key, iv_seed),
        CipherAlgorithm::AesCtr => {
            let (key, nonce) = key.split_last_chunk().ok_or(BadKey)?;
            let [iv_seed, _] = iv_seed;
            match key.len() {
                16 => Ctr::<Aes128Enc>::boxed(key, *nonce, iv_seed),
                24 => Ctr::<Aes192Enc>::boxed(key, *nonce, iv_seed),
                _ => Ctr::<Aes256Enc>::boxed(key, *nonce, iv_seed),
            }
        }
    }
}

/// A Serpent key of any length, padded to its 256 bits: a one bit, then zeros.
fn serpent_key(key: &[u8]) -> Result<Zeroizing<[u8; 32]>, BadKey> {
    let mut padded = Zeroizing::new([0; 32]);
    padded
        .get_mut(..key.len())
        .ok_or(BadKey)?
        .copy_from_slice(key);
    if let Some(end) = padded.get_mut(key.len()) {
        *end = 1;
    }
    Ok(padded)
}

/// No encryption.
struct Null;

impl Cipher for Null {
    fn iv_bytes(&self) -> usize {
        0
    }

    fn block_bytes(&self) -> usize {
        1
    }

    fn encrypt(&self, _seq: u64, _encrypted: &mut [u8]) -> Result<(), Refusal> {
        Ok(())
    }

    fn decrypt(&self, _encrypted: &mut [u8]) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Bytes of the explicit IV of counter mode.
const CTR_IV_BYTES: usize = 8;

/// Counter mode. The IV is made as for AEADs (`crypto/seqiv.c`); the counter
/// block is nonce, IV and a 32-bit count from 1 (RFC 3686 4).
struct Ctr<C> {
    aes: C,
    nonce: [u8; 4],
    iv_seed: u64,
}

impl<C> Ctr<C>
where
    C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
{
    fn boxed(key: &[u8], nonce: [u8; 4], iv_seed: u64) -> Result<Box<dyn Cipher>, BadKey> {
        let aes = C::new_from_slice(key).map_err(|_| BadKey)?;
        Ok(Box::new(Self {
            aes,
            nonce,
            iv_seed,
        }))
    }
}

impl<C> Cipher for Ctr<C>
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn iv_bytes(&self) -> usize {
        CTR_IV_BYTES
    }

    fn block_bytes(&self) -> usize {
        1
    }

    fn encrypt(&self, seq: u64, encrypted: &mut [u8]) -> Result<(), Refusal> {
        let iv = encrypted.first_chunk_mut().ok_or(Refusal::Length)?;
        *iv = (self.iv_seed ^ seq).to_be_bytes();
        self.decrypt(encrypted)
    }

    fn decrypt(&self, encrypted: &mut [u8]) -> Result<(), Refusal> {
        let (iv, body) = encrypted
            .split_first_chunk_mut::<CTR_IV_BYTES>()
            .ok_or(Refusal::Length)?;
        let [n0, n1, n2, n3] = self.nonce;
        let [i0, i1, i2, i3, i4, i5, i6, i7] = *iv;
        let first = [n0, n1, n2, n3, i0, i1, i2, i3, i4, i5, i6, i7, 0, 0, 0, 1];
        let core = CtrCore::<&C, Ctr32BE>::inner_iv_init(&self.aes, &first.into());
        StreamCipherCoreWrapper::from_core(core)
            .try_apply_keystream(body)
            .map_err(|_| Refusal::Length)
    }
}
