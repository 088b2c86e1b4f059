//! Rules about one SA.

use xfrm_proto::consts::*;

use super::{Finding, Kind, Sa, State, Subject, together};

/// Seconds that a larval SA may wait: a key manager that is there answers sooner.
const PATIENCE: u64 = 10;
/// Part of the sequence numbers that may be used.
const USED: (u64, u64) = (9, 10);

/// Ciphers that RFC 8221 section 5 forbids or advises against, under the kernel's names.
const WEAK_CIPHERS: [(&str, &str); 6] = [
    ("cbc(des)", "DES: MUST NOT"),
    ("des", "DES: MUST NOT"),
    ("cbc(blowfish)", "Blowfish: MUST NOT"),
    ("blowfish", "Blowfish: MUST NOT"),
    ("cbc(des3_ede)", "3DES: SHOULD NOT"),
    ("des3_ede", "3DES: SHOULD NOT"),
];
/// The same for integrity, section 6.
const WEAK_INTEGRITY: [(&str, &str); 2] = [
    ("hmac(md5)", "HMAC-MD5: MUST NOT"),
    ("md5", "HMAC-MD5: MUST NOT"),
];
const NO_INTEGRITY: [&str; 1] = ["digest_null"];

pub(super) fn examine<'a>(state: &State, sa: &'a Sa, found: &mut Vec<Finding<'a>>) {
    let mut add = |kind, why| {
        found.push(Finding {
            kind,
            subject: Subject::Sa(sa),
            why,
        });
    };
    if sa.is_larval() {
        let age = state.now.0.saturating_sub(sa.info.curlft.add_time);
        if age >= PATIENCE {
            let what = match sa.info.id.spi.get() {
                0 => "it was asked for",
                _ => "its SPI was reserved",
            };
            add(
                Kind::UnresolvedLarval,
                format!("{what} {age} s ago, and no key manager has filled it in"),
            );
        }
        return;
    }
    if !sa.is_negotiated() {
        return;
    }
    if let Some(why) = sequence(sa) {
        add(Kind::SequenceNearEnd, why);
    }
    for why in margins(sa) {
        add(Kind::NoRekeyMargin, why);
    }
    for why in weaknesses(sa) {
        add(Kind::WeakAlgorithm, why);
    }
    if sa.window == 0 && sa.info.id.proto != IPPROTO_COMP && together::is_inbound(state, sa) {
        add(
            Kind::NoReplayWindow,
            "it receives, and its replay window is 0".to_owned(),
        );
    }
}

fn sequence(sa: &Sa) -> Option<String> {
    if sa.info.id.proto == IPPROTO_COMP {
        return None;
    }
    let last = match sa.is_extended() {
        true => u64::MAX,
        false => u64::from(u32::MAX),
    };
    let limit = last / USED.1 * USED.0;
    let wraps = sa.extra_flags & XFRM_SA_XFLAG_OSEQ_MAY_WRAP != 0;
    let part = |number: u64| number / (last / 1000);
    let shown = |number| format!("{}.{} %", part(number) / 10, part(number) % 10);
    if sa.sent > limit && !wraps {
        return Some(format!(
            "{} of the numbers that it can send are used",
            shown(sa.sent)
        ));
    }
    (sa.received > limit).then(|| {
        let part = shown(sa.received);
        format!("{part} of the numbers that it can receive are used")
    })
}

/// Limits after which the SA is gone, and that nobody is warned of.
fn margins(sa: &Sa) -> impl Iterator<Item = String> {
    let lft = &sa.info.lft;
    let seconds = |value: u64| (value != 0).then_some(value);
    let count = |value: u64| (value != XFRM_INF).then_some(value);
    [
        (
            "s after it was added",
            seconds(lft.soft_add_expires_seconds),
            seconds(lft.hard_add_expires_seconds),
        ),
        (
            "s after its first use",
            seconds(lft.soft_use_expires_seconds),
            seconds(lft.hard_use_expires_seconds),
        ),
        (
            "bytes",
            count(lft.soft_byte_limit),
            count(lft.hard_byte_limit),
        ),
        (
            "packets",
            count(lft.soft_packet_limit),
            count(lft.hard_packet_limit),
        ),
    ]
    .into_iter()
    .filter_map(|(unit, soft, hard)| {
        let hard = hard?;
        match soft {
            None => Some(format!("it ends at {hard} {unit}, without a soft limit")),
            Some(soft) if soft >= hard => Some(format!(
                "it ends at {hard} {unit}, and the soft limit is {soft}"
            )),
            Some(_) => None,
        }
    })
}

fn weaknesses(sa: &Sa) -> Vec<String> {
    let look = |table: &[(&str, &str)], name: &Option<String>| {
        let name = name.as_deref()?;
        let weak = table.iter().find(|(weak, _)| *weak == name)?;
        Some(format!("{} (RFC 8221)", weak.1))
    };
    let mut all: Vec<String> = look(&WEAK_CIPHERS, &sa.cipher)
        .into_iter()
        .chain(look(&WEAK_INTEGRITY, &sa.integrity))
        .collect();
    let integrity = sa.integrity.as_deref();
    let unprotected = integrity.is_none_or(|name| NO_INTEGRITY.contains(&name));
    if sa.cipher.is_some() && unprotected {
        all.push("no integrity: encryption without it MUST NOT be used (RFC 8221)".to_owned());
    }
    all
}
