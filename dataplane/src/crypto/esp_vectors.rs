//! Known answers that are whole ESP packets: RFC 3602 cases 5 to 8, and the cases of
//! `draft-mcgrew-gcm-test-01`, which RFCs 4106 and 4543 have no others than.
//!
//! RFC 4309 has none; its packets are those that Linux sealed (`dataplane/tests/recorded_packets`).

use super::vectors::{Always, hex};
use super::*;

/// An ESP packet in its parts.
struct Case {
    spi: u32,
    sequence: u64,
    iv: &'static str,
    plain: &'static str,
    sealed: &'static str,
}

impl Case {
    /// As it is on the wire.
    fn packet(&self, sealed: &[u8]) -> Vec<u8> {
        let low = u32::try_from(self.sequence & 0xffff_ffff).unwrap();
        let head = [self.spi.to_be_bytes(), low.to_be_bytes()].concat();
        [&head[..], &hex(self.iv), sealed].concat()
    }

    /// Opened, and sealed again with the same IV.
    fn check(&self, algorithm: AeadAlgorithm, key: &str, esn: bool) {
        let (high, iv) = (self.sequence >> 32, hex(self.iv));
        let iv = u64::from_be_bytes(*iv.first_chunk().unwrap());
        let mut entropy = Always(iv ^ self.sequence);
        let transform = EspTransform::aead(algorithm, &hex(key), 16, esn, &mut entropy).unwrap();
        let wire = self.packet(&hex(self.sealed));
        let mut packet = wire.clone();
        let high = u32::try_from(high).unwrap();
        transform.open(high, &mut packet).unwrap();
        let prefix = transform.layout().prefix_bytes();
        assert_eq!(packet[prefix..packet.len() - 16], hex(self.plain));
        let plain = [hex(self.plain), vec![0; 16]].concat();
        let mut packet = self.packet(&plain);
        transform.seal(self.sequence, &mut packet).unwrap();
        assert_eq!(packet, wire);
        // Any other number, also of the high half, is another packet.
        if esn {
            let mut packet = wire;
            assert!(transform.open(high ^ 1, &mut packet).is_err());
        }
    }
}

#[test]
fn gcm_of_draft_mcgrew() {
    let with_esn = Case {
        spi: 0x4321,
        sequence: 0x8765_4321_0000_0000,
        iv: "4956ed7e3b244cfe",
        plain: "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
                00000000045f736970045f756470037369700963796265726369747902646b00
                0021000101020201",
        sealed: "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
                 cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
                 61bc17d768fd9732459018148f6cbe722fd04796562dfdb4",
    };
    let key = "4c80cdefbb5d10da906ac73c3613a6342e443b68";
    with_esn.check(AeadAlgorithm::AesGcm, key, true);
    let of_192_bits = Case {
        spi: 0xa5f8,
        sequence: 10,
        iv: "facedbaddecaf888",
        plain: "45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e
                501016d075680001",
        sealed: "a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0
                 315b27452144cc7795457b9652037f5318027b5b4cd7a636",
    };
    let key = "feffe9928665731c6d6a8f9467308308feffe9928665731ccafebabe";
    of_192_bits.check(AeadAlgorithm::AesGcm, key, false);
    let of_256_bits = Case {
        spi: 0x4a2c_bfe3,
        sequence: 2,
        iv: "0102030405060708",
        plain: "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee000000000
                7002400020bf0000020405b40101040201020201",
        sealed: "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763
                 748a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c49
                 15956c96",
    };
    let key = "abbccddef00112233445566778899aababbccddef00112233445566778899aab11223344";
    of_256_bits.check(AeadAlgorithm::AesGcm, key, false);
}

#[test]
fn gmac_of_draft_mcgrew() {
    let case = Case {
        spi: 0x4321,
        sequence: 7,
        iv: "0000000000000000",
        plain: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364
                65666768696a6b6c6d6e6f707172737401020201",
        sealed: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364
                 65666768696a6b6c6d6e6f707172737401020201f2a9a836e155106aa8dcd618
                 e4099aaa",
    };
    let key = "4c80cdefbb5d10da906ac73c3613a63422433c64";
    case.check(AeadAlgorithm::AesGmac, key, false);
}

/// ESP without authentication, as RFC 3602 has it.
fn check_cbc(key: &str, case: &Case) {
    let key = hex(key);
    let cipher = (CipherAlgorithm::AesCbc, &key[..]);
    let null = (AuthAlgorithm::Null, &[][..]);
    let mut entropy = Always(1);
    let transform = EspTransform::authenc(cipher, null, 0, false, &mut entropy).unwrap();
    let mut packet = case.packet(&hex(case.sealed));
    transform.open(0, &mut packet).unwrap();
    assert_eq!(packet[transform.layout().prefix_bytes()..], hex(case.plain));
}

#[test]
fn cbc_of_rfc_3602_cases_5_to_8() {
    let (transport, tunnel) = (
        "90d382b410eeba7ad938c46cec1a82bf",
        "0123456789abcdef0123456789abcdef",
    );
    let case_5 = Case {
        spi: 0x4321,
        sequence: 1,
        iv: "e96e8c08ab465763fd098d45dd3ff893",
        plain: "08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f1011121314151617
                18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637
                0102030405060708090a0b0c0d0e0e01",
        sealed: "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856
                 a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874a
                 a269add047ad2d5913ac19b7cfbad4a6",
    };
    let case_6 = Case {
        spi: 0x4321,
        sequence: 8,
        iv: "69d08df7d203329db093fc4924e5bd80",
        plain: "0800b5e8a80a0500a69c083d0b660e0077777777777777777777777701020201",
        sealed: "f51995881ec4e0c4488987ce742e8109689bb379d2d750c0d915dca346a89f75",
    };
    let case_7 = Case {
        spi: 0x8765,
        sequence: 2,
        iv: "f4e765244f6407adf13dc1380f673f37",
        plain: "45000054090400004001f988c0a87b03c0a87bc808009f76a90a0100b49c083d
                02a2040008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
                2425262728292a2b2c2d2e2f30313233343536370102030405060708090a0a04",
        sealed: "773b5241a4c449225e4f3ce5ed611b0c237ca96cf74a93013c1b0ea1a0cf70f8
                 e4ecaec78ac53aad7a0f022b859243c647752e94a859352b8a4d4d2decd136e5
                 c177f132ad3fbfb2201ac9904c74ee0a109e0ca1e4dfe9d5a100b842f1c22f0d",
    };
    let case_8 = Case {
        spi: 0x8765,
        sequence: 5,
        iv: "85d47224b5f3dd5d2101d4ea8dffab22",
        plain: "45000044090c00004001f990c0a87b03c0a87bc80800d63caa0a0200c69c083d
                a3de0300ffffffffffffffffffffffffffffffffffffffffffffffffffffffff
                ffffffff0102030405060708090a0a04",
        sealed: "15b92683819596a8047232cc00f7048fe45318e11f8a0f62ede3c3fc61203bb5
                 0f980a08c9843fd3a1b06d5c07ff9639b7eb7dfb3512e5de435e7207ed971ef3
                 d2726d9b5ef6affc6d17a0decbb13892",
    };
    check_cbc(transport, &case_5);
    check_cbc(transport, &case_6);
    check_cbc(tunnel, &case_7);
    check_cbc(tunnel, &case_8);
}
