//! Every algorithm with its key and ICV sizes, by every name.

use xfrm_proto::consts::*;

use super::build::*;
use super::{Sa, Scenario};
use crate::session::Session;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("algorithms_aead", aead),
    Scenario::new("algorithms_auth", auth),
    Scenario::new("algorithms_auth_trunc", auth_trunc),
    Scenario::new("algorithms_crypt", crypt),
    Scenario::new("algorithms_comp", comp),
    Scenario::new("algorithms_combined", combined),
];

const AEADS: [&str; 9] = [
    "rfc4106(gcm(aes))",
    "rfc4309(ccm(aes))",
    "rfc4543(gcm(aes))",
    "rfc7539esp(chacha20,poly1305)",
    "gcm(aes)",
    "ccm(aes)",
    "rfc7539(chacha20,poly1305)",
    "RFC4106(gcm(aes))",
    "",
];
const AUTHS: [&str; 22] = [
    "digest_null",
    "hmac(md5)",
    "md5",
    "hmac(sha1)",
    "sha1",
    "hmac(sha256)",
    "sha256",
    "hmac(sha384)",
    "sha384",
    "hmac(sha512)",
    "sha512",
    "hmac(rmd160)",
    "rmd160",
    "xcbc(aes)",
    "cmac(aes)",
    "hmac(sm3)",
    "sm3",
    "hmac(sha224)",
    "hmac(sha3-256)",
    "aes",
    "null",
    "",
];
const CIPHERS: [&str; 26] = [
    "ecb(cipher_null)",
    "cipher_null",
    "cbc(des)",
    "des",
    "cbc(des3_ede)",
    "des3_ede",
    "cbc(cast5)",
    "cast5",
    "cbc(blowfish)",
    "blowfish",
    "cbc(aes)",
    "aes",
    "cbc(serpent)",
    "serpent",
    "cbc(camellia)",
    "camellia",
    "cbc(twofish)",
    "twofish",
    "rfc3686(ctr(aes))",
    "ctr(aes)",
    "cbc(sm4)",
    "sm4",
    "cbc(cast6)",
    "ecb(aes)",
    "xts(aes)",
    "",
];

fn aead(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for name in AEADS {
        for icv in [0, 32, 64, 96, 100, 128, 136] {
            let bytes = if name.contains("chacha") {
                36
            } else if name.contains("ccm") {
                19
            } else {
                20
            };
            cases.push((
                format!("{name} icv {icv}"),
                Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_AEAD, algo_icv(name, icv, &key(bytes))),
            ));
        }
        for bytes in [0, 3, 4, 16, 18, 19, 20, 21, 24, 27, 28, 32, 35, 36, 37, 64] {
            cases.push((
                format!("{name} key {bytes}"),
                Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_AEAD, algo_icv(name, 128, &key(bytes))),
            ));
        }
    }
    try_sas(s, cases);
}

fn auth(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for name in AUTHS {
        for bytes in [0, 1, 15, 16, 20, 24, 32, 48, 64, 100] {
            let payload = algo(name, &key(bytes));
            cases.push((
                format!("AH {name} key {bytes}"),
                Sa::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH, &payload),
            ));
            let sa = Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_AUTH, &payload);
            let sa = sa.attr(XFRMA_ALG_CRYPT, algo("cbc(aes)", &key(16)));
            if bytes == 16 || bytes == 20 {
                cases.push((format!("ESP {name} key {bytes}"), sa));
            }
        }
    }
    try_sas(s, cases);
}

fn auth_trunc(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for name in AUTHS {
        for icv in [
            0,
            1,
            8,
            12,
            64,
            96,
            128,
            160,
            161,
            192,
            256,
            257,
            384,
            512,
            513,
            u32::MAX,
        ] {
            let payload = algo_icv(name, icv, &key(16));
            cases.push((
                format!("AH {name} icv {icv}"),
                Sa::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH_TRUNC, &payload),
            ));
            let sa = Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_AUTH_TRUNC, &payload);
            let sa = sa.attr(XFRMA_ALG_CRYPT, algo("cipher_null", &[]));
            if [0, 12, 96, 256].contains(&icv) {
                cases.push((format!("ESP {name} icv {icv}"), sa));
            }
        }
    }
    try_sas(s, cases);
}

fn crypt(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for name in CIPHERS {
        for bytes in [
            0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 23, 24, 25, 28, 32, 33, 36, 40, 56, 57, 64,
        ] {
            let sa = Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_CRYPT, algo(name, &key(bytes)));
            cases.push((format!("{name} key {bytes}"), sa));
        }
        let weak = Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_CRYPT, algo(name, &[1; 24]));
        cases.push((format!("{name} key of equal thirds"), weak));
        let weak = Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_CRYPT, algo(name, &[1; 8]));
        cases.push((format!("{name} weak key"), weak));
    }
    try_sas(s, cases);
}

fn comp(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for name in [
        "deflate",
        "lzs",
        "lzjh",
        "lzo",
        "DEFLATE",
        "zlib-deflate",
        "",
    ] {
        for mode in [0, 1, 2, 4] {
            for bytes in [0, 5] {
                let sa = Sa::bare(IPPROTO_COMP)
                    .mode(mode)
                    .attr(XFRMA_ALG_COMP, algo(name, &key(bytes)));
                cases.push((format!("{name} mode {mode} key {bytes}"), sa));
            }
        }
    }
    try_sas(s, cases);
}

fn combined(s: &mut Session<'_>) {
    let mut cases = Vec::new();
    for cipher in CIPHERS.iter().step_by(2) {
        for auth in AUTHS.iter().step_by(3) {
            let sa = Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_CRYPT, algo(cipher, &key(24)));
            let sa = sa.attr(XFRMA_ALG_AUTH, algo(auth, &key(20)));
            cases.push((format!("{cipher} {auth}"), sa));
        }
    }
    let base = || Sa::bare(IPPROTO_ESP).attr(XFRMA_ALG_CRYPT, algo("cbc(aes)", &key(16)));
    let plain = || algo("hmac(sha1)", &key(20));
    let trunc = |name: &str, icv| algo_icv(name, icv, &key(32));
    cases.push((
        "both, truncated last".into(),
        base()
            .attr(XFRMA_ALG_AUTH, plain())
            .attr(XFRMA_ALG_AUTH_TRUNC, trunc("hmac(sha256)", 128)),
    ));
    cases.push((
        "both, truncated first".into(),
        base()
            .attr(XFRMA_ALG_AUTH_TRUNC, trunc("hmac(sha256)", 128))
            .attr(XFRMA_ALG_AUTH, plain()),
    ));
    cases.push((
        "both, truncated 0".into(),
        base()
            .attr(XFRMA_ALG_AUTH_TRUNC, trunc("hmac(sha256)", 0))
            .attr(XFRMA_ALG_AUTH, plain()),
    ));
    cases.push((
        "both, truncated unknown".into(),
        base()
            .attr(XFRMA_ALG_AUTH_TRUNC, trunc("nope", 128))
            .attr(XFRMA_ALG_AUTH, plain()),
    ));
    cases.push((
        "both, plain unknown".into(),
        base()
            .attr(XFRMA_ALG_AUTH_TRUNC, trunc("hmac(sha256)", 128))
            .attr(XFRMA_ALG_AUTH, algo("nope", &[])),
    ));
    cases.push((
        "bits not a multiple of 8".into(),
        Sa::bare(IPPROTO_AH).attr(XFRMA_ALG_AUTH, algo_bits("hmac(sha1)", 121, &key(16))),
    ));
    try_sas(s, cases);
}
