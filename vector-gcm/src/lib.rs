//! AES-GCM (NIST SP 800-38D) with the vector instructions that take two blocks at once: VAES,
//! VPCLMULQDQ and AVX2 of x86-64.
//!
//! Why there is this beside `ring`: a call of `ring` costs some 70 ns whatever the length, which is
//! most of a short packet. Here everything is one function, and of a packet of up to
//! 128 bytes all blocks, the tag's mask among them, are encrypted side by side and hashed with
//! one reduction.
//!
//! What it does not do: other processors ([`AesGcm::new`] gives `None`), nonces of other than 96
//! bits, associated data of more than a block. The instructions take the same time whatever the
//! key and the data are; tags are compared in constant time; keys are wiped when dropped.
//!
//! `tests/agrees_with_ring.rs` holds it against `ring` at every length.
//!
//! **Unsafe** are loads and stores of vectors, from and to arrays of their size, and the call from
//! code that is compiled for any processor, behind the look at what this one has.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use x86::Keys;

use subtle::ConstantTimeEq;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// Associated data: one block at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aad {
    /// The block, padded with zeros, as a big-endian number.
    block: u128,
    bits: u64,
}

impl From<[u8; 8]> for Aad {
    #[inline]
    fn from(bytes: [u8; 8]) -> Self {
        Self {
            block: u128::from(u64::from_be_bytes(bytes)) << 64,
            bits: 64,
        }
    }
}

impl From<[u8; 12]> for Aad {
    #[inline]
    fn from([a, b, c, d, rest @ ..]: [u8; 12]) -> Self {
        let first = u128::from(u32::from_be_bytes([a, b, c, d])) << 96;
        let rest = u128::from(u64::from_be_bytes(rest)) << 32;
        Self {
            block: first | rest,
            bits: 96,
        }
    }
}

/// A nonce of 96 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(u128);

impl Nonce {
    /// A salt and what follows it, as ESP has them (RFC 4106 4).
    #[must_use]
    #[inline]
    pub fn of_parts(salt: [u8; 4], iv: [u8; 8]) -> Self {
        let salt = u128::from(u32::from_be_bytes(salt)) << 64;
        Self(salt | u128::from(u64::from_be_bytes(iv)))
    }
}

/// AES-GCM under one key.
pub struct AesGcm {
    #[cfg(target_arch = "x86_64")]
    keys: Keys,
    #[cfg(not(target_arch = "x86_64"))]
    keys: std::convert::Infallible,
}

impl std::fmt::Debug for AesGcm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AesGcm").finish_non_exhaustive()
    }
}

#[cfg(target_arch = "x86_64")]
impl AesGcm {
    /// With a key of 16 or 32 bytes; `None` for other lengths, and on a processor without the
    /// instructions.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        Some(Self {
            keys: Keys::new(key)?,
        })
    }

    /// Encrypts `body`; its tag.
    #[inline]
    pub fn seal(&self, nonce: Nonce, aad: Aad, body: &mut [u8]) -> [u8; TAG_BYTES] {
        self.keys.seal(nonce.0, aad, body).to_be_bytes()
    }

    /// Decrypts `body` if `icv`, the first 8 to 16 bytes of the tag, is right; false, and `body`
    /// wiped, if not.
    #[inline]
    #[must_use]
    pub fn open(&self, nonce: Nonce, aad: Aad, body: &mut [u8], icv: &[u8]) -> bool {
        let tag = self.keys.open(nonce.0, aad, body);
        let is_right = match icv.try_into() {
            Ok(icv) => tag.ct_eq(&u128::from_be_bytes(icv)),
            Err(_) => {
                let tag = tag.to_be_bytes();
                let start = tag.get(..icv.len()).filter(|start| start.len() >= 8);
                start.map_or(0.into(), |start| start.ct_eq(icv))
            }
        };
        if bool::from(is_right) {
            return true;
        }
        body.fill(0);
        false
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl AesGcm {
    /// `None`: this processor has other instructions.
    #[must_use]
    pub fn new(_key: &[u8]) -> Option<Self> {
        None
    }

    /// Encrypts `body`; its tag.
    pub fn seal(&self, _nonce: Nonce, _aad: Aad, _body: &mut [u8]) -> [u8; TAG_BYTES] {
        match self.keys {}
    }

    /// Decrypts `body` if `icv` is right.
    #[must_use]
    pub fn open(&self, _nonce: Nonce, _aad: Aad, _body: &mut [u8], _icv: &[u8]) -> bool {
        match self.keys {}
    }
}
