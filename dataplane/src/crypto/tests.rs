#![expect(clippy::cast_possible_truncation, reason = "made-up packets")]

use proptest::prelude::*;

use super::*;
use crate::{Entropy as _, SeededEntropy};

fn all() -> Vec<(String, EspTransform)> {
    let mut made = Vec::new();
    for esn in [false, true] {
        let mut entropy = SeededEntropy::new(7);
        for (algorithm, key_bytes, icv_bytes) in [
            (AeadAlgorithm::AesGcm, 20, 16),
            (AeadAlgorithm::AesGcm, 20, 12),
            (AeadAlgorithm::AesGcm, 28, 16),
            (AeadAlgorithm::AesGcm, 36, 16),
            (AeadAlgorithm::AesGcm, 36, 8),
            (AeadAlgorithm::AesCcm, 19, 8),
            (AeadAlgorithm::AesCcm, 27, 12),
            (AeadAlgorithm::AesCcm, 35, 16),
            (AeadAlgorithm::AesGmac, 20, 16),
            (AeadAlgorithm::AesGmac, 28, 16),
            (AeadAlgorithm::AesGmac, 36, 16),
            (AeadAlgorithm::ChaCha20Poly1305, 36, 16),
        ] {
            let key: Vec<u8> = (0..key_bytes).collect();
            let transform =
                EspTransform::aead(algorithm, &key, icv_bytes, esn, &mut entropy).unwrap();
            made.push((
                format!("{algorithm:?} {key_bytes} {icv_bytes} {esn}"),
                transform,
            ));
        }
        for (cipher, key_bytes) in CIPHERS {
            for (auth, auth_key_bytes, icv_bytes) in [
                (AuthAlgorithm::HmacSha1, 20, 12),
                (AuthAlgorithm::HmacSha256, 32, 16),
                (AuthAlgorithm::AesXcbc, 16, 12),
            ] {
                let key: Vec<u8> = (0..key_bytes).collect();
                let auth_key = vec![3; auth_key_bytes];
                let transform = EspTransform::authenc(
                    (cipher, &key),
                    (auth, &auth_key),
                    icv_bytes,
                    esn,
                    &mut entropy,
                )
                .unwrap();
                made.push((format!("{cipher:?} {key_bytes} {auth:?} {esn}"), transform));
            }
        }
    }
    made
}

const CIPHERS: [(CipherAlgorithm, u8); 20] = [
    (CipherAlgorithm::Null, 0),
    (CipherAlgorithm::AesCbc, 16),
    (CipherAlgorithm::AesCbc, 24),
    (CipherAlgorithm::AesCbc, 32),
    (CipherAlgorithm::DesCbc, 8),
    (CipherAlgorithm::TripleDesCbc, 24),
    (CipherAlgorithm::Cast5Cbc, 5),
    (CipherAlgorithm::Cast5Cbc, 16),
    (CipherAlgorithm::BlowfishCbc, 4),
    (CipherAlgorithm::BlowfishCbc, 56),
    (CipherAlgorithm::SerpentCbc, 0),
    (CipherAlgorithm::SerpentCbc, 32),
    (CipherAlgorithm::CamelliaCbc, 16),
    (CipherAlgorithm::CamelliaCbc, 24),
    (CipherAlgorithm::CamelliaCbc, 32),
    (CipherAlgorithm::TwofishCbc, 16),
    (CipherAlgorithm::TwofishCbc, 24),
    (CipherAlgorithm::TwofishCbc, 32),
    (CipherAlgorithm::Sm4Cbc, 16),
    (CipherAlgorithm::AesCtr, 20),
];

/// A packet of `blocks` blocks, its body counting up.
fn packet(layout: &Layout, blocks: usize, seq: u32) -> Vec<u8> {
    let block_bytes = layout.block_bytes.max(4);
    let mut packet = vec![0; layout.prefix_bytes()];
    packet[..4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    packet[4..8].copy_from_slice(&seq.to_be_bytes());
    packet.extend((0..blocks * block_bytes).map(|i| (i % 251) as u8));
    packet.resize(packet.len() + layout.icv_bytes, 0);
    packet
}

fn body<'a>(layout: &Layout, packet: &'a [u8]) -> &'a [u8] {
    &packet[layout.prefix_bytes()..packet.len() - layout.icv_bytes]
}

#[test]
fn what_is_sealed_opens() {
    for (name, transform) in all() {
        let layout = *transform.layout();
        for blocks in [0, 1, 2, 3, 7, 16, 17, 90, 400] {
            let plain = packet(&layout, blocks, 9);
            let mut sealed = plain.clone();
            transform.seal((5 << 32) | 9, &mut sealed).unwrap();
            let integrity_only = name.starts_with("Null") || name.contains("Gmac");
            if blocks > 1 && !integrity_only {
                assert_ne!(body(&layout, &sealed), body(&layout, &plain), "{name}");
            }
            assert_eq!(sealed[..8], plain[..8]);
            transform.open(5, &mut sealed).unwrap();
            assert_eq!(body(&layout, &sealed), body(&layout, &plain), "{name}");
        }
    }
}

#[test]
fn short_packets_are_refused() {
    for (name, transform) in all() {
        let layout = *transform.layout();
        let least = layout.prefix_bytes() + layout.icv_bytes;
        for bytes in 0..least + 70 {
            let mut packet = vec![0xa5; bytes];
            let whole = bytes >= least && (bytes - least).is_multiple_of(layout.block_bytes);
            assert_eq!(transform.seal(1, &mut packet).is_ok(), whole, "{name}");
            let mut batch = [Seal {
                seq: 1,
                packet: &mut packet,
            }];
            assert_eq!(transform.seal_batch(&mut batch).is_ok(), whole, "{name}");
            let mut packet = vec![0x5a; bytes];
            let refusal = transform.open(1, &mut packet).unwrap_err();
            let short = bytes < least;
            assert_eq!(refusal == Refusal::Length, short, "{name} {bytes}");
        }
    }
}

/// As in Linux's `authenc`: the ICV is checked first.
#[test]
fn a_body_that_is_no_multiple_of_the_block_is_refused_after_its_icv() {
    let auth = (AuthAlgorithm::HmacSha256, &[1; 32][..]);
    let mut entropy = SeededEntropy::new(1);
    let cbc = (CipherAlgorithm::AesCbc, &[2; 16][..]);
    let cbc = EspTransform::authenc(cbc, auth, 16, false, &mut entropy).unwrap();
    let null = (CipherAlgorithm::Null, &[][..]);
    let null = EspTransform::authenc(null, auth, 16, false, &mut entropy).unwrap();
    let mut packet = vec![9; 8 + 16 + 17 + 16];
    null.seal(1, &mut packet).unwrap();
    assert_eq!(cbc.open(0, &mut packet.clone()), Err(Refusal::Length));
    packet[30] ^= 1;
    assert_eq!(cbc.open(0, &mut packet), Err(Refusal::Integrity));
}

#[test]
fn every_flipped_bit_is_refused() {
    for (name, transform) in all() {
        let layout = *transform.layout();
        let mut sealed = packet(&layout, 3, 9);
        transform.seal((5 << 32) | 9, &mut sealed).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let result = transform.open(5, &mut forged);
            assert_eq!(result, Err(Refusal::Integrity), "{name} bit {bit}");
        }
        let esn = name.ends_with("true");
        assert_eq!(
            transform.open(4, &mut sealed.clone()).is_err(),
            esn,
            "{name}"
        );
        let mut short = sealed[..sealed.len() - 1].to_vec();
        assert!(transform.open(5, &mut short).is_err(), "{name}");
    }
}

#[test]
fn keys_and_icvs_of_other_lengths_are_refused() {
    let mut entropy = SeededEntropy::new(1);
    let table = |cipher: CipherAlgorithm| {
        CIPHERS
            .iter()
            .filter(|c| c.0 == cipher)
            .map(|c| usize::from(c.1))
            .collect::<Vec<_>>()
    };
    for (cipher, _) in CIPHERS {
        let lengths = table(cipher);
        for bytes in 0..80 {
            let key = vec![1; bytes];
            let made = EspTransform::authenc(
                (cipher, &key),
                (AuthAlgorithm::Null, &[]),
                0,
                false,
                &mut entropy,
            );
            let range = matches!(
                cipher,
                CipherAlgorithm::Cast5Cbc
                    | CipherAlgorithm::BlowfishCbc
                    | CipherAlgorithm::SerpentCbc
            );
            let good = match cipher {
                CipherAlgorithm::AesCtr => [20, 28, 36].contains(&bytes),
                _ if range => (lengths[0]..=lengths[1]).contains(&bytes),
                _ => lengths.contains(&bytes),
            };
            assert_eq!(made.is_ok(), good, "{cipher:?} {bytes}");
        }
    }
    for algorithm in [
        AeadAlgorithm::AesGcm,
        AeadAlgorithm::AesCcm,
        AeadAlgorithm::AesGmac,
        AeadAlgorithm::ChaCha20Poly1305,
    ] {
        let (keys, icvs): (&[usize], &[usize]) = match algorithm {
            AeadAlgorithm::AesGcm => (&[20, 28, 36], &[8, 12, 16]),
            AeadAlgorithm::AesCcm => (&[19, 27, 35], &[8, 12, 16]),
            AeadAlgorithm::AesGmac => (&[20, 28, 36], &[16]),
            AeadAlgorithm::ChaCha20Poly1305 => (&[36], &[16]),
        };
        for bytes in 0..40 {
            for icv_bytes in 0..20 {
                let key = vec![1; bytes];
                let made = EspTransform::aead(algorithm, &key, icv_bytes, false, &mut entropy);
                let good = keys.contains(&bytes) && icvs.contains(&icv_bytes);
                assert_eq!(made.is_ok(), good, "{algorithm:?} {bytes} {icv_bytes}");
            }
        }
    }
    assert!(mac(AuthAlgorithm::HmacSha1, &[], 21).is_err());
    assert!(mac(AuthAlgorithm::HmacSha1, &[], 20).is_ok());
    assert!(mac(AuthAlgorithm::AesXcbc, &[0; 20], 12).is_err());
    assert!(mac(AuthAlgorithm::Null, &[1], 1).is_err());
}

#[test]
fn no_two_packets_have_the_same_iv() {
    for (name, transform) in all() {
        let layout = *transform.layout();
        if layout.iv_bytes == 0 {
            continue;
        }
        let mut seen = std::collections::HashSet::new();
        for seq in (1..50).chain((1 << 32)..(1 << 32) + 50) {
            let mut packet = packet(&layout, 2, 9);
            transform.seal(seq, &mut packet).unwrap();
            assert!(
                seen.insert(packet[8..layout.prefix_bytes()].to_vec()),
                "{name}"
            );
        }
    }
}

/// `ring` has the one, `RustCrypto` the others.
#[test]
fn a_short_icv_is_the_start_of_the_full_one() {
    for (key_bytes, bytes) in [
        (20, 0),
        (20, 1),
        (36, 16),
        (36, 333),
        (20, 1420),
        (20, 9000),
    ] {
        let key = vec![8; key_bytes];
        let sealed = [16, 12, 8].map(|icv_bytes| {
            let mut entropy = SeededEntropy::new(1);
            let algorithm = AeadAlgorithm::AesGcm;
            let transform =
                EspTransform::aead(algorithm, &key, icv_bytes, true, &mut entropy).unwrap();
            let mut packet = vec![3; 16 + bytes + icv_bytes];
            transform.seal(7 << 32, &mut packet).unwrap();
            packet
        });
        assert_eq!(sealed[0][..sealed[1].len()], sealed[1]);
        assert_eq!(sealed[0][..sealed[2].len()], sealed[2]);
    }
}

#[test]
fn shared_by_workers() {
    fn check<T: Send + Sync>() {}
    check::<EspTransform>();
    check::<Box<dyn Mac>>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_batch_is_its_packets(lengths in prop::collection::vec(0usize..30, 0..30), seed: u64) {
        for (name, transform) in all() {
            let layout = *transform.layout();
            let mut one: Vec<Vec<u8>> = lengths.iter().map(|l| packet(&layout, *l, 7)).collect();
            let mut many = one.clone();
            let seq = |i: usize| seed.wrapping_add(i as u64);
            for (i, packet) in one.iter_mut().enumerate() {
                transform.seal(seq(i), packet).unwrap();
            }
            let mut batch: Vec<Seal<'_>> = many
                .iter_mut()
                .enumerate()
                .map(|(i, packet)| Seal { seq: seq(i), packet })
                .collect();
            transform.seal_batch(&mut batch).unwrap();
            prop_assert!(one == many, "{}", name);
        }
    }

    #[test]
    fn any_bytes_may_arrive(mut bytes in prop::collection::vec(any::<u8>(), 0..300), high: u32) {
        for (_, transform) in all() {
            prop_assert!(transform.open(high, &mut bytes.clone()).is_err());
        }
        let mut deflate = Deflate::default();
        let mut output = [0; 64];
        let _ = deflate.decompress(&bytes, &mut output);
        bytes.truncate(3);
        let _ = deflate.decompress(&bytes, &mut []);
    }

    #[test]
    fn what_is_deflated_inflates(seed: u64, period in 1usize..3000, bytes in 0usize..65_000) {
        let mut entropy = SeededEntropy::new(seed);
        let noise: Vec<u8> = (0..period).map(|_| entropy.u32() as u8 & 15).collect();
        let input: Vec<u8> = noise.iter().copied().cycle().take(bytes).collect();
        let mut deflate = Deflate::default();
        let mut compressed = vec![0; bytes + 100];
        let length = deflate.compress(&input, &mut compressed).unwrap();
        let mut output = vec![0; bytes];
        let back = deflate.decompress(&compressed[..length], &mut output);
        prop_assert_eq!(back, Some(bytes));
        prop_assert!(output == input);
    }
}
