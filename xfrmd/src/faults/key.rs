//! What can be said of a fault, key by key.

use nix::errno::Errno;

use super::subject::{Direction, message};
use super::{Matching, Share};

/// What has been said of a fault so far.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) matching: Matching,
    pub(super) share: Share,
    pub(super) errno: i32,
    pub(super) extack: Option<String>,
    pub(super) after: bool,
    pub(super) nanos: u64,
    pub(super) chunk: u32,
}

/// Something that can be said of a fault.
pub struct Key {
    /// What it is called.
    pub name: &'static str,
    /// What its value is.
    pub value: &'static str,
    /// What it means.
    pub about: &'static str,
    set: fn(&mut Draft, &str) -> Option<()>,
}

impl Key {
    /// One by its name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Takes up what was said; `None` if it is no such value.
    pub(super) fn set(&self, draft: &mut Draft, value: &str) -> Option<()> {
        (self.set)(draft, value)
    }
}

/// Every key.
pub const KEYS: &[Key] = &[
    Key {
        name: "name",
        value: "a word",
        about: "how the fault is called in logs and for `xfrmd fault remove`; by default as its kind",
        set: |draft, text| {
            let is_word = !text.is_empty() && text.bytes().all(|it| it.is_ascii_graphic());
            draft.name = is_word.then(|| text.to_owned())?;
            Some(())
        },
    },
    Key {
        name: "message",
        value: "a message type such as NEWSA, or several with commas",
        about: "only messages of these types",
        set: |draft, text| {
            let types = text.split(',').map(|name| message(name.trim()));
            draft.matching.messages = types.collect::<Option<_>>()?;
            Some(())
        },
    },
    Key {
        name: "spi",
        value: "an SPI",
        about: "only what is about an SA of this SPI",
        set: |draft, text| {
            draft.matching.spi = Some(u32::try_from(number(text)?).ok()?);
            Some(())
        },
    },
    Key {
        name: "dst",
        value: "an address or prefix",
        about: "only what is about an SA or a policy for this destination",
        set: |draft, text| {
            draft.matching.dst = Some(text.parse().ok()?);
            Some(())
        },
    },
    Key {
        name: "reqid",
        value: "a number",
        about: "only what is about an SA or a policy of this request id",
        set: |draft, text| {
            draft.matching.reqid = Some(u32::try_from(number(text)?).ok()?);
            Some(())
        },
    },
    Key {
        name: "direction",
        value: "\"in\" or \"out\"",
        about: "only packets that have come, or only those that are sent",
        set: |draft, text| {
            draft.matching.direction = Some(match text {
                "in" => Direction::In,
                "out" => Direction::Out,
                _ => return None,
            });
            Some(())
        },
    },
    Key {
        name: "nth",
        value: "a number, 1 or more",
        about: "only the nth of what fits, and with `times` those behind it",
        set: |draft, text| {
            draft.share.nth = Some(positive(text)?);
            Some(())
        },
    },
    Key {
        name: "every",
        value: "a number, 1 or more",
        about: "each that many of what fits",
        set: |draft, text| {
            draft.share.every = Some(positive(text)?);
            Some(())
        },
    },
    Key {
        name: "probability",
        value: "a number from 0 to 1",
        about: "each of what fits with this probability, which the seed decides",
        set: |draft, text| {
            let probability = text.parse::<f64>().ok()?;
            draft.share.probability = (0.0..=1.0)
                .contains(&probability)
                .then_some(Some(probability))?;
            Some(())
        },
    },
    Key {
        name: "times",
        value: "a number, 1 or more",
        about: "at most so often",
        set: |draft, text| {
            draft.share.times = Some(positive(text)?);
            Some(())
        },
    },
    Key {
        name: "errno",
        value: "an errno such as ENOMEM",
        about: "what the error is",
        set: |draft, text| {
            let mut all = 1..=MOST_ERRNO;
            draft.errno = match text.parse() {
                Ok(errno) => all.contains(&errno).then_some(errno)?,
                Err(_) => all.find(|&errno| format!("{:?}", Errno::from_raw(errno)) == text)?,
            };
            Some(())
        },
    },
    Key {
        name: "extack",
        value: "a text",
        about: "what the error says to clients that want to know (NETLINK_EXT_ACK)",
        set: |draft, text| {
            draft.extack = Some(text.to_owned()).filter(|text| !text.contains('\0'));
            draft.extack.is_some().then_some(())
        },
    },
    Key {
        name: "when",
        value: "\"before\" or \"after\"",
        about: "whether the request has been done; by default before",
        set: |draft, text| {
            draft.after = match text {
                "before" => false,
                "after" => true,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "delay",
        value: "a time such as \"200ms\" or \"2s\"",
        about: "for how long",
        set: |draft, text| {
            draft.nanos = nanos(text)?;
            Some(())
        },
    },
    Key {
        name: "chunk",
        value: "a number, 1 or more",
        about: "which datagram of the dump, by default the first",
        set: |draft, text| {
            draft.chunk = u32::try_from(positive(text)?).ok()?;
            Some(())
        },
    },
    Key {
        name: "mtu",
        value: "a number of bytes",
        about: "with all headers",
        set: |draft, text| {
            draft.matching.longer_than = Some(usize::try_from(positive(text)?).ok()?);
            Some(())
        },
    },
];

/// `MAX_ERRNO` of what a client's libc knows by name.
const MOST_ERRNO: i32 = 133;

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn positive(text: &str) -> Option<u64> {
    number(text).filter(|&number| number > 0)
}

fn nanos(text: &str) -> Option<u64> {
    let unit = text.find(|it: char| it.is_ascii_alphabetic())?;
    let (count, unit) = text.split_at_checked(unit)?;
    let each = match unit {
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        _ => return None,
    };
    let nanos = count.trim().parse::<f64>().ok()? * each;
    // A day is more than any test waits.
    (0.0..=86400e9).contains(&nanos).then(|| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is within bounds"
        )]
        let nanos = nanos as u64;
        nanos
    })
}
