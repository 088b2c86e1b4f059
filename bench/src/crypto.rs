//! An SA's transform beside the bare ciphers: IV, associated data, layout and
//! the virtual call are what ours does more.
//!
//! AEADs are compared with the fastest bare call of `ring` and of `RustCrypto`
//! (`aws-lc-rs` passes `ring` with AVX-512 and packets beyond 4 KiB only, and
//! costs half a minute to build); CBC and HMAC with `RustCrypto`'s, which no
//! other crate with a safe interface beats, one packet at a time. All of a row is
//! timed in turns.

use std::hint::black_box;

use aes::cipher::{BlockModeEncrypt, InnerIvInit, KeyInit};
use aes::{Aes128, Aes256};
use aes_gcm::{AeadInOut, AesGcm};
use anyhow::{Result, anyhow};
use dataplane::SeededEntropy;
use dataplane::crypto::{AeadAlgorithm, AuthAlgorithm, CipherAlgorithm, EspTransform, Seal};
use hmac::{EagerHash, Hmac, Mac};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};

use crate::figure::{Figure, Target};
use crate::stopwatch::{cpu_time, least};

pub(crate) const SIZES: [usize; 5] = [64, 256, 576, 1_420, 8_900];
const PREFIX_BYTES: usize = 16;
const ICV_BYTES: usize = 16;
const ROUNDS: usize = 25;

/// Something timed: its name, and one packet's work.
pub(crate) type Candidate<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// Nanoseconds a call of each, of rounds in turns the one that was least disturbed.
pub(crate) fn compare(candidates: &mut [Candidate<'_>], body_bytes: usize) -> Vec<f64> {
    let calls = 400_000 / (body_bytes + 200);
    let mut samples = vec![Vec::new(); candidates.len()];
    for _ in 0..ROUNDS {
        for ((_, work), samples) in candidates.iter_mut().zip(&mut samples) {
            samples.push(cpu_time(|| (0..calls).for_each(|_| work())) / calls as f64);
        }
    }
    samples.iter().map(|s| least(s)).collect()
}

/// The first against the fastest of the others.
pub(crate) fn figure(
    name: String,
    candidates: &mut [Candidate<'_>],
    body_bytes: usize,
    limit: f64,
) -> Result<Figure> {
    let times = compare(candidates, body_bytes);
    let (ours, others) = times.split_first().ok_or_else(|| anyhow!("no times"))?;
    let names = candidates.iter().skip(1).map(|(name, _)| *name);
    let (yardstick, against) = others
        .iter()
        .zip(names)
        .min_by(|a, b| a.0.total_cmp(b.0))
        .ok_or_else(|| anyhow!("no yardstick"))?;
    Ok(Figure {
        name,
        ours: *ours,
        yardstick: *yardstick,
        unit: "ns",
        against,
        target: Target::AtMost(limit),
    })
}

struct AeadRow {
    name: &'static str,
    algorithm: AeadAlgorithm,
    ring: &'static ring::aead::Algorithm,
    rust_crypto: Option<NewRustCrypto>,
}

/// A bare call: nonce, body with room for the tag behind it.
type RustCrypto = Box<dyn Fn([u8; 12], &mut [u8], Direction)>;

/// Makes one of a key.
type NewRustCrypto = fn(&[u8]) -> Option<RustCrypto>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Seal,
    Open,
}

fn rust_crypto<C>(key: &[u8]) -> Option<RustCrypto>
where
    AesGcm<C, aes::cipher::typenum::U12>: KeyInit + AeadInOut + 'static,
{
    let gcm = AesGcm::<C, aes::cipher::typenum::U12>::new_from_slice(key).ok()?;
    Some(Box::new(move |nonce, packet, direction| {
        let Ok(nonce) = (&nonce[..]).try_into() else {
            return;
        };
        let (body, tag) = packet.split_at_mut(packet.len() - ICV_BYTES);
        match direction {
            Direction::Seal => {
                if let Ok(made) = gcm.encrypt_inout_detached(nonce, &[1; 8], body.into()) {
                    tag.copy_from_slice(&made);
                }
            }
            Direction::Open => {
                if let Ok(tag) = (&*tag).try_into() {
                    _ = black_box(gcm.decrypt_inout_detached(nonce, &[1; 8], body.into(), tag));
                }
            }
        }
    }))
}

const AEADS: [AeadRow; 3] = [
    AeadRow {
        name: "AES-128-GCM",
        algorithm: AeadAlgorithm::AesGcm,
        ring: &AES_128_GCM,
        rust_crypto: Some(rust_crypto::<Aes128>),
    },
    AeadRow {
        name: "AES-256-GCM",
        algorithm: AeadAlgorithm::AesGcm,
        ring: &AES_256_GCM,
        rust_crypto: Some(rust_crypto::<Aes256>),
    },
    AeadRow {
        name: "ChaCha20-Poly1305",
        algorithm: AeadAlgorithm::ChaCha20Poly1305,
        ring: &CHACHA20_POLY1305,
        rust_crypto: None,
    },
];

impl AeadRow {
    fn figure(&self, body_bytes: usize, direction: Direction) -> Result<Figure> {
        let key_bytes = self.ring.key_len();
        let key = vec![7; key_bytes + 4];
        let bad_key = || anyhow!("{}: key refused", self.name);
        let mut entropy = SeededEntropy::new(1);
        let ours = EspTransform::aead(self.algorithm, &key, ICV_BYTES, false, &mut entropy)
            .map_err(|_| bad_key())?;
        let bare_key = key.get(..key_bytes).ok_or_else(bad_key)?;
        let ring = LessSafeKey::new(UnboundKey::new(self.ring, bare_key).map_err(|_| bad_key())?);
        let rust_crypto = self.rust_crypto.and_then(|new| new(bare_key));

        let zeros = vec![0; PREFIX_BYTES + body_bytes + ICV_BYTES];
        let mut sealed = zeros.clone();
        ours.seal(1, &mut sealed).map_err(|_| bad_key())?;
        // Both directions work on a fresh copy of what there is to do.
        let fresh = match direction {
            Direction::Seal => &zeros,
            Direction::Open => &sealed,
        };
        let mut sequence = 0;
        let mut packet = zeros.clone();
        let mut candidates: Vec<Candidate<'_>> = vec![(
            "ours",
            Box::new(move || {
                packet.copy_from_slice(fresh);
                sequence += 1;
                let result = match direction {
                    Direction::Seal => ours.seal(sequence, &mut packet),
                    Direction::Open => ours.open(0, &mut packet),
                };
                assert!(result.is_ok());
                black_box(&packet);
            }),
        )];

        // The bare call's own packet: the same body, under 8 bytes of associated data.
        let mut bare = vec![0; PREFIX_BYTES + body_bytes + ICV_BYTES];
        seal_ring(&ring, 0, &mut bare);
        let fresh = match direction {
            Direction::Seal => zeros.clone(),
            Direction::Open => bare,
        };
        let (mut sequence, mut packet) = (0, zeros.clone());
        let template = fresh.clone();
        candidates.push((
            "ring",
            Box::new(move || {
                packet.copy_from_slice(&template);
                match direction {
                    Direction::Seal => {
                        sequence += 1;
                        seal_ring(&ring, sequence, &mut packet);
                    }
                    Direction::Open => {
                        let Some(packet) = packet.get_mut(PREFIX_BYTES..) else {
                            return;
                        };
                        let aad = Aad::from([1; 8]);
                        assert!(ring.open_in_place(nonce(0), aad, packet).is_ok());
                    }
                }
                black_box(&packet);
            }),
        ));
        if let Some(call) = rust_crypto {
            let (mut sequence, mut packet) = (0_u64, zeros.clone());
            candidates.push((
                "RustCrypto",
                Box::new(move || {
                    packet.copy_from_slice(&fresh);
                    if direction == Direction::Seal {
                        sequence += 1;
                    }
                    if let Some(packet) = packet.get_mut(PREFIX_BYTES..) {
                        call(nonce_bytes(sequence), packet, direction);
                    }
                    black_box(&packet);
                }),
            ));
        }
        let verb = match direction {
            Direction::Seal => "seal",
            Direction::Open => "open",
        };
        let name = format!("crypto: {} {verb} {body_bytes} B", self.name);
        let limit = if body_bytes < 1_000 { 1.25 } else { 1.15 };
        figure(name, &mut candidates, body_bytes, limit)
    }
}

fn nonce_bytes(sequence: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    if let Some(end) = nonce.last_chunk_mut() {
        *end = sequence.to_be_bytes();
    }
    nonce
}

pub(crate) fn nonce(sequence: u64) -> ring::aead::Nonce {
    ring::aead::Nonce::assume_unique_for_key(nonce_bytes(sequence))
}

fn seal_ring(key: &LessSafeKey, sequence: u64, packet: &mut [u8]) {
    let Some((body, tag)) = packet
        .get_mut(PREFIX_BYTES..)
        .and_then(|rest| rest.split_last_chunk_mut::<ICV_BYTES>())
    else {
        return;
    };
    let made = key.seal_in_place_separate_tag(nonce(sequence), Aad::from([1; 8]), body);
    if let Ok(made) = made {
        tag.copy_from_slice(made.as_ref());
    }
}

/// `ring`'s calls on a packet, a fresh copy of it each time.
pub(crate) struct BareAead {
    key: LessSafeKey,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    work: Vec<u8>,
    sequence: u64,
}

impl BareAead {
    pub(crate) fn new(algorithm: &'static ring::aead::Algorithm, plain: &[u8]) -> Result<Self> {
        let key = UnboundKey::new(algorithm, &vec![7; algorithm.key_len()]);
        let key = LessSafeKey::new(key.map_err(|_| anyhow!("ring: key refused"))?);
        let mut sealed = plain.to_vec();
        key.seal_in_place_append_tag(nonce(0), Aad::from([1; 8]), &mut sealed)
            .map_err(|_| anyhow!("ring: packet refused"))?;
        Ok(Self {
            key,
            plain: plain.to_vec(),
            work: plain.to_vec(),
            sealed,
            sequence: 0,
        })
    }

    pub(crate) fn seal(&mut self) {
        self.work.clone_from(&self.plain);
        self.sequence += 1;
        let (nonce, aad) = (nonce(self.sequence), Aad::from([1; 8]));
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, aad, &mut self.work);
        assert!(black_box(tag).is_ok());
        black_box(&self.work);
    }

    pub(crate) fn open(&mut self) {
        self.work.clone_from(&self.sealed);
        open_in_place(&self.key, &mut self.work);
    }

    /// As many packets as there are to be opened one after the other.
    pub(crate) fn sealed(&self, count: usize) -> Vec<Vec<u8>> {
        vec![self.sealed.clone(); count]
    }

    /// Opens copies of packets; as many are in hand as there is room for.
    pub(crate) fn open_all(&self, sealed: &[Vec<u8>], hands: &mut [Vec<u8>]) {
        for packets in sealed.chunks(hands.len().max(1)) {
            for (hand, packet) in hands.iter_mut().zip(packets) {
                hand.clone_from(packet);
            }
            for (hand, _) in hands.iter_mut().zip(packets) {
                open_in_place(&self.key, hand);
            }
        }
    }
}

fn open_in_place(key: &LessSafeKey, sealed: &mut [u8]) {
    let opened = key.open_in_place(nonce(0), Aad::from([1; 8]), sealed);
    assert!(black_box(opened).is_ok());
}

const IV_BYTES: usize = 16;
const HEADER_BYTES: usize = 8;

/// The bare ciphers on one packet, ICV included.
pub(crate) fn bare_cbc_hmac<D>(packet_bytes: usize, icv_bytes: usize) -> Result<impl FnMut()>
where
    D: EagerHash,
    Hmac<D>: Clone + Mac + KeyInit,
{
    let aes = Aes128::new(&[3; 16].into());
    let hmac = <Hmac<D> as KeyInit>::new_from_slice(&[4; 32])?;
    let mut bare = vec![0; packet_bytes];
    Ok(move || {
        let (sealed, icv) = bare.split_at_mut(packet_bytes - icv_bytes);
        if let Some((iv, body)) = sealed
            .get_mut(HEADER_BYTES..)
            .and_then(|rest| rest.split_first_chunk_mut::<IV_BYTES>())
        {
            let (blocks, _) = aes::cipher::Array::slice_as_chunks_mut(body);
            cbc::Encryptor::inner_iv_init(&aes, &(*iv).into()).encrypt_blocks(blocks);
        }
        let mut hmac = hmac.clone();
        hmac.update(sealed);
        let full = hmac.finalize().into_bytes();
        icv.iter_mut().zip(full).for_each(|(i, f)| *i = f);
        black_box(&bare);
    })
}

/// AES-128-CBC and HMAC, one packet and `at_once` packets a call.
fn cbc_hmac<D>(
    name: &str,
    auth: AuthAlgorithm,
    icv_bytes: usize,
    body_bytes: usize,
    at_once: usize,
) -> Result<Figure>
where
    D: EagerHash,
    Hmac<D>: Clone + Mac + KeyInit,
{
    let (key, auth_key) = ([3; 16], [4; 32]);
    let ours = EspTransform::authenc(
        (CipherAlgorithm::AesCbc, &key),
        (auth, &auth_key),
        icv_bytes,
        false,
        &mut SeededEntropy::new(1),
    )
    .map_err(|_| anyhow!("{name}: key refused"))?;
    let body_bytes = body_bytes.next_multiple_of(16);
    let packet_bytes = HEADER_BYTES + IV_BYTES + body_bytes + icv_bytes;
    let mut packets = vec![vec![0; packet_bytes]; at_once];
    let mut sequence = 0;
    let bare = bare_cbc_hmac::<D>(packet_bytes, icv_bytes)?;
    let mut candidates: Vec<Candidate<'_>> = vec![
        (
            "ours",
            Box::new(|| {
                let mut batch: Vec<Seal<'_>> = packets
                    .iter_mut()
                    .map(|packet| {
                        sequence += 1;
                        Seal {
                            seq: sequence,
                            packet,
                        }
                    })
                    .collect();
                let result = match batch.as_mut_slice() {
                    [job] => ours.seal(job.seq, job.packet),
                    batch => ours.seal_batch(batch),
                };
                assert!(result.is_ok());
                black_box(&batch);
            }),
        ),
        ("bare", Box::new(bare)),
    ];
    let limit = match (at_once, body_bytes) {
        // The IV is one block more to encrypt, and a short packet has four.
        (1, ..256) => 1.35,
        (1, _) => 1.15,
        // Interleaving leaves the HMAC as it is, which is most of a short packet.
        (_, ..256) => 1.0,
        (_, ..1_000) => 0.8,
        _ => 0.65,
    };
    let name = format!("crypto: AES-128-CBC+{name} {body_bytes} B, {at_once} at once");
    figure(name, &mut candidates, body_bytes, limit).map(|figure| Figure {
        ours: figure.ours / at_once as f64,
        ..figure
    })
}

/// All figures of this module.
pub(crate) fn run() -> Result<Vec<Figure>> {
    let mut all = Vec::new();
    for row in AEADS {
        for direction in [Direction::Seal, Direction::Open] {
            for size in SIZES {
                all.push(row.figure(size, direction)?);
            }
        }
    }
    for at_once in [1, 8, 16] {
        for size in SIZES {
            let sha1 = AuthAlgorithm::HmacSha1;
            let sha256 = AuthAlgorithm::HmacSha256;
            all.push(cbc_hmac::<sha1::Sha1>("SHA1-96", sha1, 12, size, at_once)?);
            let name = "SHA256-128";
            all.push(cbc_hmac::<sha2::Sha256>(name, sha256, 16, size, at_once)?);
        }
    }
    Ok(all)
}
