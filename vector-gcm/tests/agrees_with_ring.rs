//! Every length, both directions, beside `ring`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the helpers of tests are tests"
)]

use proptest::prelude::*;
use ring::aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey};
use vector_gcm::{AesGcm, Nonce};

struct Both {
    ours: AesGcm,
    ring: LessSafeKey,
}

/// `None` on a processor without the instructions.
fn both(key: &[u8]) -> Option<Both> {
    let Some(ours) = AesGcm::new(key) else {
        eprintln!("skipped: this processor has no VAES");
        return None;
    };
    let algorithm = if key.len() == 16 {
        &AES_128_GCM
    } else {
        &AES_256_GCM
    };
    let ring = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    Some(Both { ours, ring })
}

impl Both {
    fn check(&self, salt: [u8; 4], iv: [u8; 8], aad: &[u8], plain: &[u8]) {
        let nonce = Nonce::of_parts(salt, iv);
        let ours_aad = match aad.len() {
            8 => <[u8; 8]>::try_from(aad).unwrap().into(),
            _ => <[u8; 12]>::try_from(aad).unwrap().into(),
        };
        let mut expected = plain.to_vec();
        let ring_nonce = [&salt[..], &iv].concat().try_into().unwrap();
        let ring_nonce = ring::aead::Nonce::assume_unique_for_key(ring_nonce);
        let aad = ring::aead::Aad::from(aad);
        let tag = self
            .ring
            .seal_in_place_separate_tag(ring_nonce, aad, &mut expected);
        let tag = tag.unwrap();

        let mut body = plain.to_vec();
        let ours = self.ours.seal(nonce, ours_aad, &mut body);
        assert_eq!(body, expected, "{} bytes", plain.len());
        assert_eq!(ours, tag.as_ref(), "{} bytes", plain.len());

        for icv_bytes in [8, 12, 15, 16] {
            let mut opened = body.clone();
            let icv = &ours[..icv_bytes];
            assert!(self.ours.open(nonce, ours_aad, &mut opened, icv));
            assert_eq!(opened, plain);
        }
        for icv in [&ours[..7], &[], &[&ours[..], &[0]].concat()] {
            assert!(!self.ours.open(nonce, ours_aad, &mut body.clone(), icv));
        }
        let mut spoiled = ours;
        spoiled[usize::from(iv[7] % 16)] ^= 1 << (iv[6] % 8);
        let mut opened = body.clone();
        assert!(!self.ours.open(nonce, ours_aad, &mut opened, &spoiled));
        assert!(opened.iter().all(|byte| *byte == 0));
        if let Some(at) = (!body.is_empty()).then(|| usize::from(iv[5]) % body.len()) {
            body[at] ^= 0x80;
            assert!(!self.ours.open(nonce, ours_aad, &mut body, &ours));
        }
    }
}

#[test]
fn every_length() {
    for key in [&[7_u8; 16][..], &[9; 32]] {
        let Some(both) = both(key) else { return };
        let plain: Vec<u8> = (0..600_u32)
            .map(|n| u8::try_from(n * 7 % 251).unwrap())
            .collect();
        for bytes in 0..=plain.len() {
            let iv = (bytes as u64 * 0x1234_5678_9abc).to_be_bytes();
            both.check([1, 2, 3, 4], iv, &[5; 8], &plain[..bytes]);
        }
        both.check([1, 2, 3, 4], [5; 8], &[5; 12], &vec![3; 65_535]);
    }
}

#[test]
fn other_keys_are_refused() {
    for bytes in [0, 15, 17, 24, 31, 33] {
        assert!(AesGcm::new(&vec![0; bytes]).is_none());
    }
}

proptest! {
    #[test]
    fn any_text(
        key in prop_oneof![proptest::collection::vec(any::<u8>(), 16), proptest::collection::vec(any::<u8>(), 32)],
        salt: [u8; 4],
        iv: [u8; 8],
        aad in prop_oneof![proptest::collection::vec(any::<u8>(), 8), proptest::collection::vec(any::<u8>(), 12)],
        plain in proptest::collection::vec(any::<u8>(), 0..2_000),
    ) {
        if let Some(both) = both(&key) {
            both.check(salt, iv, &aad, &plain);
        }
    }
}
