//! MACs: HMAC (RFC 2104) over seven hashes, AES-XCBC-MAC (RFC 3566), AES-CMAC
//! (RFC 4493), and none. ICVs are truncated to what the SA asks for.

use ::cmac::Cmac;
use aes::{Aes128Enc, Aes192Enc, Aes256Enc};
use cipher::{Block, BlockCipherEncrypt, BlockSizeUser};
use hmac::digest::typenum::{U16, Unsigned};
use hmac::digest::{self, OutputSizeUser};
use hmac::{EagerHash, Hmac, KeyInit};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::BadKey;

/// A MAC algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthAlgorithm {
    /// `digest_null`: no ICV.
    Null,
    /// `hmac(md5)`.
    HmacMd5,
    /// `hmac(sha1)`.
    HmacSha1,
    /// `hmac(sha256)`.
    HmacSha256,
    /// `hmac(sha384)`.
    HmacSha384,
    /// `hmac(sha512)`.
    HmacSha512,
    /// `hmac(sm3)`.
    HmacSm3,
    /// `hmac(rmd160)`.
    HmacRmd160,
    /// `xcbc(aes)`.
    AesXcbc,
    /// `cmac(aes)`.
    AesCmac,
}

impl AuthAlgorithm {
    /// The algorithm of that name in Linux's table.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "digest_null" => Self::Null,
            "hmac(md5)" => Self::HmacMd5,
            "hmac(sha1)" => Self::HmacSha1,
            "hmac(sha256)" => Self::HmacSha256,
            "hmac(sha384)" => Self::HmacSha384,
            "hmac(sha512)" => Self::HmacSha512,
            "hmac(sm3)" => Self::HmacSm3,
            "hmac(rmd160)" => Self::HmacRmd160,
            "xcbc(aes)" => Self::AesXcbc,
            "cmac(aes)" => Self::AesCmac,
            _ => return None,
        })
    }
}

/// A truncated MAC under one key, over the concatenation of `pieces`.
pub trait Mac: Send + Sync {
    /// Bytes of ICV.
    fn icv_bytes(&self) -> usize;

    /// Writes the ICV, as much of it as `icv` has room for.
    fn write(&self, pieces: &[&[u8]], icv: &mut [u8]);

    /// Whether `icv` is the ICV, all of it; the time it takes does not tell where they differ.
    #[must_use]
    fn verify(&self, pieces: &[&[u8]], icv: &[u8]) -> bool;
}

/// The MAC of `algorithm`, truncated to `icv_bytes`.
///
/// # Errors
/// A key or ICV length that the algorithm does not have.
pub fn mac(algorithm: AuthAlgorithm, key: &[u8], icv_bytes: usize) -> Result<Box<dyn Mac>, BadKey> {
    match algorithm {
        AuthAlgorithm::Null => truncated(Null, icv_bytes),
        AuthAlgorithm::HmacMd5 => hmac::<md5::Md5>(key, icv_bytes),
        AuthAlgorithm::HmacSha1 => hmac::<sha1::Sha1>(key, icv_bytes),
        AuthAlgorithm::HmacSha256 => hmac::<sha2::Sha256>(key, icv_bytes),
        AuthAlgorithm::HmacSha384 => hmac::<sha2::Sha384>(key, icv_bytes),
        AuthAlgorithm::HmacSha512 => hmac::<sha2::Sha512>(key, icv_bytes),
        AuthAlgorithm::HmacSm3 => hmac::<sm3::Sm3>(key, icv_bytes),
        AuthAlgorithm::HmacRmd160 => hmac::<ripemd::Ripemd160>(key, icv_bytes),
        AuthAlgorithm::AesXcbc => truncated(Xcbc::new(key)?, icv_bytes),
        AuthAlgorithm::AesCmac => match key.len() {
            16 => keyed::<Cmac<Aes128Enc>>(key, icv_bytes),
            24 => keyed::<Cmac<Aes192Enc>>(key, icv_bytes),
            _ => keyed::<Cmac<Aes256Enc>>(key, icv_bytes),
        },
    }
}

fn hmac<D: EagerHash>(key: &[u8], icv_bytes: usize) -> Result<Box<dyn Mac>, BadKey>
where
    Hmac<D>: digest::Mac + Clone + KeyInit + Send + Sync + 'static,
{
    keyed::<Hmac<D>>(key, icv_bytes)
}

fn keyed<M>(key: &[u8], icv_bytes: usize) -> Result<Box<dyn Mac>, BadKey>
where
    M: digest::Mac + Clone + KeyInit + Send + Sync + 'static,
{
    let mac = <M as KeyInit>::new_from_slice(key).map_err(|_| BadKey)?;
    truncated(Keyed(mac), icv_bytes)
}

fn truncated<F: FullMac + 'static>(mac: F, icv_bytes: usize) -> Result<Box<dyn Mac>, BadKey> {
    if icv_bytes > F::BYTES {
        return Err(BadKey);
    }
    Ok(Box::new(Truncated { mac, icv_bytes }))
}

/// The whole MAC.
trait FullMac: Send + Sync {
    /// It.
    type Output: AsRef<[u8]>;

    /// Its length.
    const BYTES: usize;

    fn compute(&self, pieces: &[&[u8]]) -> Self::Output;
}

struct Truncated<F> {
    mac: F,
    icv_bytes: usize,
}

impl<F: FullMac> Mac for Truncated<F> {
    fn icv_bytes(&self) -> usize {
        self.icv_bytes
    }

    fn write(&self, pieces: &[&[u8]], icv: &mut [u8]) {
        let full = self.mac.compute(pieces);
        let bytes = icv.len().min(self.icv_bytes);
        if let (Some(icv), Some(full)) = (icv.get_mut(..bytes), full.as_ref().get(..bytes)) {
            icv.copy_from_slice(full);
        }
    }

    fn verify(&self, pieces: &[&[u8]], icv: &[u8]) -> bool {
        let full = self.mac.compute(pieces);
        full.as_ref()
            .get(..self.icv_bytes)
            .is_some_and(|expected| expected.ct_eq(icv).into())
    }
}

/// No MAC.
struct Null;

impl FullMac for Null {
    type Output = [u8; 0];

    const BYTES: usize = 0;

    fn compute(&self, _pieces: &[&[u8]]) -> Self::Output {
        []
    }
}

/// A keyed state, copied for each packet.
struct Keyed<M>(M);

impl<M: digest::Mac + Clone + Send + Sync> FullMac for Keyed<M> {
    type Output = digest::Output<M>;

    const BYTES: usize = <M as OutputSizeUser>::OutputSize::USIZE;

    fn compute(&self, pieces: &[&[u8]]) -> Self::Output {
        let mut mac = self.0.clone();
        pieces
            .iter()
            .filter(|piece| !piece.is_empty())
            .for_each(|piece| mac.update(piece));
        mac.finalize().into_bytes()
    }
}

/// AES-XCBC-MAC: CBC-MAC whose last block is masked by one key when it is
/// whole and by another when it is padded.
struct Xcbc {
    chain: Aes128Enc,
    whole: Zeroizing<[u8; 16]>,
    padded: Zeroizing<[u8; 16]>,
}

impl Xcbc {
    /// Linux before 7.0 takes AES-192 and AES-256 keys as well, from which three
    /// 128-bit keys follow in the same way (`crypto/xcbc.c`).
    fn new(key: &[u8]) -> Result<Self, BadKey> {
        match key.len() {
            16 => Self::derive::<Aes128Enc>(key),
            24 => Self::derive::<Aes192Enc>(key),
            _ => Self::derive::<Aes256Enc>(key),
        }
    }

    fn derive<C>(key: &[u8]) -> Result<Self, BadKey>
    where
        C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
    {
        let cipher = C::new_from_slice(key).map_err(|_| BadKey)?;
        let derived = |constant: u8| {
            let mut block = Block::<C>::from([constant; 16]);
            cipher.encrypt_block(&mut block);
            Zeroizing::new(<[u8; 16]>::from(block))
        };
        Ok(Self {
            chain: Aes128Enc::new_from_slice(&derived(1)[..]).map_err(|_| BadKey)?,
            whole: derived(2),
            padded: derived(3),
        })
    }
}

impl FullMac for Xcbc {
    type Output = [u8; 16];

    const BYTES: usize = 16;

    fn compute(&self, pieces: &[&[u8]]) -> Self::Output {
        let mut chain = Block::<Aes128Enc>::default();
        let mut filled = 0;
        for byte in pieces.iter().flat_map(|piece| piece.iter()) {
            if filled == chain.len() {
                self.chain.encrypt_block(&mut chain);
                filled = 0;
            }
            if let Some(at) = chain.get_mut(filled) {
                *at ^= byte;
            }
            filled += 1;
        }
        let mask = match chain.get_mut(filled) {
            None => &self.whole,
            Some(end) => {
                *end ^= 0x80;
                &self.padded
            }
        };
        chain.iter_mut().zip(mask.iter()).for_each(|(c, m)| *c ^= m);
        self.chain.encrypt_block(&mut chain);
        chain.into()
    }
}
