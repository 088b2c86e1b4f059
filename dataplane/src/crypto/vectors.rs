//! Known answers: of the RFCs, of NIST, of the ciphers' authors, and packets that
//! Linux sealed (`testdata/record.py`).
#![expect(clippy::cast_possible_truncation, reason = "made-up packets")]

use aes::{Aes128Enc, Aes192Enc, Aes256Enc};

use super::aead::Primitive;
use super::gcm::Gcm;
use super::*;
use crate::{Entropy, SeededEntropy};

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|b| char::from(b).to_digit(16).unwrap() as u8)
        .collect();
    assert!(digits.len().is_multiple_of(2));
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}

/// What makes the IV come out as wanted.
pub(super) struct Always(pub(super) u64);

impl Entropy for Always {
    fn u64(&mut self) -> u64 {
        self.0
    }
}

fn check_mac(algorithm: AuthAlgorithm, key: &[u8], message: &[u8], expected: &str) {
    let expected = hex(expected);
    let mac = mac(algorithm, key, expected.len()).unwrap();
    let mut icv = vec![0; expected.len()];
    mac.write(&[message], &mut icv);
    assert_eq!(icv, expected, "{algorithm:?}");
    for cut in 0..=message.len() {
        let (first, second) = message.split_at(cut);
        assert!(mac.verify(&[first, &[], second], &expected));
    }
    icv[0] ^= 1;
    assert!(!mac.verify(&[message], &icv));
    assert!(!mac.verify(&[message], &expected[1..]));
}

/// RFC 2202 (which 2403 and 2404 refer to), cases 1, 2, 5 and 6.
#[test]
fn hmac_md5_and_sha1_of_rfc_2202() {
    use AuthAlgorithm::{HmacMd5, HmacSha1};
    check_mac(
        HmacMd5,
        &[0x0b; 16],
        b"Hi There",
        "9294727a3638bb1c13f48ef8158bfc9d",
    );
    check_mac(
        HmacSha1,
        &[0x0b; 20],
        b"Hi There",
        "b617318655057264e28bc0b6fb378c8ef146be00",
    );
    let question = b"what do ya want for nothing?";
    check_mac(
        HmacMd5,
        b"Jefe",
        question,
        "750c783e6ab0b503eaa86e310a5db738",
    );
    check_mac(
        HmacSha1,
        b"Jefe",
        question,
        "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79",
    );
    let truncation = b"Test With Truncation";
    check_mac(HmacMd5, &[0x0c; 16], truncation, "56461ef2342edc00f9bab995");
    check_mac(
        HmacSha1,
        &[0x0c; 20],
        truncation,
        "4c1a03424b55e07fe7f27be1",
    );
    let long_key = b"Test Using Larger Than Block-Size Key - Hash Key First";
    check_mac(
        HmacMd5,
        &[0xaa; 80],
        long_key,
        "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd",
    );
    check_mac(
        HmacSha1,
        &[0xaa; 80],
        long_key,
        "aa4ae5e15272d00e95705637ce8a3b55ed402112",
    );
}

/// RFC 4231 case 1; RFC 4868 2.7.2 AUTH256-1, AUTH384-1, AUTH512-1.
#[test]
fn hmac_sha2_of_rfc_4231_and_4868() {
    use AuthAlgorithm::{HmacSha256, HmacSha384, HmacSha512};
    check_mac(
        HmacSha256,
        &[0x0b; 32],
        b"Hi There",
        "198a607eb44bfbc69903a0f1cf2bbdc5",
    );
    check_mac(
        HmacSha384,
        &[0x0b; 48],
        b"Hi There",
        "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973",
    );
    check_mac(
        HmacSha512,
        &[0x0b; 64],
        b"Hi There",
        "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8",
    );
    check_mac(
        HmacSha256,
        &[0x0b; 20],
        b"Hi There",
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
    );
    check_mac(
        HmacSha384,
        &[0x0b; 20],
        b"Hi There",
        "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c
         faea9ea9076ede7f4af152e8b2fa9cb6",
    );
    check_mac(
        HmacSha512,
        &[0x0b; 20],
        b"Hi There",
        "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde
         daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
    );
}

/// RFC 2286, cases 1 and 2; SM3 as OpenSSL computes it.
#[test]
fn hmac_rmd160_of_rfc_2286_and_sm3() {
    use AuthAlgorithm::{HmacRmd160, HmacSm3};
    let question = b"what do ya want for nothing?";
    check_mac(
        HmacRmd160,
        &[0x0b; 20],
        b"Hi There",
        "24cb4bd67d20fc1a5d2ed7732dcc39377f0a5668",
    );
    check_mac(
        HmacRmd160,
        b"Jefe",
        question,
        "dda6c0213a485a9e24f4742064a7f033b43c4069",
    );
    check_mac(
        HmacSm3,
        b"Jefe",
        question,
        "2e87f1d16862e6d964b50a5200bf2b10b764faa9680a296a2405f24bec39f882",
    );
}

/// RFC 3566 4.6.
#[test]
fn xcbc_of_rfc_3566() {
    let key: Vec<u8> = (0..16).collect();
    for (bytes, expected) in [
        (0, "75f0251d528ac01c4573dfd584d79f29"),
        (3, "5b376580ae2f19afe7219ceef172756f"),
        (16, "d2a246fa349b68a79998a4394ff7a263"),
        (20, "47f51b4564966215b8985c63055ed308"),
        (32, "f54f0ec8d2b9f3d36807734bd5283fd4"),
        (34, "becbb3bccdb518a30677d5481fb6b4d8"),
    ] {
        let message: Vec<u8> = (0..bytes).collect();
        check_mac(AuthAlgorithm::AesXcbc, &key, &message, expected);
    }
    let zeros = [0; 1000];
    check_mac(
        AuthAlgorithm::AesXcbc,
        &key,
        &zeros,
        "f0dafee895db30253761103b5d84528f",
    );
}

/// RFC 4493 4 (RFC 4494 truncates it); NIST SP 800-38B D.2 and D.3.
#[test]
fn cmac_of_rfc_4493_and_nist() {
    let aes128 = hex("2b7e151628aed2a6abf7158809cf4f3c");
    let aes192 = hex("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b");
    let aes256 = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
    let message = hex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51
         30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
    );
    for (key, bytes, expected) in [
        (&aes128, 0, "bb1d6929e95937287fa37d129b756746"),
        (&aes128, 16, "070a16b46b4d4144f79bdd9dd04a287c"),
        (&aes128, 40, "dfa66747de9ae63030ca3261"),
        (&aes128, 64, "51f0bebf7e3b9d92fc49741779363cfe"),
        (&aes192, 0, "d17ddf46adaacde531cac483de7a9367"),
        (&aes192, 16, "9e99a7bf31e710900662f65e617c5184"),
        (&aes256, 0, "028962f61b7bf89efc6b551f4667d983"),
        (&aes256, 16, "28a7023f452e8f82bd4bf28d8c37c35c"),
    ] {
        check_mac(AuthAlgorithm::AesCmac, key, &message[..bytes], expected);
    }
}

/// `iv` and `ciphertext` as a packet without ICV, opened.
fn check_cipher(algorithm: CipherAlgorithm, key: &str, iv: &str, plain: &str, ciphertext: &str) {
    let null = (AuthAlgorithm::Null, &[][..]);
    let key = hex(key);
    let cipher = (algorithm, &key[..]);
    let transform =
        EspTransform::authenc(cipher, null, 0, false, &mut SeededEntropy::new(1)).unwrap();
    let mut packet = [vec![0; 8], hex(iv), hex(ciphertext)].concat();
    transform.open(0, &mut packet).unwrap();
    let prefix = transform.layout().prefix_bytes();
    assert_eq!(packet[prefix..], hex(plain), "{algorithm:?}");

    // Encryption: of the IV that it chooses, decrypted by the direction just proven.
    transform.seal(3, &mut packet).unwrap();
    assert_ne!(packet[prefix..], hex(plain));
    transform.open(0, &mut packet).unwrap();
    assert_eq!(packet[prefix..], hex(plain), "{algorithm:?}");
}

/// RFC 3602 4, cases 1 to 4; NIST SP 800-38A F.2.3 and F.2.5.
#[test]
fn aes_cbc_of_rfc_3602_and_nist() {
    use CipherAlgorithm::AesCbc;
    check_cipher(
        AesCbc,
        "06a9214036b8a15b512e03d534120006",
        "3dafba429d9eb430b422da802c9fac41",
        "53696e676c6520626c6f636b206d7367",
        "e353779c1079aeb82708942dbe77181a",
    );
    check_cipher(
        AesCbc,
        "c286696d887c9aa0611bbb3e2025a45a",
        "562e17996d093d28ddb3ba695a2e6f58",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
    );
    check_cipher(
        AesCbc,
        "6c3ea0477630ce21a2ce334aa746c2cd",
        "c782dc4c098c66cbd9cd27d825682c81",
        "5468697320697320612034382d62797465206d657373616765202865786163746c
         7920332041455320626c6f636b7329",
        "d0a02b3836451753d493665d33f0e8862dea54cdb293abc7506939276772f8d5
         021c19216bad525c8579695d83ba2684",
    );
    check_cipher(
        AesCbc,
        "56e47a38c5598974bc46903dba290349",
        "8ce82eefbea0da3c44699ed7db51b7d9",
        "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf
         c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf",
        "c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e
         35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55",
    );
    let (iv, plain) = (
        "000102030405060708090a0b0c0d0e0f",
        "6bc1bee22e409f96e93d7e117393172a",
    );
    check_cipher(
        AesCbc,
        "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
        iv,
        plain,
        "4f021db243bc633d7178183a9fa071e8",
    );
    check_cipher(
        AesCbc,
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        iv,
        plain,
        "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
    );
}

/// RFC 3686 6, cases 1, 2, 4 and 7.
#[test]
fn aes_ctr_of_rfc_3686() {
    for (key, iv, plain, ciphertext) in [
        (
            "ae6852f8121067cc4bf7a5765577f39e 00000030",
            "0000000000000000",
            "53696e676c6520626c6f636b206d7367",
            "e4095d4fb7a7b3792d6175a3261311b8",
        ),
        (
            "7e24067817fae0d743d6ce1f32539163 006cb6db",
            "c0543b59da48d90b",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28",
        ),
        (
            "16af5b145fc9f579c175f93e3bfb0eed863d06ccfdb78515 00000048",
            "36733c147d6d93cb",
            "53696e676c6520626c6f636b206d7367",
            "4b55384fe259c9c84e7935a003cbe928",
        ),
        (
            "776beff2851db06f4c8a0542c8696f6c6a81af1eec96b4d37fc1d689e6c1c104 00000060",
            "db5672c97aa8f0b2",
            "53696e676c6520626c6f636b206d7367",
            "145ad01dbf824ec7560863dc71e3e0c0",
        ),
    ] {
        check_cipher(CipherAlgorithm::AesCtr, key, iv, plain, ciphertext);
    }
}

/// FIPS 81 C.1; `destest` of OpenSSL; RFC 2144 B.1; Schneier's `vectors.txt`.
#[test]
fn ciphers_with_64_bit_blocks() {
    use CipherAlgorithm::{BlowfishCbc, Cast5Cbc, DesCbc, TripleDesCbc};
    let zero = "0000000000000000";
    check_cipher(
        DesCbc,
        "0123456789abcdef",
        "1234567890abcdef",
        "4e6f77206973207468652074696d6520666f7220616c6c20",
        "e5c7cdde872bf27c43e934008c389c0f683788499a7c05f6",
    );
    check_cipher(
        TripleDesCbc,
        "0123456789abcdeff1e0d3c2b5a49786fedcba9876543210",
        "fedcba9876543210",
        "37363534333231204e6f77206973207468652074696d6520666f722000000000",
        "3fe301c962ac01d02213763c1cbd4cdc799657c064ecf5d41c673812cfde9675",
    );
    let plain = "0123456789abcdef";
    let cast = "0123456712345678234567893456789a";
    check_cipher(Cast5Cbc, cast, zero, plain, "238b4fe5847e44b2");
    check_cipher(Cast5Cbc, &cast[..20], zero, plain, "eb6a711a2c02271b");
    check_cipher(Cast5Cbc, &cast[..10], zero, plain, "7ac816d16e9b302e");
    check_cipher(BlowfishCbc, zero, zero, zero, "4ef997456198dd78");
}

/// RFC 3713 appendix A; Twofish's `ecb_ival.txt`; GB/T 32907 A.1 and OpenSSL for SM4.
#[test]
fn ciphers_with_128_bit_blocks() {
    use CipherAlgorithm::{CamelliaCbc, Sm4Cbc, TwofishCbc};
    let zero = "00000000000000000000000000000000";
    let key = "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff";
    let plain = &key[..32];
    check_cipher(
        CamelliaCbc,
        plain,
        zero,
        plain,
        "67673138549669730857065648eabe43",
    );
    check_cipher(
        CamelliaCbc,
        &key[..48],
        zero,
        plain,
        "b4993401b3e996f84ee5cee7d79b09b9",
    );
    check_cipher(
        CamelliaCbc,
        key,
        zero,
        plain,
        "9acc237dff16d76c20ef7c919e3a7509",
    );
    check_cipher(
        TwofishCbc,
        zero,
        zero,
        zero,
        "9f589f5cf6122c32b6bfec2f2ae8c35a",
    );
    check_cipher(
        TwofishCbc,
        &key[..48],
        zero,
        zero,
        "cfd1d2e5a9be9cdf501f13b892bd2248",
    );
    check_cipher(
        TwofishCbc,
        key,
        zero,
        zero,
        "37527be0052334b89f0cfccae87cfa20",
    );
    check_cipher(
        Sm4Cbc,
        plain,
        zero,
        plain,
        "681edf34d206965e86b3e94f536e4246",
    );
    check_cipher(
        Sm4Cbc,
        plain,
        "000102030405060708090a0b0c0d0e0f",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
         202122232425262728292a2b2c2d2e2f",
        "2677f46b09c122cc975533105bd4a22ad9ee98830e69745c9827f934a19621f8
         db45a48645909eefda6bae89a72e659b",
    );
}

fn check_gcm(gcm: &dyn Primitive, ciphertext: &str, tag: &str) {
    let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let plain = hex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    );
    let iv = *hex("facedbaddecaf888").first_chunk().unwrap();
    let mut sealed = [&plain[..], &vec![0; gcm.icv_bytes()]].concat();
    let (body, icv) = sealed.split_at_mut(plain.len());
    gcm.seal(&iv, &aad, body, icv).unwrap();
    assert_eq!(*body, hex(ciphertext));
    assert_eq!(*icv, hex(tag)[..icv.len()]);
    gcm.open(&iv, &aad, &mut sealed).unwrap();
    assert_eq!(sealed[..plain.len()], plain);
}

/// The GCM specification's cases 4, 10 and 16, with every length of ICV.
#[test]
fn gcm_of_its_specification() {
    let key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    let salt = [0xca, 0xfe, 0xba, 0xbe];
    for icv_bytes in [8, 12, 16] {
        check_gcm(
            &Gcm::<Aes128Enc>::new(&key[..16], salt, icv_bytes).unwrap(),
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
             21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
            "5bc94fbc3221a5db94fae95ae7121a47",
        );
        check_gcm(
            &Gcm::<Aes192Enc>::new(&key[..24], salt, icv_bytes).unwrap(),
            "3980ca0b3c00e841eb06fac4872a2757859e1ceaa6efd984628593b40ca1e19c
             7d773d00c144c525ac619d18c84a3f4718e2448b2fe324d9ccda2710",
            "2519498e80f1478f37ba55bd6d27618c",
        );
        check_gcm(
            &Gcm::<Aes256Enc>::new(&key, salt, icv_bytes).unwrap(),
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
             8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
            "76fc6ece0f4e1768cddf8853bb2d551b",
        );
    }
}

/// RFC 7634 appendix A: an ESP packet, sealed and opened.
#[test]
fn chacha20_poly1305_of_rfc_7634() {
    let key: Vec<u8> = (0x80..0xa0).chain(0xa0..0xa4).collect();
    let plain = hex(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
         0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
         2425262728292a2b2c2d2e2f303132333435363701020204",
    );
    let expected = hex(
        "0102030400000005101112131415161724039428b97f417e3c13753a4f05087b
         67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f7
         2aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da
         9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43",
    );
    let mut entropy = Always(0x1011_1213_1415_1617 ^ 5);
    let algorithm = AeadAlgorithm::ChaCha20Poly1305;
    let transform = EspTransform::aead(algorithm, &key, 16, false, &mut entropy).unwrap();
    let mut packet = [&hex("0102030400000005")[..], &[0; 8], &plain, &[0; 16]].concat();
    transform.seal(5, &mut packet).unwrap();
    assert_eq!(packet, expected);
    transform.open(0, &mut packet).unwrap();
    assert_eq!(packet[16..packet.len() - 16], plain);
}

/// A line of `packets.txt`, as [`EspTransform`] and packet.
fn recorded(line: &str, entropy: &mut impl Entropy) -> (EspTransform, bool, u32, Vec<u8>) {
    let fields: Vec<&str> = line.split(' ').collect();
    let key = |text: &str| if text == "-" { vec![] } else { hex(text) };
    let esn = fields[fields.len() - 2] != "-";
    let high = u32::from_str_radix(fields[fields.len() - 2], 16).unwrap_or(0);
    let packet = hex(fields[fields.len() - 1]);
    let icv_bytes = fields[fields.len() - 3].parse().unwrap();
    let transform = match fields[0] {
        "aead" => {
            let algorithm = AeadAlgorithm::from_name(fields[1]).unwrap();
            EspTransform::aead(algorithm, &key(fields[2]), icv_bytes, esn, entropy)
        }
        _ => {
            let cipher = CipherAlgorithm::from_name(fields[1]).unwrap();
            let auth = AuthAlgorithm::from_name(fields[3]).unwrap();
            let (key, auth_key) = (key(fields[2]), key(fields[4]));
            EspTransform::authenc((cipher, &key), (auth, &auth_key), icv_bytes, esn, entropy)
        }
    };
    (transform.unwrap(), fields[0] == "aead", high, packet)
}

#[test]
fn packets_that_linux_sealed_open() {
    let mut count = 0;
    for line in include_str!("testdata/packets.txt").lines() {
        let (transform, _, high, mut packet) = recorded(line, &mut Always(0));
        let iv_at = transform.layout().prefix_bytes();
        if high != 0 && transform.layout().icv_bytes > 0 {
            assert!(
                transform.open(high ^ 1, &mut packet.clone()).is_err(),
                "{line}"
            );
        }
        transform.open(high, &mut packet).expect(line);
        let body = &packet[iv_at..packet.len() - transform.layout().icv_bytes];
        let expected: Vec<u8> = (0..body.len()).map(|i| (7 * i + 3) as u8).collect();
        assert_eq!(body, expected, "{line}");
        count += 1;
    }
    assert_eq!(count, 117);
}

#[test]
fn sealing_makes_linux_s_bytes_of_the_same_iv() {
    for line in include_str!("testdata/packets.txt").lines() {
        let (transform, aead, high, expected) = recorded(line, &mut Always(0));
        if !aead && !line.contains("rfc3686") {
            continue;
        }
        let iv = u64::from_be_bytes(expected[8..16].try_into().unwrap());
        let seq = (u64::from(high) << 32) | 0x5566_7788;
        drop(transform);
        let (transform, _, _, mut packet) = recorded(line, &mut Always(iv ^ seq));
        transform.open(high, &mut packet).unwrap();
        packet[8..16].fill(0);
        let icv_at = packet.len() - transform.layout().icv_bytes;
        packet[icv_at..].fill(0);
        transform.seal(seq, &mut packet).unwrap();
        assert_eq!(packet, expected, "{line}");
    }
}

/// What zlib makes with Linux's parameters: window of 2^11, memory level 9, default level.
#[test]
fn what_zlib_deflates_inflates() {
    let compressed = hex(
        "85d54b4a43411040d1adf412ec6f75e116b289a02f206a148ca0bb77ea2070e67774a8cf
     e9e5fafd539e8fcbdbf9767c95cff3d3eb712b0fe5e352decfd7dfc772ba1b54054d4157
     30144c054b4128d80a9250a6a4652566a5662567a5672568a5682569a569a369f37cd2b4
     d1b4d1b4d1b4d1b4d1b4d1b4d1b4d3b4d3b47be969da69da69da69da69da69da693a683a
     683a683a7c49693a683a683a683a683a683a693a693a693a693afd9e683a693a693a693a
     69ba68ba68ba68ba68ba68ba68ba68ba68ba68ba681a340d9a064d83a641d3a069d03468
     1a340d9a6e9a6e9a6e9a6e9a6e9a6e9a6e9a6e9a6e9a6e9a264d93a649d3a469d234699a
     344d9a264df39fe91f",
    );
    let expected: String = (0..100)
        .map(|i| format!("Linux deflates packet {i} of many; "))
        .collect();
    let mut deflate = Deflate::default();
    let mut output = vec![0; expected.len()];
    for behind in [&[][..], &[1, 2, 3]] {
        let input = [&compressed[..], behind].concat();
        let bytes = deflate.decompress(&input, &mut output);
        assert_eq!(bytes, Some(expected.len()));
        assert_eq!(output, expected.as_bytes());
    }
    output.pop();
    assert_eq!(deflate.decompress(&compressed, &mut output), None);
    let cut = &compressed[..compressed.len() - 2];
    assert_eq!(deflate.decompress(cut, &mut [0; 9000]), None);
}

/// Linux inflates with a window of 2 KiB: a stream that refers further back is no use to it.
#[test]
fn the_deflate_window_is_linux_s() {
    let mut entropy = SeededEntropy::new(1);
    let noise: Vec<u8> = (0..2100).map(|_| entropy.u32() as u8).collect();
    let near = [&noise[..1500], &noise[..1500]].concat();
    let far = [&noise[..], &noise[..]].concat();
    let mut deflate = Deflate::default();
    let mut output = [0; 9000];
    assert!(deflate.compress(&near, &mut output).unwrap() < 1700);
    assert!(deflate.compress(&far, &mut output).unwrap() > 4000);
    assert_eq!(deflate.compress(&noise, &mut output[..2000]), None);
}
