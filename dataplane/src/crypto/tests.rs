use super::*;
use crate::SeededEntropy;

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
