//! Which algorithms IPsec may name, and what keys and ICVs they take.
//!
//! The table is Linux's (`net/xfrm/xfrm_algo.c`), the key lengths are those of
//! the ciphers behind it (`crypto/`), which is what decides: the PF_KEY limits
//! in Linux's own table bind nobody here. No cipher runs in this module.

use crate::profile::Profile;

/// How an algorithm is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Encryption and authentication in one.
    Aead,
    /// Authentication.
    Auth,
    /// Encryption.
    Cipher,
    /// Compression.
    Compressor,
}

/// Key lengths, in bytes, that an algorithm takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyBytes {
    /// Any, none included.
    Any,
    /// These.
    OneOf(&'static [usize]),
    /// From the first to the second.
    Range(usize, usize),
}

impl KeyBytes {
    /// Whether a key of that many bytes will do.
    #[must_use]
    pub fn accepts(self, bytes: usize) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(lengths) => lengths.contains(&bytes),
            Self::Range(low, high) => (low..=high).contains(&bytes),
        }
    }
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// How it is used.
    pub kind: Kind,
    /// Its name, which replies carry whatever the client called it.
    pub name: &'static str,
    /// What a client may call it instead; empty for nothing.
    alias: &'static str,
    /// Its PF_KEY number; templates have a bit for each.
    pub id: u8,
    /// Bits of ICV unless the client asks for others.
    pub icv_bits: u32,
    /// Bits that the algorithm makes before truncation.
    pub icv_full_bits: u32,
    /// Keys it takes.
    pub key: KeyBytes,
    /// Bytes of IV in a packet.
    pub iv_bytes: u8,
    /// Which releases have it.
    found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Everywhere,
    WithRmd160,
    WithShangMi,
}

impl Algorithm {
    /// Whether a key of that many bytes will do.
    #[must_use]
    pub fn accepts_key(&self, profile: &Profile, bytes: usize) -> bool {
        // QUIRK: xcbc_takes_long_keys_before_7. Its AES took any AES key.
        let long = profile.xcbc_takes_long_keys && self.name == XCBC;
        self.key.accepts(bytes) || (long && AES.accepts(bytes))
    }

    fn is_called(&self, profile: &Profile, name: &[u8]) -> bool {
        let alias = self.alias.as_bytes();
        let named = self.name.as_bytes() == name || (!alias.is_empty() && alias == name);
        let available = match self.found {
            Found::Everywhere => true,
            Found::WithRmd160 => profile.has_rmd160,
            Found::WithShangMi => profile.has_shangmi,
        };
        named && available
    }
}

/// The AEAD of that name with exactly that ICV (`xfrm_aead_get_byname`).
#[must_use]
pub fn aead(name: &[u8], icv_bits: u32) -> Option<&'static Algorithm> {
    AEADS
        .iter()
        .find(|a| a.name.as_bytes() == name && a.icv_bits == icv_bits)
}

/// The authentication algorithm of that name (`xfrm_aalg_get_byname`).
#[must_use]
pub fn auth(profile: &Profile, name: &[u8]) -> Option<&'static Algorithm> {
    AUTHS.iter().find(|a| a.is_called(profile, name))
}

/// The cipher of that name (`xfrm_ealg_get_byname`).
#[must_use]
pub fn cipher(profile: &Profile, name: &[u8]) -> Option<&'static Algorithm> {
    CIPHERS.iter().find(|a| a.is_called(profile, name))
}

/// The compressor of that name (`xfrm_calg_get_byname`).
///
/// Linux's table also names `lzs` and `lzjh`, which no kernel implements.
#[must_use]
pub fn compressor(name: &[u8]) -> Option<&'static Algorithm> {
    COMPRESSORS.iter().find(|a| a.name.as_bytes() == name)
}

const XCBC: &str = "xcbc(aes)";
const AES: KeyBytes = KeyBytes::OneOf(&[16, 24, 32]);
/// AES with a four-byte salt or nonce behind the key.
const AES_SALT4: KeyBytes = KeyBytes::OneOf(&[20, 28, 36]);
/// AES with a three-byte salt behind the key.
const AES_SALT3: KeyBytes = KeyBytes::OneOf(&[19, 27, 35]);

const fn aead_line(name: &'static str, id: u8, icv_bits: u32, key: KeyBytes) -> Algorithm {
    Algorithm {
        kind: Kind::Aead,
        name,
        alias: "",
        id,
        icv_bits,
        icv_full_bits: icv_bits,
        key,
        iv_bytes: 8,
        found: Found::Everywhere,
    }
}

const fn auth_line(
    name: &'static str,
    alias: &'static str,
    id: u8,
    icv_bits: u32,
    icv_full_bits: u32,
    key: KeyBytes,
) -> Algorithm {
    Algorithm {
        kind: Kind::Auth,
        name,
        alias,
        id,
        icv_bits,
        icv_full_bits,
        key,
        iv_bytes: 0,
        found: Found::Everywhere,
    }
}

const fn cipher_line(
    name: &'static str,
    alias: &'static str,
    id: u8,
    key: KeyBytes,
    iv_bytes: u8,
) -> Algorithm {
    Algorithm {
        kind: Kind::Cipher,
        name,
        alias,
        id,
        icv_bits: 0,
        icv_full_bits: 0,
        key,
        iv_bytes,
        found: Found::Everywhere,
    }
}

static AEADS: [Algorithm; 8] = [
    aead_line("rfc4106(gcm(aes))", 18, 64, AES_SALT4),
    aead_line("rfc4106(gcm(aes))", 19, 96, AES_SALT4),
    aead_line("rfc4106(gcm(aes))", 20, 128, AES_SALT4),
    aead_line("rfc4309(ccm(aes))", 14, 64, AES_SALT3),
    aead_line("rfc4309(ccm(aes))", 15, 96, AES_SALT3),
    aead_line("rfc4309(ccm(aes))", 16, 128, AES_SALT3),
    aead_line("rfc4543(gcm(aes))", 23, 128, AES_SALT4),
    aead_line(
        "rfc7539esp(chacha20,poly1305)",
        0,
        128,
        KeyBytes::OneOf(&[36]),
    ),
];

static AUTHS: [Algorithm; 10] = [
    auth_line("digest_null", "", 251, 0, 0, KeyBytes::Any),
    auth_line("hmac(md5)", "md5", 2, 96, 128, KeyBytes::Any),
    auth_line("hmac(sha1)", "sha1", 3, 96, 160, KeyBytes::Any),
    auth_line("hmac(sha256)", "sha256", 5, 96, 256, KeyBytes::Any),
    auth_line("hmac(sha384)", "", 6, 192, 384, KeyBytes::Any),
    auth_line("hmac(sha512)", "", 7, 256, 512, KeyBytes::Any),
    Algorithm {
        found: Found::WithRmd160,
        ..auth_line("hmac(rmd160)", "rmd160", 8, 96, 160, KeyBytes::Any)
    },
    auth_line(XCBC, "", 9, 96, 128, KeyBytes::OneOf(&[16])),
    auth_line("cmac(aes)", "", 0, 96, 128, AES),
    Algorithm {
        found: Found::WithShangMi,
        ..auth_line("hmac(sm3)", "sm3", 10, 256, 256, KeyBytes::Any)
    },
];

static CIPHERS: [Algorithm; 11] = [
    cipher_line(
        "ecb(cipher_null)",
        "cipher_null",
        11,
        KeyBytes::OneOf(&[0]),
        0,
    ),
    cipher_line("cbc(des)", "des", 2, KeyBytes::OneOf(&[8]), 8),
    cipher_line("cbc(des3_ede)", "des3_ede", 3, KeyBytes::OneOf(&[24]), 8),
    cipher_line("cbc(cast5)", "cast5", 6, KeyBytes::Range(5, 16), 8),
    cipher_line("cbc(blowfish)", "blowfish", 7, KeyBytes::Range(4, 56), 8),
    cipher_line("cbc(aes)", "aes", 12, AES, 16),
    cipher_line("cbc(serpent)", "serpent", 252, KeyBytes::Range(0, 32), 16),
    cipher_line("cbc(camellia)", "camellia", 22, AES, 16),
    cipher_line("cbc(twofish)", "twofish", 253, AES, 16),
    cipher_line("rfc3686(ctr(aes))", "", 13, AES_SALT4, 8),
    Algorithm {
        found: Found::WithShangMi,
        ..cipher_line("cbc(sm4)", "sm4", 24, KeyBytes::OneOf(&[16]), 16)
    },
];

static COMPRESSORS: [Algorithm; 1] = [Algorithm {
    kind: Kind::Compressor,
    name: "deflate",
    alias: "",
    id: 2,
    icv_bits: 0,
    icv_full_bits: 0,
    key: KeyBytes::Any,
    iv_bytes: 0,
    found: Found::Everywhere,
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{V6_12, V7_2};

    #[test]
    fn names_match_exactly_or_by_alias() {
        assert_eq!(auth(&V7_2, b"sha256").unwrap().name, "hmac(sha256)");
        assert!(auth(&V7_2, b"sha512").is_none());
        assert!(cipher(&V7_2, b"").is_none());
        assert!(cipher(&V7_2, b"ctr(aes)").is_none());
        assert!(aead(b"rfc4106(gcm(aes))", 120).is_none());
        assert!(auth(&V6_12, b"rmd160").is_some());
        assert!(auth(&V7_2, b"rmd160").is_none());
    }

    #[test]
    fn xcbc_takes_long_keys_before_7() {
        let xcbc = auth(&V7_2, b"xcbc(aes)").unwrap();
        assert!(xcbc.accepts_key(&V7_2, 16) && !xcbc.accepts_key(&V7_2, 32));
        assert!(xcbc.accepts_key(&V6_12, 32) && !xcbc.accepts_key(&V6_12, 20));
    }
}
