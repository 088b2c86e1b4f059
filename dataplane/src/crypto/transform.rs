//! The transform of an ESP SA (RFC 4303 2, 3.3.2 and 3.4.4; `net/ipv4/esp4.c`
//! `esp_output_tail` and `esp_input`, `crypto/authenc.c`, `authencesn.c`,
//! `seqiv.c`, `echainiv.c`).
//!
//! A packet here is what follows the IP (or UDP) header, all of it:
//!
//! ```text
//! SPI (4) | sequence number, low half (4) | IV | body | ICV
//! ```
//!
//! where the body is payload, padding and trailer. Whoever builds the packet
//! writes SPI, sequence number and body and leaves room for IV and ICV, whose
//! sizes are in [`Layout`]; the transform writes those two and encrypts the
//! body where it is.
//!
//! Invariants: no packet length makes anything here panic; nothing is allocated;
//! an ICV is compared in constant time and before the body is used; what a
//! refused packet holds afterwards is unspecified.

use crate::Entropy;

use super::BadKey;
use super::aead::{self, AeadAlgorithm};
use super::auth::{self, AuthAlgorithm, Mac};
use super::cipher::{self, Cipher, CipherAlgorithm};

/// Bytes of SPI and sequence number.
pub(super) const HEADER_BYTES: usize = 8;

/// Why a packet was not transformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too short for header, IV and ICV, or a body that is no multiple of the
    /// block (Linux: EINVAL). In a packet from the peer the latter is reported
    /// only once its ICV was found good, as Linux's `authenc` does.
    Length,
    /// The ICV is wrong (Linux: EBADMSG, which counts in `integrity_failed`).
    Integrity,
}

/// Where things are in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of IV, behind the sequence number.
    pub iv_bytes: usize,
    /// Bytes of ICV, at the end.
    pub icv_bytes: usize,
    /// The body must be a multiple of this (`crypto_aead_blocksize`; ESP itself
    /// aligns to 4 as well).
    pub block_bytes: usize,
}

impl Layout {
    /// Bytes in front of the body.
    #[must_use]
    pub const fn prefix_bytes(&self) -> usize {
        HEADER_BYTES + self.iv_bytes
    }
}

/// A packet to seal, for [`EspTransform::seal_batch`].
#[derive(Debug)]
pub struct Seal<'a> {
    /// As in [`EspTransform::seal`].
    pub seq: u64,
    /// As in [`EspTransform::seal`].
    pub packet: &'a mut [u8],
}

impl Seal<'_> {
    /// IV and body, without the last `icv_bytes`.
    pub(super) fn encrypted(&mut self, icv_bytes: usize) -> Result<&mut [u8], Refusal> {
        let end = self.packet.len().checked_sub(icv_bytes);
        end.and_then(|end| self.packet.get_mut(HEADER_BYTES..end))
            .ok_or(Refusal::Length)
    }
}

/// What [`EspTransform`] calls: one implementation per construction.
pub(super) trait Esp: Send + Sync {
    fn seal(&self, seq: u64, packet: &mut [u8]) -> Result<(), Refusal>;

    fn open(&self, seq_hi: u32, packet: &mut [u8]) -> Result<(), Refusal>;

    fn seal_batch(&self, batch: &mut [Seal<'_>]) -> Result<(), Refusal> {
        batch
            .iter_mut()
            .try_for_each(|job| self.seal(job.seq, job.packet))
    }
}

/// The transform of one SA, both directions; shared by all workers.
pub struct EspTransform {
    layout: Layout,
    esp: Box<dyn Esp>,
}

impl EspTransform {
    /// Authenticated encryption. `key` ends with the salt, as in `XFRMA_ALG_AEAD`.
    ///
    /// # Errors
    /// A key or ICV length that the algorithm does not have.
    pub fn aead(
        algorithm: AeadAlgorithm,
        key: &[u8],
        icv_bytes: usize,
        esn: bool,
        entropy: &mut (impl Entropy + ?Sized),
    ) -> Result<Self, BadKey> {
        let layout = Layout {
            iv_bytes: aead::IV_BYTES,
            icv_bytes,
            block_bytes: 1,
        };
        let esp = aead::new(algorithm, key, icv_bytes, esn, entropy.u64())?;
        Ok(Self { layout, esp })
    }

    /// Encryption, then a MAC over all of it. `key` of a counter mode ends with
    /// its nonce, as in `XFRMA_ALG_CRYPT`. With [`AuthAlgorithm::Null`] it is
    /// encryption alone.
    ///
    /// # Errors
    /// A key or ICV length that the algorithms do not have.
    pub fn authenc(
        (cipher, key): (CipherAlgorithm, &[u8]),
        (auth, auth_key): (AuthAlgorithm, &[u8]),
        icv_bytes: usize,
        esn: bool,
        entropy: &mut (impl Entropy + ?Sized),
    ) -> Result<Self, BadKey> {
        let iv_seed = [entropy.u64(), entropy.u64()];
        let cipher = cipher::new(cipher, key, iv_seed)?;
        let mac = auth::mac(auth, auth_key, icv_bytes)?;
        let layout = Layout {
            iv_bytes: cipher.iv_bytes(),
            icv_bytes,
            block_bytes: cipher.block_bytes(),
        };
        let esp = Box::new(Authenc { cipher, mac, esn });
        Ok(Self { layout, esp })
    }

    /// Where IV and ICV are.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Seals `packet` in place.
    ///
    /// `seq` makes the IV, so no two packets of an SA may have the same, whatever
    /// the sequence number on the wire does (an SA whose 32-bit number may wrap
    /// counts on in 64 bits here). With ESN its high half is authenticated too.
    ///
    /// # Errors
    /// A packet that is too short, or whose body is no multiple of the block.
    #[inline]
    pub fn seal(&self, seq: u64, packet: &mut [u8]) -> Result<(), Refusal> {
        self.esp.seal(seq, packet)
    }

    /// Seals several packets. At least eight at a time make CBC encryption, which
    /// is serial within a packet, several times as fast.
    ///
    /// # Errors
    /// As for [`Self::seal`]; the contents of all packets are then unspecified.
    #[inline]
    pub fn seal_batch(&self, batch: &mut [Seal<'_>]) -> Result<(), Refusal> {
        self.esp.seal_batch(batch)
    }

    /// Checks and decrypts `packet` in place. `seq_hi` is the high half of the
    /// sequence number as the replay window infers it; nothing reads it without ESN.
    ///
    /// # Errors
    /// A packet that is too short or not authentic.
    #[inline]
    pub fn open(&self, seq_hi: u32, packet: &mut [u8]) -> Result<(), Refusal> {
        self.esp.open(seq_hi, packet)
    }
}

impl std::fmt::Debug for EspTransform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EspTransform")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// Encrypt, then MAC.
///
/// With ESN the high half of the sequence number follows the ciphertext in the
/// MAC's input and is not sent (RFC 4303 2.2.1).
struct Authenc {
    cipher: Box<dyn Cipher>,
    mac: Box<dyn Mac>,
    esn: bool,
}

impl Authenc {
    fn icv_at(&self, packet: &[u8]) -> Result<usize, Refusal> {
        let prefix = HEADER_BYTES + self.cipher.iv_bytes();
        let at = packet.len().checked_sub(self.mac.icv_bytes());
        at.filter(|at| *at >= prefix).ok_or(Refusal::Length)
    }

    fn write_icv(&self, seq_hi: u32, packet: &mut [u8]) -> Result<(), Refusal> {
        let at = self.icv_at(packet)?;
        let (sealed, icv) = packet.split_at_mut_checked(at).ok_or(Refusal::Length)?;
        let seq_hi = seq_hi.to_be_bytes();
        let seq_hi: &[u8] = if self.esn { &seq_hi } else { &[] };
        self.mac.write(&[sealed, seq_hi], icv);
        Ok(())
    }
}

/// The high half of a sequence number.
pub(super) const fn high(seq: u64) -> u32 {
    (seq >> 32) as u32
}

impl Esp for Authenc {
    fn seal(&self, seq: u64, packet: &mut [u8]) -> Result<(), Refusal> {
        let at = self.icv_at(packet)?;
        let encrypted = packet.get_mut(HEADER_BYTES..at).ok_or(Refusal::Length)?;
        self.cipher.encrypt(seq, encrypted)?;
        self.write_icv(high(seq), packet)
    }

    fn open(&self, seq_hi: u32, packet: &mut [u8]) -> Result<(), Refusal> {
        let at = self.icv_at(packet)?;
        let (sealed, icv) = packet.split_at_mut_checked(at).ok_or(Refusal::Length)?;
        let seq_hi = seq_hi.to_be_bytes();
        let seq_hi: &[u8] = if self.esn { &seq_hi } else { &[] };
        if !self.mac.verify(&[sealed, seq_hi], icv) {
            return Err(Refusal::Integrity);
        }
        let encrypted = sealed.get_mut(HEADER_BYTES..).ok_or(Refusal::Length)?;
        self.cipher.decrypt(encrypted)
    }

    fn seal_batch(&self, batch: &mut [Seal<'_>]) -> Result<(), Refusal> {
        self.cipher.encrypt_batch(batch, self.mac.icv_bytes())?;
        batch
            .iter_mut()
            .try_for_each(|job| self.write_icv(high(job.seq), job.packet))
    }
}
