//! What an SA computes on a packet: sealing and opening (ESP), MACs (AH) and
//! compression (IPCOMP).
//!
//! An SA gets its transform once, when its keys arrive; from then on a packet
//! costs one virtual call and no allocation. The engine's own buffer is
//! transformed in place.
//!
//! * [`EspTransform`]: one ESP packet, `SPI | seq | IV | body | ICV`, sealed or
//!   opened; made by [`EspTransform::aead`] or [`EspTransform::authenc`].
//! * [`Mac`]: a truncated MAC over pieces of a packet, for AH; made by [`mac`].
//! * [`Deflate`]: compression; it keeps no SA's state, so a worker has one.
//! * [`Algorithm`]: what Linux calls it, and which keys and ICVs a client may give it.
//!
//! Choices that measurement made (nanoseconds in `aead.rs` and `cbc.rs`): AES-GCM
//! with its full ICV and ChaCha20-Poly1305 come from `ring`, everything else from
//! `RustCrypto`. Both choose their code from the CPU's features at run time and
//! fall back to portable code.
//!
//! Keys: every `RustCrypto` key schedule and hash state is wiped when dropped.
//! `ring` keeps no such promise for its own.

mod aead;
mod algorithm;
mod auth;
mod cbc;
mod cipher;
mod comp;
#[cfg(test)]
mod esp_vectors;
mod gcm;
#[cfg(test)]
mod tests;
mod transform;
#[cfg(test)]
mod vectors;

pub use aead::AeadAlgorithm;
pub use algorithm::{Algorithm, KeyBytes, Kind, aead, auth, cipher, compressor};
pub use auth::{AuthAlgorithm, Mac, mac};
pub use cipher::CipherAlgorithm;
pub use comp::Deflate;
pub use transform::{EspTransform, Layout, Refusal, Seal};

/// Why no transform could be made: a key or ICV length that the algorithm does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadKey;
